"""Three nodes behind a real HAProxy, under load: kill, hang, drain, reload. All failed requests are counted.

A client is a thread with one kept connection and a loopback address of its own, so that stickiness tells them
apart; nodes say who they are in a header. Nothing is tried twice: what a stock client would repeat has failed here.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import ipaddress
import json
import os
import select
import shutil
import signal
import socket
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from cluster.auth import accounts, passwords
from cluster.auth.attempts import LIMIT
from cluster.haproxy import BalancerError, Runtime, render
from cluster.settings import Cluster, Dns, Haproxy, Stickiness
from tests.support.process import Node, Process, eventually, free_port
from tests.support.tools import note, require

NODES = ("node-1", "node-2", "node-3")
BLOB = os.urandom(4096)
LARGE = os.urandom(24 << 20)
PULL = "/v2/team/app/blobs/"
Reply = tuple[int, http.client.HTTPMessage, bytes]
CHECKS = 2.5  # seconds after which the health check notices a node that is gone
LATE = 20  # seconds for what promises no time, on a machine that has other things to do


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Balancer(Process):
    """HAProxy in master-worker mode, as a service manager runs it."""

    def __init__(self, directory: str, settings: Cluster, nodes: dict[str, str]) -> None:
        self.settings = settings
        self.port = int(settings.haproxy.bind.rpartition(":")[2])
        self.runtime = Runtime(settings.haproxy.socket)
        path = f"{directory}/haproxy.cfg"
        Path(path).write_text(render(settings, nodes), encoding="utf-8")
        super().__init__(
            [require("haproxy"), "-W", "-f", path], log=f"{directory}/haproxy.log", ready=self._answers
        )

    def reload(self) -> None:
        """As `systemctl reload` does: the master starts a new worker, which takes the sockets over."""
        before = set(self.children())
        self.send(signal.SIGUSR2)
        eventually(lambda: set(self.children()) - before and self._answers(), LATE, "a new worker answers")

    def status(self, name: str) -> str:
        return next(server.status for server in self.runtime.servers() if server.name == name)

    def up(self) -> int:
        return [server.status for server in self.runtime.servers()].count("UP")

    def _answers(self) -> bool:
        try:
            return bool(self.runtime.servers())
        except BalancerError:
            return False


@dataclass
class Running:
    """A cluster under test."""

    directory: str
    nodes: dict[str, Node]
    stack: ExitStack

    def balance(self, *, proxy: bool = False, **haproxy: Any) -> Balancer:
        """Put HAProxy in front of the nodes."""
        place = {"bind": f"127.0.0.1:{free_port()}", "socket": f"{self.directory}/haproxy.sock"}
        settings = Cluster(proxyprotocol=proxy, haproxy=Haproxy(**place, **haproxy))
        urls = {name: node.url for name, node in self.nodes.items()}
        balancer = Balancer(self.directory, settings, urls).start()
        self.stack.callback(balancer.kill)
        return balancer


class HostNode(Node):
    """A node at a loopback address of its own, as one in a container is."""

    def __init__(self, directory: str, config: dict[str, Any], *, host: str, root: str, port: int) -> None:
        self._address = host
        super().__init__(directory, config, root=root, port=port)

    @property
    def host(self) -> str:
        return f"{self._address}:{self.port}"


@contextmanager
def started(config: dict[str, Any] | None = None) -> Iterator[Running]:
    """Nodes on one storage with one secret, and a blob of each size in it."""
    port = free_port()
    with ExitStack() as stack:
        directory = tempfile.mkdtemp(prefix="haproxy-")  # a socket's path must be short
        stack.callback(shutil.rmtree, directory)
        nodes = {}
        for number, name in enumerate(NODES, 1):
            own = {"http": {"headers": {"X-Node": [name]}}, **(config or {})}
            host = f"127.0.1.{number}"
            node = HostNode(f"{directory}/{name}", own, host=host, root=f"{directory}/data", port=port)
            nodes[name] = node.start()
            stack.callback(node.kill)
        for blob in (BLOB, LARGE):
            client = Client(port, host="127.0.1.1")
            assert client.ask("POST", f"{PULL}uploads/?digest={digest(blob)}", blob)[0] == 201
        yield Running(directory, nodes, stack)


@pytest.fixture
def cluster() -> Iterator[Running]:
    with started() as running:
        yield running


_clients: list[Client] = []


@pytest.fixture(autouse=True)
def closed_clients() -> Iterator[None]:
    yield
    while _clients:
        _clients.pop().close()


class Client:
    """One client address with one kept connection."""

    def __init__(self, port: int, number: int = 1, timeout: float = 20, host: str = "127.0.0.1") -> None:
        self._connection = http.client.HTTPConnection(
            host, port, timeout, (f"127.0.{number >> 8}.{number & 255}", 0)
        )
        _clients.append(self)

    def ask(self, method: str, target: str, body: bytes | None = None) -> Reply:
        """One request. After an error the next one begins with a new connection."""
        try:
            self._connection.request(method, target, body, {"Content-Type": "application/octet-stream"})
            return self._reply()
        except BaseException:
            self._connection.close()
            raise

    def ask_late(self, method: str, target: str, body: bytes) -> Reply:
        """One request whose body comes after a pause, in which nobody may answer."""
        self._connection.putrequest(method, target)
        self._connection.putheader("Content-Length", str(len(body)))
        self._connection.endheaders()
        assert select.select([self._connection.sock], [], [], 0.5)[0] == [], "answered before the body was read"
        self._connection.send(body)
        return self._reply()

    def _reply(self) -> Reply:
        answer = self._connection.getresponse()
        return answer.status, answer.msg, answer.read()

    def node(self) -> str:
        """Who answers."""
        return str(self.ask("GET", "/v2/")[1]["X-Node"])

    def close(self) -> None:
        self._connection.close()


@dataclass
class Load:
    """Clients that ask without a pause: pulls, and every eighth request a push."""

    port: int
    clients: int = 6
    good: list[tuple[float, int, str]] = field(
        default_factory=list
    )  # when it ended, by which client, from which node
    failed: list[tuple[float, int, str]] = field(default_factory=list)  # when, which client, what

    def __enter__(self) -> Load:
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(self.clients)
        self._loops = [self._pool.submit(self._loop, number) for number in range(10, 10 + self.clients)]
        self.until_good(50)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for loop in self._loops:
            loop.result()

    def until_good(self, more: int) -> None:
        """Wait for this many more good answers."""
        wanted = len(self.good) + more
        eventually(lambda: len(self.good) >= wanted, 60, f"{more} good answers; failed: {self.failed[-3:]}")

    def first_good(self, since: float) -> dict[int, float]:
        """Seconds until each client's first good answer after a moment."""
        firsts: dict[int, float] = {}
        for when, number, _ in self.good:
            if when > since:
                firsts.setdefault(number, when - since)
        return firsts

    def _loop(self, number: int) -> None:
        client = Client(self.port, number)
        asked = 0
        while not self._stop.is_set():
            asked += 1
            try:
                node = self._push(client) if asked % 8 == 0 else self._pull(client)
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failed.append((time.monotonic(), number, repr(error)))
            else:
                self.good.append((time.monotonic(), number, node))
        client.close()

    @staticmethod
    def _pull(client: Client) -> str:
        status, headers, body = client.ask("GET", PULL + digest(BLOB))
        assert (status, body == BLOB) == (200, True), (status, body[:200])
        return str(headers["X-Node"])

    @staticmethod
    def _push(client: Client) -> str:
        data = os.urandom(512)
        status, headers, body = client.ask("POST", f"{PULL}uploads/?digest={digest(data)}", data)
        assert status == 201, (status, body[:200])
        return str(headers["X-Node"])


