"""The purger: what is old enough goes, and nothing that somebody still writes."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.errors import StorageError
from cluster.oci.digest import Digest
from cluster.oci.reference import RepositoryName
from cluster.oci.upload import UploadState
from cluster.registry.blobs import BlobStore
from cluster.registry.catalog import Catalog
from cluster.registry.purger import Purger, Schedule
from cluster.registry.uploads import UploadService
from cluster.state.memory import MemoryStore
from cluster.state.store import Turn
from cluster.storage import disk as storage_disk
from cluster.storage import layout
from cluster.storage.driver import NotFound, StorageFull
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.segments import SegmentUploads
from cluster.storage.threads import Threads
from tests.unit.registry.parts import NAME, Parts, body

pytestmark = pytest.mark.anyio

DAY = 86_400.0
WEEK = 7 * DAY


def clock(at: float) -> Callable[[], Awaitable[float]]:
    """One that says the same whenever it is asked."""

    async def now() -> float:
        return at

    return now


@dataclass
class Disk:
    """A node on a real directory, where files have ages."""

    root: Path
    driver: FilesystemDriver
    sessions: SegmentUploads
    uploads: UploadService

    def purger(self, *, dry_run: bool = False, now: float | None = None) -> Purger:
        at = time.time() if now is None else now
        schedule = Schedule(WEEK, DAY, dry_run)
        return Purger(self.driver, self.sessions, Catalog(self.driver), schedule, now=clock(at))

    async def begin(self, *chunks: bytes, name: RepositoryName = NAME) -> UploadState:
        state = await self.uploads.start(name)
        for chunk in chunks:
            state = await self.uploads.append(state, body(chunk))
        return state

    def age(self, path: str, days: float) -> None:
        """Make everything at a path that many days old."""
        then = time.time() - days * DAY
        for directory, _, files in os.walk(self.root / path):
            for entry in [directory, *(os.path.join(directory, file) for file in files)]:
                os.utime(entry, (then, then))

    def names(self, name: RepositoryName = NAME) -> set[str]:
        return set(os.listdir(self.root / layout.uploads(name)))


class PromptThreads(Threads):
    """A lock is free when its block ends, on any file system: each purge here comes after the one before it."""

    def leave(self, call: Callable[[], object]) -> None:
        call()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    threads = PromptThreads(4, 10)
    driver = FilesystemDriver(str(tmp_path), threads)
    sessions = SegmentUploads(str(tmp_path), driver, threads)
    yield Disk(tmp_path, driver, sessions, UploadService(sessions, BlobStore(driver, Catalog(driver))))
    threads.close()


async def test_only_what_has_been_idle_for_the_whole_age_goes(disk: Disk) -> None:
    old, young, touched = [await disk.begin(b"chunk") for _ in range(3)]
    for state in (old, touched):
        disk.age(layout.upload(NAME, state.uuid), 8)
    disk.age(layout.upload(NAME, young.uuid), 6)
    await disk.uploads.append(touched, body(b"a new chunk"))
    assert await disk.purger().run() == 1
    assert disk.names() == {young.uuid, touched.uuid}
    assert (await disk.uploads.status(touched)).offset == 16


async def test_every_repository_is_walked(disk: Disk) -> None:
    names = [RepositoryName(name) for name in ("a", "a/b", "a/b/c", "z")]
    for name in names:
        state = await disk.begin(b"chunk", name=name)
        disk.age(layout.upload(name, state.uuid), 8)
    assert await disk.purger().run() == 4
    assert [disk.names(name) for name in names] == [set()] * 4


async def test_a_dry_run_counts_and_removes_nothing(disk: Disk) -> None:
    state = await disk.begin(b"chunk")
    disk.age(layout.upload(NAME, state.uuid), 8)
    assert await disk.purger(dry_run=True).run() == 1
    assert disk.names() == {state.uuid}
    assert await disk.purger().run() == 1


async def test_a_session_with_a_living_writer_stays_however_old_it_is(disk: Disk) -> None:
    state = await disk.begin()
    path = layout.upload(NAME, state.uuid)
    writer = await disk.sessions.append(path, 0, lambda _: None)
    await writer.write([b"slow"])
    disk.age(path, 30)
    assert await disk.purger().run() == 0
    await writer.seal()
    assert (await disk.uploads.status(state)).offset == 4
    await writer.discard()
    disk.age(path, 30)
    assert await disk.purger().run() == 1


async def test_a_session_whose_writer_died_goes(disk: Disk) -> None:
    state = await disk.begin()
    path = layout.upload(NAME, state.uuid)
    (disk.root / path / "_seg" / f"{0:020d}.{'0' * 16}").write_bytes(b"left")
    disk.age(path, 8)
    assert await disk.purger().run() == 1


async def test_what_distribution_left_goes_too(disk: Disk) -> None:
    await disk.begin(b"chunk")
    uuids = [f"0b1c2d3e-1111-4222-8333-44445555666{number}" for number in range(3)]
    whole, orphan, young = (disk.root / layout.upload(NAME, uuid) for uuid in uuids)
    for session in (whole, young):
        session.mkdir()
        (session / "startedat").write_bytes(b"2020-01-02T03:04:05Z")
        (session / "data").write_bytes(b"bytes")
    (orphan / "hashstates" / "sha256").mkdir(parents=True)
    (orphan / "hashstates" / "sha256" / "0").write_bytes(b"state")
    for session in (whole, orphan):
        disk.age(str(session.relative_to(disk.root)), 8)
    assert await disk.purger().run() == 2
    assert uuids[2] in disk.names() and not {uuids[0], uuids[1]} & disk.names()


async def test_a_session_that_was_set_aside_goes_and_other_names_stay(disk: Disk) -> None:
    await disk.begin(b"chunk")
    uploads = disk.root / layout.uploads(NAME)
    for name in ("_gone.0b1c2d3e-1111-4222-8333-444455556666.00", "not-a-uuid", "_other"):
        (uploads / name).mkdir()
        (uploads / name / "file").write_bytes(b"content")
        disk.age(f"{layout.uploads(NAME)}/{name}", 8)
    assert await disk.purger().run() == 1
    assert {"not-a-uuid", "_other"} <= disk.names()
    assert not [name for name in disk.names() if name.startswith("_gone.")]


class Stubborn(SegmentUploads):
    """Cannot remove one of the sessions, as where its files are another user's."""

    stays = ""

    async def purge(self, path: str, before: float, *, dry_run: bool = False) -> bool:
        if path == self.stays:
            raise StorageError("Permission denied")
        return await super().purge(path, before, dry_run=dry_run)


