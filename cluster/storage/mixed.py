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
from cluster.storage.driver import Observer, OffsetTaken, SegmentWriter, Take
from cluster.storage.segments import TURN, UNIT, SegmentUploads
from cluster.storage.threads import Tenure


class _DataWriter:
    """One PATCH into `data`, from its offset on."""

    def __init__(self, uploads: MixedUploads, session: str, fd: int, offset: int, observe: Observer) -> None:
        self.size = 0
        self._uploads = uploads
        self._session = session
        self._fd = fd
        self._offset = offset
        self._observe = observe
        self._tenure = Tenure(lambda: uploads.disk.close(fd))

    async def write(self, pieces: list[bytes]) -> None:
        data = b"".join(pieces)
        with self._tenure:
            writing = self._uploads.threads.begin(
                self._uploads.disk.write_at, self._fd, data, self._offset + self.size
            )
        self._observe(data)
        await writing
        self.size += len(data)

    async def fill(self, take: Take) -> bool:
        with self._tenure:
            filling = self._uploads.threads.begin(self._fill, take)
        return await filling

    def _fill(self, take: Take) -> bool:
        stop = self.size + TURN
        while self.size < stop and (data := take(UNIT - (self._offset + self.size) % UNIT)):
            self._observe(data)
            self._uploads.disk.write_at(self._fd, data, self._offset + self.size)
            self.size += len(data)
        return self.size >= stop

    async def seal(self) -> None:
        with self._tenure:
            await self._uploads.threads.run_long(self._seal)

    def _seal(self) -> None:
        disk = self._uploads.disk
        disk.status(layout.upload_started_at(self._session))  # FileNotFoundError: the session ended under us
        disk.sync(self._fd)
        if self._uploads.published(self._session):
            # A node without `mixed` was quicker: what it published counts, and these bytes are not in the chain.
            raise OffsetTaken(f"another writer has published a segment at {self._offset}")
        self._uploads.settle(self._session)

    async def discard(self) -> None:
        self._tenure.end()


class MixedUploads(SegmentUploads):
    """The Uploads port on the one file that Distribution knows."""

    def _create(self, session: str, started_at: bytes) -> None:
        super()._create(session, started_at)
        self.disk.close(self.disk.create(layout.upload_data(session)))

    async def append(self, path: str, offset: int, observe: Observer) -> SegmentWriter:
        session = self._full(path)
        fd = await self.threads.open(self._open_data, self._close_data, session)
        if fd is None:
            return await super().append(path, offset, observe)
        return _DataWriter(self, session, fd, offset, observe)

    def _open_data(self, session: str) -> int | None:
        """A descriptor of `data`; None where the session goes on in segments."""
        if self.published(session):
            return None
        try:
            return self.disk.open_existing(layout.upload_data(session))
        except FileNotFoundError:
            return None

    def _close_data(self, fd: int | None) -> None:
        if fd is not None:
            self.disk.close(fd)

    def _save_state(self, session: str, algorithm: str, offset: int, state: bytes) -> None:
        super()._save_state(session, algorithm, offset, state)
        # Where Distribution finds no state of exactly the size, its next one is of the new bytes alone.
        self.put_state(session, layout.SHARED_STATES, algorithm, offset, state)
