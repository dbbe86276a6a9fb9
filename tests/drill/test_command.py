"""`registry-cluster drill` as a person types it: what it lists, breaks, reports, and says by its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.drill.faults import FAULTS
from cluster.drill.meter import Kind
from cluster.drill.run import fits_target
from tests.failover.cluster import Cluster
from tests.support.tools import PROJECT, TOOLS, note, require, require_root
from tests.unit.test_operate import answering, write

QUICK = 300.0
"""Seconds that the whole matrix may take on a machine that has nothing else to do."""


def drill(*words: str, within: float = 120, path: str | None = None) -> subprocess.CompletedProcess[str]:
    searched = f"{TOOLS}/bin:{os.environ['PATH']}" if path is None else path
    environment = {**os.environ, "PYTHONPATH": PROJECT, "PATH": searched}
    return subprocess.run(
        [sys.executable, "-m", "cluster", "drill", *words],
        capture_output=True,
        text=True,
        timeout=within,
        env=environment,
        check=False,
    )


def report_of(directory: Path) -> dict[str, dict[str, Any]]:
    """The drills of a report, by their names."""
    content = json.loads((directory / "drill.json").read_text(encoding="utf-8"))
    return {found["name"]: found for found in content["drills"]}


def test_every_fault_is_listed_with_what_it_needs() -> None:
    done = drill("list")
    assert done.returncode == 0
    for fault in FAULTS:
        assert f"{fault.name} " in done.stdout and fault.text in done.stdout
    assert done.stdout.count("needs: ") == len(FAULTS)


def test_a_cluster_with_accounts_is_refused_before_anything_is_broken(tmp_path: Path) -> None:
    with answering(401, b"") as url:
        directory = write(tmp_path, url, None)
        state = json.loads((tmp_path / "cluster.json").read_text())
        (tmp_path / "cluster.json").write_text(json.dumps({**state, "endpoint": url}))
        done = drill("run", "node-kill", "--quick", "--target", directory, "--report", str(tmp_path / "report"))
    assert done.returncode == 1
    assert done.stderr == f"registry-cluster: {url}: drills do not log in, wanted a cluster without --auth\n"
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run", "node-kil"], 1, "no drill 'node-kil': did you mean node-kill?"),
        (["run", "zzz"], 1, "no drill 'zzz': `registry-cluster drill list` names all"),
        (["run", "node-kill", "--target", "/nowhere"], 1, "no cluster in /nowhere"),
        (["run", "storage-full", "--target", "/nowhere"], 1, "run it without --target"),
        (["run", "node-kill", "--load", "2"], 2, "found '2', wanted a number from 5"),
        (["run", "node-kill", "--locustfile", "/nowhere.py"], 1, "there is no /nowhere.py: wanted a locustfile"),
        (["run", "node-kill", "--minutes", "0"], 2, "found '0', wanted a number of minutes"),
        (["run"], 2, "NAME"),
    ],
)
def test_a_wrong_word_is_named_with_what_was_wanted(words: list[str], code: int, said: str) -> None:
    done = drill(*words)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_what_this_machine_cannot_do_is_named_and_the_exit_code_says_it(tmp_path: Path) -> None:
    """PATH leads to what is needed but one program; /usr/sbin and /sbin are searched by themselves."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for program in ("haproxy", "redis-server"):
        (programs / program).symlink_to(require(program))
    words = ["run", "redis-failover", "--quick", "--report", str(tmp_path / "report")]
    done = drill(*words, path=str(programs))
    assert done.returncode == 3
    assert "NOT RUN: redis-failover: redis-cli is not installed" in done.stderr
    assert report_of(tmp_path / "report")["redis-failover"]["state"] == "not run"
    assert drill(*words, "--allow-missing", path=str(programs)).returncode == 0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    config = {"storage": {"delete": {"enabled": True}}, "cluster": {"workers": 1}, "version": "0.1"}
    with Cluster(tmp_path_factory.mktemp("target"), config=config) as cluster:
        yield cluster


