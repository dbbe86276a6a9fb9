"""Requests that no client should send: each gets a 4xx in the spec's JSON, and the node goes on serving."""

import json
import os
import time
from collections.abc import Iterator

import pytest

from tests.node.nodes import stored, workers_memory
from tests.node.raw import Wire, begin, chunk, head, position
from tests.support.process import Node, eventually

GET = "GET /v2/ HTTP/1.1\r\nHost: registry.test\r\n"
POST = "POST /v2/smuggled/blobs/uploads/ HTTP/1.1\r\nHost: registry.test\r\n"

UNREADABLE = {
    "TLS on a plain port": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + "\x00" * 500,
    "HTTP/2 without being asked": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": "GET /v2/\r\n\r\n",
    "a version that is none": "GET /v2/ HTTP/x\r\nHost: a\r\n\r\n",
    "HTTP/2 in words": "GET /v2/ HTTP/2.0\r\nHost: a\r\n\r\n",
    "a space in the target": "GET /v2/ a HTTP/1.1\r\nHost: a\r\n\r\n",
    "no target": "GET  HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method in lower case": "get /v2/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method of 300 letters": "A" * 300 + " /v2/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a NUL in the target": "GET /v2/a\0b/tags/list HTTP/1.1\r\nHost: a\r\n\r\n",
    "bytes above ASCII in the target": "GET /v2/\xc3\xa4/tags/list HTTP/1.1\r\nHost: a\r\n\r\n",
    "a NUL in a header": GET + "X-A: a\0b\r\n\r\n",
    "a header without a name": GET + ": b\r\n\r\n",
    "a header without a colon": GET + "X-A\r\n\r\n",
    "a space before the colon": GET + "X-A : b\r\n\r\n",
    "a header that begins with a space": "GET /v2/ HTTP/1.1\r\n Host: a\r\n\r\n",
    "two hosts": GET + "Host: b\r\n\r\n",
    "no host": "GET /v2/ HTTP/1.1\r\nX-A: b\r\n\r\n",
    "no header": "GET /v2/ HTTP/1.1\r\n\r\n",
    "no host but in the target": "GET http://registry.test/v2/ HTTP/1.1\r\n\r\n",
    "two empty lines before it": "\r\n\r\n" + GET + "\r\n",
    "an empty line without its CR": "\n" + GET + "\r\n",
}
SMUGGLING = {
    "length and chunks": POST + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": POST + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "two equal lengths": POST + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": POST + "Content-Length: 5, 5\r\n\r\nhello",
    "a negative length": POST + "Content-Length: -5\r\n\r\nhello",
    "a signed length": POST + "Content-Length: +5\r\n\r\nhello",
    "a hexadecimal length": POST + "Content-Length: 0x5\r\n\r\nhello",
    "a length with digits of another script": POST + "Content-Length: \u00b2\r\n\r\nhello",
    "a length that wraps to 5": POST + "Content-Length: 18446744073709551621\r\n\r\nhello",
    "a length that wraps to 0": POST + "Content-Length: 18446744073709551616\r\n\r\nhello",
    "a length beyond everything": POST + "Content-Length: " + "9" * 40 + "\r\n\r\nhello",
    "a folded header": GET + "X-A: b\r\n c\r\n\r\n",
    "a folded length": POST + "Content-Length: 1\r\n 0\r\n\r\n0123456789",
    "folded chunks": POST + "Transfer-Encoding:\r\n chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunks twice": POST + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks that are not last": POST + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a coding that is nearly chunked": POST + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": POST.replace("1.1", "1.0") + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks behind a space": POST + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "chunks behind a vertical tab": POST + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
}
PATHS = {
    "/v2/a%2Fb/tags/list": (400, "NAME_INVALID"),
    "/v2/a%2f..%2fb/blobs/sha256:" + "0" * 64: (400, "NAME_INVALID"),
    "/v2/a%00b/tags/list": (400, "NAME_INVALID"),
    "/v2/%zz/tags/list": (400, "NAME_INVALID"),
    "/v2/%ff%fe/tags/list": (400, "NAME_INVALID"),
    "/v2/A/tags/list": (400, "NAME_INVALID"),
    "/v2/../../etc/tags/list": (400, "NAME_INVALID"),
    "/v2/%2e%2e/%2e%2e/etc/tags/list": (400, "NAME_INVALID"),
    "/v2/a//b/tags/list": (400, "NAME_INVALID"),
    "/v2/" + "a" * 256 + "/tags/list": (400, "NAME_INVALID"),
    "/v2/" + "a/" * 3000 + "a/tags/list": (400, "NAME_INVALID"),
    "/v2/a/manifests/..": (404, "MANIFEST_UNKNOWN"),
    "/v2/a/manifests/%2e%2e%2f%2e%2e": (404, "MANIFEST_UNKNOWN"),
    "/v2/a/manifests/" + "t" * 129: (404, "MANIFEST_UNKNOWN"),
    "/v2/a/blobs/sha256:..%2f..%2f..%2fetc%2fpasswd": (400, "DIGEST_INVALID"),
    "/v2/a/blobs/sha256:" + "0" * 63: (400, "DIGEST_INVALID"),
    "/v2/a/blobs/sha256:" + "0" * 5000: (400, "DIGEST_INVALID"),
    "/v2/a/blobs/uploads/..": (404, "BLOB_UPLOAD_INVALID"),
    "/v2/a/blobs/uploads/%2e%2e%2f?_state=a": (404, "BLOB_UPLOAD_UNKNOWN"),
    "/v2/a/referrers/sha256:%00": (400, "DIGEST_INVALID"),
    "/../v2/": (404, "UNSUPPORTED"),
    "/v2/\\..\\": (404, "UNSUPPORTED"),
    "*": (400, "UNSUPPORTED"),
}


