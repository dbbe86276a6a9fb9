"""Where blocking calls of storage run: a bounded pool of threads, beside the event loop.

Owns the translation of OSError, the time limit, and the rule that a descriptor (or a lock) outlives every call that
was begun with it: a call that hangs in the kernel goes on after its caller has given up, and must find neither a
closed descriptor nor a lock that somebody else holds by now.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from cluster.errors import StorageError
from cluster.storage.driver import NotFound, StorageFull, StorageTimeout

P = ParamSpec("P")
T = TypeVar("T")

_MISSING = (errno.ENOENT, errno.ENOTDIR)
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Calls begun inside a `with lock` block belong to the lock's tenure.
_current: ContextVar[Tenure | None] = ContextVar("tenure", default=None)


def translate(error: OSError) -> StorageError:
    """What the treaty of driver.py says for an error of the operating system."""
    where = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
    if error.errno in _MISSING:
        return NotFound(where)
    if error.errno in _FULL:
        return StorageFull(where)
    return StorageError(where)


class Threads:
    """Runs blocking calls; at most `size` at a time, each waited for at most `limit` seconds."""

    def __init__(self, size: int, limit: float) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="storage")
        self._limit = limit

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The outcome of a small call. StorageTimeout after the limit; the call itself may still take place."""
        try:
            async with asyncio.timeout(self._limit):
                return await self.run_long(call, *args, **kwargs)
        except TimeoutError:
            raise StorageTimeout(f"storage did not answer within {self._limit:g} s") from None

    async def open(
        self, call: Callable[P, T], close: Callable[[T], object], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `run`, for a call that opens something: what it opens after its caller has given up is closed."""
        opening = self._pool.submit(call, *args, **kwargs)

        def close_late(opened: Future[T]) -> None:
            if not opened.cancelled() and opened.exception() is None:
                close(opened.result())

        try:
            async with asyncio.timeout(self._limit):
                return await self._outcome(opening)
        except TimeoutError:
            opening.add_done_callback(close_late)
            raise StorageTimeout(f"storage did not answer within {self._limit:g} s") from None
        except asyncio.CancelledError:
            opening.add_done_callback(close_late)
            raise

    async def run_long(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The outcome of a call that may take as long as its bytes take."""
        return await self._outcome(self._pool.submit(call, *args, **kwargs))

    async def _outcome(self, future: Future[T]) -> T:
        if (tenure := _current.get()) is not None:
            tenure.watch(future)
        try:
            return await asyncio.wrap_future(future)
        except OSError as error:
            raise translate(error) from error

    def close(self) -> None:
        """Take no more calls; those that hang are left alone."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Tenure:
    """Holds something (a descriptor) until it is given up and the last call begun under it has ended."""

    def __init__(self, release: Callable[[], object]) -> None:
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._running = 0
        self._over = False

    def watch(self, future: Future[T]) -> None:
        """A call begins; `release` waits for it."""
        self._running += 1
        future.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._ended))

    def end(self) -> None:
        """Give it up. Once is enough, twice does no harm."""
        if not self._over:
            self._over = True
            if not self._running:
                self._release()

    def _ended(self) -> None:
        self._running -= 1
        if self._over and not self._running:
            self._release()

    def __enter__(self) -> None:
        self._token = _current.set(self)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)
