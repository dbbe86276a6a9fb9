"""A node that could not work with the others does not start, or stops, and names them; one that serves goes on."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.state import keys
from tests.failover.client import Client
from tests.failover.cluster import is_ready
from tests.support.process import SECRET, Node, eventually, free_port, merge
from tests.support.redis import RedisServer

OTHER = "a secret that the others do not have"
NAME = "team/doctor"


class Pair:
    """Two nodes that agree, and a third one that can be given anything."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self._ports = [free_port() for _ in range(3)]
        self.first = stack.enter_context(self.node(0))
        self.second = stack.enter_context(self.node(1))

    def node(self, number: int, **config: Any) -> Node:
        """A node that knows all three; `config` is laid over what it shares with them."""
        urls = [f"http://127.0.0.1:{port}" for port in self._ports]
        shared = {"cluster": {"name": f"node-{number + 1}", "nodes": urls, "workers": 1}}
        node = Node(
            self.directory / f"node-{number + 1}", shared, root=self.directory / "data", port=self._ports[number]
        )
        for section, values in config.items():
            node.config[section] = {**node.config.get(section, {}), **values}
        return node

    def serving(self) -> bool:
        """Whether both take work, and do it."""
        for node in (self.first, self.second):
            with Client([node.url]) as client:
                client.push(NAME, str(time.monotonic()).encode())
        return is_ready(self.first.url) and is_ready(self.second.url)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(tmp_path_factory.mktemp("pair"), stack)


@pytest.fixture
def pair(started: Pair) -> Iterator[Pair]:
    """Whatever a third node does at its start, the two go on serving."""
    assert started.serving()
    yield started
    assert started.serving()


def refusal(node: Node) -> str:
    """What a node says that ends at its start with exit code 1."""
    node.ready = lambda: True  # it never is: only its end is waited for
    try:
        before = len(node.log()) if os.path.exists(node.log_path) else 0
        node.start()
        code, said = node.wait(within=30), node.log()[before:]
    finally:
        node.kill()
    assert code == 1, said
    assert "Traceback" not in said
    return said


@contextmanager
def running(node: Node) -> Iterator[Node]:
    """A node that serves; it is killed at the end, which is faster than a good-bye."""
    node.start()
    try:
        yield node
    finally:
        node.kill()


def run(node: Node, *verb: str) -> subprocess.CompletedProcess[str]:
    """A command with the configuration of a node."""
    command = [sys.executable, "-m", "cluster", *verb, node.config_path]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_node_whose_uploads_the_others_cannot_read_does_not_start(pair: Pair) -> None:
    said = refusal(pair.node(2, http={"secret": OTHER}, cluster={"secrets": [SECRET]}))
    for name in ("node-1", "node-2"):
        assert f"node {name}: it cannot read uploads that this node signs" in said
    assert "cluster.secrets" in said
    assert SECRET not in said and OTHER not in said


def test_a_node_that_cannot_read_the_uploads_of_the_others_does_not_start(pair: Pair) -> None:
    said = refusal(pair.node(2, http={"secret": OTHER}))
    for name in ("node-1", "node-2"):
        assert f"node {name}: this node cannot read uploads that it signs" in said


def test_a_node_on_another_storage_does_not_start(pair: Pair, tmp_path: Path) -> None:
    node = pair.node(2, storage={"filesystem": {"rootdirectory": str(tmp_path)}})
    said = refusal(node)
    for name in ("node-1", "node-2"):
        assert f"node {name}: it works on another storage" in said


def test_a_node_on_a_copy_of_the_storage_of_long_ago_does_not_start(pair: Pair, tmp_path: Path) -> None:
    """A restored backup has the marks of nodes that were, not of those that are."""
    copy = tmp_path / "copy"
    shutil.copytree(pair.directory / "data", copy)
    pair.second.kill()
    pair.second.start()  # it draws a new mark
    said = refusal(pair.node(2, storage={"filesystem": {"rootdirectory": str(copy)}}))
    assert "node node-2: it works on another storage" in said


def test_a_node_with_a_name_that_is_taken_does_not_start_and_leaves_the_other_its_mark(pair: Pair) -> None:
    said = refusal(pair.node(2, cluster={"name": "node-2"}))
    assert "node node-2: it has the name of this node" in said
    assert "cluster.name" in said
    with running(pair.node(2)) as third:  # which looks for the marks of both
        assert is_ready(third.url)


