"""A node with a flaw: `python -m tests.drill.broken FLAW ... serve CONFIG` serves as a real one does, but for that.

It stands around the command of a node (cluster/places.py) and takes the place of parts of the product in its own
process, as nothing of the product itself can be asked to.
"""

from __future__ import annotations

import functools
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from cluster import app, cli
from cluster.oci.reference import RepositoryName, Tag
from cluster.registry.tags import Pointer, TagStore
from cluster.storage.disk import Disk
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.segments import SegmentUploads
from tests.support.disks import ForgetfulDisk

POWER = "POWER_LOSS"
"""The variable that names a file: when it is there, the power goes. What survives is kept beside it."""


def nothing() -> None:
    """No flaw: what the checker must accept."""


def no_fencing() -> None:
    """Everybody gets every lock, on a disk that is slow enough to show it."""
    rename = Disk.rename

    def slow_rename(self: Disk, source: str, target: str) -> None:
        time.sleep(0.05)
        rename(self, source, target)

    Disk.try_lock = lambda self, fd: True  # type: ignore[method-assign]
    Disk.rename = slow_rename  # type: ignore[method-assign]


def stale_tags() -> None:
    """What a tag held is remembered for some seconds, and forgotten only where it is written."""
    read, put = TagStore.read, TagStore.put
    known: dict[tuple[RepositoryName, Tag], tuple[Pointer | None, float]] = {}

    async def cached_read(self: TagStore, name: RepositoryName, tag: Tag) -> Pointer | None:
        held, since = known.get((name, tag), (None, 0.0))
        if time.monotonic() - since > 3:
            held = await read(self, name, tag)
            known[name, tag] = held, time.monotonic()
        return held

    async def forgetting_put(self: TagStore, name: RepositoryName, tag: Tag, *more: Any) -> None:
        await put(self, name, tag, *more)
        known.pop((name, tag), None)

    TagStore.read = cached_read  # type: ignore[method-assign]
    TagStore.put = forgetting_put  # type: ignore[method-assign]


def forgotten_links() -> None:
    """One in ten links of blobs is acknowledged and not written."""
    write, count = FilesystemDriver.write, iter(range(1 << 62))

    async def forgetful_write(self: FilesystemDriver, path: str, content: bytes) -> None:
        if "/_layers/" not in path or next(count) % 10 != 9:
            await write(self, path, content)

    FilesystemDriver.write = forgetful_write  # type: ignore[method-assign]


class PoweredDisk(ForgetfulDisk):
    """A disk in memory whose machine loses its power when a file appears; it comes back with what was synced."""

    def __init__(self, root: str, lies: frozenset[str]) -> None:
        self._lock = threading.Lock()
        super().__init__()
        self._signal = os.environ[POWER]
        self._kept = f"{self._signal}.kept"
        if os.path.exists(self._kept):
            with open(self._kept, "rb") as file:
                self._top = pickle.load(file)
        else:
            self._make(root)
        self.lies = lies

    def _make(self, root: str) -> None:
        path = ""
        for name in root.strip("/").split("/"):
            self.mkdir(f"{path}/{name}")
            path = f"{path}/{name}"
        for _ in range(root.count("/")):
            self.sync_path(path)
            path = os.path.dirname(path) or "/"
        self._top.sync()

    def _node(self, path: str) -> Any:
        return self._top if path in ("", "/") else super()._node(path)

    def _step(self) -> None:
        with self._lock:  # nothing else changes from here on
            if os.path.exists(self._signal):
                time.sleep(0.1)  # what has passed here already comes to its end
                self._open.clear()  # crash() would close what others read from
                with open(self._kept, "wb") as file:
                    pickle.dump(self.crash()._top, file)
                os.unlink(self._signal)
                os.killpg(os.getpgrp(), signal.SIGKILL)
                time.sleep(60)  # a thread may outlive its death by a moment
        super()._step()


def power_loss(*lies: str) -> None:
    """The storage is a disk in memory that syncs all but `lies`."""

    @functools.cache
    def disk(root: str) -> PoweredDisk:
        return PoweredDisk(root, frozenset(lies))

    class Driver(FilesystemDriver):
        def __init__(self, root: str, threads: Any, **options: Any) -> None:
            super().__init__(root, threads, disk(root), **options)

    class Uploads(SegmentUploads):
        def __init__(self, root: str, driver: FilesystemDriver, threads: Any) -> None:
            super().__init__(root, driver, threads, disk(root))

    app.FilesystemDriver, app.SegmentUploads = Driver, Uploads  # type: ignore[misc]


FLAWS: dict[str, Callable[[], None]] = {
    "nothing": nothing,
    "no-fencing": no_fencing,
    "stale-tags": stale_tags,
    "forgotten-links": forgotten_links,
    "honest-disk": power_loss,
    "lying-disk": functools.partial(power_loss, "files", "directories"),
}

if __name__ == "__main__":
    FLAWS[sys.argv[1]]()
    sys.exit(cli.main(sys.argv[sys.argv.index("serve") :]))
