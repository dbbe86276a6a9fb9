"""The outermost ASGI layer: what every request gets, whatever resource it is for.

Owns the request id, the headers of every answer, the end of a body that nobody read, a client that stops reading,
the access log, the request metrics, and the second port (`http.debug.addr`). Of registries it knows only how a body
comes (`registry/uploads.Inflow`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from cluster.errors import StorageError
from cluster.registry.uploads import BodyEnded, Inflow

Event = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Header = tuple[bytes, bytes]

_log = logging.getLogger(__name__)

_ASCII = bytes(range(128))
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_NO_BODY: Event = {"type": "http.request", "body": b"", "more_body": False}
_BODY_FOLLOWS: Event = {"type": "http.request", "body": b"", "more_body": True}


class App(Protocol):
    """An ASGI application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send, /) -> None:
        """Answer one request."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client, or a worker, is waited for, in seconds. Nothing limits a whole transfer."""

    head: float = 30.0  # for a request's head
    body: float = 60.0  # without a byte of a body
    refused: float = 60.0  # for the rest of a body that was refused, so that the refusal is read
    reading: float = 120.0  # for a client that does not read, until it takes a chunk of 256 KiB
    idle: int = 75  # between requests; longer than clients and proxies wait, so that they close first
    linger: float = 2.0  # for a client whose request could not be understood to read that
    farewell: float = 1.5  # for idle connections to be used once more when the process stops
    worker: int = 60  # for a worker that no longer turns, until the arbiter kills it


_PATIENCE = Patience()


class ClientGone(OSError):
    """Nobody reads the answer any more."""


class Connection(Protocol):
    """What the server tells of the connection of a request (cluster/worker.py)."""

    patience: Patience

    @property
    def is_closed(self) -> bool:
        """Whether the client has gone."""

    @property
    def has_ended(self) -> bool:
        """Whether the client has gone, or sends nothing more."""

    def take_over(self, count: Callable[[int], None]) -> Inflow | None:
        """The body from here on, for a thread; None where it comes slowly, or not as plain chunks on a socket.

        `count` hears how many bytes were taken. Nobody calls `receive` until it is given back.
        """


@dataclass(slots=True)
class Record:
    """A request that is over, for the log and the metrics."""

    scope: Scope
    headers: dict[bytes, bytes]
    request_id: str
    status: int
    received: int  # bytes of body
    sent: int  # bytes of body
    seconds: float


Observer = Callable[[Record], None]


class Edge:
    """Wraps the application of the main port and, where there is one, that of the debug port."""

    def __init__(
        self,
        app: App,
        *,
        headers: Sequence[Header] = (),
        observers: Sequence[Observer] = (),
        tell_in_flight: Callable[[int], object] | None = None,
        debug_app: App | None = None,
        debug_port: int | None = None,
    ) -> None:
        self._app = app
        self.headers = list(headers)
        self._observers = tuple(observers)
        self._debug_app = debug_app
        self._debug_port = debug_port
        self._prefix = os.urandom(6).hex()
        self._count = 0
        self._in_flight = 0
        self._tell_in_flight = tell_in_flight  # hears how many requests are under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._debug_app is not None and (scope.get("server") or ("", None))[1] == self._debug_port:
            await self._debug_app(scope, receive, send)
            return
        if not scope["query_string"].isascii():
            # Falcon reads it as UTF-8 before anything can be answered; a URL has no such bytes (RFC 3986).
            scope["query_string"] = quote(scope["query_string"], safe=_ASCII).encode()
        exchange = _Exchange(self, scope, receive, send)
        self._count_in_flight(1)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientGone:
            pass
        except StorageError as error:
            # The answer had begun: all that the client can be told is that it ends too early.
            exchange.cut_short(error)
        finally:
            self._count_in_flight(-1)
            if self._observers:
                record = exchange.record()
                for observe in self._observers:
                    observe(record)
        await exchange.drain()

    def _count_in_flight(self, change: int) -> None:
        self._in_flight += change
        if self._tell_in_flight is not None:
            self._tell_in_flight(self._in_flight)

    def request_id(self, given: bytes | None) -> bytes:
        """The client's own, if it is one; otherwise one that no other request has."""
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        self._count += 1
        return f"{self._prefix}-{self._count:x}".encode()


