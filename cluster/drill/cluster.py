"""The cluster that a drill breaks: one that `registry-cluster up` runs, by its directory.

Finds what runs where, waits until all of it is well, and starts one of its own. How parts of it are set up so that
they can be cut off is in surroundings.py, what is done to them in faults.py.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, Any
from urllib.parse import urlsplit

import yaml

from cluster import operate
from cluster.errors import ConfigError
from cluster.haproxy import BalancerError, Runtime
from cluster.places import Place
from cluster.supervisor import die_with_parent, signal_group

WHOLE = 90.0
"""Seconds for a cluster to be well again; what dies again and again is started only every 5 s."""
START = 60.0
STOP = 60.0
BASE: Mapping[str, Any] = {
    "version": "0.1",
    "storage": {"delete": {"enabled": True}},
    "log": {"level": "info"},
    "cluster": {"workers": 1},
}


class Trouble(Exception):
    """The drill itself could not go on: nothing is known of the promise that it was about."""


def wait(condition: Callable[[], bool], within: float, what: str) -> None:
    """Until it is so. Trouble says what was waited for in vain."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise Trouble(f"not within {within:g} s: {what}")
        time.sleep(0.02)


class Process:
    """One command in a process group of its own, its output in a file; ends with this process."""

    def __init__(self, command: Sequence[str], log: str, environment: Mapping[str, str] | None = None) -> None:
        self._log = log
        file: IO[bytes]
        with open(log, "ab") as file:
            self._child = subprocess.Popen(  # noqa: S603 - our own commands
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - it makes one system call
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    def check(self) -> None:
        """Trouble, with what it said last, when it has ended."""
        if self._child.poll() is not None:
            with open(self._log, encoding="utf-8", errors="replace") as file:
                said = "".join(file.readlines()[-5:]).strip()
            raise Trouble(f"{self._child.args!r} ended with {self._child.returncode}: {said}")

    def stop(self, number: signal.Signals = signal.SIGTERM, within: float = STOP) -> None:
        """End it and its group, with force when it takes too long."""
        if self._child.poll() is None:
            self._child.send_signal(number)
            self._child.send_signal(signal.SIGCONT)
            try:
                self._child.wait(within)
            except subprocess.TimeoutExpired:
                pass
        signal_group(self.pid, signal.SIGKILL)
        self._child.wait()


@dataclass(frozen=True)
class Node:
    name: str
    url: str
    pid: int | None  # the leader of its process group; None while it does not run


class Cluster:
    """A running one."""

    def __init__(self, directory: str) -> None:
        self.directory = os.path.abspath(directory)
        if urlsplit(self.endpoint).scheme != "http":
            raise ConfigError([f"{self.endpoint}: drills speak plain HTTP, wanted a cluster without TLS"])

    def see_open(self) -> None:
        """ConfigError when clients have to log in. That nothing answers is found, and told, later."""
        connection = http.client.HTTPConnection(urlsplit(self.endpoint).netloc, timeout=5)
        try:
            connection.request("GET", "/v2/")
            is_closed = connection.getresponse().status == http.client.UNAUTHORIZED
        except (OSError, http.client.HTTPException):
            return
        finally:
            connection.close()
        if is_closed:
            raise ConfigError([f"{self.endpoint}: drills do not log in, wanted a cluster without --auth"])

    @property
    def state(self) -> dict[str, Any]:
        return operate.read_state(self.directory)

    @property
    def endpoint(self) -> str:
        return str(self.state["endpoint"])

    @property
    def nodes(self) -> list[Node]:
        return [Node(node["name"], node["url"], node["pid"]) for node in self.state["nodes"]]

    @property
    def redis_pid(self) -> int | None:
        pid: int | None = self.state["redis"]["pid"]
        return pid

    @property
    def redis_port(self) -> int:
        return urlsplit(self.state["redis"]["url"]).port or 0

    @property
    def balancer_pid(self) -> int | None:
        pid: int | None = self.state["balancer"]["pid"]
        return pid

    def running(self, pid: int | None, what: str) -> int:
        if pid is None:
            raise Trouble(f"{what} does not run")
        return pid

    def is_whole(self) -> bool:
        """Whether everything runs and takes work."""
        state = self.state
        parts = [*(node.pid for node in self.nodes), self.redis_pid]
        if state["balancer"]["kind"] == "haproxy":
            parts.append(self.balancer_pid)
        if not state["nodes"] or None in parts:
            return False
        return all(map(is_ready, [*(node.url for node in self.nodes), self.endpoint])) and self._is_balanced()

    def wait_until_whole(self) -> None:
        wait(self.is_whole, WHOLE, "all parts of the cluster are well")

    def _is_balanced(self) -> bool:
        """Whether the balancer gives work to every node."""
        path = self.state["balancer"].get("socket")
        try:
            return path is None or all(server.status == "UP" for server in Runtime(path).servers())
        except BalancerError:
            return False


def is_ready(url: str) -> bool:
    """Whether a node, or the endpoint, says that it takes work."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=3)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def started(
    directory: str,
    *,
    nodes: int,
    port: int,
    places: Mapping[str, Place] | None = None,
    command: Sequence[str] = (sys.executable, "-m", "cluster"),
) -> Iterator[Cluster]:
    """A cluster of its own in a new directory, stopped at the end. `command` is ours, when it is not the usual."""
    os.makedirs(directory, exist_ok=True)
    base, prepared = f"{directory}/base.yml", f"{directory}/places.json"
    with open(base, "w", encoding="utf-8") as file:
        yaml.safe_dump(dict(BASE), file)
    with open(prepared, "w", encoding="utf-8") as file:
        json.dump({name: asdict(place) for name, place in (places or {}).items()}, file)
    options = ["--nodes", str(nodes), "--port", str(port), "--data", directory, "--config", base]
    process = Process([*command, "up", *options, "--places", prepared], f"{directory}/up.log")
    try:
        yield _when_whole(process, directory)
    finally:
        process.stop(signal.SIGINT)


def _when_whole(process: Process, directory: str) -> Cluster:
    def whole() -> bool:
        process.check()
        return os.path.exists(f"{directory}/cluster.json") and Cluster(directory).is_whole()

    wait(whole, START, f"the cluster is up: see {directory}/up.log")
    return Cluster(directory)
