"""`status` and `drain` by HAProxy's socket: what the runbook does with nodes whose names HAProxy alone knows."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster import cli
from cluster.haproxy import BalancerError, Runtime, render
from cluster.settings import Cluster, Haproxy
from tests.support.process import Process, eventually, free_port
from tests.support.tools import require

HOSTS = ("127.0.0.1", "127.0.0.2")


class Ready(BaseHTTPRequestHandler):
    """All that HAProxy wants to know of a node."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """Two nodes that are ready, on one port of two addresses."""
    with ExitStack() as stack:
        port = free_port()
        for host in HOSTS:
            server = stack.enter_context(ThreadingHTTPServer((host, port), Ready))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
        yield port


@pytest.fixture
def socket(port: int) -> Iterator[str]:
    """The stats socket of a HAProxy that has both nodes, and both up."""
    nodes = {f"node-{number}": f"http://{host}:{port}" for number, host in enumerate(HOSTS, 1)}
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = f"{directory}/socket"
        settings = Cluster(haproxy=Haproxy(mode="http", bind=f"127.0.0.1:{free_port()}", socket=path))
        file = Path(directory, "haproxy.cfg")
        file.write_text(render(settings, nodes), encoding="utf-8")
        command = [require("haproxy"), "-db", "-f", str(file)]
        with Process(command, log=f"{directory}/log", ready=lambda: answers(path)):
            eventually(lambda: states(path) == {"node-1": "UP", "node-2": "UP"}, 30, "both nodes are up")
            yield path


def states(socket: str) -> dict[str, str]:
    return {server.name: server.status.split()[0] for server in Runtime(socket).servers()}


def answers(socket: str) -> bool:
    """HAProxy gives its socket the name before it listens there."""
    try:
        return bool(states(socket))
    except BalancerError:
        return False


def test_the_nodes_are_listed_with_address_and_state(
    socket: str, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", "--socket", socket]) == 0
    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines()] == [
        ["node-1", f"127.0.0.1:{port}", "UP"],
        ["node-2", f"127.0.0.2:{port}", "UP"],
    ]


def test_several_nodes_are_drained_at_once(socket: str) -> None:
    assert cli.main(["drain", "--socket", socket, "node-1", "node-2"]) == 0
    eventually(lambda: states(socket) == {"node-1": "DRAIN", "node-2": "DRAIN"}, 10, "both are drained")


@pytest.mark.parametrize("named", ["node-2", "127.0.0.2", "127.0.0.2:{port}"])
def test_a_node_is_drained_by_its_name_or_its_address(socket: str, port: int, named: str) -> None:
    node = named.format(port=port)
    assert cli.main(["drain", "--socket", socket, node]) == 0
    eventually(lambda: states(socket) == {"node-1": "UP", "node-2": "DRAIN"}, 10, "it is drained, and it alone")
    assert cli.main(["drain", "--socket", socket, "--undo", node]) == 0
    eventually(lambda: states(socket) == {"node-1": "UP", "node-2": "UP"}, 10, "it is open again")


def test_who_is_not_known_is_refused_with_who_is(socket: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["drain", "--socket", socket, "10.9.9.9"]) == 1
    assert "no node '10.9.9.9' in HAProxy's configuration, there are: node-1, node-2" in capsys.readouterr().err


def test_without_a_haproxy_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--socket", str(tmp_path / "none")]) == 1
    assert f"{tmp_path}/none: HAProxy cannot be asked" in capsys.readouterr().err
