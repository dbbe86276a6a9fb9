"""A cluster that `registry-cluster up` runs, as tests handle it: verbs on its nodes, facts from its cluster.json.

Starts and stops real processes, and leaves none behind. Asks nothing of a node but whether it is ready.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import urlsplit

import yaml

from tests.support.process import Process, eventually, free_port, members, stop_group

BLOBS = "registry/docker/registry/v2/blobs"
REPOSITORIES = "registry/docker/registry/v2/repositories"
BACK = 45.0  # seconds for what died to be of use again; its supervisor waits up to 5 s before it starts it


def is_ready(url: str, ca: str | None = None) -> bool:
    """Whether a node, or the endpoint, says that it takes work; with TLS, whether `ca` vouches for it."""
    address = urlsplit(url)
    host, port = address.hostname or "", address.port
    connection = http.client.HTTPConnection(host, port, timeout=2)
    if address.scheme == "https":
        context = ssl.create_default_context(cafile=ca)
        connection = http.client.HTTPSConnection(host, port, timeout=2, context=context)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def _paused(group: int) -> Iterator[None]:
    try:
        stop_group(group)
        yield
    finally:
        try:
            os.killpg(group, signal.SIGCONT)
        except ProcessLookupError:  # it was killed meanwhile
            pass


class Member:
    """One node of a cluster, by the pid that it has at the moment."""

    def __init__(self, cluster: Cluster, name: str, url: str) -> None:
        self._cluster = cluster
        self.name = name
        self.url = url

    @property
    def pid(self) -> int | None:
        """The leader of its process group; None while it does not run."""
        # A cluster that is starting has not named all of its nodes yet.
        nodes = self._cluster.state()["nodes"]
        return next((node["pid"] for node in nodes if node["name"] == self.name), None)

    @property
    def is_back(self) -> bool:
        """Whether it runs and takes work."""
        return self.pid is not None and is_ready(self.url, self._cluster.ca)

    def kill(self) -> None:
        """End the whole group at once, as the loss of its machine would, and see that nothing of it is left."""
        pid = self.leader()
        os.killpg(pid, signal.SIGKILL)
        eventually(lambda: not members(pid), 20, f"nothing is left of {self.name}")

    def leader(self) -> int:
        """Its pid, when it runs or is about to."""
        return eventually(lambda: self.pid, BACK, f"{self.name} runs") or 0

    def workers(self) -> list[int]:
        """The processes that answer requests."""
        leader = self.leader()
        return [pid for pid in members(leader) if pid != leader]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stopped where it stands, the whole group: alive, holding what it holds; awake again afterwards."""
        with _paused(self.leader()):
            yield

    def wait_until_back(self, within: float = BACK) -> None:
        eventually(lambda: self.is_back, within, f"{self.name} is back")

    def log(self) -> str:
        """All it has written so far, over all its lives."""
        with open(f"{self._cluster.data}/run/{self.name}.log", encoding="utf-8", errors="replace") as file:
            return file.read()


