"""Locust against a cluster: what it says when a node is killed, and that it says so when something is not kept.

The runs end by a signal once what they are for has happened, so that none depends on how fast the machine is.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from cluster.drill.facts import Kind, Record, Register, load
from cluster.drill.history import Operation, Outcome
from tests.failover.cluster import REPOSITORIES, Cluster
from tests.support.process import Process, eventually, free_port
from tests.support.tools import PROJECT

CONFIG = {"version": "0.1", "storage": {"delete": {"enabled": True}}, "cluster": {"workers": 1}}
WRITES = 25  # what is acknowledged before anything happens, and again afterwards


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("up"), nodes=2, config=CONFIG) as cluster:
        yield cluster


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    started.wait_until_whole()
    return started


LOCUSTFILE = f"{PROJECT}/tests/load/locustfile.py"


class Locust(Process):
    """A run of the locustfile; many of its requests write, or a short run would see few of them."""

    def __init__(self, directory: Path, cluster: Cluster, *arguments: str, file: str = LOCUSTFILE) -> None:
        self.directory = directory
        command = [
            sys.executable,
            "-m",
            "locust",
            "-f",
            file,
            "-u",
            "6",
            "-r",
            "6",
        ]
        command += ["--cluster-data", cluster.data, "--facts", str(directory), "--read-percent", "70"]
        environment = {"PYTHONPATH": PROJECT, "LOCUST_CONFIG": None}
        super().__init__([*command, *arguments], log=f"{directory}/locust.log", env=environment)

    def record(self) -> Record:
        """What its users were told so far."""
        return load(*self.directory.glob("*.jsonl"))

    def wait_for_writes(self, count: int) -> None:
        eventually(lambda: self._exited() or self.record().acknowledged() >= count, 60, f"{count} writes")
        assert not self._exited(), self.tail()

    def interrupt(self) -> int:
        self.send(signal.SIGINT)
        return self.wait(120)

    def verdict(self) -> str:
        (path,) = self.directory.glob("*.verdict")
        return path.read_text()


@pytest.fixture(params=[(), ("--processes", "2")], ids=["one process", "master and workers"])
def processes(request: pytest.FixtureRequest) -> Sequence[str]:
    port = str(free_port())
    return [*request.param, "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port]


def test_a_node_is_killed_under_load_and_everything_is_kept(
    cluster: Cluster, tmp_path: Path, processes: Sequence[str]
) -> None:
    report = ("--headless", "--csv", f"{tmp_path}/load", "--html", f"{tmp_path}/load.html")
    statistics = tmp_path / "load_stats.csv"
    with Locust(tmp_path, cluster, *processes, *report) as locust:
        locust.wait_for_writes(WRITES)
        cluster.nodes[0].kill()
        before = locust.record().acknowledged()
        locust.wait_for_writes(before + WRITES)
        cluster.nodes[0].wait_until_back()
        eventually(lambda: done(locust.record()) >= EVERYTHING, 60, "every kind of fact was made")
        eventually(lambda: "pull image" in statistics.read_text(), 60, "an image was pulled")
        assert locust.interrupt() == 0, locust.tail()
        verdict = locust.verdict()
    assert "0 failed with all tries" in verdict
    assert "0 lost, 0 wrong bytes, 0 came back, 0 not linearizable, 0 not verified" in verdict
    assert "pull image" in statistics.read_text()
    if not processes:  # with several, locust now and then writes a page without its table
        assert "pull image" in (tmp_path / "load.html").read_text()


EVERYTHING = {
    (Kind.BLOB, "put"),
    (Kind.MANIFEST, "put"),
    (Kind.TAG, "put"),
    (Kind.TAG, "compare-and-swap"),
    (Kind.TAG, "read"),
    (Kind.BLOB, "delete"),
    (Kind.MANIFEST, "delete"),
    (Kind.TAG, "delete"),
}


def done(record: Record) -> set[tuple[Kind, str]]:
    """Which operations succeeded on what."""
    return {
        (register.kind, "compare-and-swap" if isinstance(operation.expected, str) else operation.kind)
        for register, operations in record.operations.items()
        for operation in operations
        if operation.outcome is Outcome.DONE
    }


def acknowledged(record: Record, kind: Kind, repository: str) -> list[Register]:
    """What was put, once, into the repositories of that name."""
    return [
        register
        for register, operations in record.operations.items()
        if register.kind is kind and f"/{repository}" in register.name and all(map(is_done, operations))
    ]


def is_done(operation: Operation) -> bool:
    return operation.outcome is Outcome.DONE and operation.kind != "delete"


def two_blobs_and_a_tag(record: Record) -> Sequence[Register]:
    """Two that nobody reads, and one that nobody reads at this moment; none of them while there are fewer."""
    blobs, tags = acknowledged(record, Kind.BLOB, "chunked"), acknowledged(record, Kind.TAG, "app-")
    return (*blobs[:2], tags[0]) if len(blobs) > 1 and tags else ()


def test_what_is_removed_behind_the_registrys_back_is_reported(cluster: Cluster, tmp_path: Path) -> None:
    with Locust(tmp_path, cluster, "--headless") as locust:
        removed, changed, untagged = eventually(lambda: two_blobs_and_a_tag(locust.record()), 60, "what is removed")
        os.unlink(cluster.blob_file(removed.reference))
        with open(cluster.blob_file(changed.reference), "r+b") as file:
            file.write(b"not what was pushed")
        os.unlink(
            f"{cluster.data}/{REPOSITORIES}/{untagged.name}/_manifests/tags/{untagged.reference}/current/link"
        )
        assert locust.interrupt() == 1, locust.tail()
        found = locust.verdict().splitlines()
    for node in cluster.urls:
        assert f"lost: {removed}: {node} does not have it" in found
        assert any(line.startswith(f"wrong bytes: {changed}: {node} gives sha256:") for line in found)
        assert f"lost: {untagged}: {node} does not have it" in found


INTERRUPTED_AT_WORK = """
import os, signal
from tests.load.locustfile import *

