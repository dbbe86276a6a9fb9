"""Time in the in-memory twin (cluster/state/memory.py); the rest is in the contract suite."""

from __future__ import annotations

import pytest

from cluster.state import keys
from cluster.state.memory import MemoryStore
from cluster.state.store import Node, Turn, UploadHint

pytestmark = pytest.mark.anyio

NODE = Node("node-1", "http://127.0.0.1:5001", "1.0", 4711, 1.5, 2.5, "aa", ("aa",), "a mark")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_node_that_does_not_beat_is_forgotten() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    await store.beat(NODE)
    clock.now += keys.NODE_TTL - 1
    assert await store.nodes() == [NODE]
    clock.now += 1
    assert await store.nodes() == []


async def test_hints_and_turns_are_forgotten_in_their_time() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    await store.save_hint("upload", UploadHint(1, {}))
    await store.record_turn("purger", Turn("node-1", 1.0), 60)
    clock.now += 60
    assert await store.last_turn("purger") is None
    assert await store.load_hint("upload") == UploadHint(1, {})
    clock.now += keys.UPLOAD_TTL
    assert await store.load_hint("upload") is None
