"""end-2 and end-10: blobs are read whole, in ranges and conditionally, and are taken out of a repository."""

from __future__ import annotations

import email.parser
import email.policy
import random

import pytest
from falcon.testing import Result

from tests.api.conftest import UNKNOWN, Api, MakeApi, refusal, sha

CONTENT = random.Random(2).randbytes(2048)
DIGEST = sha(CONTENT)
URL = f"/v2/a/b/blobs/{DIGEST}"


@pytest.fixture
def blob(api: Api) -> Api:
    """An application that has one blob of 2048 bytes."""
    api.push("a/b", CONTENT)
    return api


def parts(answer: Result) -> list[tuple[str, bytes]]:
    """The Content-Range and the bytes of each part of a multipart answer."""
    head = f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + answer.content)
    assert message.get_content_type() == "multipart/byteranges"
    return [(part["Content-Range"], part.get_payload(decode=True)) for part in message.iter_parts()]


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("content", [b"", b"{}", b"x" * 700_000], ids=["empty", "small", "three chunks"])
def test_end_2_serves_a_blob_under_the_digest_of_the_client(api: Api, algorithm: str, content: bytes) -> None:
    digest = api.push("a/b", content, algorithm)
    url = f"/v2/a/b/blobs/{digest}"
    get, head = api.get(url), api.head(url)
    assert (get.status_code, get.content) == (200, content)
    assert (head.status_code, head.content) == (200, b"")
    for answer in (get, head):
        assert answer.headers["Docker-Content-Digest"] == digest
        assert answer.headers["ETag"] == f'"{digest}"'
        assert answer.headers["Content-Length"] == str(len(content))
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["Cache-Control"] == "max-age=31536000"
        assert answer.headers["Accept-Ranges"] == "bytes"


def test_a_sha512_blob_is_there_under_its_sha256_too(api: Api) -> None:
    api.push("a/b", CONTENT, "sha512")
    answer = api.get(URL)
    assert (answer.content, answer.headers["Docker-Content-Digest"]) == (CONTENT, DIGEST)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"/v2/a/b/blobs/{UNKNOWN}", 404, "BLOB_UNKNOWN"),
        (f"/v2/a/b/blobs/sha512:{'0' * 128}", 404, "BLOB_UNKNOWN"),
        (f"/v2/a/blobs/{DIGEST}", 404, "BLOB_UNKNOWN"),
        (f"/v2/a/b/c/blobs/{DIGEST}", 404, "BLOB_UNKNOWN"),
        (f"/v2/a/b/blobs/{DIGEST.upper()}", 400, "DIGEST_INVALID"),
        (f"/v2/a/b/blobs/{DIGEST[:-1]}", 400, "DIGEST_INVALID"),
        (f"/v2/a/b/blobs/{DIGEST}0", 400, "DIGEST_INVALID"),
        (f"/v2/a/b/blobs/{DIGEST}/", 404, "UNSUPPORTED"),
        ("/v2/a/b/blobs/sha256:..%2F..%2Fetc", 400, "DIGEST_INVALID"),
        ("/v2/a/b/blobs/latest", 400, "DIGEST_INVALID"),
        ("/v2/a/b/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", 400, "DIGEST_INVALID"),
    ],
)
def test_a_blob_that_is_not_in_the_repository_is_not_served(blob: Api, path: str, status: int, code: str) -> None:
    assert refusal(blob.get(path)) == (status, code)
    assert blob.head(path).status_code == status


def test_an_escaped_colon_is_a_colon(blob: Api) -> None:
    assert blob.get(URL.replace(":", "%3A")).content == CONTENT
    assert blob.get(URL.replace(":", "%3a").replace("blobs", "%62lobs")).content == CONTENT


def test_a_manifest_is_not_a_blob_of_its_repository(api: Api) -> None:
    manifest = api.push_image("a/b", "v1")
    assert refusal(api.get(f"/v2/a/b/blobs/{sha(manifest)}")) == (404, "BLOB_UNKNOWN")


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=500-1499", 500, 1499),
        ("bytes=500-", 500, 2047),
        ("bytes=-500", 1548, 2047),
        ("bytes=2000-5000", 2000, 2047),
        ("bytes=0-0", 0, 0),
        ("bytes=0-", 0, 2047),
        ("bytes=-9999", 0, 2047),
    ],
)
def test_a_range_is_served_as_206(blob: Api, asked: str, first: int, last: int) -> None:
    answer = blob.get(URL, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, CONTENT[first : last + 1])
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/2048"
    assert answer.headers["Content-Length"] == str(last + 1 - first)
    assert answer.headers["Docker-Content-Digest"] == DIGEST


@pytest.mark.parametrize("asked", ["bytes=500-0", "bytes=5000-10000", "bytes=2048-", "bytes=-0", "bytes=x"])
def test_a_range_of_nothing_is_416_with_the_size(blob: Api, asked: str) -> None:
    answer = blob.get(URL, headers={"Range": asked})
    assert refusal(answer) == (416, "RANGE_INVALID")
    assert answer.headers["Content-Range"] == "bytes */2048"


