"""A small HTTP/1.1 client on a bare socket, for what no well-behaved client does.

Sends exactly the bytes it is given and reads answers as they come. Knows of the registry only how an error looks
and how an upload begins.
"""

import hashlib
import json
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

Place = int | str | tuple[str, int]
"""A port of 127.0.0.1, the path of a unix socket, or a host (IPv6 too) and a port."""


@dataclass(frozen=True)
class Answer:
    """One final answer; `interim` holds the 1xx statuses that came before it."""

    status: int
    headers: dict[str, str]
    body: bytes
    interim: tuple[int, ...] = ()

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> str:
        """The code of the first error, after a check that the body is the spec's JSON."""
        assert self.headers.get("content-type", "").startswith("application/json"), self
        errors = self.json()["errors"]
        assert errors and all(set(entry) <= {"code", "message", "detail"} for entry in errors), self
        return str(errors[0]["code"])


class Wire:
    """One connection; a context manager closes it."""

    def __init__(self, place: Place, *, timeout: float = 30, receive_buffer: int | None = None) -> None:
        family = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET
        if isinstance(place, tuple):
            family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.settimeout(timeout)
        if receive_buffer is not None:  # before connecting, or the window is already promised
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.socket.connect(("127.0.0.1", place) if isinstance(place, int) else place)
        except OSError:
            self.socket.close()
            raise
        self._file: BinaryIO = self.socket.makefile("rb")

    def send(self, *parts: bytes) -> Self:
        for part in parts:
            self.socket.sendall(part)
        return self

    def ask(self, method: str, target: str, *headers: str, body: bytes = b"") -> Answer:
        """Send a request and read its answer; its framing is that of `headers` alone."""
        self.send(head(method, target, *headers), body)
        return self.answer(method)

    def answer(self, method: str = "GET") -> Answer:
        """The next final answer. EOFError when the connection ends before its head."""
        interim: list[int] = []
        while True:
            status, headers = self.answer_head()
            if status >= 200:
                break
            interim.append(status)
        no_body = method == "HEAD" or status in (204, 304)
        return Answer(status, headers, b"" if no_body else b"".join(self._body(headers)), tuple(interim))

    def answer_head(self) -> tuple[int, dict[str, str]]:
        """Status and headers alone; the body is left where it is."""
        line = self._file.readline()
        if not line:
            raise EOFError("the server closed the connection without an answer")
        assert line.startswith(b"HTTP/1."), line
        headers: dict[str, str] = {}
        while (field := self._file.readline().strip()) != b"":
            name, _, value = field.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return int(line.split()[1]), headers

    def read(self, size: int) -> bytes:
        """That many bytes, fewer at the end of the connection."""
        return self._file.read(size)

    def rest(self) -> bytes:
        """Everything until the server closes; a timeout fails the test that waits for it."""
        return self._file.read()

    def reset(self) -> None:
        """Break the connection with a RST, as a machine does that was switched off and on."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _body(self, headers: dict[str, str]) -> Iterator[bytes]:
        if headers.get("transfer-encoding") == "chunked":
            while size := int(self._file.readline(), 16):
                yield self._file.read(size)
                self._file.readline()
            self._file.readline()
        elif "content-length" in headers:
            yield self._file.read(int(headers["content-length"]))
        else:
            yield self.rest()


def head(method: str, target: str, *headers: str) -> bytes:
    """A request's head; every header is one `Name: value`."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: registry.test", *headers, "", ""]).encode("latin-1")


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; an empty one is the end."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def digest_of(*pieces: bytes) -> str:
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
    return "sha256:" + total.hexdigest()


def get(url: str, *headers: str) -> Answer:
    """The answer to a GET on a connection of its own, which any worker may take."""
    address, _, path = url.removeprefix("http://").partition("/")
    host, _, port = address.rpartition(":")
    with Wire((host, int(port))) as wire:
        return wire.ask("GET", f"/{path}", *headers)


def begin(port: int, name: str) -> str:
    """A new upload session: the path and query at which it goes on."""
    with Wire(port) as wire:
        answer = wire.ask("POST", f"/v2/{name}/blobs/uploads/", "Content-Length: 0")
    assert answer.status == 202, answer
    return answer.headers["location"]


def position(port: int, location: str) -> int:
    """How many bytes the registry says it has of an upload."""
    with Wire(port) as wire:
        answer = wire.ask("GET", location)
    assert answer.status == 204, answer
    return 0 if answer.headers["range"] == "0-0" else int(answer.headers["range"].partition("-")[2]) + 1


def push(port: int, name: str, pieces: Sequence[bytes]) -> str:
    """A blob of these pieces, in one PATCH; its digest."""
    digest = digest_of(*pieces)
    location = begin(port, name)
    with Wire(port) as wire:
        wire.send(head("PATCH", location, "Transfer-Encoding: chunked"), *map(chunk, pieces), chunk(b""))
        answer = wire.answer()
        assert answer.status == 202, answer
        answer = wire.ask("PUT", f"{answer.headers['location']}&digest={digest}", "Content-Length: 0")
    assert answer.status == 201, answer
    return digest
