"""Compare-and-swap of tags: `If-Match` and `If-None-Match: *` on PUT and DELETE, 412 with the current digest."""

from __future__ import annotations

import pytest

from tests.api.conftest import MANIFEST, UNKNOWN, Api, encode, errors, refusal, sha

SHA512 = "sha512:" + "0" * 128


@pytest.fixture
def contents(api: Api) -> tuple[bytes, bytes]:
    """Two manifests whose blobs are there; the tag `v1` points to the first."""
    first, second = (encode(api.image("a", annotations={"version": version})) for version in "12")
    assert api.put_manifest("a", "v1", first).status_code == 201
    return first, second


def current(api: Api, tag: str = "v1") -> str | None:
    return api.head(f"/v2/a/manifests/{tag}").headers.get("Docker-Content-Digest")


def check_failed(answer: object, digest: str | None) -> None:
    """412 as decided: the code is DENIED and the detail names what the tag points to now."""
    assert refusal(answer) == (412, "DENIED")
    (entry,) = errors(answer)
    assert entry["detail"]["current"] == digest


def test_a_tag_is_created_only_where_there_is_none(api: Api, contents: tuple[bytes, bytes]) -> None:
    first, second = contents
    before = api.snapshot()
    check_failed(api.put_manifest("a", "v1", second, **{"If-None-Match": "*"}), sha(first))
    assert api.snapshot() == before
    assert api.put_manifest("a", "v2", second, **{"If-None-Match": "*"}).status_code == 201
    check_failed(api.put_manifest("a", "v2", first, **{"If-None-Match": "*"}), sha(second))
    assert (current(api), current(api, "v2")) == (sha(first), sha(second))


@pytest.mark.parametrize("how", ['"{}"', "{}", '"x", "{}"', "*"])
def test_a_tag_is_moved_only_from_what_the_client_saw(api: Api, contents: tuple[bytes, bytes], how: str) -> None:
    first, second = contents
    answer = api.put_manifest("a", "v1", second, **{"If-Match": how.format(sha(first))})
    assert (answer.status_code, answer.headers["ETag"]) == (201, f'"{sha(second)}"')
    before = api.snapshot()
    if how != "*":
        check_failed(api.put_manifest("a", "v1", first, **{"If-Match": how.format(sha(first))}), sha(second))
    assert (current(api), api.snapshot()) == (sha(second), before)


@pytest.mark.parametrize("value", [f'"{UNKNOWN}"', f'"{SHA512}"', '"x"', "", '""', f'"{UNKNOWN}", "x"'])
def test_a_tag_is_not_moved_from_something_else(api: Api, contents: tuple[bytes, bytes], value: str) -> None:
    first, second = contents
    before = api.snapshot()
    check_failed(api.put_manifest("a", "v1", second, **{"If-Match": value}), sha(first))
    check_failed(api.delete("/v2/a/manifests/v1", headers={"If-Match": value}), sha(first))
    assert api.snapshot() == before


@pytest.mark.parametrize("value", ["*", f'"{UNKNOWN}"'])
def test_a_tag_that_is_not_there_matches_nothing(api: Api, contents: tuple[bytes, bytes], value: str) -> None:
    _, second = contents
    before = api.snapshot()
    check_failed(api.put_manifest("a", "v2", second, **{"If-Match": value}), None)
    for name in ("a", "nowhere"):
        check_failed(api.delete(f"/v2/{name}/manifests/v2", headers={"If-Match": value}), None)
    assert api.snapshot() == before
    assert refusal(api.get("/v2/nowhere/tags/list")) == (404, "NAME_UNKNOWN")
    assert api.get("/v2/_catalog").json["repositories"] == ["a"]


def test_a_tag_is_put_unless_it_is_already_what_the_client_has(api: Api, contents: tuple[bytes, bytes]) -> None:
    first, second = contents
    check_failed(api.put_manifest("a", "v1", second, **{"If-None-Match": f'"{sha(first)}"'}), sha(first))
    assert api.put_manifest("a", "v1", second, **{"If-None-Match": f'"{sha(second)}"'}).status_code == 201
    assert current(api) == sha(second)


def test_a_tag_is_deleted_only_where_it_still_points_to_what_the_client_saw(
    api: Api, contents: tuple[bytes, bytes]
) -> None:
    first, second = contents
    seen = {"If-Match": f'"{sha(first)}"'}
    api.put_manifest("a", "v1", second)
    check_failed(api.delete("/v2/a/manifests/v1", headers=seen), sha(second))
    assert current(api) == sha(second)
    api.put_manifest("a", "v1", first)
    assert api.delete("/v2/a/manifests/v1", headers=seen).status_code == 202
    check_failed(api.delete("/v2/a/manifests/v1", headers=seen), None)


