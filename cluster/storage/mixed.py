"""Upload sessions beside Distribution nodes on the same storage (`cluster.mixed`): all bytes are in `data`.

For the time of a migration: Distribution reads nothing else. Bytes are written at explicit offsets and synced; a
commit publishes a private copy that was hashed after it was made, so a late write reaches no blob of ours. Digest
states are put where Distribution finds them, and never taken from there: not all of its own are right. Two writers
of one session are not fenced from each other, and Distribution's own commits are as safe as it is.

A session that a node without `mixed` began, or has published a segment of, goes on in segments: nothing that was
acknowledged is lost while the setting goes over the fleet.
"""

from __future__ import annotations

from cluster.storage import layout
from cluster.storage.disk import Disk
from cluster.storage.driver import Observer, OffsetTaken, SegmentWriter
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.segments import SegmentUploads, Writer
from cluster.storage.sessions import Sessions
from cluster.storage.threads import Threads


class _DataWriter(Writer):
    """One PATCH into `data`, from its offset on."""

    def __init__(self, uploads: MixedUploads, session: str, fd: int, offset: int, observe: Observer) -> None:
        super().__init__(uploads.threads, uploads.disk, fd, offset, observe)
        self._sessions = uploads.sessions
        self._session = session

    async def seal(self) -> None:
        with self._tenure:
            await self._threads.run_long(self._seal)

    def _seal(self) -> None:
        disk = self._disk
        disk.status(layout.upload_started_at(self._session))  # FileNotFoundError: the session ended under us
        disk.sync(self._fd)
        if self._sessions.published(self._session):
            # A node without `mixed` was quicker: what it published counts, and these bytes are not in the chain.
            raise OffsetTaken(f"another writer has published a segment at {self._begins}")
        self._sessions.settle(self._session)

    async def discard(self) -> None:
        self._tenure.end()


class _MixedSessions(Sessions):
    """Sessions that Distribution can go on with."""

    def create(self, session: str, started_at: bytes) -> None:
        super().create(session, started_at)
        self._disk.close(self._disk.create(layout.upload_data(session)))

    def save_state(self, session: str, algorithm: str, offset: int, state: bytes) -> None:
        super().save_state(session, algorithm, offset, state)
        # Where Distribution finds no state of exactly the size, its next one is of the new bytes alone.
        self.put_state(session, layout.SHARED_STATES, algorithm, offset, state)

    def open_data(self, session: str) -> int | None:
        """A descriptor of `data`; None where the session goes on in segments."""
        if self.published(session):
            return None
        try:
            return self._disk.open_existing(layout.upload_data(session))
        except FileNotFoundError:
            return None

    def close_data(self, fd: int | None) -> None:
        """Nobody waits for this descriptor any more."""
        if fd is not None:
            self._disk.close(fd)


class MixedUploads(SegmentUploads):
    """The Uploads port on the one file that Distribution knows."""

    def __init__(self, root: str, driver: FilesystemDriver, threads: Threads, disk: Disk | None = None) -> None:
        self._mixed = _MixedSessions(driver, disk or Disk())
        super().__init__(root, driver, threads, disk, sessions=self._mixed)

    async def append(self, path: str, offset: int, observe: Observer) -> SegmentWriter:
        session = self._full(path)
        fd = await self.threads.open(self._mixed.open_data, self._mixed.close_data, session)
        if fd is None:
            return await super().append(path, offset, observe)
        return _DataWriter(self, session, fd, offset, observe)
