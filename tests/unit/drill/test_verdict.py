"""The judge finds every kind of loss, and does not take a node that is away for one that has lost something.

The nodes here are dictionaries behind a real HTTP server; tests/load and tests/drill have real ones.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.drill.facts import Facts, Record, Register, load
from cluster.drill.history import Operation, Outcome
from cluster.drill.verdict import Verdict, verify
from tests.support.process import free_port

NAME = "team/app"
OLD, NEW = b"the old manifest", b"the new manifest"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


BLOB, TAG = Register.blob(NAME, digest_of(OLD)), Register.tag(NAME, "v1")


class Node:
    """Serves what its dictionary has, by path; an int is an answer without content."""

    def __init__(self) -> None:
        self.content: dict[str, bytes | int | list[bytes | int]] = {}
        self.claims: dict[str, str] = {}
        self.url = ""

    def answer(self, path: str) -> bytes | int:
        found = self.content.get(path, 404)
        return found if not isinstance(found, list) else found.pop(0)


@contextmanager
def served(node: Node) -> Iterator[Node]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = node.answer(self.path)
            self.send_response(found if isinstance(found, int) else 200)
            body = b"" if isinstance(found, int) else found
            self.send_header("Content-Length", str(len(body)))
            if self.path in node.claims:
                self.send_header("Docker-Content-Digest", node.claims[self.path])
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        node.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield node
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Two nodes that have kept everything."""
    with served(Node()) as first, served(Node()) as second:
        for node in (first, second):
            node.content = {BLOB.path: OLD, TAG.path: NEW}
        yield [first, second]


@pytest.fixture
def facts(tmp_path: Path) -> Iterator[Facts]:
    with Facts(tmp_path / "facts") as facts:
        yield facts


@pytest.fixture
def judged(tmp_path: Path, facts: Facts, nodes: list[Node]) -> Callable[[], Verdict]:
    """The verdict on a blob that was pushed, and a tag that was moved once."""
    facts.blob(NAME, digest_of(OLD))
    for content in (OLD, NEW):
        with facts.record(TAG, Operation("put", digest_of(content))) as operation:
            operation.end(Outcome.DONE)
    return lambda: verify(load(tmp_path / "facts"), [node.url for node in nodes], pauses=(0.01, 0.01, 0.01))


def findings(found: Verdict) -> dict[str, list[str]]:
    lists = {name: value for name, value in vars(found).items() if isinstance(value, list) and value}
    assert found.holds is (not lists)
    return lists


def test_a_cluster_that_kept_everything_holds(judged: Callable[[], Verdict]) -> None:
    found = judged()
    assert findings(found) == {}
    assert (found.registers, found.acknowledged, found.answers) == (2, 3, 4)
    assert str(found) == (
        "3 facts of 2 registers, 4 answers: 0 lost, 0 wrong bytes, 0 came back, 0 not linearizable, 0 not verified"
    )


def test_a_blob_that_one_node_forgot_is_lost(judged: Callable[[], Verdict], nodes: list[Node]) -> None:
    del nodes[1].content[BLOB.path]
    assert findings(judged()) == {"lost": [f"{BLOB}: {nodes[1].url} does not have it"]}


def test_a_layer_of_an_image_that_nobody_wrote_down_is_asked_for(
    judged: Callable[[], Verdict], nodes: list[Node], facts: Facts
) -> None:
    """Its pusher found it there, or was not told that it had been stored; the image was acknowledged."""
    parts = {part: Register.blob(NAME, digest_of(part)) for part in (b"config", b"layer", b"elsewhere")}
    described = [{"digest": register.reference} for register in parts.values()]
    described[2]["urls"] = ["https://elsewhere/"]  # type: ignore[assignment]
    content = json.dumps({"config": described[0], "layers": [*described[1:], described[1]]}).encode()
    image, layer = Register.manifest(NAME, digest_of(content)), parts[b"layer"]
    facts.manifest(NAME, image.reference)
    for node in nodes:
        node.content |= {image.path: content, parts[b"config"].path: b"config", layer.path: b"layer"}
    assert findings(judged()) == {}
    del nodes[1].content[layer.path]
    assert findings(judged()) == {"lost": [f"{layer}: {nodes[1].url} does not have it"]}
    with facts.record(layer, Operation("put", layer.reference)):
        pass
    with facts.record(layer, Operation("delete")) as gone:  # now what became of it is told by its own history
        gone.end(Outcome.DONE)
    for node in nodes:
        node.content.pop(layer.path, None)
    assert findings(judged()) == {}


