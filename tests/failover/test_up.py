"""`registry-cluster up` and its operations: cluster.json is true, what dies comes back, nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.haproxy import Runtime
from tests.failover.client import Client, Ledger, Refused, Unanswered, digest_of
from tests.failover.cluster import BACK, Cluster
from tests.failover.conftest import CONFIG
from tests.failover.pusher import Crowd
from tests.support.process import Process, eventually, free_port, listening, members
from tests.support.tools import PROJECT, note, require, require_root

NAME = "team/up"


def run(cluster: Cluster, verb: str, *arguments: str, within: float = 120) -> subprocess.CompletedProcess[str]:
    """An operation on the cluster, as a person types it."""
    return subprocess.run(
        cluster.verb(verb, *arguments), capture_output=True, text=True, timeout=within, check=False
    )


class Traffic:
    """Clients with addresses of their own that push and pull through the balancer, and never try twice."""

    def __init__(self, cluster: Cluster, count: int) -> None:
        self.good = 0
        self.failed: list[str] = []
        self._clients = [Client([cluster.endpoint], address=f"127.0.0.{20 + n}") for n in range(count)]
        self._blob = b"pulled again and again" * 999
        self._clients[0].push(NAME, self._blob)
        self._crowd = Crowd(count, self._step)

    def _step(self, number: int, count: int) -> None:
        client = self._clients[number]
        try:
            if count % 4 == 0:
                client.push(NAME, f"{number} {count} {time.monotonic()}".encode() * 500, chunk=5000)
            else:
                assert client.pull(NAME, digest_of(self._blob)) == self._blob
            self.good += 1
        except (Unanswered, Refused) as error:
            self.failed.append(f"{time.monotonic():.3f} {error}")
        time.sleep(0.01)

    def until_good(self, more: int) -> None:
        wanted = self.good + more
        eventually(lambda: self.good >= wanted, 60, f"{more} good rounds; failed: {self.failed[-3:]}")

    def __enter__(self) -> Traffic:
        self._crowd.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._crowd.__exit__(*error)
        for client in self._clients:
            client.close()


def test_cluster_json_says_what_runs(cluster: Cluster) -> None:
    state = cluster.state()
    assert set(state) == {"endpoint", "nodes", "redis", "balancer"}
    assert state["endpoint"] == f"http://127.0.0.1:{cluster.port}"
    assert [node["name"] for node in state["nodes"]] == ["node-1", "node-2", "node-3"]
    for node in cluster.nodes:
        assert os.getpgid(node.leader()) == node.leader()
        with Client([node.url]) as client:
            health = json.loads(client.ask("GET", "/healthz").expect(200).body)
        assert health["node"]["name"] == node.name
    assert state["redis"]["kind"] == "redis-server"
    assert state["balancer"]["kind"] == "haproxy"
    for pid, program in ((state["redis"]["pid"], "redis-server"), (state["balancer"]["pid"], "haproxy")):
        assert os.getpgid(pid) == pid
        assert program in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
    assert listening(int(state["redis"]["url"].rpartition(":")[2]))
    assert f"bind 127.0.0.1:{cluster.port}" in Path(state["balancer"]["config"]).read_text(encoding="utf-8")


PARTS: dict[str, Callable[[Cluster], int | None]] = {
    "a node": lambda cluster: cluster.nodes[1].pid,
    "Redis": lambda cluster: cluster.redis_pid,
    "HAProxy": lambda cluster: cluster.balancer_pid,
}


@pytest.mark.parametrize("part", PARTS)
def test_what_dies_is_started_again_and_cluster_json_follows(cluster: Cluster, ledger: Ledger, part: str) -> None:
    pid_of = PARTS[part]
    before = cluster.pids()
    old = pid_of(cluster) or 0
    os.killpg(old, signal.SIGKILL)
    killed = time.monotonic()
    eventually(lambda: pid_of(cluster) != old, 20, "cluster.json no longer names the dead process")
    new = eventually(lambda: pid_of(cluster), BACK, "cluster.json names another") or 0
    cluster.wait_until_whole()
    note(f"{part} killed: all well again after {time.monotonic() - killed:.1f} s")
    eventually(lambda: not members(old), 20, "nothing is left of what died")
    assert members(new)
    assert set(cluster.pids()) == {*before, new} - {old}
    with Client([cluster.endpoint]) as client:
        ledger.blobs.append((NAME, client.push(NAME, f"after the death of {part}".encode())))


def test_all_nodes_killed_at_once_come_back_with_everything_and_an_upload_goes_on(
    cluster: Cluster, ledger: Ledger
) -> None:
    data = os.urandom(200_000)
    with Client(cluster.urls) as client:
        ledger.blobs.append((NAME, client.push(NAME, b"from before")))
        upload = client.begin(NAME)
        client.patch(upload, data[:120_000]).expect(202)
        pids = [node.leader() for node in cluster.nodes]
        for pid in pids:
            os.killpg(pid, signal.SIGKILL)
        killed = time.monotonic()
        eventually(lambda: not any(map(members, pids)), 20, "all are dead")
        cluster.wait_until_whole()
        note(f"all nodes killed at once: all well again after {time.monotonic() - killed:.1f} s")
    with Client(cluster.urls, start=2) as client:
        assert client.status(upload).expect(204).position == 120_000
        client.patch(upload, data[120_000:]).expect(202)
        client.commit(upload, digest_of(data)).expect(201)
        ledger.blobs.append((NAME, digest_of(data)))


def test_a_rolling_restart_under_load_fails_no_request(cluster: Cluster) -> None:
    # The test before has killed all nodes, and HAProxy takes each back after two good checks only.
    eventually(lambda: statuses(cluster) == {"UP"}, 20, "HAProxy gives work to every node")
    before = [node.leader() for node in cluster.nodes]
    data = os.urandom(500_000)
    with Traffic(cluster, 5) as traffic, Client([cluster.endpoint]) as client:
        traffic.until_good(20)
        upload = client.begin(NAME)
        client.patch(upload, data[:300_000]).expect(202)
        started = time.monotonic()
        done = run(cluster, "restart", "--rolling")
        assert cluster.log().count("has stopped; starting it again") == 3
        seconds = time.monotonic() - started
        assert done.returncode == 0, done.stderr
        client.patch(upload, data[300_000:]).expect(202)
        client.commit(upload, digest_of(data)).expect(201)
        traffic.until_good(20)
    note(f"rolling restart of 3 nodes in {seconds:.0f} s: {traffic.good} good rounds, {len(traffic.failed)} failed")
    assert traffic.failed == []
    assert not set(before) & {node.leader() for node in cluster.nodes}
    assert statuses(cluster) == {"UP"}  # none is left drained


def test_a_rolling_restart_waits_until_another_node_gets_clients(cluster: Cluster) -> None:
    """The nodes run, but HAProxy sends clients to the first one alone."""
    balancer, others = Runtime(cluster.state()["balancer"]["socket"]), [node.name for node in cluster.nodes[1:]]
    first, said = cluster.nodes[0].leader(), Path(cluster.directory, "restart.log")
    with Traffic(cluster, 2) as traffic:
        for name in others:
            balancer.drain(name)
        with Process(cluster.verb("restart", "--rolling"), log=str(said)) as restart:
            try:
                eventually(lambda: "node-1: waiting until another node gets" in restart.log(), 20, "it waits")
                traffic.until_good(10)
                assert cluster.nodes[0].pid == first
            finally:
                for name in others:
                    balancer.ready(name)
            assert restart.wait(within=120) == 0, restart.log()
        traffic.until_good(10)
    assert traffic.failed == []
    assert cluster.nodes[0].leader() != first


def statuses(cluster: Cluster) -> set[str]:
    """How HAProxy sees the nodes."""
    return {server.status for server in Runtime(cluster.state()["balancer"]["socket"]).servers()}


def test_a_drained_node_gets_no_new_client_until_that_is_undone(cluster: Cluster) -> None:
    node = cluster.nodes[1]

    def served(first: int) -> int:
        """How many of twelve new clients came to the node."""
        names = []
        for number in range(first, first + 12):
            with Client([cluster.endpoint], address=f"127.0.1.{number}") as client:
                names.append(json.loads(client.ask("GET", "/healthz").body)["node"]["name"])
        return names.count(node.name)

    assert served(1) > 0
    with Traffic(cluster, 4) as traffic:
        done = run(cluster, "drain", node.name)
        assert (done.returncode, done.stdout) == (0, "node-2: gets no new client, until `drain --undo`\n")
        assert served(1) == served(21) == 0  # nor those that used to come here
        done = run(cluster, "status")
        assert done.returncode == 0
        assert [line.count("  draining  ") for line in done.stdout.splitlines()] == [0, 0, 1, 0, 0, 0]
        done = run(cluster, "drain", node.name, "--undo")
        assert (done.returncode, done.stdout) == (0, "node-2: gets clients again\n")
        eventually(lambda: served(41) > 0, 20, "it gets clients again")
        traffic.until_good(10)
    assert traffic.failed == []


def test_operations_on_a_node_that_is_not_there_name_those_that_are(cluster: Cluster) -> None:
    done = run(cluster, "drain", "node-7")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no node 'node-7'" in done.stderr
    assert "node-1, node-2, node-3" in done.stderr


def test_status_has_a_line_for_every_part_also_for_one_that_hangs(cluster: Cluster) -> None:
    lines = {line.split()[0]: line for line in run(cluster, "status").stdout.splitlines()}
    assert set(lines) == {"endpoint", "node-1", "node-2", "node-3", "redis", "balancer"}
    for node in cluster.nodes:
        assert f"{node.url}  pid {node.pid}  ready  version " in lines[node.name]
        assert "uploads 0  storage ok" in lines[node.name]
    assert f"pid {cluster.redis_pid}" in lines["redis"]
    with cluster.nodes[2].paused():
        done = run(cluster, "status")
    assert done.returncode == 1
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "does not answer" in lines["node-3"]
    assert "  ready  " in lines["node-1"]


def test_operations_without_a_cluster_say_how_to_get_one(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    for verb in (["status"], ["drain", "node-1"], ["restart", "--rolling"]):
        done = run(cluster, *verb)
        assert done.returncode == 1
        assert "registry-cluster up" in done.stderr
        assert "Traceback" not in done.stderr


def test_ctrl_c_stops_everything_and_the_next_start_has_everything(tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=2, config=CONFIG) as cluster:
        with Client(cluster.urls) as client:
            digest = client.push(NAME, b"kept over a restart")
            upload = client.begin(NAME)
            client.patch(upload, b"the first half, ").expect(202)
        groups, socket_ = cluster.pids(), cluster.state()["balancer"]["socket"]
        cluster.send(signal.SIGINT)
        assert cluster.wait(within=60) == 0
        eventually(lambda: not any(map(members, groups)), 5, "nothing outlives what has started it")
        assert cluster.pids() == []
        assert not os.path.exists(socket_)
        done = run(cluster, "status")
        assert (done.returncode, done.stdout.count("stopped")) == (1, 5)
        for verb in (["restart", "--rolling"], ["drain", "node-1"]):
            done = run(cluster, *verb)
            assert done.returncode == 1
            assert "is not running; start the cluster with `registry-cluster up`" in done.stderr
        cluster.start()
        with Client(cluster.urls) as client:
            assert client.pull(NAME, digest) == b"kept over a restart"
            client.patch(upload, b"the second").expect(202)
            client.commit(upload, digest_of(b"the first half, the second")).expect(201)
        # Nor does anything stay when nobody is there to stop it.
        groups = cluster.pids()
        os.kill(cluster.pid, signal.SIGKILL)
        eventually(lambda: not any(map(members, groups)), BACK, "everything ends with what has started it")


def test_ctrl_c_while_it_starts_is_no_failure_and_stops_everything(tmp_path: Path) -> None:
    words = ["up", "--nodes", "2", "--port", str(free_port()), "--data", str(tmp_path)]
    up = subprocess.Popen([sys.executable, "-m", "cluster", *words], cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    state = tmp_path / "cluster.json"
    try:
        eventually(
            lambda: state.exists() and json.loads(state.read_text())["redis"]["pid"], 30, "Redis was started"
        )
        group = json.loads(state.read_text())["redis"]["pid"]
        up.send_signal(signal.SIGINT)
        _, said = up.communicate(timeout=60)
    finally:
        up.kill()
    assert (up.returncode, "did not become ready" in said) == (0, False), said
    eventually(lambda: not members(group), 5, "nothing outlives what has started it")


def test_a_port_that_is_taken_is_said_before_anything_is_started(tmp_path: Path) -> None:
    port, directory = free_port(), tmp_path / "data"
    with socket.create_server(("127.0.0.1", port)):
        done = run(Cluster(directory, port=port), "up", "--port", str(port))
    assert done.returncode == 1
    assert f"port {port} is taken" in done.stderr
    assert not directory.exists()
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("data/run/*"))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("a b", 'b/data", wanted a path of letters, digits, ".", "_", "-" and "/"'),
        ("file", "file/data: cannot be used: Not a directory"),
    ],
)
def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path, place: str, said: str) -> None:
    (tmp_path / "file").touch()
    done = run(Cluster(tmp_path / place), "up", "--tls", "--port", str(free_port()))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith("registry-cluster: --data") and said in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", "0"], "found '0', wanted a number of nodes from 1 to 100"),
        (["--nodes", "many"], "found 'many', wanted a number of nodes"),
        (["--port", "99999"], "found '99999', wanted a port from 1 to 65535"),
    ],
)
def test_a_number_that_cannot_be_is_refused(tmp_path: Path, words: list[str], said: str) -> None:
    done = run(Cluster(tmp_path), "up", *words)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("config", "problems"),
    [
        ({"storage": "inmemory"}, ["storage: found inmemory, wanted filesystem"]),
        ({"http": {"draintimeout": "soon"}, "log": {"level": "loud"}}, ["http.draintimeout: found", "log.level: "]),
    ],
)
def test_what_is_wrong_with_the_configuration_is_said_once_before_anything_is_started(
    tmp_path: Path, config: dict[str, object], problems: list[str]
) -> None:
    base = tmp_path / "base.yml"
    base.write_text(json.dumps({"version": "0.1", **config}))
    done = run(Cluster(tmp_path), "up", "--port", str(free_port()), "--config", str(base))
    assert done.returncode == 1
    assert [done.stderr.count(problem) for problem in problems] == [1] * len(problems), done.stderr
    assert len(done.stderr.splitlines()) == len(problems)
    assert not (tmp_path / "data").exists()


def test_a_node_that_cannot_start_is_named_with_what_it_said_last(tmp_path: Path) -> None:
    """Its configuration is right; only the node itself finds the key that is not there."""
    accounts = {"htpasswd": {"realm": "r", "path": "/proc/no/such/place"}}
    base = tmp_path / "base.yml"
    base.write_text(json.dumps({"version": "0.1", "auth": accounts}))
    words = ["--nodes", "1", "--port", str(free_port()), "--config", str(base)]
    done = run(Cluster(tmp_path), "up", *words)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert f"node-1 does not start: see {tmp_path}/data/run/node-1.log, which ends with: " in last
    assert "/proc/no/such/place" in last


def test_a_second_cluster_on_the_same_directory_is_refused_and_harms_nothing(cluster: Cluster) -> None:
    before = cluster.state()
    done = run(cluster, "up", "--port", str(free_port()))
    assert done.returncode == 1
    assert "is running" in done.stderr
    assert cluster.state() == before
    assert cluster.is_whole()


def tries_of(cluster: Cluster, digest: str) -> int:
    """How often a new client must ask for a blob: at most twice.

    The kernel shares a port out, but hands nothing over: who waits in the queue of a node that ends is cut off.
    """
    with Client([cluster.endpoint]) as client:
        for tries in (1, 2):
            try:
                assert client.pull(NAME, digest) == b"by way of one port that two nodes share"
            except Unanswered:
                continue
            return tries
    raise AssertionError("cut off twice")


def test_without_redis_server_and_haproxy_it_goes_on_with_less_and_says_so(tmp_path: Path) -> None:
    """An empty directory stands in place of /usr/sbin, in a mount namespace of its own, and PATH leads nowhere."""
    require_root("a mount namespace")
    empty = tmp_path / "empty"
    empty.mkdir()
    script = f'{require("mount")} --bind {empty} /usr/sbin && exec "$@"'
    around = [require("unshare"), "--mount", require("sh"), "-c", script, "sh"]
    with Cluster(tmp_path / "up", nodes=2, config=CONFIG, around=around, env={"PATH": str(empty)}) as cluster:
        state, said = cluster.state(), cluster.log()
        assert (state["redis"]["kind"], state["balancer"]["kind"]) == ("embedded", "reuseport")
        assert "redis-server is not installed" in said and "haproxy is not installed" in said
        with Client([cluster.endpoint]) as client:
            digest = client.push(NAME, b"by way of one port that two nodes share")
        cluster.nodes[0].kill()
        assert sum(tries_of(cluster, digest) for _ in range(5)) <= 6
        cluster.wait_until_whole()
        done = run(cluster, "drain", "node-1")
        assert (done.returncode, "no HAProxy" in done.stderr) == (1, True)
        done = run(cluster, "restart", "--rolling")
        assert done.returncode == 0, done.stderr