async def test_a_session_that_cannot_be_removed_does_not_keep_the_others(tmp_path: Path) -> None:
    threads = Threads(4, 10)
    driver = FilesystemDriver(str(tmp_path), threads)
    sessions = Stubborn(str(tmp_path), driver, threads)
    disk = Disk(tmp_path, driver, sessions, UploadService(sessions, BlobStore(driver, Catalog(driver))))
    names = [RepositoryName("a"), RepositoryName("b")]
    states = [await disk.begin(b"chunk", name=name) for name in names]
    for state in states:
        disk.age(layout.upload(RepositoryName(state.name), state.uuid), 8)
    sessions.stays = layout.upload(names[0], states[0].uuid)
    assert await disk.purger().run() == 1
    assert [disk.names(name) for name in names] == [{states[0].uuid}, set()]
    threads.close()


async def test_temporary_files_of_a_crash_go_when_they_are_old(disk: Disk) -> None:
    await disk.driver.write("some/file", b"content")
    temporary = disk.root / layout.TEMPORARY
    (temporary / "old").write_bytes(b"left")
    disk.age(layout.TEMPORARY, 8)
    (temporary / "young").write_bytes(b"on its way")
    await disk.purger(dry_run=True).run()
    assert set(os.listdir(temporary)) == {"old", "young"}
    await disk.purger().run()
    assert os.listdir(temporary) == ["young"]


