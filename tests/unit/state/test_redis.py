"""Connecting (cluster/state/redis.py) where no server is needed; the rest is in tests/contract/test_state.py."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from cluster.errors import StateError
from cluster.state.redis import Servers, connect

_SOON = 15.0  # seconds; whoever waits for the name server waits for twice as long


@pytest.fixture
def hanging_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A name server that does not answer until the test is over, half a minute at most."""
    over = threading.Event()

    def look(*_: object, **__: object) -> None:
        over.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", look)
    yield
    over.set()


@pytest.mark.usefixtures("hanging_names")
def test_a_name_server_that_hangs_holds_up_neither_the_attempt_nor_the_end_of_the_loop() -> None:
    started = time.monotonic()
    with pytest.raises(StateError, match="not looked up within"):
        asyncio.run(connect(Servers((("redis.invalid", 6379),), dial_timeout=0.1)))
    assert time.monotonic() - started < _SOON


def test_what_can_be_no_name_is_a_state_error() -> None:
    """It is found out before any name server is asked."""
    with pytest.raises(StateError, match="Redis at"):
        asyncio.run(connect(Servers((("a" * 80 + ".invalid", 6379),), dial_timeout=5)))


def test_a_name_that_is_not_known_is_a_state_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", look)
    with pytest.raises(StateError, match="no such name"):
        asyncio.run(connect(Servers((("redis.invalid", 6379),), dial_timeout=5)))
