"""Upload sessions between processes: writers that are killed or stopped (U4), and what Distribution left (U11)."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.storage import layout
from cluster.storage.disk import Disk
from cluster.storage.driver import NotFound, OffsetTaken, StorageFull
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.segments import SegmentUploads
from cluster.storage.threads import Threads
from tests.support.disks import SteppingDisk
from tests.support.tools import PROJECT

pytestmark = pytest.mark.anyio

UUID = "0b1c2d3e-1111-4222-8333-444455556666"
SESSION = f"repositories/team/app/_uploads/{UUID}"
BLOB = f"blobs/sha256/ab/{'ab' * 32}/data"
MIB = 1024 * 1024
STARTED = "2024-01-02T03:04:05Z"

WRITER = """
import asyncio, sys
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.segments import SegmentUploads
from cluster.storage.threads import Threads

async def main(root, session, offset, size):
    threads = Threads(2, 10)
    driver = FilesystemDriver(root, threads)
    writer = await SegmentUploads(root, driver, threads).append(session, int(offset), lambda piece: None)
    await writer.write([b"w" * int(size)])
    print("written", flush=True)
    sys.stdin.readline()
    try:
        await writer.seal()
    except Exception as error:
        print(type(error).__name__, flush=True)
    else:
        print("sealed", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def uploads(tmp_path: Path, threads: Threads) -> SegmentUploads:
    return SegmentUploads(str(tmp_path), FilesystemDriver(str(tmp_path), threads), threads)


@contextmanager
def writer_process(root: Path, offset: int, size: int) -> Iterator[subprocess.Popen[str]]:
    """Another node in the middle of a PATCH; it has written, and seals when it is told to."""
    command = [sys.executable, "-c", WRITER, str(root), SESSION, str(offset), str(size)]
    with subprocess.Popen(
        command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "written\n"
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> str:
    """Wake the writer and hear what became of its seal."""
    process.send_signal(signal.SIGCONT)
    answer, _ = process.communicate("go on\n", timeout=30)
    return answer.strip()


async def add(uploads: SegmentUploads, offset: int, data: bytes) -> None:
    writer = await uploads.append(SESSION, offset, lambda _: None)
    await writer.write([data])
    await writer.seal()
    await writer.discard()


async def content(uploads: SegmentUploads) -> bytes:
    seen: list[bytes] = []
    await uploads.replay(SESSION, 0, await uploads.extent(SESSION), seen.append)
    return b"".join(seen)


def private_files(root: Path) -> list[str]:
    return [name for name in os.listdir(root / SESSION / "_seg") if "." in name]


# U4


@pytest.mark.parametrize("before", [b"", b"acknowledged "])
async def test_what_a_killed_writer_has_written_is_taken_over(
    tmp_path: Path, uploads: SegmentUploads, before: bytes
) -> None:
    await uploads.create(SESSION, STARTED)
    if before:
        await add(uploads, 0, before)
    with writer_process(tmp_path, len(before), 5_000_000) as process:
        assert await uploads.extent(SESSION) == len(before)
        process.kill()
        process.wait(30)
        assert await uploads.extent(SESSION) == len(before) + 5_000_000
    assert private_files(tmp_path) == []
    await add(uploads, len(before) + 5_000_000, b" and on")
    assert await content(uploads) == before + b"w" * 5_000_000 + b" and on"


async def test_a_living_writer_is_left_alone(tmp_path: Path, uploads: SegmentUploads) -> None:
    await uploads.create(SESSION, STARTED)
    with writer_process(tmp_path, 0, 1000) as process:
        for number in (None, signal.SIGSTOP):
            if number is not None:
                process.send_signal(number)
            assert await uploads.extent(SESSION) == 0
        assert finish(process) == "sealed"
    assert await content(uploads) == b"w" * 1000


@pytest.mark.parametrize("ended", ["committed", "committed and removed", "cancelled", "purged"])
async def test_a_stopped_writer_that_wakes_too_late_changes_nothing(
    tmp_path: Path, uploads: SegmentUploads, ended: str
) -> None:
    await uploads.create(SESSION, STARTED)
    with writer_process(tmp_path, 0, 1000) as process:
        process.send_signal(signal.SIGSTOP)
        await add(uploads, 0, b"the newcomer's bytes")
        if "committed" in ended:
            await uploads.commit(SESSION, 20, BLOB)
        if ended == "purged":
            assert not await uploads.purge(SESSION, 1e12), "a stopped writer is alive"
        if ended != "committed":
            await uploads.remove(SESSION)
        expected = OffsetTaken if ended == "committed" else NotFound
        assert finish(process) == expected.__name__
    if "committed" in ended:
        assert (tmp_path / BLOB).read_bytes() == b"the newcomer's bytes"
        assert (tmp_path / BLOB).stat().st_mode & 0o222 == 0
    if ended != "committed":
        with pytest.raises(NotFound):
            await uploads.extent(SESSION)


async def test_the_longest_of_several_leftovers_is_taken_over(tmp_path: Path, uploads: SegmentUploads) -> None:
    await uploads.create(SESSION, STARTED)
    for number, size in enumerate((3, 7, 0, 5)):
        (tmp_path / SESSION / "_seg" / f"{0:020d}.{number:016x}").write_bytes(b"%d" % size * size)
    assert await uploads.extent(SESSION) == 7
    assert await content(uploads) == b"7777777"


async def test_leftovers_that_begin_one_behind_the_other_are_all_taken_over(
    tmp_path: Path, uploads: SegmentUploads
) -> None:
    await uploads.create(SESSION, STARTED)
    for offset, data in ((0, b"aaa"), (3, b"bb"), (5, b"c"), (9, b"out of reach")):
        (tmp_path / SESSION / "_seg" / f"{offset:020d}.{offset:016x}").write_bytes(data)
    assert await uploads.extent(SESSION) == 6
    assert await content(uploads) == b"aaabbc"


async def test_what_broke_off_is_taken_over_once_the_writer_to_which_it_gave_way_has_died(
    tmp_path: Path, uploads: SegmentUploads
) -> None:
    await uploads.create(SESSION, STARTED)
    with writer_process(tmp_path, 0, 3):
        broken = await uploads.append(SESSION, 0, lambda _: None)
        await broken.write([b"what came"])
        assert not await broken.leave()
        await broken.discard()
    assert await content(uploads) == b"what came"
    assert private_files(tmp_path) != []  # the shorter one is the purger's


async def test_a_leftover_is_copied_because_its_writer_might_wake(tmp_path: Path, uploads: SegmentUploads) -> None:
    """On NFS a stopped writer can lose its lock, and its file must not become part of a blob."""
    await uploads.create(SESSION, STARTED)
    leftover = tmp_path / SESSION / "_seg" / f"{0:020d}.{0:016x}"
    with leftover.open("wb", buffering=0) as writer:
        writer.write(b"as it was")
        assert await uploads.extent(SESSION) == 9
        await uploads.commit(SESSION, 9, BLOB)
        writer.write(b", and late bytes")
    assert (tmp_path / BLOB).read_bytes() == b"as it was"


async def test_a_writer_that_is_taken_for_dead_while_it_seals_is_refused_and_not_lost(
    tmp_path: Path, threads: Threads, uploads: SegmentUploads
) -> None:
    """Between closing its file and linking it a writer holds no lock; a status may come in just there."""
    await uploads.create(SESSION, STARTED)
    loop = asyncio.get_running_loop()
    asked: list[int] = []

    def before(call: str, arguments: tuple[object, ...]) -> None:
        if call == "link" and not asked:
            asked.append(asyncio.run_coroutine_threadsafe(uploads.extent(SESSION), loop).result(10))

    disk = SteppingDisk(before, lambda *_: None)
    slow = SegmentUploads(str(tmp_path), FilesystemDriver(str(tmp_path), threads, disk), threads, disk)
    with pytest.raises(OffsetTaken):
        await add(slow, 0, b"bytes")
    assert asked == [5]
    assert await content(uploads) == b"bytes"


class NfsDisk(Disk):
    """Locks as on NFS: an exclusive one needs a descriptor that might write, a shared one one that reads."""

    def try_lock(self, fd: int) -> bool:
        self._must_be(fd, os.O_RDONLY)
        return super().try_lock(fd)

    def is_locked(self, fd: int) -> bool:
        self._must_be(fd, os.O_WRONLY)
        return super().is_locked(fd)

    def _must_be(self, fd: int, other_than: int) -> None:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == other_than:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def on(disk: Disk, root: Path, threads: Threads) -> SegmentUploads:
    return SegmentUploads(str(root), FilesystemDriver(str(root), threads, disk), threads, disk)


async def test_what_a_dead_writer_left_is_taken_over_on_nfs(tmp_path: Path, threads: Threads) -> None:
    uploads = on(NfsDisk(), tmp_path, threads)
    await uploads.create(SESSION, STARTED)
    with writer_process(tmp_path, 0, 1000) as process:
        assert await uploads.extent(SESSION) == 0
        assert not await uploads.purge(SESSION, 1e12), "its writer is alive"
        process.kill()
        process.wait(30)
        assert await uploads.extent(SESSION) == 1000


class CopyingDisk(Disk):
    """Copies take until they are let go on; counts them."""

    def __init__(self) -> None:
        self.copies = 0
        self.begun, self.go_on = threading.Event(), threading.Event()

    def copy(self, source: str, fd: int, size: int) -> None:
        self.copies += 1
        self.begun.set()
        assert self.go_on.wait(10)
        super().copy(source, fd, size)


async def test_what_a_dead_writer_left_is_copied_once_however_many_ask(tmp_path: Path, threads: Threads) -> None:
    disk = CopyingDisk()
    uploads = on(disk, tmp_path, threads)
    await uploads.create(SESSION, STARTED)
    await asyncio.to_thread((tmp_path / SESSION / "_seg" / f"{0:020d}.{0:016x}").write_bytes, b"left behind")
    asked = [asyncio.create_task(on(disk, tmp_path, threads).extent(SESSION)) for _ in range(5)]
    await asyncio.to_thread(disk.begun.wait, 10)
    assert not await uploads.purge(SESSION, 1e12), "somebody is at it"
    disk.go_on.set()
    assert (await asyncio.gather(*asked), disk.copies) == ([11] * 5, 1)
    assert private_files(tmp_path) == []


async def begin_two_segments(uploads: SegmentUploads) -> None:
    await uploads.create(SESSION, STARTED)
    await add(uploads, 0, b"one, ")
    await add(uploads, 5, b"two")


async def test_a_commit_that_is_repeated_while_it_copies_copies_once(tmp_path: Path, threads: Threads) -> None:
    disk = CopyingDisk()
    await begin_two_segments(on(disk, tmp_path, threads))
    commits = [asyncio.create_task(on(disk, tmp_path, threads).commit(SESSION, 8, BLOB)) for _ in range(5)]
    await asyncio.to_thread(disk.begun.wait, 10)
    await asyncio.sleep(0.1)
    disk.go_on.set()
    await asyncio.gather(*commits)
    assert disk.copies == 2  # of the two segments
    assert (tmp_path / BLOB).read_bytes() == b"one, two"


async def test_a_commit_whose_lock_somebody_holds_for_ever_goes_on_without(
    tmp_path: Path, threads: Threads
) -> None:
    uploads = SegmentUploads(str(tmp_path), FilesystemDriver(str(tmp_path), threads), threads, patience=0.1)
    await begin_two_segments(uploads)
    (tmp_path / SESSION / "_seg" / f"{8:020d}.{0:016x}").write_bytes(b", three")
    with (tmp_path / SESSION / "_seg" / "copying").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert await uploads.extent(SESSION) == 15
        await uploads.commit(SESSION, 15, BLOB)
        assert (tmp_path / BLOB).read_bytes() == b"one, two, three"
        assert not await uploads.purge(SESSION, 1e12), "somebody is at it"
    assert await uploads.purge(SESSION, 1e12)


async def test_a_commit_of_what_is_there_already_copies_nothing(tmp_path: Path, threads: Threads) -> None:
    disk = CopyingDisk()
    uploads = on(disk, tmp_path, threads)
    await begin_two_segments(uploads)
    (tmp_path / BLOB).parent.mkdir(parents=True)
    (tmp_path / BLOB).write_bytes(b"one, two")
    await uploads.commit(SESSION, 8, BLOB)
    assert disk.copies == 0


# U11


def begin_as_distribution(root: Path, data: bytes) -> None:
    (root / SESSION / "hashstates" / "sha256").mkdir(parents=True)
    (root / SESSION / "startedat").write_bytes(STARTED.encode())
    (root / SESSION / "data").write_bytes(data)
    (root / SESSION / "hashstates" / "sha256" / "0").write_bytes(b"not read: it stands for no byte")


async def test_a_session_of_distribution_goes_on_behind_its_data(tmp_path: Path, uploads: SegmentUploads) -> None:
    begin_as_distribution(tmp_path, b"theirs, ")
    assert await uploads.started_at(SESSION) == STARTED
    assert await uploads.extent(SESSION) == 8
    await add(uploads, 8, b"ours")
    assert await content(uploads) == b"theirs, ours"
    await uploads.commit(SESSION, 12, BLOB)
    assert (tmp_path / BLOB).read_bytes() == b"theirs, ours"
    assert (tmp_path / SESSION / "data").read_bytes() == b"theirs, "


@pytest.mark.parametrize("data", [b"", b"all of it"])
async def test_a_session_of_distribution_can_be_committed_as_it_is(
    tmp_path: Path, uploads: SegmentUploads, data: bytes
) -> None:
    begin_as_distribution(tmp_path, data)
    await uploads.commit(SESSION, len(data), BLOB)
    assert (tmp_path / BLOB).read_bytes() == data


async def test_late_bytes_of_distribution_reach_neither_the_session_nor_the_blob(
    tmp_path: Path, uploads: SegmentUploads
) -> None:
    begin_as_distribution(tmp_path, b"theirs, ")
    with (tmp_path / SESSION / "data").open("ab", buffering=0) as late:
        await add(uploads, 8, b"ours")
        late.write(b"and more")
        assert await content(uploads) == b"theirs, ours"
        await uploads.commit(SESSION, 12, BLOB)
        late.write(b"and even more")
    assert (tmp_path / BLOB).read_bytes() == b"theirs, ours"


async def test_states_beside_the_data_of_distribution_are_ours_alone(
    tmp_path: Path, uploads: SegmentUploads
) -> None:
    """Without a state of exactly the size, Distribution keeps one of the new bytes, named by their number."""
    begin_as_distribution(tmp_path, b"theirs, ")
    theirs = tmp_path / SESSION / "hashstates" / "sha256"
    for offset in (3, 8, 12):
        (theirs / str(offset)).write_bytes(b"of other bytes")
    assert await uploads.load_state(SESSION, "sha256", 12) is None
    await uploads.save_state(SESSION, "sha256", 8, b"ours")
    assert await uploads.load_state(SESSION, "sha256", 8) == (8, b"ours")
    assert await uploads.load_state(SESSION, "sha256", 12) == (8, b"ours")
    assert (theirs / "8").read_bytes() == b"of other bytes"


class FullDisk(Disk):
    def write(self, fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_a_state_for_which_there_is_no_room_leaves_no_temporary_file(
    tmp_path: Path, threads: Threads, uploads: SegmentUploads
) -> None:
    await uploads.create(SESSION, STARTED)
    with pytest.raises(StorageFull):
        await on(FullDisk(), tmp_path, threads).save_state(SESSION, "sha256", 4, b"four")
    assert os.listdir(tmp_path / layout.TEMPORARY) == []


# Small things


async def test_a_large_commit_is_the_concatenation(tmp_path: Path, uploads: SegmentUploads) -> None:
    await uploads.create(SESSION, STARTED)
    digest, offset = hashlib.sha256(), 0
    for number in range(5):
        data = os.urandom(3_000_000 + number)
        digest.update(data)
        await add(uploads, offset, data)
        offset += len(data)
    await uploads.commit(SESSION, offset, BLOB)
    assert hashlib.sha256((tmp_path / BLOB).read_bytes()).digest() == digest.digest()
    assert private_files(tmp_path) == []


async def test_copying_works_where_the_kernel_cannot(tmp_path: Path) -> None:
    """It copies from file to file only; what it refuses is read and written."""
    (tmp_path / "source").write_bytes(bytes(range(250)) * 200)
    reading, writing = os.pipe()
    try:
        Disk().copy(str(tmp_path / "source"), writing, 49_999)
        assert os.read(reading, 100_000) == (bytes(range(250)) * 200)[:49_999]
    finally:
        os.close(reading)
        os.close(writing)


async def test_a_file_that_is_shorter_than_it_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"short")
    fd = Disk().create(str(tmp_path / "target"))
    try:
        with pytest.raises(OSError, match="ended"):
            Disk().copy(str(tmp_path / "source"), fd, 6)
    finally:
        os.close(fd)
    with pytest.raises(OSError, match="ended"):
        list(Disk().pieces(str(tmp_path / "source"), 0, 6, 4))


async def test_what_was_to_be_sealed_is_published_although_its_caller_gave_up_before_a_thread_was_free(
    tmp_path: Path,
) -> None:
    threads, free = Threads(1, 10), threading.Event()
    uploads = SegmentUploads(str(tmp_path), FilesystemDriver(str(tmp_path), threads), threads)
    try:
        await uploads.create(SESSION, STARTED)
        writer = await uploads.append(SESSION, 0, lambda _: None)
        await writer.write([b"what came"])
        busy = threads.begin(free.wait, 30)
        sealing = asyncio.create_task(writer.seal())
        await asyncio.sleep(0)  # it waits for the thread
        sealing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sealing
        await writer.discard()
        free.set()
        await busy
        assert await content(uploads) == b"what came"
        assert private_files(tmp_path) == []
    finally:
        free.set()
        threads.close()


async def test_a_published_segment_is_looked_at_once(tmp_path: Path, threads: Threads) -> None:
    looked: list[str] = []

    def before(call: str, arguments: tuple[object, ...]) -> None:
        if call == "status" and str(arguments[0]).rpartition("/")[2].isdecimal():
            looked.append(str(arguments[0]))

    uploads, other = (on(disk, tmp_path, threads) for disk in (SteppingDisk(before, lambda *_: None), Disk()))
    await uploads.create(SESSION, STARTED)
    for number in range(20):
        await add(uploads if number % 2 else other, number * 3, b"abc")
        assert await uploads.extent(SESSION) == number * 3 + 3
    assert len(looked) == 20
    assert await content(uploads) == b"abc" * 20
    await uploads.commit(SESSION, 60, BLOB)
    assert (tmp_path / BLOB).read_bytes() == b"abc" * 20
    assert len(looked) == 20
    await uploads.remove(SESSION)
    await uploads.create(SESSION, STARTED)
    assert await uploads.extent(SESSION) == 0


def test_an_error_that_the_disk_tells_when_it_begins_to_write_is_raised(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH)  # a descriptor that nothing can be written by
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            Disk().start_writeback(fd, 0, 1)
    finally:
        os.close(fd)


def test_where_the_disk_cannot_begin_early_nothing_happens() -> None:
    ends = os.pipe()
    try:
        Disk().start_writeback(ends[1], 0, 1)
    finally:
        for fd in ends:
            os.close(fd)


class SlowDisk(Disk):
    """One that takes a while for each write."""

    def write_at(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        time.sleep(0.02)
        super().write_at(fd, data, offset)


async def test_an_upload_gives_its_thread_back_although_storage_is_slow(tmp_path: Path, threads: Threads) -> None:
    disk = SlowDisk()
    uploads = SegmentUploads(str(tmp_path), FilesystemDriver(str(tmp_path), threads, disk), threads, disk)
    await uploads.create(SESSION, STARTED)
    writer = await uploads.append(SESSION, 0, lambda _: None)
    assert await writer.fill(bytes), "there is more"
    assert writer.size < 1024 * 1024
    await writer.discard()


class WatchedDisk(Disk):
    """The real one, and what it was told to begin with."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []

    def start_writeback(self, fd: int, start: int, size: int) -> None:
        self.begun.append((start, size))
        super().start_writeback(fd, start, size)


async def test_the_disk_begins_to_write_long_before_the_sync(tmp_path: Path, threads: Threads) -> None:
    disk = WatchedDisk()
    uploads = SegmentUploads(str(tmp_path), FilesystemDriver(str(tmp_path), threads, disk), threads, disk)
    await uploads.create(SESSION, STARTED)
    shown = 0

    def observe(data: bytes) -> None:
        nonlocal shown
        shown += len(data)

    writer = await uploads.append(SESSION, 0, observe)
    for _ in range(20):
        await writer.write([bytes(MIB // 2), bytes(MIB // 2)])
    await writer.seal()
    assert disk.begun == [(0, 8 * MIB), (8 * MIB, 8 * MIB)]
    assert shown == await uploads.extent(SESSION) == 20 * MIB