def test_a_cluster_is_made_read_only_and_back_one_node_after_the_other(tmp_path: Path) -> None:
    """As for a backup. A node that must not write leaves no mark, which is no sign of another storage."""
    with ExitStack() as stack:
        pair = Pair(tmp_path, stack)
        for read_only in (True, False):
            for node in (pair.first, pair.second):
                node.stop()
                node.config["storage"]["maintenance"] = {"readonly": {"enabled": read_only}}
                node.start()
                done = run(node, "doctor")
                assert (done.returncode, done.stderr) == (0, "")
                assert {"node-1: agrees", "node-2: agrees"} <= set(done.stdout.splitlines())
        assert pair.serving()


def test_a_read_only_node_with_two_urls_is_one_node(tmp_path: Path) -> None:
    read_only = {"storage": {"maintenance": {"readonly": {"enabled": True}}}}
    with Node(tmp_path) as node:
        node.config = merge(node.config, read_only)
        node.restart()
        node.config["cluster"]["nodes"] = [node.url, node.url + "/"]
        Path(node.config_path).write_text(yaml.safe_dump(node.config), encoding="utf-8")
        done = run(node, "doctor")
        assert (done.returncode, done.stdout.count("agrees")) == (0, 1)


def test_a_node_that_agrees_starts_and_the_doctor_finds_nothing(pair: Pair) -> None:
    with running(pair.node(2)) as third:
        done = run(third, "doctor")
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(done.stdout.splitlines()) == ["node-1: agrees", "node-2: agrees", "node-3: agrees"]


def test_the_doctor_says_what_is_wrong_with_a_configuration_without_starting_it(pair: Pair) -> None:
    node = pair.node(2, http={"secret": OTHER})
    os.makedirs(node.directory, exist_ok=True)
    Path(node.config_path).write_text(yaml.safe_dump(node.config), encoding="utf-8")
    done = run(node, "doctor")
    assert done.returncode == 1
    assert "node-1: disagrees" in done.stdout
    assert "cannot read uploads" in done.stdout
    assert "not reached" in done.stdout  # the third, which does not run


def test_the_doctor_writes_nothing_where_a_node_has_drawn_no_secret_yet(tmp_path: Path) -> None:
    """What it would leave there belongs to whoever asks it, and the node could not read it."""
    node = Node(tmp_path)
    del node.config["http"]["secret"]
    os.makedirs(node.root)
    Path(node.config_path).write_text(yaml.safe_dump(node.config), encoding="utf-8")
    done = run(node, "doctor")
    assert (done.returncode, done.stdout) == (1, "")
    assert "http.secret is empty, and this node has not drawn one yet" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(node.root) == []
    with running(node):
        kept = kept_by(node)
        done = run(node, "doctor")
        assert (done.returncode, done.stderr) == (0, "")
        assert "no other node is known" in done.stdout
        assert kept_by(node) == kept


def kept_by(node: Node) -> list[Path]:
    """What is on its storage, without what its probe writes and removes all the time."""
    return sorted(path for path in Path(node.root).rglob("*") if path.parent.name != "tmp")


def test_the_doctor_tells_of_nodes_that_differ_in_where_uploads_are(pair: Pair) -> None:
    with running(pair.node(2, cluster={"mixed": True})) as third:
        done = run(third, "doctor")
        assert done.returncode == 0
        assert done.stdout.count("this node has cluster.mixed, it has not: Distribution nodes must not serve") == 2