pull, left = RegistryUser._pull_blob, [20]

def pull_and_interrupt(user, register):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGINT)
    return pull(user, register)

RegistryUser._pull_blob = pull_and_interrupt
"""


def test_ctrl_c_while_a_user_pulls_ends_in_a_verdict(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "interrupted.py"
    file.write_text(INTERRUPTED_AT_WORK)
    with Locust(tmp_path, cluster, "--headless", file=str(file)) as locust:
        assert locust.wait(120) == 0, locust.tail()
        assert "0 lost, 0 wrong bytes" in locust.verdict()


def test_a_run_in_which_nothing_was_acknowledged_proves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with Locust(tmp_path, cluster, "--headless", "--host", nobody, "-t", "2s") as locust:
        assert locust.wait(120) == 1, locust.tail()
        assert "not verified: nothing was acknowledged" in locust.verdict()


def test_the_web_page_starts_and_stops_a_test(cluster: Cluster, tmp_path: Path) -> None:
    page = f"http://127.0.0.1:{free_port()}"
    port = page.rpartition(":")[2]
    with (
        Locust(tmp_path, cluster, "--web-host", "127.0.0.1", "--web-port", port) as locust,
        httpx.Client(base_url=page, timeout=60, trust_env=False) as client,
    ):
        eventually(lambda: answers(client), 60, "the page is there")
        client.post("/swarm", data={"user_count": 2, "spawn_rate": 2}).raise_for_status()
        locust.wait_for_writes(WRITES)
        client.post("/stop").raise_for_status()
        eventually(lambda: any(path.read_text() for path in tmp_path.glob("*.verdict")), 60, "the verdict")
        assert "0 lost" in locust.verdict()
        locust.send(signal.SIGTERM)
        assert locust.wait(60) == 0, locust.tail()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/stats/requests").status_code == 200
    except httpx.TransportError:
        return False