@pytest.mark.parametrize("asked", ["items=0-1", "0-1", "bytes=0-,0-,0-", "bytes=" + ",".join(["0-0"] * 100)])
def test_a_range_that_need_not_be_served_is_answered_with_everything(blob: Api, asked: str) -> None:
    answer = blob.get(URL, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert "Content-Range" not in answer.headers


def test_several_ranges_are_served_in_parts(blob: Api) -> None:
    answer = blob.get(URL, headers={"Range": "bytes=0-9, 100-199,-8"})
    assert answer.status_code == 206
    assert answer.headers["Content-Length"] == str(len(answer.content))
    assert "Content-Range" not in answer.headers
    assert parts(answer) == [
        ("bytes 0-9/2048", CONTENT[:10]),
        ("bytes 100-199/2048", CONTENT[100:200]),
        ("bytes 2040-2047/2048", CONTENT[2040:]),
    ]


def test_of_an_empty_blob_every_range_is_all(api: Api) -> None:
    """As Go's http.ServeContent, and so Distribution, has it; what is no range stays refused."""
    api.push("a/b", b"")
    url = f"/v2/a/b/blobs/{sha(b'')}"
    for asked in ("bytes=0-0", "bytes=0-", "bytes=-1"):
        answer = api.get(url, headers={"Range": asked})
        assert (answer.status_code, answer.headers["Content-Length"]) == (200, "0")
    answer = api.get(url, headers={"Range": "bytes=2-1"})
    assert refusal(answer) == (416, "RANGE_INVALID")
    assert answer.headers["Content-Range"] == "bytes */0"


def test_a_head_ignores_ranges(blob: Api) -> None:
    """RFC 9110, 14.2: a range is defined for GET alone."""
    for asked in ("bytes=0-9", "bytes=5000-"):
        answer = blob.head(URL, headers={"Range": asked})
        assert (answer.status_code, answer.headers["Content-Length"]) == (200, "2048")


@pytest.mark.parametrize("value", [f'"{DIGEST}"', DIGEST, "*", f'W/"{DIGEST}"', f'"x", "{DIGEST}"'])
def test_what_the_client_has_is_304(blob: Api, value: str) -> None:
    for ask in (blob.get, blob.head):
        answer = ask(URL, headers={"If-None-Match": value})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["ETag"] == f'"{DIGEST}"'


@pytest.mark.parametrize("value", [f'"{UNKNOWN}"', "", '""', "x"])
def test_what_the_client_does_not_have_is_sent(blob: Api, value: str) -> None:
    assert blob.get(URL, headers={"If-None-Match": value}).content == CONTENT


@pytest.mark.parametrize(
    ("if_range", "status"),
    [(f'"{DIGEST}"', 206), (f'"{UNKNOWN}"', 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200), (f'W/"{DIGEST}"', 200)],
)
def test_a_range_goes_with_the_content_that_it_was_meant_for(blob: Api, if_range: str, status: int) -> None:
    answer = blob.get(URL, headers={"Range": "bytes=0-9", "If-Range": if_range})
    assert (answer.status_code, answer.content) == (status, CONTENT[:10] if status == 206 else CONTENT)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_end_10_takes_a_blob_out_of_one_repository_only(api: Api, algorithm: str) -> None:
    url = f"/v2/a/b/blobs/{api.push('a/b', CONTENT, algorithm)}"
    other = f"/v2/c/blobs/{api.push('c', CONTENT, algorithm)}"
    deleted = api.delete(url)
    assert (deleted.status_code, deleted.content, deleted.headers["Content-Length"]) == (202, b"", "0")
    assert refusal(api.get(url)) == (404, "BLOB_UNKNOWN")
    assert refusal(api.delete(url)) == (404, "BLOB_UNKNOWN")
    assert api.get(other).content == CONTENT
    assert api.push("a/b", CONTENT, algorithm)
    assert api.get(url).content == CONTENT


def test_a_deleted_blob_is_gone_under_every_digest(api: Api) -> None:
    sha512 = api.push("a/b", CONTENT, "sha512")
    assert api.delete(URL).status_code == 202
    assert refusal(api.get(f"/v2/a/b/blobs/{sha512}")) == (404, "BLOB_UNKNOWN")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"/v2/a/b/blobs/{UNKNOWN}", 404, "BLOB_UNKNOWN"),
        (f"/v2/nowhere/blobs/{DIGEST}", 404, "BLOB_UNKNOWN"),
        ("/v2/a/b/blobs/latest", 400, "DIGEST_INVALID"),
    ],
)
def test_deleting_what_is_not_there_changes_nothing(blob: Api, path: str, status: int, code: str) -> None:
    before = blob.snapshot()
    assert refusal(blob.delete(path)) == (status, code)
    assert blob.snapshot() == before


def test_a_blob_is_not_deleted_where_deletes_are_off(make_api: MakeApi) -> None:
    api = make_api(storage={"delete": {"enabled": False}})
    api.push("a/b", CONTENT)
    before = api.snapshot()
    answer = api.delete(URL)
    assert refusal(answer) == (405, "UNSUPPORTED")
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD"}
    assert api.snapshot() == before


def test_what_may_be_kept_for_a_year_is_not_said_of_a_refusal(api: Api) -> None:
    digest = api.push("a", b"content")
    url = f"/v2/a/blobs/{digest}"
    refused = api.get(url, headers={"Range": "bytes=100-"})
    assert refused.status_code == 416
    api.remove(f"blobs/sha256/{digest[7:9]}/{digest[7:]}")
    gone = api.get(url)
    assert gone.status_code == 404
    for answer in (refused, gone):
        assert not {"Cache-Control", "ETag", "Docker-Content-Digest"} & set(answer.headers)
