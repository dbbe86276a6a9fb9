"""The cluster of compose.yml on a private engine, by one of the two kinds of compose: verbs, and facts about it.

Asks nothing of the registry but whether it is ready.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from tests.compose.engine import Engine, run
from tests.support.process import eventually, free_port
from tests.support.tools import PROJECT

PATIENCE = 120.0  # seconds for anything to come about on a busy machine


class Compose:
    """One project."""

    def __init__(self, engine: Engine, program: str, project: str) -> None:
        self.engine = engine
        self.program = os.path.basename(program)
        self.port = free_port()
        self.locust_port = free_port()
        self._command = [program, "--project-name", project]
        self._project = project

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}"

    def __call__(self, *arguments: str, within: float = 300) -> str:
        return run([*self._command, *arguments], self._env, within)

    @property
    def _env(self) -> dict[str, str]:
        ours = {"PORT": str(self.port), "LOCUST_PORT": str(self.locust_port), "BIND_ADDRESS": "127.0.0.1"}
        ours["COMPOSE_HTTP_TIMEOUT"] = "300"  # a volume with many files is not removed at once
        return {**self.engine.client_env, **ours, "COMPOSE": " ".join(self._command)}

    def up(self, *arguments: str) -> None:
        self("up", "--detach", "--no-build", *arguments)
        self.wait_until_ready()

    def down(self, *arguments: str) -> None:
        self("down", *arguments)

    def change_nodes(self, *arguments: str) -> None:
        """What the runbook does."""
        run([f"{PROJECT}/deploy/compose/nodes.sh", *arguments], self._env, 900)

    def follow(self, line: str) -> None:
        """A line of the runbook, as it stands there."""
        run(["sh", "-c", line.replace("docker compose", "$COMPOSE")], self._env, 900)

    def containers(self, service: str) -> list[str]:
        """The names of those that run, in order."""
        labels = {"project": self._project, "service": service, "oneoff": "False"}
        filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        return sorted(self.engine.docker("ps", "--format", "{{.Names}}", *filters).split())

    def inspect(self, *containers: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.engine.docker("inspect", *containers))
        return found

    def is_healthy(self, container: str) -> bool:
        """What the engine's own checks say."""
        (found,) = self.inspect(container)
        return bool(found["State"]["Health"]["Status"] == "healthy")

    def inside(self, container: str, *command: str) -> str:
        return self.engine.docker("exec", container, *command)

    def network(self, name: str) -> str:
        return f"{self._project}_{name}"

    def node_urls(self) -> list[str]:
        """Every node by its own address."""
        networks = [found["NetworkSettings"]["Networks"] for found in self.inspect(*self.containers("node"))]
        return [f"http://{network[self.network('front')]['IPAddress']}:5000" for network in networks]

    def servers(self) -> list[list[str]]:
        """The nodes as the balancer sees them: name, address, state, and so on."""
        (balancer,) = self.containers("balancer")
        status = ("registry-cluster", "status", "--socket", "/run/haproxy/registry.sock")
        lines = self.inside(balancer, *status).splitlines()
        return [line.split() for line in lines if not line.startswith("free:")]

    def wait_until_ready(self, nodes: int | None = None) -> None:
        """Every node is up in the balancer's eyes; with a number, there are that many."""

        def ready() -> bool:
            if not is_ready(self.endpoint):
                return False
            servers = self.servers()
            expected = nodes if nodes is not None else len(self.containers("node"))
            return len([server for server in servers if server[2] == "UP"]) == expected

        eventually(ready, PATIENCE, "the balancer has all nodes")

    @contextmanager
    def paused(self, container: str) -> Iterator[None]:
        self.engine.docker("pause", container)
        try:
            yield
        finally:
            self.engine.docker("unpause", container)

    @contextmanager
    def disconnected(self, container: str, network: str) -> Iterator[None]:
        (found,) = self.inspect(container)
        service = found["Config"]["Labels"]["com.docker.compose.service"]
        self.engine.docker("network", "disconnect", self.network(network), container)
        try:
            yield
        finally:
            self.engine.docker("network", "connect", "--alias", service, self.network(network), container)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=3, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def seconds_until(condition: Callable[[], bool], what: str) -> float:
    """How long it took."""
    began = time.monotonic()
    eventually(condition, PATIENCE, what)
    return time.monotonic() - began


def composes() -> Sequence[str]:
    """The programs to test with, by the names under which deploy/bootstrap.sh installs them."""
    only = os.environ.get("COMPOSE_UNDER_TEST", "")
    return only.split() or ["docker-compose", "compose"]
