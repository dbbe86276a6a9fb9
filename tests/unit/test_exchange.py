"""The framing of answers, and in which pieces a body is handed out; real connections are in tests/node."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Iterator
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.api.edge import Patience
from cluster.exchange import Answer, Chunks, Receiver, SocketInflow

pytestmark = pytest.mark.anyio

KIB = 1024


class Connection:
    """What an answer asks of its connection, with what would have been sent in `sent`."""

    def __init__(self, *, draining: bool = False) -> None:
        self.is_closed = False
        self.sent = b""
        self._draining = draining

    def _will_close(self, *_: object) -> bool:
        return self._draining

    def begin_answer(self, head: bytes) -> None:
        self.sent += head

    async def write_body(self, body: bytes, chunked: bool, is_last: bool) -> None:
        frame = b"%x\r\n%b\r\n" % (len(body), body) if chunked and body else body
        self.sent += frame + (b"0\r\n\r\n" if chunked and is_last else b"")


def answer(method: str = "GET", version: tuple[int, int] = (1, 1), **more: Any) -> tuple[Answer, Connection]:
    connection = Connection(**more)
    return Answer(connection, SimpleNamespace(method=method, version=version)), connection


async def send(answer: Answer, *pieces: bytes, status: int = 200, headers: Any = ()) -> None:
    await answer.send({"type": "http.response.start", "status": status, "headers": list(headers)})
    for piece in pieces:
        await answer.send({"type": "http.response.body", "body": piece, "more_body": True})
    await answer.send({"type": "http.response.body"})


async def test_a_body_of_known_length_is_sent_as_it_is() -> None:
    ours, connection = answer()
    await send(ours, b"ab", b"c", headers=[(b"content-length", b"3")])
    head, _, body = connection.sent.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n")
    assert b"onnection" not in head
    assert body == b"abc"
    assert ours.keeps_connection


async def test_a_body_of_unknown_length_is_chunked() -> None:
    ours, connection = answer()
    await send(ours, b"abc")
    head, _, body = connection.sent.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert body == b"3\r\nabc\r\n0\r\n\r\n"
    assert ours.keeps_connection


async def test_a_client_that_knows_no_chunks_sees_the_end_by_the_end_of_the_connection() -> None:
    ours, connection = answer(version=(1, 0))
    await send(ours, b"abc")
    head, _, body = connection.sent.partition(b"\r\n\r\n")
    assert head.count(b"Connection: close") == 1
    assert body == b"abc"
    assert not ours.keeps_connection


async def test_a_client_of_http_1_0_is_told_that_its_connection_is_kept() -> None:
    """RFC 9112 section 9.3: it would wait for the end of the connection otherwise."""
    ours, connection = answer(version=(1, 0))
    await send(ours, b"abc", headers=[(b"content-length", b"3")])
    assert connection.sent.count(b"Connection: keep-alive\r\n") == 1
    assert ours.keeps_connection
    ours, connection = answer(version=(1, 0), draining=True)
    await send(ours, b"abc", headers=[(b"content-length", b"3")])
    assert b"keep-alive" not in connection.sent


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 304), ("DELETE", 204)])
async def test_an_answer_that_may_have_no_body_has_none(method: str, status: int) -> None:
    ours, connection = answer(method)
    await send(ours, b"abc", status=status, headers=[(b"content-length", b"3")])
    head, _, body = connection.sent.partition(b"\r\n\r\n")
    assert (b"content-length: 3" in head) == (status != 204)
    assert body == b""
    assert ours.keeps_connection


async def test_more_than_was_announced_does_not_become_the_next_answer() -> None:
    ours, connection = answer()
    await send(ours, b"abc", b"HTTP/1.1 200 OK", headers=[(b"content-length", b"3")])
    assert connection.sent.endswith(b"\r\n\r\nabc")


async def test_after_less_than_was_announced_the_connection_ends() -> None:
    ours, _ = answer()
    await send(ours, b"ab", headers=[(b"content-length", b"3")])
    assert ours.is_complete
    assert not ours.keeps_connection


async def test_an_answer_without_an_end_ends_the_connection() -> None:
    ours, _ = answer()
    await ours.send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    assert not ours.keeps_connection


@pytest.mark.parametrize("more", [{"draining": True}, {}], ids=["the worker stops", "the application wants it"])
async def test_a_client_is_told_once_that_the_connection_ends(more: dict[str, bool]) -> None:
    ours, connection = answer(**more)
    wish = [] if more else [(b"connection", b"close")]
    await send(ours, headers=[(b"content-length", b"0"), *wish])
    assert connection.sent.lower().count(b"connection: close\r\n") == 1
    assert not ours.keeps_connection


@pytest.mark.parametrize("status", [206, 304, 412, 416, 429, 431, 501])
async def test_every_status_has_its_phrase(status: int) -> None:
    ours, connection = answer()
    await send(ours, status=status)
    assert connection.sent.startswith(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode())


@pytest.mark.parametrize("value", [b"a\r\nx-evil: 1", b"a\nx", b"a\rx", b"a\0x", b"a\r\n\r\nHTTP/1.1 200 OK"])
@pytest.mark.parametrize("place", ["name", "value"])
async def test_a_header_that_would_break_the_framing_is_not_sent(value: bytes, place: str) -> None:
    ours, connection = answer()
    header = (b"x-a", value) if place == "value" else (value, b"b")
    with pytest.raises(ValueError, match="header"):
        await send(ours, headers=[header])
    assert connection.sent == b""
    assert not ours.has_begun


async def test_nothing_is_sent_to_a_client_that_has_gone() -> None:
    ours, connection = answer()
    connection.is_closed = True
    await send(ours, b"abc")
    assert connection.sent == b""
    assert not ours.keeps_connection


def receiver(patience: int = 60) -> Receiver:
    worker = SimpleNamespace(loop=asyncio.get_running_loop())
    protocol = SimpleNamespace(
        worker=worker, patience=Patience(body=patience), _maybe_resume_reading=lambda: None, _closed=False
    )
    return Receiver(SimpleNamespace(content_length=0, chunked=True), protocol)


async def test_what_came_together_is_handed_out_together() -> None:
    body = receiver()
    for number in range(4):
        body.feed(b"%d" % number * KIB)
    event = await body.receive()
    assert (event["body"], event["more_body"]) == (b"".join(b"%d" % number * KIB for number in range(4)), True)
    body.set_complete()
    assert await body.receive() == {"type": "http.request", "body": b"", "more_body": False}


async def test_no_piece_is_larger_than_a_request_may_hold() -> None:
    body = receiver()
    for _ in range(40):
        body.feed(bytes(16 * KIB))
    body.set_complete()
    sizes, more = [], True
    while more:
        event = await body.receive()
        sizes.append(len(event["body"]))
        more = event["more_body"]
    assert sum(sizes) == 640 * KIB
    assert max(sizes) <= 192 * KIB
    assert body.buffered == 0


async def test_what_came_before_the_client_left_is_handed_out_first() -> None:
    body = receiver()
    body.feed(b"a")
    body.feed(b"b")
    body.signal_disconnect()
    assert (await body.receive())["body"] == b"ab"
    assert await body.receive() == {"type": "http.disconnect"}


async def test_a_body_that_pauses_is_waited_for() -> None:
    body = receiver()
    waiting = asyncio.create_task(body.receive())
    await asyncio.sleep(0)
    body.feed(b"late")
    assert (await waiting)["body"] == b"late"


async def test_a_body_that_stops_coming_ends_at_the_limit() -> None:
    body = receiver(patience=0)
    assert await asyncio.wait_for(body.receive(), 10) == {"type": "http.disconnect"}


def framed(*payloads: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(payload), payload) for payload in payloads)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 10_000])
def test_plain_chunks_are_taken_however_they_come(step: int) -> None:
    payloads = [b"a", b"\r\n" * 40, b"5\r\nhello\r\n", bytes(300)]
    chunks, data, got = Chunks(), framed(*payloads), b""
    held = b""
    for start in range(0, len(data), step):
        held += data[start : start + step]
        spans, used = chunks.split(held, 0, len(held))
        got += b"".join(held[begin:end] for begin, end in spans)
        held = held[used:]
        assert chunks.may_go_on(held)
    assert (got, held, chunks.is_between) == (b"".join(payloads), b"", True)


@pytest.mark.parametrize(
    "line",
    [
        b"0\r\n",
        b"000\r\n",
        b"3;a=b\r\n",
        b"3 \r\n",
        b" 3\r\n",
        b"+3\r\n",
        b"0x3\r\n",
        b"1_0\r\n",
        b"3\n",
        b"\r\n",
        b"g\r\n",
    ],
)
def test_what_is_no_plain_chunk_is_left_to_the_parser(line: bytes) -> None:
    chunks, data = Chunks(), framed(b"abc") + line + b"abc\r\n"
    assert chunks.split(data, 0, len(data)) == ([(3, 6)], 8)
    assert chunks.is_between
    assert not chunks.may_go_on(data[8:])


@pytest.mark.parametrize("end", [b"xy", b"\rx", b"\n\r", b"5\r\nhello\r\n"])
def test_a_chunk_that_does_not_end_where_it_should_is_no_chunk(end: bytes) -> None:
    chunks, data = Chunks(), b"3\r\nabc" + end
    spans, used = chunks.split(data, 0, len(data))
    assert spans == [(3, 6)]
    assert not chunks.is_between
    assert not chunks.may_go_on(data[used:])


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The ends of client and server; the server's does not wait."""
    client, server = socket.socketpair()
    with client, server:
        server.setblocking(False)
        yield client, server


