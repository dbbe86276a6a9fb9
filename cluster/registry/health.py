"""Whether this worker may be sent work, and what it depends on. Never asks other nodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from cluster.errors import StorageError
from cluster.storage.driver import Driver, StorageFull


class Health:
    """The outcome of the storage probe, and whether the node is on its way out."""

    def __init__(
        self,
        driver: Driver,
        *,
        driver_name: str,
        threshold: int,
        node: Callable[[], dict[str, Any]],
        uploading: Callable[[], int] = lambda: 0,
        shared: Callable[[], str] = lambda: "not configured",
    ) -> None:
        self._driver = driver
        self._check = f"storagedriver_{driver_name}"
        self._threshold = max(threshold, 1)  # failures in a row; Distribution's 0 means at once
        self._node = node
        self._uploading = uploading
        self._shared = shared
        self._failures = 0
        self._error: str | None = None
        self.draining = False

    async def probe(self) -> None:
        """Ask storage once; to be called at an interval."""
        try:
            await self._driver.probe()
        except StorageFull as error:
            # Reads go on as before, and all nodes have the same storage: were they unready, nobody could read.
            self._failures, self._error = 0, str(error) or type(error).__name__
        except StorageError as error:
            self._failures += 1
            self._error = str(error) or type(error).__name__
        else:
            self._failures, self._error = 0, None

    def failing(self) -> dict[str, str]:
        """The checks that have failed often enough to count, with their errors."""
        return {self._check: self._error or "failed"} if self._failures >= self._threshold else {}

    def not_ready(self) -> str | None:
        """Why no work should be sent; None when it should."""
        if self.draining:
            return "draining"
        return "storage is failing" if self.failing() else None

    async def report(self) -> dict[str, Any]:
        """All dependencies, asked now."""
        started = time.monotonic()
        await self.probe()
        seconds = round(time.monotonic() - started, 4)
        storage = {"check": self._check, "status": "failing" if self._error else "ok", "seconds": seconds}
        if self._error:
            storage["error"] = self._error
        return {
            "status": "failing" if self._error else "ok",
            "ready": self.not_ready() is None,
            "node": self._node(),
            "storage": storage,
            "redis": {"status": self._shared()},
            "uploads": self._uploading(),
        }
