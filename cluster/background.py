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

_RETRY = 300.0  # seconds; a part of it, so that not all workers run at once, unless the interval is shorter
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """Something to be done again and again."""

    name: str
    run: Callable[[], Awaitable[object]]
    interval: float  # seconds from the end of one run to the start of the next; after a failure 5 minutes at most
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
        pause = await run_once(task)
        taken = time.monotonic() - started if task.steady else 0
        await asyncio.sleep(max(pause - taken, 0))


async def run_once(task: Task) -> float:
    """Once; the seconds to the next time. What failed is tried again before a long interval is over."""
    again = min(task.interval, _RETRY * random.uniform(0.5, 1))  # noqa: S311 - as above
    try:
        await task.run()
    except StorageError as error:
        _log.warning("%s failed, next try in %.3g s: %s", task.name, again, error)
    except Exception:
        # A bug in one run must not end the task for good; it is logged with its trace.
        _log.exception("%s failed, next try in %.3g s", task.name, again)
    else:
        return task.interval
    return again
