"""Blocking calls beside the event loop: the time limit, the errors, and what a call that hangs goes on holding."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.errors import StorageError
from cluster.storage.disk import Disk
from cluster.storage.driver import LockTimeout, NotFound, StorageFull, StorageTimeout
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.segments import SegmentUploads
from cluster.storage.threads import Tenure, Threads

pytestmark = pytest.mark.anyio

LIMIT = 1.0  # seconds; what does not hang ends within them on a busy machine too, so it syncs nothing


class HangingDisk(Disk):
    """A disk on which opening and writing hang while it is told to."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.let_go.set()
        self.hanging = threading.Event()
        self.closed: list[int] = []

    def create(self, path: str) -> int:
        self._wait()
        return super().create(path)

    def open(self, path: str) -> int:
        self._wait()
        return super().open(path)

    def open_lock(self, path: str) -> int:
        self._wait()
        return super().open_lock(path)

    def write_at(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        self._wait()
        super().write_at(fd, data, offset)

    def close(self, fd: int) -> None:
        self.closed.append(fd)
        super().close(fd)

    def _wait(self) -> None:
        if not self.let_go.is_set():
            self.hanging.set()
            assert self.let_go.wait(30)


@pytest.fixture
def disk() -> Iterator[HangingDisk]:
    disk = HangingDisk()
    yield disk
    disk.let_go.set()


@pytest.fixture
def quick() -> Iterator[Threads]:
    threads = Threads(4, LIMIT)
    yield threads
    threads.close()


async def until(condition: object, what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (errno.ENOENT, NotFound),
        (errno.ENOTDIR, NotFound),
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EIO, StorageError),
        (errno.EROFS, StorageError),
        (errno.ESTALE, StorageError),
    ],
)
async def test_an_error_of_the_system_is_one_of_the_treaty(
    threads: Threads, code: int, error: type[StorageError]
) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code), "/some/path")

    for run in (threads.run, threads.run_long):
        with pytest.raises(error, match="/some/path") as caught:
            await run(fail)
        assert type(caught.value) is error


async def test_a_small_call_that_hangs_is_given_up_at_the_limit(quick: Threads, disk: HangingDisk) -> None:
    disk.let_go.clear()
    started = time.monotonic()
    with pytest.raises(StorageTimeout):
        await quick.run(disk._wait)
    assert LIMIT * 0.9 < time.monotonic() - started < LIMIT + 5


async def test_a_call_that_hangs_does_not_stop_the_loop_nor_other_calls(quick: Threads, disk: HangingDisk) -> None:
    disk.let_go.clear()
    hung = asyncio.create_task(quick.run_long(disk._wait))
    await until(disk.hanging.is_set, "the call hangs")
    assert await quick.run(lambda: "answered") == "answered"
    disk.let_go.set()
    await hung


@pytest.fixture
def no_more_threads() -> Iterator[Callable[[], object]]:
    """From the call on, the system starts no thread for this process: nobody has room for such a stack."""
    yield lambda: threading.stack_size(1 << 50)
    threading.stack_size(0)


async def test_without_room_for_more_threads_those_that_run_do_everything(
    quick: Threads, disk: HangingDisk, no_more_threads: Callable[[], object]
) -> None:
    assert await quick.run(lambda: "answered") == "answered"
    no_more_threads()
    disk.let_go.clear()
    held = [asyncio.create_task(quick.run_long(disk._wait)) for _ in range(8)]
    await until(disk.hanging.is_set, "the one thread is busy")
    disk.let_go.set()
    await asyncio.gather(*held)
    threading.stack_size(0)
    disk.let_go.clear()
    disk.hanging.clear()
    hung = asyncio.create_task(quick.run_long(disk._wait))
    await until(disk.hanging.is_set, "the call hangs")
    assert await quick.run(lambda: "answered") == "answered", "with room again there are more"
    disk.let_go.set()
    await hung


