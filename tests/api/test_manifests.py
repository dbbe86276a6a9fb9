"""end-3, end-7 and end-9: manifests are kept byte for byte, found by tag and by digest, and deleted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.conftest import (
    CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    UNKNOWN,
    Api,
    descriptor,
    encode,
    extend,
    index,
    refusal,
    sha,
)

ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
LIMIT = 4 * 1024 * 1024
NO_TAGS = (".hidden", "-x", "x" * 129, "..", "a%2Fb", "%00", "é", "")
algorithms = pytest.mark.parametrize("algorithm", ["sha256", "sha512"])


def check_served(api: Api, name: str, reference: str, content: bytes, media_type: str, digest: str) -> None:
    """GET and HEAD say what was pushed, in every header."""
    for answer in (api.get(f"/v2/{name}/manifests/{reference}"), api.head(f"/v2/{name}/manifests/{reference}")):
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == media_type
        assert answer.headers["Content-Length"] == str(len(content))
        assert answer.headers["Docker-Content-Digest"] == digest
        assert answer.headers["ETag"] == f'"{digest}"'
        assert answer.content in (content, b"")
    assert api.get(f"/v2/{name}/manifests/{reference}").content == content


def pushable(api: Api, media_type: str) -> dict[str, Any]:
    """A manifest of this type whose references are all there."""
    if media_type in (INDEX, DOCKER_LIST):
        child = api.push_image("a/b")
        return index(descriptor(child, MANIFEST), media_type=media_type)
    if media_type == ARTIFACT:
        api.push("a/b", b"layer")
        return {"mediaType": ARTIFACT, "artifactType": "a/b", "blobs": [descriptor(b"layer")]}
    return api.image("a/b", mediaType=media_type)


@pytest.mark.parametrize("media_type", [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST, ARTIFACT])
def test_end_7a_takes_every_media_type_and_end_3_serves_its_bytes(api: Api, media_type: str) -> None:
    # Spaces and order of keys that no encoder would write: bytes are what counts.
    content = json.dumps(pushable(api, media_type), indent=7, separators=(" ,", " :")).encode() + b"\n \n"
    digest = sha(content)
    answer = api.put_manifest("a/b", "v1", content, media_type)
    assert (answer.status_code, answer.content, answer.headers["Content-Length"]) == (201, b"", "0")
    assert answer.headers["Location"] == f"/v2/a/b/manifests/{digest}"
    assert answer.headers["Docker-Content-Digest"] == digest
    assert "OCI-Subject" not in answer.headers
    for reference in ("v1", digest):
        check_served(api, "a/b", reference, content, media_type, digest)


@algorithms
def test_end_7a_by_digest_names_it_as_the_client_did(api: Api, algorithm: str) -> None:
    content = encode(api.image("a/b"))
    digest = sha(content, algorithm)
    answer = api.put_manifest("a/b", digest, content)
    assert (answer.status_code, answer.headers["Docker-Content-Digest"]) == (201, digest)
    assert answer.headers["Location"] == f"/v2/a/b/manifests/{digest}"
    check_served(api, "a/b", digest, content, MANIFEST, digest)
    assert refusal(api.get("/v2/a/b/manifests/v1")) == (404, "MANIFEST_UNKNOWN")


@algorithms
def test_end_7b_points_every_tag_of_the_query_to_the_digest_of_the_client(api: Api, algorithm: str) -> None:
    content = encode(api.image("a/b"))
    digest = sha(content, algorithm)
    tags = [f"v{number}" for number in range(12)]
    query = "&".join(f"tag={tag}" for tag in [*tags, "v3"])
    answer = api.put_manifest("a/b", f"{digest}?{query}", content)
    assert answer.status_code == 201
    assert answer.headers["Docker-Content-Digest"] == digest
    assert [tag.strip() for tag in answer.headers["OCI-Tag"].split(",")] == tags
    for tag in tags:
        check_served(api, "a/b", tag, content, MANIFEST, digest)
    assert api.get("/v2/a/b/tags/list").json["tags"] == sorted(tags)
    assert api.delete("/v2/a/b/manifests/v0").status_code == 202
    assert refusal(api.get("/v2/a/b/manifests/v0")) == (404, "MANIFEST_UNKNOWN")
    check_served(api, "a/b", "v1", content, MANIFEST, digest)


def test_end_7b_takes_tags_beside_a_tag(api: Api) -> None:
    content = encode(api.image("a/b"))
    answer = api.put_manifest("a/b", "one?tag=two", content)
    assert (answer.status_code, answer.headers["OCI-Tag"]) == (201, "two")
    for tag in ("one", "two"):
        check_served(api, "a/b", tag, content, MANIFEST, sha(content))


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("tag=", 400, "TAG_INVALID"),
        ("tag=good&tag=.bad", 400, "TAG_INVALID"),
        ("tag=a%2Cb", 400, "TAG_INVALID"),
        ("tag=" + "x" * 129, 400, "TAG_INVALID"),
        ("tag=a%00", 400, "TAG_INVALID"),
        ("&".join(f"tag=t{number}" for number in range(65)), 414, "MANIFEST_INVALID"),
    ],
)
def test_end_7b_refuses_all_tags_when_one_is_bad_or_they_are_too_many(
    api: Api, query: str, status: int, code: str
) -> None:
    content = encode(api.image("a/b"))
    before = api.snapshot()
    assert refusal(api.put_manifest("a/b", f"{sha(content)}?{query}", content)) == (status, code)
    assert api.snapshot() == before


def test_a_tag_moves_and_the_old_manifest_stays(api: Api) -> None:
    old = api.push_image("a/b", "v1")
    new = api.push_image("a/b", "v1", annotations={"version": "2"})
    check_served(api, "a/b", "v1", new, MANIFEST, sha(new))
    check_served(api, "a/b", sha(old), old, MANIFEST, sha(old))
    api.put_manifest("a/b", "v1", old)
    check_served(api, "a/b", "v1", old, MANIFEST, sha(old))


@pytest.mark.parametrize(
    ("reference", "status", "code"),
    [
        ("none", 404, "MANIFEST_UNKNOWN"),
        (UNKNOWN, 404, "MANIFEST_UNKNOWN"),
        ("sha512:" + "0" * 128, 404, "MANIFEST_UNKNOWN"),
        ("sha256:totallywrong", 400, "DIGEST_INVALID"),
        ("md5:d41d8cd98f00b204e9800998ecf8427e", 400, "DIGEST_INVALID"),
        (UNKNOWN.upper(), 400, "DIGEST_INVALID"),
        *((no_tag, 404, "MANIFEST_UNKNOWN") for no_tag in NO_TAGS),
    ],
)
def test_a_reference_that_names_nothing_is_unknown_and_a_digest_that_is_none_is_refused(
    api: Api, reference: str, status: int, code: str
) -> None:
    api.push_image("a/b", "v1")
    before = api.snapshot()
    for method in ("GET", "DELETE"):
        assert refusal(api.simulate_request(method, f"/v2/a/b/manifests/{reference}")) == (status, code)
    assert api.head(f"/v2/a/b/manifests/{reference}").status_code == status
    assert api.snapshot() == before


@pytest.mark.parametrize(
    ("reference", "code"),
    [("sha256:totallywrong", "DIGEST_INVALID"), *((no_tag, "TAG_INVALID") for no_tag in NO_TAGS)],
)
def test_nothing_is_put_under_a_reference_that_is_none(api: Api, reference: str, code: str) -> None:
    content = api.push_image("a/b", "v1")
    before = api.snapshot()
    assert refusal(api.put_manifest("a/b", reference, content)) == (400, code)
    assert api.snapshot() == before


def test_a_manifest_is_in_the_repository_that_it_was_pushed_to_alone(api: Api) -> None:
    digest = sha(api.push_image("a/b", "v1"))
    for name in ("a", "a/b/c", "b", "x"):
        for reference in ("v1", digest):
            assert refusal(api.get(f"/v2/{name}/manifests/{reference}")) == (404, "MANIFEST_UNKNOWN")


def test_a_blob_is_no_manifest(api: Api) -> None:
    digest = api.push("a/b", encode(api.image("a/b")))
    assert refusal(api.get(f"/v2/a/b/manifests/{digest}")) == (404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize(
    "accept", [None, "*/*", MANIFEST, INDEX, "text/html", f"{DOCKER_LIST}, {DOCKER_MANIFEST};q=0.5", ""]
)
@pytest.mark.parametrize("media_type", [MANIFEST, INDEX, DOCKER_MANIFEST])
def test_what_is_stored_is_served_whatever_the_client_says_it_accepts(
    api: Api, media_type: str, accept: str | None
) -> None:
    content = encode(pushable(api, media_type))
    api.put_manifest("a/b", "v1", content, media_type)
    headers = {} if accept is None else {"Accept": accept}
    for reference in ("v1", sha(content)):
        answer = api.get(f"/v2/a/b/manifests/{reference}", headers=headers)
        assert (answer.content, answer.headers["Content-Type"]) == (content, media_type)


@pytest.fixture
def listed(api: Api) -> tuple[bytes, bytes]:
    """A Docker manifest list for two platforms, tagged `multi`, and its child for linux/amd64."""
    children = {arch: encode(api.image("a/b", mediaType=DOCKER_MANIFEST, arch=arch)) for arch in ("arm64", "amd64")}
    entries = []
    for architecture, child in children.items():
        api.put_manifest("a/b", sha(child), child, DOCKER_MANIFEST)
        platform = {"architecture": architecture, "os": "linux"}
        entries.append(descriptor(child, DOCKER_MANIFEST, platform=platform))
    content = encode(index(*entries, media_type=DOCKER_LIST))
    assert api.put_manifest("a/b", "multi", content, DOCKER_LIST).status_code == 201
    return content, children["amd64"]


def test_an_old_docker_client_gets_the_linux_amd64_child_of_a_list_by_tag(
    api: Api, listed: tuple[bytes, bytes]
) -> None:
    content, child = listed
    for ask in (api.get, api.head):
        answer = ask("/v2/a/b/manifests/multi", headers={"Accept": f"text/html, {DOCKER_MANIFEST}"})
        assert (answer.headers["Docker-Content-Digest"], answer.headers["Content-Type"]) == (
            sha(child),
            DOCKER_MANIFEST,
        )
        assert answer.headers["Content-Length"] == str(len(child))
    by_digest = api.get(f"/v2/a/b/manifests/{sha(content)}", headers={"Accept": DOCKER_MANIFEST})
    assert by_digest.content == content


@pytest.mark.parametrize(
    "accept",
    [None, "*/*", DOCKER_LIST, f"{DOCKER_MANIFEST}, {DOCKER_LIST}", f"{INDEX};q=0.1, {DOCKER_MANIFEST}", MANIFEST],
)
def test_every_other_client_gets_the_list_itself(api: Api, listed: tuple[bytes, bytes], accept: str | None) -> None:
    headers = {} if accept is None else {"Accept": accept}
    assert api.get("/v2/a/b/manifests/multi", headers=headers).content == listed[0]


def test_a_list_without_a_child_for_the_old_client_is_unknown_to_it(api: Api) -> None:
    child = encode(api.image("a/b", mediaType=DOCKER_MANIFEST))
    api.put_manifest("a/b", sha(child), child, DOCKER_MANIFEST)
    entry = descriptor(child, DOCKER_MANIFEST, platform={"architecture": "s390x", "os": "linux"})
    api.put_manifest("a/b", "multi", index(entry, media_type=DOCKER_LIST), DOCKER_LIST)
    answer = api.get("/v2/a/b/manifests/multi", headers={"Accept": DOCKER_MANIFEST})
    assert refusal(answer) == (404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("how", ['"{}"', "{}", "*", 'W/"{}"', '"x", "{}"'])
@algorithms
def test_what_the_client_has_is_304(api: Api, how: str, algorithm: str) -> None:
    content = encode(api.image("a/b"))
    digest = sha(content, algorithm)
    api.put_manifest("a/b", f"{digest}?tag=v1", content)
    for reference in ("v1", digest):
        for ask in (api.get, api.head):
            answer = ask(f"/v2/a/b/manifests/{reference}", headers={"If-None-Match": how.format(digest)})
            assert (answer.status_code, answer.content) == (304, b"")
            assert answer.headers["ETag"] == f'"{digest}"'
            assert ask(f"/v2/a/b/manifests/{reference}", headers={"If-None-Match": '"x"'}).status_code == 200


def test_a_manifest_of_exactly_4_mib_is_taken_and_one_byte_more_is_413(api: Api) -> None:
    content = encode(api.image("a/b"))
    whole = content + b" " * (LIMIT - len(content))
    assert api.put_manifest("a/b", "v1", whole).status_code == 201
    check_served(api, "a/b", "v1", whole, MANIFEST, sha(whole))
    before = api.snapshot()
    headers = {"Content-Type": MANIFEST}
    too_long = [whole[: LIMIT // 2], whole[LIMIT // 2 :], b" "]
    answers = [
        api.put_manifest("a/b", "v2", whole + b" "),
        api.stream("PUT", "/v2/a/b/manifests/v2", too_long, **headers),
        api.stream("PUT", "/v2/a/b/manifests/v2", [], **headers, **{"Content-Length": str(10**18)}),
    ]
    for answer in answers:
        assert refusal(answer) == (413, "MANIFEST_INVALID")
    assert api.snapshot() == before


def test_a_manifest_that_breaks_off_is_refused(api: Api) -> None:
    content = encode(api.image("a/b"))
    before = api.snapshot()
    for headers in ({"Content-Length": str(len(content) + 1)}, {}):
        answer = api.stream("PUT", "/v2/a/b/manifests/v1", [content], breaks=True, **headers)
        assert refusal(answer) == (400, "SIZE_INVALID")
    assert api.snapshot() == before


@algorithms
def test_end_9_by_digest_takes_the_manifest_and_its_tags(api: Api, algorithm: str) -> None:
    content = encode(api.image("a/b"))
    digest = sha(content, algorithm)
    api.put_manifest("a/b", extend(digest, tag="v1"), content)
    api.put_manifest("a/b", "also", content)
    api.push_image("a/b", "other", annotations={"k": "v"})
    answer = api.delete(f"/v2/a/b/manifests/{digest}")
    assert (answer.status_code, answer.content, answer.headers["Content-Length"]) == (202, b"", "0")
    for reference in (digest, sha(content), "v1", "also"):
        assert refusal(api.get(f"/v2/a/b/manifests/{reference}")) == (404, "MANIFEST_UNKNOWN")
    assert api.get("/v2/a/b/tags/list").json["tags"] == ["other"]
    assert refusal(api.delete(f"/v2/a/b/manifests/{digest}")) == (404, "MANIFEST_UNKNOWN")
    assert api.put_manifest("a/b", digest, content).status_code == 201
    check_served(api, "a/b", digest, content, MANIFEST, digest)


def test_end_9_by_tag_takes_the_tag_alone(api: Api) -> None:
    content = api.push_image("a/b", "v1")
    api.put_manifest("a/b", "v2", content)
    assert api.delete("/v2/a/b/manifests/v1").status_code == 202
    assert refusal(api.get("/v2/a/b/manifests/v1")) == (404, "MANIFEST_UNKNOWN")
    assert refusal(api.delete("/v2/a/b/manifests/v1")) == (404, "MANIFEST_UNKNOWN")
    for reference in ("v2", sha(content)):
        check_served(api, "a/b", reference, content, MANIFEST, sha(content))


def test_a_child_of_an_index_may_be_deleted(api: Api) -> None:
    child = api.push_image("a/b")
    parent = encode(index(descriptor(child, MANIFEST)))
    api.put_manifest("a/b", "multi", parent, INDEX)
    assert api.delete(f"/v2/a/b/manifests/{sha(child)}").status_code == 202
    check_served(api, "a/b", "multi", parent, INDEX, sha(parent))


def test_the_config_of_an_image_may_be_any_blob(api: Api) -> None:
    for media_type in ("application/vnd.example+json", "application/vnd.oci.empty.v1+json", CONFIG):
        config = descriptor(b"{}", media_type, data="e30=")
        assert api.push_image("a/b", "v1", config=config, layers=[])
