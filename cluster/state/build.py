"""Shared state from the `redis:` section: a part of the composition root, beside cluster/app.py."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from cluster.errors import ConfigError
from cluster.settings import Redis
from cluster.state import redis
from cluster.state.breaker import Pace
from cluster.state.commands import RedisStore
from cluster.state.redis import Login, Servers, Tls
from cluster.state.shared import SharedState
from cluster.values import redis_address

_CONNECTIONS, _MOST_CONNECTIONS = 4, 16  # of a worker to a server: calls take turns on them, so few are enough

_LIMIT, _SHORTEST = 1.0, 0.5  # seconds to connect, or for an answer while connecting: no request waits for it


def build_state(section: Redis | None, secrets: Sequence[bytes], pace: Pace | None = None) -> SharedState:
    """What a worker's services use; without a section it never knows anything. ConfigError."""
    if section is None:
        return SharedState(None)
    return SharedState(functools.partial(open_store, servers(section), secrets), pace)


async def open_store(where: Servers, secrets: Sequence[bytes]) -> RedisStore:
    """A store without a breaker, for commands that may wait; to be closed. StateError."""
    return RedisStore(await redis.connect(where), secrets)


def servers(section: Redis) -> Servers:
    """Both spellings, v2.8's and v3's. ConfigError."""
    return Servers(
        addresses=tuple(map(redis_address, section.addrs)),
        master=section.mastername,
        login=Login(section.username or None, section.password or None),
        sentinel_login=Login(section.sentinelusername or None, section.sentinelpassword or None),
        db=section.db,
        client_name=section.clientname or None,
        tls=_tls(section),
        dial_timeout=_limit(section.dialtimeout),
        answer_timeout=max(_limit(section.readtimeout), _limit(section.writetimeout)),
        connections=min(section.poolsize or section.pool.maxactive or _CONNECTIONS, _MOST_CONNECTIONS),
    )


def _tls(section: Redis) -> Tls | None:
    """On when any of its files is named."""
    files = section.tls
    if not (files.certificate or files.key or files.rootcas):
        return None
    tls = Tls(files.certificate or None, files.key or None, tuple(files.rootcas))
    try:
        tls.context()
    except OSError as error:
        raise ConfigError([f"redis.tls: the files cannot be used: {error}"]) from None
    return tls


def _limit(seconds: float | None) -> float:
    """Not without any limit: something has to notice that a server hangs. And not below what TLS may need."""
    return max(seconds, _SHORTEST) if seconds and seconds > 0 else _LIMIT