def test_a_node_starts_when_the_others_cannot_be_reached(pair: Pair, tmp_path: Path) -> None:
    """One that is not there, one that takes connections and says nothing, one that is no node."""
    with socket.create_server(("127.0.0.1", 0)) as silent, Node(tmp_path / "other") as other:
        urls = [f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{silent.getsockname()[1]}", other.url + "/v2"]
        began = time.monotonic()
        with running(pair.node(2, cluster={"nodes": urls, "name": "alone", "workers": 1})) as node:
            assert is_ready(node.url)
            assert time.monotonic() - began < 20
            done = run(node, "doctor")
        assert done.returncode == 0
        assert done.stdout.count("not reached") == 3


def test_a_node_starts_beside_one_that_hangs(pair: Pair) -> None:
    pair.second.pause()
    try:
        with running(pair.node(2)) as third:
            assert is_ready(third.url)
    finally:
        pair.second.resume()


def test_a_node_that_serves_stays_ready_when_the_others_change_under_it(pair: Pair) -> None:
    """The one that comes is refused; the ones that are there are not asked to leave."""
    with running(pair.node(2)) as third:
        pair.second.kill()
        pair.second.config["http"]["secret"] = OTHER
        said = refusal(pair.second)
        assert "node node-1" in said and "node node-3" in said
        assert is_ready(pair.first.url) and is_ready(third.url)
        pair.second.config["http"]["secret"] = SECRET
        pair.second.ready = lambda: is_ready(pair.second.url)
        pair.second.start()


@pytest.mark.parametrize("differs", ["http", "storage", "cluster"])
def test_of_nodes_that_start_together_and_disagree_the_last_one_stops(tmp_path: Path, differs: str) -> None:
    """Neither finds the other when it starts: as good as one that does not answer just then."""
    other = {
        "http": {"secret": OTHER},
        "storage": {"filesystem": {"rootdirectory": str(tmp_path)}},
        "cluster": {"name": "node-1"},
    }
    said = {
        "http": "this node cannot read uploads that it signs",
        "storage": "it works on another storage",
        "cluster": "it has the name of this node",
    }
    with ExitStack() as stack:
        trio = Pair(tmp_path / "trio", stack)
        late = trio.node(2, **{differs: other[differs]})
        for node in (trio.first, trio.second):
            node.pause()
        try:
            stack.enter_context(running(late))
        finally:
            for node in (trio.first, trio.second):
                node.resume()
        assert late.wait(within=30) == 0
        assert "this node stops, as the last one that started: node node-1: " + said[differs] in late.log()
        late.ready = lambda: True
        assert said[differs] in refusal(late)
        assert is_ready(trio.first.url) and is_ready(trio.second.url)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@contextmanager
def heard(redis: RedisServer, node: Node) -> Iterator[Node]:
    """A node that serves, and whose heartbeat is in Redis."""
    with running(node):
        name = node.config["cluster"]["name"]
        eventually(lambda: redis.ask("EXISTS", keys.node(name)), 20, f"the heartbeat of {name} is in Redis")
        yield node


def section(server: RedisServer) -> dict[str, Any]:
    return {"addrs": [server.address]}


@pytest.fixture
def beating(redis: RedisServer, tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    """Two nodes that are told of no other: one that serves and is in Redis, one that is not started."""
    redis.ask("FLUSHALL")
    nodes = []
    for name in ("node-1", "node-2"):
        shared = {"redis": section(redis), "cluster": {"name": name}}
        nodes.append(Node(tmp_path / name, shared, root=tmp_path / "data"))
    with heard(redis, nodes[0]):
        yield nodes[0], nodes[1]


def test_a_node_finds_the_others_by_their_heartbeats_too(beating: tuple[Node, Node]) -> None:
    first, second = beating
    second.config["http"]["secret"] = OTHER
    assert "node node-1: this node cannot read uploads that it signs" in refusal(second)
    second.config["http"]["secret"] = SECRET
    second.config["storage"]["filesystem"]["rootdirectory"] = second.directory
    assert "node node-1: it works on another storage" in refusal(second)
    assert is_ready(first.url)


def test_a_node_that_was_killed_starts_again_beside_its_own_last_heartbeat(
    beating: tuple[Node, Node], redis: RedisServer
) -> None:
    _, second = beating
    with heard(redis, second):
        second.kill()
        second.start()
        assert is_ready(second.url)
        done = run(second, "doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "redis: answers"
    assert {"node-1: agrees", "node-2: agrees"} <= set(done.stdout.splitlines())


def test_the_heartbeat_of_a_node_that_is_gone_is_no_reason_and_the_doctor_says_what_it_told(
    beating: tuple[Node, Node], redis: RedisServer
) -> None:
    first, second = beating
    first.kill()
    redis.ask("PERSIST", keys.node("node-1"))  # or a slow machine would forget it before anybody looks
    second.config["http"]["secret"] = OTHER
    with running(second):
        assert is_ready(second.url)
        assert "node node-1: this node cannot read uploads that it signs" in second.log()  # a warning
        done = run(second, "doctor")
    assert done.returncode == 0
    assert "node-1: not reached" in done.stdout


def test_the_doctor_tells_nodes_with_another_redis_and_with_none(
    beating: tuple[Node, Node], tmp_path_factory: pytest.TempPathFactory
) -> None:
    first, second = beating
    os.makedirs(second.directory, exist_ok=True)
    urls = {"nodes": [first.url], "name": "node-2"}

    def doctor(redis: dict[str, Any] | None) -> str:
        config = {**second.config, "cluster": urls, "redis": redis}
        known = {key: value for key, value in config.items() if value is not None}
        Path(second.config_path).write_text(yaml.safe_dump(known), encoding="utf-8")
        done = run(second, "doctor")
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    with RedisServer(tmp_path_factory.mktemp("another")) as another:
        # A node that has just started may not have said so yet.
        eventually(lambda: "it uses another Redis" in doctor(section(another)), 40, "the other Redis is noticed")
        another.pause()
        try:
            said = doctor(section(another))
        finally:
            another.resume()
        assert "redis: not reached: " in said and "another Redis" not in said
    assert "it uses a Redis, this node none" in doctor(None)
    # It may do without for a moment: on a busy machine Redis may take more than the 50 ms that it has.
    eventually(lambda: "Redis" not in doctor(first.config["redis"]), 40, "nothing is said of the same Redis")


def test_a_node_starts_while_redis_hangs(redis: RedisServer, tmp_path: Path) -> None:
    node = Node(tmp_path / "node", {"redis": section(redis)}, root=tmp_path / "data")
    redis.pause()
    try:
        with running(node):
            assert is_ready(node.url)
            assert "Redis cannot be asked for the other nodes" in node.log()
    finally:
        redis.resume()


@contextmanager
def stranger(answer: bytes, *, endless: bool = False) -> Iterator[str]:
    """The URL of somebody who is no node, and says the same to everybody; `endless`: a byte of it at a time."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # the test is over
                    return
                threading.Thread(target=tell, args=(connection,), daemon=True).start()

        def tell(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                connection.recv(4096)
                connection.sendall(answer)
                while endless:
                    time.sleep(0.5)
                    connection.sendall(b"x")

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def _http(report: Any) -> bytes:
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + json.dumps(report).encode()


def test_no_heartbeat_and_no_stranger_keeps_a_node_from_starting(redis: RedisServer, tmp_path: Path) -> None:
    redis.ask("FLUSHALL")
    good = {"name": "x", "url": "http://127.0.0.1:1", "version": "1", "pid": 1, "started": 1.0, "clock": 1.0}
    good |= {"signs": "a", "accepts": ["a"], "storage": "m"}
    odd = {"node": {"name": "odd", "mark": "odd", "accepts": 5}, "redis": {"status": "ok"}}
    with ExitStack() as stack:
        urls = [
            stack.enter_context(stranger(b"SSH-2.0-OpenSSH_9.6\r\n")),
            stack.enter_context(stranger(_http(odd))),
            stack.enter_context(stranger(_http("[" * 60000).replace(b'"', b""))),
            stack.enter_context(stranger(b"HTTP/1.1 200 OK\r\n\r\n", endless=True)),
            "http://a b/",
            "http://127.0.0.1:1/\n",
            5,
        ]
        beats = [{**good, "url": url, "storage": f"of {number}"} for number, url in enumerate(urls)]
        for number, beat in enumerate([*beats, {**good, "clock": "noon"}, {**good, "storage": [1]}, "[" * 100_000]):
            redis.ask("SADD", keys.NODES, f"x{number}")
            redis.ask("SET", keys.node(f"x{number}"), beat if isinstance(beat, str) else json.dumps(beat))
        node = Node(tmp_path / "node", {"redis": section(redis)}, root=tmp_path / "data")
        with running(node):
            assert is_ready(node.url)
            assert "Traceback" not in node.log()
    redis.ask("FLUSHALL")
