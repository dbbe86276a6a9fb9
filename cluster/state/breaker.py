"""What a sick Redis may cost a request (promise P4): 50 ms, and nothing once that is known.

One breaker in each worker. Closed, it holds a store whose connections are ready. A call that takes too long, three
failures in a row, or an answer of the wrong server open it: the store is dropped whole, and calls fail at once,
until the breaker's own task has made a new one and has seen it answer in time.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.errors import StateError
from cluster.state.store import Refused, Store, WrongServer

_FAILURES = 3  # in a row
_STANDSTILL = 0.005  # seconds that a timer may be late before this process itself is what was slow

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """All in seconds."""

    limit: float = 0.050  # of one call
    probe: float = 1.0  # between two looks at a store that works
    pause: float = 0.5  # between two attempts to get one


class Breaker:
    """Whether there is a store to ask, and what to do when it fails."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Store]],
        pace: Pace,
        on_loss: Callable[[], object] = lambda: None,
    ) -> None:
        self._connect = connect  # may take seconds; fails with StateError
        self._pace = pace
        self._on_loss = on_loss  # the store has lost what was written last
        self._store: Store | None = None
        self._failures = 0
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._witness = secrets.token_hex(8)
        self._written = self._confirmed = 0  # numbers of this witness
        self.reason = "not connected yet"  # why it is open

    @property
    def is_closed(self) -> bool:
        """Whether calls reach a store."""
        return self._store is not None

    async def call(self, call: Callable[[Store], Awaitable[T]]) -> T:
        """Ask the store. StateError after the limit, or when it fails; at once while there is none to ask."""
        if self._store is None:
            raise StateError(self.reason)
        return await self._call(self._store, call)

    async def run(self) -> None:
        """Get a store, look after it, get another one; until cancelled."""
        while True:
            await self._close()
            while (store := self._store) is not None:
                await self._sleep(self._pace.probe)
                if store is self._store:
                    await self._probe(store)
            await asyncio.sleep(self._pace.pause)

    async def stop(self) -> None:
        """Let go of the store."""
        self._drop("stopped")
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _call(self, store: Store, call: Callable[[Store], Awaitable[T]]) -> T:
        task = self._spawn(_awaited(call(store)))
        if not await _finished(task, self._pace.limit):
            task.cancel()
            slow = f"no answer within {self._pace.limit * 1000:g} ms"
            self._open(store, slow)
            raise StateError(slow)
        try:
            result = task.result()
        except StateError as error:
            self._failed(store, error)
            raise
        except Exception as error:
            # An answer that nobody foresaw must not fail a request (promise P4); it is logged with its trace.
            _log.exception("shared state: an answer was not understood")
            raise StateError(f"an answer was not understood: {error}") from error
        self._failures = 0
        return result

    def _failed(self, store: Store, error: StateError) -> None:
        if store is self._store:
            # Who refuses one command works: a key that somebody has broken must not take the others with it.
            self._failures = 0 if isinstance(error, Refused) else self._failures + 1
            _log.info("shared state: %s", error)
            if self._failures >= _FAILURES or isinstance(error, WrongServer):
                self._open(store, str(error))

    def _open(self, store: Store, reason: str) -> None:
        if store is self._store:
            _log.warning("shared state is left alone until it answers again: %s", reason)
            self._drop(reason)

    def _drop(self, reason: str) -> None:
        """Do without: every connection is closed, and calls that wait for an answer fail with it."""
        if self._store is not None:
            self._spawn(self._store.close())
        self._store, self._failures, self.reason = None, 0, reason
        self._changed.set()

    async def _close(self) -> None:
        """Get a store that answers in time."""
        try:
            store = await self._connect()
        except StateError as error:
            self._explain(str(error))
            return
        works = False
        try:
            works = await self._probe(store)
        finally:
            if not works:
                await store.close()
        if works:
            self._store = store
            self._changed.clear()
            _log.info("shared state is there")

    async def _probe(self, store: Store) -> bool:
        """Whether the store answers in time and takes writes; notes when it has lost some."""
        self._written += 1
        try:
            before = await self._call(store, lambda store: store.advance(self._witness, self._written))
        except StateError as error:
            self._open(store, str(error))
            self._explain(str(error))
            return False
        if before < self._confirmed:
            _log.warning("shared state has lost what was written last: it was emptied, or is an older copy")
            self._on_loss()
        self._confirmed = self._written
        return True

    def _explain(self, reason: str) -> None:
        if self._store is None and reason != self.reason:
            _log.warning("shared state is not there: %s", reason)
            self.reason = reason

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it has gone, or has seen it

    async def _sleep(self, seconds: float) -> None:
        """That long, or until the breaker opens."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass


async def _awaited(work: Awaitable[T]) -> T:
    return await work


async def _finished(task: asyncio.Future[Any], limit: float) -> bool:
    """Wait for a task, within a limit that counts the time of others only."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + limit
    await asyncio.wait({task}, timeout=limit)
    if not task.done() and clock() > deadline + _STANDSTILL:
        await asyncio.wait({task}, timeout=_STANDSTILL)  # the answer may lie in the socket since long
    return task.done()