def test_a_delete_that_wants_nothing_there_finds_nothing_or_is_refused(
    api: Api, contents: tuple[bytes, bytes]
) -> None:
    nothing = {"If-None-Match": "*"}
    before = api.snapshot()
    check_failed(api.delete("/v2/a/manifests/v1", headers=nothing), sha(contents[0]))
    for name in ("a", "nowhere"):
        assert refusal(api.delete(f"/v2/{name}/manifests/v2", headers=nothing)) == (404, "MANIFEST_UNKNOWN")
    assert api.snapshot() == before


def test_the_swap_goes_by_the_digest_that_the_tags_writer_used(api: Api) -> None:
    content = encode(api.image("a"))
    digest = sha(content, "sha512")
    api.put_manifest("a", f"{digest}?tag=v1", content)
    check_failed(api.put_manifest("a", "v1", content, **{"If-Match": f'"{sha(content)}"'}), digest)
    assert api.put_manifest("a", "v1", content, **{"If-Match": f'"{digest}"'}).status_code == 201
    assert current(api) == sha(content)


def test_a_refused_swap_stores_not_even_the_manifest(api: Api, contents: tuple[bytes, bytes]) -> None:
    _, second = contents
    check_failed(api.put_manifest("a", "v1", second, **{"If-Match": f'"{UNKNOWN}"'}), sha(contents[0]))
    assert refusal(api.get(f"/v2/a/manifests/{sha(second)}")) == (404, "MANIFEST_UNKNOWN")


def test_a_bad_manifest_is_refused_for_itself_whatever_the_condition(
    api: Api, contents: tuple[bytes, bytes]
) -> None:
    for condition in ({"If-Match": f'"{sha(contents[0])}"'}, {"If-Match": '"x"'}, {"If-None-Match": "*"}):
        answer = api.put_manifest("a", "v1", b"not JSON", MANIFEST, **condition)
        assert refusal(answer) == (400, "MANIFEST_INVALID")


def test_a_put_by_digest_has_no_tag_to_compare_with(api: Api, contents: tuple[bytes, bytes]) -> None:
    _, second = contents
    assert api.put_manifest("a", sha(second), second, **{"If-None-Match": "*"}).status_code == 201


def test_extra_tags_have_no_part_in_the_condition_of_a_tag(api: Api, contents: tuple[bytes, bytes]) -> None:
    first, second = contents
    seen = {"If-Match": f'"{sha(first)}"'}
    assert api.put_manifest("a", "v1?tag=extra", second, **seen).status_code == 201
    assert (current(api), current(api, "extra")) == (sha(second), sha(second))
    before = api.snapshot()
    check_failed(api.put_manifest("a", "v1?tag=another", first, **seen), sha(second))
    assert api.snapshot() == before


def test_beside_a_digest_the_condition_goes_with_each_tag(api: Api, contents: tuple[bytes, bytes]) -> None:
    first, second = contents
    before = api.snapshot()
    for condition in ({"If-None-Match": "*"}, {"If-Match": f'"{UNKNOWN}"'}):
        check_failed(api.put_manifest("a", f"{sha(second)}?tag=v1", second, **condition), sha(first))
        assert api.snapshot() == before
    seen = {"If-Match": f'"{sha(first)}"'}
    assert api.put_manifest("a", f"{sha(second)}?tag=v1", second, **seen).status_code == 201
    assert current(api) == sha(second)


@pytest.mark.parametrize("kind", ["blobs", "manifests"])
def test_a_read_of_something_else_than_the_client_wants_is_refused(
    api: Api, contents: tuple[bytes, bytes], kind: str
) -> None:
    digest = sha(contents[0]) if kind == "manifests" else api.push("a", b"content")
    url = f"/v2/a/{kind}/{digest}"
    for value in (f'"{UNKNOWN}"', f'W/"{digest}"'):
        answer = api.get(url, headers={"If-Match": value})
        check_failed(answer, digest)
        assert "Cache-Control" not in answer.headers
        assert api.head(url, headers={"If-Match": value}).status_code == 412
    for value in (f'"{digest}"', f'"{UNKNOWN}", "{digest}"', "*"):
        assert api.get(url, headers={"If-Match": value}).status_code == 200
        assert api.head(url, headers={"If-Match": value, "If-None-Match": "*"}).status_code == 304
