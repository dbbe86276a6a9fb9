"""Bodies that are not what their head says, refusals that must be heard, and clients that leave in the middle."""

import os
import resource
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.clients import Crane, Skopeo
from tests.node.nodes import brief, no_trouble, stored
from tests.node.raw import Wire, begin, chunk, digest_of, head, position, push
from tests.support.images import Layout
from tests.support.process import Node, eventually
from tests.support.tools import require

MIB = 1 << 20
BIG = 64 * MIB


@pytest.fixture
def wire(node: Node) -> Iterator[Wire]:
    with Wire(node.port) as wire:
        yield wire


@pytest.fixture
def upload(node: Node) -> str:
    """Where an upload that has three bytes goes on."""
    location = begin(node.port, "bodies")
    with Wire(node.port) as wire:
        answer = wire.ask("PATCH", location, "Content-Length: 3", body=b"abc")
    assert answer.status == 202
    return answer.headers["location"]


def test_a_body_that_ends_before_its_length_gets_400_and_the_upload_goes_on_from_it(
    node: Node, wire: Wire, upload: str
) -> None:
    wire.send(head("PATCH", upload, "Content-Length: 1000"), b"x" * 100)
    wire.socket.shutdown(socket.SHUT_WR)
    answer = wire.answer()
    assert (answer.status, answer.error()) == (400, "SIZE_INVALID")
    assert wire.rest() == b""
    assert position(node.port, upload) == 103


def test_a_body_that_ends_in_the_middle_of_a_chunk_gets_400_and_the_upload_goes_on_from_it(
    node: Node, wire: Wire, upload: str
) -> None:
    wire.send(head("PATCH", upload, "Transfer-Encoding: chunked"), chunk(b"x" * 100), b"100\r\nhalf")
    wire.socket.shutdown(socket.SHUT_WR)
    answer = wire.answer()
    assert (answer.status, answer.error()) == (400, "SIZE_INVALID")
    assert position(node.port, upload) == 107


@pytest.mark.parametrize("name", ["manifests/t", "blobs/uploads/?digest=" + digest_of(b"x" * 1000)])
def test_a_manifest_or_a_blob_that_ends_early_is_not_there_afterwards(node: Node, wire: Wire, name: str) -> None:
    method = "PUT" if name.startswith("manifests") else "POST"
    wire.send(head(method, f"/v2/early/{name}", "Content-Length: 1000"), b"x" * 999)
    wire.socket.shutdown(socket.SHUT_WR)
    answer = wire.answer()
    assert (answer.status, answer.error()) == (400, "SIZE_INVALID")
    with Wire(node.port) as after:
        assert after.ask("GET", "/v2/early/manifests/t").status == 404
        assert after.ask("HEAD", f"/v2/early/blobs/{digest_of(b'x' * 1000)}").status == 404


def test_what_follows_a_body_is_the_next_request_and_no_part_of_the_body(
    node: Node, wire: Wire, upload: str
) -> None:
    answer = wire.ask("PATCH", upload, "Content-Length: 3", body=b"defghi\r\n\r\n")
    assert answer.status == 202
    second = wire.answer()
    assert (second.status, second.error()) == (400, "UNSUPPORTED")
    assert position(node.port, upload) == 6


@pytest.mark.parametrize("leave", [Wire.close, Wire.reset], ids=["FIN", "RST"])
@pytest.mark.parametrize("framing", ["Content-Length: 99999999", "Transfer-Encoding: chunked"])
def test_what_came_before_a_client_left_is_kept_and_the_status_tells_it(
    node: Node, upload: str, framing: str, leave: Callable[[Wire], None]
) -> None:
    data = os.urandom(MIB)
    wire = Wire(node.port).send(head("PATCH", upload, framing))
    wire.send(b"fffffff\r\n" if "chunked" in framing else b"", data)
    # A reset throws away what the server has not read yet, so that much is waited for.
    eventually(lambda: (stored(node, upload) or 0) > MIB - 256 * 1024, 20, "the bytes are on storage")
    leave(wire)
    came = eventually(lambda: (size := position(node.port, upload)) > 3 and size, 20, "the bytes are kept")
    assert came == 3 + MIB or (leave is Wire.reset and came > 3 + MIB - 256 * 1024)
    with Wire(node.port) as again:
        status = again.ask("GET", upload)
        rest = data[came - 3 :]
        answer = again.ask("PATCH", status.headers["location"], f"Content-Length: {len(rest)}", body=rest)
        assert answer.status == 202
        location = f"{answer.headers['location']}&digest={digest_of(b'abc' + data)}"
        assert again.ask("PUT", location, "Content-Length: 0").status == 201


