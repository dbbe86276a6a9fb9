"""One request leaves others their turn, however much it asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cluster.oci.digest import Digest
from cluster.oci.manifest import LIMIT, OCI_INDEX
from cluster.oci.reference import Tag
from cluster.registry.fairness import gather_limited
from tests.unit.registry.parts import NAME, Parts, index

pytestmark = pytest.mark.anyio


class Turns:
    """How often others had their turn."""

    count = 0

    async def take(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.count += 1


@asynccontextmanager
async def others() -> AsyncIterator[Turns]:
    """Somebody else on the event loop."""
    turns = Turns()
    task = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    try:
        yield turns
    finally:
        task.cancel()


async def test_looks_that_need_not_wait_leave_others_their_turn() -> None:
    async def look(number: int) -> int:
        return number

    async with others() as turns:
        assert await gather_limited([look(number) for number in range(10_000)]) == list(range(10_000))
    assert turns.count >= 100


async def test_a_large_manifest_is_read_while_others_have_their_turn(parts: Parts) -> None:
    content = index("large").ljust(LIMIT)
    for reference in (Tag("v1"), Digest.of(content, "sha512")):
        async with others() as turns:
            await parts.manifests.put(NAME, reference, content, OCI_INDEX)
        assert turns.count
