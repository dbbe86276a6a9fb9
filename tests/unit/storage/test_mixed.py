"""Sessions in the one file that Distribution knows (`cluster.mixed`)."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.errors import DigestInvalid, StorageError, UploadUnknown
from cluster.oci.digest import Digest
from cluster.oci.reference import RepositoryName
from cluster.registry.blobs import BlobStore
from cluster.registry.catalog import Catalog
from cluster.registry.uploads import Body, UploadService
from cluster.storage.disk import Disk
from cluster.storage.driver import LockTimeout, NotFound, OffsetTaken
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.mixed import MixedUploads
from cluster.storage.segments import SegmentUploads
from cluster.storage.threads import Threads

pytestmark = pytest.mark.anyio

SESSION = "repositories/team/app/_uploads/0b1c2d3e-1111-4222-8333-444455556666"
STARTED = "2024-01-02T03:04:05Z"


async def add(uploads: SegmentUploads, offset: int, data: bytes) -> None:
    writer = await uploads.append(SESSION, offset, lambda _: None)
    try:
        await writer.write([data])
        await writer.seal()
    finally:
        await writer.discard()


async def content(uploads: SegmentUploads) -> bytes:
    seen: list[bytes] = []
    await uploads.replay(SESSION, 0, await uploads.extent(SESSION), seen.append)
    return b"".join(seen)


@pytest.fixture
def plain(tmp_path: Path, threads: Threads) -> SegmentUploads:
    """A node without `cluster.mixed`, on the same storage."""
    return SegmentUploads(str(tmp_path), FilesystemDriver(str(tmp_path), threads), threads)


@pytest.fixture
def mixed(tmp_path: Path, threads: Threads) -> MixedUploads:
    return MixedUploads(str(tmp_path), FilesystemDriver(str(tmp_path), threads), threads)


async def test_a_state_is_where_distribution_finds_it_and_is_not_taken_from_there(
    tmp_path: Path, mixed: MixedUploads
) -> None:
    await mixed.create(SESSION, STARTED)
    await mixed.save_state(SESSION, "sha256", 8, b"ours")
    shared = tmp_path / SESSION / "hashstates" / "sha256" / "8"
    assert shared.read_bytes() == b"ours"
    shared.write_bytes(b"of other bytes")
    assert await mixed.load_state(SESSION, "sha256", 8) == (8, b"ours")


ORDERS = [order for order in itertools.product("mp", repeat=4) if len(set(order)) == 2]


@pytest.mark.parametrize("order", ORDERS, ids="".join)
async def test_while_the_setting_goes_over_the_fleet_nothing_acknowledged_is_lost(
    tmp_path: Path, mixed: MixedUploads, plain: SegmentUploads, order: tuple[str, ...]
) -> None:
    """The session is begun, goes on, and is committed by nodes with (m) and without (p) `mixed`."""
    first, *rest = (mixed if node == "m" else plain for node in order)
    await first.create(SESSION, STARTED)
    whole = b""
    for number, node in enumerate(rest):
        assert await node.extent(SESSION) == len(whole)
        chunk = b"%d" % number * (number + 1) * 100
        await add(node, len(whole), chunk)
        whole += chunk
        for other in (mixed, plain):
            assert await content(other) == whole
    await rest[-1].commit(SESSION, len(whole), "blob")
    assert (tmp_path / "blob").read_bytes() == whole


async def test_of_two_writers_one_with_the_setting_and_one_without_only_one_is_acknowledged(
    mixed: MixedUploads, plain: SegmentUploads
) -> None:
    for late, quick in ((mixed, plain), (plain, mixed)):
        await mixed.create(SESSION, STARTED)
        await add(mixed, 0, b"before, ")
        writer = await late.append(SESSION, 8, lambda _: None)
        await add(quick, 8, b"quick")
        await writer.write([b"late"])
        with pytest.raises(OffsetTaken):
            await writer.seal()
        await writer.discard()
        assert await content(plain) == await content(mixed) == b"before, quick"
        await plain.remove(SESSION)


async def test_a_session_that_has_ended_is_not_found(mixed: MixedUploads) -> None:
    with pytest.raises(NotFound):
        await mixed.append(SESSION, 0, lambda _: None)


async def test_of_two_writers_of_one_offset_one_is_refused_and_changes_nothing(mixed: MixedUploads) -> None:
    await mixed.create(SESSION, STARTED)
    await add(mixed, 0, b"before, ")
    stopped = await mixed.append(SESSION, 8, lambda _: None)
    await stopped.write([b"the bytes of a writer "])
    assert await content(mixed) == b"before, "
    await add(mixed, 8, b"quick")
    await stopped.write([b"that was stopped"])
    with pytest.raises(OffsetTaken):
        await stopped.seal()
    await stopped.discard()
    assert await content(mixed) == b"before, quick"


async def test_what_a_dead_writer_left_is_added_to_the_data(tmp_path: Path, mixed: MixedUploads) -> None:
    await mixed.create(SESSION, STARTED)
    await add(mixed, 0, b"before, ")
    (tmp_path / SESSION / "_seg" / f"{8:020d}.{0:016x}").write_bytes(b"left")
    assert await mixed.extent(SESSION) == 12
    assert (tmp_path / SESSION / "data").read_bytes() == b"before, left"


class BreakingDisk(Disk):
    """Copies nothing but the first five bytes."""

    def copy(self, source: str, fd: int, size: int) -> None:
        super().copy(source, fd, 5)
        raise OSError(errno.EIO, os.strerror(errno.EIO))


async def test_what_reached_the_data_of_a_chunk_counts(
    tmp_path: Path, threads: Threads, mixed: MixedUploads
) -> None:
    """Its writer may die while he adds it."""
    disk = BreakingDisk()
    dying = MixedUploads(str(tmp_path), FilesystemDriver(str(tmp_path), threads, disk), threads, disk)
    await mixed.create(SESSION, STARTED)
    await add(mixed, 0, b"before, ")
    with pytest.raises(StorageError):
        await add(dying, 8, b"chunk, and more of it")
    assert await content(mixed) == b"before, chunk"
    with pytest.raises(OffsetTaken):
        await add(mixed, 8, b"chunk, and more of it")
    await add(mixed, 13, b", and more of it")
    assert await content(mixed) == b"before, chunk, and more of it"


async def test_while_a_stopped_writer_is_adding_to_the_data_nobody_else_does(
    tmp_path: Path, threads: Threads
) -> None:
    mixed = MixedUploads(str(tmp_path), FilesystemDriver(str(tmp_path), threads), threads, patience=0.1)
    await mixed.create(SESSION, STARTED)
    await add(mixed, 0, b"before, ")
    (tmp_path / SESSION / "_seg" / f"{8:020d}.{0:016x}").write_bytes(b"left")
    with (tmp_path / SESSION / "data").open("r+b", buffering=0) as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        with pytest.raises(LockTimeout):
            await add(mixed, 8, b"newcomer")
        assert await mixed.extent(SESSION) == 8
    assert await mixed.extent(SESSION) == 12
    await add(mixed, 12, b", newcomer")
    assert await content(mixed) == b"before, left, newcomer"


NAME = RepositoryName("team/app")


def body(data: bytes = b"") -> Body:
    async def pieces() -> AsyncIterator[bytes]:
        yield data

    return Body(pieces(), len(data))


async def test_a_commit_goes_by_the_bytes_that_are_there(
    tmp_path: Path, threads: Threads, mixed: MixedUploads
) -> None:
    """Distribution takes no locks: it may write over what was hashed, and no state is right then."""
    driver = FilesystemDriver(str(tmp_path), threads)
    blobs = BlobStore(driver, Catalog(driver))
    service = UploadService(mixed, blobs)
    for written, refused in ((b"OTHER bytes", True), (b"other bytes", False)):
        state = await service.append(await service.start(NAME), body(b"other bytes"))
        data = tmp_path / f"repositories/team/app/_uploads/{state.uuid}/data"
        data.write_bytes(b"OTHER bytes")
        await mixed.save_state(str(data.parent.relative_to(tmp_path)), "sha256", 11, b"")
        data.write_bytes(written)
        if refused:
            with pytest.raises(DigestInvalid):
                await service.finish(state, Digest.of(b"other bytes"), body())
            with pytest.raises(UploadUnknown):
                await service.status(state)
        else:
            found = await service.finish(state, Digest.of(b"other bytes"), body())
            assert await blobs.stat(NAME, found.digest) == found