def test_a_tag_that_one_node_forgot_is_lost(judged: Callable[[], Verdict], nodes: list[Node]) -> None:
    del nodes[0].content[TAG.path]
    assert findings(judged()) == {"lost": [f"{TAG}: {nodes[0].url} does not have it"]}


def test_a_tag_that_one_node_shows_as_it_was_before_is_not_linearizable(
    judged: Callable[[], Verdict], nodes: list[Node]
) -> None:
    nodes[1].content[TAG.path] = OLD
    (problem,) = findings(judged())["histories"]
    assert f"{TAG}: {nodes[1].url} has {digest_of(OLD)}" in problem


def test_a_write_without_an_answer_took_place_or_did_not_but_is_not_taken_back(
    judged: Callable[[], Verdict], nodes: list[Node], facts: Facts
) -> None:
    with facts.record(TAG, Operation("put", digest_of(OLD), digest_of(NEW))):
        pass
    assert findings(judged()) == {}
    with facts.record(TAG, Operation("read")) as read:
        read.end(Outcome.DONE, digest_of(OLD))
    assert list(findings(judged())) == ["histories"]
    for node in nodes:
        node.content[TAG.path] = OLD
    assert findings(judged()) == {}


def test_bytes_that_are_not_those_of_the_digest_are_wrong(judged: Callable[[], Verdict], nodes: list[Node]) -> None:
    nodes[0].content[BLOB.path] = NEW
    nodes[1].claims[TAG.path] = digest_of(OLD)
    assert findings(judged()) == {
        "wrong": [
            f"{BLOB}: {nodes[0].url} gives {digest_of(NEW)} for {digest_of(OLD)}",
            f"{TAG}: {nodes[1].url} gives {digest_of(NEW)} for {digest_of(OLD)}",
        ]
    }


def test_a_deleted_blob_that_is_there_again_is_found(
    judged: Callable[[], Verdict], nodes: list[Node], facts: Facts
) -> None:
    with facts.record(BLOB, Operation("delete")) as operation:
        operation.end(Outcome.DONE)
    for node in nodes:
        del node.content[BLOB.path]
    assert findings(judged()) == {}
    nodes[0].content[BLOB.path] = OLD
    assert findings(judged()) == {"returned": [f"{BLOB}: {nodes[0].url} has it"]}


def test_a_delete_without_an_answer_leaves_both_open(
    judged: Callable[[], Verdict], nodes: list[Node], facts: Facts
) -> None:
    with facts.record(BLOB, Operation("delete")):
        pass
    assert findings(judged()) == {}
    for node in nodes:
        del node.content[BLOB.path]
    assert findings(judged()) == {}


def test_what_the_clients_alone_saw_is_found_without_a_node(tmp_path: Path, facts: Facts) -> None:
    facts.blob(NAME, digest_of(OLD))
    with facts.record(BLOB, Operation("read")) as read:
        read.end(Outcome.DONE, None)
    facts.lost("4096 bytes of an upload")
    facts.wrong("a layer")
    facts.wrong("a layer")
    record = load(tmp_path / "facts")
    found = findings(verify(record, []))
    (problem,) = found["histories"]
    assert str(BLOB) in problem
    assert (found["lost"], found["wrong"]) == (["4096 bytes of an upload"], ["a layer"])
    assert list(found) == ["lost", "wrong", "histories"]


def test_an_answer_that_tells_nothing_is_asked_for_again(judged: Callable[[], Verdict], nodes: list[Node]) -> None:
    nodes[0].content[BLOB.path] = [503, 503, 503, OLD]
    assert findings(judged()) == {}
    nodes[0].content[BLOB.path] = [503, 500, 503, 503]
    problem = f"{BLOB}: {nodes[0].url} gives no answer that tells: status 503"
    assert findings(judged()) == {"unverified": [problem]}


def test_a_node_that_is_away_has_lost_nothing_and_proves_nothing(
    judged: Callable[[], Verdict], nodes: list[Node]
) -> None:
    nodes[1].url = f"http://127.0.0.1:{free_port()}"
    (problem,) = findings(judged())["unverified"]
    assert f"{nodes[1].url} did not answer for 2 registers" in problem


def test_what_cannot_be_asked_in_time_is_not_verified(tmp_path: Path, judged: object, nodes: list[Node]) -> None:
    found = verify(load(tmp_path / "facts"), [nodes[0].url], within=-1)
    assert findings(found) == {
        "unverified": [f"{nodes[0].url} did not answer for 2 registers: no time is left"],
    }


def test_a_record_with_a_damaged_part_proves_nothing() -> None:
    assert not verify(Record(unusable=["line 1 is not a fact"]), []).holds
