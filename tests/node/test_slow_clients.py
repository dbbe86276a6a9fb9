"""Clients that take their time: each costs the node little, for a bounded time, and holds up nobody else."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.node.nodes import connections, holds, workers_memory
from tests.node.raw import Wire, begin, chunk, digest_of, head, position, push
from tests.support.process import Node, eventually

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MIB = 1 << 20
READERS = 40


@pytest.fixture(scope="module")
def piece() -> bytes:
    return os.urandom(MIB)


@pytest.fixture
def wire(impatient: Node) -> Iterator[Wire]:
    with Wire(impatient.port) as wire:
        yield wire


def test_a_head_of_one_byte_a_second_is_cut_off(impatient: Node, wire: Wire) -> None:
    started = time.monotonic()
    wire.send(head("GET", "/v2/")[:20])
    for byte in head("GET", "/v2/")[20:25]:
        try:
            wire.send(bytes([byte]))
        except ConnectionError:
            break
        time.sleep(0.4)
    answer = wire.answer()
    assert (answer.status, answer.error(), answer.headers["connection"]) == (408, "UNSUPPORTED", "close")
    assert wire.rest() == b""
    assert time.monotonic() - started < 20


def test_so_is_the_head_of_the_second_request_of_a_connection(wire: Wire) -> None:
    assert wire.ask("GET", "/v2/").status == 200
    assert wire.send(b"G").answer().status == 408


def test_a_connection_that_says_nothing_is_closed(wire: Wire) -> None:
    assert wire.answer().status == 408


def test_an_idle_connection_is_closed_without_a_word(wire: Wire) -> None:
    assert wire.ask("GET", "/v2/").status == 200
    assert wire.rest() == b""


def test_a_body_without_a_byte_for_too_long_gets_400_and_what_came_is_kept(impatient: Node, wire: Wire) -> None:
    location = begin(impatient.port, "slow")
    answer = wire.send(head("PATCH", location, "Content-Length: 100"), b"half").answer()
    assert (answer.status, answer.error()) == (400, "SIZE_INVALID")
    assert wire.rest() == b""
    assert position(impatient.port, location) == 4


def test_a_body_that_keeps_coming_may_take_longer_than_any_limit(impatient: Node, wire: Wire) -> None:
    location = begin(impatient.port, "slow")
    wire.send(head("PATCH", location, "Transfer-Encoding: chunked"))
    started = time.monotonic()
    sent = 0
    while time.monotonic() - started < 5.5:  # a body's limit is 4 s here, every other one shorter
        wire.send(chunk(b"x"))
        sent += 1
        time.sleep(0.5)
    answer = wire.send(chunk(b"")).answer()
    assert (answer.status, answer.headers["range"]) == (202, f"0-{sent - 1}")


def test_a_refused_body_is_not_taken_for_ever(impatient: Node, wire: Wire) -> None:
    location = begin(impatient.port, "slow")
    wire.send(head("PATCH", location, "Content-Range: 5-9999", "Transfer-Encoding: chunked"))
    assert wire.answer().status == 416
    with pytest.raises(ConnectionError):
        for _ in range(200):
            wire.send(chunk(b"x"))
            time.sleep(0.1)


def test_a_client_that_never_reads_is_dropped_however_much_is_left_for_it(impatient: Node, piece: bytes) -> None:
    digest = push(impatient.port, "slow", [piece] * 64)
    eventually(lambda: connections(impatient.port) == 0, 20, "earlier connections are closed")
    # The kernel takes some MiB; among these lengths are some of which it leaves all, little or nothing to the node.
    ends = [*range(48 * 1024, 6 * MIB, 48 * 1024), 64 * MIB - 1]
    most = 0
    with ExitStack() as readers:
        for end in ends:
            reader = readers.enter_context(Wire(impatient.port, receive_buffer=4096))
            reader.send(head("GET", f"/v2/slow/blobs/{digest}", f"Range: bytes=0-{end}"))
            most = max(most, connections(impatient.port))  # on a slow machine the first are dropped before the last
        # On another one, the node has not taken them up yet.
        eventually(lambda: max(most, connections(impatient.port)) > len(ends) // 4, 20, "they were there at once")
        eventually(lambda: connections(impatient.port) == 0, 20, "the readers were dropped")
        (worker,) = impatient.children()
        eventually(lambda: not holds_blob(worker), 20, "the blob is closed")


def test_nothing_is_held_for_a_reader_that_left(node: Node, piece: bytes) -> None:
    digest = push(node.port, "slow", [piece] * 64)
    (worker,) = node.children()
    reader = Wire(node.port, receive_buffer=4096).send(head("GET", f"/v2/slow/blobs/{digest}"))
    assert reader.answer_head()[0] == 200
    eventually(lambda: holds_blob(worker), 20, "the blob is being read")
    reader.reset()
    eventually(lambda: not holds_blob(worker), 20, "the blob is closed")


def holds_blob(pid: int) -> bool:
    """Whether a process has the file of a blob open."""
    return holds(pid, "/blobs/sha256/")


def test_a_client_that_asks_and_asks_and_never_reads_is_dropped(impatient: Node) -> None:
    with Wire(impatient.port, receive_buffer=4096, timeout=1) as wire:
        with pytest.raises((ConnectionError, TimeoutError)):
            while True:
                wire.send(head("GET", "/v2/") * 100)
        eventually(lambda: connections(impatient.port) == 0, 20, "the client was dropped")


def test_readers_that_stand_still_cost_little_memory_and_hold_up_nobody(node: Node, piece: bytes) -> None:
    digest = push(node.port, "slow", [piece] * 128)
    with httpx.Client(base_url=node.url, timeout=30, trust_env=False) as fast, ExitStack() as readers:
        assert len(fast.get(f"/v2/slow/blobs/{digest}").content) == 128 * MIB
        before = workers_memory(node)
        for _ in range(READERS):
            reader = readers.enter_context(Wire(node.port, receive_buffer=4096))
            reader.send(head("GET", f"/v2/slow/blobs/{digest}"))
            assert reader.answer_head()[0] == 200
        assert fast.get("/v2/").elapsed.total_seconds() < 5
        assert digest_of(fast.get(f"/v2/slow/blobs/{digest}").content) == digest
        grown = workers_memory(node) - before
    assert grown < READERS * 768 * 1024, f"{grown / READERS / 1024:.0f} KiB for each reader"


@pytest.mark.parametrize("moment", ["before a request", "in an answer"])
def test_clients_that_left_are_forgotten_at_once(node: Node, piece: bytes, moment: str) -> None:
    """Health checks and port scans connect and leave all day; nothing is kept of any."""
    digest = push(node.port, "slow", [piece] * 4)

    def come_and_leave(times: int) -> None:
        for _ in range(times):
            with Wire(node.port, receive_buffer=4096) as wire:
                if moment == "in an answer":
                    wire.send(head("GET", f"/v2/slow/blobs/{digest}"))
                    assert wire.answer_head()[0] == 200
                wire.reset()
        eventually(lambda: connections(node.port) == 0, 20, "all of them are gone")

    come_and_leave(200)
    before = workers_memory(node)
    come_and_leave(1000)
    assert workers_memory(node) - before < 4 * MIB


@pytest.mark.parametrize("accept", ["*/*", DOCKER_MANIFEST])
def test_readers_of_a_large_manifest_cost_little_memory_whatever_they_accept(node: Node, accept: str) -> None:
    """A client that knows no lists is looked for a child; what it is sent must not be held for that."""
    config = push(node.port, "slow", [b"{}"])
    content = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": config, "size": 2},
            "layers": [],
            "annotations": {"a": "x" * 3_900_000},
        }
    ).encode()
    length, media_type = f"Content-Length: {len(content)}", f"Content-Type: {DOCKER_MANIFEST}"
    with Wire(node.port) as wire, ExitStack() as readers:
        assert wire.ask("PUT", "/v2/slow/manifests/large", length, media_type, body=content).status == 201
        assert wire.ask("GET", "/v2/slow/manifests/large", f"Accept: {accept}").body == content
        before = workers_memory(node)
        for _ in range(READERS):
            reader = readers.enter_context(Wire(node.port, receive_buffer=4096))
            reader.send(head("GET", "/v2/slow/manifests/large", f"Accept: {accept}"))
            assert reader.answer_head()[0] == 200
        grown = workers_memory(node) - before
    assert grown < READERS * 768 * 1024, f"{grown / READERS / 1024:.0f} KiB for each reader"


def test_writers_that_stand_still_cost_little_memory_and_hold_up_nobody(node: Node, piece: bytes) -> None:
    push(node.port, "slow", [piece] * 8)
    before = workers_memory(node)
    with ExitStack() as writers:
        for _ in range(READERS):
            writer = writers.enter_context(Wire(node.port))
            writer.send(head("PATCH", begin(node.port, "slow"), f"Content-Length: {64 * MIB}"), piece[: 200 * 1024])
        assert push(node.port, "slow", [piece] * 16) == digest_of(piece * 16)
        grown = workers_memory(node) - before
    assert grown < READERS * 512 * 1024, f"{grown / READERS / 1024:.0f} KiB for each writer"


@pytest.mark.slow
def test_the_limits_without_any_setting_are_half_a_minute_for_a_head_and_a_minute_for_a_body(node: Node) -> None:
    location = begin(node.port, "slow")
    with Wire(node.port, timeout=100) as slow_head, Wire(node.port, timeout=100) as slow_body:
        started = time.monotonic()
        slow_body.send(head("PATCH", location, "Content-Length: 100"), b"half")
        for byte in head("GET", "/v2/")[:28]:
            slow_head.send(bytes([byte]))
            time.sleep(1)
        assert slow_head.answer().status == 408
        assert 29 < time.monotonic() - started < 45
        assert slow_body.answer().status == 400
        assert 59 < time.monotonic() - started < 75
    assert position(node.port, location) == 4
