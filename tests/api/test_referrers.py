"""end-12a and end-12b: who refers to a subject; filters, pages, deletes, and what another registry stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import falcon.asgi
import pytest
from falcon.testing import Result, TestClient

from cluster.api import errors
from cluster.api.guard import Room
from cluster.api.lists import ReferrersResource
from cluster.api.urls import Urls
from cluster.app import App
from cluster.errors import TooManyRequests
from cluster.oci.digest import Digest
from cluster.registry.referrers import Referrers
from cluster.storage.memory import MemoryDriver
from tests.api.conftest import (
    CONFIG,
    INDEX,
    MANIFEST,
    UNKNOWN,
    Api,
    Json,
    descriptor,
    encode,
    extend,
    index,
    refusal,
    sha,
)

SUBJECT = {"mediaType": MANIFEST, "digest": UNKNOWN, "size": 1234}


def refer(api: Api, number: int, subject: Json | None = None, algorithm: str = "sha256", **more: object) -> Json:
    """Push an artifact with a subject; the descriptor that a referrers list must have for it."""
    fields = {"artifactType": "application/vnd.example.sbom", "annotations": {"number": str(number)}, **more}
    value = {key: field for key, field in fields.items() if field is not None}
    value = api.image("a", subject=subject or SUBJECT, **value)
    content = encode(value)
    answer = api.put_manifest("a", sha(content, algorithm), content)
    assert answer.status_code == 201, answer.text
    assert answer.headers["OCI-Subject"] == value["subject"]["digest"]
    listed = descriptor(content, MANIFEST, algorithm, artifactType=value.get("artifactType", CONFIG))
    return listed | ({"annotations": value["annotations"]} if "annotations" in value else {})


def referrers(api: Api, subject: str = UNKNOWN, **query: str) -> Result:
    answer = api.get(extend(f"/v2/a/referrers/{subject}", **query))
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == INDEX
    assert (answer.json["schemaVersion"], answer.json["mediaType"]) == (2, INDEX)
    assert ("OCI-Filters-Applied" in answer.headers) == bool(query.get("artifactType"))
    return answer


def listed(api: Api, subject: str = UNKNOWN, **query: str) -> list[Json]:
    return list(referrers(api, subject, **query).json["manifests"])


def by_digest(descriptors: list[Json]) -> list[Json]:
    return sorted(descriptors, key=lambda entry: str(entry["digest"]))


@pytest.mark.parametrize("subject", [UNKNOWN, "sha512:" + "0" * 128])
def test_end_12a_is_an_empty_index_for_what_nobody_knows(api: Api, subject: str) -> None:
    before = api.snapshot()
    assert listed(api, subject) == []
    assert api.head(f"/v2/a/referrers/{subject}").status_code == 200
    assert api.snapshot() == before, "asking must not make a repository"
    api.push_image("a", "v1")
    assert listed(api, subject) == []


@pytest.mark.parametrize("digest", ["latest", "sha256:zz", UNKNOWN.upper(), "", "%00", "..", "md5:" + "0" * 32])
def test_a_subject_that_is_no_digest_is_refused(api: Api, digest: str) -> None:
    assert refusal(api.get(f"/v2/a/referrers/{digest}")) == (400, "DIGEST_INVALID")


def test_end_12a_lists_every_referrer_with_what_it_says_of_itself(api: Api) -> None:
    expected = [
        refer(api, 1),
        refer(api, 2, annotations={"org.example": "x", "other": ""}),
        refer(api, 3, artifactType=None),
        refer(api, 4, annotations=None),
    ]
    refer(api, 5, {**SUBJECT, "digest": "sha256:" + "1" * 64})
    assert by_digest(listed(api)) == by_digest(expected)


def test_an_index_refers_to_a_subject_too(api: Api) -> None:
    child = api.push_image("a")
    plain = index(descriptor(child, MANIFEST), subject=SUBJECT)
    typed = index(subject=SUBJECT, artifactType="a/b", annotations={"k": "v"})
    for value in (plain, typed):
        answer = api.put_manifest("a", sha(encode(value)), value)
        assert (answer.status_code, answer.headers["OCI-Subject"]) == (201, UNKNOWN)
    expected = [
        descriptor(encode(plain), INDEX),
        descriptor(encode(typed), INDEX, artifactType="a/b", annotations={"k": "v"}),
    ]
    assert by_digest(listed(api)) == by_digest(expected)


def test_a_referrer_is_listed_in_its_own_repository_alone(api: Api) -> None:
    refer(api, 1)
    assert len(listed(api)) == 1
    for name in ("b", "a/b"):
        assert api.get(f"/v2/{name}/referrers/{UNKNOWN}").json["manifests"] == []


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_referrer_goes_by_the_digest_that_it_was_pushed_under(api: Api, algorithm: str) -> None:
    subject = {**SUBJECT, "digest": sha(b"the subject", algorithm)}
    expected = [refer(api, number, subject, algorithm) for number in (1, 2)]
    for _ in range(2):
        assert by_digest(listed(api, subject["digest"])) == by_digest(expected)


def test_a_referrer_is_there_once_however_often_it_is_pushed(api: Api) -> None:
    expected = [refer(api, 1) for _ in range(3)]
    content = encode(api.image("a", subject=SUBJECT, artifactType="application/vnd.example.sbom"))
    for tag in ("v1", "v2"):
        api.put_manifest("a", tag, content)
    assert len(listed(api)) == 2
    assert expected[0] in listed(api)


def test_end_12b_filters_by_artifact_type(api: Api) -> None:
    sboms = [refer(api, number) for number in (1, 2)]
    signature = refer(api, 3, artifactType="application/vnd.example.signature+json; v=1")
    by_config = refer(api, 4, artifactType=None)
    assert by_digest(listed(api, artifactType=sboms[0]["artifactType"])) == by_digest(sboms)
    assert listed(api, artifactType=signature["artifactType"]) == [signature]
    assert listed(api, artifactType=CONFIG) == [by_config]
    assert listed(api, artifactType="nothing/of-this") == []
    assert len(listed(api, artifactType="")) == 4


def following(answer: Result) -> dict[str, str] | None:
    """The query of the next page."""
    link = answer.headers.get("Link")
    if link is None:
        return None
    url = urlsplit(link.partition(">")[0].removeprefix("<"))
    assert url.path == f"/v2/a/referrers/{UNKNOWN}"
    assert link.endswith('>; rel="next"')
    return {key: values[0] for key, values in parse_qs(url.query).items()}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7])
@pytest.mark.parametrize("filtered", [False, True])
def test_pages_make_up_the_whole_with_the_filter_in_every_link(api: Api, size: int, filtered: bool) -> None:
    expected = [refer(api, number) for number in range(6)]
    for number in range(6, 9):
        other = refer(api, number, artifactType="other/type")
        if not filtered:
            expected.append(other)
    query: dict[str, str] | None = {"n": str(size)}
    if filtered:
        query = {"n": str(size), "artifactType": expected[0]["artifactType"]}
    found, pages = [], 0
    while query is not None:
        answer = referrers(api, **query)
        entries = answer.json["manifests"]
        assert len(entries) <= size
        found += entries
        query, pages = following(answer), pages + 1
        assert pages < 20
    assert by_digest(found) == by_digest(expected)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_deleted_referrer_is_no_longer_listed_and_comes_back_with_a_push(api: Api, algorithm: str) -> None:
    stays, goes = refer(api, 1), refer(api, 2, algorithm=algorithm)
    assert len(listed(api)) == 2
    api.delete(f"/v2/a/manifests/{goes['digest']}")
    assert listed(api) == [stays]
    assert refer(api, 2, algorithm=algorithm) == goes
    assert by_digest(listed(api)) == by_digest([stays, goes])


def test_a_referrer_outlives_its_subject(api: Api) -> None:
    subject = api.push_image("a", "v1")
    entry = refer(api, 1, descriptor(subject, MANIFEST))
    assert listed(api, sha(subject)) == [entry]
    api.delete(f"/v2/a/manifests/{sha(subject)}")
    assert listed(api, sha(subject)) == [entry]


def stored_by_another(api: Api, value: Json) -> bytes:
    """Leave a manifest in the repository as Distribution does: its data and its revision link, nothing else."""
    content = encode(value)
    encoded = sha(content)[7:]
    api.write(f"blobs/sha256/{encoded[:2]}/{encoded}/data", content)
    api.write(f"repositories/a/_manifests/revisions/sha256/{encoded}/link", sha(content).encode())
    return content


def test_what_another_registry_stored_is_listed_earlier_and_meanwhile(api: Api) -> None:
    values: list[Any] = [
        api.image("a", subject=SUBJECT, annotations={"number": str(number)}) for number in range(4)
    ]
    expected = []
    for value in values:
        content = stored_by_another(api, value)
        expected.append(descriptor(content, MANIFEST, artifactType=CONFIG, annotations=value["annotations"]))
        assert by_digest(listed(api)) == by_digest(expected)
    expected.append(refer(api, 9))
    assert by_digest(listed(api)) == by_digest(expected)


def test_what_another_registry_stored_and_cannot_be_read_does_not_hide_the_rest(api: Api) -> None:
    stored_by_another(api, {"schemaVersion": 1, "fsLayers": []})
    stored_by_another(api, {"subject": "not a descriptor"})
    api.write("repositories/a/_manifests/revisions/sha256/strange/link", b"x")
    api.write(f"repositories/a/_manifests/revisions/sha256/{'2' * 64}/link", b"sha256:" + b"2" * 64)
    content = stored_by_another(api, api.image("a", subject=SUBJECT))
    for _ in range(2):
        assert listed(api) == [descriptor(content, MANIFEST, artifactType=CONFIG)]


def test_the_index_of_subjects_is_made_again_when_it_is_lost(api: Api) -> None:
    expected = by_digest([refer(api, number) for number in range(3)])
    assert by_digest(listed(api)) == expected
    api.remove("repositories/a/_referrers")
    refer(api, 3)
    assert len(listed(api)) == 4


class Referring(Referrers):
    """Has always the same page, and is asked in between."""

    def __init__(self, page: list[bytes], meanwhile: Callable[[], None] = lambda: None) -> None:
        super().__init__(MemoryDriver())
        self._page = page
        self._meanwhile = meanwhile

    async def page(  # type: ignore[override]
        self,
        name: str,
        subject: Digest,
        artifact_type: str | None,
        last: str,
        limit: int,
        hold: Callable[[int], None],
    ) -> tuple[list[bytes], str | None]:
        hold(sum(map(len, self._page)))
        self._meanwhile()
        return self._page, None


def with_room(page: list[bytes], room: Room, meanwhile: Callable[[], None] = lambda: None) -> TestClient:
    app: App = falcon.asgi.App()
    errors.install(app)
    urls = Urls(host="", prefix="", relative=True, trusted_proxies=(), tell_clients=False)
    app.add_route("/v2/{name}/referrers/{digest}", ReferrersResource(Referring(page, meanwhile), urls, room))
    return TestClient(app)


@pytest.mark.parametrize("sizes", [[], [1], [1000] * 900, [262_144], [3_000_000], [400_000, 1, 2, 700_000, 3]])
def test_a_list_of_any_size_is_sent_whole_and_its_room_is_given_back(sizes: list[int]) -> None:
    page = [encode({"text": "x" * size}) for size in sizes]
    room = Room("lists", 4_000_000)
    client = with_room(page, room)
    for _ in range(3):
        answer = client.simulate_get(f"/v2/a/referrers/{UNKNOWN}")
        assert answer.json["manifests"] == [{"text": "x" * size} for size in sizes]
        head = client.simulate_head(f"/v2/a/referrers/{UNKNOWN}")
        assert head.headers["Content-Length"] == answer.headers["Content-Length"] == str(len(answer.content))
    room.take(4_000_000)


def test_room_for_a_list_is_taken_before_it_is_whole_and_small_ones_need_none() -> None:
    room = Room("lists", 1_000_000)
    large, small = [b'"' + b"x" * 600_000 + b'"'], [b'"small"']

    def meanwhile() -> None:
        with pytest.raises(TooManyRequests):
            room.take(500_000)

    assert with_room(large, room, meanwhile).simulate_get(f"/v2/a/referrers/{UNKNOWN}").status_code == 200
    room.take(500_000)
    refused = with_room(large, room).simulate_get(f"/v2/a/referrers/{UNKNOWN}")
    assert refusal(refused) == (429, "TOOMANYREQUESTS") and refused.headers["Retry-After"]
    assert with_room(small, room).simulate_get(f"/v2/a/referrers/{UNKNOWN}").status_code == 200