def test_a_running_cluster_is_broken_and_left_whole(running: Cluster, tmp_path: Path) -> None:
    before = set(running.pids())
    done = drill("run", "node-kill", "redis-flush", "--quick", "--target", running.data, "--report", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = report_of(tmp_path)
    assert set(found) == {"node-kill", "redis-flush"}
    assert len(before - set(running.pids())) == 1, "one node was killed"
    assert running.is_whole()
    note(f"drill on a running cluster: {found['node-kill']['operations']['push']['recovery']:.1f} s to recover")


def test_the_users_of_a_locustfile_are_the_load(running: Cluster, tmp_path: Path) -> None:
    words = ["--quick", "--locustfile", f"{PROJECT}/tests/load/locustfile.py", "--report", str(tmp_path)]
    done = drill("run", "node-kill", "--target", running.data, *words)
    assert done.returncode == 0, done.stderr
    found = report_of(tmp_path)["node-kill"]["operations"]
    assert set(found) == set(Kind)
    assert all(cell["steps"] > 0 and cell["requests"] > 0 for cell in found.values())
    # Content and tags are judged where they were written; pulls look at every byte themselves.
    assert all(cell["acknowledged"] > 0 for kind, cell in found.items() if kind != Kind.PULL)
    pulled = found[Kind.PULL]
    note(f"locust users under node-kill: {pulled['requests']} pulling requests, {pulled['failed']} failed at first")


def test_a_locustfile_that_does_not_run_is_no_drill(running: Cluster, tmp_path: Path) -> None:
    broken = tmp_path / "locustfile.py"
    broken.write_text("import nothing_of_this_name\n")
    words = ["--quick", "--locustfile", str(broken), "--report", str(tmp_path / "report")]
    done = drill("run", "redis-flush", "--target", running.data, *words)
    assert (done.returncode, "nothing_of_this_name" in done.stderr) == (1, True), done.stderr
    assert report_of(tmp_path / "report")["redis-flush"]["state"] == "broken"


def test_a_drill_that_is_stopped_leaves_nothing_behind(running: Cluster, tmp_path: Path) -> None:
    words = ["run", "redis-hang", "--quick", "--target", running.data, "--report", str(tmp_path)]
    child = subprocess.Popen([sys.executable, "-m", "cluster", "drill", *words], stderr=subprocess.PIPE, text=True)
    redis = running.redis_pid or 0
    try:
        deadline = time.monotonic() + 60
        while state_of(redis) != "T":
            assert time.monotonic() < deadline and child.poll() is None, "Redis is stopped by the drill"
            time.sleep(0.02)
        child.terminate()
        _, said = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (child.returncode, "stopped before the end" in said) == (130, True), said
    assert state_of(redis) != "T"
    assert not (tmp_path / "drill.json").exists()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


@pytest.mark.timeout(1200)
def test_the_quick_matrix_loses_nothing_and_every_promise_holds(tmp_path: Path) -> None:
    """Everything that there is, on this machine: nothing may be missing."""
    require_root("network namespaces and a file system that hangs")
    started = time.monotonic()
    done = drill("run", "all", "--quick", "--report", str(tmp_path), within=1150)
    seconds = time.monotonic() - started
    note((tmp_path / "matrix.md").read_text(encoding="utf-8").split("\n\n")[1])
    note(f"{len(FAULTS)} drills in {seconds:.0f} s (at most {QUICK:.0f} s on a machine that does nothing else)")
    assert done.returncode == 0, done.stderr
    found = report_of(tmp_path)
    assert list(found) == [fault.name for fault in FAULTS]
    for name, row in found.items():
        assert row["state"] == "holds", name
        assert set(row["operations"]) == set(Kind)
        for kind, cell in row["operations"].items():
            assert (cell["lost"], cell["wrong"], cell["linearizable"]) == (0, 0, True), (name, kind)
            assert cell["acknowledged"] and cell["steps"], (name, kind)
    assert "Every promise held." in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_what_fits_a_running_cluster_needs_nothing_prepared() -> None:
    fitting = {fault.name for fault in FAULTS if fits_target(fault)}
    assert {"node-kill", "redis-hang", "haproxy-reload"} <= fitting
    assert not fitting & {"storage-full", "clock-skew", "redis-failover", "secret-rotation"}
