"""What a sick Redis may cost a request (promise P4): 50 ms in all, and nothing once that is known.

One breaker in each worker. Closed, it holds a store whose connections are ready. A call that takes too long, three
failures in a row, or an answer of the wrong server open it: the store is dropped whole, and calls fail at once until
the breaker's own task has made a new one and has seen it answer in time. `Shared` is what the services see: the ports
of store.py, on which nothing fails and nothing takes long.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from cluster.errors import StateError
from cluster.oci.digest import Digest
from cluster.oci.manifest import Descriptor
from cluster.oci.reference import RepositoryName
from cluster.state.outbox import Call, Outbox
from cluster.state.store import Node, Store, Turn, UploadHint, WrongServer

REQUEST_BUDGET = 0.050  # seconds; a request waits for two calls at most, so each has
CALL_LIMIT = REQUEST_BUDGET / 2
_FAILURES = 3  # in a row
_PROBE = 1.0  # seconds between two looks at a store that works
_PAUSE = 0.5  # seconds between two attempts to get one
_STANDSTILL = 0.005  # seconds that a timer may be late before this process itself is what was slow
_FAREWELL = 1.0  # seconds for what is still queued when the worker stops

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Breaker:
    """Whether there is a store to ask, and what to do when it fails."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Store]],
        *,
        limit: float = CALL_LIMIT,
        on_loss: Callable[[], object] = lambda: None,
    ) -> None:
        self._connect = connect  # may take seconds; fails with StateError
        self._limit = limit
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
                await self._sleep(_PROBE)
                if store is self._store:
                    await self._probe(store)
            await asyncio.sleep(_PAUSE)

    async def stop(self) -> None:
        """Let go of the store."""
        self._open(self._store, "stopped")
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _call(self, store: Store, call: Callable[[Store], Awaitable[T]]) -> T:
        task = self._spawn(_awaited(call(store)))
        if not await _finished(task, self._limit):
            task.cancel()
            self._open(store, f"no answer within {self._limit * 1000:g} ms")
            raise StateError(self.reason)
        try:
            result = task.result()
        except StateError as error:
            self._failed(store, error)
            raise
        self._failures = 0
        return result

    def _failed(self, store: Store, error: StateError) -> None:
        self._failures += 1
        _log.info("shared state: %s", error)
        if self._failures >= _FAILURES or isinstance(error, WrongServer):
            self._open(store, str(error))

    def _open(self, store: Store | None, reason: str) -> None:
        """Do without: every connection is dropped, and calls that wait for one fail with it."""
        if store is None or store is not self._store:
            return
        self._store, self._failures, self.reason = None, 0, reason
        self._changed.set()
        self._spawn(store.close())
        _log.warning("shared state is left alone until it answers again: %s", reason)

    async def _close(self) -> None:
        """Get a store that answers in time."""
        try:
            store = await self._connect()
        except StateError as error:
            self._explain(str(error))
            return
        if await self._probe(store):
            self._store = store
            self._changed.clear()
            _log.info("shared state is there")
        else:
            await store.close()

    async def _probe(self, store: Store) -> bool:
        """Whether the store answers in time and takes writes; notes when it has lost some."""
        self._written += 1
        try:
            before = await self._call(store, lambda store: store.advance(self._witness, self._written))
        except StateError as error:
            self._explain(str(error))
            self._open(store, str(error))
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


class Shared:
    """The ports of store.py as the services use them.

    Reads answer None at once while there is no store. Writes are queued, and nobody waits for them; only `forget`
    waits for its turn, within the limit, so that a Distribution node hears of a delete before the client does.
    """

    def __init__(self, connect: Callable[[], Awaitable[Store]] | None, *, limit: float = CALL_LIMIT) -> None:
        """Without `connect` there is no shared state at all, and nothing to run."""
        self._connects = connect is not None
        self._limit = limit
        self._breaker = Breaker(connect or _nowhere, limit=limit, on_loss=self._repeat_removals)
        self._outbox = Outbox(self._breaker.call)

    @property
    def is_known(self) -> bool:
        """Whether there is a store to ask now."""
        return self._breaker.is_closed

    @property
    def reason(self) -> str:
        """Why there is none; empty when there is one, or none is configured."""
        return "" if self.is_known or not self._connects else self._breaker.reason

    async def run(self) -> None:
        """Look after the connections and send what is queued, until cancelled. One task of each worker."""
        if not self._connects:
            return
        sending = asyncio.create_task(self._outbox.run())
        try:
            await self._breaker.run()
        finally:
            if self.is_known:
                await self._outbox.drain(_FAREWELL)
            sending.cancel()
            await self._breaker.stop()

    async def remember(self, name: RepositoryName, digest: Digest, descriptor: Descriptor) -> None:
        self._tell(lambda store: store.remember(name, digest, descriptor))

    async def recall(self, name: RepositoryName, digest: Digest) -> Descriptor | None:
        return await self._ask(lambda store: store.recall(name, digest))

    async def forget(self, name: RepositoryName, digests: Sequence[Digest]) -> None:
        if not self._connects:
            return
        done = self._outbox.put(lambda store: store.forget(name, digests), is_removal=True)
        if self.is_known:
            await asyncio.wait({done}, timeout=self._limit)

    async def save_hint(self, uuid: str, hint: UploadHint) -> None:
        self._tell(lambda store: store.save_hint(uuid, hint))

    async def load_hint(self, uuid: str) -> UploadHint | None:
        return await self._ask(lambda store: store.load_hint(uuid))

    async def drop_hint(self, uuid: str) -> None:
        self._tell(lambda store: store.drop_hint(uuid))

    async def beat(self, node: Node) -> None:
        self._tell(lambda store: store.beat(node))

    async def nodes(self) -> list[Node]:
        return await self._ask(lambda store: store.nodes()) or []

    async def last_turn(self, role: str) -> Turn | None:
        return await self._ask(lambda store: store.last_turn(role))

    async def record_turn(self, role: str, turn: Turn, seconds: float) -> None:
        self._tell(lambda store: store.record_turn(role, turn, seconds))

    async def _ask(self, call: Callable[[Store], Awaitable[T]]) -> T | None:
        try:
            return await self._breaker.call(call)
        except StateError:
            return None

    def _tell(self, call: Call) -> None:
        if self.is_known:
            self._outbox.put(call)

    def _repeat_removals(self) -> None:
        self._outbox.repeat_removals()


async def _nowhere() -> Store:
    raise StateError("no redis section is configured")
