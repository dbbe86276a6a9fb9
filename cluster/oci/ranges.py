"""`Range` of a download (RFC 9110 section 14), and `Content-Range` of an upload chunk, which is not the RFC's.

OCI distribution-spec, "Pulling blobs" and "Pushing a blob in chunks".
"""

from __future__ import annotations

import re

from cluster.errors import RangeInvalid

_LIMIT = 19  # digits: more cannot be an offset in a file
_MAX_RANGES = 32  # more in one request is an attack (RFC 9110 section 17.15)
_SPEC = re.compile(r"([0-9]*)-([0-9]*)")
_CHUNK = re.compile(r"([0-9]{1,19})-([0-9]{1,19})")

Span = tuple[int, int]
"""First byte and the byte after the last one."""


def parse_range(header: str, size: int) -> list[Span] | None:
    """The spans that a `Range` header asks for, of a content of `size` bytes.

    None means to answer with everything: the unit is not bytes (RFC 9110 section 14.2), the spans together are more
    than the content or too many, or there is no content: some clients ask for every blob by range.

    RangeInvalid when the text is malformed or no span overlaps the content.
    """
    unit, equals, text = header.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    specs = [part.strip() for part in text.split(",") if part.strip()]
    spans = [span for span in (_parse_spec(spec, size) for spec in specs) if span is not None]
    if specs and not size:
        return None
    if not spans:
        raise RangeInvalid(
            f"{header[:200]!r} overlaps none of the {size} bytes",
            headers={"Content-Range": f"bytes */{size}"},
        )
    if len(specs) > _MAX_RANGES or sum(stop - start for start, stop in spans) > size:
        return None
    return spans


def _parse_spec(spec: str, size: int) -> Span | None:
    match = _SPEC.fullmatch(spec)
    malformed = match is None or spec == "-" or len(spec) > 2 * _LIMIT + 1
    first, last = ("", "") if match is None else match.groups()
    if malformed or (first and last and int(first) > int(last)):
        raise RangeInvalid(f"{spec[:60]!r} is not a range", headers={"Content-Range": f"bytes */{size}"})
    if not first:  # the last n bytes
        start = max(size - int(last), 0)
        return (start, size) if start < size else None
    start = int(first)
    stop = min(int(last) + 1, size) if last else size
    return (start, stop) if start < size else None


def parse_chunk_range(header: str) -> Span:
    """The span of a chunk, `start-end` with both ends counted (OCI end-5); RangeInvalid for anything else."""
    match = _CHUNK.fullmatch(header)
    if match is None or int(match[1]) > int(match[2]):
        raise RangeInvalid(f"Content-Range {header[:60]!r}: wanted <first byte>-<last byte>, such as 0-1023")
    return int(match[1]), int(match[2]) + 1


def format_chunk_range(size: int) -> str:
    """The `Range` of an upload session that holds `size` bytes; 0-0 also for none, as Distribution has it."""
    return f"0-{max(size - 1, 0)}"
