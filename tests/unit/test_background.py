"""Work beside requests: when it is done again (cluster/background.py)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from cluster.background import Task, run_once
from cluster.errors import StorageError

pytestmark = pytest.mark.anyio

DAY = 86_400.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def works() -> None:
    pass


async def fails() -> None:
    raise StorageError("full")


async def breaks() -> None:
    raise ZeroDivisionError


async def test_what_was_done_is_done_again_after_the_interval() -> None:
    assert await run_once(Task("job", works, DAY, 0)) == DAY


@pytest.mark.parametrize("run", [fails, breaks])
async def test_what_failed_is_tried_again_soon_and_not_by_all_at_once(
    run: Callable[[], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    pauses = [await run_once(Task("job", run, DAY, 0)) for _ in range(50)]
    assert all(60 < pause <= 300 for pause in pauses) and len(set(pauses)) > 40
    assert "next try in" in caplog.messages[0]


@pytest.mark.parametrize("run", [fails, breaks])
async def test_what_is_done_often_keeps_its_interval(run: Callable[[], Awaitable[None]]) -> None:
    assert await run_once(Task("job", run, 5, 0)) == 5
