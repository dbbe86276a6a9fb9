"""An event loop whose time passes only while all of its tasks wait: a busy machine makes nothing in it late."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class _Patient(selectors.DefaultSelector):  # type: ignore[valid-type, misc]
    """Waits for no timer: the time until then has passed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout > 0:
            self.now += timeout
            timeout = 0
        return super().select(timeout)


class Unhurried(asyncio.SelectorEventLoop):
    """For tasks that wait for each other and for timers; nothing here may wait for another thread or process."""

    def __init__(self) -> None:
        self._patient = _Patient()
        super().__init__(self._patient)

    def time(self) -> float:
        return self._patient.now


UNHURRIED = ("asyncio", {"loop_factory": Unhurried})
"""The backend of such tests, for anyio."""
