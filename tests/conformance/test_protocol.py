"""The distribution-spec against a running node, at its development text, without the official suite's program.

Strict where the specification leaves a choice: no redirect, no allowed alternative, every digest as the client
wrote it. All is done with sha256 and again with sha512. Owns the requests; the images are described in `Data`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.support.images import CONFIG, EMPTY_JSON, INDEX, LAYER, LAYER_GZIP, MANIFEST
from tests.support.process import Node, Registry

Json = dict[str, Any]
SBOM, SIGNATURE = "application/vnd.example.sbom", "application/vnd.example.signature"
FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"

algorithms = pytest.mark.parametrize("algorithm", ["sha256", "sha512"])


def digest_of(content: bytes, algorithm: str) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


class Client:
    """Requests to one repository; every answer is looked at for what all answers must have."""

    def __init__(self, http: httpx.Client, algorithm: str, name: str) -> None:
        self.http = http
        self.algorithm = algorithm
        self.name = name

    def other(self, name: str) -> Client:
        """The same for another repository."""
        return Client(self.http, self.algorithm, f"{self.name}/{name}")

    def digest(self, content: bytes) -> str:
        return digest_of(content, self.algorithm)

    def __call__(self, method: str, url: str, *statuses: int, **request: Any) -> httpx.Response:
        """Send a request below the repository (or to a Location); the status must be one of these."""
        answer = self.http.request(method, url if url.startswith("/v2/") else f"/v2/{self.name}/{url}", **request)
        assert answer.status_code in statuses, f"{method} {url}: {answer.status_code} {answer.text[:500]}"
        assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
        if answer.status_code >= 400 and method != "HEAD":
            (first, *_) = answer.json()["errors"]
            assert first["code"].isupper()
            assert first["message"]
        return answer

    # -- The ways in which a blob is pushed; each ends with the answer of its last request

    def start(self, **params: str) -> str:
        return self("POST", "blobs/uploads/", 202, params=params).headers["Location"]

    def patch(self, location: str, content: bytes, start: int, status: int = 202) -> httpx.Response:
        headers = {
            "Content-Range": f"{start}-{start + len(content) - 1}",
            "Content-Type": "application/octet-stream",
        }
        return self("PATCH", location, status, content=content, headers=headers)

    def finish(
        self, location: str, digest: str, content: bytes = b"", start: int | None = None, status: int = 201
    ) -> httpx.Response:
        headers = {"Content-Range": f"{start}-{start + len(content) - 1}"} if start is not None and content else {}
        url = f"{location}&digest={digest.replace(':', '%3A')}"
        return self("PUT", url, status, content=content, headers=headers)

    def post_only(self, content: bytes, digest: str, status: int = 201) -> httpx.Response:
        return self("POST", "blobs/uploads/", status, params={"digest": digest}, content=content)

    def post_and_put(self, content: bytes, digest: str, status: int = 201) -> httpx.Response:
        return self.finish(self.start(), digest, content, status=status)

    def one_chunk(self, content: bytes, digest: str, status: int = 201) -> httpx.Response:
        location = self.start(**{"digest-algorithm": self.algorithm})
        if content:
            location = self.patch(location, content, 0).headers["Location"]
        return self.finish(location, digest, status=status)

    def stream(self, content: bytes, digest: str, status: int = 201) -> httpx.Response:
        sent = self("PATCH", self.start(), 202, content=iter([content[:100], content[100:]]))
        return self.finish(sent.headers["Location"], digest, status=status)

    def chunks(self, content: bytes, digest: str, status: int = 201) -> httpx.Response:
        return self._in_chunks(content, digest, status, last_in_put=False, wrong=None)

    def chunks_and_put(self, content: bytes, digest: str, status: int = 201) -> httpx.Response:
        return self._in_chunks(content, digest, status, last_in_put=True, wrong=None)

    def out_of_order(self, content: bytes, digest: str, status: int = 201) -> httpx.Response:
        return self._in_chunks(content, digest, status, last_in_put=False, wrong="PATCH")

    def out_of_order_and_put(self, content: bytes, digest: str, status: int = 201) -> httpx.Response:
        return self._in_chunks(content, digest, status, last_in_put=True, wrong="PUT")

    def _in_chunks(
        self, content: bytes, digest: str, status: int, *, last_in_put: bool, wrong: str | None
    ) -> httpx.Response:
        size = len(content) // 3 + 1
        location = self.start()
        for start in range(0, len(content), size):
            chunk = content[start : start + size]
            if wrong is not None:
                # Ahead by one chunk; before the last one there is nothing ahead, so back to the beginning.
                ahead = content[start + size : start + 2 * size]
                location = self._try_wrong(
                    wrong, location, ahead or content[:size], start + size if ahead else 0, start
                )
            if last_in_put and start + size >= len(content):
                return self.finish(location, digest, chunk, start, status)
            sent = self.patch(location, chunk, start)
            assert sent.headers["Range"] == f"0-{start + len(chunk) - 1}"
            location = sent.headers["Location"]
        return self.finish(location, digest, status=status)

    def _try_wrong(self, method: str, location: str, chunk: bytes, start: int, held: int) -> str:
        """Send a chunk that is not the next one; the Location from which the upload goes on."""
        if method == "PUT":
            self.finish(location, self.digest(b"never there"), chunk, start, 416)
        else:
            self.patch(location, chunk, start, 416)
        status = self("GET", location, 204)
        assert status.headers["Range"] == f"0-{max(held - 1, 0)}"
        return status.headers["Location"]

    # -- What must be true of what was pushed

    def check_blob(self, pushed: httpx.Response, content: bytes) -> None:
        """A blob is at its Location, under its digest, until it is deleted."""
        digest = self.digest(content)
        assert pushed.headers["Docker-Content-Digest"] == digest
        assert pushed.headers["Location"] == f"/v2/{self.name}/blobs/{digest}"
        for url in (pushed.headers["Location"], f"blobs/{digest}"):
            for method in ("HEAD", "GET"):
                answer = self(method, url, 200)
                assert answer.headers["Content-Length"] == str(len(content))
                assert answer.headers["Docker-Content-Digest"] == digest
            assert answer.content == content
        self("DELETE", f"blobs/{digest}", 202)
        self("HEAD", f"blobs/{digest}", 404)
        self("GET", f"blobs/{digest}", 404)

    def check_manifest(self, url: str, content: bytes, media_type: str) -> None:
        """HEAD and GET give exactly what was pushed, to a client that accepts images and indexes."""
        accept = [("Accept", INDEX), ("Accept", MANIFEST)]
        for method in ("HEAD", "GET"):
            answer = self(method, url, 200, headers=accept)
            assert answer.headers["Content-Type"] == media_type
            assert answer.headers["Content-Length"] == str(len(content))
            assert answer.headers["Docker-Content-Digest"] == self.digest(content)
        assert answer.content == content


WAYS: dict[str, Callable[..., httpx.Response]] = {
    "post only": Client.post_only,
    "post and put": Client.post_and_put,
    "one chunk": Client.one_chunk,
    "stream": Client.stream,
    "chunks": Client.chunks,
    "chunks, the last in the put": Client.chunks_and_put,
    "chunks out of order": Client.out_of_order,
    "chunks out of order, the last in the put": Client.out_of_order_and_put,
}
BLOBS = {"empty": b"", "empty JSON": b"{}", "10 KiB": random.Random(1).randbytes(10_000)}
ways = pytest.mark.parametrize("push", WAYS.values(), ids=WAYS)


@pytest.fixture
def client(registry: Registry, algorithm: str) -> Iterator[Client]:
    """Requests to a repository that no other test has."""
    with httpx.Client(base_url=registry.url, timeout=30, trust_env=False) as http:
        yield Client(http, algorithm, f"conformance/{uuid.uuid4().hex}")


# -- Before anything is pushed


@algorithms
def test_an_empty_repository_answers_as_one_that_has_nothing(client: Client) -> None:
    client("GET", "/v2/", 200)
    client("GET", "tags/list", 404)
    missing = client.digest(b"missing")
    for method in ("HEAD", "GET"):
        client(method, f"blobs/{missing}", 404)
        client(method, f"manifests/{missing}", 404)
        client(method, "manifests/missing", 404)
    referrers = client("GET", f"referrers/{missing}", 200)
    assert referrers.headers["Content-Type"] == INDEX
    assert referrers.json() == {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}


@algorithms
def test_a_digest_that_is_malformed_is_refused(client: Client) -> None:
    wrong = f"manifests/{client.algorithm}:baddigeststring"
    content = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()
    client("PUT", wrong, 400, content=content, headers={"Content-Type": INDEX})
    client("GET", wrong, 400)
    client("GET", f"referrers/{client.algorithm}:baddigeststring", 400)


# -- Blobs


@algorithms
@ways
@pytest.mark.parametrize("content", BLOBS.values(), ids=BLOBS)
def test_a_blob_is_pushed_pulled_and_deleted(
    client: Client, push: Callable[..., httpx.Response], content: bytes
) -> None:
    client.check_blob(push(client, content, client.digest(content)), content)


@algorithms
@ways
def test_a_blob_under_a_wrong_digest_is_refused(client: Client, push: Callable[..., httpx.Response]) -> None:
    content = BLOBS["10 KiB"]
    push(client, content, client.digest(b"other content"), 400)
    client("HEAD", f"blobs/{client.digest(content)}", 404)
    client("HEAD", f"blobs/{client.digest(b'other content')}", 404)


@algorithms
@pytest.mark.parametrize("anonymous", [False, True], ids=["from a repository", "anonymous"])
@pytest.mark.parametrize("content", BLOBS.values(), ids=BLOBS)
def test_a_blob_is_mounted(client: Client, anonymous: bool, content: bytes) -> None:
    """At this point the source has no manifest: a repository is also what has blobs alone."""
    source, digest = client.other("source"), client.digest(content)
    source.post_and_put(content, digest)
    params = {"mount": digest} | ({} if anonymous else {"from": source.name})
    client.check_blob(client("POST", "blobs/uploads/", 201, params=params), content)
    source("HEAD", f"blobs/{digest}", 200)


@algorithms
def test_a_mount_of_what_was_never_pushed_begins_an_upload(client: Client) -> None:
    content = random.randbytes(100)
    digest, source = client.digest(content), client.other("source")
    for params in ({"mount": digest, "from": source.name}, {"mount": digest}):
        begun = client("POST", "blobs/uploads/", 202, params=params)
    client.check_blob(client.finish(begun.headers["Location"], digest, content), content)


@algorithms
def test_an_upload_is_cancelled(client: Client) -> None:
    location = client.patch(client.start(), b"content", 0).headers["Location"]
    client("DELETE", location, 204)
    client("GET", location, 404)
    client("DELETE", location, 404)
    client.finish(location, client.digest(b"content"), status=404)


@algorithms
def test_a_client_that_lost_an_answer_finds_out_where_it_was(client: Client) -> None:
    """The 1.1 suite: the previous chunk again, to the first Location, and the status of that Location."""
    first = client.start()
    client.patch(first, b"67890", 5, 416)
    sent = client.patch(first, b"12345", 0)
    assert sent.headers["Range"] == "0-4"
    client.patch(first, b"12345", 0, 416)
    status = client("GET", first, 204)
    assert status.headers["Range"] == "0-4"
    sent = client.patch(status.headers["Location"], b"67890", 5)
    digest = client.digest(b"1234567890")
    client.finish(sent.headers["Location"], digest)
    client.finish(sent.headers["Location"], digest)


@algorithms
@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("500-1499", 500, 1499), ("500-", 500, 2047), ("-500", 1548, 2047), ("2000-5000", 2000, 2047)],
)
def test_a_range_of_a_blob_is_206(client: Client, asked: str, first: int, last: int) -> None:
    content = random.Random(2).randbytes(2048)
    client.post_only(content, client.digest(content))
    answer = client("GET", f"blobs/{client.digest(content)}", 206, headers={"Range": f"bytes={asked}"})
    assert answer.content == content[first : last + 1]
    assert answer.headers["Content-Length"] == str(last + 1 - first)
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/2048"


@algorithms
@pytest.mark.parametrize("asked", ["500-0", "5000-10000"])
def test_a_range_of_nothing_is_416(client: Client, asked: str) -> None:
    content = random.Random(2).randbytes(2048)
    client.post_only(content, client.digest(content))
    client("GET", f"blobs/{client.digest(content)}", 416, headers={"Range": f"bytes={asked}"})


# -- Manifests: the data sets


@dataclass
class Data:
    """Blobs and manifests in the order in which they can be pushed, and the referrers that must be listed."""

    algorithm: str
    blobs: list[bytes] = field(default_factory=list)
    manifests: list[tuple[bytes, str]] = field(default_factory=list)
    subjects: dict[bytes, str] = field(default_factory=dict)
    referrers: dict[str, list[Json]] = field(default_factory=dict)

    def describe(self, content: bytes, media_type: str, **more: object) -> Json:
        digest = digest_of(content, self.algorithm)
        return {"mediaType": media_type, "digest": digest, "size": len(content), **more}

    def blob(self, content: bytes, media_type: str = LAYER_GZIP, **more: object) -> Json:
        self.blobs.append(content)
        return self.describe(content, media_type, **more)

    def manifest(self, **fields: Any) -> Json:
        """Add a manifest; its descriptor as an index has it."""
        value = {"schemaVersion": 2, **fields}
        content, media_type = json.dumps(value).encode(), value["mediaType"]
        self.manifests.append((content, media_type))
        described = self.describe(content, media_type)
        if "subject" in value:
            self.subjects[content] = value["subject"]["digest"]
            kind = value.get("artifactType") or value.get("config", {}).get("mediaType")
            listed = described | ({"artifactType": kind} if kind else {})
            listed |= {"annotations": value["annotations"]} if "annotations" in value else {}
            self.referrers.setdefault(value["subject"]["digest"], []).append(listed)
        return described

    def image(self, seed: str = "", **fields: Any) -> Json:
        layers = [self.blob(f"layer {number} {seed}".encode()) for number in range(2)]
        config = self.blob(json.dumps({"architecture": "amd64", "os": "linux", "seed": seed}).encode(), CONFIG)
        return self.manifest(**{"mediaType": MANIFEST, "config": config, "layers": layers} | fields)

    def index(self, *children: Json, **fields: Any) -> Json:
        return self.manifest(mediaType=INDEX, manifests=list(children), **fields)

    def artifact(self, kind: str = SBOM, **fields: Any) -> Json:
        layers = [self.blob(b"artifact " + kind.encode(), "text/plain")]
        config = self.blob(b"{}", EMPTY_JSON)
        return self.manifest(
            **{"mediaType": MANIFEST, "artifactType": kind, "config": config, "layers": layers} | fields
        )


def platforms(data: Data) -> list[Json]:
    return [
        data.image(architecture) | {"platform": {"os": "linux", "architecture": architecture}}
        for architecture in ("amd64", "arm64")
    ]


def image_with_subjects(data: Data) -> None:
    subject = data.image()
    for number, kind in enumerate((SBOM, SIGNATURE, SBOM)):
        data.artifact(kind, subject=subject, annotations={"org.example.number": str(number)})
    data.image("refers", subject=subject)


def index_with_subjects(data: Data) -> None:
    subject = data.index(*platforms(data))
    artifact = data.artifact()
    data.index(artifact, subject=subject, artifactType=SIGNATURE, annotations={"org.example.key": "value"})
    data.index(artifact, subject=subject)


def missing_subject(data: Data) -> None:
    data.artifact(subject=data.describe(b"this manifest is never pushed", MANIFEST))


def image_with_data(data: Data) -> None:
    data.image(config=data.blob(b"{}", EMPTY_JSON, data="e30="), artifactType=SBOM)


def non_distributable(data: Data) -> None:
    foreign = data.describe(b"this layer is never pushed", FOREIGN, urls=["https://example.com/layer"])
    data.image(layers=[data.blob(b"a layer"), foreign])


def custom_fields(data: Data) -> None:
    child = data.image("custom", **{"org.example.field": {"nested": [1, "two", None]}, "extra": True})
    data.index(child, **{"org.example.field": "value"})


SETS: dict[str, Callable[[Data], object]] = {
    "image": Data.image,
    "uncompressed image": lambda data: data.image(layers=[data.blob(bytes(1024), LAYER)]),
    "large manifest": lambda data: data.image(annotations={f"org.example.{n}": "x" * 1000 for n in range(3800)}),
    "index": lambda data: data.index(*platforms(data)),
    "nested index": lambda data: data.index(data.index(*platforms(data)), data.image("beside")),
    "empty index": lambda data: data.index(),
    "artifact": Data.artifact,
    "artifact index": lambda data: data.index(data.artifact(SBOM), data.artifact(SIGNATURE), artifactType=SBOM),
    "artifact without layers": lambda data: data.artifact(layers=[data.blob(b"{}", EMPTY_JSON)]),
    "image with subject": image_with_subjects,
    "index with subject": index_with_subjects,
    "missing subject": missing_subject,
    "data field": image_with_data,
    "non-distributable layers": non_distributable,
    "custom fields": custom_fields,
    "no layers": lambda data: data.image(layers=[]),
    "empty layer": lambda data: data.image(layers=[data.blob(b"", LAYER)]),
}
SPARSE: dict[str, Callable[[Data], object]] = {
    "sparse image": lambda data: data.image(layers=[data.describe(b"this layer is not there", LAYER)]),
    "sparse index": lambda data: data.index(data.image(), data.describe(b"this image is not there", MANIFEST)),
}


def push(client: Client, data: Data) -> dict[str, tuple[bytes, str]]:
    """Push a data set, every manifest by its digest and with a tag of its own; manifests by their tags."""
    for content in data.blobs:
        client.post_and_put(content, client.digest(content))
    tags = {}
    for number, (content, media_type) in enumerate(data.manifests):
        digest, tag = client.digest(content), f"tag-{number}"
        headers = {"Content-Type": media_type}
        for query in ("", f"?tag={tag}"):
            pushed = client("PUT", f"manifests/{digest}{query}", 201, content=content, headers=headers)
            assert pushed.headers["Docker-Content-Digest"] == digest
            assert pushed.headers.get("OCI-Subject") == data.subjects.get(content)
            assert pushed.headers.get("OCI-Tag") == (tag if query else None)
            client.check_manifest(pushed.headers["Location"], content, media_type)
        tags[tag] = (content, media_type)
    return tags


def check_tags(client: Client, tags: list[str]) -> None:
    assert client("GET", "tags/list", 200).json() == {"name": client.name, "tags": sorted(tags)}
    middle = sorted(tags)[len(tags) // 2]
    after = client("GET", "tags/list", 200, params={"last": middle}).json()["tags"]
    assert after == [tag for tag in sorted(tags) if tag > middle]
    first = client("GET", "tags/list", 200, params={"n": "1"})
    assert first.json()["tags"] == sorted(tags)[:1]
    assert ("Link" in first.headers) == (len(tags) > 1)


def check_referrers(client: Client, referrers: dict[str, list[Json]]) -> None:
    def by_digest(entry: Json) -> str:
        return str(entry["digest"])

    for subject, expected in referrers.items():
        answer = client("GET", f"referrers/{subject}", 200)
        assert answer.headers["Content-Type"] == INDEX
        assert sorted(answer.json()["manifests"], key=by_digest) == sorted(expected, key=by_digest)
        for kind in {entry.get("artifactType", "none/of-it") for entry in expected}:
            filtered = client("GET", f"referrers/{subject}", 200, params={"artifactType": kind})
            assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
            wanted = [entry for entry in expected if entry.get("artifactType") == kind]
            assert sorted(filtered.json()["manifests"], key=by_digest) == sorted(wanted, key=by_digest)


def check_deletes(client: Client, data: Data, tags: dict[str, tuple[bytes, str]]) -> None:
    """Tags, then manifests, then blobs; what was deleted is gone and what was not is there."""
    for tag, (content, media_type) in tags.items():
        client("DELETE", f"manifests/{tag}", 202)
        client("HEAD", f"manifests/{tag}", 404)
        client.check_manifest(f"manifests/{client.digest(content)}", content, media_type)
    assert client("GET", "tags/list", 200).json()["tags"] == []
    for content, _ in reversed(data.manifests):
        client("DELETE", f"manifests/{client.digest(content)}", 202)
        client("HEAD", f"manifests/{client.digest(content)}", 404)
    for subject in data.referrers:
        assert client("GET", f"referrers/{subject}", 200).json()["manifests"] == []
    for content in set(data.blobs):
        client("DELETE", f"blobs/{client.digest(content)}", 202)
        client("HEAD", f"blobs/{client.digest(content)}", 404)


def run(client: Client, make: Callable[[Data], object]) -> None:
    """The whole life of a data set."""
    data = Data(client.algorithm)
    make(data)
    tags = push(client, data)
    for tag, (content, media_type) in tags.items():
        client.check_manifest(f"manifests/{tag}", content, media_type)
        client.check_manifest(f"manifests/{client.digest(content)}", content, media_type)
    check_tags(client, list(tags))
    check_referrers(client, data.referrers)
    check_deletes(client, data, tags)


@algorithms
@pytest.mark.parametrize("make", SETS.values(), ids=SETS)
def test_a_data_set_is_pushed_pulled_listed_and_deleted(client: Client, make: Callable[[Data], object]) -> None:
    run(client, make)


@algorithms
@pytest.mark.parametrize("make", SPARSE.values(), ids=SPARSE)
def test_a_sparse_data_set_is_refused_unless_it_is_allowed(client: Client, make: Callable[[Data], object]) -> None:
    data = Data(client.algorithm)
    make(data)
    for content in data.blobs:
        client.post_only(content, client.digest(content))
    *before, (content, media_type) = data.manifests
    for whole, whole_type in before:
        client("PUT", f"manifests/{client.digest(whole)}", 201, content=whole, headers={"Content-Type": whole_type})
    url = f"manifests/{client.digest(content)}"
    refused = client("PUT", url, 400, content=content, headers={"Content-Type": media_type})
    assert {error["code"] for error in refused.json()["errors"]} == {"MANIFEST_BLOB_UNKNOWN"}
    client("HEAD", url, 404)


@pytest.fixture(scope="module")
def sparse_node() -> Iterator[Node]:
    with (
        tempfile.TemporaryDirectory(prefix="sparse-") as directory,
        Node(os.path.join(directory, "node"), {"cluster": {"sparse": True}}) as node,
    ):
        yield node


@algorithms
@pytest.mark.parametrize("make", SPARSE.values(), ids=SPARSE)
def test_a_sparse_data_set_is_pushed_where_it_is_allowed(
    sparse_node: Node, algorithm: str, make: Callable[[Data], object]
) -> None:
    with httpx.Client(base_url=sparse_node.url, timeout=30, trust_env=False) as http:
        run(Client(http, algorithm, f"sparse/{uuid.uuid4().hex}"), make)


@algorithms
def test_several_tags_are_written_by_one_push(client: Client) -> None:
    data = Data(client.algorithm)
    data.image()
    for blob in data.blobs:
        client.post_and_put(blob, client.digest(blob))
    ((content, media_type),) = data.manifests
    digest, tags = client.digest(content), [f"v{number}" for number in range(10)]
    query = "&".join(f"tag={tag}" for tag in tags)
    headers = {"Content-Type": media_type}
    pushed = client("PUT", f"manifests/{digest}?{query}", 201, content=content, headers=headers)
    named = [tag.strip() for value in pushed.headers.get_list("OCI-Tag") for tag in value.split(",")]
    assert sorted(named) == sorted(tags)
    for tag in tags:
        client.check_manifest(f"manifests/{tag}", content, media_type)
        client("DELETE", f"manifests/{tag}", 202)
        client("GET", f"manifests/{tag}", 404)
    many = "&".join(f"tag=t{number}" for number in range(2000))
    too_many = client.http.put(f"/v2/{client.name}/manifests/{digest}?{many}", content=content, headers=headers)
    assert too_many.status_code in (414, 431)
    client.check_manifest(f"manifests/{digest}", content, media_type)


@algorithms
def test_a_manifest_under_a_wrong_digest_is_refused(client: Client) -> None:
    data = Data(client.algorithm)
    data.image()
    for blob in data.blobs:
        client.post_and_put(blob, client.digest(blob))
    ((content, media_type),) = data.manifests
    for wrong in (client.digest(content + b" "), digest_of(b"", "sha256"), digest_of(b"", "sha512")):
        client("PUT", f"manifests/{wrong}", 400, content=content, headers={"Content-Type": media_type})
        client("HEAD", f"manifests/{wrong}", 404)
    client("HEAD", f"manifests/{client.digest(content)}", 404)


@algorithms
def test_a_manifest_by_tag_alone_goes_by_its_sha256(client: Client) -> None:
    data = Data(client.algorithm)
    data.index()
    ((content, media_type),) = data.manifests
    client(
        "PUT", "manifests/latest", 201, content=content, headers={"Content-Type": f"{media_type}; charset=utf-8"}
    )
    answer = client("GET", "manifests/latest", 200)
    assert (answer.content, answer.headers["Content-Type"]) == (content, media_type)
    assert answer.headers["Docker-Content-Digest"] == digest_of(content, "sha256")