class _Exchange:
    """One request and its answer, with the counters that the log wants."""

    __slots__ = (
        "_body_over",
        "_connection",
        "_edge",
        "_has_body",
        "_headers",
        "_patience",
        "_receive",
        "_received",
        "_scope",
        "_send",
        "_sent",
        "_started",
        "_state",
        "_status",
        "request_id",
    )

    def __init__(self, edge: Edge, scope: Scope, receive: Receive, send: Send) -> None:
        self._edge = edge
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._connection: Connection | None = scope.get("registry.connection")
        self._patience = self._connection.patience if self._connection is not None else _PATIENCE
        length = self._headers.get(b"content-length", b"0")
        self._has_body = length != b"0" or b"transfer-encoding" in self._headers
        self._body_over = not self._has_body
        self._state = 0  # calls of receive, up to 2
        self._status = 0
        self._received = 0
        self._sent = 0
        self._started = time.monotonic()
        self.request_id = edge.request_id(self._headers.get(b"x-request-id"))
        scope["registry.take_over"] = self.take_over
        scope["registry.request_id"] = self.request_id.decode()

    async def receive(self) -> Event:
        """The next piece of the body. BodyEnded when there is none although there should be."""
        if self._state == 0:
            # Falcon asks for a first event before it routes. Asking the server for it would tell a client that
            # waits for `100 Continue` to send a body that may be about to be refused.
            self._state = 1
            return _BODY_FOLLOWS if self._has_body else _NO_BODY
        self._state = 2
        event = await self._receive()
        if event["type"] == "http.disconnect":
            self._body_over = True
            gone = self._connection is None or self._connection.has_ended
            raise BodyEnded("the connection broke" if gone else "nothing came for too long")
        self._received += len(event.get("body", b""))
        self._body_over = not event.get("more_body", False)
        return event

    def take_over(self) -> Inflow | None:
        """The body from here on, where the connection can give it; it is counted as if it had been received."""
        return self._connection.take_over(self._count) if self._connection is not None else None

    def _count(self, size: int) -> None:
        self._received += size

    async def send(self, event: Event) -> None:
        """Pass an event on; ClientGone when nobody takes it."""
        if event["type"] == "http.response.start":
            self._status = event["status"]
            headers = [*event["headers"], *self._edge.headers, (b"x-request-id", self.request_id)]
            if self._holds_back():
                headers.append((b"connection", b"close"))  # whether the body still comes, only the client knows
            event["headers"] = headers
        else:
            self._sent += len(event.get("body", b""))
            if event.get("more_body") and self._connection is not None and self._connection.is_closed:
                raise ClientGone
        await self._send(event)

    async def drain(self) -> None:
        """Take what is left of the body, after the answer: closing on unread bytes would reset the connection.

        The client would then see "broken pipe" in place of the answer (RFC 9112 section 9.6).
        """
        if self._body_over or self._holds_back():
            return
        try:
            async with asyncio.timeout(self._patience.refused):
                while True:
                    event = await self._receive()
                    if event["type"] == "http.disconnect" or not event.get("more_body"):
                        return
        except TimeoutError:
            pass

    def cut_short(self, error: Exception) -> None:
        """Say that the answer under way will not come whole; the access log has the status that it began with."""
        self._body_over = True  # nothing more of this connection is of use
        what = f"{self._scope['method']} {self._scope['path']}, request {self.request_id.decode()}"
        _log.error("storage failed: %s: the answer was cut short after %d bytes: %s", what, self._sent, error)

    def _holds_back(self) -> bool:
        """Whether the client waits for `100 Continue`, and so has nothing on its way."""
        return not self._body_over and self._state < 2 and b"expect" in self._headers

    def record(self) -> Record:
        """What is to be logged. Status 499, as Distribution has it, when the client left before the answer."""
        return Record(
            self._scope,
            self._headers,
            self.request_id.decode(),
            self._status or 499,
            self._received,
            self._sent,
            time.monotonic() - self._started,
        )
