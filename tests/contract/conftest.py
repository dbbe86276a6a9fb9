"""The back ends that the suites of the storage ports run over, each made by a few lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.storage.disk import Disk
from cluster.storage.driver import Driver, Uploads
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.memory import MemoryDriver, MemoryUploads
from cluster.storage.segments import SegmentUploads
from cluster.storage.threads import Threads
from tests.support.disks import ROOT, ForgetfulDisk


@dataclass
class Backend:
    """The two ports of one back end, as one node has them."""

    driver: Driver
    uploads: Uploads
    another_node: Callable[[], Backend]
    """The same storage once more, as the next node has it."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(4, 10)
    yield threads
    threads.close()


def on_disk(root: str, threads: Threads, disk: Disk | None) -> Backend:
    driver = FilesystemDriver(root, threads, disk)
    return Backend(driver, SegmentUploads(root, driver, threads, disk), lambda: on_disk(root, threads, disk))


def in_memory() -> Backend:
    driver = MemoryDriver()
    backend = Backend(driver, MemoryUploads(driver), lambda: backend)
    return backend


@pytest.fixture(params=["memory", "filesystem", "filesystem-without-cached-reads", "forgetful-twin"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, threads: Threads) -> Backend:
    """Empty storage; the last one is the disk that the tests of power loss stand on."""
    match request.param:
        case "memory":
            return in_memory()
        case "filesystem":
            return on_disk(str(tmp_path), threads, None)
        case "filesystem-without-cached-reads":
            return on_disk(str(tmp_path), threads, Disk())
        case _:
            return on_disk(ROOT, threads, ForgetfulDisk())


@pytest.fixture
def driver(backend: Backend) -> Driver:
    return backend.driver


@pytest.fixture
def uploads(backend: Backend) -> Uploads:
    return backend.uploads
