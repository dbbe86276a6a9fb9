"""What shared state promises (cluster/state/store.py): the twin, an embedded server, every kind of real Redis.

The suite writes through one store and reads through another, as two nodes do; the twin is one store seen twice.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import fakeredis
import pytest
import redis

from cluster.errors import StateError
from cluster.oci.digest import Digest
from cluster.oci.manifest import Descriptor
from cluster.oci.reference import RepositoryName
from cluster.settings import Redis
from cluster.state import keys
from cluster.state.build import open_store, servers
from cluster.state.memory import MemoryStore
from cluster.state.store import Node, Refused, Store, Turn, UploadHint, WrongServer
from tests.support.process import free_port
from tests.support.redis import PASSWORD, Certificates, RedisCluster, RedisServer, SentinelSet

pytestmark = pytest.mark.anyio

SECRETS = [b"the first secret", b"the second secret"]
NAME = RepositoryName("team/app")
OTHER = RepositoryName("team/other")
UUID = "0b1c2d3e-1111-4222-8333-444455556666"
DIGEST = Digest.of(b"content")
ALIAS = Digest.of(b"content", "sha512")
DESCRIPTOR = Descriptor("application/octet-stream", DIGEST, 7)
HINT = UploadHint(7, {"sha256": bytes(range(108)), "sha512": b"\xff\x00" * 100})
NODE = Node(
    name="node-1",
    url="http://127.0.0.1:5001",
    version="1.0",
    pid=4711,
    started=1700000000.25,
    clock=1700000060.5,
    signs="aa",
    accepts=("aa", "bb"),
    storage="a mark",
)


@dataclass
class Backend:
    """One kind of shared state, empty."""

    section: Redis | None
    look: redis.Redis[Any] | redis.RedisCluster[Any] | None
    """Somebody else's client, who sees the keys; None where there are none."""

    def flush(self, store: Store) -> None:
        if isinstance(store, MemoryStore):
            store.flush()
        elif isinstance(self.look, redis.RedisCluster):
            self.look.flushall(target_nodes="primaries")
        elif self.look is not None:
            self.look.flushall()

    def descriptor(self, store: Store, name: RepositoryName, digest: Digest) -> Descriptor | None:
        """What a Distribution node finds of a blob."""
        if isinstance(store, MemoryStore):
            return store.descriptor(name, digest)
        assert self.look is not None
        if not self.look.sismember(keys.repository_blobs(name), str(digest)):
            return None
        found = self.look.hgetall(keys.blob(digest))
        own = self.look.hget(keys.repository_blob(name, digest), "mediatype")
        if b"digest" not in found:
            return None
        media_type = own or found[b"mediatype"]
        return Descriptor(media_type.decode(), Digest.parse(found[b"digest"].decode()), int(found[b"size"]))

    async def open(self, secrets: list[bytes] = SECRETS) -> Store:
        if self.section is None:
            return MemoryStore()
        async with asyncio.timeout(10):
            return await open_store(servers(self.section), secrets)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop that serves."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="module")
def embedded() -> Iterator[Backend]:
    port = free_port()
    server = fakeredis.TcpFakeServer(("127.0.0.1", port))
    server.daemon_threads, server.block_on_close = True, False  # a connection left open must not hold up the end
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        with redis.Redis("127.0.0.1", port) as look:
            yield Backend(Redis(addrs=[f"127.0.0.1:{port}"]), look)
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with RedisServer(tmp_path_factory.mktemp("single")) as server, server.client(db=3) as look:
        yield Backend(Redis(addrs=[server.address], db=3), look)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """TLS alone, certificates on both sides, and a user who may do no more than a registry needs."""
    directory = tmp_path_factory.mktemp("secured")
    files = Certificates(directory / "certificates")
    server = RedisServer(
        directory,
        {
            "port": "0",
            "tls-cert-file": files.server,
            "tls-key-file": files.server_key,
            "tls-ca-cert-file": files.authority,
            "requirepass": PASSWORD,
        },
        password=PASSWORD,
        ssl=True,
        ssl_ca_certs=files.authority,
        ssl_certfile=files.client,
        ssl_keyfile=files.client_key,
    )
    server.command += ["--tls-port", str(server.port)]
    section = Redis(
        addrs=[server.address],
        username="registry",
        password=PASSWORD,
        tls={"certificate": files.client, "key": files.client_key, "rootcas": [files.authority]},  # type: ignore[arg-type]
    )
    with server, server.client() as look:
        patterns = ["~blobs::*", "~repository::*", "~registry-cluster:*"]
        look.execute_command("ACL", "SETUSER", "registry", "on", f">{PASSWORD}", *patterns, "+@all", "-@dangerous")
        yield Backend(section, look)


