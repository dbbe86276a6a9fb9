"""end-4a to end-6, end-13, end-14: every way in which a blob comes in, up to its commit and the repeated commit."""

from __future__ import annotations

import random
import re

import pytest

from tests.api.conftest import Api, MakeApi, extend, refusal, sha

CONTENT = random.Random(5).randbytes(300_000)
FIRST, SECOND, THIRD = CONTENT[:100_000], CONTENT[100_000:250_000], CONTENT[250_000:]
DIGEST = sha(CONTENT)
UPLOADS = "/v2/a/b/blobs/uploads/"
algorithms = pytest.mark.parametrize("algorithm", ["sha256", "sha512"])


def stored(api: Api, digest: str) -> bytes:
    """The bytes that the repository has under a digest."""
    answer = api.get(f"/v2/a/b/blobs/{digest}")
    assert answer.status_code == 200, answer.text
    assert answer.headers["Docker-Content-Digest"] == digest
    return bytes(answer.content)


def sessions(api: Api) -> list[str]:
    """What is left of upload sessions on storage."""
    return [path for path in api.snapshot() if "/_uploads/" in path]


def test_end_4a_begins_a_session(api: Api) -> None:
    answers = [api.post(UPLOADS), api.post("/v2/a/b/blobs/uploads")]
    for answer in answers:
        headers = answer.headers
        assert (answer.status_code, answer.content, headers["Content-Length"]) == (202, b"", "0")
        assert headers["Range"] == "0-0"
        assert headers["Location"].startswith(f"{UPLOADS}{headers['Docker-Upload-UUID']}?_state=")
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", headers["Docker-Upload-UUID"])
        assert "OCI-Chunk-Min-Length" not in headers
    assert answers[0].headers["Docker-Upload-UUID"] != answers[1].headers["Docker-Upload-UUID"]


def test_a_minimum_chunk_is_told_where_one_is_configured(make_api: MakeApi) -> None:
    api = make_api(cluster={"chunkminlength": "64KiB"})
    begun = api.post(UPLOADS)
    assert begun.headers["OCI-Chunk-Min-Length"] == "65536"
    shorter = api.finish(begun.headers["Location"], sha(FIRST[:9]), FIRST[:9])
    assert shorter.status_code == 201, "the last chunk may have any size"


@algorithms
@pytest.mark.parametrize("content", [b"", b"{}", CONTENT], ids=["empty", "small", "large"])
def test_end_4b_takes_a_whole_blob_in_one_request(api: Api, algorithm: str, content: bytes) -> None:
    digest = sha(content, algorithm)
    answer = api.post(extend(UPLOADS, digest=digest), body=content)
    assert (answer.status_code, answer.headers["Content-Length"]) == (201, "0")
    assert answer.headers["Location"] == f"/v2/a/b/blobs/{digest}"
    assert answer.headers["Docker-Content-Digest"] == digest
    assert stored(api, digest) == content
    assert sessions(api) == []


def test_end_4b_takes_a_body_of_unknown_length(api: Api) -> None:
    assert api.stream("POST", extend(UPLOADS, digest=DIGEST), [FIRST, SECOND, b"", THIRD]).status_code == 201
    assert stored(api, DIGEST) == CONTENT


@pytest.mark.parametrize("digest", ["", "latest", "md5:" + "0" * 32, DIGEST.upper(), "../../etc", sha(b"other")])
def test_end_4b_refuses_a_digest_that_is_none_or_of_other_bytes_and_leaves_nothing(api: Api, digest: str) -> None:
    before = api.snapshot()
    assert refusal(api.post(extend(UPLOADS, digest=digest), body=CONTENT)) == (400, "DIGEST_INVALID")
    assert api.snapshot() == before


@algorithms
def test_end_4c_takes_the_algorithm_that_the_client_will_use(api: Api, algorithm: str) -> None:
    location = api.start("a/b", **{"digest-algorithm": algorithm})
    location = api.append(location, FIRST, 0)
    location = api.append(location, SECOND, len(FIRST))
    digest = sha(CONTENT, algorithm)
    answer = api.finish(location, digest, THIRD, **{"Content-Range": f"250000-{len(CONTENT) - 1}"})
    assert (answer.status_code, answer.headers["Docker-Content-Digest"]) == (201, digest)
    assert answer.headers["Location"] == f"/v2/a/b/blobs/{digest}"
    assert stored(api, digest) == CONTENT


@pytest.mark.parametrize("algorithm", ["", "md5", "sha384", "SHA256", "sha256,sha512", "../x"])
def test_end_4c_refuses_an_algorithm_that_is_not_stored(api: Api, algorithm: str) -> None:
    before = api.snapshot()
    assert refusal(api.post(extend(UPLOADS, **{"digest-algorithm": algorithm}))) == (400, "DIGEST_INVALID")
    assert api.snapshot() == before


