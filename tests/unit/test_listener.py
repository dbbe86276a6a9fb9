"""Where a request begins on a connection that a balancer opened."""

from __future__ import annotations

import pytest

from cluster.listener import beyond_proxy_header

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
HEADER = SIGNATURE + b"\x21\x11\x00\x0c" + bytes(12)


@pytest.mark.parametrize(
    ("data", "begins"),
    [
        (HEADER + b"GET", b"GET"),
        (HEADER, b""),
        (b"GET", b"GET"),
        (b"\x16\x03", b"\x16\x03"),
        (HEADER[:-1], HEADER[:-1]),
        (SIGNATURE, SIGNATURE),
        (SIGNATURE + b"\x21", SIGNATURE + b"\x21"),
        (b"", b""),
    ],
)
def test_a_request_begins_behind_a_whole_header(data: bytes, begins: bytes) -> None:
    assert beyond_proxy_header(data) == begins
