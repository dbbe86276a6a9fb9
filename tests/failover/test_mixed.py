"""Our nodes and a Distribution node side by side, on one directory, one secret and one Redis (`cluster.mixed`)."""

import hashlib
import itertools
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.process import Distribution3, Node, Registry, eventually
from tests.support.redis import RedisServer

FIRST, SECOND = os.urandom(700_000), os.urandom(300_000)
WHOLE = FIRST + SECOND
DIGEST = "sha256:" + hashlib.sha256(WHOLE).hexdigest()
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCTETS = {"Content-Type": "application/octet-stream"}

Trio = tuple[Registry, Registry, Registry]


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """Two nodes of ours, then one of Distribution 3.1.1."""
    base: Path = tmp_path_factory.mktemp("mixed")
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(base / "redis"))
        shared = {
            "redis": {"addrs": [f"127.0.0.1:{redis.port}"]},
            "storage": {"cache": {"blobdescriptor": "redis"}},
        }
        ours = [
            stack.enter_context(
                Node(base / name, {**shared, "cluster": {"mixed": True, "name": name}}, root=base / "data")
            )
            for name in ("one", "two")
        ]
        theirs = stack.enter_context(Distribution3(base / "theirs", shared, root=base / "data"))
        yield ours[0], ours[1], theirs


def path_of(location: str) -> str:
    """A Location without its origin: it is to be used on another registry."""
    return location if location.startswith("/") else "/" + location.split("/", 3)[3]


def send(registry: Registry, method: str, path: str, content: bytes = b"") -> httpx.Response:
    return httpx.request(method, registry.url + path, content=content, headers=OCTETS, trust_env=False, timeout=30)


@pytest.mark.parametrize("order", [(0, 2, 1), (2, 0, 2), (0, 2, 2), (2, 1, 0), (0, 1, 0)], ids=str)
def test_an_upload_begun_on_one_is_finished_on_another(trio: Trio, order: tuple[int, int, int]) -> None:
    """POST, PATCH, PATCH and PUT go where the order says; 2 is Distribution."""
    name = "mixed/" + "-".join(map(str, order))
    begin, middle, end = (trio[number] for number in order)
    answer = send(begin, "POST", f"/v2/{name}/blobs/uploads/")
    assert answer.status_code == 202
    answer = send(begin, "PATCH", path_of(answer.headers["Location"]), FIRST)
    assert (answer.status_code, answer.headers["Range"]) == (202, f"0-{len(FIRST) - 1}")
    answer = send(middle, "PATCH", path_of(answer.headers["Location"]), SECOND)
    assert (answer.status_code, answer.headers["Range"]) == (202, f"0-{len(WHOLE) - 1}")
    answer = send(end, "PUT", f"{path_of(answer.headers['Location'])}&digest={DIGEST}")
    assert answer.status_code == 201, answer.text
    for registry in trio:
        assert send(registry, "GET", f"/v2/{name}/blobs/{DIGEST}").content == WHOLE


def push_manifest(registry: Registry, name: str, tag: str, subject: dict[str, object] | None = None) -> str:
    """An image with one layer; its digest."""
    config = b"{}"
    digest = "sha256:" + hashlib.sha256(config).hexdigest()
    answer = send(registry, "POST", f"/v2/{name}/blobs/uploads/")
    path = path_of(answer.headers["Location"])
    assert send(registry, "PUT", f"{path}&digest={digest}", config).status_code == 201
    manifest: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": len(config)},
        "layers": [],
        "annotations": {"made.by": tag},
    }
    if subject is not None:
        manifest["subject"] = subject
    body = json.dumps(manifest).encode()
    url = f"{registry.url}/v2/{name}/manifests/{tag}"
    answer = httpx.put(url, content=body, headers={"Content-Type": MANIFEST}, trust_env=False)
    assert answer.status_code == 201, answer.text
    return "sha256:" + hashlib.sha256(body).hexdigest()


def get_manifest(registry: Registry, name: str, reference: str) -> httpx.Response:
    url = f"{registry.url}/v2/{name}/manifests/{reference}"
    return httpx.get(url, headers={"Accept": MANIFEST}, trust_env=False)


@pytest.mark.parametrize("writer", range(3))
def test_what_one_took_is_pulled_from_the_others(trio: Trio, writer: int) -> None:
    name = f"mixed/pull-{writer}"
    digest = push_manifest(trio[writer], name, "v1")
    for registry in trio:
        assert get_manifest(registry, name, "v1").headers["Docker-Content-Digest"] == digest


def test_referrers_of_what_distribution_took_show_up(trio: Trio) -> None:
    ours, _, theirs = trio
    name = "mixed/referrers"
    subject = push_manifest(theirs, name, "subject")
    size = len(get_manifest(theirs, name, subject).content)
    descriptor: dict[str, object] = {"mediaType": MANIFEST, "digest": subject, "size": size}
    first = push_manifest(theirs, name, "first", descriptor)
    listed = send(ours, "GET", f"/v2/{name}/referrers/{subject}").json()["manifests"]
    assert [entry["digest"] for entry in listed] == [first]
    second = push_manifest(theirs, name, "second", descriptor)
    listed = send(ours, "GET", f"/v2/{name}/referrers/{subject}").json()["manifests"]
    assert {entry["digest"] for entry in listed} == {first, second}


