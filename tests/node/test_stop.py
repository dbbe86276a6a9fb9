"""How a node ends and comes back: gracefully, by force, worker by worker."""

import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.node.nodes import Impatient, brief, holds, no_trouble, stored
from tests.node.raw import Wire, begin, chunk, digest_of, get, head, position, push
from tests.support.process import Node, eventually, listening

MIB = 1 << 20


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node that the test ends itself; two workers."""
    with brief(Node(tmp_path, {"cluster": {"workers": 2}})) as node:
        yield node


def terminate(node: Node) -> None:
    """As container engines do: the leader alone."""
    node.send(signal.SIGTERM)


def terminate_group(node: Node) -> None:
    """As systemd and terminals do: everybody at once."""
    os.killpg(node.pid, signal.SIGTERM)


class Strict(Impatient):
    """A node that waits for a worker some seconds only."""

    patience = "worker=6"


def test_a_node_that_stood_still_goes_on_when_it_wakes(tmp_path: Path) -> None:
    """A paused machine: its workers gave no sign of life, and nor could they. A worker that hangs is replaced."""
    with brief(Strict(tmp_path)) as node, Wire(node.port) as upload:
        workers = node.children()
        location = begin(node.port, "pause")
        upload.send(head("PATCH", location, "Transfer-Encoding: chunked"), chunk(b"before"))
        eventually(lambda: stored(node, location) is not None, 20, "the upload is under way")
        node.pause()
        time.sleep(12)
        node.resume()
        time.sleep(3)
        answer = upload.send(chunk(b" and after"), chunk(b"")).answer()
        assert (answer.status, answer.headers["range"]) == (202, "0-15")
        assert node.children() == workers and "WORKER TIMEOUT" not in node.log()
        os.kill(next(iter(workers)), signal.SIGSTOP)
        eventually(lambda: "WORKER TIMEOUT" in node.log(), 30, "a worker that hangs is seen")
        eventually(lambda: node.children() and node.children() != workers, 30, "it is replaced")


@pytest.mark.parametrize("stop", [terminate, terminate_group])
def test_a_stop_waits_for_what_is_under_way_and_for_nothing_else(node: Node, stop: Callable[[Node], None]) -> None:
    data = os.urandom(32 * MIB)
    digest = push(node.port, "stop", [data])
    with ExitStack() as stack:
        idle = [stack.enter_context(Wire(node.port)) for _ in range(10)]
        assert all(wire.ask("GET", "/v2/").status == 200 for wire in idle)
        silent = stack.enter_context(Wire(node.port))
        download = stack.enter_context(Wire(node.port, receive_buffer=65536))
        download.send(head("GET", f"/v2/stop/blobs/{digest}"))
        assert download.answer_head()[0] == 200
        upload = stack.enter_context(Wire(node.port))
        location = begin(node.port, "stop")
        upload.send(head("PATCH", location, "Transfer-Encoding: chunked"), chunk(b"before"))
        eventually(lambda: stored(node, location) is not None, 20, "the upload is under way")
        stop(node)
        assert all(wire.rest() == b"" for wire in [*idle, silent]), "idle connections are closed at once"
        eventually(lambda: not listening(node.port), 20, "new connections are refused")
        time.sleep(1)
        assert node.running, "what is under way goes on"
        assert digest_of(download.read(len(data))) == digest
        answer = upload.send(chunk(b" and after"), chunk(b"")).answer()
        assert (answer.status, answer.headers["range"], answer.headers["connection"]) == (202, "0-15", "close")
        assert node.wait(within=20) == 0
    assert no_trouble(node.log())


def test_an_answer_while_draining_says_that_the_connection_ends(node: Node) -> None:
    with Wire(node.port) as busy, Wire(node.port) as kept:
        location = begin(node.port, "drain")
        busy.send(head("PATCH", location, "Transfer-Encoding: chunked"), chunk(b"x"))
        eventually(lambda: stored(node, location) is not None, 20, "the upload is under way")
        kept.send(head("GET", "/readyz"))
        assert "connection" not in kept.answer().headers
        kept.send(b"GET /readyz HTTP/1.1\r\n")
        terminate_group(node)
        kept.send(b"Host: registry.test\r\n\r\n")
        answer = kept.answer()
        while "connection" not in answer.headers:  # it was on its way before the worker had the signal
            answer = kept.send(head("GET", "/readyz")).answer()
        assert answer.headers["connection"] == "close"
        assert kept.rest() == b""
        assert busy.send(chunk(b"")).answer().status == 202
        assert node.wait(within=20) == 0


def test_a_stop_without_any_client_is_quick_and_its_exit_code_is_0(node: Node) -> None:
    started = time.monotonic()
    assert node.stop(within=25) == 0
    assert time.monotonic() - started < 20  # the drain timeout is 30 s
    assert no_trouble(node.log())


def test_a_client_that_does_not_end_is_waited_for_no_longer_than_the_drain_timeout(tmp_path: Path) -> None:
    with brief(Node(tmp_path, {"http": {"draintimeout": "2s"}})) as node, Wire(node.port) as wire:
        location = begin(node.port, "endless")
        wire.send(head("PATCH", location, "Transfer-Encoding: chunked"), chunk(bytes(MIB)))
        eventually(lambda: (stored(node, location) or 0) > MIB // 2, 20, "the upload is under way")
        started = time.monotonic()
        terminate(node)
        assert node.wait(within=20) == 0
        assert time.monotonic() - started > 1.5
        node.start()
        assert position(node.port, location) > MIB // 2, "what came is kept"


def test_an_interrupt_ends_the_node_at_once(node: Node) -> None:
    with Wire(node.port) as wire:
        wire.send(head("PATCH", begin(node.port, "interrupt"), "Transfer-Encoding: chunked"), chunk(b"x"))
        os.killpg(node.pid, signal.SIGINT)
        assert node.wait(within=20) == 0


def test_a_worker_hears_of_the_stop_from_its_first_moment(node: Node) -> None:
    before = set(node.children())
    os.kill(min(before), signal.SIGKILL)
    deadline = time.monotonic() + 20
    while not (new := set(node.children()) - before):
        assert time.monotonic() < deadline  # without a pause: the moment is a few milliseconds long
    os.kill(min(new), signal.SIGTERM)
    eventually(lambda: not new & set(node.children()), 20, "the new worker has ended")
    eventually(lambda: len(node.children()) == 2, 20, "and was replaced")
    assert node.stop(within=20) == 0


def test_a_hang_up_replaces_the_workers_and_breaks_nothing(node: Node) -> None:
    before = set(node.children())
    with Wire(node.port) as wire:
        location = begin(node.port, "hangup")
        wire.send(head("PATCH", location, "Transfer-Encoding: chunked"), chunk(b"before"))
        eventually(lambda: stored(node, location) is not None, 20, "the upload is under way")
        node.send(signal.SIGHUP)
        eventually(lambda: len(set(node.children()) - before) == 2, 20, "there are new workers")
        assert get(f"{node.url}/v2/").status == 200
        assert wire.send(chunk(b" and after"), chunk(b"")).answer().status == 202
    eventually(lambda: not before & set(node.children()), 20, "the old workers have ended")
    assert no_trouble(node.log())


def test_uploads_survive_the_sudden_death_of_the_whole_node(tmp_path: Path) -> None:
    data = os.urandom(4 * MIB)
    node = Node(tmp_path, {"http": {"secret": None}, "cluster": None}, env={"WEB_CONCURRENCY": "2"})
    with brief(node):
        eventually(lambda: len(node.children()) == 2, 20, "there are two workers")
        secret = Path(node.root, "docker/registry/v2/_cluster/secret")
        drawn = secret.read_bytes()
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert len(drawn) >= 32
        location = begin(node.port, "death")
        with Wire(node.port) as wire:
            wire.send(head("PATCH", location, "Transfer-Encoding: chunked"), chunk(data[: 2 * MIB]))
            eventually(lambda: (stored(node, location) or 0) > MIB, 20, "bytes are on storage")
            node.kill()
        node.start()
        came = position(node.port, location)
        assert MIB < came <= 2 * MIB, "what was on storage is adopted"
        finish(node, location, data, came)
        assert secret.read_bytes() == drawn
        assert drawn.decode() not in node.log()
        assert no_trouble(node.log())


def test_a_worker_that_was_killed_is_replaced_and_its_upload_adopted(node: Node) -> None:
    data = os.urandom(4 * MIB)
    location = begin(node.port, "worker")
    with Wire(node.port) as wire:
        wire.send(head("PATCH", location, "Transfer-Encoding: chunked"), chunk(data[: 2 * MIB]))
        eventually(lambda: (stored(node, location) or 0) > MIB, 20, "bytes are on storage")
        before = node.children()
        (holder,) = [pid for pid in before if holds(pid, "/_seg/")]
        os.kill(holder, signal.SIGKILL)
        with pytest.raises((ConnectionError, EOFError)):
            wire.answer()
    eventually(lambda: len(node.children()) == 2 and holder not in node.children(), 20, "the worker is replaced")
    finish(node, location, data, position(node.port, location))


def finish(node: Node, location: str, data: bytes, came: int) -> None:
    """Send what is missing of an upload, commit it, and read it back."""
    digest = digest_of(data)
    with Wire(node.port) as wire:
        location = wire.ask("GET", location).headers["location"]
        span = f"Content-Range: {came}-{len(data) - 1}"
        answer = wire.ask("PATCH", location, span, f"Content-Length: {len(data) - came}", body=data[came:])
        assert answer.status == 202, answer
        answer = wire.ask("PUT", f"{answer.headers['location']}&digest={digest}", "Content-Length: 0")
        assert answer.status == 201, answer
        repository = answer.headers["location"]
        assert digest_of(wire.ask("GET", repository).body) == digest
