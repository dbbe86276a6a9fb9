"""The files of upload sessions: one private file for each PATCH, published under its offset by link(2).

The rules U1 to U11 that keep this right between nodes, and the trace that each prevents, are in ARCHITECTURE.md,
"Uploads". Below the session's directory (`_uploads/<uuid>/`):

    _seg/<offset>                  a published segment: sealed, read-only, begins at this byte (20 digits)
    _seg/<offset>.<16 hex>         private to the writer that holds its lock; free lock: its writer died (U4)
    _seg/copying                   locked by whoever takes over, or makes segments one blob: saves others that copy
    _seg/commit.<16 hex>           several segments on their way to being one blob
    data                           what Distribution took before it handed over, the segment at 0 (U11); locked
                                   by whoever adds the first bytes behind it
    hashstates/<alg>/<offset>      digest state of the first <offset> bytes (U5)
    _states/<alg>/<offset>         the same where there is `data`: then Distribution may have written `hashstates`,
                                   and it keeps a digest of other bytes there when it has no state to go on from

Every call blocks until the disk has answered: the threads for them, and the writers, are in segments.py.
Digests are compared by registry/states.py; here only bytes of `data` are looked at again (`_verify`), which
Distribution may still be writing.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cluster.oci.digest import Digest, new_hasher
from cluster.storage import layout
from cluster.storage.chains import Chains, Segment
from cluster.storage.disk import Disk
from cluster.storage.driver import Changed, LockTimeout, NotFound, Observer, OffsetTaken
from cluster.storage.filesystem import FilesystemDriver, remove_tree

_PUBLISHED = re.compile(r"[0-9]{20}")
_PRIVATE = re.compile(r"([0-9]{20})\.[0-9a-f]{16}")
_STATE_LIMIT = 4096  # bytes; a digest state has 108 or 204
_PAUSE = 0.02  # seconds between two tries to lock `data`
PATIENCE = (
    30.0  # seconds to wait for somebody who is at work in the session: copying takes as long as its bytes take
)
_READ = 1024 * 1024  # bytes read at a time when a session is replayed, in a thread


@dataclass(slots=True)
class Chain:
    """A session as found: the unbroken run of segments from 0, and the private files that begin at its end."""

    segments: list[Segment]
    end: int
    private: list[str]  # the longest first


class Sessions:
    """What can be done to a session, on the root of a FilesystemDriver. All paths are absolute."""

    def __init__(self, driver: FilesystemDriver, disk: Disk, patience: float = PATIENCE) -> None:
        """`patience`: seconds to wait for somebody who adds bytes behind `data`."""
        self._driver = driver
        self._disk = disk
        self._patience = patience
        self.chains = Chains()

    def create(self, session: str, started_at: bytes) -> None:
        """Begin one."""
        # Not synced: a session holds nothing that was promised before its first segment is published.
        parent = os.path.dirname(session)
        self.chains.forget(session)
        self._driver.directories.ensure(parent)
        try:
            self._disk.mkdir(session)
        except FileNotFoundError:
            self._driver.directories.forget()
            self._driver.directories.ensure(parent)
            self._disk.mkdir(session)
        self._disk.mkdir(f"{session}/_seg")
        fd = self._disk.create(layout.upload_started_at(session))
        try:
            self._disk.write(fd, started_at)
        finally:
            self._disk.close(fd)

    def chain(self, session: str) -> Chain:
        """What it holds. FileNotFoundError: there is no such session."""
        try:
            names = self._disk.names(f"{session}/_seg")
        except FileNotFoundError:  # Distribution began it; or there is no such session
            names = []
        published = {int(name) for name in names if _PUBLISHED.fullmatch(name)}
        segments = list(self._base(session, published))
        segments += self._sealed(session, sum(segment.size for segment in segments), published)
        end = sum(segment.size for segment in segments)
        found = (match for match in map(_PRIVATE.fullmatch, names) if match)
        private = [f"{session}/_seg/{match[0]}" for match in found if int(match[1]) == end]
        # Last: a session that ends meanwhile must not look like an empty one.
        self._disk.status(layout.upload_started_at(session))
        return Chain(segments, end, sorted(private, key=self._size, reverse=True))

    def _base(self, session: str, published: set[int]) -> Iterator[Segment]:
        """Distribution's `data`, up to where we first published behind it (U11)."""
        try:
            size = self._disk.status(layout.upload_data(session)).size
        except FileNotFoundError:
            return
        size = min(size, min(published, default=size))
        if size:
            yield Segment(layout.upload_data(session), 0, size, False)

    def _sealed(self, session: str, begin: int, published: set[int]) -> list[Segment]:
        """The published segments from `begin` on, without a gap. Only those are looked at that are new here."""
        known = self.chains.find(session)
        if known and (known[0].start != begin or known[-1].start not in published):
            known = []
        segments = list(known)
        end = known[-1].start + known[-1].size if known else begin
        while end in published:
            path = f"{session}/_seg/{end:020d}"
            size = self._disk.status(path).size
            if not size:  # storage has lost what it said was synced
                break
            segments.append(Segment(path, end, size, True))
            end += size
        if len(segments) > len(known):
            self.chains.note(session, segments)
        return segments

    def _size(self, path: str) -> int:
        try:
            return self._disk.status(path).size
        except FileNotFoundError:
            return 0

    def has_leftover(self, chain: Chain) -> bool:
        """Whether a writer at the end of the chain has died, and left something."""
        try:
            return any(self._size(path) and self._is_abandoned(path) for path in chain.private)
        except FileNotFoundError:  # published, adopted or given up since the chain was looked at
            return True

    def has_rival(self, session: str, path: str, offset: int) -> bool:
        """Whether somebody who lives writes at the same offset as the writer of this private file."""
        begins, own = f"{offset:020d}.", os.path.basename(path)
        try:
            names = self._disk.names(f"{session}/_seg")
        except FileNotFoundError:
            return False
        return any(
            self._lives(f"{session}/_seg/{name}") for name in names if name.startswith(begins) and name != own
        )

    def _lives(self, path: str) -> bool:
        try:
            return not self._is_abandoned(path)
        except FileNotFoundError:
            return False

    def extent(self, session: str) -> int:
        """The end of the chain, after adopting what dead writers left there (U4)."""
        chain = self.chain(session)
        while any(self._adopt(session, path, chain.end) for path in chain.private):
            chain = self.chain(session)
        return chain.end

    def _adopt(self, session: str, path: str, offset: int) -> bool:
        """Publish a copy of what a dead writer left; False when there is nothing or its writer lives."""
        try:
            size = self._disk.status(path).size
            if not size or not self._is_abandoned(path):
                return False
        except FileNotFoundError:  # its writer, or another adopter, was first
            return True
        # A copy: the lock may be free because its stopped writer lost it, and that writer may yet wake.
        copy, fd = self.private(session, f"{offset:020d}")
        try:
            self._copy_and_close([Segment(path, offset, size, False)], fd)
            self.publish(session, copy, offset)
        except (OffsetTaken, FileNotFoundError):
            pass
        except LockTimeout:  # whoever is stopped there has a say first; what was left can wait
            return False
        finally:
            self.drop(copy)
        self.drop(path)
        return True

    def _is_abandoned(self, path: str) -> bool:
        fd = self._disk.open(path)
        try:
            return not self._disk.is_locked(fd)
        finally:
            self._disk.close(fd)

    def _copy_and_close(self, segments: list[Segment], fd: int) -> None:
        """Fill a private file and seal it."""
        try:
            for segment in segments:
                self._disk.copy(segment.path, fd, segment.size)
            self._disk.sync(fd)
            self._disk.seal(fd)
        finally:
            self._disk.close(fd)

    def open_copying(self, session: str) -> int:
        """The lock of those who copy. FileNotFoundError: the session is gone."""
        while True:
            try:
                return self._disk.open_lock(f"{session}/_seg/copying")
            except FileNotFoundError:
                self._take_over(session)

    def private(self, session: str, stem: str) -> tuple[str, int]:
        """A new private file and its descriptor, whose lock is held. FileNotFoundError: the session is gone."""
        while True:
            path = f"{session}/_seg/{stem}.{secrets.token_hex(8)}"
            try:
                fd = self._disk.create(path)
            except FileNotFoundError:
                self._take_over(session)
                continue
            if self._disk.try_lock(fd):
                return path, fd
            # Somebody asked for the status between the two calls and is looking at the lock: leave him this one.
            self._disk.close(fd)

    def forget(self, private: tuple[str, int]) -> None:
        """Nobody waits for this private file any more."""
        path, fd = private
        self._disk.close(fd)
        self.drop(path)

    def _take_over(self, session: str) -> None:
        """Prepare a session that Distribution began. FileNotFoundError when there is none."""
        # First: what stands on `_seg` stands on these too (U11).
        for path in (layout.upload_started_at(session), layout.upload_data(session)):
            try:
                self._disk.sync_path(path)
            except FileNotFoundError:
                pass
        try:
            self._disk.mkdir(f"{session}/_seg")
        except FileExistsError:
            pass

    def published(self, session: str) -> list[int]:
        """Where the published segments begin."""
        try:
            names = self._disk.names(f"{session}/_seg")
        except FileNotFoundError:
            return []
        return [int(name) for name in names if _PUBLISHED.fullmatch(name)]

    def publish(self, session: str, path: str, offset: int) -> None:
        """Give a sealed file its offset; the one operation that only one writer can win (U2).

        OffsetTaken when another one has. LockTimeout: one is at it, and may be stopped.
        """
        data = self._hold_data(session, offset)
        try:
            self._add(session, path, offset, data)
        finally:
            if data is not None:
                self._disk.close(data)
        self.settle(session)

    def _add(self, session: str, path: str, offset: int, data: int | None) -> None:
        """`data`: the file of that name, locked, where nothing is published behind it yet."""
        del data  # never written here
        directory = f"{session}/_seg"
        try:
            self._disk.link(path, f"{directory}/{offset:020d}")
        except FileExistsError:
            raise OffsetTaken(f"another writer has published a segment at {offset}") from None
        except FileNotFoundError:
            self._disk.status(layout.upload_started_at(session))  # FileNotFoundError: the session is gone
            # Between closing and linking our lock was free, and somebody took us for dead (U4).
            raise OffsetTaken(f"another node has taken over the segment at {offset}") from None
        self._disk.sync_path(directory)

    def _hold_data(self, session: str, offset: int) -> int | None:
        """Lock `data` while it is what the session goes on from, at `offset` (U11).

        None where there is none, or where a segment is published behind it: that cannot be undone, so the lock is
        not needed any more. OffsetTaken when it does not end there.
        """
        try:
            data = self._disk.open_existing(layout.upload_data(session))
        except FileNotFoundError:
            return None
        held = False
        try:
            self._lock(data, session)
            if not self.published(session):
                if self._disk.size(data) != offset:
                    raise OffsetTaken(f"another writer has stored bytes at {offset}")
                held = True
        finally:
            if not held:
                self._disk.close(data)
        return data if held else None

    def _lock(self, fd: int, session: str) -> None:
        # In a thread that waits: two writers of one session end at the same moment, or one of them is stopped.
        deadline = time.monotonic() + self._patience
        while not self._disk.try_lock(fd):
            if time.monotonic() >= deadline:
                raise LockTimeout(f"{session}: another writer has been adding to it for {self._patience:g} s")
            time.sleep(_PAUSE)

    def settle(self, session: str) -> None:
        """Make the session itself durable: what it holds is about to be acknowledged."""
        parent = os.path.dirname(session)
        self._disk.sync_path(layout.upload_started_at(session))
        self._disk.sync_path(session)
        self._disk.sync_path(parent)
        self._driver.directories.ensure(parent)  # Distribution may have made those above, and syncs none of them

    def drop(self, path: str) -> None:
        """Remove a private file; the purger finds it otherwise."""
        try:
            self._disk.unlink(path)
        except OSError:
            pass

    def replay(self, session: str, start: int, stop: int, observe: Observer) -> None:
        """Show the observer the bytes from `start` to `stop`, as far as they are there."""
        for segment in self.chain(session).segments:
            first, last = max(start, segment.start), min(stop, segment.start + segment.size)
            if first < last:
                self._show(segment.path, first - segment.start, last - segment.start, observe)

    def _show(self, path: str, start: int, stop: int, observe: Observer) -> None:
        for piece in self._disk.pieces(path, start, stop, _READ):
            observe(piece)

    def load_state(self, session: str, algorithm: str, offset: int) -> tuple[int, bytes] | None:
        """The newest digest state of `offset` bytes or fewer, and of how many (U5)."""
        directory = layout.upload_states(session, algorithm, self._trusted_states(session))
        try:  # nearly always there is one for this very offset
            return offset, self._disk.read(f"{directory}/{offset}")[:_STATE_LIMIT]
        except FileNotFoundError:
            pass
        try:
            names = self._disk.names(directory)
            known = max(int(name) for name in names if name.isdecimal() and int(name) < offset)
            return known, self._disk.read(f"{directory}/{known}")[:_STATE_LIMIT]
        except (FileNotFoundError, ValueError):
            return None

    def _trusted_states(self, session: str) -> str:
        """Where the states of this session are that nobody but us has written."""
        try:
            self._disk.status(layout.upload_data(session))
        except FileNotFoundError:
            return layout.SHARED_STATES  # a session of ours: Distribution finds nothing in it to go on from
        return layout.OWN_STATES

    def save_state(self, session: str, algorithm: str, offset: int, state: bytes) -> None:
        """Keep the digest state of the first `offset` bytes."""
        self.put_state(session, self._trusted_states(session), algorithm, offset, state)

    def put_state(self, session: str, states: str, algorithm: str, offset: int, state: bytes) -> None:
        """Keep a state in the directory `states` of a session; nothing happens where the session is gone."""
        # Not synced: a state that a loss of power leaves empty or short is not taken for one, and is made again.
        directory = layout.upload_states(session, algorithm, states)
        for each in (os.path.dirname(directory), directory):
            try:
                self._disk.mkdir(each)
            except FileExistsError:
                pass
            except FileNotFoundError:  # the session has ended; it must not come back (J5)
                return
        temporary = self._driver.temporary()
        try:
            fd = self._disk.create(temporary)
            try:
                self._disk.write(fd, state)
            finally:
                self._disk.close(fd)
            self._disk.rename(temporary, f"{directory}/{offset}")
        except FileNotFoundError:  # as above
            self.drop(temporary)
        except OSError:
            self.drop(temporary)
            raise

    def link_one(self, session: str, size: int, target: str) -> bool:
        """Commit a session that is one sealed segment; False for any other."""
        segments = self._whole(session, size)
        if len(segments) != 1 or not segments[0].sealed:
            return False
        self._link_blob(segments[0].path, size, target)
        return True

    def commit(self, session: str, size: int, target: str, digest: Digest | None) -> None:
        """Commit several segments, or some that are not sealed: by a copy."""
        segments = self._whole(session, size)
        if self._settle_blob(target, size):
            return
        whole, fd = self.private(session, "commit")
        try:
            self._copy_and_close(segments, fd)
            if digest is not None and not all(segment.sealed for segment in segments):
                self._verify(whole, size, digest)
            self._link_blob(whole, size, target)
        finally:
            self.drop(whole)

    def _whole(self, session: str, size: int) -> list[Segment]:
        """The segments, which must have this size."""
        segments = self.chain(session).segments
        if sum(segment.size for segment in segments) != size:
            raise NotFound(f"the upload no longer holds exactly {size} bytes")
        return segments

    def _settle_blob(self, target: str, size: int) -> bool:
        """Whether the blob is there, with this size; then it is durable, whoever made it."""
        try:
            if self._disk.status(target).size != size:
                return False
            self._disk.sync_path(target)
        except FileNotFoundError:
            return False
        self._driver.directories.ensure(os.path.dirname(target))
        self._disk.sync_path(os.path.dirname(target))
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
            self._disk.link(source, temporary)
            self._disk.rename(temporary, target)
        self._disk.sync_path(os.path.dirname(target))

    def _link_new(self, source: str, target: str) -> None:
        directory = os.path.dirname(target)
        self._driver.directories.ensure(directory)
        try:
            self._disk.link(source, target)
        except FileNotFoundError:  # a garbage collection took the empty directory; or the source is gone
            self._driver.directories.ensure(directory)
            self._disk.link(source, target)

    def remove(self, session: str) -> None:
        """End it. FileNotFoundError: it has ended."""
        remove_tree(self._disk, self._set_aside(session))

    def _set_aside(self, session: str) -> str:
        """One rename ends the session for everybody: who publishes later finds no directory (U9)."""
        gone = layout.set_aside(session, secrets.token_hex(8))
        self.chains.forget(session)
        self._disk.rename(session, gone)
        self._disk.sync_path(os.path.dirname(session))
        return gone

    def purge(self, session: str, before: float, dry_run: bool) -> bool:
        """Remove it if nobody has done anything to it since `before` (a time of its files); whether that is so."""
        set_aside = layout.is_set_aside(session)
        if set_aside:
            idle = self._disk.status(session).modified < before
        else:
            idle = self._newest(session) < before and not self._has_writer(session)
        if idle and not dry_run:
            remove_tree(self._disk, session if set_aside else self._set_aside(session))
        return idle

    def _newest(self, session: str) -> float:
        """When anything in the session last changed."""
        newest = self._disk.status(session).modified
        for name in self._disk.names(session):
            status = self._disk.status(f"{session}/{name}")
            newest = max(newest, status.modified)
            if status.is_directory:
                newest = max(newest, self._newest(f"{session}/{name}"))
        return newest

    def _has_writer(self, session: str) -> bool:
        try:
            names = self._disk.names(f"{session}/_seg")
        except FileNotFoundError:
            return False
        private = [name for name in names if not _PUBLISHED.fullmatch(name)]
        return not all(self._is_abandoned(f"{session}/_seg/{name}") for name in private)
