"""end-1, the health pages, and what every answer has: its headers, and the specification's JSON when it refuses."""

from __future__ import annotations

import pytest

from tests.api.conftest import UNKNOWN, Api, MakeApi, errors, refusal

BAD_NAMES = ["A", "a//b", "a%2Fb", "a%00b", "..", "a/../b", "%2e%2e", "a/", "_layers", "a" * 256, "%FF", "é", ""]
UPLOAD = "/v2/a/blobs/uploads/0b1c2d3e-1111-4222-8333-444455556666"


@pytest.mark.parametrize("path", ["/v2/", "/v2"])
def test_end_1_says_that_this_is_a_registry(api: Api, path: str) -> None:
    answer = api.get(path)
    assert (answer.status_code, answer.content, answer.headers["Content-Type"]) == (200, b"{}", "application/json")
    head = api.head(path)
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", "2")


def test_the_root_answers_for_balancers_that_ask_for_no_more(api: Api) -> None:
    answer = api.get("/")
    assert (answer.status_code, answer.content, answer.headers["Cache-Control"]) == (200, b"", "no-cache")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v2/"), ("GET", "/nowhere"), ("POST", "/v2/"), ("GET", "/v2/A/tags/list")],
)
def test_every_answer_names_the_protocol_and_the_request(api: Api, method: str, path: str) -> None:
    answers = [api.simulate_request(method, path) for _ in range(2)]
    assert {answer.headers["Docker-Distribution-Api-Version"] for answer in answers} == {"registry/2.0"}
    assert len({answer.headers["X-Request-Id"] for answer in answers}) == 2


def test_a_request_id_of_the_client_is_kept_when_it_is_one(api: Api) -> None:
    assert api.get("/v2/", headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
    for strange in ("", "a b", "x" * 129, "é"):
        assert api.get("/v2/", headers={"X-Request-Id": strange}).headers["X-Request-Id"] not in ("", strange)


def test_configured_headers_are_on_every_answer(make_api: MakeApi) -> None:
    api = make_api(http={"headers": {"X-Content-Type-Options": ["nosniff"], "X-Other": ["1", "2"]}})
    for path in ("/v2/", "/nowhere", "/v2/A/tags/list", "/livez"):
        headers = api.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Other"] in ("2", "1, 2", "1,2")


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/v1/_ping",
        "/v1/search?q=a",
        "/v2/a",
        "/v2/a/b/c/d",
        "/v2/tags/list",
        "/v2/manifests/latest",
        "/v2/a/tags",
        "/v2/a/tags/list/",
        "/v2/a/tags/list/x",
        "/v2/_catalog/",
        "/v2/_oci/ext/discover",
        "/v2/{name}",
        "/%76%32/x",
        "//v2/",
        "/v2//",
        "/v3/",
        "/v2/a/manifests",
        "/livez/x",
        "/\xff",
    ],
)
def test_a_path_that_is_no_route_is_404_in_the_form_of_the_specification(api: Api, path: str) -> None:
    assert refusal(api.get(path)) == (404, "UNSUPPORTED")
    head = api.head(path)
    assert (head.status_code, head.content) == (404, b"")


@pytest.mark.parametrize("path", ["/v2/{name}/tags/list", "/v2/%7Bname%7D/tags/list", "/v2/{name}/blobs/uploads/"])
def test_the_template_of_a_route_is_a_path_like_any_other(api: Api, path: str) -> None:
    method = "POST" if path.endswith("uploads/") else "GET"
    assert refusal(api.simulate_request(method, path)) == (400, "NAME_INVALID")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/", {"GET", "HEAD"}),
        ("/v2/", {"GET", "HEAD"}),
        ("/v2/_catalog", {"GET", "HEAD"}),
        ("/v2/a/tags/list", {"GET", "HEAD"}),
        (f"/v2/a/referrers/{UNKNOWN}", {"GET", "HEAD"}),
        (f"/v2/a/blobs/{UNKNOWN}", {"GET", "HEAD", "DELETE"}),
        ("/v2/a/manifests/latest", {"GET", "HEAD", "PUT", "DELETE"}),
        ("/v2/a/blobs/uploads/", {"POST"}),
        ("/v2/a/blobs/uploads", {"POST"}),
        (UPLOAD, {"GET", "HEAD", "PATCH", "PUT", "DELETE"}),
        ("/livez", {"GET", "HEAD"}),
        ("/readyz", {"GET", "HEAD"}),
        ("/healthz", {"GET", "HEAD"}),
    ],
)
def test_a_method_that_a_route_does_not_have_is_405_with_those_that_it_has(
    api: Api, path: str, allowed: set[str]
) -> None:
    for method in {"GET", "PUT", "POST", "PATCH", "DELETE", "TRACE", "PROPFIND"} - allowed:
        answer = api.simulate_request(method, path)
        assert refusal(answer) == (405, "UNSUPPORTED")
        assert set(answer.headers["Allow"].split(", ")) - {"OPTIONS"} == allowed
    options = api.options(path)
    assert (options.status_code, options.content) == (200, b"")
    assert set(options.headers["Allow"].split(", ")) - {"OPTIONS"} == allowed


def test_a_method_that_http_does_not_have_is_refused_in_the_form_of_the_specification(api: Api) -> None:
    status, code = refusal(api.simulate_request("BREW", "/v2/"))
    assert (status in (400, 405, 501), code) == (True, "UNSUPPORTED")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "tags/list"),
        ("GET", "manifests/latest"),
        ("PUT", "manifests/latest"),
        ("DELETE", "manifests/latest"),
        ("GET", f"blobs/{UNKNOWN}"),
        ("DELETE", f"blobs/{UNKNOWN}"),
        ("POST", "blobs/uploads/"),
        ("PATCH", "blobs/uploads/0b1c2d3e-1111-4222-8333-444455556666?_state=x"),
        ("GET", f"referrers/{UNKNOWN}"),
    ],
)
def test_a_bad_name_is_name_invalid_on_every_route(api: Api, method: str, path: str) -> None:
    before = api.snapshot()
    for name in BAD_NAMES:
        answer = api.simulate_request(method, f"/v2/{name}/{path}")
        assert refusal(answer) == (400, "NAME_INVALID"), name
    assert api.snapshot() == before


def test_a_query_that_is_not_utf_8_is_no_reason_to_fail(api: Api) -> None:
    for query in (b"\xff", b"n=\xff", b"n=%FF", b"last=\xc3\x28&n=1", b"&&=&=", b"%", b"\0"):
        answer = api.get("/v2/_catalog", extras={"query_string": query})
        assert answer.status_code in (200, 400), query
        assert answer.status_code == 200 or errors(answer)


def test_a_head_of_an_error_tells_the_length_that_its_body_would_have(api: Api) -> None:
    for path in (f"/v2/a/blobs/{UNKNOWN}", "/v2/a/manifests/none", "/v2/A/tags/list"):
        get, head = api.get(path), api.head(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["Content-Length"] == get.headers["Content-Length"]


@pytest.mark.parametrize(("path", "key"), [("/livez", "status"), ("/readyz", "status"), ("/healthz", "storage")])
def test_the_three_health_pages_answer_in_json(api: Api, path: str, key: str) -> None:
    answer = api.get(path)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    assert key in answer.json
    assert api.head(path).status_code == 200


def test_a_draining_node_is_alive_but_not_ready(api: Api) -> None:
    api.application.health.draining = True
    assert api.get("/livez").status_code == 200
    ready = api.get("/readyz")
    assert (ready.status_code, ready.json) == (503, {"status": "draining"})
    assert api.get("/v2/").status_code == 200
