"""The circuit breaker (cluster/state/breaker.py) over a store that works, hangs, or fails as the test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from cluster.errors import StateError
from cluster.state.breaker import Breaker, Pace
from cluster.state.store import Refused, Store, UploadHint, WrongServer
from tests.unit.state.clock import UNHURRIED, Unhurried
from tests.unit.state.weather import Weather

pytestmark = pytest.mark.anyio

HINT = UploadHint(7, {"sha256": b"state"})
QUICK = Pace(limit=0.05, probe=0.05, pause=0.02)
RARE = Pace(limit=0.05, probe=3600, pause=0.02)  # what happens is the doing of calls, not of probes
SOON = 5.0  # seconds for what happens by itself


def load(store: Store) -> Awaitable[UploadHint | None]:
    return store.load_hint("upload")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, type[Unhurried]]]:
    """What a call costs is counted in time that passes only while all wait."""
    return UNHURRIED


def now() -> float:
    return asyncio.get_running_loop().time()


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = now() + SOON
    while not condition():
        assert now() < deadline, f"not within {SOON} s: {what}"
        await asyncio.sleep(0.002)


@asynccontextmanager
async def running(breaker: Breaker) -> AsyncIterator[Breaker]:
    """The breaker with its own task."""
    task = asyncio.create_task(breaker.run())
    try:
        yield breaker
    finally:
        task.cancel()
        await asyncio.wait({task})
        await breaker.stop()


@asynccontextmanager
async def closed(weather: Weather, pace: Pace = RARE) -> AsyncIterator[Breaker]:
    async with running(Breaker(weather.connect, pace)) as breaker:
        await until(lambda: breaker.is_closed, "the breaker has closed")
        yield breaker


async def refused(breaker: Breaker) -> float:
    """Seconds that a call took to fail."""
    started = now()
    with pytest.raises(StateError):
        await breaker.call(load)
    return now() - started


async def test_a_closed_breaker_passes_calls_on() -> None:
    weather = Weather()
    await weather.contents.save_hint("upload", HINT)
    async with closed(weather) as breaker:
        assert await breaker.call(load) == HINT


async def test_before_the_first_connection_calls_fail_at_once_however_long_it_takes() -> None:
    weather = Weather()
    weather.hang()
    async with running(Breaker(weather.connect, RARE)) as breaker:
        await until(lambda: weather.attempts == 1, "it connects")
        assert await refused(breaker) == 0
        weather.wake()
        await until(lambda: breaker.is_closed, "it has connected")


async def test_one_hung_call_costs_its_limit_and_every_later_one_nothing() -> None:
    weather = Weather()
    async with closed(weather) as breaker:
        weather.hang()
        assert await refused(breaker) == pytest.approx(RARE.limit)
        assert not breaker.is_closed
        calls = weather.calls
        assert [await refused(breaker) for _ in range(100)] == [0] * 100
        assert weather.calls <= calls + 1, "only the breaker itself may have asked"


async def test_calls_under_way_end_when_one_of_them_opens_the_breaker() -> None:
    weather = Weather()
    async with closed(weather) as breaker:
        weather.hang()
        first = asyncio.create_task(refused(breaker))
        await asyncio.sleep(RARE.limit * 0.6)
        later = [asyncio.create_task(refused(breaker)) for _ in range(10)]
        assert [await call for call in later] == pytest.approx([RARE.limit * 0.4] * 10)
        await first


async def test_a_store_is_dropped_whole_when_the_breaker_opens() -> None:
    weather = Weather()
    async with closed(weather) as breaker:
        (before,) = weather.open
        weather.hang()
        await refused(breaker)
        weather.wake()
        await until(lambda: breaker.is_closed, "it has closed again")
        assert before not in weather.open
        assert len(weather.open) == 1


async def test_the_third_failure_in_a_row_opens_it() -> None:
    weather = Weather()
    async with closed(weather) as breaker:
        for failures in (2, 2, 3):
            weather.error = StateError("refused")
            for _ in range(failures):
                assert breaker.is_closed
                await refused(breaker)
            weather.error = None
            if failures < 3:
                await breaker.call(load)
        assert not breaker.is_closed
        assert breaker.reason == "refused"


async def test_a_server_that_refuses_one_command_is_asked_others() -> None:
    weather = Weather()
    async with closed(weather) as breaker:
        weather.error = Refused("a key of another type")
        for _ in range(10):
            await refused(breaker)
        weather.error = None
        assert breaker.is_closed and weather.attempts == 1


async def test_the_wrong_server_opens_it_at_once_and_is_looked_up_again() -> None:
    weather = Weather()
    async with closed(weather) as breaker:
        weather.error = WrongServer("a replica")
        await refused(breaker)
        assert not breaker.is_closed
        weather.error = None
        await until(lambda: breaker.is_closed, "it has closed again")
        assert weather.attempts == 2


async def test_an_answer_that_nobody_foresaw_is_a_state_error_too() -> None:
    weather = Weather()
    async with closed(weather) as breaker:
        weather.error = ZeroDivisionError("a bug")
        await refused(breaker)


async def test_it_opens_without_any_call_when_a_probe_is_not_answered() -> None:
    weather = Weather()
    async with closed(weather, QUICK) as breaker:
        weather.hang()
        await until(lambda: not breaker.is_closed, "the probe has opened it")
        weather.wake()
        await until(lambda: breaker.is_closed, "it has closed again")


async def test_a_store_that_connects_and_then_answers_too_late_is_not_taken() -> None:
    weather = Weather()
    weather.delay = QUICK.limit * 3
    async with running(Breaker(weather.connect, QUICK)) as breaker:
        await until(lambda: weather.attempts >= 3, "it has tried some times")
        assert not breaker.is_closed
        weather.delay = 0
        await until(lambda: breaker.is_closed, "it has closed")
        assert len(weather.open) == 1


async def test_it_tries_again_for_as_long_as_nobody_answers() -> None:
    weather = Weather()
    weather.error = StateError("connection refused")
    async with running(Breaker(weather.connect, QUICK)) as breaker:
        await until(lambda: weather.attempts >= 5, "it has tried some times")
        assert breaker.reason == "connection refused"
        weather.error = None
        await until(lambda: breaker.is_closed, "it has closed")


async def test_a_store_that_lost_the_last_writes_is_noticed() -> None:
    weather, losses = Weather(), []
    breaker = Breaker(weather.connect, QUICK, on_loss=lambda: losses.append(1))
    async with running(breaker):
        await until(lambda: weather.calls >= 5, "it has been probed some times")
        assert losses == [], "nothing is lost yet"
        weather.contents.flush()
        await until(lambda: len(losses) == 1, "the loss is noticed")
        calls = weather.calls
        await until(lambda: weather.calls >= calls + 3, "it has been probed again")
        assert len(losses) == 1
        assert breaker.is_closed


async def test_a_store_that_comes_back_as_it_was_has_lost_nothing() -> None:
    weather, losses = Weather(), []
    breaker = Breaker(weather.connect, QUICK, on_loss=lambda: losses.append(1))
    async with running(breaker):
        await until(lambda: breaker.is_closed, "it has closed")
        weather.hang()
        await until(lambda: not breaker.is_closed, "it has opened")
        weather.wake()
        await until(lambda: breaker.is_closed, "it has closed again")
        assert losses == []


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["real time"])
async def test_the_server_is_not_blamed_for_a_standstill_of_this_process() -> None:
    weather = Weather()
    async with closed(weather) as breaker:

        async def answered_meanwhile(_: Store) -> str:
            asyncio.get_running_loop().call_soon(time.sleep, RARE.limit * 2)
            await asyncio.sleep(0.001)
            return "answer"

        assert await breaker.call(answered_meanwhile) == "answer"
        assert breaker.is_closed


async def test_a_request_that_is_given_up_takes_nothing_with_it() -> None:
    weather = Weather()
    async with closed(weather) as breaker:
        weather.hang()
        request = asyncio.create_task(breaker.call(load))
        await asyncio.sleep(0)
        request.cancel()
        await asyncio.wait({request})
        weather.wake()
        assert await breaker.call(load) is None
        assert weather.attempts == 1


async def test_stopping_closes_the_store_in_every_state() -> None:
    for hung in (False, True):
        weather = Weather()
        async with closed(weather) as breaker:
            if hung:
                weather.hang()
            call = asyncio.create_task(breaker.call(load))
            await asyncio.sleep(0)
        assert not weather.open
        assert not breaker.is_closed
        await asyncio.wait({call})
        assert hung == isinstance(call.exception(), StateError)
