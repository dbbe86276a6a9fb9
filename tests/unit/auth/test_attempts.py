"""How often somebody may be wrong (cluster/auth/attempts.py)."""

from __future__ import annotations

import pytest

from cluster.auth.attempts import LIMIT, WINDOW, Attempts
from cluster.errors import TooManyRequests
from cluster.state.memory import MemoryStore
from cluster.state.shared import SharedState

pytestmark = pytest.mark.anyio


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def fail(attempts: Attempts, user: str, source: str, times: int = LIMIT) -> None:
    for _ in range(times):
        await attempts.failed(user, source)


async def is_stopped(attempts: Attempts, user: str, source: str) -> bool:
    try:
        await attempts.admit(user, source)
    except TooManyRequests as refusal:
        assert refusal.headers == {"Retry-After": "60"}
        return True
    return False


async def test_after_so_many_wrong_passwords_no_other_one_is_looked_at_until_the_window_is_over() -> None:
    clock = Clock()
    attempts = Attempts(SharedState(None), clock)
    await fail(attempts, "alice", "192.0.2.1", LIMIT - 1)
    assert not await is_stopped(attempts, "alice", "192.0.2.1")
    await fail(attempts, "alice", "192.0.2.1", 1)
    assert await is_stopped(attempts, "alice", "192.0.2.1")
    clock.now += WINDOW
    assert not await is_stopped(attempts, "alice", "192.0.2.1")


async def test_the_user_comes_in_from_elsewhere_and_others_from_there() -> None:
    attempts = Attempts(SharedState(None))
    await fail(attempts, "alice", "192.0.2.1")
    assert not await is_stopped(attempts, "alice", "192.0.2.2")
    assert not await is_stopped(attempts, "bob", "192.0.2.1")


async def test_all_nodes_count_together() -> None:
    store = MemoryStore()
    one, other = Attempts(store), Attempts(store)
    await fail(one, "alice", "192.0.2.1", LIMIT // 2)
    await fail(other, "alice", "192.0.2.1", LIMIT - LIMIT // 2)
    assert await is_stopped(one, "alice", "192.0.2.1")
    assert await is_stopped(other, "alice", "192.0.2.1")
    store.flush()
    assert not await is_stopped(one, "alice", "192.0.2.1")


async def test_passwords_that_are_being_checked_count_too() -> None:
    attempts = Attempts(SharedState(None))
    await fail(attempts, "alice", "192.0.2.1", LIMIT - 2)
    attempts.begin("alice", "192.0.2.1")
    assert not await is_stopped(attempts, "alice", "192.0.2.1")
    attempts.begin("alice", "192.0.2.1")
    assert await is_stopped(attempts, "alice", "192.0.2.1")
    attempts.end("alice", "192.0.2.1")
    assert not await is_stopped(attempts, "alice", "192.0.2.1")


async def test_what_fails_while_the_other_nodes_are_asked_counts() -> None:
    class Slow(MemoryStore):
        async def failures(self, what: str) -> int:
            before = await super().failures(what)
            await fail(attempts, "alice", "192.0.2.1")
            return before

    attempts = Attempts(Slow())
    assert await is_stopped(attempts, "alice", "192.0.2.1")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("", "", True),
        ("unix:", "", False),
    ],
)
async def test_a_source_is_an_address_or_a_network_of_one_host(one: str, other: str, same: bool) -> None:
    attempts = Attempts(SharedState(None))
    await fail(attempts, "alice", one)
    assert await is_stopped(attempts, "alice", other) == same


async def test_the_memory_of_it_is_bounded() -> None:
    attempts = Attempts(SharedState(None))
    for number in range(10_100):
        await attempts.failed(f"user {number}", "192.0.2.1")
    assert len(attempts._failed) == 10_000