@pytest.fixture(scope="module")
def sentinel_set(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSet]:
    with SentinelSet(tmp_path_factory.mktemp("sentinel")) as started:
        yield started


def behind_sentinels(started: SentinelSet) -> Redis:
    return Redis(
        addrs=started.addresses,
        mastername=started.master_name,
        password=PASSWORD,
        sentinelusername="default",
        sentinelpassword=PASSWORD,
    )


@pytest.fixture
def sentinel(sentinel_set: SentinelSet) -> Iterator[Backend]:
    with sentinel_set.master.client() as look:
        yield Backend(behind_sentinels(sentinel_set), look)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    started = RedisCluster(tmp_path_factory.mktemp("members"))
    with started, redis.RedisCluster("127.0.0.1", started.servers[0].port) as look:
        yield Backend(Redis(addrs=started.addresses), look)


REAL = ["single", "secured", "sentinel", "members"]


@pytest.fixture(params=["memory", "embedded", *REAL])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "memory":
        return Backend(None, None)
    found: Backend = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["embedded", *REAL])
def server(request: pytest.FixtureRequest) -> Backend:
    """Where there are keys to look at."""
    found: Backend = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def stores(backend: Backend) -> AsyncIterator[tuple[Store, Store]]:
    """The same state as two nodes have it."""
    first = await backend.open()
    second = first if isinstance(first, MemoryStore) else await backend.open()
    backend.flush(first)
    yield first, second
    await first.close()
    await second.close()


@pytest.fixture
async def store(server: Backend) -> AsyncIterator[Store]:
    """What one node has of a server."""
    store = await server.open()
    server.flush(store)
    yield store
    await store.close()


# Descriptors


async def test_a_descriptor_is_recalled_by_another_node(backend: Backend, stores: tuple[Store, Store]) -> None:
    await stores[0].remember(NAME, DIGEST, DESCRIPTOR)
    assert backend.descriptor(stores[1], NAME, DIGEST) == DESCRIPTOR


async def test_what_nobody_remembered_is_not_known(backend: Backend, stores: tuple[Store, Store]) -> None:
    await stores[0].remember(NAME, DIGEST, DESCRIPTOR)
    assert backend.descriptor(stores[1], OTHER, DIGEST) is None
    assert backend.descriptor(stores[1], NAME, Digest.of(b"other content")) is None


async def test_content_is_recalled_by_each_of_its_digests(backend: Backend, stores: tuple[Store, Store]) -> None:
    await stores[0].remember(NAME, ALIAS, DESCRIPTOR)
    assert backend.descriptor(stores[1], NAME, ALIAS) == DESCRIPTOR
    assert backend.descriptor(stores[1], NAME, DIGEST) == DESCRIPTOR


async def test_forgotten_content_is_not_known_in_that_repository(
    backend: Backend, stores: tuple[Store, Store]
) -> None:
    await stores[0].remember(NAME, ALIAS, DESCRIPTOR)
    await stores[0].remember(OTHER, DIGEST, DESCRIPTOR)
    await stores[1].forget(NAME, [DIGEST, ALIAS])
    await stores[1].forget(NAME, [DIGEST, ALIAS])
    assert backend.descriptor(stores[0], NAME, DIGEST) is None
    assert backend.descriptor(stores[0], NAME, ALIAS) is None
    assert backend.descriptor(stores[0], OTHER, DIGEST) in (DESCRIPTOR, None)


async def test_remembering_it_elsewhere_does_not_bring_back_what_was_forgotten(
    backend: Backend, stores: tuple[Store, Store]
) -> None:
    await stores[0].remember(NAME, DIGEST, DESCRIPTOR)
    await stores[0].forget(NAME, [DIGEST])
    await stores[1].remember(OTHER, DIGEST, DESCRIPTOR)
    assert backend.descriptor(stores[0], NAME, DIGEST) is None


# Upload hints


async def test_a_hint_is_loaded_by_another_node(stores: tuple[Store, Store]) -> None:
    await stores[0].save_hint(UUID, HINT)
    assert await stores[1].load_hint(UUID) == HINT