@algorithms
def test_an_algorithm_that_was_not_told_is_taken_at_the_end(api: Api, algorithm: str) -> None:
    announced = {"sha256": "sha512", "sha512": "sha256"}[algorithm]
    digest = sha(CONTENT, algorithm)
    location = api.append(api.start("a/b", **{"digest-algorithm": announced}), CONTENT)
    assert api.finish(location, digest).headers["Docker-Content-Digest"] == digest
    assert stored(api, digest) == CONTENT


@algorithms
@pytest.mark.parametrize("content", [b"", b"x", CONTENT], ids=["empty", "one byte", "large"])
def test_end_6_takes_the_whole_body_after_a_post(api: Api, algorithm: str, content: bytes) -> None:
    digest = sha(content, algorithm)
    answer = api.finish(api.start("a/b"), digest, content)
    assert (answer.status_code, answer.headers["Content-Length"]) == (201, "0")
    assert answer.headers["Location"] == f"/v2/a/b/blobs/{digest}"
    assert answer.headers["Docker-Content-Digest"] == digest
    assert stored(api, digest) == content
    assert sessions(api) == []


@algorithms
def test_end_5_takes_a_stream_and_end_6_finishes_it_with_an_empty_body(api: Api, algorithm: str) -> None:
    sent = api.stream("PATCH", api.start("a/b"), [FIRST, b"", SECOND, THIRD])
    assert (sent.status_code, sent.content, sent.headers["Content-Length"]) == (202, b"", "0")
    assert sent.headers["Range"] == f"0-{len(CONTENT) - 1}"
    digest = sha(CONTENT, algorithm)
    assert api.finish(sent.headers["Location"], digest).status_code == 201
    assert stored(api, digest) == CONTENT


@algorithms
@pytest.mark.parametrize("last_in_put", [False, True])
@pytest.mark.parametrize("ranges", [False, True])
def test_end_5_takes_chunk_after_chunk(api: Api, algorithm: str, last_in_put: bool, ranges: bool) -> None:
    location = api.start("a/b")
    uuid = location.partition("?")[0].rpartition("/")[2]
    end = 0
    for chunk in (FIRST, SECOND) if last_in_put else (FIRST, SECOND, THIRD):
        headers = {"Content-Range": f"{end}-{end + len(chunk) - 1}"} if ranges else {}
        sent = api.patch(location, body=chunk, headers=headers)
        end += len(chunk)
        assert (sent.status_code, sent.headers["Range"]) == (202, f"0-{end - 1}")
        assert sent.headers["Docker-Upload-UUID"] == uuid
        location = sent.headers["Location"]
    rest = THIRD if last_in_put else b""
    headers = {"Content-Range": f"{end}-{end + len(rest) - 1}"} if ranges and rest else {}
    digest = sha(CONTENT, algorithm)
    assert api.finish(location, digest, rest, **headers).status_code == 201
    assert stored(api, digest) == CONTENT


