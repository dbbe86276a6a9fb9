"""Writes on their way to the store: in order, bounded, and dropped when they are too old.

Removals are different: a Distribution node would serve what was deleted, so they outlive a time without Redis, and
are sent once more when Redis has lost its last writes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from cluster.errors import StateError
from cluster.state.store import Store

Call = Callable[[Store], Awaitable[None]]

LIMIT = 10_000  # writes; some MB
_HINT_AGE = 5.0  # seconds; what was true then may have been deleted by another node since
_REMOVAL_AGE = 3600.0  # seconds; a refused removal is tried again for so long
_LOST_AGE = 60.0  # seconds of removals that a fail-over may have lost
_RETRY = 0.2  # seconds before a write that failed is tried again


@dataclass(slots=True)
class _Write:
    call: Call
    is_removal: bool
    since: float
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Outbox:
    """A queue of writes, and the task that sends them."""

    def __init__(self, send: Callable[[Call], Awaitable[None]], now: Callable[[], float] = time.monotonic) -> None:
        self._send = send  # fails with StateError, at once while there is nobody to send to
        self._now = now
        self._queue: deque[_Write] = deque()
        self._sent_removals: deque[_Write] = deque(maxlen=LIMIT)
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, call: Call, *, is_removal: bool = False) -> asyncio.Future[None]:
        """Queue a write; when too many wait, the oldest is dropped. The future is done when its fate is decided."""
        write = _Write(call, is_removal, self._now())
        self._append(write)
        return write.done

    def repeat_removals(self) -> None:
        """Queue again what was removed within the last minute."""
        while self._sent_removals:
            write = self._sent_removals.popleft()
            if self._now() - write.since < _LOST_AGE:
                self._append(write)

    async def run(self) -> None:
        """Send what is queued, until cancelled."""
        while True:
            await self._filled.wait()
            while self._queue:
                if not await self._send_first():
                    await asyncio.sleep(_RETRY)
            self._filled.clear()

    async def drain(self, within: float) -> None:
        """Wait until everything is sent, or that many seconds."""
        writes = [write.done for write in self._queue]
        if writes:
            await asyncio.wait(writes, timeout=within)

    async def _send_first(self) -> bool:
        """Whether there is reason to go on at once. A removal that failed goes to the end, and blocks no other."""
        write = self._queue[0]
        if self._now() - write.since > (_REMOVAL_AGE if write.is_removal else _HINT_AGE):
            self._end(write)
            return True
        try:
            await self._send(write.call)
        except StateError:
            self._end(write, again=write.is_removal)
            return False
        self._end(write)
        if write.is_removal:
            write.since = self._now()
            self._sent_removals.append(write)
        return True

    def _append(self, write: _Write) -> None:
        if len(self._queue) >= LIMIT:
            self._end(self._queue[0])
        self._queue.append(write)
        self._filled.set()

    def _end(self, write: _Write, *, again: bool = False) -> None:
        if self._queue and self._queue[0] is write:  # else a full queue has pushed it out
            self._queue.popleft()
        if again:
            self._append(write)
        elif not write.done.done():
            write.done.set_result(None)
