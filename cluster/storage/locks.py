"""Locks that exclude all nodes: flock on a file of storage, and who in this process asks for it next.

Owns the waiting for one. Which files are locked, and why, is for the callers to say (rules T1, T2, U6).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from weakref import WeakValueDictionary

from cluster.storage.disk import Disk
from cluster.storage.driver import LockTimeout
from cluster.storage.threads import Tenure, Threads

_PAUSE = (0.002, 0.01)  # seconds between two tries, at most: at first, and after a while
_STINT = 0.2  # seconds for which a lock goes from hand to hand in one process
_BREAK = 0.02  # seconds for which it is free then: longer than any pause of those who ask elsewhere


class _Queue(asyncio.Lock):
    """Those in this process who want one lock: first come, first served."""

    since = 0.0  # when the process got it, other than from hand to hand


class Locks:
    """The locks that this process holds or waits for.

    Each has a queue here, and only its head asks storage. Were all to ask, each at its own pauses, some would get
    nothing in 10 s although the lock is free a hundred times a second. Nor does a process whose queue is never
    empty keep those of other processes out: after each stint it leaves the lock to whoever asks.
    """

    def __init__(self, threads: Threads, disk: Disk, closing: Callable[[int], Callable[[], object]]) -> None:
        """`closing` makes what closes a descriptor, and so gives the lock back."""
        self._threads = threads
        self._disk = disk
        self._closing = closing
        # A queue is there while somebody is in it.
        self._queues: WeakValueDictionary[str, _Queue] = WeakValueDictionary()

    @asynccontextmanager
    async def hold(self, open_lock: Callable[[str], int], path: str, timeout: float) -> AsyncIterator[None]:
        """Have the lock of a file, which `open_lock` opens, for the block. LockTimeout."""
        deadline = time.monotonic() + timeout
        queue = self._queues.setdefault(path, _Queue())
        in_hand = queue.locked()
        try:
            async with asyncio.timeout(timeout):
                await queue.acquire()
        except TimeoutError:
            raise _timeout(path, timeout) from None
        try:
            if in_hand and time.monotonic() - queue.since > _STINT:
                await asyncio.sleep(_BREAK)
                in_hand = False
            fd = await self._threads.open(open_lock, self._disk.close, path)
            tenure = Tenure(self._closing(fd), partial(self._disk.confirm_lock, fd))
            try:
                with tenure:
                    tries = await self._acquire(fd, path, timeout, deadline)
                    if not in_hand or tries > 1:
                        queue.since = time.monotonic()
                    yield
            finally:
                tenure.end()
        finally:
            queue.release()

    async def _acquire(self, fd: int, path: str, timeout: float, deadline: float) -> int:
        """Wait for storage's word; after how many tries it came. One is made even behind the deadline."""
        tries, (pause, longest) = 1, _PAUSE
        while not await self._threads.run(self._disk.try_lock, fd):
            if time.monotonic() >= deadline:
                raise _timeout(path, timeout)
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - to be out of step, not unguessable
            tries, pause = tries + 1, min(pause * 1.5, longest)
        return tries


def _timeout(path: str, timeout: float) -> LockTimeout:
    return LockTimeout(f"{path} was locked by another writer for {timeout:g} s")
