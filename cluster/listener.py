"""A listening socket whose connections speak TLS.

Owns what happens before the first byte of HTTP: the PROXY header that a balancer sends ahead of TLS, the refusal of
plain HTTP, and the handshake with the certificate of the moment. gunicorn would hand one context to asyncio for all
its sockets, the debug port too, and for good. What is served then is the protocol's business (worker.py).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from cluster.tls import ServedCertificate, alert_of

PLAIN_HTTP = "Client sent an HTTP request to an HTTPS server."  # Go's words, which people search for
_HANDSHAKE = b"\x16"  # the first byte of TLS: a record of the type handshake (RFC 8446 section 5.1)
_PROXY = b"\r\n\r\n\0\r\nQUIT\n"  # how a PROXY header of version 2 begins
_PROXY_START = 16  # bytes, whose last two say how many follow
_PROXY_LIMIT = 2064  # bytes of a header with the addresses and what else a balancer may tell
_PIECE = 16 * 1024  # bytes of what is thrown away at a time
_PAUSE = 1.0  # seconds without accepting when the system has no room for another connection

_log = logging.getLogger(__name__)


class Greeted(asyncio.Protocol):
    """A protocol that is told, before its connection is made, what happened on it until then."""

    preface = b""  # what came ahead of TLS: the client's address, as a balancer tells it
    refusal = ""  # why this connection is not to be served


class TlsListener:
    """Accepts connections of one socket, in place of an asyncio server; closes it as one does."""

    def __init__(
        self,
        sock: socket.socket,
        served: ServedCertificate,
        protocol: Callable[[], Greeted],
        *,
        proxied: bool,
        patience: float,
        farewell: float,
    ) -> None:
        """`patience` bounds all that is before HTTP, `farewell` the end of TLS, both in seconds."""
        self._socket = sock
        self._served = served
        self._protocol = protocol
        self._proxied = proxied
        self._patience = patience
        self._farewell = farewell
        self._accepting: asyncio.Task[None] | None = None
        self._greeting: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to accept, on the running loop."""
        _log.info("listening with TLS at %s", self._socket.getsockname())
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    def close(self) -> None:
        """Accept no more; handshakes under way go on."""
        if self._accepting is not None:
            self._accepting.cancel()
        self._socket.close()

    async def wait_closed(self) -> None:
        """Until no handshake is under way; they end when this is cancelled."""
        await asyncio.gather(*self._greeting)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._socket)
            except ConnectionAbortedError:  # the client has gone already
                continue
            except OSError as error:
                _log.error("no connection can be accepted: %s", error)
                await asyncio.sleep(_PAUSE)
                continue
            greeting = loop.create_task(self._greet(connection))
            self._greeting.add(greeting)
            greeting.add_done_callback(self._greeting.discard)

    async def _greet(self, connection: socket.socket) -> None:
        """Bring a connection to where HTTP begins, or end it."""
        connection.setblocking(False)
        try:
            async with asyncio.timeout(self._patience):
                await self._hand_over(connection)
        except (OSError, TimeoutError) as error:  # the client's own doing: no certificate, no common version, ...
            _log.debug("TLS handshake failed: %s", error)
            connection.close()
        except BaseException:
            connection.close()
            raise

    async def _hand_over(self, connection: socket.socket) -> None:
        protocol = self._protocol()
        first = await _peek(connection)
        if self._proxied and first == _PROXY[:1]:
            protocol.preface = await _proxy_header(connection)
            first = await _peek(connection)
        if not first:
            raise ConnectionResetError("the client left")
        if first == _HANDSHAKE:
            await self._shake_hands(connection, protocol)
        else:
            protocol.refusal = PLAIN_HTTP
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, connection)

    async def _shake_hands(self, connection: socket.socket, protocol: Greeted) -> None:
        with connection.dup() as still_open:  # the loop closes its own when the handshake fails
            try:
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: protocol,
                    connection,
                    ssl=self._served.context,
                    ssl_handshake_timeout=self._patience,
                    ssl_shutdown_timeout=self._farewell,
                )
            except ssl.SSLError as error:
                await self._tell(still_open, alert_of(error))
                raise

    async def _tell(self, connection: socket.socket, alert: bytes) -> None:
        """The last words; what the client is still sending is taken for a moment, or a reset would eat them."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._farewell):
            await loop.sock_sendall(connection, alert)
            connection.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(connection, _PIECE):
                pass


async def _peek(connection: socket.socket) -> bytes:
    """The first byte that has not been read, which stays unread; nothing when the client has left."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection)
    return connection.recv(1, socket.MSG_PEEK)


def beginning(data: bytes, *, proxied: bool) -> bytes | None:
    """What the first request begins with, in the first bytes of a connection; None while that cannot be told.

    Before it there may be the PROXY header of version 2, where `proxied` says so, and an empty line (RFC 9112,
    section 2.2). A header that is too long counts as the request's own.
    """
    if proxied and _is_part_of_proxy_header(data):
        return None
    if proxied and data.startswith(_PROXY) and _proxy_header_size(data) <= _PROXY_LIMIT:
        data = data[_proxy_header_size(data) :]
    if data in (b"\r", b"\r\n"):
        return None
    return data[2:] if data.startswith(b"\r\n") else data


def _is_part_of_proxy_header(data: bytes) -> bool:
    if len(data) < _PROXY_START:
        return _PROXY.startswith(data[: len(_PROXY)]) and data != b""
    return data.startswith(_PROXY) and len(data) < _proxy_header_size(data) <= _PROXY_LIMIT


def _proxy_header_size(data: bytes) -> int:
    return _PROXY_START + int.from_bytes(data[_PROXY_START - 2 : _PROXY_START], "big")


async def _proxy_header(connection: socket.socket) -> bytes:
    """A whole PROXY header of version 2, as it came. OSError when it is none."""
    start = await _exactly(connection, _PROXY_START)
    size = _proxy_header_size(start)
    if not start.startswith(_PROXY) or size > _PROXY_LIMIT:
        raise ConnectionAbortedError("wanted a PROXY header of version 2, or TLS")
    return start + await _exactly(connection, size - len(start))


async def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await asyncio.get_running_loop().sock_recv(connection, size - len(data))
        if not piece:
            raise ConnectionResetError("the client left")
        data += piece
    return data
