"""end-8a, end-8b and the catalog: order, pages, cursors, and numbers that are none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.oci.reference import RepositoryName, Tag
from cluster.storage.layout import tag_link
from tests.api.conftest import Api, MakeApi, empty_storage, errors, extend, refusal

TAGS = ["-".join(["v", str(number)]) for number in range(12)] + ["A", "Z", "_", "a", "latest", "z", "v1.0", "V"]
NAMES = ["a", "a-b", "a/b", "a/b/c", "a.b", "a_b", "a0", "b", "z/y/x", "a/b-c", "ab"]
BAD_NUMBERS = ["-1", "x", "1.5", "0x1", "1 ", " 1", "1e3", "\u0661", "9" * 19, "9" * 5000, "+1", "NaN"]


def page(api: Api, url: str, key: str) -> tuple[list[str], str | None]:
    """The entries of one page, and the URL of the next one, which must be relative and name `last` and `n`."""
    answer = api.get(url)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    link = answer.headers.get("Link")
    if link is None:
        return answer.json[key], None
    match = re.fullmatch(r'<(/v2/[^>]*)>; rel="next"', link)
    assert match is not None, link
    assert [name for name, _ in parse_qsl(urlsplit(match[1]).query)] == ["last", "n"]
    return answer.json[key], match[1]


def all_pages(api: Api, url: str, key: str) -> list[list[str]]:
    pages, following = [], url
    while following is not None:
        entries, following = page(api, following, key)
        pages.append(entries)
        assert len(pages) < 100
    return pages


def flat(pages: list[list[str]]) -> list[str]:
    return [entry for entries in pages for entry in entries]


@pytest.fixture
def tagged(api: Api) -> Api:
    content = api.push_image("a")
    for tag in TAGS:
        api.put_manifest("a", tag, content)
    return api


@pytest.fixture
def filled(api: Api) -> Api:
    for name in NAMES:
        api.push_image(name, "v1")
    return api


def test_end_8a_lists_all_tags_in_byte_order(tagged: Api) -> None:
    answer = tagged.get("/v2/a/tags/list")
    assert answer.json == {"name": "a", "tags": sorted(TAGS)}
    assert "Link" not in answer.headers
    head = tagged.head("/v2/a/tags/list")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == answer.headers["Content-Length"]


def test_end_8b_gives_pages_that_make_up_the_whole(tagged: Api) -> None:
    for size in (1, 2, 7, 19, 20, 21, 1000):
        pages = all_pages(tagged, f"/v2/a/tags/list?n={size}", "tags")
        assert flat(pages) == sorted(TAGS)
        assert all(len(entries) == size for entries in pages[:-1])
        assert 0 < len(pages[-1]) <= size


def test_a_cursor_is_exclusive_and_need_not_exist(tagged: Api) -> None:
    for last in ("A", "latest", "latesu", "0", "zz", "v-1", "", "~", "_", "%", "é"):
        expected = [tag for tag in sorted(TAGS) if tag > last]
        cursor = quote(last, safe="")
        assert page(tagged, f"/v2/a/tags/list?last={cursor}", "tags") == (expected, None)
        entries, following = page(tagged, f"/v2/a/tags/list?n=2&last={cursor}", "tags")
        assert entries == expected[:2]
        assert (following is None) == (len(expected) <= 2)


def test_a_page_of_nothing_is_empty_and_the_last(tagged: Api) -> None:
    assert page(tagged, "/v2/a/tags/list?n=0", "tags") == ([], None)
    assert page(tagged, "/v2/a/tags/list?n=0&last=A", "tags") == ([], None)
    assert page(tagged, "/v2/_catalog?n=0", "repositories") == ([], None)


@pytest.mark.parametrize("path", ["/v2/a/tags/list", "/v2/_catalog", "/v2/a/referrers/sha256:" + "0" * 64])
def test_a_number_that_is_none_is_refused(tagged: Api, path: str) -> None:
    for number in BAD_NUMBERS:
        answer = tagged.get(extend(path, n=number))
        assert refusal(answer) == (400, "PAGINATION_NUMBER_INVALID"), number
        assert len(errors(answer)[0]["detail"]["n"]) <= 40
    assert tagged.get(extend(path, n="")).status_code == 200


def test_a_page_of_tags_is_cut_to_the_maximum_and_says_so(make_api: MakeApi) -> None:
    api = make_api(tags={"maxtags": 3})
    content = api.push_image("a")
    for tag in "abcdefg":
        api.put_manifest("a", tag, content)
    assert page(api, "/v2/a/tags/list?n=1000", "tags") == (["a", "b", "c"], "/v2/a/tags/list?last=c&n=3")
    assert flat(all_pages(api, "/v2/a/tags/list?n=1000", "tags")) == list("abcdefg")
    assert page(api, "/v2/a/tags/list", "tags") == (list("abcdefg"), None)


@pytest.mark.parametrize("count", [999, 1000, 1001, 2000, 2001])
def test_many_tags_are_one_answer_in_byte_order_with_or_without_a_cursor(api: Api, count: int) -> None:
    api.push_image("a", "v1")
    tags = [f"t{number}" for number in range(count - 1)]
    for tag in tags:
        api.write(tag_link(RepositoryName("a"), Tag(tag)), b"sha256:" + b"0" * 64)
    expected = sorted([*tags, "v1"])
    for _ in range(2):
        answer = api.get("/v2/a/tags/list")
        assert (answer.json, answer.headers["Content-Type"]) == (
            {"name": "a", "tags": expected},
            "application/json",
        )
        assert answer.text.endswith('"]}\n')
        assert "Link" not in answer.headers
    assert page(api, "/v2/a/tags/list?last=t5", "tags") == ([tag for tag in expected if tag > "t5"], None)
    assert api.head("/v2/a/tags/list").content == b""


def test_a_repository_without_tags_is_an_empty_list_and_no_repository_is_unknown(api: Api) -> None:
    assert refusal(api.get("/v2/a/tags/list")) == (404, "NAME_UNKNOWN")
    api.push("a", b"a blob is not enough")
    assert refusal(api.get("/v2/a/tags/list")) == (404, "NAME_UNKNOWN")
    api.push_image("a")
    assert api.get("/v2/a/tags/list").json == {"name": "a", "tags": []}
    api.push_image("a", "v1")
    api.delete("/v2/a/manifests/v1")
    assert api.get("/v2/a/tags/list").json == {"name": "a", "tags": []}
    assert refusal(api.get("/v2/a/b/tags/list")) == (404, "NAME_UNKNOWN")
    assert refusal(api.get("/v2/b/tags/list?n=1")) == (404, "NAME_UNKNOWN")


def test_a_deleted_tag_is_no_longer_listed(tagged: Api) -> None:
    tagged.delete("/v2/a/manifests/latest")
    assert tagged.get("/v2/a/tags/list").json["tags"] == [tag for tag in sorted(TAGS) if tag != "latest"]


def path_order(name: str) -> str:
    """`/` sorts before every other character."""
    return name.replace("/", "\0")


def in_path_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=path_order)


def test_the_catalog_is_in_path_order(filled: Api) -> None:
    assert page(filled, "/v2/_catalog", "repositories") == (in_path_order(NAMES), None)
    assert in_path_order(["a-b", "a/b", "b", "a", "a/b/c"]) == ["a", "a/b", "a/b/c", "a-b", "b"]
    assert filled.head("/v2/_catalog").status_code == 200


def test_pages_of_the_catalog_make_up_the_whole(filled: Api) -> None:
    for size in (1, 2, 3, 5, 10, 11, 12):
        pages = all_pages(filled, f"/v2/_catalog?n={size}", "repositories")
        assert flat(pages) == in_path_order(NAMES)
        assert all(len(entries) == size for entries in pages[:-1])


def test_a_cursor_of_the_catalog_need_not_exist(filled: Api) -> None:
    for last in (*NAMES, "a/", "a/b/", "a/a", "a/z", "a-", "a/b/c/d", "0", "zz", "z/y", "//", "/", "a//b", ".."):
        expected = [name for name in in_path_order(NAMES) if path_order(name) > path_order(last)]
        assert page(filled, extend("/v2/_catalog", last=last), "repositories") == (expected, None), last


def test_the_catalog_has_what_has_manifests_and_nothing_else(api: Api) -> None:
    assert page(api, "/v2/_catalog", "repositories") == ([], None)
    api.push("blobs/only", b"x")
    api.start("uploads/only")
    api.push_image("deep/er/est")
    assert page(api, "/v2/_catalog", "repositories") == (["deep/er/est"], None)


def test_the_catalog_has_a_default_and_a_maximum(make_api: MakeApi) -> None:
    api = make_api(catalog={"maxentries": 2})
    for name in "abc":
        api.push_image(name)
    assert page(api, "/v2/_catalog", "repositories") == (["a", "b"], "/v2/_catalog?last=b&n=2")
    assert page(api, "/v2/_catalog?n=2", "repositories")[0] == ["a", "b"]
    answer = api.get("/v2/_catalog?n=3")
    assert refusal(answer) == (400, "PAGINATION_NUMBER_INVALID")
    assert errors(answer)[0]["detail"]["n"] == 3


def test_a_link_escapes_its_cursor_and_keeps_the_prefix(make_api: MakeApi) -> None:
    api = make_api(http={"prefix": "/registry/"})
    content = b"not looked at"
    for name in ("a/b", "c"):
        api.write(f"repositories/{name}/_manifests/tags/v1/current/link", content)
        api.write(f"repositories/{name}/_manifests/tags/v2/current/link", content)
    for url, link in (
        ("/v2/_catalog?n=1", "/v2/_catalog?last=a%2Fb&n=1"),
        ("/v2/a/b/tags/list?n=1", "/v2/a/b/tags/list?last=v1&n=1"),
    ):
        assert api.get(f"/registry{url}").headers["Link"] == f'</registry{link}>; rel="next"'


components = st.from_regex(r"[a-c]{1,2}([-._][a-c]){0,1}", fullmatch=True)
names = st.lists(components, min_size=1, max_size=3).map("/".join)


@settings(deadline=None, max_examples=50)
@given(st.sets(names, max_size=12), st.integers(1, 5), names)
def test_any_names_in_pages_of_any_size_from_any_cursor(found: set[str], size: int, last: str) -> None:
    with empty_storage("memory") as storage:
        api = storage.api()
        for name in found:
            api.write(f"repositories/{name}/_manifests/revisions/sha256/x/link", b"")
        whole = in_path_order(found)
        assert flat(all_pages(api, f"/v2/_catalog?n={size}", "repositories")) == whole
        expected = [name for name in whole if path_order(name) > path_order(last)]
        assert flat(all_pages(api, extend("/v2/_catalog", n=str(size), last=last), "repositories")) == expected
