"""Regular expressions of the configuration, in Go's syntax and matched in linear time. The only importer of re2.

They meet what clients send. Python's own matcher goes back and tries again: with the pattern that Distribution's
documentation has, one URL could hold a worker for hours. Go's matcher does not, and is that of RE2.
"""

from __future__ import annotations

from typing import Any


class Pattern:
    """A pattern that is there or not somewhere in a text."""

    def __init__(self, text: str) -> None:
        """ValueError where it is none."""
        self._compiled = _compile(text)

    def is_in(self, text: str) -> bool:
        return self._compiled.search(text.encode("utf-8", "replace")) is not None


def _compile(text: str) -> Any:
    import re2  # noqa: PLC0415 - a library of 1.5 MiB, for registries that have such patterns

    options = re2.Options()
    options.log_errors = False  # they are told as errors of the configuration
    try:
        return re2.compile(text.encode(), options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0] if isinstance(error.args[0], bytes) else b"not UTF-8 text"
        raise ValueError(reason.decode("utf-8", "replace")) from None
