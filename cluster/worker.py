"""gunicorn's asgi worker, where a registry needs more of it than there are settings for.

Owns the connection: limits on what a client may take in time and in bytes that are no body, errors of the HTTP
parser in the spec's JSON, closing without a reset, and a stop that does not wait for idle connections. Knows
nothing of what is served.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from gunicorn.asgi import protocol
from gunicorn.asgi.parser import ParseError
from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers import gasgi

from cluster.api.edge import Patience
from cluster.api.errors import envelope
from cluster.errors import (
    BadRequest,
    CodingUnsupported,
    HeadTooLarge,
    RegistryError,
    RequestTimeout,
    SizeInvalid,
    TargetTooLong,
    Unknown,
)
from cluster.exchange import Answer, Chunks, Receiver, SocketInflow, check_head, strip_origin
from cluster.listener import Greeted, TlsListener, beginning

_FRAMING = 64 * 1024  # bytes: a head, or what frames a body, that is longer is refused
_SLICE = 16 * 1024  # bytes given to the parser at a time
_FAST = 64 * 1024  # bytes of a body that came while as many were stored: the client is the faster
_REFUSALS: dict[int, type[RegistryError]] = {
    error.status: error
    for error in (BadRequest, RequestTimeout, TargetTooLong, HeadTooLarge, Unknown, CodingUnsupported)
}
_ASGI = {"version": "3.0", "spec_version": "2.4"}
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class RegistryProtocol(ASGIProtocol, Greeted):  # type: ignore[misc]
    """One connection."""

    _current_request: Any
    _task: asyncio.Task[None] | None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.patience: Patience = self.worker.patience
        self._head_timer = self.worker.loop.call_later(self.patience.head, self._head_timeout)
        self._abort_timer: asyncio.TimerHandle | None = None
        self._lingering = False
        self._early: list[bytes] = []
        self._answering = False  # the answer to the current request has begun
        self._half_closed = False  # the client sends nothing more, but may read
        self._is_silent = True  # nothing came of the client yet, a balancer's PROXY header and an empty line aside
        self._greeting = b""  # what came of these, while they are not whole
        self._framing = 0  # bytes that came since the last piece of a body, or since the last request
        self._chunks: Chunks | None = None  # the body's, as long as they go past the parser
        self._begun = b""  # the beginning of the line before the next of them
        self.worker.connections.add(self)
        super().connection_made(transport)
        if self.refusal:
            self._refuse(400, self.refusal)
        elif self.preface:
            self.data_received(self.preface)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        self._cancel_abort()
        self.worker.connections.discard(self)
        # gunicorn gives the task of a connection a time to end, by a timer that stays when it has ended, and does
        # not wake one that waits for a request. So all of this was held that long for every client that left.
        task, self._task = self._task, None
        super().connection_lost(exc)
        self._task = task
        if self._flow_control is not None:  # whoever waits for room to write need not wait any more
            self._flow_control.resume_writing()
        self._request_ready.set()  # nor whoever waits for a request
        if task is not None and not task.done():
            timer = self.worker.loop.call_later(self.cfg.asgi_disconnect_grace_period, task.cancel)
            task.add_done_callback(lambda _: timer.cancel())

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        if self._early or (self._callback_parser is not None and self._callback_parser.is_complete):
            self._hold_early(data)
            return
        if self._is_silent and not (data := self._greet(data)):
            return
        begins = self._awaiting_request and self._keepalive_handle is not None
        if begins:
            self._cancel_keepalive_timer()
        self._framing += len(data)
        super().data_received(data)
        # The next request on a kept connection began here; its head has as long as the first one had.
        if begins and self._current_request is None and not self._closed:
            self._head_timer.cancel()
            self._head_timer = self.worker.loop.call_later(self.patience.head, self._head_timeout)
        if self._framing > _FRAMING and not self._closed and not self._callback_parser.is_complete:
            # The parser keeps what it cannot use yet, and looks at all of it again each time more comes.
            status = 400 if self._current_request is not None else 431
            self._refuse(status, f"a request's head or a chunk's size takes more than {_FRAMING} bytes")

    def _greet(self, data: bytes) -> bytes:
        """What the parser gets of a connection's first bytes; nothing while it is not known what they begin."""
        data, self._greeting = self._greeting + data, b""
        begins = beginning(data, proxied=self._proxy_protocol != "off")
        if begins is None:
            self._greeting = data
            return b""
        self._is_silent = not begins
        if begins and not begins[:1].isupper():
            # The parser waits for a whole line, and a client that tries TLS first would wait with it.
            self._refuse(400, "this is no HTTP request")
            return b""
        return data

    def _feed_callback_parser(self, data: bytes) -> bool:
        """Feed the parser, but no plain chunks; False when the connection ends by what came."""
        if end := self._head_end(data):
            if not self._feed_parser(data[:end]):
                return False
            if self._current_request is not None and self._current_request.chunked:
                self._chunks = Chunks()
            data = data[end:]
        if self._chunks is not None:
            return self._feed_chunks(self._chunks, self._begun + data)
        return self._feed_parser(data)

    def _head_end(self, data: bytes) -> int:
        """Where in this data the head of a request with a chunked body ends; 0 when that is not certain.

        A body's first chunk begins there. Where that is not known, the parser alone knows where a chunk ends.
        """
        if self._current_request is not None or data[:1] in b"\r\n":  # the end itself may have come in two parts
            return 0
        end = data.find(b"\r\n\r\n") + 4
        return end if end > 3 and data.find(b"chunked", 0, end) > 0 else 0

    def _feed_chunks(self, chunks: Chunks, data: bytes) -> bool:
        spans, used = chunks.split(data, 0, len(data))
        for start, stop in spans:
            for at in range(start, stop, _SLICE):  # no piece is larger than the parser's are (exchange.Receiver)
                self._on_body(data[at : min(at + _SLICE, stop)])
        self._begun = data[used:]
        if chunks.may_go_on(self._begun):
            return True
        if not chunks.is_between:
            self._refuse(400, "a chunk is longer than its size")
            return False
        rest, self._begun, self._chunks = self._begun, b"", None
        return self._feed_parser(rest)

    def _feed_parser(self, data: bytes) -> bool:
        """In slices: the parser moves all that it has not used yet each time it has used a chunk."""
        view = memoryview(data)
        for start in range(0, len(data), _SLICE):
            if self._callback_parser.is_complete:
                self._hold_early(data[start:])
                return True
            if not super()._feed_callback_parser(view[start : start + _SLICE]):
                return False
        return True

    def take_over(self, count: Callable[[int], None]) -> SocketInflow | None:
        """The body from here on, for a thread (api/edge.Connection)."""
        receiver = self._body_receiver
        if self._chunks is None or self._is_ssl or self._half_closed or self.transport.is_closing():
            return None
        if receiver.buffered < _FAST:
            return None
        try:
            fd = os.dup(self.transport.get_extra_info("socket").fileno())
        except OSError:  # no descriptor is left in this process: the event loop goes on as it did, and needs none
            return None

        def give_back(payload: bytes, rest: bytes, taken: int) -> None:
            count(taken)
            receiver.feed(payload)
            if not self._closed:
                self.data_received(rest)
                self._maybe_resume_reading()

        self._pause_reading()
        begun, self._begun = self._begun, b""
        return SocketInflow(fd, self._chunks, begun, receiver.take_all(), give_back)

    def _hold_early(self, data: bytes) -> None:
        """Keep what came before the loop of this connection has put the last request away.

        The answer is out a moment before that, so a client may well be so fast; the parser would keep only so much.
        """
        self._early.append(data)
        self._pause_reading()

    def _maybe_resume_reading(self) -> None:
        if not self._early:
            super()._maybe_resume_reading()

    def _resume_reading(self) -> None:
        super()._resume_reading()
        if self._early:
            self.worker.loop.call_soon(self._feed_early)

    def _feed_early(self) -> None:
        if self._early and not self._closed and not self._callback_parser.is_complete:
            data, self._early = b"".join(self._early), []
            super()._resume_reading()  # more may have come, and have been held, since this was called for
            self.data_received(data)
            self._end_input()

    def eof_received(self) -> bool:
        """The client sends nothing more: what it asked for is answered, then the connection ends.

        With TLS it ends at once: a half of it cannot be kept open.
        """
        if self.is_idle or self._lingering or self._is_ssl:
            return False
        self._half_closed = True
        self._end_input()
        return True

    def _end_input(self) -> None:
        """Wait for nothing more of a client that sends nothing more, once all that it sent has been looked at."""
        if not self._half_closed or self._early or self._closed:
            return
        if self.is_idle:
            self._keepalive_timeout()
        elif self._body_receiver is not None and not self._callback_parser.is_complete:
            self._body_receiver.signal_disconnect()

    def _arm_keepalive_timer(self) -> None:
        if self._half_closed:
            self.worker.loop.call_soon(self._end_input)
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
        self._chunks, self._begun = None, b""
        skip_body = super()._on_headers_complete()
        request = self._current_request
        try:
            check_head(request)
        except ParseError:
            self._current_request = None  # what is refused now is no body
            raise
        if request.raw_path[:1] != b"/":
            strip_origin(request)
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

    async def _serve_http_request(self, request: Any, sockname: Any, peername: Any) -> bool:
        """Answer a request, in the connection's own task; whether the connection may be kept.

        gunicorn starts a task for each, so that an application may run on after its answer. Ours takes what is left
        of the body then, for which the connection would wait anyway; and each task costs two turns of the loop, in
        which the client's next request is already there and has to be held.
        """
        answer = Answer(self, request)
        self._end_input()
        try:
            await self.app(self._scope(request, sockname, peername), self._body_receiver.receive, answer.send)
        except Exception:
            self.log.exception("Error in ASGI application")
            if not answer.has_begun:
                self._send_error_response(500, "Internal Server Error")
            return False
        return answer.keeps_connection

    def _scope(self, request: Any, sockname: Any, peername: Any) -> dict[str, Any]:
        """The request as the application sees it (ASGI, "HTTP Connection Scope")."""
        return {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1" if request.version == (1, 1) else "1.0",
            "method": request.method,
            "scheme": request.scheme,
            "path": request.path,
            "raw_path": request.raw_path,
            "query_string": request.query.encode("latin-1"),
            "root_path": "",
            "headers": request.headers_bytes,
            "server": sockname[:2] if isinstance(sockname, tuple) else None,  # none: a Unix socket
            "client": peername[:2] if isinstance(peername, tuple) else None,
            "registry.connection": self,
        }

    def begin_answer(self, head: bytes) -> None:
        """Hold the head until there is something of the body, or the end."""
        self._answering = True
        self._body_receiver.expect_continue = False  # RFC 9110 section 10.1.1
        self._response_buffer = head

    async def write_body(self, body: bytes, chunked: bool, is_last: bool) -> None:
        """Write a piece of the answer's body, with the head if that waits; return when there is room for more."""
        if body:
            self._send_body(body, chunked, is_last)
        elif is_last and (rest := (self._response_buffer or b"") + (b"0\r\n\r\n" if chunked else b"")):
            self._response_buffer = b""
            self._safe_write(rest)
        if self._flow_control.write_paused:
            await self._flow_control.drain()

    def _send_error_response(self, status: int, message: str, extra_headers: Any = ()) -> None:
        """The parser's refusal, as the spec wants it; the connection lingers so that it is read."""
        self._lingering = True
        if self._body_receiver is not None:
            self._body_receiver.signal_disconnect()
        if self._answering and self._current_request is not None:
            return  # a second answer would be taken for a part of the first, or for that to the next request
        is_body = status == 400 and self._current_request is not None
        body = envelope([SizeInvalid(message) if is_body else _REFUSALS[status](message)])
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
        return not self._request_ready.is_set() and not self._early


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
        self._watching: asyncio.Task[None] | None = None

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
        if self.app.served is not None:
            self._take_tls_sockets()
        await super()._serve()

    def _take_tls_sockets(self) -> None:
        """Keep the sockets that speak TLS from gunicorn; it sees listeners that are there already."""
        sockets = self.sockets
        self.servers = [self._tls_listener(each.sock) for each in sockets if not self.app.is_plain(each)]
        self.sockets: list[Any] = [each for each in sockets if self.app.is_plain(each)]

    def _tls_listener(self, sock: socket.socket) -> TlsListener:
        return TlsListener(
            sock,
            self.app.served,
            lambda: RegistryProtocol(self),
            proxied=self.cfg.proxy_protocol != "off",
            patience=self.patience.head,
            farewell=self.patience.linger,
        )

    def _get_ssl_context(self) -> None:
        """gunicorn asks when the application is ready, just before it listens: so do our own listeners.

        Its sockets get no context: those that are left to it are plain.
        """
        if self.app.served is None:
            return
        self.app.served.refresh()  # what was read before the fork may be old: this worker may follow one that died
        for listener in self.servers:
            listener.start()
        self._watching = self.loop.create_task(self.app.served.watch())

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
