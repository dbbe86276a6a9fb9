"""What this registry does not do now: writes while read-only, deletes that are not enabled, too much at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.errors import TooManyRequests, Unsupported

_ROOM = 64 * 1024 * 1024  # bytes


class Room:
    """The memory of this worker for what has to be held as a whole while a client sends or reads it."""

    def __init__(self, what: str, size: int = _ROOM) -> None:
        self._what = what
        self._size = size
        self._taken = 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """A share of it for one request, empty as yet, and given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            share.give_back()

    def take(self, size: int) -> None:
        """TooManyRequests when there is not so much left."""
        if self._taken + size > self._size:
            raise TooManyRequests(
                f"this worker holds {self._size >> 20} MiB of {self._what} at once", headers={"Retry-After": "1"}
            )
        self._taken += size

    def give_back(self, size: int) -> None:
        self._taken -= size


class Share:
    """What one request has of a room."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._size = 0

    def take(self, size: int) -> None:
        """Have so much, if it is not had already. TooManyRequests."""
        if size > self._size:
            self._room.take(size - self._size)
            self._size = size

    def give_back(self) -> None:
        """Have nothing any more; twice does no harm."""
        self._room.give_back(self._size)
        self._size = 0


class Guard:
    """The switches of the configuration, asked by the resources before they do anything."""

    def __init__(
        self, *, read_only: bool, delete: bool, uploads: int, tell: Callable[[int], None] = lambda _: None
    ) -> None:
        self._read_only = read_only
        self._delete = delete
        self._uploads = uploads
        self._tell = tell  # hears of every change of the next
        self._uploading = 0  # requests with an upload's body under way in this worker

    def write(self) -> None:
        """Unsupported while `storage.maintenance.readonly` is on."""
        if self._read_only:
            detail = "the registry is read-only (storage.maintenance.readonly)"
            raise Unsupported(detail, headers={"Allow": "GET, HEAD"})

    def delete(self, others: str = "GET, HEAD") -> None:
        """Unsupported unless `storage.delete.enabled`; `others` are the methods that are left then."""
        self.write()
        if not self._delete:
            raise Unsupported("deletes are off (storage.delete.enabled)", headers={"Allow": others})

    @contextmanager
    def upload(self) -> Iterator[None]:
        """A place among the bodies being taken; TooManyRequests when there is none (`cluster.maxuploads`)."""
        if self._uploading >= self._uploads:
            raise TooManyRequests(
                f"this worker takes {self._uploads} uploads at once", headers={"Retry-After": "1"}
            )
        self._count(+1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self._uploading += change
        self._tell(self._uploading)
