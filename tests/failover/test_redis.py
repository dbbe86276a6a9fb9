"""Redis killed, hung, emptied, failed over while a worker's services use it: what calls cost, and what they say.

Promise P4 for one worker, without the server around it. The figures are printed; the bounds leave room for a busy
machine.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

from cluster.oci.digest import Digest
from cluster.oci.manifest import Descriptor
from cluster.oci.reference import RepositoryName
from cluster.settings import Redis
from cluster.state import keys
from cluster.state.breaker import Pace
from cluster.state.build import build_state
from cluster.state.shared import SharedState
from cluster.state.store import UploadHint
from tests.support.process import eventually
from tests.support.redis import PASSWORD, Certificates, RedisServer, SentinelSet

pytestmark = pytest.mark.anyio

SECRETS = [b"secret"]
NAME = RepositoryName("team/app")
DIGEST = Digest.of(b"content")
DESCRIPTOR = Descriptor("application/octet-stream", DIGEST, 7)
BUDGET = Pace().limit  # seconds
SLACK = 1.0  # seconds that a busy machine may add to one figure, which the median does not see
NOTHING = 0.010  # seconds: half of the calls that cost nothing take less, on any machine
AT_ONCE = 20  # requests

T = TypeVar("T")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as started:
        yield started


@dataclass
class Costs:
    """Seconds that requests waited for Redis."""

    what: str
    seconds: list[float] = field(default_factory=list)

    async def of(self, request: Awaitable[T]) -> T:
        started = time.perf_counter()
        outcome = await request
        self.seconds.append(time.perf_counter() - started)
        return outcome

    def print(self) -> None:
        worst, median = max(self.seconds) * 1000, statistics.median(self.seconds) * 1000
        print(f"{self.what}: {len(self.seconds)} requests, median {median:.2f} ms, worst {worst:.2f} ms")


@asynccontextmanager
async def shared(section: Redis) -> AsyncIterator[SharedState]:
    """A worker's shared state with its task, whether it is up or not."""
    state = build_state(section, SECRETS)
    task = asyncio.create_task(state.run())
    try:
        yield state
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=10)
        assert task.cancelled()


async def until(condition: Callable[[], bool], within: float, what: str) -> float:
    """Seconds until it was so."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < within, f"not within {within} s: {what}"
        await asyncio.sleep(0.005)
    return time.monotonic() - started


async def is_up(state: SharedState, within: float = 10) -> float:
    return await until(lambda: state.is_up, within, "shared state is there")


async def request(state: SharedState, number: int) -> UploadHint | None:
    """What the largest user of Redis does, a PATCH: it looks for a hint, and leaves one."""
    found = await state.load_hint(f"upload {number}")
    await state.save_hint(f"upload {number}", UploadHint(number, {}))
    return found


async def many(state: SharedState, what: str, times: int = 200) -> Costs:
    """Requests one after the other, `AT_ONCE` at a time; none may fail."""
    costs = Costs(what)

    async def one(lane: int) -> None:
        for number in range(lane, times, AT_ONCE):
            found = await costs.of(request(state, number))
            assert found is None or found.offset == number

    await asyncio.gather(*(one(lane) for lane in range(AT_ONCE)))
    costs.print()
    return costs


async def all_known(state: SharedState, *, save: bool = False, times: int = 200) -> None:
    """Return when every hint is known, saving those again that are not; no answer is another's."""
    deadline = time.monotonic() + 10
    unknown = set(range(times))
    while unknown:
        assert time.monotonic() < deadline, f"not known within 10 s: {sorted(unknown)}"
        for number in sorted(unknown):
            hint = await (request(state, number) if save else state.load_hint(f"upload {number}"))
            assert hint is None or hint.offset == number
            if hint is not None:
                unknown.remove(number)
        await asyncio.sleep(0.01)