def test_an_inflow_gives_what_came_in_order_and_gives_back_what_it_does_not_understand(pair: Any) -> None:
    client, server = pair
    given: list[tuple[bytes, bytes, int]] = []
    payloads = [os.urandom(size) for size in (1, 5000, 32 * KIB, 70 * KIB)]
    fd = os.dup(server.fileno())
    inflow = SocketInflow(fd, Chunks(), b"", [b"before", b"that"], lambda *back: given.append(back))
    client.sendall(framed(*payloads) + b"0\r\n\r\nGET /")
    got = [bytes(inflow.take(4)), bytes(inflow.take(100)), bytes(inflow.take(100))]
    assert got == [b"befo", b"re", b"that"]
    while piece := bytes(inflow.take(random.randint(1, 40_000))):
        got.append(piece)
    inflow.give_back()
    whole = b"".join([b"before", b"that", *payloads])
    assert b"".join(got) == whole
    assert given == [(b"", b"0\r\n\r\nGET /", len(whole))]


def test_an_inflow_gives_back_payload_that_nobody_took(pair: Any) -> None:
    client, server = pair
    given: list[tuple[bytes, bytes, int]] = []
    inflow = SocketInflow(os.dup(server.fileno()), Chunks(), b"1", [b"before"], lambda *back: given.append(back))
    client.sendall(b"0\r\n0123456789")
    assert bytes(inflow.take(6)) + bytes(inflow.take(4)) == b"before0123"
    inflow.give_back()
    assert given == [(b"456789", b"", 10)]


def test_an_inflow_leaves_a_slow_client_and_one_that_left_to_the_event_loop(pair: Any) -> None:
    client, server = pair
    inflow = SocketInflow(os.dup(server.fileno()), Chunks(), b"", [], lambda *_: None)
    client.sendall(framed(b"abc"))
    assert bytes(inflow.take(KIB)) == b"abc"
    client.sendall(framed(b"def"))
    assert not inflow.take(KIB)
    inflow = SocketInflow(os.dup(server.fileno()), Chunks(), b"", [], lambda *_: None)
    assert bytes(inflow.take(KIB)) == b"def"
    client.close()
    assert not inflow.take(KIB)
