"""Upload sessions beside Distribution nodes on the same storage (`cluster.mixed`): all bytes are in `data`.

For the time of a migration: Distribution reads nothing else. A PATCH is a private file as anywhere (U1), which is
copied to the end of `data` when it is complete. A commit publishes a private copy, hashed after it was made,
so a late write reaches no blob of ours. Digest states are put where Distribution finds them, and never taken from
there: not all of its own are right. Our writers are fenced from each other by a lock on `data`; Distribution takes
none, and its own commits are as safe as it is.

A session that a node without `mixed` began, or has published a segment of, goes on in segments: nothing that was
acknowledged is lost while the setting goes over the fleet.
"""

from __future__ import annotations

from cluster.storage import layout
from cluster.storage.disk import Disk
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.segments import SegmentUploads
from cluster.storage.sessions import PATIENCE, Sessions
from cluster.storage.threads import Threads


class _MixedSessions(Sessions):
    """Sessions that Distribution can go on with."""

    def create(self, session: str, started_at: bytes) -> None:
        super().create(session, started_at)
        self._disk.close(self._disk.create(layout.upload_data(session)))

    def save_state(self, session: str, algorithm: str, offset: int, state: bytes) -> None:
        super().save_state(session, algorithm, offset, state)
        # Where Distribution finds no state of exactly the size, its next one is of the new bytes alone.
        self.put_state(session, layout.SHARED_STATES, algorithm, offset, state)

    def _add(self, session: str, path: str, offset: int, data: int | None) -> None:
        if data is None:
            super()._add(session, path, offset, data)
            return
        # Whoever dies in between leaves some of these bytes, in their place: that is how far the session is then.
        self._disk.seek(data, offset)
        self._disk.copy(path, data, self._disk.status(path).size)
        self._disk.sync(data)


class MixedUploads(SegmentUploads):
    """The Uploads port on the one file that Distribution knows."""

    def __init__(
        self,
        root: str,
        driver: FilesystemDriver,
        threads: Threads,
        disk: Disk | None = None,
        *,
        patience: float = PATIENCE,
    ) -> None:
        disk = disk or Disk()
        sessions = _MixedSessions(driver, disk, patience)
        super().__init__(root, driver, threads, disk, sessions=sessions, patience=patience)
