"""Which files are durable for sure, whoever wrote them: those that are old, and those that this process has synced.

A file that is there may have been put there by somebody who died before he synced it. Kernels write back within
half a minute; so what is older than a minute is durable, by the clock of storage, which dates files.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

_YOUNG = 60.0  # seconds
_MEASURE = 60.0  # seconds after which the clock of storage is looked at again
_MOST = 20_000  # files that are remembered


class Settled:
    """Remembers them, by path and date: a file that took the place of another is another one."""

    def __init__(self, now: Callable[[], float], most: int = _MOST) -> None:
        """`now` asks storage for its time, and blocks."""
        self._now = now
        self._most = most
        self._dates: OrderedDict[str, int] = OrderedDict()
        self._time = 0.0  # of storage, when it was measured
        self._measured = -_MEASURE  # when that was, by our monotonic clock

    def note(self, path: str, stamp: int) -> None:
        """The file of this date (nanoseconds) is durable."""
        self._dates[path] = stamp
        while len(self._dates) > self._most:
            self._dates.popitem(last=False)

    def knows(self, path: str, stamp: int) -> bool:
        """Whether that is known; does not block."""
        passed = time.monotonic() - self._measured
        is_old = passed < _MEASURE and stamp / 1e9 + _YOUNG < self._time + passed
        return is_old or self._dates.get(path) == stamp

    def finds(self, path: str, stamp: int) -> bool:
        """As `knows`; may look at the clock first, and block."""
        if time.monotonic() - self._measured >= _MEASURE:
            # In this order: storage's time must not be taken for later than it is.
            self._time = self._now()
            self._measured = time.monotonic()
        return self.knows(path, stamp)
