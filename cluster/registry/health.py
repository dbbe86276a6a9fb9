"""Whether this worker may be sent work, and what it depends on. Never asks other nodes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.errors import StorageError
from cluster.storage.driver import Driver, StorageFull, StorageTimeout

_FRESH = 1.0  # seconds in which storage is not asked again for a report

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Look:
    """What storage answered."""

    error: StorageError | None
    ended: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Check:
    """What the probe is called, and what counts."""

    name: str
    threshold: int  # failures in a row; Distribution's 0 means at once
    patience: float  # seconds until a question that is not answered is a failure
    hurry: float = 2.0  # seconds until a report does not wait for it: those who ask give up after 3 s


class Health:
    """The outcome of the storage probe, and whether the node is on its way out."""

    def __init__(
        self,
        driver: Driver,
        check: Check,
        *,
        node: Callable[[], dict[str, Any]],
        uploading: Callable[[], int] = lambda: 0,
        shared: Callable[[], str] = lambda: "not configured",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._driver = driver
        self.check = check
        self._node = node
        self._uploading = uploading
        self._shared = shared
        self._failures = 0
        self._error = ""  # what the last probe came to; told while enough of them have failed
        self._now = now
        self._last: _Look | None = None
        self._told: StorageError | None = None
        self._looking: asyncio.Task[_Look] | None = None
        self.draining = False

    async def probe(self) -> None:
        """Ask storage, and count what it answers; to be called at an interval.

        A question that is not answered yet is a failure each time: more of them would hang as well.
        """
        error: StorageError | None
        try:
            async with asyncio.timeout(self.check.patience):
                error = (await self._look()).error
        except TimeoutError:
            error = StorageTimeout(f"storage did not answer within {self.check.patience:g} s")
            self._tell(error)
        # Full storage does not count: reads go on. All nodes have the same: were they unready, nobody could read.
        self._failures = 0 if error is None or isinstance(error, StorageFull) else self._failures + 1
        self._error = str(error) or type(error).__name__

    async def _look(self) -> _Look:
        """Ask storage, once for all who want to know: it writes and syncs a file."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._looking)  # the others wait on when one of them leaves

    async def _hurried_look(self) -> _Look:
        """Ask storage as well, and say that it does not answer while that takes long."""
        try:
            async with asyncio.timeout(self.check.hurry):
                return await self._look()
        except TimeoutError:
            return _Look(StorageTimeout(), self._now(), self.check.hurry)

    async def _ask(self) -> _Look:
        started, error = self._now(), None
        try:
            await self._driver.probe()
        except StorageError as failure:
            error = failure
        finally:
            self._looking = None
        self._tell(error)
        self._last = _Look(error, self._now(), self._now() - started)
        return self._last

    def _tell(self, error: StorageError | None) -> None:
        """What changed, for the log: it has the paths that a report must not show."""
        before, self._told = self._told, error
        if error is not None and type(error) is not type(before):
            _log.warning("storage fails: %s: %s", type(error).__name__, error)
        elif error is None and before is not None:
            _log.warning("storage works again")

    def failing(self) -> dict[str, str]:
        """The checks that have failed often enough to count, with their errors."""
        return {self.check.name: self._error} if self._failures >= max(self.check.threshold, 1) else {}

    def not_ready(self) -> str | None:
        """Why no work should be sent; None when it should."""
        if self.draining:
            return "draining"
        return "storage is failing" if self.failing() else None

    async def report(self) -> dict[str, Any]:
        """All dependencies, as they were within the last second. Does not count: anybody may ask, and often.

        Storage that does not answer is a StorageTimeout, and answers when it can.
        """
        look = self._last
        if look is None or self._now() - look.ended > _FRESH:
            look = await self._hurried_look()
        status = "ok" if look.error is None else "failing"
        storage = {"check": self.check.name, "status": status, "seconds": round(look.seconds, 4)}
        if look.error is not None:
            storage["error"] = type(look.error).__name__
        return {
            "status": status,
            "ready": self.not_ready() is None,
            "node": self._node(),
            "storage": storage,
            "redis": {"status": self._shared()},
            "uploads": self._uploading(),
        }
