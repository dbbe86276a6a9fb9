"""Shared state as the services see it (cluster/state/shared.py): nothing fails, nothing takes long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from cluster.errors import StateError, StorageError
from cluster.oci.digest import Digest
from cluster.oci.manifest import Descriptor
from cluster.oci.reference import RepositoryName
from cluster.registry.blobs import BlobStore
from cluster.registry.catalog import Catalog
from cluster.registry.links import Content
from cluster.state.breaker import Pace
from cluster.state.shared import SharedState
from cluster.state.store import Node, Turn, UploadHint
from cluster.storage import layout
from cluster.storage.memory import MemoryDriver
from tests.unit.state.clock import UNHURRIED, Unhurried
from tests.unit.state.weather import Weather

pytestmark = pytest.mark.anyio

PACE = Pace(limit=0.05, probe=0.05, pause=0.02)
HINT = UploadHint(7, {"sha256": b"state"})
NAME = RepositoryName("team/app")
DIGEST = Digest.of(b"content")
DESCRIPTOR = Descriptor("application/octet-stream", DIGEST, 7)
NODE = Node("node-1", "http://127.0.0.1:5001", "1.0", 4711, 1.5, 2.5, "aa", ("aa",), "a mark")
TURN = Turn("node-1", 1.5)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, type[Unhurried]]]:
    """What a call costs is counted in time that passes only while all wait."""
    return UNHURRIED


def now() -> float:
    return asyncio.get_running_loop().time()


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = now() + 5
    while not condition():
        assert now() < deadline, f"not within 5 s: {what}"
        await asyncio.sleep(0.002)


@asynccontextmanager
async def running(weather: Weather) -> AsyncIterator[SharedState]:
    state = SharedState(weather.connect, PACE)
    task = asyncio.create_task(state.run())
    try:
        await until(lambda: state.is_up, "it is up")
        yield state
    finally:
        task.cancel()
        await asyncio.wait({task})


async def every_call(state: SharedState) -> list[object]:
    """The outcome of each method once."""
    return [
        await state.remember(NAME, DIGEST, DESCRIPTOR),
        await state.forget(NAME, [DIGEST]),
        await state.save_hint("upload", HINT),
        await state.load_hint("upload"),
        await state.drop_hint("upload"),
        await state.beat(NODE),
        await state.nodes(),
        await state.record_turn("purger", TURN, 60),
        await state.last_turn("purger"),
        await state.count_failure("this", 60),
        await state.failures("this"),
    ]


NOTHING = [None, None, None, None, None, None, [], None, None, None, 0]


async def test_what_one_node_saved_another_one_loads() -> None:
    weather = Weather()
    async with running(weather) as one, running(weather) as other:
        await one.save_hint("upload", HINT)
        await one.remember(NAME, DIGEST, DESCRIPTOR)
        await one.beat(NODE)
        await one.record_turn("purger", TURN, 60)
        await one.count_failure("this", 60)
        await one.forget(RepositoryName("other"), [DIGEST])  # waits for its turn, behind the others
        assert await other.load_hint("upload") == HINT
        assert weather.contents.descriptor(NAME, DIGEST) == DESCRIPTOR
        assert await other.nodes() == [NODE]
        assert await other.last_turn("purger") == TURN
        assert await other.failures("this") == 1
        await one.forget(NAME, [DIGEST])
        assert weather.contents.descriptor(NAME, DIGEST) is None


async def test_without_a_redis_section_nothing_is_known_and_there_is_nothing_to_run() -> None:
    state = SharedState(None)
    await asyncio.wait_for(state.run(), 1)
    assert await every_call(state) == NOTHING
    assert not state.is_up
    assert state.trouble == ""


async def test_before_it_runs_nothing_is_known_and_nothing_fails() -> None:
    state = SharedState(Weather().connect, PACE)
    assert await every_call(state) == NOTHING
    assert state.trouble == "not connected yet"


@pytest.mark.parametrize("error", [StateError("refused"), ZeroDivisionError("a bug")])
async def test_no_failure_reaches_a_service(error: Exception) -> None:
    weather = Weather()
    async with running(weather) as state:
        weather.error = error
        assert await state.load_hint("upload") is None
        assert await state.last_turn("purger") is None
        await state.save_hint("upload", HINT)
        await state.forget(NAME, [DIGEST])


async def test_all_calls_of_a_request_to_a_hung_server_cost_its_budget_at_most() -> None:
    weather = Weather()
    async with running(weather) as state:
        weather.hang()
        started = now()
        outcome = await every_call(state)
        elapsed = now() - started
    assert outcome == NOTHING
    assert elapsed <= PACE.limit, "the first one opens the breaker"


async def test_while_it_is_down_calls_cost_nothing_and_it_says_why() -> None:
    weather = Weather()
    async with running(weather) as state:
        weather.hang()
        await until(lambda: not state.is_up, "it is down")
        started = now()
        for _ in range(50):
            assert await every_call(state) == NOTHING
        assert now() == started
        assert state.trouble == "no answer within 50 ms"
        weather.wake()
        await until(lambda: state.is_up, "it is up again")
        assert state.trouble == ""


async def test_a_delete_during_an_outage_reaches_the_server_afterwards() -> None:
    weather = Weather()
    await weather.contents.remember(NAME, DIGEST, DESCRIPTOR)
    async with running(weather) as state:
        weather.hang()
        await until(lambda: not state.is_up, "it is down")
        await state.forget(NAME, [DIGEST])
        await state.remember(NAME, Digest.of(b"other"), DESCRIPTOR)
        weather.wake()
        async with asyncio.timeout(5):
            while weather.contents.descriptor(NAME, DIGEST) is not None:  # noqa: ASYNC110 - sent in the background
                await asyncio.sleep(0.01)
        assert weather.contents.descriptor(NAME, Digest.of(b"other")) is None, "a hint of the outage is dropped"


@pytest.mark.parametrize("error", [None, StorageError("it does not answer")])
async def test_what_was_deleted_before_it_was_remembered_is_forgotten(error: Exception | None) -> None:
    """Another node deletes a blob, and has forgotten it, before this one's word of it is out."""
    weather = Weather()
    blobs = BlobStore(driver := MemoryDriver(), Catalog(driver))
    content = Content(DIGEST, DIGEST, 7)
    await driver.write(layout.blob(DIGEST), b"content")

    async def is_there() -> bool:
        if error is not None:
            raise error
        return await blobs.links.find(NAME, DIGEST) is not None

    async def knows() -> bool:
        return weather.contents.descriptor(NAME, DIGEST) is not None

    async with running(weather) as state:
        telling = BlobStore(driver, Catalog(driver), state)
        await telling.add(NAME, content)
        await until(lambda: not state._confirming, "it has been confirmed")
        assert await knows(), "what is there stays"
        await state.remember(NAME, DIGEST, DESCRIPTOR, is_there)
        await blobs.delete(NAME, DIGEST)
        await until(lambda: not state._confirming, "it has been looked for")
        assert not await knows()


async def test_a_delete_that_a_fail_over_lost_is_sent_again() -> None:
    weather = Weather()
    async with running(weather) as state:
        await until(lambda: weather.calls >= 4, "it was probed")
        await state.forget(NAME, [DIGEST])
        weather.contents.flush()  # the older copy: without our last writes, and with what was deleted
        await weather.contents.remember(NAME, DIGEST, DESCRIPTOR)
        async with asyncio.timeout(5):
            while weather.contents.descriptor(NAME, DIGEST) is not None:  # noqa: ASYNC110 - sent in the background
                await asyncio.sleep(0.01)


async def test_what_is_queued_is_sent_before_a_worker_stops() -> None:
    weather = Weather()
    async with running(weather) as state:
        for number in range(20):
            await state.remember(NAME, Digest.of(b"%d" % number), DESCRIPTOR)
        await state.record_turn("purger", TURN, 60)
    assert await weather.contents.last_turn("purger") == TURN
    assert not weather.open
