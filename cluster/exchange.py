"""One request's target, body and answer, between a connection (worker.py) and the ASGI application.

Owns what a target with a host in it means, in which pieces a body is handed out, how long the next one is waited
for, and how an answer is framed (RFC 9112 section 6). It stands in the place of what gunicorn has for applications
of all kinds: ours names headers in lower case and as bytes, sends no events but the two of a plain answer, and
returns when it has answered.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

from gunicorn.asgi import protocol
from gunicorn.asgi.parser import InvalidHeader, UnsupportedTransferCoding
from gunicorn.asgi.protocol import BodyReceiver

from cluster.api.edge import Event, Header

# Bytes after which a piece of a body grows no more. The parser is fed 16 KiB at a time, so a piece has 192 KiB at
# most, and an upload that takes it holds less than 64 KiB of others (promise P7).
_PIECE = 176 * 1024
_BUFFER = 256 * 1024  # bytes taken off a socket at a time (promise P7)
# Seconds before each look for more, until there is as much as is wanted. For a client that is a little slower than
# storage to be waited for on the event loop would cost more; and a slow one does not keep a thread by them.
_PAUSES = (0, 0.0005, 0.0005, 0.0005)
_CRLF = b"\r\n"
_PLAIN = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")  # the line before a chunk
_BEGINNING = re.compile(rb"[0-9A-Fa-f]{0,8}|[0-9A-Fa-f]{1,8}\r")
# The names of the registry of RFC 9110; gunicorn has some of them, and calls the others "Unknown".
protocol._REASON_PHRASES.update({status.value: status.phrase for status in HTTPStatus})
_ORIGIN = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)


def strip_origin(request: Any) -> None:
    """`GET http://host/path` means what `GET /path` with that Host does (RFC 9112 section 3.2.2)."""
    match = _ORIGIN.match(request.raw_path)
    if match is None:
        return
    path = request.raw_path[match.end() :] or b"/"
    request.raw_path, request.path = path, unquote_to_bytes(path).decode("utf-8", "replace")
    others = [header for header in request.headers_bytes if header[0] != b"host"]
    request.headers_bytes = [*others, (b"host", match[1].rpartition(b"@")[2])]


def check_head(request: Any) -> None:
    """What the parsers let pass, and must not. InvalidHeader, UnsupportedTransferCoding."""
    headers = request.headers_bytes
    for name, value in headers:
        # The parser makes a header without a name of a folded line, and counts lengths modulo 2**64:
        # whatever stands in front of us reads both otherwise, and takes the rest for another request.
        if not name or (len(value) > 18 and name == b"content-length"):
            raise InvalidHeader("a folded header line, or a Content-Length that is no length")
    if (not headers or headers[0][0] != b"host") and request.version >= (1, 1) and not _has_host(headers):
        raise InvalidHeader("no Host (RFC 9112 section 3.2)")
    if request.chunked and any(
        name == b"transfer-encoding" and value.lower() != b"chunked" for name, value in headers
    ):
        raise UnsupportedTransferCoding("only chunked is undone here (RFC 9112 section 6.1)")


def _has_host(headers: list[Header]) -> bool:
    return any(name == b"host" for name, _ in headers)


class Chunks:
    """How far a chunked body has come, as long as its chunks are plain: a size, CRLF, that many bytes, CRLF.

    Most bodies consist of nothing else. These bytes go past the parser, which would look at each and copy it three
    times. It still decides all that is not plain: extensions, the last chunk, trailers, every size that is none. It
    has not seen the chunks before that, so this begins and ends between two chunks.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = 0  # bytes of the chunk under way that have not come yet, its CRLF included

    def split(self, data: bytes | bytearray, at: int, stop: int) -> tuple[list[tuple[int, int]], int]:
        """Where in `data[at:stop]` the payload lies, and where that begins which was not used: it is not plain."""
        spans = []
        while at < stop:
            if not self._left:
                line = _PLAIN.match(data, at, stop)
                if line is None or not (size := int(line[1], 16)):
                    break
                self._left = size + 2
                at = line.end()
            elif self._left > 2:
                size = min(self._left - 2, stop - at)
                spans.append((at, at + size))
                self._left -= size
                at += size
            elif data[at] == _CRLF[-self._left]:
                self._left -= 1
                at += 1
            else:
                break
        return spans, at

    def may_go_on(self, rest: bytes) -> bool:
        """Whether a plain chunk may become of what was not used, when more comes."""
        return not rest or (not self._left and _BEGINNING.fullmatch(rest) is not None)

    @property
    def is_between(self) -> bool:
        """Whether the parser can go on from here."""
        return not self._left


