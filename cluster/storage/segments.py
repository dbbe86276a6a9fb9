"""The Uploads port on a file system: writers, and the threads that do to sessions what sessions.py can do.

Owns what is done in a thread and for how long it is waited for, and how bytes get from a PATCH into its file. The
files, and the rules that keep them right between nodes, are those of sessions.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from cluster.oci.digest import Digest
from cluster.storage import layout
from cluster.storage.disk import Disk
from cluster.storage.driver import LockTimeout, NotFound, Observer, SegmentWriter, Take
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.sessions import PATIENCE, Sessions
from cluster.storage.threads import Tenure, Threads

_WRITEBACK = 8 * 1024 * 1024  # bytes after which the disk is told to begin: the sync at the end finds few left
# Bytes written at once, at multiples of themselves. The page cache keeps them in a piece of that size; larger ones
# are less work, but often of memory that nobody has touched for long, which a virtual machine must be given first.
_UNIT = 64 * 1024
_TURN = 0.05  # seconds after which an upload that fills a thread lets others have it, however slow storage is

P = ParamSpec("P")
T = TypeVar("T")


class _Writer:
    """One PATCH into a file of its own, which nobody sees before it is sealed."""

    def __init__(
        self, uploads: SegmentUploads, session: str, private: tuple[str, int], offset: int, observe: Observer
    ) -> None:
        self.size = 0
        self._path, self._fd = private
        self._threads = uploads.threads
        self._disk = uploads.disk
        self._sessions = uploads.sessions
        self._session = session
        self._offset = offset
        self._observe = observe
        self._started = 0  # the disk has been told to begin with the bytes before this
        self._open = True
        self._sealing = False
        # Locks go with the descriptor; a write that hangs keeps both.
        self._tenure = Tenure(self._close)

    async def write(self, pieces: list[bytes]) -> None:
        data = b"".join(pieces)
        with self._tenure:
            writing = self._threads.begin(self._write, data)
        self._observe(data)  # meanwhile: on another core, or while this one waits for the disk
        await writing
        self.size += len(data)

    async def fill(self, take: Take) -> bool:
        with self._tenure:
            filling = self._threads.begin(self._fill, take)
        return await filling

    def _fill(self, take: Take) -> bool:
        stop = time.monotonic() + _TURN
        while data := take(_UNIT - self.size % _UNIT):
            self._observe(data)
            self._write(data)
            self.size += len(data)
            if time.monotonic() >= stop:
                return True
        return False

    def _write(self, data: bytes | memoryview) -> None:
        self._disk.write_at(self._fd, data, self.size)
        size = self.size + len(data)
        if size - self._started >= _WRITEBACK:
            self._disk.start_writeback(self._fd, self._started, size - self._started)
            self._started = size

    def _close(self) -> None:
        if self._open:
            self._threads.leave(partial(self._disk.close, self._fd))

    async def seal(self) -> None:
        await self._end(gives_way=False)

    async def leave(self) -> bool:
        return await self._end(gives_way=True)

    async def _end(self, *, gives_way: bool) -> bool:
        self._sealing = True
        with self._tenure:
            sealing = self._threads.begin(self._seal, gives_way)
        # It takes place although its caller gives up while no thread is free: only it lets go of the lock.
        return await asyncio.shield(sealing)

    def _seal(self, gives_way: bool) -> bool:
        """Whether it was published, and not left to whoever writes at the same offset."""
        disk = self._disk
        left = False
        try:
            left = gives_way and self._sessions.has_rival(self._session, self._path, self._offset)
            try:
                if self.size:
                    disk.sync(self._fd)
                    disk.seal(self._fd)
            finally:
                # Closed before it is published: from then on no descriptor for writing is left anywhere (U2).
                self._open = False
                disk.close(self._fd)
            if self.size and not left:
                self._sessions.publish(self._session, self._path, self._offset)
        finally:
            if not left:
                self._sessions.drop(self._path)
        return not left

    async def discard(self) -> None:
        if not self._sealing:
            self._sealing = True
            self._tenure.end()
            await self._threads.run(self._sessions.drop, self._path)


class SegmentUploads:
    """The Uploads port beside a FilesystemDriver, on the same root."""

    def __init__(
        self,
        root: str,
        driver: FilesystemDriver,
        threads: Threads,
        disk: Disk | None = None,
        *,
        sessions: Sessions | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """`patience`: seconds to wait for somebody who copies what the session holds, or adds to it."""
        self._patience = patience
        self._root = root.rstrip("/")
        self._driver = driver
        self.threads = threads
        self.disk = disk or Disk()
        self.sessions = sessions or Sessions(driver, self.disk, patience)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    async def create(self, path: str, started_at: str) -> None:
        await self.threads.run(self.sessions.create, self._full(path), started_at.encode())

    async def started_at(self, path: str) -> str:
        content = await self._driver.read(layout.upload_started_at(path))
        return content[:64].decode("ascii", "replace")

    async def extent(self, path: str) -> int:
        session = self._full(path)
        chain = await self.threads.run(self.sessions.chain, session)
        if not chain.private or not await self.threads.run(self.sessions.has_leftover, chain):
            return chain.end
        # Copying what a dead writer left may take as long as its bytes take.
        return await self._copy_alone(session, self.sessions.extent, session)

    async def _copy_alone(self, session: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a copy within the session while nobody else does: whoever waited finds it made."""
        try:
            async with self._driver.hold(self.sessions.open_copying, session, self._patience):
                return await self.threads.run_long(call, *args, **kwargs)
        except LockTimeout:  # its holder may be stopped; nothing but work is saved by the lock: go on without
            return await self.threads.run_long(call, *args, **kwargs)

    async def append(self, path: str, offset: int, observe: Observer) -> SegmentWriter:
        session, sessions = self._full(path), self.sessions
        private = await self.threads.open(sessions.private, sessions.forget, session, f"{offset:020d}")
        return _Writer(self, session, private, offset, observe)

    async def replay(self, path: str, start: int, stop: int, observe: Observer) -> None:
        await self.threads.run_long(self.sessions.replay, self._full(path), start, stop, observe)

    async def load_state(self, path: str, algorithm: str, offset: int) -> tuple[int, bytes] | None:
        return await self.threads.run(self.sessions.load_state, self._full(path), algorithm, offset)

    async def save_state(self, path: str, algorithm: str, offset: int, state: bytes) -> None:
        await self.threads.run(self.sessions.save_state, self._full(path), algorithm, offset, state)

    async def commit(self, path: str, size: int, target: str, digest: Digest | None = None) -> None:
        session, blob = self._full(path), self._full(target)
        if not await self.threads.run_long(self.sessions.link_one, session, size, blob):
            await self._copy_alone(session, self.sessions.commit, session, size, blob, digest)

    async def remove(self, path: str) -> None:
        await self.threads.run(self.sessions.remove, self._full(path))

    async def purge(self, path: str, before: float, *, dry_run: bool = False) -> bool:
        try:
            return await self.threads.run_long(self.sessions.purge, self._full(path), before, dry_run)
        except NotFound:
            return False