async def test_the_last_hint_replaces_those_before(stores: tuple[Store, Store]) -> None:
    later = replace(HINT, offset=2**40, states={"sha256": b"later"})
    await stores[0].save_hint(UUID, HINT)
    await stores[1].save_hint(UUID, later)
    assert await stores[0].load_hint(UUID) == later


async def test_a_hint_is_gone_when_the_upload_has_ended(stores: tuple[Store, Store]) -> None:
    await stores[0].save_hint(UUID, HINT)
    await stores[1].drop_hint(UUID)
    await stores[1].drop_hint(UUID)
    assert await stores[0].load_hint(UUID) is None


# Nodes


async def test_nodes_that_beat_are_listed_by_name(stores: tuple[Store, Store]) -> None:
    second = replace(NODE, name="node-2", accepts=())
    await stores[1].beat(second)
    await stores[0].beat(NODE)
    assert await stores[1].nodes() == [NODE, second]


async def test_the_last_beat_of_a_node_counts(stores: tuple[Store, Store]) -> None:
    later = replace(NODE, clock=NODE.clock + 5, pid=4712)
    await stores[0].beat(NODE)
    await stores[0].beat(later)
    assert await stores[1].nodes() == [later]


async def test_without_nodes_the_list_is_empty(stores: tuple[Store, Store]) -> None:
    assert await stores[0].nodes() == []


# Turns


async def test_a_turn_is_known_to_the_others(stores: tuple[Store, Store]) -> None:
    assert await stores[1].last_turn("purger") is None
    await stores[0].record_turn("purger", Turn("node-1", 1700000000.5), 60)
    assert await stores[1].last_turn("purger") == Turn("node-1", 1700000000.5)
    assert await stores[1].last_turn("collector") is None


async def test_a_turn_is_forgotten_when_it_is_over(stores: tuple[Store, Store]) -> None:
    await stores[0].record_turn("purger", Turn("node-1", 1700000000.5), 0.05)
    async with asyncio.timeout(20):
        while await stores[1].last_turn("purger") is not None:  # noqa: ASYNC110 - nobody tells when a key expires
            await asyncio.sleep(0.01)


# Failures


async def test_failures_of_all_nodes_are_counted_together(stores: tuple[Store, Store]) -> None:
    assert await stores[0].failures("this") == 0
    for store in (*stores, *stores):
        await store.count_failure("this", 60)
    await stores[0].count_failure("that", 60)
    assert [await store.failures("this") for store in stores] == [4, 4]
    assert await stores[1].failures("that") == 1


async def test_failures_are_forgotten_together_some_time_after_the_first_one(stores: tuple[Store, Store]) -> None:
    await stores[0].count_failure("this", 1)  # seconds: a busy machine gets to the next one within them
    await stores[1].count_failure("this", 3600)
    async with asyncio.timeout(20):
        while await stores[1].failures("this"):  # noqa: ASYNC110 - nobody tells when a key expires
            await asyncio.sleep(0.01)
    await stores[0].count_failure("this", 60)
    assert await stores[1].failures("this") == 1


# Epoch


async def test_a_witness_gets_back_what_it_wrote(stores: tuple[Store, Store]) -> None:
    assert [await stores[0].advance("me", number) for number in (1, 2, 2, 7)] == [0, 1, 2, 2]
    assert await stores[1].advance("another", 1) == 0
    assert await stores[1].advance("me", 8) == 7


async def test_a_witness_notices_that_everything_is_gone(backend: Backend, stores: tuple[Store, Store]) -> None:
    await stores[0].advance("me", 5)
    backend.flush(stores[0])
    assert await stores[0].advance("me", 6) == 0


# What servers keep


async def test_distributions_keys_are_its_own_to_the_letter_and_have_no_ttl(server: Backend, store: Store) -> None:
    assert server.look is not None
    await store.remember(NAME, DIGEST, DESCRIPTOR)
    blob, members = f"blobs::{DIGEST}", f"repository::{NAME}::blobs"
    fields = {b"digest": str(DIGEST).encode(), b"size": b"7", b"mediatype": b"application/octet-stream"}
    assert server.look.hgetall(blob) == fields
    assert server.look.smembers(members) == {str(DIGEST).encode()}
    assert server.look.hgetall(f"{members}::{DIGEST}") == {b"mediatype": b"application/octet-stream"}
    assert [server.look.ttl(key) for key in (blob, members, f"{members}::{DIGEST}")] == [-1, -1, -1]
    await store.forget(NAME, [DIGEST])
    assert server.look.exists(blob, members, f"{members}::{DIGEST}") == 0


