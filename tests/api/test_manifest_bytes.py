"""end-7 refuses bytes that are no manifest or made to confuse, and end-3 serves what another registry took."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import (
    CONFIG,
    DOCKER_MANIFEST,
    INDEX,
    LAYER,
    MANIFEST,
    UNKNOWN,
    Api,
    descriptor,
    encode,
    index,
    refusal,
    sha,
)

LIMIT = 4 * 1024 * 1024


def nested(depth: int) -> bytes:
    return b'{"schemaVersion": 2, "x": ' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"not JSON",
        b"[]",
        b"null",
        b"{}",
        b'{"schemaVersion": 1}',
        b'{"schemaVersion": 2}',
        b"\xff\xfe{}",
        nested(1000),
        nested(LIMIT // 2 - 100),
        b"[" * LIMIT,
        b'{"a":' * (LIMIT // 5),
        b'{"schemaVersion": 2, "schemaVersion": 2}',
        b'{"schemaVersion": NaN}',
        b'{"schemaVersion": ' + b"9" * 1_000_000 + b"}",
        b'{"schemaVersion": 2, "x": 1e999}',
        rb'{"schemaVersion": 2, "x": "\ud800"}',
        b'{"schemaVersion": 2, "layers": [' + b"0," * 1_000_000 + b"0]}",
        b'{"schemaVersion": 2, "layers": [' + b"{}," * 1_000_000 + b"{}]}",
        b'{"schemaVersion": 2, "mediaType": "text/html"}',
        encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "layers": []}),
        encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}),  # pushed as an image manifest
        encode(index({**descriptor(b"x", MANIFEST), "digest": "sha256:../../../../etc/passwd"})),
    ],
    ids=lambda content: f"{len(content)} bytes {content[:24]!r}",
)
def test_bytes_that_are_no_manifest_are_manifest_invalid_and_change_nothing(api: Api, content: bytes) -> None:
    before = api.snapshot()
    for reference in ("v1", sha(content)):
        assert refusal(api.put_manifest("a", reference, content)) == (400, "MANIFEST_INVALID")
    assert api.snapshot() == before


def test_a_digest_in_the_url_that_is_not_that_of_the_bytes_is_digest_invalid(api: Api) -> None:
    value = api.image("a")
    before = api.snapshot()
    for reference in (UNKNOWN, "sha512:" + "0" * 128, "sha256:baddigeststring"):
        assert refusal(api.put_manifest("a", reference, value)) == (400, "DIGEST_INVALID")
        assert refusal(api.put_manifest("a", f"{reference}?tag=v1", value)) == (400, "DIGEST_INVALID")
    assert api.snapshot() == before


def test_a_type_in_the_bytes_that_the_request_contradicts_is_refused(api: Api) -> None:
    value = api.image("a")
    for media_type in (INDEX, DOCKER_MANIFEST, "application/json", "x" * 5000):
        assert refusal(api.put_manifest("a", "v1", value, media_type)) == (400, "MANIFEST_INVALID")
    assert api.put_manifest("a", "v1", value, f"{MANIFEST}; charset=utf-8").status_code == 201


def test_thousands_of_missing_layers_are_refused_in_reasonable_time(api: Api) -> None:
    layers = [descriptor(str(number).encode()) for number in range(2000)]
    answer = api.put_manifest("a", "v1", api.image("a", layers=layers))
    assert refusal(answer) == (400, "MANIFEST_BLOB_UNKNOWN")


def test_a_large_manifest_of_annotations_is_taken(api: Api) -> None:
    annotations = {f"org.example.{number}": "x" * 1000 for number in range(3800)}
    value = api.image("a", annotations=annotations)
    assert 3_800_000 < len(encode(value)) < LIMIT
    assert api.put_manifest("a", "v1", value).status_code == 201


@pytest.mark.parametrize(
    "value",
    [
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(b"{}", CONFIG), "layers": None},
        {"schemaVersion": 2, "mediaType": INDEX, "manifests": None},
    ],
    ids=["layers", "manifests"],
)
def test_an_empty_list_may_be_written_as_go_writes_one_that_was_never_made(api: Api, value: dict[str, Any]) -> None:
    api.push("a", b"{}")
    assert api.put_manifest("a", "v1", value).status_code == 201


def test_a_manifest_that_another_registry_took_is_served_although_it_would_be_refused_here(api: Api) -> None:
    """Distribution takes keys twice, and descriptors without a type or a size."""
    image = encode(api.image("a"))
    for content in (
        image.replace(b'"layers"', b'"x": 1, "x": 2, "layers"'),
        image.replace(f'"mediaType": "{LAYER}", '.encode(), b""),
        image.replace(f'"mediaType": "{MANIFEST}", '.encode(), b"").replace(b'"size": 5', b'"x": -1'),
    ):
        assert content != image
        assert api.put_manifest("a", "v1", content).status_code == 400
        digest = api.push("a", content)
        api.write(f"repositories/a/_manifests/revisions/sha256/{digest[7:]}/link", digest.encode())
        answer = api.get(f"/v2/a/manifests/{digest}")
        assert (answer.status_code, answer.content, answer.headers["Content-Type"]) == (200, content, MANIFEST)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"{", b'{"schemaVersion": 1, "fsLayers": []}', b"[" * 100_000]
)
def test_what_another_registry_stored_and_nobody_can_name_is_unknown(api: Api, content: bytes) -> None:
    digest = api.push("a", content)
    api.write(f"repositories/a/_manifests/revisions/sha256/{digest[7:]}/link", digest.encode())
    assert refusal(api.get(f"/v2/a/manifests/{digest}")) == (404, "MANIFEST_UNKNOWN")
    assert api.head(f"/v2/a/manifests/{digest}").status_code == 404


@pytest.mark.parametrize("size", [256 * 1024 - 1, 256 * 1024 + 1, 3_500_000])
def test_a_large_manifest_is_served_as_a_small_one_is(api: Api, size: int) -> None:
    value = api.image("a", annotations={"a": ""})
    content = encode(value)
    content = content.replace(b'"a": ""', b'"a": "' + b"x" * (size - len(content)) + b'"')
    assert api.put_manifest("a", "v1", content).status_code == 201
    for reference in ("v1", sha(content)):
        for _ in range(2):  # read as a whole once, then sent from the file
            answer = api.get(f"/v2/a/manifests/{reference}")
            assert answer.content == content
            assert answer.headers["Content-Length"] == str(size)
            assert answer.headers["Content-Type"] == MANIFEST
        assert api.get(f"/v2/a/manifests/{reference}", headers={"If-None-Match": sha(content)}).status_code == 304
        assert api.get(f"/v2/a/manifests/{reference}", headers={"If-Match": UNKNOWN}).status_code == 412
        assert api.head(f"/v2/a/manifests/{reference}").headers["Content-Length"] == str(size)
