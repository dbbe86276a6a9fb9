"""What this process knows of the segments of sessions: published ones never change, so each is looked at once.

An upload of thousands of chunks would otherwise cost a look at each of them for each of them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

_MOST = 20_000  # segments of all sessions that are remembered: about 7 MB


class Segment(NamedTuple):
    """A run of bytes of a session, in a file that never changes (`data` excepted)."""

    path: str
    start: int
    size: int
    sealed: bool


class Chains:
    """The published segments of sessions, without a gap, as far as somebody has looked. For any thread."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._chains: OrderedDict[str, list[Segment]] = OrderedDict()
        self._held = 0  # segments
        self._lock = threading.Lock()

    def find(self, session: str) -> list[Segment]:
        """Those that are known, in order. Not to be changed."""
        with self._lock:
            if session not in self._chains:
                return []
            self._chains.move_to_end(session)
            return self._chains[session]

    def note(self, session: str, segments: list[Segment]) -> None:
        """All of them are published, in order."""
        with self._lock:
            self._forget(session)
            self._chains[session] = segments
            self._held += len(segments)
            while self._held > self._most:
                self._forget(next(iter(self._chains)))

    def forget(self, session: str) -> None:
        """It has ended."""
        with self._lock:
            self._forget(session)

    def clear(self) -> None:
        """Know nothing."""
        with self._lock:
            self._chains.clear()
            self._held = 0

    def _forget(self, session: str) -> None:
        self._held -= len(self._chains.pop(session, ()))
