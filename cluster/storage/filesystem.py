"""The storage port on a file system: POSIX names, rename and flock; local, or shared between the nodes.

Owns the durable write. Upload sessions are in segments.py, locks in locks.py, paths in layout.py.
"""

from __future__ import annotations

import bisect
import errno
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from cluster.storage import cached, layout
from cluster.storage.disk import Disk, look_again
from cluster.storage.driver import NotFound
from cluster.storage.listings import Listings
from cluster.storage.locks import Locks
from cluster.storage.settled import Settled
from cluster.storage.threads import FULL, Tenure, Threads

CHUNK = 256 * 1024  # bytes of a blob held at a time for one reader
_SETTLED = 20_000  # directories that are known to be durable: of some two thousand repositories


class Directories:
    """Makes directories durably, and remembers which need not be made durable again."""

    def __init__(self, root: str, disk: Disk, most: int = _SETTLED) -> None:
        """`most`: directories that are remembered."""
        self._root = root
        self._disk = disk
        self._most = most
        self._settled: set[str] = {root}

    def ensure(self, directory: str) -> None:
        """The directory is there, and its entry and those above it are durable, whoever made them."""
        try:
            self._ensure(directory)
        except FileNotFoundError:  # somebody removed one of those above it by hand
            self.forget()
            self._ensure(directory)

    def _ensure(self, directory: str) -> None:
        if directory in self._settled:
            return
        if len(self._settled) >= self._most:
            self.forget()
        parent = os.path.dirname(directory)
        self._ensure(parent)
        try:
            self._disk.mkdir(directory)
        except FileExistsError:
            pass
        self._disk.sync_path(parent)
        if layout.is_permanent(directory[len(self._root) + 1 :]):
            self._settled.add(directory)

    def forget(self) -> None:
        """Somebody removed a directory by hand, or there are too many to be remembered: look again."""
        self._settled = {self._root}


class FileReader:
    """A file opened for reading."""

    def __init__(
        self,
        fd: int,
        size: int,
        disk: Disk,
        threads: Threads,
        close: Callable[[], object],
        *,
        chunk: int,
        try_cached: bool,
    ) -> None:
        self.size = size
        self._chunk = chunk
        self._fd = fd
        self._disk = disk
        self._threads = threads
        self._try_cached = try_cached
        self._tenure = Tenure(close)

    async def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        while start < stop:
            chunk = await self._read(min(self._chunk, stop - start), start)
            if not chunk:
                raise NotFound(f"the file ended at {start}, before {stop}")
            start += len(chunk)
            yield chunk

    async def _read(self, size: int, offset: int) -> bytes:
        if self._try_cached:
            try:
                return cached.pread_cached(self._fd, size, offset)
            except OSError:  # not in the cache, or a real error: a thread finds out
                pass
        with self._tenure:
            return await self._threads.run_long(self._disk.read_at, self._fd, size, offset)

    def close(self) -> None:
        self._tenure.end()