async def test_without_any_thread_a_call_fails_at_once_and_leaves_no_trace(
    quick: Threads, no_more_threads: Callable[[], object]
) -> None:
    released: list[str] = []
    tenure = Tenure(lambda: released.append("now"))
    no_more_threads()
    with pytest.raises(StorageError, match="no thread"), tenure:
        await quick.run(lambda: "answered")
    tenure.end()
    assert released == ["now"], "nothing was begun that it would have to wait for"
    threading.stack_size(0)
    assert await quick.run(lambda: "answered") == "answered"


async def test_a_call_that_waits_for_a_thread_when_its_caller_gives_up_does_not_take_place(
    disk: HangingDisk,
) -> None:
    threads = Threads(1, LIMIT)
    took_place: list[str] = []
    released: list[str] = []
    disk.let_go.clear()
    hung = asyncio.create_task(threads.run_long(disk._wait))
    await until(disk.hanging.is_set, "the only thread is busy")
    tenure = Tenure(lambda: released.append("released"))
    with tenure, pytest.raises(StorageTimeout):
        await threads.run(took_place.append, "late")
    tenure.end()
    disk.let_go.set()
    await hung
    await threads.run_long(took_place.append, "next")
    assert took_place == ["next"]
    assert released == ["released"]
    threads.close()


async def test_a_call_that_was_begun_goes_on_while_its_caller_does_something_else(quick: Threads) -> None:
    go = threading.Event()
    begun = quick.begin(go.wait, 30)
    assert not begun.done()
    go.set()
    assert await begun


async def test_long_calls_leave_threads_to_small_ones_and_all_have_their_turn(
    quick: Threads, disk: HangingDisk
) -> None:
    """A body that comes faster than it is stored keeps a thread busy; small requests must find one."""
    disk.let_go.clear()
    done: list[int] = []

    def transfer(number: int) -> None:
        disk._wait()
        done.append(number)

    transfers = [quick.begin(transfer, number) for number in range(20)]
    await until(disk.hanging.is_set, "the first hangs")
    assert await quick.run(lambda: "answered") == "answered"
    fd = await quick.open(os.open, os.close, os.devnull, os.O_RDONLY)
    quick.leave(lambda: os.close(fd))
    disk.let_go.set()
    await asyncio.gather(*transfers)
    assert sorted(done) == list(range(20))


async def test_a_long_call_that_was_given_up_before_it_had_its_turn_does_not_take_place(
    quick: Threads, disk: HangingDisk
) -> None:
    disk.let_go.clear()
    released: list[str] = []
    took_place: list[str] = []
    tenure = Tenure(lambda: released.append("released"))
    transfers = [quick.begin(disk._wait) for _ in range(4)]
    with tenure:
        quick.begin(took_place.append, "late").cancel()
    tenure.end()
    assert released == []
    disk.let_go.set()
    await asyncio.gather(*transfers)
    await until(lambda: released, "the tenure ends when the call is left out")
    assert took_place == []


async def test_there_are_no_more_threads_than_calls_at_a_time(threads: Threads) -> None:
    seen = {await threads.run(threading.get_ident) for _ in range(20)}
    assert len(seen) == 1


async def test_a_tenure_lets_go_once_when_nothing_runs() -> None:
    released: list[str] = []
    tenure = Tenure(lambda: released.append("released"))
    tenure.end()
    tenure.end()
    assert released == ["released"]


async def test_a_tenure_lets_go_after_the_last_call_that_was_begun_under_it(
    quick: Threads, disk: HangingDisk
) -> None:
    released: list[str] = []
    tenure = Tenure(lambda: released.append("released"))
    disk.let_go.clear()
    with tenure, pytest.raises(StorageTimeout):
        await quick.run(disk._wait)
    tenure.end()
    await quick.run(lambda: None)
    assert released == []
    disk.let_go.set()
    await until(lambda: released, "the tenure ends with the call")
    assert released == ["released"]


