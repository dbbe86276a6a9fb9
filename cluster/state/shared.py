"""Shared state as the services see it: the ports of store.py, on which nothing fails and nothing takes long.

Reads answer None, at once while there is no store. Writes are queued, and nobody waits for them; only `forget`
waits for its turn, so that a Distribution node hears of a delete before the client does. Each wait is limited, and
whichever reaches the limit is the last: the breaker opens. A request waits once, to load a hint or to forget; one
with a password that has to be checked, which takes a core 50 ms by itself, has asked for its failures before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from cluster.errors import StateError, StorageError
from cluster.oci.digest import Digest
from cluster.oci.manifest import Descriptor
from cluster.oci.reference import RepositoryName
from cluster.state.breaker import Breaker, Pace
from cluster.state.outbox import Call, Outbox
from cluster.state.store import Node, Store, Turn, UploadHint

_FAREWELL = 1.0  # seconds for what is still queued when the worker stops

T = TypeVar("T")


class SharedState:
    """A breaker, and the writes that wait for it."""

    def __init__(self, connect: Callable[[], Awaitable[Store]] | None, pace: Pace | None = None) -> None:
        """Without `connect` nothing is shared: nothing is ever known, and there is nothing to run."""
        self._exists = connect is not None
        self._pace = pace or Pace()
        self._breaker = Breaker(connect or _nowhere, self._pace, on_loss=self._repeat_removals)
        self._outbox = Outbox(self._breaker.call)
        self._confirming: set[asyncio.Task[None]] = set()

    @property
    def is_up(self) -> bool:
        """Whether there is a store to ask now."""
        return self._breaker.is_closed

    @property
    def trouble(self) -> str:
        """Why there is none; empty when there is one, or none is configured."""
        return self._breaker.reason if self._exists and not self.is_up else ""

    async def run(self) -> None:
        """Look after the connections and send what is queued, until cancelled. One task of each worker."""
        if not self._exists:
            return
        sending = asyncio.create_task(self._outbox.run())
        try:
            await self._breaker.run()
        finally:
            if self.is_up:
                await self._outbox.drain(_FAREWELL)
            sending.cancel()
            for task in self._confirming:
                task.cancel()
            await self._breaker.stop()

    async def remember(
        self,
        name: RepositoryName,
        digest: Digest,
        descriptor: Descriptor,
        is_there: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        done = self._tell(lambda store: store.remember(name, digest, descriptor))
        if done is not None and is_there is not None:
            task = asyncio.create_task(self._confirm(done, name, [digest, descriptor.digest], is_there))
            self._confirming.add(task)
            task.add_done_callback(self._confirming.discard)

    async def _confirm(
        self,
        done: asyncio.Future[None],
        name: RepositoryName,
        digests: Sequence[Digest],
        is_there: Callable[[], Awaitable[bool]],
    ) -> None:
        """Forget what was deleted before it was remembered: what another node forgot may have come here late."""
        await done
        try:
            is_known = await is_there()
        except StorageError:
            is_known = False  # nobody needs it
        if not is_known:
            await self.forget(name, list(dict.fromkeys(digests)))

    async def forget(self, name: RepositoryName, digests: Sequence[Digest]) -> None:
        """Queued while there is no store, too."""
        if not self._exists:
            return
        done = self._outbox.put(lambda store: store.forget(name, digests), is_removal=True)
        if self.is_up:
            await asyncio.wait({done}, timeout=self._pace.limit)

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

    async def count_failure(self, what: str, seconds: float) -> None:
        self._tell(lambda store: store.count_failure(what, seconds))

    async def failures(self, what: str) -> int:
        return await self._ask(lambda store: store.failures(what)) or 0

    async def _ask(self, call: Callable[[Store], Awaitable[T]]) -> T | None:
        try:
            return await self._breaker.call(call)
        except StateError:
            return None

    def _tell(self, call: Call) -> asyncio.Future[None] | None:
        """Queue a write, where there is somebody to send it to; done when its fate is decided."""
        return self._outbox.put(call) if self.is_up else None

    def _repeat_removals(self) -> None:
        self._outbox.repeat_removals()


async def _nowhere() -> Store:
    raise StateError("nothing is shared")
