"""Both storage ports in this process's memory: the twin of tests, and the `inmemory` driver.

Everything is lost at exit, so nothing needs syncing; one process only (serve.py forces one worker).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from cluster.oci.digest import Digest
from cluster.storage import layout
from cluster.storage.driver import LockTimeout, NotFound, Observer, OffsetTaken, Take

_CHUNK = 256 * 1024


class MemoryReader:
    """A file's bytes as they were when it was opened."""

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self._content = content

    async def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        for offset in range(start, stop, _CHUNK):
            yield self._content[offset : min(offset + _CHUNK, stop)]

    def close(self) -> None:
        pass


class MemoryDriver:
    """A Driver whose files are a dictionary."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._stamps: dict[str, int] = {}
        self._changes = 0

    def _changed(self, path: str) -> None:
        """Note the change in every directory above the path: some of these may have come or gone with it."""
        self._changes += 1
        while "/" in path:
            path = path.rpartition("/")[0]
            self._stamps[path] = self._changes

    def _children(self, path: str) -> set[str]:
        prefix = f"{path}/"
        known = [*self.files, *self._stamps]
        return {file[len(prefix) :].partition("/")[0] for file in known if file.startswith(prefix)}

    async def read(self, path: str) -> bytes:
        try:
            return self.files[path]
        except KeyError:
            raise NotFound(path) from None

    async def write(self, path: str, content: bytes) -> None:
        if path not in self.files:
            self._changed(path)
        self.files[path] = bytes(content)

    async def settle(self, path: str) -> None:
        await self.read(path)

    async def size(self, path: str) -> int:
        return len(await self.read(path))

    async def open(self, path: str) -> MemoryReader:
        return MemoryReader(await self.read(path))

    async def names(self, path: str, after: str = "", limit: int | None = None) -> list[str]:
        await self.stamp(path)
        return sorted(name for name in self._children(path) if name > after)[:limit]

    async def stamp(self, path: str) -> int:
        # As on a file system, a directory stays when the last file in it is gone.
        try:
            return self._stamps[path]
        except KeyError:
            raise NotFound(path) from None

    async def remove(self, path: str) -> None:
        found = [file for file in self.files if file == path or file.startswith(f"{path}/")]
        if not found and path not in self._stamps:
            raise NotFound(path)
        for file in found:
            del self.files[file]
        for directory in [known for known in self._stamps if known == path or known.startswith(f"{path}/")]:
            del self._stamps[directory]
        self._changed(path)

    @asynccontextmanager
    async def lock(self, path: str, timeout: float) -> AsyncIterator[None]:
        lock = self._locks.setdefault(path, asyncio.Lock())
        try:
            async with asyncio.timeout(timeout):
                await lock.acquire()
        except TimeoutError:
            raise LockTimeout(f"{path} was locked by another writer for {timeout:g} s") from None
        try:
            yield
        finally:
            lock.release()

    async def sweep(self, before: float) -> int:
        del before  # nothing is ever on its way
        return 0

    async def now(self) -> float:
        return time.time()

    async def probe(self) -> None:
        pass


@dataclass(slots=True)
class _Session:
    started_at: str
    segments: dict[int, bytes] = field(default_factory=dict)
    states: dict[tuple[str, int], bytes] = field(default_factory=dict)
    used: float = field(default_factory=time.time)
    writing: list[int] = field(default_factory=list)  # offsets of the writers at work

    def content(self) -> bytes:
        parts, end = [], 0
        while end in self.segments:
            parts.append(self.segments[end])
            end += len(parts[-1])
        return b"".join(parts)


_UNIT = 64 * 1024  # bytes taken of a body at a time


class _Writer:
    def __init__(self, uploads: MemoryUploads, path: str, offset: int, observe: Observer) -> None:
        self.size = 0
        self._uploads = uploads
        self._path = path
        self._offset = offset
        self._observe = observe
        self._pieces: list[bytes] = []
        self._session = uploads.session(path)
        self._session.writing.append(offset)
        self._at_work = True

    async def write(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._pieces.append(bytes(piece))
            self._observe(piece)
            self.size += len(piece)

    async def fill(self, take: Take) -> bool:
        while data := take(_UNIT):
            await self.write([bytes(data)])
        return False

    async def seal(self) -> None:
        session = self._uploads.session(self._path)
        if self.size:
            if self._offset in session.segments:
                raise OffsetTaken(f"another writer has published a segment at {self._offset}")
            session.segments[self._offset] = b"".join(self._pieces)
            session.used = time.time()

    async def leave(self) -> bool:
        if self._session.writing.count(self._offset) > 1:
            return False
        await self.seal()
        return True

    async def discard(self) -> None:
        self._pieces = []
        if self._at_work:
            self._at_work = False
            self._session.writing.remove(self._offset)


class MemoryUploads:
    """The Uploads port beside a MemoryDriver."""

    def __init__(self, driver: MemoryDriver) -> None:
        self._driver = driver
        self._sessions: dict[str, _Session] = {}

    def session(self, path: str) -> _Session:
        """The session at this path. NotFound."""
        try:
            return self._sessions[path]
        except KeyError:
            raise NotFound(path) from None

    async def create(self, path: str, started_at: str) -> None:
        self._sessions[path] = _Session(started_at)
        await self._driver.write(layout.upload_started_at(path), started_at.encode())

    async def started_at(self, path: str) -> str:
        return self.session(path).started_at

    async def extent(self, path: str) -> int:
        return len(self.session(path).content())

    async def append(self, path: str, offset: int, observe: Observer) -> _Writer:
        return _Writer(self, path, offset, observe)

    async def replay(self, path: str, start: int, stop: int, observe: Observer) -> None:
        if start < stop:
            observe(self.session(path).content()[start:stop])

    async def load_state(self, path: str, algorithm: str, offset: int) -> tuple[int, bytes] | None:
        states = self.session(path).states
        known = [at for name, at in states if name == algorithm and at <= offset]
        return (max(known), states[algorithm, max(known)]) if known else None

    async def save_state(self, path: str, algorithm: str, offset: int, state: bytes) -> None:
        if path in self._sessions:
            self._sessions[path].states[algorithm, offset] = state

    async def commit(self, path: str, size: int, target: str, digest: Digest | None = None) -> None:
        del digest  # no byte can change here
        content = self.session(path).content()
        if len(content) != size:
            raise NotFound(f"the upload no longer holds exactly {size} bytes")
        if len(self._driver.files.get(target, b"")) != size or target not in self._driver.files:
            await self._driver.write(target, content)

    async def remove(self, path: str) -> None:
        self.session(path)
        del self._sessions[path]
        await self._driver.remove(path)

    async def purge(self, path: str, before: float, *, dry_run: bool = False) -> bool:
        if path not in self._sessions or self._sessions[path].used >= before:
            return False
        if not dry_run:
            await self.remove(path)
        return True
