"""Writes on their way (cluster/state/outbox.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from cluster.errors import StateError
from cluster.state.outbox import LIMIT, Call, Outbox
from cluster.state.store import Store

pytestmark = pytest.mark.anyio


class Sent:
    """Where writes go, by name; `names` is what arrived."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.refused: set[str] = set()
        self.is_up = True
        self.time = 1000.0
        self.outbox = Outbox(self.send, now=lambda: self.time)

    def write(self, name: str) -> Call:
        async def call(_: Store) -> None:
            if name in self.refused:
                raise StateError(f"{name} is refused")
            self.names.append(name)

        return call

    async def send(self, call: Call) -> None:
        if not self.is_up:
            raise StateError("down")
        await call(cast("Store", None))

    def put(self, name: str, *, is_removal: bool = False) -> asyncio.Future[None]:
        return self.outbox.put(self.write(name), is_removal=is_removal)


async def during(outbox: Outbox, work: Callable[[], Awaitable[object]]) -> None:
    """Do something while the outbox sends."""
    sending = asyncio.create_task(outbox.run())
    try:
        async with asyncio.timeout(10):
            await work()
    finally:
        sending.cancel()
        await asyncio.wait({sending})


async def test_writes_arrive_in_order() -> None:
    sent = Sent()
    names = [f"write {n}" for n in range(100)]
    last = [sent.put(name, is_removal=n % 3 == 0) for n, name in enumerate(names)][-1]
    await during(sent.outbox, lambda: last)
    assert sent.names == names


async def test_a_hint_that_failed_is_dropped_and_a_removal_tried_again() -> None:
    sent = Sent()
    sent.is_up = False
    hint, removal = sent.put("hint"), sent.put("removal", is_removal=True)

    async def work() -> None:
        await hint
        sent.is_up = True
        await removal

    await during(sent.outbox, work)
    assert sent.names == ["removal"]


async def test_a_removal_that_is_refused_blocks_no_other_write() -> None:
    sent = Sent()
    sent.refused = {"refused"}
    refused = sent.put("refused", is_removal=True)
    await during(sent.outbox, lambda: sent.put("after"))
    assert sent.names == ["after"]
    assert not refused.done()


async def test_a_hint_that_waited_too_long_is_dropped_and_a_removal_is_not() -> None:
    sent = Sent()
    sent.put("hint")
    removal = sent.put("removal", is_removal=True)
    sent.time += 10
    await during(sent.outbox, lambda: removal)
    assert sent.names == ["removal"]


async def test_a_removal_is_given_up_after_an_hour() -> None:
    sent = Sent()
    removal = sent.put("removal", is_removal=True)
    sent.time += 3601
    await during(sent.outbox, lambda: removal)
    assert sent.names == []


async def test_only_the_removals_of_the_last_minute_are_sent_again_and_only_once() -> None:
    sent = Sent()
    sent.put("old removal", is_removal=True)
    await during(sent.outbox, lambda: sent.outbox.drain(5))
    sent.time += 61
    sent.put("hint")
    sent.put("removal", is_removal=True)
    await during(sent.outbox, lambda: sent.outbox.drain(5))
    sent.names.clear()
    sent.outbox.repeat_removals()
    sent.outbox.repeat_removals()
    await during(sent.outbox, lambda: sent.put("last"))
    assert sent.names == ["removal", "last"]


async def test_a_full_outbox_drops_the_oldest_and_tells_who_waits_for_it() -> None:
    sent = Sent()
    sent.is_up = False
    first = sent.put("first", is_removal=True)
    for number in range(LIMIT):
        sent.put(f"{number}", is_removal=True)
    assert len(sent.outbox) == LIMIT
    assert first.done()


async def test_draining_waits_no_longer_than_it_is_told() -> None:
    sent = Sent()
    sent.is_up = False
    sent.put("removal", is_removal=True)
    await during(sent.outbox, lambda: sent.outbox.drain(0.05))
    assert len(sent.outbox) == 1
