"""Which sorted listings of directories are kept, and when one is believed to be whole.

Owns no directory: who reads one says which stamp it had before. All calls are made on the event loop.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_REST = 2.0  # seconds; no file system's clock is coarser
_NAMES = 200_000  # names kept, of all directories; 64 digits of a digest take 120 bytes
_DIRECTORIES = 4096


@dataclass(slots=True)
class _Listing:
    stamp: int
    seen: float  # when this stamp was seen for the first time, by the clock of this process
    names: list[str] | None = None  # None: not to be believed yet


class Listings:
    """The listings of one file system, those that were asked for last."""

    def __init__(
        self, *, most: int = _NAMES, directories: int = _DIRECTORIES, now: Callable[[], float] = time.monotonic
    ) -> None:
        """`most`: names kept; of one directory that has more, all are kept while nothing else is asked for."""
        self._most = most
        self._directories = directories
        self._now = now
        self._kept: OrderedDict[str, _Listing] = OrderedDict()
        self._size = 0  # names kept

    def find(self, path: str) -> tuple[int, list[str]] | None:
        """The names of a directory, and the stamp that it must still have for them to be all."""
        listing = self._kept.get(path)
        if listing is None or listing.names is None:
            return None
        self._kept.move_to_end(path)
        return listing.stamp, listing.names

    def begin(self) -> float:
        """To be asked before a directory is read, for `note`."""
        return self._now()

    def note(self, path: str, stamp: int, names: list[str], began: float) -> None:
        """A directory was read that had this stamp before.

        Two changes within one tick of storage's clock leave one stamp. So names are kept only when they were read
        so long after the stamp was seen first that every later change must have another one. How old the stamp is
        cannot be told from the stamp: it is of storage's clock, and this node's may be ahead of that.
        """
        listing = self._kept.get(path)
        if listing is None or listing.stamp != stamp:
            self._drop(path)
            self._kept[path] = _Listing(stamp, self._now())
        elif listing.names is None and began - listing.seen >= _REST:
            listing.names = names
            self._size += len(names)
        self._kept.move_to_end(path)
        while len(self._kept) > 1 and (self._size > self._most or len(self._kept) > self._directories):
            self._drop(next(iter(self._kept)))

    def _drop(self, path: str) -> None:
        listing = self._kept.pop(path, None)
        if listing is not None:
            self._size -= len(listing.names or ())
