"""Health: when a node is ready, and what it says of its storage."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cluster.errors import StorageError
from cluster.registry.health import Check, Health
from cluster.storage.driver import StorageFull, StorageTimeout
from cluster.storage.memory import MemoryDriver

pytestmark = pytest.mark.anyio


class Storage(MemoryDriver):
    """A driver whose probe fails while it is told to."""

    failure: StorageError | None = None
    asked = 0
    turns = 0  # of the event loop, until it answers
    hangs: asyncio.Event | None = None  # until this is set

    async def probe(self) -> None:
        self.asked += 1
        if self.hangs is not None:
            await self.hangs.wait()
        for _ in range(self.turns):
            await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure


class Clock:
    """A clock that goes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def storage() -> Storage:
    return Storage()


def health(storage: Storage, threshold: int = 3, clock: Clock | None = None) -> Health:
    return Health(
        storage,
        Check("storagedriver_inmemory", threshold, patience=60),
        node=lambda: {"name": "one"},
        uploading=lambda: 7,
        now=clock or Clock(),
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


async def test_a_question_that_is_not_answered_counts_each_time_and_is_asked_once(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit of a call of storage is longer, and each call that hangs keeps a thread."""
    storage.hangs = asyncio.Event()
    node = health(storage)
    patient, node.check = node.check, replace(node.check, patience=0)
    for _ in range(3):
        assert node.not_ready() is None
        await node.probe()
    assert node.failing() == {"storagedriver_inmemory": "storage did not answer within 0 s"}
    assert storage.asked == 1
    assert [record.getMessage() for record in caplog.records] == [
        "storage fails: StorageTimeout: storage did not answer within 0 s"
    ]
    storage.hangs.set()
    node.check = patient
    await node.probe()
    assert node.not_ready() is None


async def test_storage_that_answers_before_the_threshold_takes_no_node_away(storage: Storage) -> None:
    storage.hangs = asyncio.Event()
    node = health(storage)
    patient, impatient = node.check, replace(node.check, patience=0)
    for _ in range(5):
        storage.hangs.clear()
        for node.check in (impatient, impatient, patient):
            if node.check is patient:
                storage.hangs.set()
            await node.probe()
        assert node.not_ready() is None


async def test_full_storage_is_reported_and_takes_no_node_away(storage: Storage) -> None:
    """All nodes have the same: were they unready, nobody could read."""
    node = health(storage, 1)
    storage.failure = StorageFull("no space left on device")
    for _ in range(5):
        await node.probe()
    assert node.not_ready() is None and node.failing() == {}
    report = await node.report()
    assert (report["ready"], report["storage"]["status"]) == (True, "failing")
    assert report["storage"]["error"] == "StorageFull"


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


async def test_the_report_asks_unless_it_has_just_asked(storage: Storage) -> None:
    clock = Clock()
    node = health(storage, clock=clock)
    good = await node.report()
    assert (good["status"], good["ready"], good["uploads"], good["node"]) == ("ok", True, 7, {"name": "one"})
    assert good["storage"]["status"] == "ok" and "error" not in good["storage"]
    storage.failure = StorageError("Input/output error: /srv/registry")
    clock.now = 0.9
    assert (await node.report())["status"] == "ok"
    clock.now = 1.1
    bad = await node.report()
    assert (bad["status"], bad["ready"]) == ("failing", True)
    assert (bad["storage"]["status"], bad["storage"]["error"]) == ("failing", "StorageError"), "no path is told"
    assert storage.asked == 2


async def test_a_report_does_not_wait_for_storage_that_hangs(storage: Storage) -> None:
    """Who asks for one would take the whole node for one that hangs."""
    clock = Clock()
    node = health(storage, clock=clock)
    node.check = replace(node.check, hurry=0.01)
    assert (await node.report())["status"] == "ok"
    clock.now, storage.hangs = 2.0, asyncio.Event()
    for _ in range(2):
        report = await node.report()
        assert (report["status"], report["ready"], report["node"]) == ("failing", True, {"name": "one"})
        assert (report["storage"]["status"], report["storage"]["error"]) == ("failing", "StorageTimeout")
    assert storage.asked == 2, "it is asked once, however many want to know"
    node.check = replace(node.check, hurry=10)
    storage.hangs.set()
    assert (await node.report())["status"] == "ok"


async def test_who_asks_for_reports_does_not_make_a_node_unready(storage: Storage) -> None:
    clock = Clock()
    node = health(storage, 1, clock)
    storage.failure = StorageError("broken")
    for _ in range(10):
        clock.now += 2
        assert (await node.report())["status"] == "failing"
    assert node.not_ready() is None and node.failing() == {}
    await node.probe()
    assert node.not_ready() == "storage is failing"


async def test_storage_is_asked_once_for_all_who_want_to_know(storage: Storage) -> None:
    """Each question writes and syncs a file."""
    storage.turns = 3
    node = health(storage)
    impatient = asyncio.create_task(node.report())
    await asyncio.sleep(0)
    others = [asyncio.create_task(node.report()) for _ in range(100)]
    await asyncio.sleep(0)
    impatient.cancel()
    await node.probe()
    assert {report["status"] for report in await asyncio.gather(*others)} == {"ok"}
    assert storage.asked == 1


async def test_that_storage_fails_is_logged_once_with_all_that_is_known(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    node = health(storage)
    storage.failure = StorageError("Input/output error: /srv/registry")
    for _ in range(3):
        await node.probe()
    storage.failure = None
    await node.probe()
    failed, back = (record.getMessage() for record in caplog.records if record.name == "cluster.registry.health")
    assert "Input/output error: /srv/registry" in failed
    assert "again" in back
