"""The file system driver: durable directories, locks that die with their process, what a crash leaves."""

from __future__ import annotations

import asyncio
import builtins
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.errors import StorageError
from cluster.oci.digest import Digest
from cluster.oci.reference import RepositoryName, Tag
from cluster.storage import layout
from cluster.storage.disk import Disk
from cluster.storage.driver import LockTimeout, NotFound
from cluster.storage.filesystem import Directories, FilesystemDriver, remove_tree
from cluster.storage.segments import SegmentUploads
from cluster.storage.sessions import Sessions
from cluster.storage.threads import Threads
from tests.support.disks import CALLS, ROOT, ForgetfulDisk, SteppingDisk
from tests.support.tools import PROJECT

pytestmark = pytest.mark.anyio

LINK = "repositories/team/app/_manifests/tags/v1/current/link"


class Recorded:
    """The real disk, and what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.disk = SteppingDisk(lambda *_: None, self._note)

    def _note(self, call: str, arguments: tuple[object, ...], outcome: object) -> None:
        self.calls.append((call, str(arguments[0])))

    def asked(self, call: str) -> list[str]:
        return [path for name, path in self.calls if name == call]


def test_the_seam_has_every_call_that_the_twin_has() -> None:
    assert {call for call in CALLS if getattr(ForgetfulDisk, call) is getattr(Disk, call)} == set()


# Directories


def test_directories_are_made_from_the_top_and_their_entries_synced(tmp_path: Path) -> None:
    recorded = Recorded()
    Directories(str(tmp_path), recorded.disk).ensure(f"{tmp_path}/repositories/a/_manifests/tags/v1/current")
    made = ["repositories", "a", "_manifests", "tags", "v1", "current"]
    paths = [str(tmp_path.joinpath(*made[:count])) for count in range(len(made) + 1)]
    assert recorded.asked("mkdir") == paths[1:]
    assert recorded.asked("sync_path") == paths[:-1]


def test_a_directory_that_stays_is_looked_at_once_and_one_that_does_not_each_time(tmp_path: Path) -> None:
    recorded = Recorded()
    directories = Directories(str(tmp_path), recorded.disk)
    for _ in range(2):
        recorded.calls.clear()
        directories.ensure(f"{tmp_path}/repositories/a/_manifests/tags/v1")
    assert recorded.calls == [
        ("mkdir", f"{tmp_path}/repositories/a/_manifests/tags/v1"),
        ("sync_path", f"{tmp_path}/repositories/a/_manifests/tags"),
    ]


@pytest.mark.parametrize("removed", ["repositories", "repositories/a", "repositories/a/_manifests/tags"])
def test_a_directory_that_was_removed_by_hand_is_made_again(tmp_path: Path, removed: str) -> None:
    directories = Directories(str(tmp_path), Disk())
    wanted = tmp_path / "repositories/a/_manifests/tags/v1"
    directories.ensure(str(wanted))
    shutil.rmtree(tmp_path / removed)
    directories.ensure(str(wanted))
    assert wanted.is_dir()


def test_a_root_that_is_gone_is_not_made(tmp_path: Path) -> None:
    directories = Directories(str(tmp_path / "gone"), Disk())
    with pytest.raises(FileNotFoundError):
        directories.ensure(str(tmp_path / "gone" / "repositories" / "a"))


def test_no_more_directories_are_remembered_than_there_is_room_for(tmp_path: Path) -> None:
    recorded = Recorded()
    directories = Directories(str(tmp_path), recorded.disk, most=10)
    first = f"{tmp_path}/repositories/0/_uploads"
    for number in range(4):
        directories.ensure(f"{tmp_path}/repositories/{number}/_uploads")
    recorded.calls.clear()
    directories.ensure(first)
    assert recorded.asked("mkdir") == []
    for number in range(4, 10):
        directories.ensure(f"{tmp_path}/repositories/{number}/_uploads")
    recorded.calls.clear()
    directories.ensure(first)
    assert first in recorded.asked("mkdir")


ODD = "tags/tmp/repositories/blobs/revisions/sha256"  # a repository may have any of these names
PERMANENT = [
    "_cluster",
    "_cluster/tmp",
    "_cluster/locks",
    "_cluster/nodes",
    "blobs",
    "blobs/sha256",
    "blobs/sha256/ab",
    "repositories",
    "repositories/a",
    f"repositories/{ODD}",
    *(f"repositories/{name}/{directory}" for name in ("a", "a/b", ODD) for directory in (
        "_uploads",
        "_referrers",
        "_layers",
        "_layers/sha256",
        "_manifests",
        "_manifests/_locks",
        "_manifests/_names",
        "_manifests/tags",
        "_manifests/revisions",
        "_manifests/revisions/sha512",
    )),
]  # fmt: skip
TAGS = [
    "v1",
    "tmp",
    "tags",
    "repositories",
    "blobs",
    "revisions",
    "locks",
    "_locks",
    "_uploads",
    "_manifests",
    "sha256",
]
GOES = [
    "blobs/sha256/ab/" + "ab" * 32,
    "repositories/a/_manifests/_names/tags",
    "repositories/a/_uploads/0b1c",
    "repositories/a/_uploads/0b1c/_seg",
    "repositories/a/_layers/sha256/" + "ab" * 32,
    "repositories/a/_manifests/revisions/sha256/" + "ab" * 32,
    "tmp",
    "tags",
    *(f"repositories/{name}/_manifests/tags/{tag}{below}" for name in ("a", ODD) for tag in TAGS for below in (
        "",
        "/current",
        "/index",
        "/index/sha256",
        "/index/sha256/" + "ab" * 32,
    )),
]  # fmt: skip


@pytest.mark.parametrize("path", PERMANENT)
def test_what_no_registry_removes_is_permanent(path: str) -> None:
    assert layout.is_permanent(path)


@pytest.mark.parametrize("path", GOES)
def test_what_a_registry_removes_is_not_permanent(path: str) -> None:
    assert not layout.is_permanent(path)


@pytest.mark.parametrize("tag", ["v1", "tmp", "tags", "repositories"])
async def test_a_tag_that_another_node_made_again_is_made_durable(
    tmp_path: Path, threads: Threads, tag: str
) -> None:
    """It may have died before it had synced the directory that it made."""
    recorded = Recorded()
    driver = FilesystemDriver(str(tmp_path), threads, recorded.disk)
    link = layout.tag_link(RepositoryName("a"), Tag(tag))
    await driver.write(link, b"one")
    await driver.remove(layout.tag(RepositoryName("a"), Tag(tag)))
    (tmp_path / link).parent.mkdir(parents=True)
    recorded.calls.clear()
    await driver.write(link, b"two")
    assert str(tmp_path / layout.tags(RepositoryName("a"))) in recorded.asked("sync_path")


class Stubborn(Disk):
    """Lets nobody remove a link, as where its directory is another user's."""

    def unlink(self, path: str) -> None:
        if path.endswith("/link"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        super().unlink(path)


@pytest.mark.parametrize("path", [LINK, os.path.dirname(LINK)])
async def test_what_cannot_be_removed_is_an_error_and_not_missing(
    tmp_path: Path, threads: Threads, path: str
) -> None:
    """A delete that finds nothing is one that somebody else has done, and is acknowledged."""
    driver = FilesystemDriver(str(tmp_path), threads, Stubborn())
    await driver.write(LINK, b"digest")
    with pytest.raises(StorageError) as refusal:
        await driver.remove(path)
    assert not isinstance(refusal.value, NotFound)
    assert await driver.read(LINK) == b"digest"


def test_a_tree_is_removed_whoever_else_removes_it(tmp_path: Path) -> None:
    for name in ("a", "b/c", "b/d/e"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(b"content")
    remove_tree(Disk(), str(tmp_path / "tree"))
    assert os.listdir(tmp_path) == []
    remove_tree(Disk(), str(tmp_path / "tree"))


# The durable write


async def test_a_write_is_synced_before_it_has_its_name_and_the_name_before_it_returns(
    tmp_path: Path, threads: Threads
) -> None:
    recorded = Recorded()
    await FilesystemDriver(str(tmp_path), threads, recorded.disk).write(LINK, b"content")
    order = [call for call, _ in recorded.calls]
    last_rename = len(order) - 1 - order[::-1].index("rename")
    assert "sync" in order[:last_rename]
    assert recorded.calls[-1] == ("sync_path", str((tmp_path / LINK).parent))


async def test_what_never_changes_is_read_only_and_what_does_is_not(tmp_path: Path, threads: Threads) -> None:
    """Rule B1. Distribution, which may be another user, reads both and looks for the first before it writes it."""
    driver = FilesystemDriver(str(tmp_path), threads)
    data = layout.blob(Digest.of(b"manifest"))
    for path, content in ((data, b"manifest"), (LINK, b"one"), (LINK, b"two")):
        await driver.write(path, content)
    assert (tmp_path / data).stat().st_mode & 0o777 == 0o444
    assert (tmp_path / LINK).stat().st_mode & 0o200
    (tmp_path / data).chmod(0o644)
    (tmp_path / data).write_bytes(b"torn")
    await driver.write(data, b"manifest")
    assert (tmp_path / data).read_bytes() == b"manifest"


async def test_an_equal_write_makes_durable_what_is_there_and_writes_nothing(
    tmp_path: Path, threads: Threads
) -> None:
    recorded = Recorded()
    driver = FilesystemDriver(str(tmp_path), threads, recorded.disk)
    await driver.write(LINK, b"content")
    inode = (tmp_path / LINK).stat().st_ino
    recorded.calls.clear()
    await driver.write(LINK, b"content")
    assert (tmp_path / LINK).stat().st_ino == inode
    assert not recorded.asked("write") and str(tmp_path / LINK) in recorded.asked("sync_path")


async def test_a_file_that_goes_during_an_equal_write_is_written_again(tmp_path: Path, threads: Threads) -> None:
    path = tmp_path / LINK
    driver = FilesystemDriver(str(tmp_path), threads)
    await driver.write(LINK, b"content")

    def remove(call: str, arguments: tuple[object, ...], outcome: object) -> None:
        if call == "read" and arguments == (str(path),):
            path.unlink()

    other = FilesystemDriver(str(tmp_path), threads, SteppingDisk(lambda *_: None, remove))
    await other.write(LINK, b"content")
    assert path.read_bytes() == b"content"


async def test_a_failed_write_leaves_no_temporary_file(tmp_path: Path, threads: Threads) -> None:
    driver = FilesystemDriver(str(tmp_path), threads)
    (tmp_path / "in-the-way").write_bytes(b"a file")
    with pytest.raises(StorageError):
        await driver.write("in-the-way/link", b"content")
    assert os.listdir(tmp_path / layout.TEMPORARY) == []


async def test_what_a_crash_left_is_swept_by_age(tmp_path: Path, threads: Threads) -> None:
    driver = FilesystemDriver(str(tmp_path), threads)
    assert await driver.sweep(time.time()) == 0
    await driver.write(LINK, b"content")
    for name, age in (("old", 100), ("young", 0)):
        path = tmp_path / layout.TEMPORARY / name
        path.write_bytes(b"left")
        os.utime(path, (time.time() - age, time.time() - age))
    assert await driver.sweep(time.time() - 50) == 1
    assert os.listdir(tmp_path / layout.TEMPORARY) == ["young"]


# The probe


async def test_the_probe_makes_the_temporary_directory_again(tmp_path: Path, threads: Threads) -> None:
    driver = FilesystemDriver(str(tmp_path), threads)
    await driver.probe()
    shutil.rmtree(tmp_path / "_cluster")
    await driver.probe()


async def test_the_probe_of_storage_that_is_gone_fails(tmp_path: Path, threads: Threads) -> None:
    for writable in (True, False):
        with pytest.raises(StorageError):
            await FilesystemDriver(str(tmp_path / "gone"), threads, writable=writable).probe()


async def test_the_probe_writes_nothing_where_nothing_may_be_written(tmp_path: Path, threads: Threads) -> None:
    await FilesystemDriver(str(tmp_path), threads, writable=False).probe()
    assert os.listdir(tmp_path) == []


async def test_nothing_is_closed_on_the_event_loop(tmp_path: Path, threads: Threads) -> None:
    """A lock of NFS is given back to its server, FUSE is told of every close: either may hang."""
    (tmp_path / "blob").write_bytes(b"content")
    loop, closing, all_closed = asyncio.get_running_loop(), list[threading.Thread](), asyncio.Event()

    def note(call: str, _: object) -> None:
        if call == "close":
            closing.append(threading.current_thread())
            if len(closing) == 3:
                loop.call_soon_threadsafe(all_closed.set)

    disk = SteppingDisk(note, lambda *_: None)
    driver = FilesystemDriver(str(tmp_path), threads, disk)
    reader = await driver.open("blob")
    reader.close()
    async with driver.lock("lock", 1):
        pass
    writer = await SegmentUploads(str(tmp_path), driver, threads, disk).append("", 0, lambda _: None)
    await writer.discard()
    async with asyncio.timeout(60):
        await all_closed.wait()
    assert threading.current_thread() not in closing


async def test_a_blob_is_read_through_the_disk(tmp_path: Path, threads: Threads) -> None:
    """So that a disk of a test can hang or fail in the middle of one."""
    (tmp_path / "blob").write_bytes(b"content")
    recorded = Recorded()
    reader = await FilesystemDriver(str(tmp_path), threads, recorded.disk, chunk=4).open("blob")
    assert [piece async for piece in reader.chunks(1, 7)] == [b"onte", b"nt"]
    reader.close()
    assert [call for call, _ in recorded.calls][:4] == ["open", "size", "read_at", "read_at"]


class Failing(Disk):
    """Opens files, and cannot say or give what is in them."""

    def __init__(self, call: str) -> None:
        self._call = call
        self.open_files = 0

    def open(self, path: str) -> int:
        self.open_files += 1
        return super().open(path)

    def close(self, fd: int) -> None:
        self.open_files -= 1
        super().close(fd)

    def size(self, fd: int) -> int:
        self._fail("size")
        return super().size(fd)

    def read_at(self, fd: int, size: int, offset: int) -> bytes:
        self._fail("read_at")
        return super().read_at(fd, size, offset)

    def _fail(self, call: str) -> None:
        if call == self._call:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("call", ["size", "read_at"])
async def test_a_blob_that_cannot_be_read_is_an_error_and_leaves_no_file_open(
    tmp_path: Path, threads: Threads, call: str
) -> None:
    (tmp_path / "blob").write_bytes(b"content")
    disk = Failing(call)
    driver = FilesystemDriver(str(tmp_path), threads, disk)
    with pytest.raises(StorageError) as refusal:
        reader = await driver.open("blob")
        try:
            [piece async for piece in reader.chunks(0, 7)]
        finally:
            reader.close()
    assert not isinstance(refusal.value, NotFound)
    async with asyncio.timeout(60):
        while disk.open_files:  # noqa: ASYNC110 - closed in a thread
            await asyncio.sleep(0.01)


async def test_the_twin_has_room_for_a_probe(threads: Threads) -> None:
    disk = ForgetfulDisk()
    await FilesystemDriver(ROOT, threads, disk).probe()
    assert disk.names(f"{ROOT}/{layout.TEMPORARY}") == []


# Locks

HOLDER = """
import asyncio, sys
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.segments import SegmentUploads
from cluster.storage.threads import Threads

async def main():
    driver = FilesystemDriver(sys.argv[1], Threads(1, 10))
    async with driver.lock("locks/one", 10):
        print("held", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@contextmanager
def holder(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock."""
    command = [sys.executable, "-c", HOLDER, str(root)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


async def test_a_lock_is_held_while_its_holder_is_stopped_and_free_when_it_was_killed(
    tmp_path: Path, threads: Threads
) -> None:
    driver = FilesystemDriver(str(tmp_path), threads)
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(LockTimeout):
            async with driver.lock("locks/one", 0.3):
                pytest.fail("two holders of one lock")
        process.kill()
        async with driver.lock("locks/one", 10):
            pass


async def test_a_lock_is_got_in_the_order_in_which_it_was_asked_for(tmp_path: Path, threads: Threads) -> None:
    driver = FilesystemDriver(str(tmp_path), threads)
    order: list[int] = []

    async def enter(number: int) -> None:
        async with driver.lock("locks/one", 20):
            order.append(number)
            await asyncio.sleep(0.003)  # longer than the first pauses of whoever comes

    await asyncio.gather(*(enter(number) for number in range(32)))
    assert order == list(range(32))


async def test_who_gives_up_waiting_for_a_lock_is_in_nobodys_way(tmp_path: Path, threads: Threads) -> None:
    driver = FilesystemDriver(str(tmp_path), threads)

    async def enter(timeout: float) -> None:
        async with driver.lock("locks/one", timeout):
            pass

    async with driver.lock("locks/one", 1):
        cancelled, late, patient = (asyncio.create_task(enter(timeout)) for timeout in (20, 0.05, 20))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(LockTimeout):
            await late
    await patient
    assert cancelled.cancelled()


async def test_a_process_whose_queue_is_never_empty_leaves_a_lock_to_others(
    tmp_path: Path, threads: Threads
) -> None:
    """The two are as two processes: flock is of the opening."""
    busy, other = FilesystemDriver(str(tmp_path), threads), FilesystemDriver(str(tmp_path), threads)
    held: list[str] = []

    async def enter() -> None:
        while "other" not in held:
            async with busy.lock("locks/one", 20):
                held.append("busy")
                await asyncio.sleep(0.25)

    writers = [asyncio.create_task(enter()) for _ in range(2)]
    await asyncio.sleep(0.1)
    async with other.lock("locks/one", 20):
        held.append("other")
    await asyncio.gather(*writers)
    assert held.index("other") <= 4


class LosingDisk(Disk):
    """One whose server drops the lock of a node that it did not hear of, and gives it to the next who asks."""

    def __init__(self) -> None:
        self.lost: set[int] = set()
        self.confirmed: list[int] = []
        self.locked = -1

    def open_lock(self, path: str) -> int:
        self.locked = super().open_lock(path)
        return self.locked

    def lose(self) -> None:
        fcntl.flock(self.locked, fcntl.LOCK_UN)
        self.lost.add(self.locked)

    def confirm_lock(self, fd: int) -> None:
        super().confirm_lock(fd)
        self.confirmed.append(fd)
        if fd in self.lost:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("change", ["write", "remove"])
async def test_who_has_lost_a_lock_to_another_node_changes_nothing(
    tmp_path: Path, threads: Threads, change: str
) -> None:
    disk = LosingDisk()
    driver, other = FilesystemDriver(str(tmp_path), threads, disk), FilesystemDriver(str(tmp_path), threads)
    await driver.write("tag", b"before")
    assert not disk.confirmed, "under no lock there is nothing to be asked"
    async with driver.lock("locks/one", 1):
        await driver.write("tag", b"ours")
        assert disk.confirmed == [disk.locked]
        disk.lose()
        async with other.lock("locks/one", 1):
            await other.write("tag", b"theirs")
        with pytest.raises(StorageError, match="error"):
            await (driver.write("tag", b"late") if change == "write" else driver.remove("tag"))
    assert await other.read("tag") == b"theirs"
    assert os.listdir(tmp_path / layout.TEMPORARY) == []


async def test_a_task_that_outlives_the_lock_asks_nothing_of_its_descriptor(
    tmp_path: Path, threads: Threads
) -> None:
    """By then it may be another file's."""
    disk, over = LosingDisk(), asyncio.Event()
    driver = FilesystemDriver(str(tmp_path), threads, disk)

    async def later() -> None:
        await over.wait()
        await driver.write("file", b"content")

    async with driver.lock("locks/one", 1):
        task = asyncio.create_task(later())
    over.set()
    await task
    assert not disk.confirmed


async def test_a_lock_is_confirmed_where_there_is_no_room(tmp_path: Path) -> None:
    """A tag can be deleted then; that is how room is made."""
    full = os.open("/dev/full", os.O_RDWR)
    try:
        Disk().confirm_lock(full)
    finally:
        os.close(full)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Disk().confirm_lock(full)


# What another host has replaced


class StaleDisk(Disk):
    """One whose server has removed the files that were opened first."""

    def __init__(self, stale: int) -> None:
        self.stale = stale
        self.closed = 0

    def size(self, fd: int) -> int:
        if self.stale:
            self.stale -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return super().size(fd)

    def close(self, fd: int) -> None:
        self.closed += 1
        super().close(fd)


async def test_a_file_that_is_replaced_while_it_is_opened_is_opened_again(tmp_path: Path, threads: Threads) -> None:
    (tmp_path / "file").write_bytes(b"content")
    disk = StaleDisk(2)
    reader = await FilesystemDriver(str(tmp_path), threads, disk).open("file")
    assert (reader.size, disk.closed) == (7, 2)
    reader.close()


async def test_a_file_that_is_gone_each_time_is_an_error(tmp_path: Path, threads: Threads) -> None:
    (tmp_path / "file").write_bytes(b"content")
    disk = StaleDisk(100)
    with pytest.raises(StorageError, match="Stale"):
        await FilesystemDriver(str(tmp_path), threads, disk).open("file")
    assert disk.closed == 100 - disk.stale < 10


@contextmanager
def stale_once(module: object, name: str) -> Iterator[None]:
    """The system says at the next call that the file is stale."""
    call, told = getattr(module, name), []

    def stale(*arguments: object) -> object:
        if not told:
            told.append(arguments)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return call(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, stale)
        yield
    assert told


def test_a_look_at_a_name_is_made_again_where_the_file_is_stale(tmp_path: Path) -> None:
    disk, path = Disk(), str(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"content")
    with stale_once(builtins, "open"):
        assert disk.read(path) == b"content"
    with stale_once(os, "stat"):
        assert disk.status(path).size == 7
    with stale_once(os, "listdir"):
        assert disk.names(str(tmp_path)) == ["file"]
    with stale_once(os, "open"):
        disk.close(disk.open(path))


def test_a_session_that_another_host_has_ended_is_missing(tmp_path: Path, threads: Threads) -> None:
    sessions = Sessions(FilesystemDriver(str(tmp_path), threads), Disk())
    with stale_once(os, "listdir"), pytest.raises(FileNotFoundError):
        sessions.chain(str(tmp_path / "session"))
