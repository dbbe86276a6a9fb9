"""Work beside requests, in every worker, again and again. Started and stopped by Falcon; app.py says what it is."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from cluster.errors import StorageError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """Something to be done again and again."""

    name: str
    run: Callable[[], Awaitable[object]]
    interval: float  # seconds from the end of one run to the start of the next
    first: float  # seconds until the first run; a random part of it, so that not all workers run at once
    steady: bool = False  # from the start to the start: one that takes as long is followed by the next at once


class Background:
    """A Falcon middleware that runs tasks while the application is up."""

    def __init__(self, tasks: list[Task], on_stop: Callable[[], object]) -> None:
        self._tasks = tasks
        self._on_stop = on_stop
        self._running: list[asyncio.Task[None]] = []

    async def process_startup(self, scope: dict[str, Any], event: dict[str, Any]) -> None:
        self._running = [asyncio.create_task(_repeat(task), name=task.name) for task in self._tasks]

    async def process_shutdown(self, scope: dict[str, Any], event: dict[str, Any]) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._on_stop()


async def _repeat(task: Task) -> None:
    await asyncio.sleep(random.uniform(0, task.first))  # noqa: S311 - to spread load, not to be unguessable
    while True:
        started = time.monotonic()
        try:
            await task.run()
        except StorageError as error:
            _log.warning("%s failed, next try in %g s: %s", task.name, task.interval, error)
        except Exception:
            # A bug in one run must not end the task for good; it is logged with its trace.
            _log.exception("%s failed, next try in %g s", task.name, task.interval)
        taken = time.monotonic() - started if task.steady else 0
        await asyncio.sleep(max(task.interval - taken, 0))
