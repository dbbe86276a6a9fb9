"""Upload sessions on a file system: one private file for each PATCH, published under its offset by link(2).

The rules U1 to U11 that keep this right between nodes, and the trace that each prevents, are in ARCHITECTURE.md,
"Uploads". Below the session's directory (`_uploads/<uuid>/`):

    _seg/<offset>                  a published segment: sealed, read-only, begins at this byte (20 digits)
    _seg/<offset>.<16 hex>         private to the writer that holds its lock; free lock: its writer died (U4)
    _seg/copying                   locked by whoever takes over, or makes segments one blob: saves others that copy
    _seg/commit.<16 hex>           several segments on their way to being one blob
    data                           what Distribution took before it handed over, the segment at 0 (U11)
    hashstates/<alg>/<offset>      digest state of the first <offset> bytes (U5)
    _states/<alg>/<offset>         the same where there is `data`: then Distribution may have written `hashstates`,
                                   and it keeps a digest of other bytes there when it has no state to go on from

`<parent>/_gone.<uuid>.<16 hex>` is a session set aside (U9). registry/uploads.py compares digests; here
only bytes of `data` are looked at again (`_verify`): Distribution may still be writing them.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, ParamSpec, TypeVar

from cluster.oci.digest import Digest, new_hasher
from cluster.storage import layout
from cluster.storage.disk import Disk
from cluster.storage.driver import Changed, LockTimeout, NotFound, Observer, OffsetTaken, SegmentWriter, Take
from cluster.storage.filesystem import FilesystemDriver, remove_tree
from cluster.storage.threads import Tenure, Threads

_PUBLISHED = re.compile(r"[0-9]{20}")
_PRIVATE = re.compile(r"([0-9]{20})\.[0-9a-f]{16}")
_STATE_LIMIT = 4096  # bytes; a digest state has 108 or 204
_READ = 1024 * 1024  # bytes read at a time when a session is replayed, in a thread
_WRITEBACK = 8 * 1024 * 1024  # bytes after which the disk is told to begin: the sync at the end finds few left
_GONE = "_gone."
# Bytes written at once, at multiples of themselves. The page cache keeps them in a piece of that size; larger ones
# are less work, but often of memory that nobody has touched for long, which a virtual machine must be given first.
UNIT = 64 * 1024
TURN = 8 * 1024 * 1024  # bytes after which an upload that fills a thread lets others have it

P = ParamSpec("P")
T = TypeVar("T")


class Segment(NamedTuple):
    """A run of bytes of a session, in a file that never changes (`data` excepted)."""

    path: str
    start: int
    size: int
    sealed: bool


@dataclass(slots=True)
class _Chain:
    """A session as found: the unbroken run of segments from 0, and the private files that begin at its end."""

    segments: list[Segment]
    end: int
    private: list[str]  # the longest first


class _Writer:
    """The private file of one PATCH."""

    def __init__(self, uploads: SegmentUploads, session: str, fd: int, path: str, offset: int, observe: Observer):
        self.size = 0
        self._uploads = uploads
        self._session = session
        self._fd = fd
        self._path = path
        self._offset = offset
        self._observe = observe
        self._started = 0  # the disk has been told to begin with the bytes before this
        self._open = True
        self._sealing = False
        # The lock goes with the descriptor; a write that hangs keeps both.
        self._tenure = Tenure(lambda: uploads.disk.close(fd) if self._open else None)

    async def write(self, pieces: list[bytes]) -> None:
        data = b"".join(pieces)
        with self._tenure:
            writing = self._uploads.threads.begin(self._write, data)
        self._observe(data)  # meanwhile: on another core, or while this one waits for the disk
        await writing
        self.size += len(data)

    async def fill(self, take: Take) -> bool:
        with self._tenure:
            filling = self._uploads.threads.begin(self._fill, take)
        return await filling

    def _fill(self, take: Take) -> bool:
        stop = self.size + TURN
        while self.size < stop and (data := take(UNIT - self.size % UNIT)):
            self._observe(data)
            self._write(data)
            self.size += len(data)
        return self.size >= stop

    def _write(self, data: bytes | memoryview) -> None:
        disk, size = self._uploads.disk, self.size + len(data)
        disk.write(self._fd, data)
        if size - self._started >= _WRITEBACK:
            disk.start_writeback(self._fd, self._started, size - self._started)
            self._started = size

    async def seal(self) -> None:
        self._sealing = True
        with self._tenure:
            sealing = self._uploads.threads.begin(self._seal)
        # It takes place although its caller gives up while no thread is free: only it lets go of the lock.
        await asyncio.shield(sealing)

    def _seal(self) -> None:
        disk = self._uploads.disk
        try:
            try:
                if self.size:
                    disk.sync(self._fd)
                    disk.seal(self._fd)
            finally:
                # Closed before it is published: from then on no descriptor for writing is left anywhere (U2).
                self._open = False
                disk.close(self._fd)
            if self.size:
                self._uploads.publish(self._session, self._path, self._offset)
        finally:
            self._uploads.drop(self._path)

    async def discard(self) -> None:
        if not self._sealing:
            self._sealing = True
            self._tenure.end()
            await self._uploads.threads.run(self._uploads.drop, self._path)


class SegmentUploads:
    """The Uploads port beside a FilesystemDriver, on the same root."""

    def __init__(
        self,
        root: str,
        driver: FilesystemDriver,
        threads: Threads,
        disk: Disk | None = None,
        *,
        patience: float = 30.0,
    ) -> None:
        """`patience`: seconds to wait for somebody who copies what the session holds."""
        self._patience = patience
        self._root = root.rstrip("/")
        self._driver = driver
        self.threads = threads
        self.disk = disk or Disk()

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    async def create(self, path: str, started_at: str) -> None:
        await self.threads.run(self._create, self._full(path), started_at.encode())

    def _create(self, session: str, started_at: bytes) -> None:
        # Not synced: a session holds nothing that was promised before its first segment is published.
        parent = os.path.dirname(session)
        self._driver.directories.ensure(parent)
        try:
            self.disk.mkdir(session)
        except FileNotFoundError:
            self._driver.directories.forget()
            self._driver.directories.ensure(parent)
            self.disk.mkdir(session)
        self.disk.mkdir(f"{session}/_seg")
        fd = self.disk.create(layout.upload_started_at(session))
        try:
            self.disk.write(fd, started_at)
        finally:
            self.disk.close(fd)

    async def started_at(self, path: str) -> str:
        content = await self._driver.read(layout.upload_started_at(path))
        return content[:64].decode("ascii", "replace")

    async def extent(self, path: str) -> int:
        session = self._full(path)
        chain = await self.threads.run(self._chain, session)
        if not chain.private or not await self.threads.run(self._has_leftover, chain):
            return chain.end
        # Copying what a dead writer left may take as long as its bytes take.
        return await self._copy_alone(session, self._extent, session)

    def _has_leftover(self, chain: _Chain) -> bool:
        """Whether a writer at the end of the chain has died, and left something."""
        try:
            return any(self._size(path) and self._is_abandoned(path) for path in chain.private)
        except FileNotFoundError:  # published, adopted or given up since the chain was looked at
            return True

    def _extent(self, session: str) -> int:
        """The end of the chain, after adopting what dead writers left there (U4)."""
        chain = self._chain(session)
        while any(self._adopt(session, path, chain.end) for path in chain.private):
            chain = self._chain(session)
        return chain.end

    async def _copy_alone(self, session: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a copy within the session while nobody else does: whoever waited finds it made."""
        try:
            async with self._driver.hold(self._open_copying, session, self._patience):
                return await self.threads.run_long(call, *args, **kwargs)
        except LockTimeout:  # its holder may be stopped; nothing but work is saved by the lock: go on without
            return await self.threads.run_long(call, *args, **kwargs)

    def _open_copying(self, session: str) -> int:
        """The lock of those who copy. FileNotFoundError: the session is gone."""
        while True:
            try:
                return self.disk.open_lock(f"{session}/_seg/copying")
            except FileNotFoundError:
                self._take_over(session)

    def _chain(self, session: str) -> _Chain:
        try:
            names = self.disk.names(f"{session}/_seg")
        except FileNotFoundError:  # Distribution began it; or there is no such session
            names = []
        published = {int(name) for name in names if _PUBLISHED.fullmatch(name)}
        segments = list(self._base(session, published))
        end = sum(segment.size for segment in segments)
        while end in published:
            path = f"{session}/_seg/{end:020d}"
            size = self.disk.status(path).size
            if not size:  # storage has lost what it said was synced
                break
            segments.append(Segment(path, end, size, True))
            end += size
        found = (match for match in map(_PRIVATE.fullmatch, names) if match)
        private = [f"{session}/_seg/{match[0]}" for match in found if int(match[1]) == end]
        # Last: a session that ends meanwhile must not look like an empty one. FileNotFoundError: there is none.
        self.disk.status(layout.upload_started_at(session))
        return _Chain(segments, end, sorted(private, key=self._size, reverse=True))

    def _size(self, path: str) -> int:
        try:
            return self.disk.status(path).size
        except FileNotFoundError:
            return 0

    def _base(self, session: str, published: set[int]) -> Iterator[Segment]:
        """Distribution's `data`, up to where we first published behind it (U11)."""
        try:
            size = self.disk.status(layout.upload_data(session)).size
        except FileNotFoundError:
            return
        size = min(size, min(published, default=size))
        if size:
            yield Segment(layout.upload_data(session), 0, size, False)

    def _adopt(self, session: str, path: str, offset: int) -> bool:
        """Publish a copy of what a dead writer left; False when there is nothing or its writer lives."""
        try:
            size = self.disk.status(path).size
            if not size or not self._is_abandoned(path):
                return False
        except FileNotFoundError:  # its writer, or another adopter, was first
            return True
        # A copy: the lock may be free because its stopped writer lost it, and that writer may yet wake.
        copy, fd = self._private(session, f"{offset:020d}")
        try:
            self._copy_and_close([Segment(path, offset, size, False)], fd)
            self.publish(session, copy, offset)
        except (OffsetTaken, FileNotFoundError):
            pass
        finally:
            self.drop(copy)
        self.drop(path)
        return True

    def _is_abandoned(self, path: str) -> bool:
        fd = self.disk.open(path)
        try:
            return not self.disk.is_locked(fd)
        finally:
            self.disk.close(fd)

    def _copy_and_close(self, segments: list[Segment], fd: int) -> None:
        """Fill a private file and seal it."""
        try:
            for segment in segments:
                self.disk.copy(segment.path, fd, segment.size)
            self.disk.sync(fd)
            self.disk.seal(fd)
        finally:
            self.disk.close(fd)

    def _private(self, session: str, stem: str) -> tuple[str, int]:
        """A new private file and its descriptor, whose lock is held. FileNotFoundError: the session is gone."""
        while True:
            path = f"{session}/_seg/{stem}.{secrets.token_hex(8)}"
            try:
                fd = self.disk.create(path)
            except FileNotFoundError:
                self._take_over(session)
                continue
            if self.disk.try_lock(fd):
                return path, fd
            # Somebody asked for the status between the two calls and is looking at the lock: leave him this one.
            self.disk.close(fd)

    def _forget(self, private: tuple[str, int]) -> None:
        """Nobody waits for this private file any more."""
        path, fd = private
        self.disk.close(fd)
        self.drop(path)

    def _take_over(self, session: str) -> None:
        """Prepare a session that Distribution began. FileNotFoundError when there is none."""
        # First: what stands on `_seg` stands on these too (U11).
        for path in (layout.upload_started_at(session), layout.upload_data(session)):
            try:
                self.disk.sync_path(path)
            except FileNotFoundError:
                pass
        try:
            self.disk.mkdir(f"{session}/_seg")
        except FileExistsError:
            pass

    def published(self, session: str) -> list[int]:
        """Where the published segments begin."""
        try:
            names = self.disk.names(f"{session}/_seg")
        except FileNotFoundError:
            return []
        return [int(name) for name in names if _PUBLISHED.fullmatch(name)]

    def _has_outgrown(self, session: str, offset: int) -> bool:
        """Whether `data`, behind which nothing is published yet, has become longer than this (U11)."""
        try:
            size = self.disk.status(layout.upload_data(session)).size
        except FileNotFoundError:
            return False
        return size > offset and min(self.published(session), default=size) > offset

    def publish(self, session: str, path: str, offset: int) -> None:
        """Give a sealed file its offset; the one operation that only one writer can win (U2)."""
        directory = f"{session}/_seg"
        if self._has_outgrown(session, offset):
            raise OffsetTaken(f"another registry has stored bytes behind {offset}")
        try:
            self.disk.link(path, f"{directory}/{offset:020d}")
        except FileExistsError:
            raise OffsetTaken(f"another writer has published a segment at {offset}") from None
        except FileNotFoundError:
            self.disk.status(layout.upload_started_at(session))  # FileNotFoundError: the session is gone
            # Between closing and linking our lock was free, and somebody took us for dead (U4).
            raise OffsetTaken(f"another node has taken over the segment at {offset}") from None
        self.disk.sync_path(directory)
        self.settle(session)

    def settle(self, session: str) -> None:
        """Make the session itself durable: what it holds is about to be acknowledged."""
        parent = os.path.dirname(session)
        self.disk.sync_path(layout.upload_started_at(session))
        self.disk.sync_path(session)
        self.disk.sync_path(parent)
        self._driver.directories.ensure(parent)  # Distribution may have made those above, and syncs none of them

    def drop(self, path: str) -> None:
        """Remove a private file; the purger finds it otherwise."""
        try:
            self.disk.unlink(path)
        except OSError:
            pass

    async def append(self, path: str, offset: int, observe: Observer) -> SegmentWriter:
        session = self._full(path)
        private, fd = await self.threads.open(self._private, self._forget, session, f"{offset:020d}")
        return _Writer(self, session, fd, private, offset, observe)

    async def replay(self, path: str, start: int, stop: int, observe: Observer) -> None:
        await self.threads.run_long(self._replay, self._full(path), start, stop, observe)

    def _replay(self, session: str, start: int, stop: int, observe: Observer) -> None:
        for segment in self._chain(session).segments:
            first, last = max(start, segment.start), min(stop, segment.start + segment.size)
            if first < last:
                self._show(segment.path, first - segment.start, last - segment.start, observe)

    def _show(self, path: str, start: int, stop: int, observe: Observer) -> None:
        for piece in self.disk.pieces(path, start, stop, _READ):
            observe(piece)

    async def load_state(self, path: str, algorithm: str, offset: int) -> tuple[int, bytes] | None:
        return await self.threads.run(self._load_state, self._full(path), algorithm, offset)

    def _load_state(self, session: str, algorithm: str, offset: int) -> tuple[int, bytes] | None:
        directory = layout.upload_states(session, algorithm, self._trusted_states(session))
        try:  # nearly always there is one for this very offset
            return offset, self.disk.read(f"{directory}/{offset}")[:_STATE_LIMIT]
        except FileNotFoundError:
            pass
        try:
            names = self.disk.names(directory)
            known = max(int(name) for name in names if name.isdecimal() and int(name) < offset)
            return known, self.disk.read(f"{directory}/{known}")[:_STATE_LIMIT]
        except (FileNotFoundError, ValueError):
            return None

    def _trusted_states(self, session: str) -> str:
        """Where the states of this session are that nobody but us has written."""
        try:
            self.disk.status(layout.upload_data(session))
        except FileNotFoundError:
            return layout.SHARED_STATES  # a session of ours: Distribution finds nothing in it to go on from
        return layout.OWN_STATES

    async def save_state(self, path: str, algorithm: str, offset: int, state: bytes) -> None:
        await self.threads.run(self._save_state, self._full(path), algorithm, offset, state)

    def _save_state(self, session: str, algorithm: str, offset: int, state: bytes) -> None:
        self.put_state(session, self._trusted_states(session), algorithm, offset, state)

    def put_state(self, session: str, states: str, algorithm: str, offset: int, state: bytes) -> None:
        """Keep a state in the directory `states` of a session; nothing happens where the session is gone."""
        # Not synced: a state that a loss of power leaves empty or short is not taken for one, and is made again.
        directory = layout.upload_states(session, algorithm, states)
        for each in (os.path.dirname(directory), directory):
            try:
                self.disk.mkdir(each)
            except FileExistsError:
                pass
            except FileNotFoundError:  # the session has ended; it must not come back (J5)
                return
        temporary = self._driver.temporary()
        try:
            fd = self.disk.create(temporary)
            try:
                self.disk.write(fd, state)
            finally:
                self.disk.close(fd)
            self.disk.rename(temporary, f"{directory}/{offset}")
        except FileNotFoundError:  # as above
            self.drop(temporary)
        except OSError:
            self.drop(temporary)
            raise

    async def commit(self, path: str, size: int, target: str, digest: Digest | None = None) -> None:
        session, blob = self._full(path), self._full(target)
        if not await self.threads.run_long(self._link_one, session, size, blob):
            await self._copy_alone(session, self._commit, session, size, blob, digest)

    def _link_one(self, session: str, size: int, target: str) -> bool:
        """Commit a session that is one sealed segment; False for any other."""
        segments = self._whole(session, size)
        if len(segments) != 1 or not segments[0].sealed:
            return False
        self._link_blob(segments[0].path, size, target)
        return True

    def _whole(self, session: str, size: int) -> list[Segment]:
        """The segments, which must have this size."""
        segments = self._chain(session).segments
        if sum(segment.size for segment in segments) != size:
            raise NotFound(f"the upload no longer holds exactly {size} bytes")
        return segments

    def _commit(self, session: str, size: int, target: str, digest: Digest | None) -> None:
        """Several segments, or some that are not sealed: by a copy."""
        segments = self._whole(session, size)
        if self._settle_blob(target, size):
            return
        whole, fd = self._private(session, "commit")
        try:
            self._copy_and_close(segments, fd)
            if digest is not None and not all(segment.sealed for segment in segments):
                self._verify(whole, size, digest)
            self._link_blob(whole, size, target)
        finally:
            self.drop(whole)

    def _settle_blob(self, target: str, size: int) -> bool:
        """Whether the blob is there, with this size; then it is durable, whoever made it."""
        try:
            if self.disk.status(target).size != size:
                return False
            self.disk.sync_path(target)
        except FileNotFoundError:
            return False
        self._driver.directories.ensure(os.path.dirname(target))
        self.disk.sync_path(os.path.dirname(target))
        return True

    def _verify(self, path: str, size: int, digest: Digest) -> None:
        """Changed when a copy of bytes that were not sealed is no longer what was hashed."""
        hasher = new_hasher(digest.algorithm)
        self._show(path, 0, size, hasher.update)
        if hasher.hexdigest() != digest.encoded:
            raise Changed(f"{digest}: the upload's data file was written to while it was committed")

    def _link_blob(self, source: str, size: int, target: str) -> None:
        """The blob appears complete, or was there: it is the same content (U6, B1)."""
        try:
            self._link_new(source, target)
        except FileExistsError:
            if self._settle_blob(target, size):
                return
            temporary = self._driver.temporary()  # not of ours: a crash of something else cut it
            self.disk.link(source, temporary)
            self.disk.rename(temporary, target)
        self.disk.sync_path(os.path.dirname(target))

    def _link_new(self, source: str, target: str) -> None:
        directory = os.path.dirname(target)
        self._driver.directories.ensure(directory)
        try:
            self.disk.link(source, target)
        except FileNotFoundError:  # a garbage collection took the empty directory; or the source is gone
            self._driver.directories.ensure(directory)
            self.disk.link(source, target)

    async def remove(self, path: str) -> None:
        await self.threads.run(self._remove, self._full(path))

    def _remove(self, session: str) -> None:
        remove_tree(self.disk, self._set_aside(session))

    def _set_aside(self, session: str) -> str:
        """One rename ends the session for everybody: who publishes later finds no directory (U9)."""
        parent, uuid = os.path.split(session)
        gone = f"{parent}/{_GONE}{uuid}.{secrets.token_hex(8)}"
        self.disk.rename(session, gone)
        self.disk.sync_path(parent)
        return gone

    async def purge(self, path: str, before: float, *, dry_run: bool = False) -> bool:
        try:
            return await self.threads.run_long(self._purge, self._full(path), before, dry_run)
        except NotFound:
            return False

    def _purge(self, session: str, before: float, dry_run: bool) -> bool:
        set_aside = os.path.basename(session).startswith(_GONE)
        if set_aside:
            idle = self.disk.status(session).modified < before
        else:
            idle = self._newest(session) < before and not self._has_writer(session)
        if idle and not dry_run:
            remove_tree(self.disk, session if set_aside else self._set_aside(session))
        return idle

    def _newest(self, session: str) -> float:
        """When anything in the session last changed."""
        newest = self.disk.status(session).modified
        for name in self.disk.names(session):
            status = self.disk.status(f"{session}/{name}")
            newest = max(newest, status.modified)
            if status.is_directory:
                newest = max(newest, self._newest(f"{session}/{name}"))
        return newest

    def _has_writer(self, session: str) -> bool:
        try:
            names = self.disk.names(f"{session}/_seg")
        except FileNotFoundError:
            return False
        private = [name for name in names if not _PUBLISHED.fullmatch(name)]
        return not all(self._is_abandoned(f"{session}/_seg/{name}") for name in private)