async def test_one_purges_at_a_time(disk: Disk) -> None:
    state = await disk.begin(b"chunk")
    disk.age(layout.upload(NAME, state.uuid), 8)
    async with disk.driver.lock(layout.PURGER_LOCK, 1):
        assert await disk.purger().run() == 0
    assert disk.names() == {state.uuid}
    assert await disk.purger().run() == 1


async def test_blobs_and_tags_are_left_alone(disk: Disk) -> None:
    blob = await disk.uploads.push(NAME, Digest.of(b"kept"), body(b"kept"))
    disk.age("", 30)
    await disk.purger().run()
    assert await disk.driver.read(layout.blob(blob.canonical)) == b"kept"


async def test_a_repository_without_uploads_and_empty_storage_are_no_trouble(disk: Disk) -> None:
    assert await disk.purger().run() == 0
    await disk.driver.write(f"repositories/{NAME}/_manifests/revisions/sha256/00/link", b"link")
    assert await disk.purger().run() == 0


async def test_a_node_whose_clock_is_ahead_purges_nothing_that_is_young(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    young = await disk.begin(b"acknowledged")
    await disk.begin(b"old", name=RepositoryName("team/old"))
    disk.age(layout.uploads(RepositoryName("team/old")), 8)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 30 * DAY)
    assert await Purger(disk.driver, disk.sessions, Catalog(disk.driver), Schedule(WEEK, DAY)).run() == 1
    assert (await disk.uploads.status(young)).offset == len(b"acknowledged")


class FullDisk(storage_disk.Disk):
    """The real disk with no free inode: nothing new can be made."""

    full = False

    def _make(self, path: str) -> None:
        if self.full and not os.path.exists(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def create(self, path: str) -> int:
        self._make(path)
        return super().create(path)

    def open_lock(self, path: str) -> int:
        self._make(path)
        return super().open_lock(path)

    def mkdir(self, path: str) -> None:
        self._make(path)
        super().mkdir(path)


async def test_storage_without_room_for_one_file_more_is_purged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, full = PromptThreads(4, 10), FullDisk()
    driver = FilesystemDriver(str(tmp_path), threads, full)
    sessions = SegmentUploads(str(tmp_path), driver, threads, full)
    disk = Disk(tmp_path, driver, sessions, UploadService(sessions, BlobStore(driver, Catalog(driver))))
    old, young = [await disk.begin(b"chunk") for _ in range(2)]
    await disk.purger().run()
    disk.age(layout.upload(NAME, old.uuid), 8)
    full.full = True
    with pytest.raises(StorageFull):
        await disk.begin(b"chunk")
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 30 * DAY)  # the time is that of storage here, too
    assert await Purger(driver, sessions, Catalog(driver), Schedule(WEEK, DAY)).run() == 1
    assert disk.names() == {young.uuid}
    threads.close()


async def test_nodes_take_turns(parts: Parts) -> None:
    turns = MemoryStore()
    state = await parts.uploads.start(NAME)

    def purger(node: str) -> Purger:
        schedule = Schedule(WEEK, DAY)
        return Purger(
            parts.driver,
            parts.sessions,
            parts.catalog,
            schedule,
            turns=turns,
            node=node,
            now=clock(time.time() + 1e9),
        )

    assert await purger("one").run() == 1
    with pytest.raises(NotFound):
        await parts.sessions.extent(layout.upload(NAME, state.uuid))
    await parts.uploads.start(NAME)
    assert await purger("two").run() == 0


@pytest.mark.parametrize("age", [DAY, 365 * DAY, -365 * DAY])
async def test_a_turn_that_is_not_forgotten_does_not_end_all_purging(parts: Parts, age: float) -> None:
    turns, later = MemoryStore(), time.time() + 1e9
    await turns.record_turn("purger", Turn("one", later - age), 1e9)
    await parts.uploads.start(NAME)
    schedule = Schedule(WEEK, DAY)
    purger = Purger(
        parts.driver, parts.sessions, parts.catalog, schedule, turns=turns, node="two", now=clock(later)
    )
    assert await purger.run() == 1
    assert await purger.run() == 0  # and now it has had its turn