@pytest.mark.parametrize("content_type", [None, "application/octet-stream", "text/plain", "application/json", "x"])
def test_the_type_of_a_chunk_does_not_matter(api: Api, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    location = api.patch(api.start("a/b"), body=CONTENT, headers=headers).headers["Location"]
    assert api.finish(location, DIGEST, **headers).status_code == 201


def test_an_empty_chunk_changes_nothing_and_the_upload_goes_on(api: Api) -> None:
    location = api.append(api.append(api.start("a/b"), b""), FIRST)
    for answer in (api.patch(location, body=b""), api.stream("PATCH", location, []), api.patch(location)):
        assert (answer.status_code, answer.headers["Range"]) == (202, f"0-{len(FIRST) - 1}")
        location = answer.headers["Location"]
    assert api.finish(location, sha(FIRST)).status_code == 201


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_end_13_tells_where_an_upload_stands_to_old_locations_too(api: Api, method: str) -> None:
    first = api.start("a/b")
    empty = api.simulate_request(method, first)
    assert (empty.status_code, empty.headers["Range"]) == (204, "0-0")
    newest = api.append(first, FIRST)
    for location in (first, newest):
        answer = api.simulate_request(method, location)
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["Range"] == f"0-{len(FIRST) - 1}"
        assert answer.headers["Docker-Upload-UUID"] in first
        assert answer.headers["Location"] == newest
        assert "Content-Length" not in answer.headers
    assert api.finish(answer.headers["Location"], DIGEST, SECOND + THIRD).status_code == 201


def test_end_14_ends_a_session_once(api: Api) -> None:
    first = api.start("a/b")
    location = api.append(first, FIRST)
    answer = api.delete(first)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["Docker-Upload-UUID"] in location
    assert sessions(api) == []
    for after in (api.delete(location), api.get(location), api.patch(location, body=SECOND)):
        assert refusal(after) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert refusal(api.finish(location, DIGEST)) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert sessions(api) == []


def test_a_blob_that_is_pushed_again_is_the_same_blob(api: Api) -> None:
    for name in ("a/b", "a/b", "c"):
        api.push(name, CONTENT)
        location = api.append(api.start(name), CONTENT)
        assert api.finish(location, DIGEST).status_code == 201
    data = [path for path in api.snapshot() if path.endswith("/data")]
    assert data == [f"blobs/sha256/{DIGEST[7:9]}/{DIGEST[7:]}/data"]


@algorithms
def test_u7_a_repeated_commit_is_201_also_when_the_session_is_gone(api: Api, algorithm: str) -> None:
    digest = sha(CONTENT, algorithm)
    first = api.start("a/b")
    location = api.append(first, FIRST)
    answers = [api.finish(location, digest, SECOND + THIRD) for _ in range(3)]
    answers += [api.finish(location, digest), api.finish(first, digest), api.finish(first, digest, b"other bytes")]
    answers += [api.finish(location, digest, SECOND + THIRD, **{"Content-Range": f"100000-{len(CONTENT) - 1}"})]
    for answer in answers:
        assert (answer.status_code, answer.headers["Docker-Content-Digest"]) == (201, digest)
        assert answer.headers["Location"] == f"/v2/a/b/blobs/{digest}"
    assert stored(api, digest) == CONTENT
    assert sessions(api) == []


def test_u7_a_commit_whose_last_chunk_had_arrived_already_is_201(api: Api) -> None:
    """The first PUT stored its body, and the node died before it committed: the client sends it again."""
    location = api.append(api.start("a/b"), FIRST)
    api.append(location, SECOND + THIRD)
    again = api.finish(location, DIGEST, SECOND + THIRD, **{"Content-Range": f"100000-{len(CONTENT) - 1}"})
    assert again.status_code == 201
    assert stored(api, DIGEST) == CONTENT


def test_u7_does_not_make_a_blob_of_another_repository_ours(api: Api) -> None:
    api.push("c", CONTENT)
    location = api.append(api.start("a/b"), FIRST)
    assert api.delete(location).status_code == 204
    assert refusal(api.finish(location, DIGEST)) == (404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("declared", [True, False], ids=["with its length", "in chunks"])
def test_u8_a_body_that_breaks_off_is_kept_as_far_as_it_came_and_not_acknowledged(
    api: Api, method: str, declared: bool
) -> None:
    location = api.append(api.start("a/b"), FIRST)
    url = location if method == "PATCH" else extend(location, digest=DIGEST)
    headers = {"Content-Length": str(len(SECOND + THIRD))} if declared else {}
    answer = api.stream(method, url, [SECOND[:1000], SECOND[1000:]], breaks=True, **headers)
    assert refusal(answer) == (400, "SIZE_INVALID")
    assert api.get(f"/v2/a/b/blobs/{DIGEST}").status_code == 404
    status = api.get(location)
    assert (status.status_code, status.headers["Range"]) == (204, f"0-{len(FIRST + SECOND) - 1}")
    assert api.finish(status.headers["Location"], DIGEST, THIRD).status_code == 201
    assert stored(api, DIGEST) == CONTENT


def test_u8_a_single_post_that_breaks_off_leaves_nothing(api: Api) -> None:
    length = {"Content-Length": str(len(CONTENT))}
    answer = api.stream("POST", extend(UPLOADS, digest=DIGEST), [FIRST], breaks=True, **length)
    assert refusal(answer) == (400, "SIZE_INVALID")
    assert api.snapshot() == {}


@algorithms
def test_a_single_post_of_other_bytes_is_refused_although_the_blob_is_there(api: Api, algorithm: str) -> None:
    digest = sha(CONTENT, algorithm)
    assert api.post(extend(UPLOADS, digest=digest), body=CONTENT).status_code == 201
    before = api.snapshot()
    assert refusal(api.post(extend(UPLOADS, digest=digest), body=FIRST)) == (400, "DIGEST_INVALID")
    assert api.snapshot() == before
    assert api.post(extend(UPLOADS, digest=digest), body=CONTENT).status_code == 201


@algorithms
def test_u8_a_digest_that_does_not_match_ends_the_session_and_links_nothing(api: Api, algorithm: str) -> None:
    location = api.append(api.start("a/b"), FIRST)
    wrong = sha(CONTENT, algorithm)
    assert refusal(api.finish(location, wrong, SECOND)) == (400, "DIGEST_INVALID")
    for answer in (api.get(location), api.finish(location, wrong, SECOND), api.delete(location)):
        assert refusal(answer) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert api.snapshot() == {}