async def test_our_own_keys_all_have_a_ttl(server: Backend, store: Store) -> None:
    assert server.look is not None
    await store.save_hint(UUID, HINT)
    await store.beat(NODE)
    await store.record_turn("purger", Turn("node-1", 1.0), 60)
    await store.advance("me", 1)
    await store.count_failure("what somebody typed", 60)
    await store.count_failure("what somebody typed", 60)
    (failures,) = (key.decode() for key in server.look.scan_iter(keys.failures("*")))
    assert "typed" not in failures
    wanted = {
        failures: 60,
        keys.upload(UUID): keys.UPLOAD_TTL,
        keys.NODES: keys.NODES_TTL,
        keys.node("node-1"): keys.NODE_TTL,
        keys.turn("purger"): 60,
        keys.epoch("me"): keys.EPOCH_TTL,
    }
    assert {key.decode() for key in server.look.scan_iter()} == set(wanted)
    for key, ttl in wanted.items():
        assert ttl - 5 < server.look.ttl(key) <= ttl


async def test_a_node_whose_key_has_expired_is_taken_off_the_list(server: Backend, store: Store) -> None:
    assert server.look is not None
    await store.beat(NODE)
    await store.beat(replace(NODE, name="node-2"))
    server.look.delete(keys.node("node-1"))
    assert [node.name for node in await store.nodes()] == ["node-2"]
    assert server.look.smembers(keys.NODES) == {b"node-2"}


async def saved_by_a_node_with(secrets: list[bytes], server: Backend) -> None:
    other = await server.open(secrets)
    await other.save_hint(UUID, HINT)
    await other.close()


async def test_only_a_hint_that_our_nodes_made_for_this_upload_is_taken(server: Backend, store: Store) -> None:
    assert server.look is not None
    await saved_by_a_node_with(SECRETS[::-1], server)
    assert await store.load_hint(UUID) == HINT
    another = UUID.replace("0b", "ff")
    server.look.set(keys.upload(another), server.look.get(keys.upload(UUID)))
    assert await store.load_hint(another) is None
    await saved_by_a_node_with([b"foreign"], server)
    assert await store.load_hint(UUID) is None


@pytest.mark.parametrize("value", [b"", b"\xff\xfe", b"{", b"[]", b"null", b'{"offset": "x"}', b"1"])
async def test_a_value_that_is_none_of_ours_is_not_known(server: Backend, store: Store, value: bytes) -> None:
    assert server.look is not None
    await store.beat(NODE)
    await store.count_failure("this", 60)
    (failures,) = (key.decode() for key in server.look.scan_iter(keys.failures("*")))
    for key in (keys.upload(UUID), keys.turn("purger"), keys.node("node-1"), keys.epoch("me"), failures):
        server.look.set(key, value)
    assert await store.failures("this") in (0, 1)
    assert await store.load_hint(UUID) is None
    assert await store.last_turn("purger") is None
    assert await store.nodes() == []
    assert await store.advance("me", 2) in (0, 1)


async def test_a_node_of_a_later_version_is_listed_by_what_is_known_of_it(server: Backend, store: Store) -> None:
    assert server.look is not None
    await store.beat(NODE)
    text = server.look.get(keys.node("node-1"))
    assert isinstance(text, bytes)
    server.look.set(keys.node("node-1"), json.dumps({**json.loads(text), "shoe size": 43}))
    assert await store.nodes() == [NODE]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{}",
        json.dumps({**asdict(NODE), "clock": "noon"}),
        json.dumps({**asdict(NODE), "started": 10**400}),
        json.dumps({**asdict(NODE), "accepts": 5}),
    ],
    ids=["deep", "empty", "no number", "large number", "no list"],
)
async def test_a_heartbeat_that_is_none_is_left_out(server: Backend, store: Store, text: str) -> None:
    assert server.look is not None
    await store.beat(NODE)
    await store.beat(replace(NODE, name="node-2"))
    server.look.set(keys.node("node-2"), text)
    assert await store.nodes() == [NODE]


@pytest.mark.parametrize("server", REAL, indirect=True)  # the embedded one does not survive an error in EXEC
async def test_a_key_of_another_type_is_a_refusal_and_the_connection_goes_on(server: Backend, store: Store) -> None:
    assert server.look is not None
    server.look.hset(keys.upload(UUID), "a", "b")
    server.look.set(keys.repository_blobs(NAME), "no set")
    for _ in range(10):
        with pytest.raises(Refused, match="wrong kind"):
            await store.load_hint(UUID)
        with pytest.raises(Refused, match="wrong kind"):
            await store.remember(NAME, DIGEST, DESCRIPTOR)
    assert await store.advance("me", 1) == 0