@pytest.fixture
def wire(node: Node) -> Iterator[Wire]:
    with Wire(node.port) as wire:
        yield wire


@pytest.mark.parametrize("request_", [pytest.param(text, id=name) for name, text in UNREADABLE.items()])
def test_what_is_no_request_gets_400_and_the_connection_ends(wire: Wire, request_: str) -> None:
    answer = wire.send(request_.encode("latin-1")).answer()
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert answer.error() == "UNSUPPORTED"
    assert wire.rest() == b""


@pytest.mark.parametrize("request_", [pytest.param(text, id=name) for name, text in SMUGGLING.items()])
def test_a_request_with_two_readings_gets_400_and_nothing_behind_it_is_served(
    node: Node, wire: Wire, request_: str
) -> None:
    behind = head("GET", "/v2/_catalog", "X-Request-Id: smuggled")
    answer = wire.send(request_.encode("latin-1") + behind).answer()
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert answer.error() == "UNSUPPORTED"
    assert wire.rest() == b""
    assert "smuggled" not in node.log()
    assert not os.path.exists(f"{node.root}/docker/registry/v2/repositories/smuggled")


@pytest.mark.parametrize(
    "coding", ["gzip, chunked", "GZIP, chunked", "gzip\r\nTransfer-Encoding: chunked", "identity, chunked"]
)
def test_a_body_in_a_coding_that_is_not_undone_gets_501(node: Node, wire: Wire, coding: str) -> None:
    """RFC 9112 section 6.1: the bytes would be stored as they came."""
    location = begin(node.port, "coded")
    answer = wire.send(
        head("PATCH", location, f"Transfer-Encoding: {coding}"), chunk(b"hello"), chunk(b"")
    ).answer()
    assert (answer.status, answer.error(), answer.headers["connection"]) == (501, "UNSUPPORTED", "close")
    assert wire.rest() == b""
    assert position(node.port, location) == 0


@pytest.mark.parametrize("pieces", [["\r\nG"], ["\r\n", "G"], ["\r", "\nG"], ["\r", "\n", "G"]])
def test_an_empty_line_before_a_request_is_overlooked(wire: Wire, pieces: list[str]) -> None:
    """RFC 9112 section 2.2; on a kept connection as well."""
    rest = head("GET", "/v2/").decode()[1:]
    for _ in range(2):
        for piece in pieces:
            wire.send(piece.encode())
            time.sleep(0.05)
        assert wire.send(rest.encode()).answer().status == 200


def test_without_a_host_http_1_0_is_served(wire: Wire) -> None:
    assert wire.send(b"GET /v2/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").answer().status == 200
    assert wire.ask("GET", "/v2/").status == 200


@pytest.mark.parametrize(("target", "expected"), PATHS.items())
def test_a_path_that_means_nothing_is_refused_by_the_specs_error(
    wire: Wire, target: str, expected: tuple[int, str]
) -> None:
    answer = wire.ask("GET", target)
    assert (answer.status, answer.error()) == expected
    assert answer.headers.get("connection") == "close" or wire.ask("GET", "/v2/").status == 200


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "POST", "HEAD", "PURGE", "TRACE", "CONNECT"])
@pytest.mark.parametrize(
    "target", ["/v2/a%2Fb/manifests/t", "/v2/%00/blobs/uploads/x", "/v2/../blobs/uploads/", "/"]
)
def test_no_method_makes_a_bad_path_good(wire: Wire, method: str, target: str) -> None:
    answer = wire.ask(method, target, "Content-Length: 0")
    assert 400 <= answer.status < 500 or (target == "/" and answer.status == 200)


