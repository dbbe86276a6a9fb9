"""A node that could not work with the others refuses to start and names them; one that serves goes on serving."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.failover.client import Client
from tests.failover.cluster import is_ready
from tests.support.process import SECRET, Node, free_port

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


def test_a_node_starts_when_the_others_cannot_be_reached(pair: Pair, tmp_path: Path) -> None:
    """One that is not there, one that takes connections and says nothing, one that is no node."""
    with socket.create_server(("127.0.0.1", 0)) as silent, Node(tmp_path / "other") as other:
        urls = [f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{silent.getsockname()[1]}", other.url + "/v2"]
        began = time.monotonic()
        with running(pair.node(2, cluster={"nodes": urls, "name": "alone", "workers": 1})) as node:
            assert is_ready(node.url)
            assert time.monotonic() - began < 10
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