class SlowDownload:
    """A large blob, read so slowly that most of it is still to come when the node is told to stop."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, 60, ("127.0.0.200", 0))
        self._connection.request("GET", PULL + digest(LARGE))
        self._answer = self._connection.getresponse()
        self.node = str(self._answer.headers["X-Node"])
        self._data = self._answer.read(1 << 16)

    def read_for(self, seconds: float) -> None:
        """Go on at about 1 MiB/s."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._data += self._answer.read(1 << 16)
            time.sleep(1 / 16)

    def finish(self) -> bytes:
        self._data += self._answer.read()
        self._connection.close()
        return self._data


class NameServer:
    """A DNS server that knows one name, whose addresses change."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    def __enter__(self) -> NameServer:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.place = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stop:
            stop.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(4096)
            if not query:
                return
            end = query.index(b"\0", 12) + 5  # of the question: name, type, class (RFC 1035 section 4.1.2)
            addresses = self.addresses if query[end - 4 : end - 2] == b"\0\1" else []
            header = query[:2] + struct.pack(">5H", 0x8180, 1, len(addresses), 0, 0)
            answers = [
                struct.pack(">HHHIH4s", 0xC00C, 1, 1, 1, 4, socket.inet_aton(address)) for address in addresses
            ]
            self._socket.sendto(header + query[12:end] + b"".join(answers), client)


def test_when_a_node_is_killed_its_clients_are_served_by_others_within_two_seconds(cluster: Running) -> None:
    balancer = cluster.balance()
    with Load(balancer.port) as load:
        victim = load.good[-1][2]
        killed = time.monotonic()
        cluster.nodes[victim].kill()
        eventually(lambda: balancer.status(victim).startswith("DOWN"), LATE, "the health check has noticed")
        noticed = time.monotonic()
        load.until_good(300)
    firsts = load.first_good(killed)
    note(
        f"kill -9 under load: {len(load.failed)} requests failed, first good one after {max(firsts.values()):.2f} s"
    )
    assert len(firsts) == load.clients and max(firsts.values()) < 2
    assert [failure for failure in load.failed if failure[0] > noticed] == []
    # What was under way, and for each client once more, if it comes back while the node is dying: the kernel takes
    # a connection for a listener until that is closed.
    assert len(load.failed) <= 2 * load.clients
    assert victim not in {node for when, _, node in load.good if when > noticed}


def test_clients_of_a_hung_node_are_served_by_others_within_ten_seconds(cluster: Running) -> None:
    balancer = cluster.balance()
    client = Client(balancer.port, 7)
    victim = client.node()
    cluster.nodes[victim].pause()
    started = time.monotonic()
    try:
        with pytest.raises((OSError, http.client.HTTPException)):  # the answer will never come
            client.node()
        assert client.node() != victim
        assert time.monotonic() - started < 15  # 10, and what a busy machine adds
    finally:
        cluster.nodes[victim].resume()
    eventually(lambda: balancer.status(victim) == "UP", LATE, "it is back")


@pytest.mark.parametrize("mode", ["tcp", "http"])
def test_a_node_is_drained_stopped_and_started_again_without_a_failed_request(cluster: Running, mode: str) -> None:
    balancer = cluster.balance(mode=mode)
    download = SlowDownload(balancer.port)
    name = download.node
    node = cluster.nodes[name]
    with Load(balancer.port, clients=8) as load:
        eventually(lambda: name in {served for _, _, served in load.good}, LATE, "it has clients")
        balancer.runtime.drain(name)
        node.send(signal.SIGTERM)
        download.read_for(CHECKS)  # by now a health check would have cut it
        assert hashlib.sha256(download.finish()).hexdigest() == hashlib.sha256(LARGE).hexdigest()
        assert node.wait(within=40) == 0
        stopped = time.monotonic()
        load.until_good(200)
        assert name not in {served for when, _, served in load.good if when > stopped}
        node.start()
        balancer.runtime.ready(name)
        eventually(lambda: balancer.status(name) == "UP", LATE, "it is up")
        fresh = count(100)
        eventually(lambda: Client(balancer.port, next(fresh)).node() == name, LATE, "it gets new clients")
    note(f"drain and restart of a node, {mode}: {len(load.good)} requests, {len(load.failed)} failed")
    assert load.failed == [], stopped


@pytest.mark.parametrize("mode", ["tcp", "http"])
def test_reloading_the_balancer_under_load_fails_no_request(cluster: Running, mode: str) -> None:
    balancer = cluster.balance(mode=mode)
    download = SlowDownload(balancer.port)
    with Load(balancer.port) as load:
        for _ in range(3):
            balancer.reload()
            load.until_good(100)
        fresh = [Client(balancer.port, number).node() for number in range(40, 60)]
    assert len(fresh) == 20
    assert download.finish() == LARGE
    note(f"three reloads, {mode}: {len(load.good)} requests, {len(load.failed)} failed")
    assert load.failed == []


@pytest.mark.parametrize("mode", ["tcp", "http"])
def test_without_a_node_every_answer_is_the_error_of_the_spec_and_the_first_node_ends_that(
    cluster: Running, mode: str
) -> None:
    balancer = cluster.balance(mode=mode)
    for node in cluster.nodes.values():
        node.kill()
    down = lambda: {server.status[:4] for server in balancer.runtime.servers()} == {"DOWN"}  # noqa: E731
    eventually(down, LATE, "all are down")
    client = Client(balancer.port)
    small = b"x" * 12_000  # it fits into HAProxy's buffer: of a larger body, some may meet a reset
    answers = [client.ask(method, f"{PULL}uploads/") for method in ("GET", "HEAD", "GET")]
    answers += [client.ask("POST", f"{PULL}uploads/", small), client.ask_late("POST", f"{PULL}uploads/", small)]
    for status, headers, body in answers:
        assert (status, headers["Content-Type"], headers["Retry-After"]) == (503, "application/json", "5")
        assert headers["Docker-Distribution-Api-Version"] == "registry/2.0"
        if body:  # a HEAD has none
            assert [entry["code"] for entry in json.loads(body)["errors"]] == ["UNAVAILABLE"]
    cluster.nodes["node-2"].start()
    eventually(lambda: balancer.status("node-2") == "UP", LATE, "the node is back")
    assert client.node() == "node-2"


def test_a_client_address_stays_on_one_node(cluster: Running) -> None:
    balancer = cluster.balance()
    served = {number: {Client(balancer.port, number).node() for _ in range(10)} for number in range(20, 29)}
    assert {len(nodes) for nodes in served.values()} == {1}
    assert Counter(node for nodes in served.values() for node in nodes) == dict.fromkeys(NODES, 3)


def test_one_upload_goes_through_a_different_node_with_each_request(cluster: Running) -> None:
    client = Client(cluster.balance(mode="http").port)
    data = os.urandom(100_000)
    _, started, _ = client.ask("POST", f"{PULL}uploads/")
    status, patched, body = client.ask("PATCH", started["Location"], data)
    assert status == 202, body
    status, finished, body = client.ask("PUT", f"{patched['Location']}&digest={digest(data)}")
    assert status == 201, body
    assert {answer["X-Node"] for answer in (started, patched, finished)} == set(NODES)
    assert client.ask("GET", PULL + digest(data))[2] == data


def test_the_standby_works_only_while_the_active_node_is_away(cluster: Running) -> None:
    balancer = cluster.balance(backup=["node-2", "node-3"], stickiness=Stickiness(enabled=True))
    client = Client(balancer.port)
    assert client.node() == "node-1"
    cluster.nodes["node-1"].kill()
    eventually(lambda: balancer.status("node-1").startswith("DOWN"), LATE, "the active node is down")
    client.close()
    assert client.node() == "node-2"
    cluster.nodes["node-1"].start()
    eventually(lambda: balancer.status("node-1") == "UP", LATE, "the active node is back")
    client.close()
    assert client.node() == "node-1"


CLIENT_HELLO = b"\x16\x03\x01\x00\xc4\x01\x00\x00\xc0\x03\x03" + bytes(189)
"""How a client begins that tries TLS first, as docker does with a registry that it may talk to without."""


@pytest.mark.parametrize("mode", ["tcp", "http"])
def test_with_the_proxy_protocol_nodes_see_the_address_of_the_client(mode: str) -> None:
    with started({"cluster": {"workers": 1, "proxyprotocol": True}}) as running:
        balancer = running.balance(mode=mode, proxy=True)
        client = Client(balancer.port, 77)
        node = running.nodes[client.node()]
        status, _, body = client.ask("GET", PULL + digest(LARGE))
        assert (status, body == LARGE) == (200, True), (status, body[:300])
        eventually(lambda: "127.0.0.77 - - [" in node.log(), LATE, "the client's address is in the log")
        with socket.create_connection(("127.0.0.1", balancer.port), timeout=10) as tries_tls_first:
            tries_tls_first.sendall(CLIENT_HELLO)
            assert b" 400 " in tries_tls_first.recv(100), "an answer at once, behind the PROXY header too"
        eventually(lambda: balancer.up() == 3, LATE, "checks pass")


@pytest.mark.parametrize("mode", ["tcp", "http"])
def test_nodes_that_dns_tells_of_are_found_and_new_ones_too(cluster: Running, mode: str) -> None:
    with NameServer() as names:
        port = cluster.nodes["node-1"].port
        dns = Dns(name="nodes.example.internal", port=port, count=5, resolver=names.place)
        balancer = cluster.balance(mode=mode, balance="leastconn", dns=dns)
        assert Client(balancer.port).ask("GET", "/v2/")[0] == 503  # it runs, and waits for them

        fresh = count(10)  # client addresses that no stick-table knows

        def found() -> set[str]:
            return {Client(balancer.port, next(fresh)).node() for _ in range(12)}

        names.addresses = ["127.0.1.1", "127.0.1.2"]
        eventually(lambda: balancer.up() == 2, LATE, "two of five servers have an address")
        assert found() == {"node-1", "node-2"}
        names.addresses.append("127.0.1.3")
        eventually(lambda: "node-3" in found(), LATE, "it gets work")


GUESSERS = "127.0.0.71"


@contextmanager
def guarded(tmp_path: Path, **haproxy: Any) -> Iterator[Callable[..., int]]:
    """A node with an account, behind HAProxy in mode http: the status for a password, from a client address.

    As in compose.yml, clients may come from the networks in which the node's proxies are.
    """
    accounts.put(f"{tmp_path}/htpasswd", "alice", passwords.make(b"right", passwords.LOWEST_COST))
    protected = {"auth": {"htpasswd": {"realm": "r", "path": f"{tmp_path}/htpasswd"}}}
    ours = {"cluster": {"workers": 1, "trustedproxies": ["127.0.0.0/8"]}}
    with Node(tmp_path / "node", {**protected, **ours}) as node, tempfile.TemporaryDirectory() as directory:
        place = {"bind": f"127.0.0.1:{free_port()}", "socket": f"{directory}/haproxy.sock"}  # a short path
        settings = Cluster(haproxy=Haproxy(**place, mode="http", **haproxy))
        with Balancer(directory, settings, {"node-1": node.url}) as balancer:
            eventually(lambda: balancer.up() == 1, LATE, "the node gets clients")

            def login(password: str, address: str, **headers: str) -> int:
                connection = http.client.HTTPConnection("127.0.0.1", balancer.port, 20, (address, 0))
                token = base64.b64encode(f"alice:{password}".encode()).decode()
                try:
                    connection.request("GET", "/v2/", headers={"Authorization": f"Basic {token}", **headers})
                    return connection.getresponse().status
                finally:
                    connection.close()

            yield login


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
def test_a_guesser_gets_no_new_address_from_a_header_and_shuts_out_nobody_elsewhere(
    tmp_path: Path, header: str
) -> None:
    value = {"X-Forwarded-For": "203.0.113.{}", "Forwarded": "for=203.0.113.{}"}[header]
    with guarded(tmp_path) as login:
        told = [login(f"wrong {n}", GUESSERS, **{header: value.format(n)}) for n in range(LIMIT + 3)]
        assert told == [401] * LIMIT + [429] * 3
        assert login("right", GUESSERS) == 429
        assert login("right", "127.0.0.72", **{header: value.format(1)}) == 200
        assert login("right", "127.0.0.72", **{header: value.format(0).replace("203.0.113.0", GUESSERS)}) == 200


def test_a_proxy_in_front_of_haproxy_tells_whose_request_it_is(tmp_path: Path) -> None:
    with guarded(tmp_path, proxies=[ipaddress.ip_network(f"{GUESSERS}/32")]) as login:
        for number in range(LIMIT):
            assert login(f"wrong {number}", GUESSERS, **{"X-Forwarded-For": "203.0.113.1"}) == 401
        assert login("right", GUESSERS, **{"X-Forwarded-For": "203.0.113.1"}) == 429
        assert login("right", GUESSERS, **{"X-Forwarded-For": "203.0.113.2"}) == 200
        assert login("right", "127.0.0.72", **{"X-Forwarded-For": "203.0.113.1"}) == 200