class FilesystemDriver:
    """A Driver on the directory `root`, which must exist."""

    def __init__(
        self,
        root: str,
        threads: Threads,
        disk: Disk | None = None,
        *,
        writable: bool = True,
        chunk: int = CHUNK,
        listings: Listings | None = None,
        recognise: Callable[[], object] = lambda: None,
    ) -> None:
        """`chunk`: bytes of a blob that a reader hands out at a time.

        `recognise` is called by the probe, in a thread: OSError, or StorageReplaced when another storage is there.
        """
        self._root = root.rstrip("/")
        self._threads = threads
        self._chunk = chunk
        self._disk = disk or Disk()
        self._writable = writable
        self._recognise = recognise
        self._try_cached = disk is None and cached.is_supported(root)
        self.directories = Directories(self._root, self._disk)
        self._settled = Settled(self._now)
        self._listings = listings or Listings()
        self._locks = Locks(threads, self._disk, self._closing)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _relative(self, full: str) -> str:
        return full[len(self._root) + 1 :]

    async def read(self, path: str) -> bytes:
        full = self._full(path)
        if self._try_cached:
            try:
                return cached.read_cached(full)
            except FileNotFoundError:  # the kernel knows that it is not there: as good as a thread's word
                raise NotFound(path) from None
            except OSError:
                pass
        return await self._threads.run(self._disk.read, full)

    async def size(self, path: str) -> int:
        full = self._full(path)
        if self._try_cached:
            try:
                return cached.size_cached(full)
            except OSError:
                pass
        return (await self._threads.run(self._disk.status, full)).size

    async def open(self, path: str) -> FileReader:
        full = self._full(path)
        if self._try_cached:
            try:
                return self._reader(*self._sized(cached.open_cached(full)))
            except OSError:
                pass
        return self._reader(*await self._threads.open(self._open, self._close_opened, full))

    @look_again
    def _open(self, path: str) -> tuple[int, int]:
        return self._sized(self._disk.open(path))

    def _sized(self, fd: int) -> tuple[int, int]:
        """An open file, and how many bytes it has."""
        try:
            return fd, self._disk.size(fd)
        except OSError:
            self._disk.close(fd)
            raise

    def _close_opened(self, opened: tuple[int, int]) -> None:
        self._disk.close(opened[0])

    def _reader(self, fd: int, size: int) -> FileReader:
        return FileReader(
            fd, size, self._disk, self._threads, self._closing(fd), chunk=self._chunk, try_cached=self._try_cached
        )

    def _closing(self, fd: int) -> Callable[[], object]:
        """What closes a descriptor. A file system that is not local may have to tell somebody, and to wait."""
        close = partial(self._disk.close, fd)
        return close if self._try_cached else partial(self._threads.leave, close)

    async def write(self, path: str, content: bytes) -> None:
        await self._threads.run(self._write, self._full(path), content, self._confirming())

    def _confirming(self) -> Callable[[], object]:
        """What a change asks at its last moment: whether the lock that it is made under, if any, is still held."""
        # Only a server can drop the lock of a process that lives.
        return (None if self._try_cached else Tenure.confirming()) or _nothing

    def _write(self, path: str, content: bytes, confirm: Callable[[], object]) -> None:
        """The durable write: complete and synced under another name, then renamed, then the rename is synced."""
        if self._holds(path, content) and self._settle(path):
            return
        temporary = self.temporary()
        try:
            fd = self._disk.create(temporary)
            try:
                self._disk.write(fd, content)
                if layout.is_final(self._relative(path)):
                    self._disk.seal(fd)
                self._disk.sync(fd)
            finally:
                self._disk.close(fd)
            stamp = self._disk.status(temporary).stamp
            confirm()
            self.place(temporary, path)
            self._settled.note(path, stamp)
        except OSError:
            self._drop(temporary)
            raise

    def place(self, temporary: str, path: str) -> None:
        """Give a synced file its name, in place of what is there, durably."""
        directory = os.path.dirname(path)
        self.directories.ensure(directory)
        try:
            self._disk.rename(temporary, path)
        except FileNotFoundError:  # somebody removed the directory since it was settled
            self.directories.forget()
            self.directories.ensure(directory)
            self._disk.rename(temporary, path)
        self._disk.sync_path(directory)

    def temporary(self) -> str:
        """A path for a file on its way to its place. The purger removes what a crash leaves there."""
        directory = self._full(layout.TEMPORARY)
        self.directories.ensure(directory)
        return f"{directory}/{secrets.token_hex(16)}"

    def _holds(self, path: str, content: bytes) -> bool:
        try:
            return self._disk.read(path) == content
        except OSError:
            return False

    def _settle(self, path: str) -> bool:
        """Make a file that is there durable, whoever wrote it; False when it went meanwhile."""
        try:
            stamp = self._disk.status(path).stamp
            self._disk.sync_path(path)
        except FileNotFoundError:
            return False
        self.directories.ensure(os.path.dirname(path))
        self._disk.sync_path(os.path.dirname(path))
        self._settled.note(path, stamp)
        return True

    async def settle(self, path: str) -> None:
        full = self._full(path)
        stamp = await self.stamp(path)
        if not self._settled.knows(full, stamp) and not await self._threads.run(self._settle_new, full, stamp):
            raise NotFound(path)

    def _settle_new(self, path: str, stamp: int) -> bool:
        return self._settled.finds(path, stamp) or self._settle(path)

    def _drop(self, path: str) -> None:
        try:
            self._disk.unlink(path)
        except OSError:
            pass

    async def names(self, path: str, after: str = "", limit: int | None = None) -> list[str]:
        names = await self._names(self._full(path))
        if not after and limit is None:
            return names
        start = bisect.bisect_right(names, after) if after else 0
        return names[start:] if limit is None else names[start : start + limit]

    async def _names(self, path: str) -> list[str]:
        """All names in byte order. An unchanged directory is not read again: a page costs what it holds."""
        known = self._listings.find(path)
        if known is not None and self._is_unchanged(path, known[0]):
            return known[1]
        began = self._listings.begin()
        stamp, names = await self._threads.run(self._list, path, known)
        self._listings.note(path, stamp, names, began)
        return names

    def _is_unchanged(self, path: str, stamp: int) -> bool:
        """Whether that is so, and can be told without waiting."""
        if not self._try_cached:
            return False
        try:
            return cached.stamp_cached(path) == stamp
        except OSError:
            return False

    def _list(self, path: str, known: tuple[int, list[str]] | None) -> tuple[int, list[str]]:
        """The stamp of a directory, and the names that it had then or a moment later."""
        stamp = self._disk.status(path).stamp
        if known is not None and known[0] == stamp:
            return known
        return stamp, sorted(self._disk.names(path))

    async def stamp(self, path: str) -> int:
        full = self._full(path)
        if self._try_cached:
            try:
                return cached.stamp_cached(full)
            except OSError:
                pass
        return (await self._threads.run(self._disk.status, full)).stamp

    async def remove(self, path: str) -> None:
        await self._threads.run(self._remove, self._full(path), self._confirming())

    def _remove(self, path: str, confirm: Callable[[], object]) -> None:
        confirm()
        try:
            self._disk.unlink(path)
        except IsADirectoryError:
            remove_tree(self._disk, path)
        self._disk.sync_path(os.path.dirname(path))

    @asynccontextmanager
    async def lock(self, path: str, timeout: float) -> AsyncIterator[None]:
        async with self.hold(self._open_lock, self._full(path), timeout):
            yield

    @asynccontextmanager
    async def hold(self, open_lock: Callable[[str], int], path: str, timeout: float) -> AsyncIterator[None]:
        """As `lock`, on a file that is opened in a way of the caller's."""
        async with self._locks.hold(open_lock, path, timeout):
            yield

    def _open_lock(self, path: str) -> int:
        try:
            return self._disk.open_lock(path)
        except FileNotFoundError:
            self.directories.forget()
            self.directories.ensure(os.path.dirname(path))
            return self._disk.open_lock(path)

    async def sweep(self, before: float) -> int:
        return await self._threads.run_long(self._sweep, self._full(layout.TEMPORARY), before)

    def _sweep(self, directory: str, before: float) -> int:
        try:
            names = self._disk.names(directory)
        except FileNotFoundError:
            return 0
        old = [name for name in names if self._is_older(f"{directory}/{name}", before)]
        for name in old:
            self._drop(f"{directory}/{name}")
        return len(old)

    def _is_older(self, path: str, before: float) -> bool:
        try:
            return self._disk.status(path).modified < before
        except FileNotFoundError:
            return False

    async def now(self) -> float:
        return await self._threads.run(self._now)

    def _now(self) -> float:
        try:
            return self._date_of_new_file()
        except OSError as error:
            if error.errno not in FULL:
                raise
        # There is no room for a file, and the purger, which makes room, has to know the time.
        directory = self._full(layout.TEMPORARY)
        self._disk.touch(directory)
        return self._disk.status(directory).modified

    def _date_of_new_file(self) -> float:
        temporary = self.temporary()
        self._disk.close(self._disk.create(temporary))
        try:
            return self._disk.status(temporary).modified
        finally:
            self._drop(temporary)

    async def probe(self) -> None:
        await self._threads.run(self._probe)

    def _probe(self) -> None:
        self._recognise()  # before the write: what is below a mount that went away may be full
        self.check()

    def check(self) -> None:
        """Write, sync and remove a file (only look, where nothing may be written). Raises OSError."""
        if not self._writable:
            self._disk.status(self._root)
            return
        temporary = self.temporary()
        try:
            fd = self._disk.create(temporary)
        except FileNotFoundError:
            self.directories.forget()
            temporary = self.temporary()
            fd = self._disk.create(temporary)
        try:
            self._disk.write(fd, b"probe")
            self._disk.sync(fd)
        finally:
            self._disk.close(fd)
            self._drop(temporary)

    def check_abilities(self) -> None:
        """Try what uploads and tags need and some file systems cannot do: links and locks. OSError."""
        first, second = self.temporary(), self.temporary()
        fd = self._disk.create(first)
        try:
            self._disk.try_lock(fd)
            self._disk.link(first, second)
        finally:
            self._disk.close(fd)
            self._drop(first)
            self._drop(second)


def _nothing() -> None:
    pass


def remove_tree(disk: Disk, path: str) -> None:
    """Remove a directory with all that is in it. What is gone already is no error."""
    try:
        for name in disk.names(path):
            child = f"{path}/{name}"
            try:
                disk.unlink(child)
            except IsADirectoryError:  # on Linux; POSIX's EPERM is what it says of a file that it will not remove
                remove_tree(disk, child)
            except FileNotFoundError:
                pass
        disk.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        remove_tree(disk, path)
