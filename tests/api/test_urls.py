"""`Location` behind proxies: relative unless told otherwise, and then by `http.host` or by trusted headers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import Api, MakeApi, encode, extend, sha

CONTENT = b"content"
DIGEST = sha(CONTENT)
PROXY = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "registry.example.com"}


@pytest.fixture
def backend() -> str:
    """What an answer says of its place does not depend on what lies behind it."""
    return "memory"


def locations(api: Api, prefix: str = "", **request: Any) -> list[str]:
    """The Location of every kind of answer that has one, in the order of the endpoints."""
    headers = request.pop("headers", {})

    def ask(method: str, path: str, body: bytes = b"", **more: str) -> str:
        # Whatever a proxy makes of a Location, here it arrives at the route.
        url = prefix + path[path.index("/v2/") :]
        answer = api.simulate_request(method, url, body=body, headers={**headers, **more}, **request)
        assert answer.status_code in (201, 202, 204), (url, answer.text)
        return str(answer.headers["Location"])

    begun = ask("POST", f"{prefix}/v2/a/blobs/uploads/")
    sent = ask("PATCH", begun, CONTENT)
    status = ask("GET", sent)
    finished = ask("PUT", extend(status, digest=DIGEST))
    pushed = ask("POST", f"{prefix}/v2/a/blobs/uploads/?digest={DIGEST}", CONTENT)
    mounted = ask("POST", f"{prefix}/v2/b/blobs/uploads/?mount={DIGEST}&from=a")
    manifest = ask("PUT", f"{prefix}/v2/a/manifests/v1", encode({"schemaVersion": 2, "manifests": []}), **INDEX)
    return [begun, sent, status, finished, pushed, mounted, manifest]


INDEX = {"Content-Type": "application/vnd.oci.image.index.v1+json"}
PATHS = (
    ["/v2/a/blobs/uploads/"] * 3
    + [f"/v2/a/blobs/{DIGEST}"] * 2
    + [f"/v2/b/blobs/{DIGEST}", "/v2/a/manifests/sha256:"]
)


def check(found: list[str], origin: str) -> None:
    for location, path in zip(found, PATHS, strict=True):
        assert location.startswith(f"{origin}{path}"), location
        if "uploads" in path:
            assert "?_state=" in location


def test_locations_are_relative_by_default(make_api: MakeApi) -> None:
    api = make_api()
    check(locations(api), "")
    check(locations(api, headers=PROXY), "")


def test_locations_are_relative_where_it_is_written(make_api: MakeApi) -> None:
    check(locations(make_api(http={"relativeurls": True}), headers=PROXY), "")


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("https://registry.example.com", "https://registry.example.com"),
        ("http://registry.example.com:8080", "http://registry.example.com:8080"),
        ("https://registry.example.com/", "https://registry.example.com"),
        ("https://registry.example.com/sub/", "https://registry.example.com/sub"),
        # As Distribution has it: a path without a slash at its end does not count.
        ("https://registry.example.com/sub", "https://registry.example.com"),
    ],
)
@pytest.mark.parametrize("relativeurls", [None, True, False])
def test_a_configured_host_wins_over_everything(
    make_api: MakeApi, host: str, origin: str, relativeurls: bool | None
) -> None:
    http = {"host": host} | ({} if relativeurls is None else {"relativeurls": relativeurls})
    other = {"Forwarded": "proto=http;host=wrong.example.com", "X-Forwarded-Host": "wrong.example.com"}
    check(locations(make_api(http=http), headers=other), origin)


def test_a_prefix_is_cut_from_requests_and_put_before_locations(make_api: MakeApi) -> None:
    for prefix in ("/registry/", "/registry"):
        check(locations(make_api(http={"prefix": prefix}), "/registry"), "/registry")
    absolute = make_api(http={"prefix": "/registry/", "relativeurls": False})
    check(locations(absolute, "/registry", host="r.example.com"), "http://r.example.com/registry")
    hosted = make_api(http={"prefix": "/registry/", "host": "https://r.example.com"})
    check(locations(hosted, "/registry"), "https://r.example.com/registry")


def test_below_a_prefix_nothing_else_is_served_but_the_root_and_the_health_pages(make_api: MakeApi) -> None:
    api = make_api(http={"prefix": "/registry/"})
    assert api.get("/").status_code == 200
    for path in ("/v2/", "/v2/_catalog", "/registry", "/registryv2/", "/registry2/v2/"):
        assert api.get(path).status_code == 404, path
    for path in ("/registry/", "/registry/v2/", "/registry/v2", "/livez", "/readyz", "/healthz"):
        assert api.get(path).status_code == 200, path


ABSOLUTE = [
    ({}, "http://registry.internal:5000"),
    ({"X-Forwarded-Proto": "https"}, "https://registry.internal:5000"),
    ({"X-Forwarded-Host": "registry.example.com"}, "http://registry.example.com"),
    (PROXY, "https://registry.example.com"),
    (
        {"X-Forwarded-Proto": "https, http", "X-Forwarded-Host": "outer.example.com, inner"},
        "https://outer.example.com",
    ),
    ({**PROXY, "X-Forwarded-Port": "8443", "X-Forwarded-Prefix": "/sub"}, "https://registry.example.com"),
    ({"Forwarded": "for=1.2.3.4;proto=https;host=f.example.com"}, "https://f.example.com"),
    ({"Forwarded": 'Proto=https ; Host="f.example.com:8443", proto=http'}, "https://f.example.com:8443"),
    ({"Forwarded": "proto=https", **PROXY}, "https://registry.internal:5000"),
    ({"Forwarded": "for=1.2.3.4", **PROXY}, "http://registry.internal:5000"),
    ({"Forwarded": "for=1.2.3.4;proto=HTTPS"}, "https://registry.internal:5000"),
    ({"X-Forwarded-Proto": "Https"}, "https://registry.internal:5000"),
    ({"Forwarded": 'for="1.2.3.4:_abc";proto=https'}, "https://registry.internal:5000"),  # RFC 7239 section 6
    ({"X-Forwarded-Proto": "javascript"}, "http://registry.internal:5000"),
    ({"X-Forwarded-Proto": ""}, "http://registry.internal:5000"),
]


@pytest.mark.parametrize(("headers", "origin"), ABSOLUTE)
@pytest.mark.parametrize("peer", ["127.0.0.1", "10.1.2.3", "192.168.1.1", "172.16.0.9", "::1", "fd00::1"])
def test_forwarded_headers_of_a_private_peer_make_the_origin(
    make_api: MakeApi, headers: dict[str, str], origin: str, peer: str
) -> None:
    api = make_api(http={"relativeurls": False})
    answer = api.post(
        "/v2/a/blobs/uploads/", headers=headers, host="registry.internal", port=5000, remote_addr=peer
    )
    assert answer.headers["Location"].startswith(f"{origin}/v2/a/blobs/uploads/")


@pytest.mark.parametrize("headers", [headers for headers, _ in ABSOLUTE])
@pytest.mark.parametrize(
    ("trusted", "peer"),
    [
        (None, "8.8.8.8"),
        (None, "2001:db8::1"),
        ([], "127.0.0.1"),
        (["10.0.0.0/8"], "127.0.0.1"),
        (None, "not an address"),
    ],
)
def test_forwarded_headers_of_anybody_else_do_not_count(
    make_api: MakeApi, headers: dict[str, str], trusted: list[str] | None, peer: str
) -> None:
    cluster = {} if trusted is None else {"trustedproxies": trusted}
    api = make_api(http={"relativeurls": False}, cluster=cluster)
    answer = api.post(
        "/v2/a/blobs/uploads/", headers=headers, host="registry.internal", port=5000, remote_addr=peer
    )
    assert answer.headers["Location"].startswith("http://registry.internal:5000/v2/a/blobs/uploads/")


@pytest.mark.parametrize("host", ["evil.example.com/path?", 'x"y', "a b", "", "é", "a@b", "x" * 300])
def test_a_host_that_is_none_never_reaches_a_location(make_api: MakeApi, host: str) -> None:
    api = make_api(http={"relativeurls": False})
    for headers in ({"X-Forwarded-Host": host}, {"Forwarded": f'host="{host}"'}, {"Host": host}):
        answer = api.post("/v2/a/blobs/uploads/", headers=headers, host="registry.internal")
        assert answer.status_code == 202
        path = answer.headers["Location"].removeprefix("http://registry.internal")
        assert path.startswith("/v2/a/blobs/uploads/"), path