def test_deletes_are_seen_by_all(trio: Trio) -> None:
    """Also by Distribution, which asks Redis what it knows of a blob before it looks at storage.

    A delete waits 50 ms for Redis (promise P4): on a busy machine Distribution may hear of it a moment later.
    """
    name = "mixed/delete"
    for deleter, other in ((trio[0], trio[2]), (trio[2], trio[0])):
        answer = send(other, "POST", f"/v2/{name}/blobs/uploads/")
        path = path_of(answer.headers["Location"])
        assert send(other, "PUT", f"{path}&digest={DIGEST}", WHOLE).status_code == 201
        for registry in trio:
            assert send(registry, "HEAD", f"/v2/{name}/blobs/{DIGEST}").status_code == 200
        assert send(deleter, "DELETE", f"/v2/{name}/blobs/{DIGEST}").status_code == 202
        assert [send(each, "HEAD", f"/v2/{name}/blobs/{DIGEST}").status_code for each in trio[:2]] == [404] * 2
        eventually(lambda: send(trio[2], "HEAD", f"/v2/{name}/blobs/{DIGEST}").status_code == 404, 20, "it knows")


def hash_states(registry: Registry, name: str) -> dict[str, int]:
    """The states of the repository's uploads where Distribution keeps them, each with its size."""
    states = Path(registry.root, f"docker/registry/v2/repositories/{name}/_uploads").glob("*/hashstates/sha256/*")
    return {path.name: path.stat().st_size for path in states}


def test_a_state_is_put_aside_by_each_and_the_upload_is_finished_by_the_other(trio: Trio) -> None:
    """Distribution reads ours, in its own form. Its own are left alone."""
    ours, _, theirs = trio
    for first, second in ((ours, theirs), (theirs, ours)):
        name = f"mixed/states-{first is ours}".lower()
        answer = send(first, "POST", f"/v2/{name}/blobs/uploads/")
        answer = send(first, "PATCH", path_of(answer.headers["Location"]), FIRST)
        assert hash_states(first, name)[str(len(FIRST))] == 108
        digest = "sha256:" + hashlib.sha256(FIRST).hexdigest()
        assert send(second, "PUT", f"{path_of(answer.headers['Location'])}&digest={digest}").status_code == 201


def break_off(registry: Registry, path: str, content: bytes, size: int) -> None:
    """A PATCH whose connection ends before its `size` bytes have come."""
    address = urlsplit(registry.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        head = f"PATCH {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {size}\r\n"
        connection.sendall(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + content)
        time.sleep(0.2)


def position(registry: Registry, path: str) -> str:
    return send(registry, "GET", path).headers["Range"]


@pytest.mark.parametrize("order", list(itertools.product((0, 2), repeat=3)), ids=str)
def test_an_upload_goes_on_behind_a_chunk_that_broke_off(trio: Trio, order: tuple[int, int, int]) -> None:
    """A PATCH that breaks off, one that does not, and the PUT with the rest; 2 is Distribution.

    Where it finds no state of exactly the size, Distribution keeps one that is of the new bytes alone.
    """
    name = "mixed/broken-" + "-".join(map(str, order))
    first, middle, end = (trio[number] for number in order)
    path = path_of(send(first, "POST", f"/v2/{name}/blobs/uploads/").headers["Location"])
    break_off(first, path, WHOLE[:600_000], len(WHOLE))
    eventually(lambda: position(first, path) == "0-599999", 10, "what came of the chunk is told")
    path = path_of(send(middle, "GET", path).headers["Location"])
    answer = send(middle, "PATCH", path, WHOLE[600_000:900_000])
    assert (answer.status_code, answer.headers["Range"]) == (202, "0-899999")
    answer = send(end, "PUT", f"{path_of(answer.headers['Location'])}&digest={DIGEST}", WHOLE[900_000:])
    assert answer.status_code == 201, answer.text
    assert send(trio[1], "GET", f"/v2/{name}/blobs/{DIGEST}").content == WHOLE


def test_no_state_of_distribution_refuses_an_upload_that_is_right(trio: Trio) -> None:
    """Killed in a PATCH, it leaves bytes without a state; then its next state is of other bytes."""
    ours, _, theirs = trio
    name = "mixed/killed"
    path = path_of(send(theirs, "POST", f"/v2/{name}/blobs/uploads/").headers["Location"])
    session = next(Path(ours.root, f"docker/registry/v2/repositories/{name}/_uploads").iterdir())
    (session / "data").write_bytes(WHOLE[:600_000])
    path = path_of(send(theirs, "GET", path).headers["Location"])
    answer = send(theirs, "PATCH", path, WHOLE[600_000:900_000])
    assert hash_states(theirs, name).keys() == {"0", "300000"}
    answer = send(ours, "PUT", f"{path_of(answer.headers['Location'])}&digest={DIGEST}", WHOLE[900_000:])
    assert answer.status_code == 201, answer.text
