"""The PROXY protocol on a node without TLS: how its header may come, and what may come in its place."""

import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.node.nodes import brief, unharmed
from tests.node.raw import Wire, head
from tests.support.process import Node, eventually

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
ADDRESSES = socket.inet_aton("198.51.100.7") + socket.inet_aton("127.0.0.1") + struct.pack(">HH", 1234, 5000)
VERSION_2 = SIGNATURE + b"\x21\x11" + struct.pack(">H", len(ADDRESSES)) + ADDRESSES
VERSION_1 = b"PROXY TCP4 198.51.100.7 127.0.0.1 1234 5000\r\n"


@pytest.fixture(scope="module")
def started_proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with brief(Node(tmp_path_factory.mktemp("proxied"), {"cluster": {"proxyprotocol": True}})) as node:
        yield node


@pytest.fixture
def proxied(started_proxied: Node) -> Iterator[Node]:
    yield from unharmed(started_proxied)


@pytest.mark.parametrize("header", [VERSION_1, VERSION_2, b""], ids=["version 1", "version 2", "none"])
@pytest.mark.parametrize("cut", [0, 1, 5, 13, 15, 20, 1000])
@pytest.mark.parametrize("line", [b"", b"\r\n"], ids=["", "an empty line"])
def test_a_header_may_come_in_pieces(proxied: Node, header: bytes, cut: int, line: bytes) -> None:
    request = header + line + head("GET", f"/v2/?cut={cut}-{len(header)}-{len(line)}")
    with Wire(proxied.port) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (request[:cut], request[cut : cut + 3], request[cut + 3 :]):
            wire.send(piece)
            time.sleep(0.02)  # long enough for the node to read that alone
        assert wire.answer().status == 200
    address = "198.51.100.7" if header else "127.0.0.1"
    eventually(lambda: f"{address} - - " in line_of(proxied, request), 20, "the client's address is in the log")


def line_of(node: Node, request: bytes) -> str:
    target = request.partition(b"GET ")[2].partition(b" ")[0].decode()
    return next((line for line in node.log().splitlines() if f" {target} " in line), "")


@pytest.mark.parametrize(
    "beginning",
    [
        SIGNATURE + b"\x21\x11\xff\xff" + bytes(100),
        VERSION_2 + VERSION_2,
        b"\r\n\r\n\0\r\nQUIT\r",
        VERSION_2 + b"\x16\x03\x01",
    ],
    ids=["too long", "twice", "nearly one", "TLS behind it"],
)
def test_what_is_no_header_is_refused_at_once(proxied: Node, beginning: bytes) -> None:
    with Wire(proxied.port, timeout=20) as wire:  # a head that may still become one has 30 s
        answer = wire.send(beginning).answer()
        assert (answer.status, answer.error()) == (400, "UNSUPPORTED")