async def test_a_healthy_server_knows_what_was_saved(server: RedisServer) -> None:
    async with shared(Redis(addrs=[server.address])) as state:
        print(f"up after {await is_up(state):.3f} s")
        await many(state, "healthy, first")
        await many(state, "healthy, again")
        await all_known(state, save=True)


async def test_a_killed_server_costs_nothing_and_is_found_again(server: RedisServer) -> None:
    async with shared(Redis(addrs=[server.address])) as state:
        await is_up(state)
        server.kill()
        costs = await many(state, "killed")
        assert not state.is_up
        assert max(costs.seconds) < SLACK
        assert statistics.median(costs.seconds) < NOTHING
        server.start()
        print(f"up {await is_up(state):.3f} s after its restart")
        await many(state, "restarted empty")
        await all_known(state, save=True)


async def test_a_hung_server_costs_each_request_its_budget_once_and_then_nothing(server: RedisServer) -> None:
    async with shared(Redis(addrs=[server.address])) as state:
        await is_up(state)
        await all_known(state, save=True)
        server.pause()
        try:
            first = Costs("hung, first")
            await asyncio.gather(*(first.of(request(state, number)) for number in range(AT_ONCE)))
            first.print()
            assert max(first.seconds) < BUDGET + SLACK
            assert not state.is_up
            later = await many(state, "hung, later")
            assert max(later.seconds) < SLACK
            assert statistics.median(later.seconds) < NOTHING
            await until(lambda: "no answer in time" in state.trouble, 10, "an attempt to connect has failed")
            assert statistics.median((await many(state, "hung for seconds")).seconds) < NOTHING
        finally:
            server.resume()
        print(f"up {await is_up(state):.3f} s after it woke")
        await all_known(state)
        await many(state, "woken")


async def test_a_server_that_stops_for_a_moment_never_gives_a_wrong_answer(server: RedisServer) -> None:
    async with shared(Redis(addrs=[server.address])) as state:
        await is_up(state)
        await all_known(state, save=True)
        ending = asyncio.get_running_loop().time() + 4
        asked = known = 0
        while asyncio.get_running_loop().time() < ending:
            server.pause()
            calls = [asyncio.create_task(state.load_hint(f"upload {number}")) for number in range(50)]
            await asyncio.sleep(0.004 * (asked % 13))
            server.resume()
            for number, call in enumerate(calls):
                hint = await call
                assert hint is None or hint.offset == number
                known += hint is not None
            asked += 1
        print(f"{asked} short stops: {known} of {asked * 50} hints known, no other one")
        assert known > 0
        await is_up(state)
        await all_known(state, save=True)


async def test_a_server_that_hangs_at_the_start_holds_up_nobody(server: RedisServer) -> None:
    server.pause()
    try:
        async with shared(Redis(addrs=[server.address])) as state:
            costs = await many(state, "hung at the start")
            assert max(costs.seconds) < SLACK
            server.resume()
            print(f"up {await is_up(state):.3f} s after it woke")
    finally:
        server.resume()


async def test_a_worker_stops_while_its_server_hangs(server: RedisServer) -> None:
    async with shared(Redis(addrs=[server.address])) as state:
        await is_up(state)
        server.pause()
        started = time.monotonic()
    try:
        assert time.monotonic() - started < 8  # connections and tasks end without an answer from it
    finally:
        server.resume()


async def test_a_flush_costs_misses_and_nothing_else(server: RedisServer) -> None:
    async with shared(Redis(addrs=[server.address])) as state:
        await is_up(state)
        await many(state, "before")
        server.ask("FLUSHALL")
        assert await state.load_hint("upload 1") is None
        assert max((await many(state, "flushed")).seconds) < BUDGET + SLACK
        await all_known(state, save=True)


async def until_remembered(state: SharedState, server: RedisServer) -> None:
    """Return when the descriptor is in Redis; what is written down there may be lost, on a busy machine too."""
    deadline = time.monotonic() + 10
    while not server.ask("EXISTS", keys.blob(DIGEST)):
        assert time.monotonic() < deadline, "not within 10 s: the descriptor is in Redis"
        await state.remember(NAME, DIGEST, DESCRIPTOR)
        await asyncio.sleep(0.05)


