"""The two ports of storage, and their treaty. Adapters: filesystem.py with segments.py, memory.py.

Both are small and fit an object store: nothing is appended in place, an upload's parts are named by their offset,
and what exactly one caller may win is one operation. Paths are relative, with `/`, as layout.py builds them.

What holds for every method:
- What it changed is durable when it returns: a loss of power leaves the old or the new state, never a mixture.
- It may be called again, by anyone, after a failure at any point.
- It raises the errors below and no others; StorageTimeout after the driver's limit, when storage hangs.
- Digests are verified by registry/states.py and registry/manifests.py, before anything is linked; here only where
  bytes may have changed since then (`Uploads.commit`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from cluster.errors import StorageError
from cluster.oci.digest import Digest


class NotFound(StorageError):
    """There is nothing at the path."""


class StorageFull(StorageError):
    """There is no room (or no quota) left."""


class StorageTimeout(StorageError):
    """Storage did not answer within the limit; whether the operation took place is not known."""


class StorageReplaced(StorageError):
    """It answers, and it is not the storage that the node started on."""


class LockTimeout(StorageError):
    """Somebody else held the lock for the whole time that the caller was ready to wait."""


class OffsetTaken(StorageError):
    """Another writer's segment is already published at this offset (rule U2)."""


class Changed(StorageError):
    """Bytes of an upload changed while it was committed: somebody else still writes them."""


Observer = Callable[[bytes | memoryview], object]
"""Called with exactly the bytes that go to (or come from) storage, in order. May run in another thread."""
Take = Callable[[int], bytes | memoryview]
"""The next bytes, at most so many, if there are any now. Never waits. They stay as they are until the next call."""


class Reader(Protocol):
    """An open file, whole and unchanging. To be closed by whoever opened it."""

    size: int  # bytes

    def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes from start to stop (excluded), in pieces of at most 256 KiB."""

    def close(self) -> None:
        """Let go of it; may be called twice."""


class Driver(Protocol):
    """Small files, directories of names, locks."""

    async def read(self, path: str) -> bytes:
        """A whole small file. NotFound."""

    async def write(self, path: str, content: bytes) -> None:
        """Create or replace a whole small file in one step, and the directories above it.

        A file with the same content is left as it is, but made durable: who wrote it may have died before that.
        """

    async def settle(self, path: str) -> None:
        """Make a file durable that is there: who wrote it may have died before that. NotFound.

        Costs next to nothing where that is known, and what is older than a minute is taken to be durable.
        """

    async def size(self, path: str) -> int:
        """Bytes of a file. NotFound."""

    async def open(self, path: str) -> Reader:
        """A file for reading in pieces. NotFound."""

    async def names(self, path: str, after: str = "", limit: int | None = None) -> list[str]:
        """Names in a directory in byte order, those behind `after`, at most `limit`. NotFound.

        The list is not to be changed. All names of a directory that is known to be unchanged may be the very list
        that the last call returned.
        """

    async def stamp(self, path: str) -> int:
        """A number that changes when names come to a directory or leave it. NotFound."""

    async def remove(self, path: str) -> None:
        """Remove a file, or a directory with all that is in it. NotFound."""

    def lock(self, path: str, timeout: float) -> AbstractAsyncContextManager[None]:
        """Exclude all other holders of this lock, on every node, for the block.

        Asked for until `timeout` seconds have passed, then LockTimeout. Dropped when the holder's process dies;
        never broken by time (rule T2). Where storage can lose it all the same (NFS, for a node that was cut off
        longer than the lease), `write` and `remove` within the block look at the last moment: StorageError, and
        nothing has changed. Where giving it back takes somebody's answer (NFS, FUSE), nobody waits for
        that: it is free a moment after the block.
        """

    async def sweep(self, before: float) -> int:
        """Remove temporary files of a crash, older than this time (seconds since the epoch); how many."""

    async def now(self) -> float:
        """The time by the clock that gives files their ages (seconds since the epoch): not that of this host."""

    async def probe(self) -> None:
        """Whether storage answers, and takes writes where it should; any StorageError says that it does not."""


class SegmentWriter(Protocol):
    """One PATCH on its way: private until sealed (rule U1)."""

    size: int  # bytes written so far

    async def write(self, pieces: list[bytes]) -> None:
        """Append, and show the observer the same bytes, in order. When it fails, what was shown does not count."""

    async def fill(self, take: Take) -> bool:
        """Append what `take` gives until it gives nothing, or for long enough: True, ask again.

        The observer and failures as with `write`; all of it takes place in one thread.
        """

    async def seal(self) -> None:
        """Make it durable and publish it at its offset (rule U2). An empty one is only discarded.

        OffsetTaken when another writer was first; NotFound when the session is gone; LockTimeout when another one
        is at it, and perhaps stopped. Then nothing has changed.
        """

    async def leave(self) -> bool:
        """As `seal`, for what came of a body that broke off: it gives way to another writer of this offset.

        False: there is one that lives, and nothing is published; what came may be taken over where it does not.
        """

    async def discard(self) -> None:
        """Give it up. After `seal`, or twice: does nothing."""


class Uploads(Protocol):
    """Upload sessions. `path` is the session's directory (layout.upload)."""

    async def create(self, path: str, started_at: str) -> None:
        """Begin a session."""

    async def started_at(self, path: str) -> str:
        """When it began, RFC 3339. NotFound when there is no such session."""

    async def extent(self, path: str) -> int:
        """Bytes from 0 that are there without a gap (rule U3).

        Takes over what a writer that died has left at the end (rule U4). NotFound.
        """

    async def append(self, path: str, offset: int, observe: Observer) -> SegmentWriter:
        """Begin a segment that starts at `offset`. NotFound."""

    async def replay(self, path: str, start: int, stop: int, observe: Observer) -> None:
        """Show the bytes from start to stop to the observer. NotFound."""

    async def load_state(self, path: str, algorithm: str, offset: int) -> tuple[int, bytes] | None:
        """The newest digest state put aside, of this offset or one before it, with its offset; or None.

        One of ours: what another registry may have written there is not told.
        """

    async def save_state(self, path: str, algorithm: str, offset: int, state: bytes) -> None:
        """Put a digest state aside. A hint: it need not be durable, and is dropped when the session is gone."""

    async def commit(self, path: str, size: int, target: str, digest: Digest | None = None) -> None:
        """Make the `size` bytes that the session holds the file `target`, complete from its first moment (U6, B1).

        `digest` is what the bytes were found to be. Where they may change meanwhile (a file of Distribution,
        U11) it is checked again on the copy that becomes the target: Changed when they did.

        A target that is there with this size is left as it is; one with another size is replaced. NotFound when
        the session is gone, or holds more or less than that by now.
        """

    async def remove(self, path: str) -> None:
        """End a session in one step (rule U9). NotFound when somebody else did."""

    async def purge(self, path: str, before: float, *, dry_run: bool = False) -> bool:
        """End a session that has been idle since before this time (seconds since the epoch) and has no writer.

        Also takes what an interrupted `remove` left. True when it was (in a dry run: would be) removed.
        """
