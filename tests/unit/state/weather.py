"""A store whose health the test decides."""

from __future__ import annotations

import asyncio
from typing import Any

from cluster.errors import StateError
from cluster.state.memory import MemoryStore
from cluster.state.store import Turn, UploadHint


class Weather:
    """A server that stores connect to: it works, hangs, or fails."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.delay = 0.0  # seconds for each answer
        self.calls = 0
        self.attempts = 0
        self.open: set[WeatherStore] = set()
        self.contents = MemoryStore()
        self._clear = asyncio.Event()
        self._clear.set()

    def hang(self) -> None:
        self._clear.clear()

    def wake(self) -> None:
        self._clear.set()

    async def connect(self) -> WeatherStore:
        self.attempts += 1
        await self.answer()
        store = WeatherStore(self)
        self.open.add(store)
        return store

    async def answer(self) -> None:
        self.calls += 1
        await asyncio.sleep(self.delay)
        await self._clear.wait()
        if self.error is not None:
            raise self.error


class WeatherStore(MemoryStore):
    """A connection to that server; closing it ends the calls under way."""

    def __init__(self, weather: Weather) -> None:
        super().__init__()
        self._values = weather.contents._values
        self._weather = weather
        self._closed = asyncio.Event()

    async def load_hint(self, uuid: str) -> UploadHint | None:
        await self._answer()
        return await super().load_hint(uuid)

    async def save_hint(self, uuid: str, hint: UploadHint) -> None:
        await self._answer()
        await super().save_hint(uuid, hint)

    async def last_turn(self, role: str) -> Turn | None:
        await self._answer()
        return await super().last_turn(role)

    async def forget(self, name: Any, digests: Any) -> None:
        await self._answer()
        await super().forget(name, digests)

    async def advance(self, witness: str, number: int) -> int:
        await self._answer()
        return await super().advance(witness, number)

    async def close(self) -> None:
        self._closed.set()
        self._weather.open.discard(self)

    async def _answer(self) -> None:
        closed = asyncio.create_task(self._closed.wait())
        answer = asyncio.create_task(self._weather.answer())
        try:
            await asyncio.wait({closed, answer}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise StateError("closed")
            answer.result()
        finally:
            closed.cancel()
            answer.cancel()
