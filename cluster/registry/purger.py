"""Clears away what nobody will finish: idle upload sessions, sessions set aside, temporary files of a crash.

`storage.maintenance.uploadpurging`. One worker of one node does it at a time: whoever holds the purger's lock on
storage.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from cluster.oci.reference import is_uuid
from cluster.registry.catalog import Catalog
from cluster.storage import layout
from cluster.storage.driver import Driver, LockTimeout, Uploads

_log = logging.getLogger(__name__)
_LOCK_WAIT = 0.0  # seconds: somebody else purges already


class Purger:
    """One run over the whole storage."""

    def __init__(
        self,
        driver: Driver,
        uploads: Uploads,
        catalog: Catalog,
        *,
        age: float,
        dry_run: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._driver = driver
        self._uploads = uploads
        self._catalog = catalog
        self._age = age  # seconds without any change
        self._dry_run = dry_run
        self._now = now

    async def run(self) -> int:
        """Purge once; the number of sessions removed, or in a dry run those that would be.

        Does nothing while another worker is at it.
        """
        try:
            async with self._driver.lock(layout.PURGER_LOCK, _LOCK_WAIT):
                return await self._purge(self._now() - self._age)
        except LockTimeout:
            _log.info("upload purge: another worker is at it")
            return 0

    async def _purge(self, before: float) -> int:
        removed = 0
        async for directory, marks in self._catalog.directories():
            if "_uploads" in marks:
                removed += await self._purge_repository(f"{layout.REPOSITORIES}/{directory}/_uploads", before)
        swept = 0 if self._dry_run else await self._driver.sweep(before)
        would = "would be " if self._dry_run else ""
        _log.info("upload purge: %d sessions %sremoved, %d temporary files", removed, would, swept)
        return removed

    async def _purge_repository(self, uploads: str, before: float) -> int:
        removed = 0
        for name in await self._driver.names(uploads):
            if is_uuid(name) or name.startswith("_gone."):
                removed += await self._uploads.purge(f"{uploads}/{name}", before, dry_run=self._dry_run)
        return removed
