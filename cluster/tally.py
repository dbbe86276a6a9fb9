"""A number for each worker of a node, in memory that they share: how many uploads each has under way.

Made before the fork by the arbiter, which gives every worker a place of its own and clears it when the worker has
died, however that came. Nothing is locked: a number has one writer, and is written whole.
"""

from __future__ import annotations

import mmap

_PLACES = 1024  # workers at one time, those included that still drain after a SIGHUP
_SIZE = 8  # bytes of a number


class Tally:
    """The numbers. Without an arbiter it has one, that of this process."""

    def __init__(self) -> None:
        self._numbers = memoryview(mmap.mmap(-1, _PLACES * _SIZE)).cast("q")  # anonymous: a fork shares it
        self._places: dict[int, int] = {}  # by worker; the arbiter's
        self._own: int | None = 0

    def admit(self, worker: int) -> None:
        """In the arbiter, just before the fork of a worker: the next process has this place."""
        taken = set(self._places.values())
        self._own = next((place for place in range(_PLACES) if place not in taken), None)
        if self._own is not None:
            self._places[worker] = self._own
            self._numbers[self._own] = 0

    def dismiss(self, worker: int) -> None:
        """In the arbiter, after the death of a worker."""
        place = self._places.pop(worker, None)
        if place is not None:
            self._numbers[place] = 0

    def tell(self, number: int) -> None:
        """This worker's number is another one now. A worker for which there was no place is not counted."""
        if self._own is not None:
            self._numbers[self._own] = number

    def total(self) -> int:
        """Of all workers."""
        return sum(self._numbers)
