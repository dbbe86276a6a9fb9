"""Where blocking calls of storage run: a bounded pool of threads, beside the event loop.

Owns the translation of OSError, the time limit, and the rule that a descriptor (or a lock) outlives every call that
was begun with it: a call that hangs in the kernel goes on after its caller has given up, and must find neither a
closed descriptor nor a lock that somebody else holds by now.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, ParamSpec, TypeVar

from cluster.errors import StorageError
from cluster.storage.driver import NotFound, StorageFull, StorageTimeout

P = ParamSpec("P")
T = TypeVar("T")

_MISSING = (errno.ENOENT, errno.ENOTDIR)
FULL = (errno.ENOSPC, errno.EDQUOT)
# Calls begun inside a `with lock` block belong to the lock's tenure.
_current: ContextVar[Tenure | None] = ContextVar("tenure", default=None)


def translate(error: OSError) -> StorageError:
    """What the treaty of driver.py says for an error of the operating system."""
    where = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
    if error.errno in _MISSING:
        return NotFound(where)
    if error.errno in FULL:
        return StorageFull(where)
    return StorageError(where)


class _Call(Generic[T]):
    """A call on its way to a thread and back. Made and delivered on the event loop."""

    __slots__ = ("_call", "_close", "_error", "_has_run", "_result", "is_long", "loop", "outcome", "tenure")

    def __init__(
        self, call: Callable[[], T], close: Callable[[T], object] | None = None, *, is_long: bool = False
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[T] = self.loop.create_future()
        self.tenure = _current.get()
        self.is_long = is_long
        self._call = call
        self._close = close
        self._has_run = False
        self._result: T | None = None
        self._error: BaseException | None = None

    def take_place(self) -> None:
        """In a thread. What nobody waits for any more by now is left out."""
        if self.outcome.cancelled():
            return
        try:
            self._result = self._call()
            self._has_run = True
        except BaseException as error:
            self._error = error

    def deliver(self) -> Callable[[], object] | None:
        """Tell the caller; what is to be done with the result of an open that nobody waits for any more."""
        error, self._error = self._error, None
        if self.outcome.cancelled():
            return self.undo()
        if isinstance(error, OSError):
            translated = translate(error)
            translated.__cause__ = error
            error = translated
        if error is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(self._result)  # type: ignore[arg-type]  # None where T is
        return None

    def undo(self) -> Callable[[], object] | None:
        """How what was opened is closed, if something was."""
        if not self._has_run or self._close is None:
            return None
        return partial(self._close, self._result)  # type: ignore[arg-type]  # as above


class Threads:
    """Runs blocking calls; at most `size` at a time, small ones waited for at most `limit` seconds.

    Long calls, such as those that move the bytes of transfers, take three threads of four and wait for one another
    in a line of their own: however many bodies come faster than they are stored, a small call finds a thread, and
    the node's probe, which is one, tells of storage and not of the load.

    Not concurrent.futures, whose futures with their locks cost three times what these hand-offs do; uploads make
    one for each batch.
    """

    def __init__(self, size: int, limit: float) -> None:
        self._size = size
        self._limit = limit
        self._calls: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        self._started = 0
        self._pending = 0  # calls that wait for a thread or are under way
        self._most_long = size - size // 4
        self._long = 0  # those of them that are long
        self._waiting: deque[_Call[Any]] = deque()  # long ones that are not among them yet

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The outcome of a small call. StorageTimeout after the limit; the call itself may still take place."""
        try:
            async with asyncio.timeout(self._limit):
                return await self._begin(_Call(partial(call, *args, **kwargs))).outcome
        except TimeoutError:
            raise StorageTimeout(f"storage did not answer within {self._limit:g} s") from None

    async def open(
        self, call: Callable[P, T], close: Callable[[T], object], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `run`, for a call that opens something: what it opens after its caller has given up is closed."""
        opening = self._begin(_Call(partial(call, *args, **kwargs), close))
        try:
            async with asyncio.timeout(self._limit):
                return await opening.outcome
        except (TimeoutError, asyncio.CancelledError) as error:
            if not opening.outcome.cancelled() and (undo := opening.undo()):  # opened in the same turn of the loop
                self.leave(undo)
            if isinstance(error, TimeoutError):
                raise StorageTimeout(f"storage did not answer within {self._limit:g} s") from None
            raise

    async def run_long(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The outcome of a call that may take as long as its bytes take."""
        return await self.begin(call, *args, **kwargs)

    def begin(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """As `run_long`, for a caller that has something to do meanwhile. StorageError: it cannot take place."""
        return self._begin(_Call(partial(call, *args, **kwargs), is_long=True)).outcome

    def leave(self, call: Callable[[], object]) -> None:
        """Have a call made that nobody waits for, as a close is: a server may be told of it, and be waited for."""
        self._begin(_Call(call))

    def _begin(self, call: _Call[T]) -> _Call[T]:
        has_to_wait = call.is_long and self._long == self._most_long
        if not has_to_wait and self._started < min(self._pending + 1, self._size):
            self._start()
        if call.tenure is not None:
            call.tenure.begin()
        if has_to_wait:
            self._waiting.append(call)
        else:
            self._enter(call)
        return call

    def _enter(self, call: _Call[Any]) -> None:
        self._pending += 1
        self._long += call.is_long
        self._calls.put(call)

    def _start(self) -> None:
        # A daemon: the process ends although a call hangs.
        thread = threading.Thread(target=self._work, name=f"storage-{self._started + 1}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # The system, or the container, has no room for one more: those that run do everything.
            if not self._started:
                raise StorageError(f"no thread for storage: {error}") from error
            return
        self._started += 1

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.take_place()
            try:
                call.loop.call_soon_threadsafe(self._end, call)
            except RuntimeError:  # the loop is closed: the process ends
                return
            del call  # and with it what the caller lets go of, while this thread waits

    def _end(self, call: _Call[Any]) -> None:
        self._pending -= 1
        self._long -= call.is_long
        if call.is_long and self._waiting:
            self._enter(self._waiting.popleft())
        if call.tenure is not None:
            call.tenure.ended()
        if undo := call.deliver():
            self.leave(undo)

    def close(self) -> None:
        """Take no more calls; those that hang are left alone."""
        for _ in range(self._started):
            self._calls.put(None)


class Tenure:
    """Holds something (a descriptor) until it is given up and the last call begun under it has ended."""

    def __init__(self, release: Callable[[], object], confirm: Callable[[], object] | None = None) -> None:
        """`confirm` asks, in a thread, whether it is still held: OSError where it is known to be lost."""
        self._release = release
        self._confirm = confirm
        self._running = 0
        self._over = self._released = False

    @staticmethod
    def confirming() -> Callable[[], object] | None:
        """How a call that is begun at this moment makes sure that what it is begun under is still held."""
        tenure = _current.get()
        # A task that outlives the block must not ask: the descriptor may be another file's by now.
        return None if tenure is None or tenure._released else tenure._confirm

    def begin(self) -> None:
        """A call begins; `release` waits for it."""
        self._running += 1

    def end(self) -> None:
        """Give it up. Once is enough, twice does no harm."""
        self._over = True
        self._settle()

    def ended(self) -> None:
        """A call has ended."""
        self._running -= 1
        self._settle()

    def _settle(self) -> None:
        # Once: a task that was made in the block inherits it, and its calls may come after the end. By then the
        # number of the descriptor may be another file's.
        if self._over and not self._running and not self._released:
            self._released = True
            self._release()

    def __enter__(self) -> None:
        self._token = _current.set(self)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)
