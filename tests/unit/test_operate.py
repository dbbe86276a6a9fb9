"""Operations on a cluster by its cluster.json (cluster/operate.py): what is said when not all is well."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import operate
from cluster.errors import ConfigError
from tests.support.answers import answering


def write(directory: Path, url: str, *pids: int | None) -> str:
    """A cluster.json with a node for each pid, and no HAProxy; its directory."""
    state = {
        "endpoint": "http://127.0.0.1:5000",
        "nodes": [{"name": f"node-{n}", "url": url, "pid": pid} for n, pid in enumerate(pids, 1)],
        "redis": {"kind": "redis-server", "url": "redis://127.0.0.1:6379", "pid": pids[0]},
        "balancer": {"kind": "reuseport", "pid": None, "config": None},
    }
    (directory / "cluster.json").write_text(json.dumps(state))
    return str(directory)


@pytest.fixture
def gone() -> int:
    """The pid of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


REPORT = {
    "ready": True,
    "node": {"version": "1"},
    "uploads": 0,
    "storage": {"status": "ok"},
    "redis": {"status": "ok"},
}


@pytest.mark.parametrize(
    ("status", "body", "said", "is_well"),
    [
        (200, json.dumps(REPORT).encode(), "ready  version 1  uploads 0  storage ok", True),
        (503, json.dumps({**REPORT, "ready": False}).encode(), "not ready  version 1", False),
        (502, b"<html>Bad Gateway</html>", "what answers there is no node", False),
        (500, b"\xff", "what answers there is no node", False),
        (200, b"[]", "what answers there is no node", False),
        (200, b"{}", "what answers there is no node", False),
    ],
)
def test_status_says_what_answers(tmp_path: Path, status: int, body: bytes, said: str, is_well: bool) -> None:
    with answering(status, body) as url:
        lines, found = operate.status(write(tmp_path, url, os.getpid()))
    assert f"node-1    {url}  pid {os.getpid()}  {said}" in lines[1]
    assert found is is_well


@pytest.mark.parametrize(
    ("redis", "said"), [("ok", ""), ("not configured", ""), ("failing", "  does not work for node-1, node-2")]
)
def test_what_the_nodes_say_of_redis_stands_beside_its_process(tmp_path: Path, redis: str, said: str) -> None:
    """One that hangs has a process, and answers nobody."""
    me = os.getpid()
    with answering(200, json.dumps({**REPORT, "redis": {"status": redis}}).encode()) as url:
        lines, is_well = operate.status(write(tmp_path, url, me, me))
    assert lines[3] == f"redis     redis://127.0.0.1:6379  pid {me}  redis-server{said}"
    assert is_well  # they take work without it


def test_a_cluster_that_is_stopped_is_said_to_be(tmp_path: Path, gone: int) -> None:
    lines, is_well = operate.status(write(tmp_path, "http://127.0.0.1:1", None, gone))
    assert not is_well
    assert lines == [
        "endpoint  http://127.0.0.1:5000  stopped",
        "node-1    http://127.0.0.1:1  stopped",
        "node-2    http://127.0.0.1:1  stopped",
        "redis     redis://127.0.0.1:6379  stopped  redis-server",
        "balancer  reuseport",
    ]


def test_nodes_that_do_not_run_are_not_restarted(tmp_path: Path, gone: int) -> None:
    with pytest.raises(ConfigError, match="node-1 is not running; start the cluster with `registry-cluster up`"):
        operate.restart_rolling(write(tmp_path, "http://127.0.0.1:1", gone, None))
    with pytest.raises(ConfigError, match="node-2 is not running; `up` starts it again by itself"):
        operate.restart_rolling(write(tmp_path, "http://127.0.0.1:1", os.getpid(), None))


def test_a_node_that_is_drained_when_somebody_stops_a_restart_is_named(tmp_path: Path) -> None:
    """Nothing would send clients to it again by itself."""
    directory = write(tmp_path, "http://127.0.0.1:1", os.getpid())
    state = json.loads((tmp_path / "cluster.json").read_text())
    state["balancer"] = {"kind": "haproxy", "pid": os.getpid(), "socket": str(tmp_path / "haproxy.sock")}
    (tmp_path / "cluster.json").write_text(json.dumps(state))
    with socket.socket(socket.AF_UNIX) as haproxy:
        haproxy.bind(str(tmp_path / "haproxy.sock"))
        haproxy.listen()
        command = [sys.executable, "-m", "cluster", "restart", "--rolling", "--data", directory]
        started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            with haproxy.accept()[0] as question:  # for the other nodes: there is none
                question.recv(1000)
            with haproxy.accept()[0]:  # it drains
                started.send_signal(signal.SIGINT)
                said = started.communicate(timeout=30)[1]
        finally:
            started.kill()
    assert started.returncode == 1
    assert "node-1 is still drained" in said
    assert f"`registry-cluster drain node-1 --undo --data {directory}`" in said


def test_where_there_is_no_cluster_the_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for directory, named in (("data", "./data"), (str(tmp_path), str(tmp_path))):
        with pytest.raises(ConfigError) as caught:
            operate.status(directory)
        wanted = "start one with `registry-cluster up`, or name its directory with --data"
        assert caught.value.problems == [f"no cluster in {named}: {wanted}"]