class Cluster(Process):
    """`registry-cluster up` in a directory; as a context manager it is always stopped, with all it started."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        nodes: int = 3,
        port: int | None = None,
        config: Mapping[str, Any] | None = None,
        options: Sequence[str] = (),
        around: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`config` is what every node gets, its own name and address aside; `options` are more of `up`'s, such as
        --tls; `around` runs the command."""
        self.directory = os.fspath(directory)
        self.data = f"{self.directory}/data"
        self.port = port or free_port()
        self._config = config
        command = [*around, *self.verb("up"), "--nodes", str(nodes), "--port", str(self.port), *options]
        if config is not None:
            command += ["--config", f"{self.directory}/base.yml"]
        clean: dict[str, str | None] = {name: None for name in os.environ if name.startswith("REGISTRY_")}
        super().__init__(
            command,
            log=f"{self.directory}/up.log",
            env={**clean, "WEB_CONCURRENCY": None, **(env or {})},
            ready=self.is_whole,
        )

    def verb(self, name: str, *arguments: str) -> list[str]:
        """The command line of an operation on this cluster."""
        return [sys.executable, "-m", "cluster", name, *arguments, "--data", self.data]

    def state(self) -> dict[str, Any]:
        """What cluster.json says now."""
        with open(f"{self.data}/cluster.json", encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
        return found

    @property
    def endpoint(self) -> str:
        """Where clients go."""
        return str(self.state()["endpoint"])

    @property
    def ca(self) -> str | None:
        """The authority of its certificates; None where it speaks no TLS."""
        found: str | None = self.state().get("ca")
        return found

    @property
    def nodes(self) -> list[Member]:
        return [Member(self, node["name"], node["url"]) for node in self.state()["nodes"]]

    @property
    def urls(self) -> list[str]:
        """Of the nodes, in their order."""
        return [node.url for node in self.nodes]

    @property
    def redis_pid(self) -> int | None:
        pid: int | None = self.state()["redis"]["pid"]
        return pid

    @property
    def balancer_pid(self) -> int | None:
        pid: int | None = self.state()["balancer"]["pid"]
        return pid

    def pids(self) -> list[int]:
        """The leaders of all that it runs at the moment."""
        found = [*(node.pid for node in self.nodes), self.redis_pid, self.balancer_pid]
        return [pid for pid in found if pid is not None]

    def is_whole(self) -> bool:
        """Whether everything runs and takes work."""
        try:
            nodes = self.nodes
        except FileNotFoundError:
            return False
        balanced = self.balancer_pid is not None or self.state()["balancer"]["kind"] != "haproxy"
        answers = all(node.is_back for node in nodes) and balanced and is_ready(self.endpoint, self.ca)
        return bool(nodes and answers)

    def wait_until_whole(self, within: float = BACK) -> None:
        eventually(self.is_whole, within, "every node is back, and the endpoint answers")

    def upload_files(self, name: str) -> list[str]:
        """What lies below the upload sessions of a repository: for bytes that no node tells of yet."""
        top = f"{self.data}/{REPOSITORIES}/{name}/_uploads"
        return [os.path.join(place, file) for place, _, files in os.walk(top) for file in files]

    def blob_file(self, digest: str) -> str:
        algorithm, _, encoded = digest.partition(":")
        return f"{self.data}/{BLOBS}/{algorithm}/{encoded[:2]}/{encoded}/data"

    def tag_lock(self, name: str, tag: str) -> str:
        """The file whose lock a writer of the tag holds."""
        return f"{self.data}/{REPOSITORIES}/{name}/_manifests/_locks/{tag}"

    @contextmanager
    def redis_paused(self) -> Iterator[None]:
        """Redis stopped where it stands: it takes connections and answers nothing."""
        with _paused(self.redis_pid or 0):
            yield

    def start(self) -> Self:
        os.makedirs(self.directory, exist_ok=True)
        if self._config is not None:
            with open(f"{self.directory}/base.yml", "w", encoding="utf-8") as file:
                yaml.safe_dump(dict(self._config), file)
        return super().start()

    def stop(self, within: float = 60) -> int:
        """Stop everything; fail when a process is left, and end it."""
        started = self._started()
        code = super().stop(within)
        end_groups(started)
        return code

    def kill(self) -> None:
        started = self._started()
        super().kill()
        end_groups(started)

    def _started(self) -> list[int]:
        try:
            return self.pids() if self._child is not None else []
        except FileNotFoundError:
            return []


def end_groups(groups: list[int], within: float = 10) -> None:
    """See that nothing of these process groups is left; what is left fails the test, and is ended."""
    try:
        eventually(lambda: not any(map(members, groups)), within, f"nothing is left of the groups {groups}")
    finally:
        for group in filter(members, groups):
            os.killpg(group, signal.SIGKILL)
