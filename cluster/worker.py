"""gunicorn's asgi worker, where a registry needs more of it than there are settings for.

Owns the connection: a limit on the time that a request's head may take, errors of the HTTP parser in the spec's
JSON, closing without a reset, and a stop that does not wait for idle connections. Knows nothing of what is served.
"""

from __future__ import annotations

import asyncio
from typing import Any

from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers import gasgi

from cluster.api.errors import envelope
from cluster.errors import RegistryError, SizeInvalid, Unsupported

_HEAD = 30.0  # seconds in which a request's head must be there
_LINGER = 2.0  # seconds in which what a refused client still sends is taken and thrown away


class RegistryProtocol(ASGIProtocol):  # type: ignore[misc]
    """One connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._head_timer = self.worker.loop.call_later(_HEAD, self._head_timeout)
        self._lingering = False
        self.worker.connections.add(self)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        self.worker.connections.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        # The next request on a kept connection begins here; its head has as long as the first one had.
        if self._awaiting_request and self._keepalive_handle is not None:
            self._cancel_keepalive_timer()
            self._head_timer.cancel()
            self._head_timer = self.worker.loop.call_later(_HEAD, self._head_timeout)
        super().data_received(data)

    def _on_headers_complete(self) -> Any:
        self._head_timer.cancel()
        return super()._on_headers_complete()

    def _head_timeout(self) -> None:
        self._send_error_response(408, f"the request's head was not complete within {_HEAD:g} s")
        self._close_transport()
        self._request_ready.set()

    def _build_http_scope(self, request: Any, sockname: Any, peername: Any) -> dict[str, Any]:
        scope: dict[str, Any] = super()._build_http_scope(request, sockname, peername)
        scope["registry.connection"] = self
        return scope

    def _send_error_response(self, status: int, message: str, extra_headers: Any = ()) -> None:
        """The parser's refusal, as the spec wants it; the connection lingers so that it is read."""
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
        self._lingering = True

    def _close_transport(self) -> None:
        """Close; what a refused client is still sending is taken for a moment, or a reset would eat the answer."""
        if not self._lingering or self._closed:
            super()._close_transport()
            return
        self._closed: bool = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.worker.loop.call_later(_LINGER, self.transport.abort)

    @property
    def is_closed(self) -> bool:
        """Whether the client has gone."""
        return bool(self._closed)

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way, nor on its way as far as we know."""
        return bool(self._awaiting_request)

    def abort(self) -> None:
        """Drop the connection, and what it still has to send."""
        self.transport.abort()


# gunicorn has no setting for the protocol class; its worker looks the name up here when it starts to listen.
gasgi.ASGIProtocol = RegistryProtocol
# It notes on the class that asks whether the parser written in C is there, and reads that from its own class.
ASGIProtocol._check_h1c_protocol_available()


class RegistryWorker(gasgi.ASGIWorker):  # type: ignore[misc]
    """A worker process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connections: set[RegistryProtocol] = set()

    async def _shutdown(self) -> None:
        """Stop: no new connections, requests under way are finished, idle connections are closed."""
        self.app.on_drain()
        for server in self.servers:
            server.close()
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
