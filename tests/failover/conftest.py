"""The cluster that the tests of a file share. Each test finds it whole, and leaves it so."""

from collections.abc import Iterator

import pytest

from tests.failover.client import Client, Ledger
from tests.failover.cluster import Cluster

CONFIG = {
    "version": "0.1",
    "storage": {"delete": {"enabled": True}},
    "log": {"level": "info"},
    "cluster": {"workers": 1},
}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("up"), config=CONFIG) as cluster:
        yield cluster


@pytest.fixture
def cluster(started: Cluster) -> Iterator[Cluster]:
    """Three nodes, Redis and HAProxy; where a test fails, the ends of the nodes' logs are shown."""
    started.wait_until_whole()
    before = {node.name: len(node.log()) for node in started.nodes}
    yield started
    for node in started.nodes:
        lines = [line for line in node.log()[before[node.name] :].splitlines() if "GET /readyz" not in line]
        print(f"--- {node.name}", *lines[-15:], sep="\n")
    started.wait_until_whole()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    """Sends every request to the next node."""
    with Client(cluster.urls) as client:
        yield client


@pytest.fixture
def each(cluster: Cluster) -> Iterator[list[Client]]:
    """A client for each node, which stays with it."""
    clients = [Client([url]) for url in cluster.urls]
    yield clients
    for client in clients:
        client.close()


@pytest.fixture
def ledger(cluster: Cluster) -> Iterator[Ledger]:
    """What is acknowledged during a test; verified on every node at its end."""
    ledger = Ledger()
    yield ledger
    cluster.wait_until_whole()
    ledger.verify(cluster.urls)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The protocol's tests run with both algorithms on one way to the cluster; on the others in the long form."""
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if parameters.get("way", "next node") != "next node" and parameters.get("algorithm") == "sha512":
            item.add_marker("slow")
