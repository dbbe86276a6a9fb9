"""Where a request begins on a connection that a balancer opened."""

from __future__ import annotations

import pytest

from cluster.listener import beginning

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
HEADER = SIGNATURE + b"\x21\x11\x00\x0c" + bytes(12)
HUGE = SIGNATURE + b"\x21\x11\xff\xff" + bytes(12)


@pytest.mark.parametrize(
    ("data", "begins"),
    [
        (HEADER + b"GET", b"GET"),
        (HEADER + b"\r\nGET", b"GET"),
        (HEADER, b""),
        (HEADER + b"\r", None),
        (b"GET", b"GET"),
        (b"PROXY TCP4", b"PROXY TCP4"),
        (b"\x16\x03", b"\x16\x03"),
        (b"\r\nGET", b"GET"),
        (b"\r\n\r\nGET", b"\r\nGET"),
        (HUGE, HUGE[2:]),
    ],
)
def test_a_request_begins_behind_a_whole_header_and_an_empty_line(data: bytes, begins: bytes | None) -> None:
    assert beginning(data, proxied=True) == begins


@pytest.mark.parametrize("size", range(1, len(HEADER)))
def test_what_a_part_of_a_header_begins_is_not_known(size: int) -> None:
    assert beginning(HEADER[:size], proxied=True) is None


@pytest.mark.parametrize(
    ("data", "begins"),
    [
        (b"GET", b"GET"),
        (b"\r", None),
        (b"\r\n", None),
        (b"\r\nGET", b"GET"),
        (b"\r\n\r\nGET", b"\r\nGET"),
        (b"\nGET", b"\nGET"),
        (HEADER, HEADER[2:]),
    ],
)
def test_where_no_balancer_speaks_the_proxy_protocol_its_header_is_none(data: bytes, begins: bytes | None) -> None:
    assert beginning(data, proxied=False) == begins
