"""Writers of tags and manifests against each other: one waits before any of its calls while the other goes on.

Every call of storage is a step. One operation is interrupted at every step, the other one too, each once: all
orders in which each of the two is made to wait at most once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from cluster.errors import ManifestUnknown, PreconditionFailed
from cluster.oci.digest import Digest
from cluster.oci.reference import Tag
from cluster.registry.tags import Precondition
from cluster.storage import layout
from cluster.storage.memory import MemoryDriver
from tests.unit.registry.parts import NAME, Parts, index

pytestmark = pytest.mark.anyio

V1 = Tag("v1")
OLD, NEW = index("old"), index("new")
_STEPS = ("read", "write", "size", "open", "names", "stamp", "remove")
_who: ContextVar[int | None] = ContextVar("who", default=None)


class Stepping:
    """A driver on which everybody waits before every call, except where nobody is to be counted."""

    def __init__(self, driver: MemoryDriver) -> None:
        self.lock = driver.lock
        self.waiting: dict[int, list[asyncio.Future[None]]] = {0: [], 1: []}
        for name in _STEPS:
            setattr(self, name, self._stepping(getattr(driver, name)))

    def _stepping(self, call: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def step(*arguments: Any) -> Any:
            who = _who.get()
            if who is not None:
                turn = asyncio.get_running_loop().create_future()
                self.waiting[who].append(turn)
                await turn
            return await call(*arguments)

        return step


async def race(memory: MemoryDriver, operations: tuple[Operation, Operation], waits: tuple[int, int]) -> list[Any]:
    """The first goes `waits[0]` steps, the second `waits[1]`, then the first to its end, then the second."""
    driver = Stepping(memory)

    async def run(number: int) -> Any:
        _who.set(number)
        return await operations[number](Parts(memory, driver))  # type: ignore[arg-type]

    tasks = [asyncio.create_task(run(number)) for number in (0, 1)]
    await _go(driver, tasks, 0, waits[0])
    await _go(driver, tasks, 1, waits[1])
    while not all(task.done() for task in tasks):
        await _go(driver, tasks, 0, None)  # until its end, or until the other one's lock
        await _go(driver, tasks, 1, None if tasks[0].done() else 1)
    return await asyncio.gather(*tasks, return_exceptions=True)


Operation = Callable[[Parts], Coroutine[Any, Any, Any]]


async def _go(driver: Stepping, tasks: list[asyncio.Task[Any]], number: int, steps: int | None) -> None:
    while steps is None or steps > 0:
        for _ in range(10):  # as far as it gets without a step
            await asyncio.sleep(0)
        if tasks[number].done() or not driver.waiting[number]:
            return
        driver.waiting[number].pop(0).set_result(None)
        steps = None if steps is None else steps - 1
    for _ in range(10):
        await asyncio.sleep(0)


def orders(most: int = 28) -> Iterator[tuple[int, int]]:
    return ((first, second) for first in range(most) for second in range(most))


def put(content: bytes, precondition: Precondition | None = None, tag: Tag = V1) -> Operation:
    return lambda parts: parts.push(content, tag, precondition)


def delete(content: bytes) -> Operation:
    return lambda parts: parts.manifests.delete(NAME, Digest.of(content))


def untag(precondition: Precondition | None = None) -> Operation:
    return lambda parts: parts.manifests.delete_tag(NAME, V1, precondition)


async def tagged(parts: Parts, tag: Tag = V1) -> bytes | None:
    """What the tag serves; a tag that serves nothing must not be there."""
    try:
        return (await parts.manifests.open(NAME, tag)).content
    except ManifestUnknown:
        assert await parts.points_to(tag) is None, "the tag points to a manifest that is not there"
        return None


def both(operations: tuple[Operation, Operation]) -> list[tuple[Operation, Operation]]:
    return [operations, operations[::-1]]


@pytest.mark.parametrize("before", [None, OLD, NEW], ids=["no tag", "tag elsewhere", "tag here"])
@pytest.mark.parametrize("operations", both((put(NEW), delete(NEW))), ids=["put first", "delete first"])
async def test_a_tag_that_is_put_while_its_manifest_is_deleted_is_whole_or_gone(
    before: bytes | None, operations: tuple[Operation, Operation]
) -> None:
    for waits in orders():
        parts = Parts()
        await parts.push(NEW)
        if before is not None:
            await parts.push(before, V1)
        outcomes = await race(parts.memory, operations, waits)
        assert all(
            not isinstance(outcome, Exception) or isinstance(outcome, ManifestUnknown) for outcome in outcomes
        )
        assert await tagged(parts) in (NEW, None), waits
        # What was deleted stays deleted when the manifest comes back.
        found = await tagged(parts)
        await parts.push(NEW)
        assert await tagged(parts) == found, waits


async def test_a_reader_sees_the_old_manifest_or_the_new_one() -> None:
    for steps in range(28):
        parts = Parts()
        await parts.push(OLD, V1)

        async def read(parts: Parts) -> list[bytes | None]:
            return [(await parts.manifests.open(NAME, V1)).content for _ in range(6)]

        _, seen = await race(parts.memory, (put(NEW), read), (steps, steps % 7))
        assert seen == sorted(seen, key=[OLD, NEW].index)


CREATE = Precondition(none_match=frozenset("*"))
MOVE = Precondition(match=frozenset([str(Digest.of(OLD))]))


@pytest.mark.parametrize("condition", [CREATE, MOVE], ids=["create", "move"])
async def test_of_two_conditional_writers_exactly_one_succeeds(condition: Precondition) -> None:
    third = index("third")
    for waits in orders(20):
        parts = Parts()
        if condition is MOVE:
            await parts.push(OLD, V1)
        outcomes = await race(parts.memory, (put(NEW, condition), put(third, condition)), waits)
        won = [isinstance(outcome, Digest) for outcome in outcomes]
        lost = [isinstance(outcome, PreconditionFailed) for outcome in outcomes]
        assert sorted(won) == sorted(lost) == [False, True], (waits, outcomes)
        assert await tagged(parts) == (NEW if won[0] else third)


@pytest.mark.parametrize("operations", both((put(NEW), untag(MOVE))), ids=["put first", "delete first"])
async def test_a_conditional_delete_never_removes_what_came_later(operations: tuple[Operation, Operation]) -> None:
    for waits in orders(20):
        parts = Parts()
        await parts.push(OLD, V1)
        outcomes = await race(parts.memory, operations, waits)
        refused = any(isinstance(outcome, PreconditionFailed) for outcome in outcomes)
        # Either it came first, and then the PUT made the tag anew; or it was refused.
        assert await tagged(parts) == NEW, (waits, refused)


async def test_two_deletes_of_one_manifest_leave_nothing_and_at_least_one_is_content() -> None:
    for waits in orders(20):
        parts = Parts()
        await parts.push(OLD, V1)
        outcomes = await race(parts.memory, (delete(OLD), delete(OLD)), waits)
        assert None in outcomes
        assert all(outcome is None or isinstance(outcome, ManifestUnknown) for outcome in outcomes), (
            waits,
            outcomes,
        )
        assert await tagged(parts) is None
        assert await parts.memory.names(layout.tags(NAME)) == []