def test_a_client_that_only_stops_sending_gets_its_answers(node: Node, wire: Wire) -> None:
    wire.send(head("GET", "/v2/"), head("GET", "/v2/_catalog"))
    wire.socket.shutdown(socket.SHUT_WR)
    assert [wire.answer().status, wire.answer().status] == [200, 200]
    assert wire.rest() == b""


def test_a_refusal_is_heard_although_64_mib_of_a_body_were_sent_first(node: Node, wire: Wire, upload: str) -> None:
    wire.send(head("PATCH", upload, "Content-Range: 7-67108870", f"Content-Length: {BIG}"))
    for _ in range(64):
        wire.send(bytes(MIB))
    answer = wire.answer()
    assert (answer.status, answer.error()) == (416, "RANGE_INVALID")
    assert answer.headers["range"] == "0-2"
    assert wire.ask("GET", "/v2/").status == 200, "the connection is of use still"
    assert position(node.port, upload) == 3


def test_a_refusal_is_heard_although_the_body_comes_in_chunks(wire: Wire, upload: str) -> None:
    wire.send(head("PATCH", upload, "Content-Range: 7-67108870", "Transfer-Encoding: chunked"))
    for _ in range(64):
        wire.send(chunk(bytes(MIB)))
    answer = wire.send(chunk(b"")).answer()
    assert (answer.status, answer.headers["range"]) == (416, "0-2")
    assert wire.ask("GET", "/v2/").status == 200


def test_a_refusal_comes_before_the_body_has_ended(wire: Wire, upload: str) -> None:
    wire.send(head("PATCH", upload, "Content-Range: 7-67108870", f"Content-Length: {BIG}"), b"a first byte")
    assert wire.answer().status == 416


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("PATCH", "/v2/bodies/blobs/uploads/00000000-0000-4000-8000-000000000000?_state=forged", 404),
        ("PUT", "/v2/bodies/manifests/big", 413),
        ("PUT", "/v2/bodies/manifests/-bad-", 400),
        ("POST", "/v2/Bodies/blobs/uploads/?digest=sha256:" + "0" * 64, 400),
        ("POST", "/v2/bodies/blobs/uploads/?digest=sha256:short", 400),
        ("PATCH", "/v2/bodies/tags/list", 405),
        ("PUT", "/nowhere", 404),
    ],
)
def test_every_early_refusal_is_heard(wire: Wire, method: str, target: str, status: int) -> None:
    wire.send(head(method, target, f"Content-Length: {16 * MIB}"))
    for _ in range(16):
        wire.send(bytes(MIB))
    answer = wire.answer()
    assert answer.status == status
    assert answer.error()
    assert wire.ask("GET", "/v2/").status == 200


def test_a_client_that_waits_for_100_continue_gets_the_refusal_in_its_place(wire: Wire, upload: str) -> None:
    expect = "Expect: 100-continue"
    answer = wire.ask("PATCH", upload, "Content-Range: 7-67108870", f"Content-Length: {BIG}", expect)
    assert (answer.status, answer.interim) == (416, ())
    assert answer.headers["connection"] == "close", "or client and server disagree whether the body comes"
    assert wire.rest() == b""


def test_a_client_that_waits_for_100_continue_gets_it_when_its_body_is_wanted(wire: Wire, upload: str) -> None:
    wire.send(head("PATCH", upload, "Content-Length: 3", "Expect: 100-continue"))
    assert wire.answer_head() == (100, {})
    answer = wire.send(b"def").answer("PATCH")
    assert (answer.status, answer.headers["range"]) == (202, "0-5")
    assert wire.ask("GET", "/v2/").status == 200


