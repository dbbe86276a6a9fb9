"""Reads from the kernel's caches: the same bytes as any read, or a refusal; never a wait, never a wrong answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.storage import cached
from cluster.storage.driver import NotFound
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.threads import Threads

pytestmark = pytest.mark.anyio

CONTENT = os.urandom(300_000)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A file that is in the cache, on a file system that can be asked this way."""
    if not cached.is_supported(str(tmp_path)):
        pytest.skip("the file system of the temporary directory cannot be asked for what it has cached")
    (tmp_path / "file").write_bytes(CONTENT)
    return str(tmp_path / "file")


def evict(path: str) -> None:
    """Have the kernel drop what it has of a file, where it can."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def test_what_is_cached_is_read_at_once(path: str) -> None:
    assert cached.read_cached(path) == CONTENT
    assert cached.size_cached(path) == len(CONTENT)
    assert cached.stamp_cached(path) == os.stat(path).st_mtime_ns


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (7, 4096), (100_000, 300_000), (299_999, 300_000)])
def test_any_part_is_exactly_that(path: str, start: int, stop: int) -> None:
    fd = cached.open_cached(path)
    try:
        assert cached.pread_cached(fd, stop - start, start) == CONTENT[start:stop]
    finally:
        os.close(fd)


def test_more_than_there_is_is_refused(path: str) -> None:
    fd = cached.open_cached(path)
    try:
        with pytest.raises(BlockingIOError):
            cached.pread_cached(fd, 2, len(CONTENT) - 1)
    finally:
        os.close(fd)


def test_an_empty_file_is_empty(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").touch()
    assert cached.read_cached(str(tmp_path / "empty")) == b""


def test_what_was_read_stays_as_it_was_when_other_reads_follow(path: str) -> None:
    fd = cached.open_cached(path)
    try:
        pieces = [cached.pread_cached(fd, 1000, start) for start in range(0, 300_000, 1000)]
    finally:
        os.close(fd)
    assert b"".join(pieces) == CONTENT


def test_what_is_not_there_is_an_error_of_the_system(tmp_path: Path, path: str) -> None:
    missing: list[str] = [str(tmp_path / "missing"), f"{path}/below"]
    for name in missing:
        with pytest.raises(OSError):
            cached.open_cached(name)


def test_what_is_not_cached_is_refused_or_right(path: str) -> None:
    evict(path)
    try:
        assert cached.read_cached(path) == CONTENT  # a file system in memory has nothing else
    except BlockingIOError:
        with open(path, "rb") as file:
            file.read()
        assert cached.read_cached(path) == CONTENT


@pytest.mark.parametrize("directory", ["/proc", "/sys"])
def test_a_file_system_that_is_not_known_to_be_local_is_not_asked(directory: str) -> None:
    assert not cached.is_supported(directory)


async def test_the_driver_reads_what_the_cache_does_not_have(tmp_path: Path, threads: Threads, path: str) -> None:
    driver = FilesystemDriver(str(tmp_path), threads)
    reader = await driver.open("file")
    try:
        for _ in range(3):
            evict(path)
            assert await driver.read("file") == CONTENT
            evict(path)
            assert b"".join([piece async for piece in reader.chunks(0, reader.size)]) == CONTENT
    finally:
        reader.close()


async def test_the_driver_finds_out_what_an_error_means(tmp_path: Path, threads: Threads, path: str) -> None:
    driver = FilesystemDriver(str(tmp_path), threads)
    for call in (driver.read, driver.size, driver.open, driver.stamp, driver.names):
        for missing in ("missing", "file/below"):
            with pytest.raises(NotFound):
                await call(missing)
