"""How many wrong passwords somebody may try: limits per user and source, over all nodes.

Counts in the shared state, and beside it in this worker, which is all there is while the shared state is away. Who
guesses from one place is stopped there alone: the user logs in from everywhere else.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

from cluster.errors import TooManyRequests
from cluster.state.store import Failures

LIMIT = 10  # wrong passwords ...
WINDOW = 60.0  # ... within so many seconds after the first one

_REMEMBERED = 10_000  # users and sources with a wrong password in this worker


class Attempts:
    """Guards the check of a password."""

    def __init__(self, shared: Failures, now: Callable[[], float] = time.monotonic) -> None:
        self._shared = shared
        self._now = now
        self._failed: OrderedDict[str, tuple[int, float]] = OrderedDict()  # with the time they are forgotten at
        self._running: dict[str, int] = {}

    async def admit(self, user: str, source: str) -> None:
        """TooManyRequests when this user had too many wrong passwords from there; those being checked count too."""
        what = _what(user, source)
        shared = await self._shared.failures(what)
        known = max(shared, self._count(what))  # counted now: checks may have ended while the others were asked
        if known + self._running.get(what, 0) >= LIMIT:
            raise TooManyRequests(
                "too many wrong passwords for this user from this address",
                headers={"Retry-After": str(round(WINDOW))},
            )

    def begin(self, user: str, source: str) -> None:
        """A password is being checked. Called before anything else is waited for after `admit`."""
        what = _what(user, source)
        self._running[what] = self._running.get(what, 0) + 1

    def end(self, user: str, source: str) -> None:
        """It has been."""
        what = _what(user, source)
        self._running[what] -= 1
        if not self._running[what]:
            del self._running[what]

    async def failed(self, user: str, source: str) -> None:
        """A wrong password."""
        what = _what(user, source)
        count = self._count(what)
        until = self._failed[what][1] if count else self._now() + WINDOW
        self._failed[what] = (count + 1, until)
        self._failed.move_to_end(what)
        if len(self._failed) > _REMEMBERED:
            self._failed.popitem(last=False)
        await self._shared.count_failure(what, WINDOW)

    def _count(self, what: str) -> int:
        count, until = self._failed.get(what, (0, 0.0))
        return count if self._now() < until else 0


def place_of(source: str) -> str:
    """Where a client is. Whoever has an IPv6 address has 2^64 of them: the network counts."""
    try:
        address = ipaddress.ip_address(source)
    except ValueError:
        return source
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


def _what(user: str, source: str) -> str:
    """One counter."""
    return f"password {place_of(source)} {user}"