@pytest.mark.parametrize("framing", ["a length", "chunks"])
def test_requests_behind_a_large_body_in_one_write_are_answered(wire: Wire, upload: str, framing: str) -> None:
    data = os.urandom(200_000)
    is_chunked = framing == "chunks"
    body = chunk(data[:150_000]) + chunk(data[150_000:]) + chunk(b"") if is_chunked else data
    header = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {len(data)}"
    others = [head("GET", f"/v2/pipeline/manifests/t{n}") for n in range(400)]
    wire.send(head("PATCH", upload, header) + body + b"".join(others))
    answer = wire.answer()
    assert (answer.status, answer.headers["range"]) == (202, f"0-{len(data) + 2}")
    assert [wire.answer().status for _ in others] == [404] * len(others)
    digest = digest_of(b"abc", data)
    assert wire.ask("PUT", f"{answer.headers['location']}&digest={digest}", "Content-Length: 0").status == 201


def test_pipelined_requests_are_answered_in_their_order(node: Node, wire: Wire, upload: str) -> None:
    wire.send(
        head("PATCH", upload, "Content-Length: 3") + b"def",
        *[head("GET", f"/v2/pipeline/manifests/t{n}") for n in range(40)],
        head("PATCH", upload, "Transfer-Encoding: chunked") + chunk(b"late") + chunk(b""),
        head("GET", "/v2/"),
    )
    statuses = [wire.answer().status for _ in range(43)]
    assert statuses == [202, *[404] * 40, 416, 200]
    assert position(node.port, upload) == 6


@pytest.mark.parametrize("last", ["whole", "cut in its head", "cut in its body"])
def test_all_that_a_client_asked_for_before_its_half_of_the_connection_ended_is_answered(
    node: Node, upload: str, last: str
) -> None:
    # More than the parser is given at a time: the rest waits while the first is answered.
    requests = [head("GET", "/v2/", "X-Padding: " + "a" * 3000)] * 20
    ends = {
        "whole": head("GET", "/v2/"),
        "cut in its head": b"GET /v2/ HT",
        "cut in its body": head("PATCH", upload, "Content-Length: 1000") + b"x" * 100,
    }
    with Wire(node.port) as wire:
        wire.send(b"".join(requests) + ends[last])
        wire.socket.shutdown(socket.SHUT_WR)
        assert [wire.answer().status for _ in requests] == [200] * 20
        if last != "cut in its head":
            assert wire.answer().status == (200 if last == "whole" else 400)
        assert wire.rest() == b""
    assert position(node.port, upload) == (103 if last == "cut in its body" else 3)


def test_a_bad_chunk_behind_a_refusal_does_not_become_a_second_answer(wire: Wire, upload: str) -> None:
    wire.send(head("PATCH", upload, "Content-Range: 7-8", "Transfer-Encoding: chunked"), chunk(b"x"))
    assert wire.answer().status == 416
    assert wire.send(b"no size\r\n").rest() == b""


def test_a_bad_chunk_in_the_middle_of_an_answer_does_not_get_into_the_answer(node: Node) -> None:
    digest = push(node.port, "bodies", [b"y" * MIB] * 40)
    with Wire(node.port, receive_buffer=65536) as wire:
        wire.send(head("GET", f"/v2/bodies/blobs/{digest}", "Transfer-Encoding: chunked"), chunk(b"x"))
        status, headers = wire.answer_head()
        assert (status, headers["content-length"]) == (200, str(40 * MIB))
        assert wire.send(b"no size\r\n").rest().strip(b"y") == b""


@pytest.mark.parametrize("expect", ["Expect:", "Expect: 100-continue"], ids=["sends at once", "waits"])
def test_curl_shows_the_refusal_of_a_large_body(node: Node, upload: str, tmp_path: str, expect: str) -> None:
    body = os.path.join(tmp_path, "body")
    with open(body, "wb") as file:
        file.truncate(BIG)
    show = ["--silent", "--show-error", "--write-out", "%{http_code} %header{range}", "--output", os.devnull]
    headers = ["--header", expect, "--header", "Content-Range: 7-67108870"]
    command = [require("curl"), *show, *headers, "--request", "PATCH", "--upload-file", body, node.url + upload]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "416 0-2"), done.stderr


def test_crane_shows_the_refusal_of_a_manifest_that_is_too_large(node: Node, tmp_path: str) -> None:
    layout = Layout(os.path.join(tmp_path, "layout"))
    large = layout.image([layout.layer({"a": b"b"})], annotations={"large": "x" * 6 * MIB})
    layout.tag("v1", large)
    shown = Crane(tmp_path, node.host).fails("push", layout.path, f"{node.host}/large:v1")
    assert "MANIFEST_INVALID" in shown and "broken pipe" not in shown


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    directory = tmp_path_factory.mktemp("read-only")
    with brief(Node(directory)):
        pass  # a registry to be read
    with brief(Node(directory, {"storage": {"maintenance": {"readonly": {"enabled": True}}}})) as node:
        yield node


