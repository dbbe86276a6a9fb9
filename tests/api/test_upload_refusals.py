"""What an upload session refuses, and that it lives on: wrong offsets, wrong tokens, wrong digests."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.conftest import SECRET, Api, empty_storage, errors, extend, refusal, sha

CONTENT = random.Random(6).randbytes(3000)
FIRST, REST = CONTENT[:1000], CONTENT[1000:]
DIGEST = sha(CONTENT)
UUID = "0b1c2d3e-1111-4222-8333-444455556666"
STRANGE = [
    "bytes 1000-2999/*",
    "bytes=1000-2999",
    "1000",
    "1000-",
    "-1000",
    "-1000--1",
    "2999-1000",
    "1000-2999-",
    "+1000-2999",
    "1000 - 2999",
    "\u00b9-\u00b2",
    "0x3e8-0xbb7",
    "9" * 19 + "-" + "9" * 19,
    "9" * 20 + "-" + "9" * 20,
    "9" * 4000 + "-" + "9" * 4000,
]


def send(api: Api, method: str, location: str, content: bytes, content_range: str | None) -> object:
    url = location if method == "PATCH" else extend(location, digest=DIGEST)
    headers = {} if content_range is None else {"Content-Range": content_range}
    return api.simulate_request(method, url, body=content, headers=headers)


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("content_range", ["0-1999", "2000-3999", "999-2998", "1001-3000", *STRANGE])
def test_a_chunk_at_a_wrong_place_is_416_with_the_true_range_and_the_session_lives(
    api: Api, method: str, content_range: str
) -> None:
    location = api.append(api.start("a"), FIRST)
    before = api.snapshot()
    answer = send(api, method, location, REST, content_range)
    assert refusal(answer) == (416, "RANGE_INVALID")
    assert answer.headers["Range"] == "0-999"
    assert answer.headers["Docker-Upload-UUID"] in location
    assert api.snapshot() == before
    status = api.get(location)
    assert (status.status_code, status.headers["Range"]) == (204, "0-999")
    for going_on in (status.headers["Location"], answer.headers["Location"]):
        assert going_on == location
    assert api.finish(location, DIGEST, REST, **{"Content-Range": "1000-2999"}).status_code == 201


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("content_range", ["1000-2999", "1-3000", *STRANGE])
def test_a_first_chunk_that_is_not_at_zero_is_416(api: Api, method: str, content_range: str) -> None:
    location = api.start("a")
    answer = send(api, method, location, CONTENT, content_range)
    assert refusal(answer) == (416, "RANGE_INVALID")
    assert answer.headers["Range"] == "0-0"
    assert api.get(location).status_code == 204
    assert api.finish(location, DIGEST, CONTENT, **{"Content-Range": "0-2999"}).status_code == 201


@pytest.mark.parametrize("content_range", [None, "0-999"])
@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_a_chunk_that_is_sent_again_to_the_old_location_is_416(
    api: Api, method: str, content_range: str | None
) -> None:
    """OCI end-5: the client did not hear that the chunk was taken; the Range tells it."""
    first = api.start("a")
    newest = api.append(first, FIRST, 0)
    answer = send(api, method, first, FIRST, content_range)
    assert refusal(answer) == (416, "RANGE_INVALID")
    assert (answer.headers["Range"], answer.headers["Location"]) == ("0-999", newest)
    assert api.finish(newest, DIGEST, REST).status_code == 201


def test_a_right_range_does_not_make_an_old_location_new(api: Api) -> None:
    first = api.start("a")
    newest = api.append(first, FIRST, 0)
    answer = api.patch(first, body=REST, headers={"Content-Range": "1000-2999"})
    assert refusal(answer) == (416, "RANGE_INVALID")
    assert api.finish(newest, DIGEST, REST).status_code == 201


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("content_range", ["1000-2998", "1000-3000", "1000-1000"])
def test_two_lengths_that_differ_are_size_invalid_and_the_session_lives(
    api: Api, method: str, content_range: str
) -> None:
    location = api.append(api.start("a"), FIRST)
    before = api.snapshot()
    assert refusal(send(api, method, location, REST, content_range)) == (400, "SIZE_INVALID")
    assert api.snapshot() == before
    assert api.finish(location, DIGEST, REST).status_code == 201


@pytest.mark.parametrize("digest", [None, "", "latest", "sha256:zz", "sha384:" + "0" * 96, DIGEST.upper()])
def test_a_commit_without_a_digest_that_can_be_checked_is_refused_and_the_session_lives(
    api: Api, digest: str | None
) -> None:
    location = api.append(api.start("a"), FIRST)
    before = api.snapshot()
    answer = api.put(location if digest is None else extend(location, digest=digest), body=REST)
    assert refusal(answer) == (400, "DIGEST_INVALID")
    if digest is None:
        assert errors(answer)[0]["message"] == "digest missing"
    assert api.snapshot() == before
    assert api.finish(location, DIGEST, REST).status_code == 201


def with_token(location: str, token: str) -> str:
    return f"{location.partition('?')[0]}?_state={quote(token, safe='')}"


def token_of(location: str) -> str:
    return parse_qs(urlsplit(location).query)["_state"][0]


def forged(secret: bytes, **changes: object) -> str:
    fields = {"Name": "a", "UUID": UUID, "Offset": 0, "StartedAt": "2024-01-02T03:04:05Z", **changes}
    text = json.dumps(fields).encode()
    return base64.urlsafe_b64encode(hmac.new(secret, text, hashlib.sha256).digest() + text).decode()


@pytest.mark.parametrize("method", ["GET", "HEAD", "PATCH", "PUT", "DELETE"])
def test_a_token_that_is_not_of_this_upload_opens_nothing(api: Api, method: str) -> None:
    location, other, elsewhere = api.append(api.start("a"), FIRST), api.start("a"), api.start("b")
    token = token_of(location)
    wrong = [
        location.partition("?")[0],
        with_token(location, ""),
        with_token(location, "x"),
        with_token(location, token[:-8]),
        with_token(location, token[:-1]),
        with_token(location, token.swapcase()),
        with_token(location, token_of(other)),
        with_token(location, token_of(elsewhere)),
        with_token(location, forged(b"another secret")),
        with_token(location, forged(b"")),
        with_token(location, "A" * 5000),
        with_token(location, "\u0661\ud800".encode("utf-8", "surrogatepass").decode("latin-1")),
        location.replace("/v2/a/", "/v2/b/"),
    ]
    before = api.snapshot()
    for url in wrong:
        answer = api.simulate_request(method, extend(url, digest=DIGEST), body=REST if method[0] == "P" else None)
        assert answer.status_code == 404, url
        if method != "HEAD":
            assert refusal(answer) == (404, "BLOB_UPLOAD_INVALID")
    assert api.snapshot() == before
    assert api.finish(location, DIGEST, REST).status_code == 201


@pytest.mark.parametrize("uuid", ["x", UUID.upper(), "..", "%2e%2e", "_gone", UUID + "0", "uploads", "%00", UUID])
def test_an_upload_that_nobody_began_is_unknown(api: Api, uuid: str) -> None:
    api.start("a")
    before = api.snapshot()
    token = quote(forged(SECRET), safe="")
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        url = f"/v2/a/blobs/uploads/{uuid}?_state={token}&digest={DIGEST}"
        answer = api.simulate_request(method, url, body=CONTENT if method[0] == "P" else None)
        assert refusal(answer) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert api.snapshot() == before


def test_a_token_of_distribution_is_as_good_as_ours(api: Api) -> None:
    """It has other fractions of a second and its keys in the same order; what counts is the signature."""
    location = api.append(api.start("a"), FIRST)
    uuid = location.partition("?")[0].rpartition("/")[2]
    theirs = with_token(location, forged(SECRET, UUID=uuid, Offset=1000, StartedAt="2024-01-02T03:04:05.678901Z"))
    assert api.get(theirs).headers["Range"] == "0-999"
    assert api.finish(theirs, DIGEST, REST).status_code == 201


steps = st.lists(
    st.tuples(
        st.sampled_from(["PATCH", "PUT", "GET"]),
        st.sampled_from(["here", "ahead", "start", "old location", "wrong length", "breaks off", "no range"]),
        st.integers(1, 900),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(steps)
def test_whatever_a_client_sends_the_session_holds_exactly_what_was_acknowledged(
    moves: list[tuple[str, str, int]],
) -> None:
    """A chain of chunks, right and wrong ones mixed: only the right ones count, and the blob is made of them."""
    with empty_storage("memory") as storage:
        api = storage.api()
        oldest = location = api.start("a")
        source, held = random.Random(7), b""
        for method, how, size in moves:
            chunk = source.randbytes(size)
            start = {"ahead": len(held) + 1, "start": 0}.get(how, len(held))
            url = oldest if how == "old location" and method != "GET" else location
            headers = {} if how == "no range" else {"Content-Range": f"{start}-{start + size - 1}"}
            # A PUT that could be right names a digest that nothing has; so it is one that cannot succeed.
            target = extend(url, digest="sha256:" + "1" * 64) if method == "PUT" else url
            wrong = how == "ahead" or (held and how in ("start", "old location"))
            if method == "GET":
                answer = api.get(location)
            elif how == "wrong length":
                headers["Content-Range"] = f"{start}-{start + size}"
                answer = api.simulate_request(method, target, body=chunk, headers=headers)
                assert refusal(answer) == (400, "SIZE_INVALID")
            elif how == "breaks off":
                answer = api.stream(method, target, [chunk], breaks=True, **headers)
                assert refusal(answer) == (400, "SIZE_INVALID")
                held += chunk
            elif wrong:
                answer = api.simulate_request(method, target, body=chunk, headers=headers)
                assert refusal(answer) == (416, "RANGE_INVALID")
                assert answer.headers["Range"] == f"0-{max(len(held) - 1, 0)}"
            elif method == "PATCH":
                answer = api.patch(target, body=chunk, headers=headers)
                assert answer.status_code == 202
                held += chunk
            location = str(api.get(location).headers["Location"])
            assert api.get(location).headers["Range"] == f"0-{max(len(held) - 1, 0)}"
        assert api.finish(location, sha(held)).status_code == 201
        assert api.get(f"/v2/a/blobs/{sha(held)}").content == held
