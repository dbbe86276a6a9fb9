"""The protocol's own tests against a cluster: every request to the next node, through HAProxy, and without Redis.

Owns no rule: the tests are those of tests/conformance, run here with another client.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.haproxy import render
from cluster.settings import Cluster as Settings
from cluster.settings import Haproxy
from tests.conformance import test_official_suite as official
from tests.conformance import test_protocol as protocol
from tests.failover.cluster import Cluster, is_ready
from tests.support.process import Process, free_port
from tests.support.tools import note, require

# The same functions, collected here a second time; what needs a node of its own stays there.
globals().update(
    {
        name: test
        for name, test in vars(protocol).items()
        if name.startswith("test_") and name != "test_a_sparse_data_set_is_pushed_where_it_is_allowed"
    }
)
suite = official.suite


class NextNode(httpx.BaseTransport):
    """Sends every request to the next URL, whatever the Location said."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = itertools.cycle([httpx.URL(url) for url in urls])
        self._http = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        node = next(self._urls)
        request.url = request.url.copy_with(host=node.host, port=node.port)
        request.headers["Host"] = node.netloc.decode()
        return self._http.handle_request(request)

    def close(self) -> None:
        self._http.close()


@pytest.fixture(scope="module", params=["next node", "balancer", "Redis stopped"])
def way(request: pytest.FixtureRequest, started: Cluster) -> Iterator[str]:
    """How requests reach the cluster, and what is the matter with it."""
    with started.redis_paused() if request.param == "Redis stopped" else nullcontext():
        yield request.param


@pytest.fixture
def client(started: Cluster, way: str, algorithm: str) -> Iterator[protocol.Client]:
    """Requests to a repository that no other test has."""
    transport: dict[str, Any] = {} if way == "balancer" else {"transport": NextNode(started.urls)}
    with httpx.Client(base_url=started.endpoint, timeout=30, trust_env=False, **transport) as http:
        yield protocol.Client(http, algorithm, f"conformance/{uuid.uuid4().hex}")


class RoundRobin(Process):
    """An HAProxy of our own configuration that gives every request to the next node."""

    def __init__(self, directory: Path, nodes: dict[str, str]) -> None:
        self.host = f"127.0.0.1:{free_port()}"
        haproxy = Haproxy(bind=self.host, socket=f"{directory}/h.sock", mode="http", balance="roundrobin")
        path = directory / "haproxy.cfg"
        path.write_text(render(Settings(haproxy=haproxy), nodes), encoding="utf-8")
        super().__init__(
            [require("haproxy"), "-W", "-db", "-f", str(path)],
            log=f"{directory}/haproxy.log",
            ready=lambda: is_ready(f"http://{self.host}"),
        )


@pytest.mark.timeout(900)
def test_the_official_suite_finds_nothing_wrong(started: Cluster, way: str, suite: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        target: Any = stack.enter_context(RoundRobin(tmp_path, {node.name: node.url for node in started.nodes}))
        if way == "balancer":
            target.host = started.endpoint.removeprefix("http://")
        totals = official.run(suite, target, "dev", False, str(tmp_path / "results"))
    note(f"official suite at dev, {way}: {totals}")
    assert totals.tests > 700
    assert (totals.failed, totals.errors, totals.skipped) == (0, 0, 0), f"{totals}\n{totals.complaints}"
