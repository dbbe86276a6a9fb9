"""end-11: a blob of one repository becomes a blob of another without being sent again."""

from __future__ import annotations

import pytest

from tests.api.conftest import UNKNOWN, Api, MakeApi, extend, refusal, sha

CONTENT = b"shared by two repositories"
algorithms = pytest.mark.parametrize("algorithm", ["sha256", "sha512"])


def mount(api: Api, name: str, **query: str) -> object:
    return api.post(extend(f"/v2/{name}/blobs/uploads/", **query))


def goes_on_as_an_upload(api: Api, answer: object, name: str = "to") -> bool:
    """Whether a mount that found nothing gave a session that works."""
    assert (answer.status_code, answer.headers["Range"]) == (202, "0-0")
    return api.finish(answer.headers["Location"], sha(CONTENT), CONTENT).status_code == 201


@algorithms
@pytest.mark.parametrize("source", ["from/there", None], ids=["from a repository", "from any"])
@pytest.mark.parametrize("with_manifest", [True, False], ids=["that has a manifest", "that has blobs alone"])
def test_end_11_mounts_a_blob(api: Api, algorithm: str, source: str | None, with_manifest: bool) -> None:
    digest = api.push("from/there", CONTENT, algorithm)
    if with_manifest:
        api.push_image("from/there", "v1")
    query = {"mount": digest} | ({"from": source} if source else {})
    answer = mount(api, "to", **query)
    assert (answer.status_code, answer.content, answer.headers["Content-Length"]) == (201, b"", "0")
    assert answer.headers["Location"] == f"/v2/to/blobs/{digest}"
    assert answer.headers["Docker-Content-Digest"] == digest
    got = api.get(answer.headers["Location"])
    assert (got.content, got.headers["Docker-Content-Digest"]) == (CONTENT, digest)


def test_a_mounted_blob_lives_on_without_its_source(api: Api) -> None:
    digest = api.push("from/there", CONTENT)
    mount(api, "to", mount=digest, **{"from": "from/there"})
    assert api.delete(f"/v2/from/there/blobs/{digest}").status_code == 202
    assert api.get(f"/v2/to/blobs/{digest}").content == CONTENT


@pytest.mark.parametrize(
    "query",
    [
        {"mount": sha(CONTENT), "from": "nowhere"},
        {"mount": sha(CONTENT), "from": ""},
        {"mount": sha(CONTENT), "from": "../from"},
        {"mount": sha(CONTENT), "from": "FROM"},
        {"mount": UNKNOWN, "from": "from"},
        {"mount": UNKNOWN},
        {"mount": "sha512:" + "0" * 128},
        {"mount": "", "from": "from"},
        {"mount": "latest", "from": "from"},
        {"mount": "sha256:../../x", "from": "from"},
        {"from": "from"},
    ],
)
def test_a_mount_of_what_is_not_there_begins_an_upload(api: Api, query: dict[str, str]) -> None:
    api.push("from", CONTENT)
    assert goes_on_as_an_upload(api, mount(api, "to", **query))


def test_a_blob_that_was_deleted_everywhere_is_not_mounted_although_its_data_are_there(api: Api) -> None:
    digest = api.push("from", CONTENT)
    api.push_image("from", "v1")
    assert api.delete(f"/v2/from/blobs/{digest}").status_code == 202
    assert mount(api, "to", mount=digest).status_code == 202
    assert mount(api, "to", mount=digest, **{"from": "from"}).status_code == 202


def test_a_manifest_cannot_be_mounted_as_a_blob(api: Api) -> None:
    manifest = api.push_image("from", "v1")
    assert mount(api, "to", mount=sha(manifest)).status_code == 202
    assert mount(api, "to", mount=sha(manifest), **{"from": "from"}).status_code == 202


def test_an_anonymous_mount_can_be_switched_off(make_api: MakeApi) -> None:
    api = make_api(cluster={"anonymousmount": False})
    digest = api.push("from", CONTENT)
    api.push_image("from", "v1")
    assert goes_on_as_an_upload(api, mount(api, "to", mount=digest))
    assert mount(api, "other", mount=digest, **{"from": "from"}).status_code == 201


def test_a_mount_into_a_bad_name_is_refused(api: Api) -> None:
    api.push("from", CONTENT)
    before = api.snapshot()
    assert refusal(mount(api, "TO", mount=sha(CONTENT), **{"from": "from"})) == (400, "NAME_INVALID")
    assert api.snapshot() == before


def test_a_mount_that_finds_nothing_and_names_a_digest_takes_the_body(api: Api) -> None:
    answer = api.post(extend("/v2/to/blobs/uploads/", mount=sha(CONTENT), digest=sha(CONTENT)), body=CONTENT)
    assert (answer.status_code, answer.headers["Location"]) == (201, f"/v2/to/blobs/{sha(CONTENT)}")


FORM = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}


def mount_by_form(api: Api, name: str, body: bytes, query: str = "") -> object:
    return api.post(f"/v2/{name}/blobs/uploads/{query}", body=body, headers=FORM)


def test_a_mount_may_be_asked_for_by_a_form(api: Api) -> None:
    digest = api.push("from/there", CONTENT)
    form = f"mount={digest.replace(':', '%3A')}&from=from%2Fthere".encode()
    answer = mount_by_form(api, "to", form)
    assert (answer.status_code, answer.headers["Location"]) == (201, f"/v2/to/blobs/{digest}")
    assert api.get(answer.headers["Location"]).content == CONTENT


@pytest.mark.parametrize(
    "form",
    [
        b"",
        b"mount=" + UNKNOWN.encode() + b"&from=from/there",
        b"mount=latest&from=from/there",
        b"\xff=\x00&&&=",
        b"mount=" + sha(CONTENT).encode() + b"&from=from/there&rest=" + b"x" * 9000,
        b"digest=" + sha(CONTENT).encode(),
    ],
)
def test_a_form_that_mounts_nothing_gives_a_session(api: Api, form: bytes) -> None:
    api.push("from/there", CONTENT)
    assert goes_on_as_an_upload(api, mount_by_form(api, "to", form))


def test_a_blob_that_calls_itself_a_form_is_a_blob(api: Api) -> None:
    blob = b"mount=" + sha(CONTENT).encode() + b"&from=from/there"
    api.push("from/there", CONTENT)
    answer = mount_by_form(api, "to", blob, f"?digest={sha(blob)}")
    assert (answer.status_code, answer.headers["Docker-Content-Digest"]) == (201, sha(blob))
    assert api.get(f"/v2/to/blobs/{sha(blob)}").content == blob


def test_a_mount_of_the_query_leaves_the_body_alone(api: Api) -> None:
    digest = api.push("from/there", CONTENT)
    answer = mount_by_form(api, "to", b"mount=&from=nowhere", f"?mount={digest}&from=from/there")
    assert answer.status_code == 201