async def test_blobs_deleted_while_it_hung_are_unknown_to_distribution_afterwards(server: RedisServer) -> None:
    async with shared(Redis(addrs=[server.address])) as state:
        await is_up(state)
        await until_remembered(state, server)
        server.pause()
        try:
            costs = Costs("delete while hung")
            for _ in range(5):
                await costs.of(state.forget(NAME, [DIGEST]))
            costs.print()
            assert max(costs.seconds) < BUDGET + SLACK
        finally:
            server.resume()
        members = keys.repository_blobs(NAME)
        gone = await until(lambda: server.ask("SISMEMBER", members, str(DIGEST)) == 0, 10, "the blob is forgotten")
        print(f"forgotten {gone:.3f} s after it woke")


async def test_a_server_that_has_become_a_replica_is_left_and_taken_back(server: RedisServer) -> None:
    async with shared(Redis(addrs=[server.address])) as state:
        await is_up(state)
        server.ask("REPLICAOF", "127.0.0.1", 1)
        await many(state, "a replica")
        await until(lambda: "ReadOnly" in state.trouble, 10, "it is not used any more, for the right reason")
        server.ask("REPLICAOF", "NO", "ONE")
        print(f"up {await is_up(state):.3f} s after it became a master")


async def test_a_hung_server_behind_tls_costs_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("tls")
    files = Certificates(directory / "certificates")
    options = {"tls-cert-file": files.server, "tls-key-file": files.server_key, "tls-ca-cert-file": files.authority}
    client = {"ssl": True, "ssl_ca_certs": files.authority, "password": PASSWORD}
    server = RedisServer(
        directory, {"port": "0", "requirepass": PASSWORD, "tls-auth-clients": "no", **options}, **client
    )
    server.command += ["--tls-port", str(server.port)]
    section = {"addrs": [server.address], "password": PASSWORD, "tls": {"rootcas": [files.authority]}}
    with server:
        async with shared(Redis.model_validate(section)) as state:
            await is_up(state)
            await many(state, "TLS, healthy")
            server.pause()
            try:
                costs = await many(state, "TLS, hung")
                assert max(costs.seconds) < BUDGET + SLACK
                assert statistics.median(costs.seconds) < NOTHING
            finally:
                server.resume()
            print(f"up {await is_up(state):.3f} s after it woke")
            await all_known(state, save=True)


@pytest.mark.parametrize("loss", [signal.SIGKILL, signal.SIGSTOP])
async def test_when_the_master_is_lost_the_sentinels_new_one_is_used(
    tmp_path_factory: pytest.TempPathFactory, loss: signal.Signals
) -> None:
    with SentinelSet(tmp_path_factory.mktemp("sentinel")) as sentinels:
        section = Redis(
            addrs=sentinels.addresses,
            mastername=sentinels.master_name,
            password=PASSWORD,
            sentinelpassword=PASSWORD,
        )
        async with shared(section) as state:
            await is_up(state)
            await all_known(state, save=True)
            sentinels.replicated()
            old = sentinels.master
            os.killpg(old.pid, loss)
            started = time.monotonic()
            costs = await many(state, f"the master got {loss.name}")
            assert max(costs.seconds) < BUDGET + SLACK
            await asyncio.to_thread(eventually, lambda: sentinels.master is not old, 30, "there is a new master")
            print(f"the Sentinels name another master after {time.monotonic() - started:.1f} s")
            await is_up(state, 20)
            print(f"up {time.monotonic() - started:.1f} s after the loss")
            await all_known(state)
            if loss is signal.SIGSTOP:  # it wakes as a master, and is told that it is none
                old.resume()
                await until(lambda: old.replication("role") == "slave", 30, "the old master follows the new one")
            await many(state, "after the fail-over")
            await all_known(state, save=True)