GiveBack = Callable[[bytes, bytes, int], None]


class SocketInflow:
    """A body taken straight off its socket into one buffer, in the thread that stores it.

    The event loop does not read meanwhile, nor does it look at what is here.
    """

    def __init__(self, fd: int, chunks: Chunks, begun: bytes, waiting: list[bytes], give_back: GiveBack) -> None:
        """`waiting` are pieces that came before, `begun` is what came behind them of the next chunk's line.

        `fd` is a duplicate of the socket's, and is closed here, when no thread reads from it any more. `give_back`
        hears which payload was not taken, what follows it as it came, and how much was taken.
        """
        self._fd = fd
        self._chunks = chunks
        self._waiting = waiting[::-1]
        self._give_back = give_back
        self._buffer = bytearray(begun)  # grows when all that waited has been taken
        self._given = self._ready = 0  # payload lies at the front: what was given, and what was not
        self._used = 0  # from here on lies what came behind it
        self._filled = len(begun)
        self._taken = 0
        self._is_slow = False

    def take(self, most: int) -> bytes | memoryview:
        data = self._take_waiting(most) if self._waiting else self._read(most)
        self._taken += len(data)
        return data

    def _take_waiting(self, most: int) -> bytes:
        piece = self._waiting.pop()
        if len(piece) > most:
            self._waiting.append(piece[most:])
        return piece[:most]

    def _read(self, most: int) -> memoryview:
        """Payload, moved together: to hash and to write it are one call each then."""
        if len(self._buffer) < _BUFFER:
            self._buffer = self._buffer.ljust(_BUFFER, b"\0")
        view = memoryview(self._buffer)
        if self._ready - self._given < most and not self._is_slow:
            self._fill(view, most)
        start, self._given = self._given, min(self._given + most, self._ready)
        return view[start : self._given]

    def _fill(self, view: memoryview, most: int) -> None:
        """Have as much payload as that, and what else has come."""
        ready = self._move(view, 0, self._given, self._ready)
        for pause in _PAUSES:
            if pause:
                time.sleep(pause)
            raw = self._move(view, ready, self._used, self._filled)
            self._filled = raw + self._receive(view[raw:])
            spans, self._used = self._chunks.split(self._buffer, ready, self._filled)
            for start, stop in spans:
                ready = self._move(view, ready, start, stop)
            if ready >= most or self._used < self._filled:
                break
        self._given, self._ready = 0, ready
        self._is_slow = ready < most

    @staticmethod
    def _move(view: memoryview, to: int, start: int, stop: int) -> int:
        end = to + stop - start
        view[to:end] = view[start:stop]
        return end

    def _receive(self, view: memoryview) -> int:
        size = 0
        try:
            while size < len(view) and (count := os.readv(self._fd, [view[size:]])):
                size += count
        except OSError:  # nothing now; or the connection broke, which the event loop will hear of, too
            pass
        return size

    def give_back(self) -> None:
        payload = b"".join(reversed(self._waiting)) + self._buffer[self._given : self._ready]
        self._give_back(payload, bytes(self._buffer[self._used : self._filled]), self._taken)

    def __del__(self) -> None:
        # Not sooner: a thread may be reading although nobody waits for it any more.
        os.close(self._fd)


