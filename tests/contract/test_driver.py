"""What every storage driver promises (cluster/storage/driver.py), over every back end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import pytest

from cluster.storage.driver import Driver, LockTimeout, NotFound

pytestmark = pytest.mark.anyio

PIECE = 256 * 1024
FILE = "repositories/team/app/_manifests/tags/v1/current/link"
DIRECTORY = "repositories/team/app/_manifests/tags/v1/current"


class Backend(Protocol):
    driver: Driver
    another_node: Callable[[], Backend]


async def whole(driver: Driver, path: str, step: int | None = None) -> bytes:
    """A file through its reader, `step` bytes for each call."""
    reader = await driver.open(path)
    try:
        parts = []
        for start in range(0, reader.size, step or max(reader.size, 1)):
            stop = min(start + (step or reader.size), reader.size)
            parts += [piece async for piece in reader.chunks(start, stop)]
        return b"".join(parts)
    finally:
        reader.close()


# Files


@pytest.mark.parametrize("content", [b"", b"x", b"sha256:" + b"0" * 64, bytes(range(256)) * 4096])
async def test_what_was_written_is_read_back(driver: Driver, content: bytes) -> None:
    await driver.write(FILE, content)
    assert await driver.read(FILE) == content
    assert await driver.size(FILE) == len(content)


async def test_a_write_replaces_the_whole_file(driver: Driver) -> None:
    await driver.write(FILE, b"a longer content")
    await driver.write(FILE, b"short")
    assert await driver.read(FILE) == b"short"
    assert await driver.size(FILE) == 5


async def test_an_equal_write_leaves_the_file_readable(driver: Driver) -> None:
    for _ in range(3):
        await driver.write(FILE, b"the same")
    assert await driver.read(FILE) == b"the same"
    assert await driver.names(DIRECTORY) == ["link"]


async def test_nodes_see_each_others_files_at_once(backend: Backend) -> None:
    other = backend.another_node().driver
    for content in (b"first", b"second", b"third and longer"):
        await backend.driver.write(FILE, content)
        assert await other.read(FILE) == content
    await other.remove(FILE)
    with pytest.raises(NotFound):
        await backend.driver.read(FILE)


@pytest.mark.parametrize("call", ["read", "size", "open", "names", "stamp", "remove"])
@pytest.mark.parametrize("path", ["nothing", "repositories/team/app/nothing", f"{FILE}/below-a-file"])
async def test_what_is_not_there_is_not_found(driver: Driver, call: str, path: str) -> None:
    await driver.write(FILE, b"content")
    ask: Callable[[str], Awaitable[object]] = getattr(driver, call)
    with pytest.raises(NotFound):
        await ask(path)


async def test_writers_of_one_file_leave_one_of_the_contents(driver: Driver) -> None:
    contents = [bytes([65 + number]) * 10_000 for number in range(8)]
    await asyncio.gather(*(driver.write(FILE, content) for content in contents))
    assert await driver.read(FILE) in contents
    assert await driver.names(DIRECTORY) == ["link"]


# Readers


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7])
async def test_a_reader_gives_the_whole_file_in_pieces_of_at_most_256_kib(driver: Driver, size: int) -> None:
    content = (bytes(range(251)) * (size // 251 + 1))[:size]
    await driver.write(FILE, content)
    reader = await driver.open(FILE)
    try:
        pieces = [piece async for piece in reader.chunks(0, size)]
        assert reader.size == size
    finally:
        reader.close()
    assert b"".join(pieces) == content
    assert all(0 < len(piece) <= PIECE for piece in pieces)


@pytest.mark.parametrize("step", [None, 1, 7], ids=["whole", "byte by byte", "with a tail"])
async def test_a_file_is_the_same_however_it_is_asked_for(driver: Driver, step: int | None) -> None:
    content = bytes(range(100))
    await driver.write(FILE, content)
    assert await whole(driver, FILE, step) == content


async def test_a_range_of_a_file_is_exactly_that(driver: Driver) -> None:
    content = bytes(range(256)) * 3000
    await driver.write(FILE, content)
    reader = await driver.open(FILE)
    try:
        for start, stop in [
            (0, 1),
            (5, 5),
            (PIECE - 1, PIECE + 1),
            (len(content) - 1, len(content)),
            (1, len(content)),
        ]:
            assert b"".join([piece async for piece in reader.chunks(start, stop)]) == content[start:stop]
    finally:
        reader.close()


@pytest.mark.parametrize("change", ["replaced", "removed"])
async def test_an_open_file_does_not_change(driver: Driver, change: str) -> None:
    await driver.write(FILE, b"as it was opened")
    reader = await driver.open(FILE)
    try:
        if change == "replaced":
            await driver.write(FILE, b"something else")
        else:
            await driver.remove(FILE)
        assert b"".join([piece async for piece in reader.chunks(0, reader.size)]) == b"as it was opened"
    finally:
        reader.close()


async def test_a_reader_may_be_closed_twice(driver: Driver) -> None:
    await driver.write(FILE, b"content")
    one, two = await driver.open(FILE), await driver.open(FILE)
    one.close()
    one.close()
    assert b"".join([piece async for piece in two.chunks(0, 7)]) == b"content"
    two.close()


# Directories


NAMES = ["a", "a-b", "a.b", "a0", "B", "_c", "z", "Z", "aa", "~", "v1.10", "v1.9"]


@pytest.fixture
async def listed(driver: Driver) -> str:
    """A directory with NAMES in it, files and directories."""
    for number, name in enumerate(NAMES):
        await driver.write(f"some/directory/{name}" + ("/deeper/link" if number % 2 else ""), b"content")
    return "some/directory"


async def test_names_come_in_byte_order(driver: Driver, listed: str) -> None:
    assert await driver.names(listed) == sorted(NAMES, key=str.encode)


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
async def test_pages_of_names_make_up_the_whole_list(driver: Driver, listed: str, limit: int) -> None:
    found: list[str] = []
    while page := await driver.names(listed, found[-1] if found else "", limit):
        assert len(page) <= limit
        found += page
    assert found == sorted(NAMES, key=str.encode)


@pytest.mark.parametrize("after", ["", "A", "a", "a/", "aa", "b", "~", "~~"])
async def test_a_cursor_need_not_be_a_name(driver: Driver, listed: str, after: str) -> None:
    assert await driver.names(listed, after) == [name for name in sorted(NAMES, key=str.encode) if name > after]


async def test_a_list_knows_what_another_node_has_just_added(backend: Backend) -> None:
    other = backend.another_node().driver
    for number in range(20):
        await other.write(f"some/directory/{number:02}", b"content")
        assert await backend.driver.names("some/directory") == [f"{known:02}" for known in range(number + 1)]


async def test_a_directory_stays_when_it_is_empty(driver: Driver) -> None:
    await driver.write("some/directory/file", b"content")
    await driver.remove("some/directory/file")
    assert await driver.names("some/directory") == []
    assert await driver.names("some") == ["directory"]


async def test_a_stamp_tells_that_a_name_came_or_went(driver: Driver) -> None:
    await driver.write("some/directory/first", b"content")
    stamps = [await driver.stamp("some/directory")]
    for change in ("second", "third/deeper"):
        await asyncio.sleep(0.02)  # file systems count time in ticks of up to 10 ms
        await driver.write(f"some/directory/{change}", b"content")
        stamps.append(await driver.stamp("some/directory"))
    for name in ("second", "third"):
        await asyncio.sleep(0.02)
        await driver.remove(f"some/directory/{name}")
        stamps.append(await driver.stamp("some/directory"))
    assert len(set(stamps)) == 5
    assert await driver.stamp("some/directory") == stamps[-1]


async def test_a_removed_file_is_gone_and_its_neighbours_stay(driver: Driver) -> None:
    await driver.write("some/directory/one", b"1")
    await driver.write("some/directory/two", b"2")
    await driver.remove("some/directory/one")
    assert await driver.names("some/directory") == ["two"]
    with pytest.raises(NotFound):
        await driver.remove("some/directory/one")


async def test_a_directory_is_removed_with_all_that_is_in_it(driver: Driver) -> None:
    for name in ("one", "deeper/two", "deeper/and/deeper/three"):
        await driver.write(f"some/directory/{name}", b"content")
    await driver.remove("some/directory")
    assert await driver.names("some") == []
    with pytest.raises(NotFound):
        await driver.names("some/directory")
    with pytest.raises(NotFound):
        await driver.read("some/directory/deeper/two")


async def test_a_path_can_be_made_again_after_its_directory_was_removed(driver: Driver) -> None:
    for number in range(3):
        await driver.write(FILE, b"%d" % number)
        assert await driver.read(FILE) == b"%d" % number
        await driver.remove("repositories/team/app/_manifests")


async def test_removing_and_writing_at_the_same_time_harms_neither(driver: Driver) -> None:
    async def write() -> None:
        for _ in range(50):
            await driver.write(FILE, b"content")

    async def remove() -> None:
        for _ in range(50):
            try:
                await driver.remove(FILE)
            except NotFound:
                pass

    await asyncio.gather(write(), remove())
    await driver.write(FILE, b"content")
    assert await driver.read(FILE) == b"content"


# Locks


LOCK = "repositories/team/app/_manifests/_locks/v1"


async def test_a_lock_excludes_the_other_nodes(backend: Backend) -> None:
    inside = 0

    async def enter(driver: Driver) -> None:
        nonlocal inside
        async with driver.lock(LOCK, 10):
            inside += 1
            assert inside == 1
            await asyncio.sleep(0.001)
            inside -= 1

    nodes = [backend.driver, backend.another_node().driver]
    await asyncio.gather(*(enter(nodes[number % 2]) for number in range(10)))
    assert inside == 0


@pytest.mark.parametrize("timeout", [0.0, 0.05])
async def test_a_lock_that_is_held_is_given_up_after_the_timeout(backend: Backend, timeout: float) -> None:
    other = backend.another_node().driver
    async with backend.driver.lock(LOCK, 1):
        started = time.monotonic()
        with pytest.raises(LockTimeout):
            async with other.lock(LOCK, timeout):
                pytest.fail("two holders of one lock")
        assert timeout <= time.monotonic() - started < timeout + 20
    async with other.lock(LOCK, 20):  # a file system that is not local may take a moment to hear of it
        pass


async def test_locks_with_other_names_do_not_exclude(driver: Driver) -> None:
    async with driver.lock(LOCK, 1), driver.lock(f"{LOCK}.1", 1):
        with pytest.raises(LockTimeout):
            async with driver.lock(LOCK, 0):
                pytest.fail("two holders of one lock")


async def test_a_lock_is_free_again_when_its_block_fails_or_is_cancelled(driver: Driver) -> None:
    with pytest.raises(ZeroDivisionError):
        async with driver.lock(LOCK, 1):
            raise ZeroDivisionError

    async def hold() -> None:
        async with driver.lock(LOCK, 1):
            held.set()
            await asyncio.sleep(60)

    held = asyncio.Event()
    holder = asyncio.create_task(hold())
    await held.wait()
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)
    async with driver.lock(LOCK, 1):
        pass


async def test_whoever_waits_for_a_lock_gets_it_when_it_is_free(driver: Driver) -> None:
    order: list[str] = []

    async def wait() -> None:
        async with driver.lock(LOCK, 10):
            order.append("second")

    async with driver.lock(LOCK, 1):
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.05)
        order.append("first")
    await waiting
    assert order == ["first", "second"]


# Housekeeping


async def test_nothing_is_left_to_be_swept_after_writes(driver: Driver) -> None:
    for number in range(5):
        await driver.write(FILE, b"%d" % number)
    assert await driver.sweep(time.time() + 1000) == 0
    assert await driver.read(FILE) == b"4"


async def test_the_clock_of_storage_tells_the_time_and_leaves_nothing_behind(driver: Driver) -> None:
    assert abs(await driver.now() - time.time()) < 5
    assert await driver.sweep(time.time() + 1000) == 0


async def test_the_probe_is_content_with_working_storage(driver: Driver) -> None:
    await driver.probe()
    await driver.write(FILE, b"content")
    await driver.probe()
    assert await driver.sweep(time.time() + 1000) == 0


async def test_only_a_file_that_is_there_can_be_settled(driver: Driver) -> None:
    with pytest.raises(NotFound):
        await driver.settle("a/file")
    await driver.write("a/file", b"content")
    for _ in range(2):
        await driver.settle("a/file")
    assert await driver.read("a/file") == b"content"
    await driver.remove("a/file")
    with pytest.raises(NotFound):
        await driver.settle("a/file")
