"""The upload session as a client carries it: the signed `_state` token, and the rule for a chunk's offset.

Owns what may be decided from a request alone. What a session holds is on storage (registry/uploads.py).
The token is Distribution's, so that its nodes and ours take each other's uploads: base64url of an HMAC-SHA256 over
the JSON that follows it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.errors import RangeInvalid, SizeInvalid, UploadInvalid, UploadUnknown
from cluster.oci.digest import ALGORITHMS, CANONICAL
from cluster.oci.ranges import format_chunk_range, parse_chunk_range

_MAC_SIZE = hashlib.sha256().digest_size
_TOKEN_LIMIT = 4096  # characters: four times what the longest repository name can make


@dataclass(frozen=True, slots=True)
class UploadState:
    """What the token says of a session at the moment it was signed."""

    name: str
    uuid: str
    offset: int  # bytes
    started_at: str  # RFC 3339
    algorithm: str = CANONICAL  # what the client means to commit under (OCI end-4c)

    def at(self, offset: int) -> UploadState:
        """The same session with `offset` bytes."""
        return UploadState(self.name, self.uuid, offset, self.started_at, self.algorithm)


def sign(state: UploadState, secret: bytes) -> str:
    """The token of a state, base64url with its padding."""
    fields: dict[str, str | int] = {
        "Name": state.name,
        "UUID": state.uuid,
        "Offset": state.offset,
        "StartedAt": state.started_at,
    }
    if state.algorithm != CANONICAL:
        fields["Algorithm"] = state.algorithm
    text = json.dumps(fields, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(hmac.digest(secret, text, "sha256") + text).decode()


def verify(token: str, secrets: Sequence[bytes], name: str, uuid: str) -> UploadState:
    """Read a token that any of the secrets signed, for this repository and this upload; else UploadInvalid."""
    try:
        raw = base64.b64decode(token[: _TOKEN_LIMIT + 1], altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise UploadInvalid("the upload's _state is not base64url") from None
    mac, text = raw[:_MAC_SIZE], raw[_MAC_SIZE:]
    # Every secret is tried, so that the time taken does not tell which one fits.
    matches = [hmac.compare_digest(mac, hmac.digest(secret, text, "sha256")) for secret in secrets]
    if not any(matches):
        raise UploadInvalid("the upload's _state was not signed by this registry")
    state = _read(text)
    if (state.name, state.uuid) != (name, uuid):
        raise UploadInvalid("the upload's _state belongs to another upload")
    return state


def _read(text: bytes) -> UploadState:
    """The signed JSON; keys are matched without regard to case, as Go reads them."""
    try:
        fields = {key.lower(): value for key, value in json.loads(text).items()}
    except (ValueError, AttributeError, RecursionError):
        raise UploadInvalid("the upload's _state is not a JSON object") from None
    name, uuid, offset = fields.get("name"), fields.get("uuid"), fields.get("offset", 0)
    started_at, algorithm = fields.get("startedat", ""), fields.get("algorithm", CANONICAL)
    texts = all(isinstance(value, str) for value in (name, uuid, started_at, algorithm))
    if not texts or type(offset) is not int or offset < 0 or algorithm not in ALGORITHMS:
        raise UploadInvalid("the upload's _state lacks a field or has one of the wrong type")
    return UploadState(str(name), str(uuid), offset, str(started_at), str(algorithm))


def check_chunk(state: UploadState, extent: int, content_range: str | None, content_length: int | None) -> None:
    """Refuse a chunk that does not start where the session ends (OCI end-5 and end-6, rule U3).

    `extent` is what storage holds. RangeInvalid tells it as `Range`; SizeInvalid when the two lengths that the
    client gave differ.
    """
    start, stop = state.offset, None
    if content_range is not None:
        try:
            start, stop = parse_chunk_range(content_range)
        except RangeInvalid as error:
            raise wrong_offset(extent, str(error.detail)) from None
    if start != extent or state.offset != extent:
        raise wrong_offset(extent, f"the chunk starts at {start}, the upload has {extent} bytes")
    if stop is not None and content_length is not None and stop - start != content_length:
        raise SizeInvalid(f"Content-Range {content_range} is {stop - start} bytes, Content-Length {content_length}")


def differs(content_range: str | None, size: int) -> str | None:
    """Why a body of `size` bytes is not the chunk that its `Content-Range` said; None when it is.

    For after the body, whose length may not have been known before; the header has passed `check_chunk`.
    """
    if content_range is None:
        return None
    start, stop = parse_chunk_range(content_range)
    return None if stop - start == size else f"the body has {size} bytes, Content-Range is {content_range}"


def wrong_offset(extent: int, why: str) -> RangeInvalid:
    """416 with the true `Range`, from which a client goes on."""
    return RangeInvalid(why, headers={"Range": format_chunk_range(extent)})


def unknown(state: UploadState) -> UploadUnknown:
    """404: storage has no such session any more."""
    return UploadUnknown(f"{state.name} has no upload {state.uuid}: it was finished, cancelled or purged")