def test_a_request_line_of_64_kib_gets_414(wire: Wire) -> None:
    answer = wire.send(head("GET", "/v2/" + "a" * 65536)).answer()
    assert (answer.status, answer.error()) == (414, "UNSUPPORTED")


def test_a_header_line_of_64_kib_gets_431(wire: Wire) -> None:
    answer = wire.send(head("GET", "/v2/", "X-A: " + "a" * 65536)).answer()
    assert (answer.status, answer.error()) == (431, "UNSUPPORTED")


@pytest.mark.parametrize("count", [101, 10_000])
def test_too_many_headers_get_a_4xx(wire: Wire, count: int) -> None:
    answer = wire.send(head("GET", "/v2/", *[f"X-{n}: a" for n in range(count)])).answer()
    assert answer.status in (400, 431)
    assert answer.error()


def test_a_head_that_does_not_end_is_cut_off_long_before_it_fills_the_memory(node: Node) -> None:
    before = workers_memory(node)
    with Wire(node.port) as wire:
        wire.send(head("GET", "/v2/")[:-2], b"X-A: ")
        answer = flood(wire, b"a" * 65536)
    assert answer == 431
    assert workers_memory(node) - before < 8 << 20


@pytest.mark.parametrize(
    ("beginning", "status"),
    [(b"5;extension=", 400), (b"0\r\nTrailer: ", 431)],
    ids=["chunk extension", "trailer"],
)
def test_what_frames_a_body_and_does_not_end_is_cut_off_too(node: Node, beginning: bytes, status: int) -> None:
    before = workers_memory(node)
    with Wire(node.port) as wire:
        wire.send(head("PATCH", begin(node.port, "framing"), "Transfer-Encoding: chunked"), beginning)
        answer = flood(wire, b"a" * 65536)
    assert answer == status
    assert workers_memory(node) - before < 8 << 20


def flood(wire: Wire, piece: bytes) -> int:
    """Send until the server has had enough, at most 64 MiB; the status of its answer."""
    try:
        for _ in range(1024):
            wire.send(piece)
    except ConnectionError:
        pass
    return wire.answer_head()[0]


@pytest.mark.parametrize("size", ["g", "-5", "+5", "0x5", " 5", "5 ", "", "5_0", "\u00b2", "1" + "0" * 15 + "5"])
def test_a_chunk_size_that_is_none_gets_400_and_what_came_before_is_kept(node: Node, wire: Wire, size: str) -> None:
    location = begin(node.port, "chunks")
    wire.send(head("PATCH", location, "Transfer-Encoding: chunked"), chunk(b"first"))
    eventually(lambda: stored(node, location) is not None, 20, "the upload is under way")
    wire.send(f"{size}\r\nhello\r\n0\r\n\r\n".encode("latin-1"))
    answer = wire.answer()
    assert (answer.status, answer.error()) == (400, "SIZE_INVALID")
    assert wire.rest() == b""
    eventually(lambda: position(node.port, location) == 5, 20, "the first chunk is kept")


def test_a_chunk_that_is_longer_than_it_says_gets_400(node: Node, wire: Wire) -> None:
    location = begin(node.port, "chunks")
    answer = wire.send(head("PATCH", location, "Transfer-Encoding: chunked"), b"3\r\nabcdef\r\n0\r\n\r\n").answer()
    assert (answer.status, answer.error()) == (400, "SIZE_INVALID")
    assert wire.rest() == b""


@pytest.mark.parametrize(
    "headers",
    [
        ["Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="],
        ["Upgrade: websocket", "Sec-WebSocket-Version: 12"],
        ["Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"],
        ["Upgrade: TLS/1.2"],
    ],
    ids=lambda headers: headers[0],
)
def test_the_wish_for_another_protocol_is_ignored(wire: Wire, headers: list[str]) -> None:
    answer = wire.ask("GET", "/v2/", "Connection: Upgrade", *headers)
    assert (answer.status, json.loads(answer.body)) == (200, {})


@pytest.mark.parametrize("origin", ["http://registry.test", "HTTP://somebody:secret@registry.test:5000"])
def test_a_target_with_its_origin_means_the_same_as_its_path(node: Node, wire: Wire, origin: str) -> None:
    assert wire.ask("GET", f"{origin}/v2/_catalog?n=1").body == wire.ask("GET", "/v2/_catalog?n=1").body
    assert "somebody" not in node.log()


def test_a_body_where_none_belongs_is_passed_over(wire: Wire) -> None:
    assert wire.ask("GET", "/v2/", "Content-Length: 5", body=b"hello").status == 200
    assert wire.ask("GET", "/v2/", "Transfer-Encoding: chunked", body=chunk(b"hello") + chunk(b"")).status == 200
    assert wire.ask("GET", "/v2/").status == 200