@pytest.mark.parametrize("client", [Skopeo, Crane])
def test_a_client_is_told_that_the_registry_is_read_only(
    tmp_path: str, client: type[Skopeo] | type[Crane], read_only: Node
) -> None:
    layout = Layout(os.path.join(tmp_path, "layout"))
    layout.tag("v1", layout.image([layout.big_layer(8)]))
    with pytest.raises(AssertionError, match=r"(?i)unsupported|405"):
        client(tmp_path, read_only.host).push(f"{layout.path}:v1", f"{read_only.host}/refused:v1")


@pytest.mark.parametrize("extension", ["", ";a=b"], ids=["plain chunks", "an extension in the middle"])
@pytest.mark.parametrize("size", [777, 32 * 1024, 3 * MIB + 1])
def test_a_body_that_comes_faster_than_it_is_stored_is_what_was_sent(
    node: Node, wire: Wire, upload: str, size: int, extension: str
) -> None:
    data = os.urandom(12 * MIB if size < 1024 else BIG)
    frames = [chunk(data[start : start + size]) for start in range(0, len(data), size)]
    middle = len(frames) // 2
    frames[middle] = frames[middle].replace(b"\r\n", f"{extension}\r\n".encode(), 1)
    wire.send(
        head("PATCH", upload, "Transfer-Encoding: chunked") + b"".join(frames) + chunk(b""), head("GET", "/v2/")
    )
    answer = wire.answer("PATCH")
    assert (answer.status, answer.headers["range"]) == (202, f"0-{len(data) + 2}")
    assert wire.answer().status == 200
    target = f"{answer.headers['location']}&digest={digest_of(b'abc', data)}"
    assert wire.ask("PUT", target, "Content-Length: 0").status == 201


@pytest.mark.parametrize("end", ["FIN", "no chunk"])
def test_what_came_fast_before_a_body_broke_is_kept(node: Node, upload: str, end: str) -> None:
    data = os.urandom(BIG)
    frames = [chunk(data[start : start + 32 * 1024]) for start in range(0, len(data), 32 * 1024)]
    with Wire(node.port) as wire:
        wire.send(head("PATCH", upload, "Transfer-Encoding: chunked"), *frames)
        if end == "no chunk":
            answer = wire.send(b"3\r\nabcdef\r\n0\r\n\r\n").answer("PATCH")
            assert (answer.status, answer.error()) == (400, "SIZE_INVALID")
            assert wire.rest() == b""
    kept = 3 + len(data) + (3 if end == "no chunk" else 0)
    eventually(lambda: position(node.port, upload) == kept, 30, "what came is kept")


def test_a_fast_body_is_stored_although_the_process_has_no_descriptor_left(tmp_path: Path) -> None:
    """What is open already is enough for it: a limit that others have reached costs the upload nothing."""
    data = os.urandom(BIG)
    frames = [chunk(data[start : start + 32 * 1024]) for start in range(0, len(data), 32 * 1024)]
    with brief(Node(tmp_path)) as node, Wire(node.port) as wire:
        upload = begin(node.port, "bodies")
        wire.send(head("PATCH", upload, "Transfer-Encoding: chunked"), chunk(b"abc"))
        eventually(lambda: stored(node, upload) is not None, 10, "the chunk has a file")
        usual = resource.prlimit(node.children()[0], resource.RLIMIT_NOFILE)
        for pid in node.children():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, usual[1]))
        wire.send(*frames)
        # What is less than a batch waits for the end of the body.
        eventually(lambda: (stored(node, upload) or 0) > len(data) - 64 * 1024, 30, "what came is stored")
        for pid in node.children():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
        answer = wire.send(chunk(b"")).answer("PATCH")
        assert (answer.status, answer.headers["range"]) == (202, f"0-{len(data) + 2}")
        target = f"{answer.headers['location']}&digest={digest_of(b'abc', data)}"
        assert wire.ask("PUT", target, "Content-Length: 0").status == 201
        assert no_trouble(node.log())