async def test_many_calls_at_once_get_their_own_answers(store: Store) -> None:
    await asyncio.gather(*(store.save_hint(f"upload {n}", UploadHint(n, {})) for n in range(300)))
    hints = await asyncio.gather(*(store.load_hint(f"upload {n}") for n in range(300)))
    assert [hint.offset if hint else None for hint in hints] == list(range(300))


async def test_a_call_that_is_given_up_leaves_no_answer_for_the_next_one(server: Backend) -> None:
    for pause in range(10):
        store = await server.open()
        try:
            await store.save_hint(UUID, HINT)
            call = asyncio.create_task(store.load_hint(UUID))
            for _ in range(pause):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait({call})
            for _ in range(8):
                assert await store.last_turn("purger") is None
        finally:
            await store.close()


async def test_a_closed_store_fails_and_does_not_connect_again(store: Store) -> None:
    await store.close()
    with pytest.raises(StateError):
        await store.load_hint(UUID)
    with pytest.raises(StateError):
        await store.advance("me", 1)


# Who cannot be reached, and who is not the one to ask


async def test_servers_that_cannot_be_reached_are_a_state_error() -> None:
    nobody = f"127.0.0.1:{free_port()}"
    for section in (
        Redis(addrs=[nobody]),
        Redis(addrs=[nobody, nobody], mastername="main"),
        Redis(addrs=[nobody, nobody]),
    ):
        with pytest.raises(StateError):
            await open_store(servers(section), SECRETS)


async def test_wrong_credentials_and_unknown_authorities_are_a_state_error(secured: Backend) -> None:
    assert secured.section is not None
    no_tls = secured.section.tls.model_copy(update={"rootcas": [], "certificate": "", "key": ""})
    system = secured.section.tls.model_copy(update={"rootcas": []})
    for change in ({"password": "wrong"}, {"username": "nobody"}, {"tls": no_tls}, {"tls": system}):
        with pytest.raises(StateError):
            await open_store(servers(secured.section.model_copy(update=change)), SECRETS)


async def test_a_wrong_sentinel_password_is_a_state_error(sentinel: Backend) -> None:
    assert sentinel.section is not None
    with pytest.raises(StateError, match="no Sentinel"):
        await open_store(servers(sentinel.section.model_copy(update={"sentinelpassword": "wrong"})), SECRETS)


@asynccontextmanager
async def connected(section: Redis) -> AsyncIterator[Store]:
    store = await open_store(servers(section), SECRETS)
    try:
        yield store
    finally:
        await store.close()


async def test_a_server_that_has_become_a_replica_is_the_wrong_one(single: Backend) -> None:
    assert single.section is not None
    assert isinstance(single.look, redis.Redis)
    async with connected(single.section) as store:
        single.look.replicaof("127.0.0.1", free_port())
        try:
            with pytest.raises(WrongServer):
                await store.save_hint(UUID, HINT)
            with pytest.raises(WrongServer):
                await store.forget(NAME, [DIGEST])
        finally:
            single.look.replicaof("NO", "ONE")


async def test_a_member_of_a_cluster_does_not_answer_for_the_others(members: Backend) -> None:
    assert members.section is not None
    refused = 0
    async with connected(members.section.model_copy(update={"addrs": members.section.addrs[:1]})) as store:
        for number in range(30):
            try:
                await store.save_hint(f"upload {number}", HINT)
            except WrongServer:
                refused += 1
    assert 0 < refused < 30


async def test_after_a_fail_over_the_new_master_has_what_was_replicated(sentinel_set: SentinelSet) -> None:
    section = behind_sentinels(sentinel_set)
    async with connected(section) as before:
        await before.save_hint(UUID, HINT)
        await before.advance("me", 5)
        sentinel_set.replicated()
        old = sentinel_set.master
        new = await asyncio.to_thread(sentinel_set.fail_over)
        assert new is not old
        for _ in range(servers(section).connections + 1):  # whether it was cut off or turned into a replica
            with pytest.raises(StateError):
                await before.drop_hint(UUID)
    async with connected(section) as after:
        assert await after.load_hint(UUID) == HINT
        assert await after.advance("me", 6) == 5
    assert new.ask("EXISTS", keys.epoch("me")) == 1
