"""Health: when a node is ready, and what it says of its storage."""

from __future__ import annotations

import pytest

from cluster.errors import StorageError
from cluster.registry.health import Health
from cluster.storage.driver import StorageFull, StorageTimeout
from cluster.storage.memory import MemoryDriver

pytestmark = pytest.mark.anyio


class Storage(MemoryDriver):
    """A driver whose probe fails while it is told to."""

    failure: StorageError | None = None

    async def probe(self) -> None:
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def storage() -> Storage:
    return Storage()


def health(storage: Storage, threshold: int = 3) -> Health:
    return Health(
        storage, driver_name="inmemory", threshold=threshold, node=lambda: {"name": "one"}, uploading=lambda: 7
    )


@pytest.mark.parametrize(("threshold", "probes"), [(0, 1), (1, 1), (3, 3)])
async def test_a_node_is_unready_after_as_many_failures_as_the_threshold(
    storage: Storage, threshold: int, probes: int
) -> None:
    node = health(storage, threshold)
    storage.failure = StorageTimeout("storage did not answer within 10 s")
    for _ in range(probes):
        assert node.not_ready() is None and node.failing() == {}
        await node.probe()
    assert node.not_ready() == "storage is failing"
    assert node.failing() == {"storagedriver_inmemory": "storage did not answer within 10 s"}


async def test_failures_count_only_in_a_row_and_one_success_heals(storage: Storage) -> None:
    node = health(storage)
    for failures in (2, 2, 3):
        storage.failure = StorageError("broken")
        for _ in range(failures):
            await node.probe()
        assert (node.not_ready() is None) == (failures < 3)
        storage.failure = None
        await node.probe()
        assert node.not_ready() is None and node.failing() == {}


async def test_full_storage_is_reported_and_takes_no_node_away(storage: Storage) -> None:
    """All nodes have the same: were they unready, nobody could read."""
    node = health(storage, 1)
    storage.failure = StorageFull("no space left on device")
    for _ in range(5):
        await node.probe()
    assert node.not_ready() is None and node.failing() == {}
    report = await node.report()
    assert (report["ready"], report["storage"]["status"]) == (True, "failing")
    assert report["storage"]["error"] == "no space left on device"


async def test_a_draining_node_is_not_ready_whatever_its_storage_says(storage: Storage) -> None:
    node = health(storage)
    node.draining = True
    await node.probe()
    assert node.not_ready() == "draining"
    assert node.failing() == {}


async def test_a_failure_without_a_text_has_a_name(storage: Storage) -> None:
    node = health(storage, 1)
    storage.failure = StorageTimeout()
    await node.probe()
    assert node.failing() == {"storagedriver_inmemory": "StorageTimeout"}


async def test_the_report_asks_now(storage: Storage) -> None:
    node = health(storage)
    good = await node.report()
    assert (good["status"], good["ready"], good["uploads"], good["node"]) == ("ok", True, 7, {"name": "one"})
    assert good["storage"]["status"] == "ok" and "error" not in good["storage"]
    storage.failure = StorageError("broken")
    bad = await node.report()
    assert (bad["status"], bad["ready"]) == ("failing", True), "one failure does not make a node unready"
    assert (bad["storage"]["status"], bad["storage"]["error"]) == ("failing", "broken")
