"""gunicorn's asgi worker, where a registry needs more of it than there are settings for.

Owns the connection: limits on what a client may take in time and in bytes that are no body, errors of the HTTP
parser in the spec's JSON, closing without a reset, and a stop that does not wait for idle connections. Knows
nothing of what is served.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from typing import Any
from urllib.parse import unquote_to_bytes

from gunicorn.asgi import protocol
from gunicorn.asgi.parser import InvalidHeader
from gunicorn.asgi.protocol import ASGIProtocol, BodyReceiver
from gunicorn.workers import gasgi

from cluster.api.edge import Patience
from cluster.api.errors import envelope
from cluster.errors import RegistryError, SizeInvalid, Unsupported

_FRAMING = 64 * 1024  # bytes: a head, or what frames a body, that is longer is refused
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_ORIGIN = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)


class Receiver(BodyReceiver):  # type: ignore[misc]
    """The body of one request. What came before the client left is handed out before it is said that it left."""

    __slots__ = ()

    async def receive(self) -> Any:
        return self._pop_chunk() if self._chunks else await super().receive()

    def _build_receive_result(self) -> Any:
        return self._pop_chunk() if self._chunks else super()._build_receive_result()


class RegistryProtocol(ASGIProtocol):  # type: ignore[misc]
    """One connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.patience: Patience = self.worker.patience
        self._head_timer = self.worker.loop.call_later(self.patience.head, self._head_timeout)
        self._abort_timer: asyncio.TimerHandle | None = None
        self._lingering = False
        self._early: list[bytes] = []
        self._answering = False  # the answer to the current request has begun
        self._half_closed = False  # the client sends nothing more, but may read
        self._framing = 0  # bytes that came since the last piece of a body, or since the last request
        self.worker.connections.add(self)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        self._cancel_abort()
        self.worker.connections.discard(self)
        super().connection_lost(exc)
        if self._flow_control is not None:  # whoever waits for room to write need not wait any more
            self._flow_control.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        if self._early or (self._callback_parser is not None and self._callback_parser.is_complete):
            self._hold_early(data)
            return
        # The next request on a kept connection begins here; its head has as long as the first one had.
        if self._awaiting_request and self._keepalive_handle is not None:
            self._cancel_keepalive_timer()
            self._head_timer.cancel()
            self._head_timer = self.worker.loop.call_later(self.patience.head, self._head_timeout)
        self._framing += len(data)
        super().data_received(data)
        if self._framing > _FRAMING and not self._closed and not self._callback_parser.is_complete:
            # The parser keeps what it cannot use yet, and looks at all of it again each time more comes.
            status = 400 if self._current_request is not None else 431
            self._refuse(status, f"a request's head or a chunk's size takes more than {_FRAMING} bytes")

    def _hold_early(self, data: bytes) -> None:
        """Keep what came before the loop of this connection has put the last request away.

        The answer is out a moment before that, so a client may well be so fast; the parser would keep only so much.
        """
        self._early.append(data)
        self._pause_reading()

    def _resume_reading(self) -> None:
        super()._resume_reading()
        if self._early:
            self.worker.loop.call_soon(self._feed_early)

    def _feed_early(self) -> None:
        if self._early and not self._closed and not self._callback_parser.is_complete:
            data, self._early = b"".join(self._early), []
            self.data_received(data)

    def eof_received(self) -> bool:
        """The client sends nothing more: what it asked for is answered, then the connection ends."""
        if self.is_idle or self._lingering:
            return False
        self._half_closed = True
        if self._body_receiver is not None and not self._callback_parser.is_complete:
            self._body_receiver.signal_disconnect()
        return True

    def _arm_keepalive_timer(self) -> None:
        if self._half_closed:
            self.worker.loop.call_soon(self._keepalive_timeout)
        else:
            super()._arm_keepalive_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_after(self.patience.reading)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._closed:
            self._cancel_abort()

    def _on_headers_complete(self) -> Any:
        self._head_timer.cancel()
        self._framing = 0
        self._answering = False
        skip_body = super()._on_headers_complete()
        request = self._current_request
        for name, value in request.headers_bytes:
            # The parser makes a header without a name of a folded line, and counts lengths modulo 2**64:
            # whatever stands in front of us reads both otherwise, and takes the rest for another request.
            if not name or (len(value) > 18 and name == b"content-length"):
                raise InvalidHeader("a folded header line, or a Content-Length that is no length")
        if request.raw_path[:1] != b"/":
            _strip_origin(request)
        return skip_body

    def _on_body(self, chunk: bytes) -> None:
        self._framing = 0
        super()._on_body(chunk)

    def _on_message_complete(self) -> None:
        self._framing = 0
        super()._on_message_complete()

    def _is_websocket_upgrade(self, _: Any) -> bool:
        """Never: a server may ignore the wish for another protocol (RFC 9110 section 7.8)."""
        return False

    def _head_timeout(self) -> None:
        self._refuse(408, f"the request's head was not complete within {self.patience.head:g} s")

    def _will_close(self, *args: Any) -> bool:
        return bool(self.worker.draining or super()._will_close(*args))

    def _refuse(self, status: int, message: str) -> None:
        self._send_error_response(status, message)
        self._close_transport()
        self._request_ready.set()  # for the loop that waits for a request: it sees that there will be none

    def _build_http_scope(self, request: Any, sockname: Any, peername: Any) -> dict[str, Any]:
        scope: dict[str, Any] = super()._build_http_scope(request, sockname, peername)
        scope["registry.connection"] = self
        return scope

    def _send_response_start(self, *args: Any, **kwargs: Any) -> None:
        self._answering = True
        super()._send_response_start(*args, **kwargs)

    def _send_error_response(self, status: int, message: str, extra_headers: Any = ()) -> None:
        """The parser's refusal, as the spec wants it; the connection lingers so that it is read."""
        self._lingering = True
        if self._body_receiver is not None:
            self._body_receiver.signal_disconnect()
        if self._answering and self._current_request is not None:
            return  # a second answer would be taken for a part of the first, or for that to the next request
        error: RegistryError = SizeInvalid(message) if status == 400 else Unsupported(message)
        error.message = "the request cannot be read"
        body = envelope([error])
        lines = [
            f"HTTP/1.1 {status} {self._get_reason_phrase(status)}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Docker-Distribution-Api-Version: registry/2.0",
            *(f"{name}: {value}" for name, value in extra_headers),
            "Connection: close",
            "\r\n",
        ]
        self._safe_write("\r\n".join(lines).encode("latin-1") + body)

    def _close_transport(self) -> None:
        """Close; what a refused client is still sending is taken for a moment, or a reset would eat the answer.

        A client that does not read what is left for it is dropped in the end.
        """
        if self._closed:
            return
        if self._lingering:
            self._closed: bool = True
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._abort_after(self.patience.linger)
        else:
            super()._close_transport()
            self._abort_after(self.patience.reading)

    def _abort_after(self, seconds: float) -> None:
        self._cancel_abort()
        if not self._conn_lost_handled:
            self._abort_timer = self.worker.loop.call_later(seconds, self.transport.abort)

    def _cancel_abort(self) -> None:
        if self._abort_timer is not None:
            self._abort_timer.cancel()

    @property
    def is_closed(self) -> bool:
        """Whether the client has gone."""
        return bool(self._closed)

    @property
    def has_ended(self) -> bool:
        """Whether the client has gone, or sends nothing more."""
        return self._half_closed or bool(self._closed)

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way, nor on its way as far as we know."""
        return not self._request_ready.is_set()


def _strip_origin(request: Any) -> None:
    """`GET http://host/path` means what `GET /path` with that Host does (RFC 9112 section 3.2.2)."""
    match = _ORIGIN.match(request.raw_path)
    if match is None:
        return
    path = request.raw_path[match.end() :] or b"/"
    request.raw_path, request.path = path, unquote_to_bytes(path).decode("utf-8", "replace")
    others = [header for header in request.headers_bytes if header[0] != b"host"]
    request.headers_bytes = [*others, (b"host", match[1].rpartition(b"@")[2])]


# gunicorn has no settings for these classes; it looks their names up here when it listens, and for each request.
gasgi.ASGIProtocol = RegistryProtocol
protocol.BodyReceiver = Receiver
# It notes on the class that asks whether the parser written in C is there, and reads that from its own class.
ASGIProtocol._check_h1c_protocol_available()


def _hold_stops() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)


def _release_stops() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


# A signal between the fork and the first turn of the worker's loop would be lost: it reaches a copy of the
# arbiter's handler, then one of uvloop that nobody reads. The arbiter would wait for the worker until it kills it.
os.register_at_fork(before=_hold_stops, after_in_parent=_release_stops)


class RegistryWorker(gasgi.ASGIWorker):  # type: ignore[misc]
    """A worker process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.patience: Patience = self.app.patience
        self.connections: set[RegistryProtocol] = set()
        self.draining = False

    def handle_exit_signal(self) -> None:
        """SIGTERM: take no new connections, and let clients on open ones find somebody else.

        A client that is busy sends its next request within this time, is told to close, and goes elsewhere. Closed
        at once, its connection could end under a request that is on its way, which it may not repeat.
        """
        self._begin_drain()
        self.loop.call_later(self.patience.farewell if self.connections else 0, super().handle_exit_signal)

    def _begin_drain(self) -> None:
        self.draining = True
        self.app.on_drain()
        for server in self.servers:
            server.close()

    async def _serve(self) -> None:
        _release_stops()
        await super()._serve()

    async def _shutdown(self) -> None:
        """Stop: requests under way are finished, idle connections are closed."""
        self._begin_drain()
        closing = asyncio.create_task(self._close_idle())
        try:
            await super()._shutdown()
        finally:
            closing.cancel()

    async def _close_idle(self) -> None:
        while True:
            for connection in [connection for connection in self.connections if connection.is_idle]:
                connection._close_transport()
            await asyncio.sleep(0.05)