async def test_a_task_that_outlives_the_block_does_not_let_go_again(threads: Threads) -> None:
    released: list[str] = []
    tenure = Tenure(lambda: released.append("released"))
    over = asyncio.Event()

    async def later() -> None:
        await over.wait()
        await threads.run(lambda: None)

    with tenure:
        task = asyncio.create_task(later())
    tenure.end()
    over.set()
    await task
    assert released == ["released"]


async def test_a_write_that_hangs_keeps_the_lock_under_which_it_was_begun(
    tmp_path: Path, quick: Threads, disk: HangingDisk, threads: Threads
) -> None:
    driver = FilesystemDriver(str(tmp_path), quick, disk)
    other = FilesystemDriver(str(tmp_path), threads, Disk())
    await other.write("file", b"old")
    with pytest.raises(StorageTimeout):
        async with driver.lock("lock", 1):
            disk.let_go.clear()
            await driver.write("file", b"new")
    for _ in range(3):
        with pytest.raises(LockTimeout):
            async with other.lock("lock", 0.05):
                pytest.fail("the write is still under way")
    assert await other.read("file") == b"old"
    disk.let_go.set()
    async with other.lock("lock", 10):
        assert await other.read("file") == b"new"


async def test_a_chunk_that_hangs_keeps_its_file_open_and_locked(
    tmp_path: Path, disk: HangingDisk, threads: Threads
) -> None:
    driver = FilesystemDriver(str(tmp_path), threads, disk)
    uploads = SegmentUploads(str(tmp_path), driver, threads, disk)
    await uploads.create("repositories/a/_uploads/session", "2024-01-02T03:04:05Z")
    writer = await uploads.append("repositories/a/_uploads/session", 0, lambda _: None)
    (private,) = (tmp_path / "repositories/a/_uploads/session/_seg").iterdir()
    held = os.open(private, os.O_RDONLY)
    try:
        disk.let_go.clear()
        disk.closed.clear()
        writing = asyncio.create_task(writer.write([b"bytes"]))
        await until(disk.hanging.is_set, "the write hangs")
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await writer.discard()
        assert disk.closed == []
        with pytest.raises(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        disk.let_go.set()
        await until(lambda: len(disk.closed) == 1, "the descriptor is closed with the call")
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(held)


@pytest.mark.parametrize("what", ["a file", "a lock", "a chunk"])
@pytest.mark.parametrize("end", ["the limit", "a cancel"])
async def test_what_is_opened_after_its_caller_gave_up_is_closed(
    tmp_path: Path, quick: Threads, disk: HangingDisk, threads: Threads, what: str, end: str
) -> None:
    session = "repositories/a/_uploads/session"
    other = FilesystemDriver(str(tmp_path), threads)
    await SegmentUploads(str(tmp_path), other, threads).create(session, "2024-01-02T03:04:05Z")
    driver = FilesystemDriver(str(tmp_path), quick, disk)
    uploads = SegmentUploads(str(tmp_path), driver, quick, disk)

    async def lock() -> None:
        async with driver.lock(f"{session}/startedat", 1):
            pytest.fail("the lock was given up")

    calls = {
        "a file": lambda: driver.open(f"{session}/startedat"),
        "a lock": lock,
        "a chunk": lambda: uploads.append(session, 0, lambda _: None),
    }
    disk.let_go.clear()
    disk.closed.clear()
    opening = asyncio.ensure_future(calls[what]())
    await until(disk.hanging.is_set, "the call hangs")
    if end == "a cancel":
        opening.cancel()
    (failure,) = await asyncio.gather(opening, return_exceptions=True)
    assert isinstance(failure, StorageTimeout if end == "the limit" else asyncio.CancelledError)
    disk.let_go.set()
    await until(lambda: disk.closed, "what was opened is closed")
    await until(lambda: not os.listdir(tmp_path / session / "_seg"), "nothing is left of the chunk")
