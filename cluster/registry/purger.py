"""Clears away what nobody will finish: idle upload sessions, sessions set aside, temporary files of a crash.

`storage.maintenance.uploadpurging`. One worker of one node does it at a time: whoever holds the purger's lock on
storage.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cluster.errors import StorageError
from cluster.oci.reference import is_uuid
from cluster.registry.catalog import Catalog
from cluster.state.store import Turn, Turns
from cluster.storage import layout
from cluster.storage.driver import Driver, LockTimeout, NotFound, StorageTimeout, Uploads

_log = logging.getLogger(__name__)
_ROLE = "purger"
_LOCK_WAIT = 0.0  # seconds: somebody else purges already


@dataclass(frozen=True, slots=True)
class Schedule:
    """`storage.maintenance.uploadpurging`, in seconds."""

    age: float  # without any change, then it is purged
    interval: float = 0  # between two runs of the whole cluster
    dry_run: bool = False


class Purger:
    """One run over the whole storage."""

    def __init__(
        self,
        driver: Driver,
        uploads: Uploads,
        catalog: Catalog,
        schedule: Schedule,
        *,
        turns: Turns | None = None,
        node: str = "",
        now: Callable[[], Awaitable[float]] | None = None,
    ) -> None:
        """`now`: None for the clock of storage. A node whose own is ahead would take all uploads for old."""
        self._driver = driver
        self._uploads = uploads
        self._catalog = catalog
        self._schedule = schedule
        self._turns = turns
        self._node = node
        self._now = now or driver.now

    async def run(self) -> int:
        """Purge once; the number of sessions removed, or in a dry run those that would be.

        Does nothing while another worker is at it.
        """
        try:
            async with self._driver.lock(layout.PURGER_LOCK, _LOCK_WAIT):
                return await self._take_turn()
        except LockTimeout:
            _log.info("upload purge: another worker is at it")
            return 0

    async def _take_turn(self) -> int:
        """Purge, unless a node is known to have done so within the interval: a hint that saves a walk."""
        now = await self._now()
        if self._turns is not None:
            # Redis forgets a turn in its time; one that does not go away must not end all purging (promise P4).
            last = await self._turns.last_turn(_ROLE)
            if last is not None and abs(now - last.at) < self._schedule.interval:
                return 0
        removed = await self._purge(now - self._schedule.age)
        if self._turns is not None:
            # A little less than the interval, or the next turn would come a moment too early, and be lost.
            await self._turns.record_turn(_ROLE, Turn(self._node, now), self._schedule.interval * 0.9)
        return removed

    async def _purge(self, before: float) -> int:
        removed = 0
        async for directory, marks in self._catalog.directories():
            if layout.UPLOADS_DIRECTORY in marks:
                removed += await self._purge_repository(layout.uploads(directory), before)
        swept = 0 if self._schedule.dry_run else await self._driver.sweep(before)
        would = "would be " if self._schedule.dry_run else ""
        _log.info("upload purge: %d sessions %sremoved, %d temporary files", removed, would, swept)
        return removed

    async def _purge_repository(self, uploads: str, before: float) -> int:
        """The number of sessions removed. What cannot be looked at or removed must not keep the rest for ever."""
        removed = 0
        try:
            names = await self._driver.names(uploads)
        except NotFound:  # the repository has just been removed
            return 0
        for name in names:
            if not (is_uuid(name) or layout.is_set_aside(name)):
                continue
            try:
                removed += await self._uploads.purge(f"{uploads}/{name}", before, dry_run=self._schedule.dry_run)
            except StorageTimeout:  # all others would be waited for as long
                raise
            except StorageError as error:
                _log.warning("upload purge: a session stays: %s", error)
        return removed
