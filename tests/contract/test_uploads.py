"""What every back end promises of upload sessions (Uploads in cluster/storage/driver.py)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import pytest

from cluster.storage.driver import Driver, NotFound, OffsetTaken, Uploads

pytestmark = pytest.mark.anyio

UUID = "0b1c2d3e-1111-4222-8333-444455556666"
SESSION = f"repositories/team/app/_uploads/{UUID}"
STARTED = "2024-01-02T03:04:05Z"
BLOB = f"blobs/sha256/ab/{'ab' * 32}/data"
CONTENT = bytes(range(256)) * 5
FUTURE = time.time() + 10_000


class Backend(Protocol):
    driver: Driver
    uploads: Uploads
    another_node: Callable[[], Backend]


def ignore(_: bytes) -> None:
    pass


async def add(uploads: Uploads, offset: int, *pieces: bytes) -> None:
    """One segment, written and sealed."""
    writer = await uploads.append(SESSION, offset, ignore)
    for piece in pieces:
        await writer.write([piece])
    await writer.seal()
    await writer.discard()


async def replayed(uploads: Uploads, start: int, stop: int) -> bytes:
    seen: list[bytes] = []
    await uploads.replay(SESSION, start, stop, seen.append)
    return b"".join(seen)


@pytest.fixture
async def session(uploads: Uploads) -> str:
    await uploads.create(SESSION, STARTED)
    return SESSION


# Sessions


async def test_a_new_session_is_empty_and_known_to_every_node(backend: Backend, session: str) -> None:
    for node in (backend, backend.another_node()):
        assert await node.uploads.started_at(session) == STARTED
        assert await node.uploads.extent(session) == 0


@pytest.mark.parametrize("ended", [False, True], ids=["never begun", "ended"])
async def test_without_a_session_everything_is_not_found(uploads: Uploads, ended: bool) -> None:
    if ended:
        await uploads.create(SESSION, STARTED)
        await add(uploads, 0, CONTENT)
        await uploads.remove(SESSION)
    for call in (uploads.started_at, uploads.extent, uploads.remove):
        with pytest.raises(NotFound):
            await call(SESSION)
    with pytest.raises(NotFound):
        await uploads.append(SESSION, 0, ignore)
    with pytest.raises(NotFound):
        await uploads.replay(SESSION, 0, 1, ignore)
    with pytest.raises(NotFound):
        await uploads.commit(SESSION, 0, BLOB)
    assert not await uploads.purge(SESSION, FUTURE)


async def test_a_session_ends_once(backend: Backend, session: str) -> None:
    await backend.another_node().uploads.remove(session)
    with pytest.raises(NotFound):
        await backend.uploads.remove(session)


# Segments


FEEDS: dict[str, Callable[[bytes], Iterable[list[bytes]]]] = {
    "whole": lambda data: [[data]],
    "byte by byte": lambda data: [[data[at : at + 1]] for at in range(len(data))],
    "in one list": lambda data: [[data[at : at + 100] for at in range(0, len(data), 100)]],
    "with a tail": lambda data: [[data[:1000], data[1000:-1]], [data[-1:]]],
    "with empty pieces": lambda data: [[b""], [data[:7], b"", data[7:]], []],
}


@pytest.mark.parametrize("feed", FEEDS.values(), ids=FEEDS)
async def test_a_segment_is_what_was_fed_and_the_observer_sees_it_in_order(
    uploads: Uploads, session: str, feed: Callable[[bytes], Iterable[list[bytes]]]
) -> None:
    seen: list[bytes] = []
    writer = await uploads.append(session, 0, seen.append)
    for pieces in feed(CONTENT):
        await writer.write(pieces)
        assert writer.size == sum(map(len, seen))
    await writer.seal()
    await writer.discard()
    assert b"".join(seen) == CONTENT
    assert await uploads.extent(session) == writer.size == len(CONTENT)
    assert await replayed(uploads, 0, len(CONTENT)) == CONTENT


async def test_a_segment_may_be_filled_and_written_in_turn(uploads: Uploads, session: str) -> None:
    seen: list[bytes] = []
    rest = CONTENT * 300

    def take(most: int) -> memoryview:
        nonlocal rest
        piece, rest = bytearray(rest[:most]), rest[most:]
        return memoryview(piece)

    whole = b"first" + rest + b"last"
    writer = await uploads.append(session, 0, lambda piece: seen.append(bytes(piece)))
    await writer.write([b"first"])
    while await writer.fill(take):
        assert writer.size < len(whole) - 4
    await writer.write([b"last"])
    assert writer.size == len(whole)
    await writer.seal()
    await writer.discard()
    assert b"".join(seen) == whole
    assert await replayed(uploads, 0, len(whole)) == whole


async def test_a_failure_while_a_segment_is_filled_is_told(uploads: Uploads, session: str) -> None:
    def observe(piece: bytes | memoryview) -> None:
        raise ZeroDivisionError

    writer = await uploads.append(session, 0, observe)
    with pytest.raises(ZeroDivisionError):
        await writer.fill(lambda most: b"x"[:most])
    await writer.discard()
    assert await uploads.extent(session) == 0


async def test_a_segment_is_private_until_it_is_sealed(backend: Backend, session: str) -> None:
    other = backend.another_node().uploads
    writer = await backend.uploads.append(session, 0, ignore)
    await writer.write([CONTENT])
    for node in (backend.uploads, other):
        assert await node.extent(session) == 0
    await writer.seal()
    for node in (backend.uploads, other):
        assert await node.extent(session) == len(CONTENT)
    await writer.discard()


async def test_a_discarded_segment_leaves_nothing(uploads: Uploads, session: str) -> None:
    writer = await uploads.append(session, 0, ignore)
    await writer.write([CONTENT])
    await writer.discard()
    await writer.discard()
    assert await uploads.extent(session) == 0
    await add(uploads, 0, b"another")
    assert await replayed(uploads, 0, 7) == b"another"


async def test_an_empty_segment_takes_no_offset(uploads: Uploads, session: str) -> None:
    await add(uploads, 0)
    await add(uploads, 0, b"")
    await add(uploads, 0, b"bytes")
    assert await uploads.extent(session) == 5


async def test_a_gap_ends_the_extent_until_it_is_filled(uploads: Uploads, session: str) -> None:
    await add(uploads, 0, b"aaaa")
    await add(uploads, 8, b"cccc")
    assert await uploads.extent(session) == 4
    await add(uploads, 4, b"bbbb")
    assert await uploads.extent(session) == 12
    assert await replayed(uploads, 0, 12) == b"aaaabbbbcccc"


async def test_exactly_one_of_two_writers_gets_an_offset(backend: Backend, session: str) -> None:
    nodes = [backend.uploads, backend.another_node().uploads]
    writers = [await node.append(session, 0, ignore) for node in nodes]
    for writer, data in zip(writers, (b"first", b"the second"), strict=True):
        await writer.write([data])
    await writers[1].seal()
    with pytest.raises(OffsetTaken):
        await writers[0].seal()
    for writer in writers:
        await writer.discard()
    for node in nodes:
        assert await node.extent(session) == 10
        assert await replayed(node, 0, 10) == b"the second"


async def test_what_broke_off_gives_way_to_another_writer_of_its_offset(backend: Backend, session: str) -> None:
    nodes = [backend.uploads, backend.another_node().uploads]
    old, new = [await node.append(session, 0, ignore) for node in nodes]
    await old.write([b"what came"])
    await new.write([b"what came, and"])
    assert not await old.leave()
    await old.discard()
    await new.write([b" the rest"])
    await new.seal()
    await new.discard()
    for node in nodes:
        assert await replayed(node, 0, await node.extent(session)) == b"what came, and the rest"


async def test_what_broke_off_is_published_where_nobody_else_writes(backend: Backend, session: str) -> None:
    uploads, other = backend.uploads, backend.another_node().uploads
    given_up = await other.append(session, 0, ignore)
    await given_up.write([b"given up"])
    await given_up.discard()
    elsewhere = await other.append(session, 4, ignore)
    writer = await uploads.append(session, 0, ignore)
    await writer.write([b"what came"])
    assert await writer.leave()
    await writer.discard()
    await elsewhere.discard()
    assert await replayed(other, 0, await other.extent(session)) == b"what came"


async def test_many_writers_at_once_publish_one_segment(uploads: Uploads, session: str) -> None:
    async def write(number: int) -> int | None:
        writer = await uploads.append(session, 0, ignore)
        try:
            await writer.write([b"%d" % number * 1000])
            await writer.seal()
        except OffsetTaken:
            return None
        finally:
            await writer.discard()
        return number

    winners = [number for number in await asyncio.gather(*map(write, range(8))) if number is not None]
    assert len(winners) == 1
    assert await replayed(uploads, 0, 1000) == b"%d" % winners[0] * 1000


async def test_a_segment_of_an_ended_session_is_refused_and_revives_nothing(backend: Backend, session: str) -> None:
    writer = await backend.uploads.append(session, 0, ignore)
    await writer.write([CONTENT])
    await backend.another_node().uploads.remove(session)
    with pytest.raises(NotFound):
        await writer.seal()
    await writer.discard()
    with pytest.raises(NotFound):
        await backend.uploads.extent(session)


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 12), (3, 5), (4, 8), (7, 12), (11, 12)])
async def test_any_run_of_bytes_is_replayed(uploads: Uploads, session: str, start: int, stop: int) -> None:
    for offset, data in ((0, b"aaaa"), (4, b"bbbb"), (8, b"cccc")):
        await add(uploads, offset, data)
    assert await replayed(uploads, start, stop) == b"aaaabbbbcccc"[start:stop]


async def test_another_node_goes_on_where_this_one_ended(backend: Backend, session: str) -> None:
    other = backend.another_node()
    await add(backend.uploads, 0, b"from here, ")
    await add(other.uploads, await other.uploads.extent(session), b"from there")
    await backend.uploads.commit(session, 21, BLOB)
    assert await other.driver.read(BLOB) == b"from here, from there"


# Digest states


async def test_the_newest_state_up_to_an_offset_is_found(uploads: Uploads, session: str) -> None:
    for offset, state in ((4, b"four"), (12, b"twelve"), (8, b"eight")):
        await uploads.save_state(session, "sha256", offset, state)
    await uploads.save_state(session, "sha512", 6, b"another algorithm")
    assert await uploads.load_state(session, "sha256", 12) == (12, b"twelve")
    assert await uploads.load_state(session, "sha256", 11) == (8, b"eight")
    assert await uploads.load_state(session, "sha256", 4) == (4, b"four")
    assert await uploads.load_state(session, "sha256", 3) is None
    assert await uploads.load_state(session, "sha512", 12) == (6, b"another algorithm")


async def test_a_state_can_be_put_aside_again(uploads: Uploads, session: str) -> None:
    for _ in range(2):
        await uploads.save_state(session, "sha256", 4, b"four")
    assert await uploads.load_state(session, "sha256", 4) == (4, b"four")


async def test_a_state_of_an_ended_session_is_dropped(uploads: Uploads, session: str) -> None:
    await uploads.remove(session)
    await uploads.save_state(session, "sha256", 4, b"late")
    with pytest.raises(NotFound):
        await uploads.started_at(session)
    with pytest.raises(NotFound):
        await uploads.extent(session)


# Commit


@pytest.mark.parametrize("cuts", [[], [1280], [640, 1280], [1, 2, 3, 700, 1279, 1280]], ids=len)
async def test_a_commit_makes_the_segments_one_file(backend: Backend, session: str, cuts: list[int]) -> None:
    content = CONTENT[: cuts[-1]] if cuts else b""
    for start, stop in zip([0, *cuts], cuts, strict=False):
        await add(backend.uploads, start, CONTENT[start:stop])
    await backend.uploads.commit(session, len(content), BLOB)
    for node in (backend, backend.another_node()):
        assert await node.driver.read(BLOB) == content
        assert await node.driver.size(BLOB) == len(content)


async def test_a_commit_can_be_repeated_while_the_session_is_there(backend: Backend, session: str) -> None:
    await add(backend.uploads, 0, CONTENT[:9])
    await add(backend.uploads, 9, CONTENT[9:])
    for node in (backend, backend.another_node(), backend):
        await node.uploads.commit(session, len(CONTENT), BLOB)
        assert await node.driver.read(BLOB) == CONTENT


async def test_a_file_with_the_right_size_is_left_as_it_is(backend: Backend, session: str) -> None:
    await backend.driver.write(BLOB, b"there")
    await add(backend.uploads, 0, b"other")
    await backend.uploads.commit(session, 5, BLOB)
    assert await backend.driver.read(BLOB) == b"there"


@pytest.mark.parametrize("cuts", [1, 2])
@pytest.mark.parametrize("there", [b"", b"cut", CONTENT + b"too long"])
async def test_a_file_with_a_wrong_size_is_repaired(
    backend: Backend, session: str, there: bytes, cuts: int
) -> None:
    await backend.driver.write(BLOB, there)
    step = len(CONTENT) // cuts
    for start in range(0, len(CONTENT), step):
        await add(backend.uploads, start, CONTENT[start : start + step])
    await backend.uploads.commit(session, len(CONTENT), BLOB)
    assert await backend.driver.read(BLOB) == CONTENT


@pytest.mark.parametrize("size", [0, 4, 9, 11, 1000])
async def test_a_commit_of_another_size_than_is_there_is_refused(backend: Backend, session: str, size: int) -> None:
    await add(backend.uploads, 0, b"aaaa")
    await add(backend.uploads, 4, b"bbbbbb")
    with pytest.raises(NotFound):
        await backend.uploads.commit(session, size, BLOB)
    with pytest.raises(NotFound):
        await backend.driver.read(BLOB)
    assert await backend.uploads.extent(session) == 10


async def test_what_a_session_takes_later_does_not_reach_the_blob(backend: Backend, session: str) -> None:
    await add(backend.uploads, 0, b"the blob")
    await backend.uploads.commit(session, 8, BLOB)
    await add(backend.uploads, 8, b" and more")
    with pytest.raises(OffsetTaken):
        await add(backend.uploads, 0, b"overwritten")
    await backend.uploads.remove(session)
    assert await backend.driver.read(BLOB) == b"the blob"


async def test_a_commit_works_where_the_directory_of_the_blob_was_removed(backend: Backend, session: str) -> None:
    await add(backend.uploads, 0, CONTENT)
    await backend.uploads.commit(session, len(CONTENT), BLOB)
    for gone in (BLOB.rpartition("/")[0], "blobs/sha256/ab", "blobs"):
        await backend.driver.remove(gone)
        await backend.uploads.commit(session, len(CONTENT), BLOB)
        assert await backend.driver.read(BLOB) == CONTENT


# Purge


async def test_only_what_has_been_idle_is_purged(uploads: Uploads, session: str) -> None:
    await add(uploads, 0, CONTENT)
    assert not await uploads.purge(session, time.time() - 100)
    assert await uploads.extent(session) == len(CONTENT)
    assert await uploads.purge(session, FUTURE)
    with pytest.raises(NotFound):
        await uploads.extent(session)
    assert not await uploads.purge(session, FUTURE)


async def test_a_dry_run_says_what_would_be_purged_and_removes_nothing(uploads: Uploads, session: str) -> None:
    assert await uploads.purge(session, FUTURE, dry_run=True)
    assert not await uploads.purge(session, time.time() - 100, dry_run=True)
    assert await uploads.started_at(session) == STARTED
