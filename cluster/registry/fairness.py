"""What one request may do before others have their turn, on the event loop and in the pool of threads.

Owns the pace of many small storage calls, and when computing is done in a thread. Knows nothing of what is asked
for or computed. A client decides how many references a manifest has, and how long it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_AT_ONCE = 16
_AT_ONCE_SECONDS = 0.0005  # a call that took longer had to wait for storage
_TURN = 64  # calls after which others have their turn on the event loop
_LARGE = 64 * 1024  # bytes of JSON, or names, that are worked on in a thread


async def gather_limited(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The outcomes of many small storage calls, in order.

    What is in the kernel's caches is answered at once, and one by one is fastest; but then nothing here waits, and
    others would. When a call had to wait, the rest go side by side, but only some at a time: one client must not
    fill the pool of threads.
    """
    outcomes: list[T] = []
    width, done = 1, 0
    try:
        while done < len(calls):
            if done % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            batch = calls[done : done + width]
            done += len(batch)
            started = time.perf_counter()
            outcomes += [await batch[0]] if width == 1 else await asyncio.gather(*batch)
            width = 1 if time.perf_counter() - started < _AT_ONCE_SECONDS else _AT_ONCE
    finally:
        for call in calls[done:]:
            call.close()
    return outcomes


async def aside(size: int, call: Callable[..., T], *args: Any) -> T:
    """Work on so many bytes: in a thread, where it is so much that others would have to wait for their turn."""
    return await asyncio.to_thread(call, *args) if size > _LARGE else call(*args)