class Receiver(BodyReceiver):  # type: ignore[misc]
    """The body of one request.

    What came before the client left is handed out before it is said that it left. What came together is handed out
    together: clients frame bodies in chunks of 32 KiB, and each piece costs the same on its way to storage.
    """

    __slots__ = ()
    _waiter: Any
    _buffered: Any

    async def receive(self) -> Any:
        return self._pop_chunk() if self._chunks else await super().receive()

    def take_all(self) -> list[bytes]:
        """All that has come and was not handed out."""
        chunks = list(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        return chunks

    def _build_receive_result(self) -> Any:
        return self._pop_chunk() if self._chunks else super()._build_receive_result()

    def _pop_chunk(self) -> Any:
        chunks = self._chunks
        if len(chunks) > 1 and len(chunks[0]) < _PIECE:
            together, size = [], 0
            while chunks and size < _PIECE:
                size += len(chunks[0])
                together.append(chunks.popleft())
            chunks.appendleft(b"".join(together))
        return super()._pop_chunk()

    async def _wait_for_data(self) -> None:
        """Until something comes, the client leaves, or nothing has come for as long as a body is waited for."""
        if self._chunks or self._complete or self._disconnected:
            return
        loop = self.protocol.worker.loop
        self._waiter = loop.create_future()
        # Not asyncio.wait_for: it would cost more than all the rest of a piece's way through this process.
        timer = loop.call_later(self.protocol.patience.body, self._wake_waiter)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None


class Answer:
    """The answer to one request, as the application sends it."""

    __slots__ = ("_chunked", "_connection", "_keeps", "_left", "_request", "has_begun", "is_complete")

    def __init__(self, connection: Any, request: Any) -> None:
        self._connection = connection
        self._request = request
        self._chunked = False
        self._keeps = False
        self._left: int | None = None  # bytes of body that the head has announced; None: it gave no number
        self.has_begun = False
        self.is_complete = False

    @property
    def keeps_connection(self) -> bool:
        """Whether the client knows where this answer ended, and was not told to go."""
        return self._keeps and self.is_complete and not self._left

    async def send(self, event: Event) -> None:
        """Take an event of the application. Waits while the client reads too slowly."""
        connection = self._connection
        if connection.is_closed:
            return
        if event["type"] == "http.response.start":
            connection.begin_answer(self._head(event["status"], event["headers"]))
            self.has_begun = True
            return
        body, is_last = event.get("body", b""), not event.get("more_body", False)
        if self._left is not None:
            body = body[: self._left]  # the client would take the rest for its next answer
            self._left -= len(body)
        await connection.write_body(body, self._chunked, is_last)
        self.is_complete = is_last

    def _head(self, status: int, headers: list[Header]) -> bytes:
        request = self._request
        length: int | None = None
        closes = False
        lines = [protocol._get_cached_status_line(request.version, status)]
        for name, value in headers:
            if name == b"content-length":
                if status == 204:  # RFC 9110 section 8.6
                    continue
                length = int(value)
            elif name == b"connection":
                closes = True
            lines.append(b"%b: %b\r\n" % (name, value))
        if request.method == "HEAD" or status in (204, 304):
            length = 0
        elif length is None and request.version >= (1, 1):
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        elif length is None:
            closes = True
            lines.append(b"Connection: close\r\n")
        self._left = length
        self._keeps = not closes and not self._connection._will_close(request, False)
        if not closes and not self._keeps:
            lines.append(b"Connection: close\r\n")
        elif self._keeps and request.version < (1, 1):  # it would wait for the end otherwise (RFC 9112 section 9.3)
            lines.append(b"Connection: keep-alive\r\n")
        usual: bytes = protocol._CACHED_SERVER_HEADER + protocol._get_cached_date_header()
        return _checked(lines) + usual + b"\r\n"


def _checked(lines: list[bytes]) -> bytes:
    """The lines as one. ValueError where a value would end its line: it would be read as a header, or an answer."""
    head = b"".join(lines)
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
        raise ValueError("a header of the answer has a character that no header may have")
    return head
