"""What each request wants, and what becomes of it: every route and method, refusals, mounts.

Who is believed is tested in tests/unit/auth; here a directory of callers stands in, and real accounts where the
answers of the two together matter.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path

import falcon.testing
import pytest
from falcon.testing import Result

from cluster.api import routes
from cluster.auth import keys, passwords
from cluster.auth.access import Access, Anyone, Caller, Question, to_detail
from cluster.auth.bearer import Terms, TokenAuthenticator
from cluster.auth.htpasswd import Htpasswd, HtpasswdAuthenticator
from cluster.errors import Denied, TooManyRequests, Unauthorized, Unavailable
from cluster.oci.upload import UploadState, sign
from cluster.state.shared import SharedState
from tests.api.conftest import SECRET, UNKNOWN, Api, MakeApi, extend, refusal, sha

UUID = "0b1c2d3e-1111-4222-8333-444455556666"
CONTENT = b"shared by two repositories"
BAD_NAMES = ["UPPER", "a//b", "-a", "a b", "%2e%2e/%2e%2e/etc", "a%22b", "a%0d%0aX: y", "a%ff", "ü", "a" * 300]

# Distribution's table (a request without a line needs a valid identity and no more).
PUSHING = "repository:team/app:pull repository:team/app:push"
WANTED: list[tuple[str, str, str | None]] = [
    ("GET", "/v2/", ""),
    ("HEAD", "/v2/", ""),
    ("GET", "/v2", ""),
    ("OPTIONS", "/v2/", ""),
    ("POST", "/v2/", ""),
    ("GET", "/v2/_catalog", "registry:catalog:*"),
    ("HEAD", "/v2/_catalog?n=1", "registry:catalog:*"),
    ("OPTIONS", "/v2/_catalog", ""),
    ("GET", "/v2/team/app/tags/list", "repository:team/app:pull"),
    ("HEAD", "/v2/team/app/tags/list?n=1", "repository:team/app:pull"),
    ("GET", "/v2/team/app/manifests/latest", "repository:team/app:pull"),
    ("HEAD", f"/v2/team/app/manifests/{UNKNOWN}", "repository:team/app:pull"),
    ("PUT", "/v2/team/app/manifests/latest", PUSHING),
    ("DELETE", "/v2/team/app/manifests/latest", "repository:team/app:delete"),
    ("OPTIONS", "/v2/team/app/manifests/latest", ""),
    ("POST", "/v2/team/app/manifests/latest", PUSHING),
    ("GET", f"/v2/team/app/blobs/{UNKNOWN}", "repository:team/app:pull"),
    ("HEAD", f"/v2/team/app/blobs/{UNKNOWN}", "repository:team/app:pull"),
    ("DELETE", f"/v2/team/app/blobs/{UNKNOWN}", "repository:team/app:delete"),
    ("GET", f"/v2/team/app/referrers/{UNKNOWN}", "repository:team/app:pull"),
    ("HEAD", f"/v2/team/app/referrers/{UNKNOWN}?artifactType=a/b", "repository:team/app:pull"),
    ("POST", "/v2/team/app/blobs/uploads/", PUSHING),
    ("POST", f"/v2/team/app/blobs/uploads?digest={UNKNOWN}", PUSHING),
    ("GET", "/v2/team/app/blobs/uploads/", "repository:team/app:pull"),
    ("GET", f"/v2/team/app/blobs/uploads/{UUID}", "repository:team/app:pull"),
    ("HEAD", f"/v2/team/app/blobs/uploads/{UUID}", "repository:team/app:pull"),
    ("PATCH", f"/v2/team/app/blobs/uploads/{UUID}", PUSHING),
    ("PUT", f"/v2/team/app/blobs/uploads/{UUID}?digest={UNKNOWN}", PUSHING),
    ("DELETE", f"/v2/team/app/blobs/uploads/{UUID}", "repository:team/app:delete"),
    # Nobody is asked who they are:
    ("GET", "/", None),
    ("GET", "/livez", None),
    ("GET", "/readyz", None),
    ("GET", "/healthz", None),
    ("GET", "/v2/team/app", None),
    ("GET", "/v1/_ping", None),
    ("GET", "/favicon.ico", None),
]


class Directory:
    """An authenticator that knows callers by the text of their header, and remembers what it was asked."""

    def __init__(self, **callers: Caller) -> None:
        self._callers = callers
        self.asked: list[Question] = []
        self.error: Exception | None = None

    async def authenticate(self, question: Question) -> Caller:
        self.asked.append(question)
        if self.error is not None:
            raise self.error
        caller = self._callers.get(question.authorization or "")
        if caller is None:
            challenge = {"WWW-Authenticate": 'Basic realm="test"'}
            raise Unauthorized(to_detail(question.wanted), headers=challenge)
        if not all(caller.may(access) for access in question.wanted):
            raise Denied(to_detail(question.wanted))
        return caller

    async def refresh(self) -> None:
        """Nothing changes."""


class Limited:
    """A caller who may do a few things."""

    def __init__(self, name: str, *grants: str) -> None:
        self.name = name
        self._grants = set(grants)

    def may(self, access: Access) -> bool:
        return ":".join(access) in self._grants


def make(make_api: MakeApi, directory: Directory, who: str | None = None, **sections: object) -> Api:
    """A client that sends this header with each request."""
    api = make_api(authenticator=directory, **sections)
    if who is not None:
        api._default_headers = {"Authorization": who}
    return api


@pytest.fixture
def directory() -> Directory:
    return Directory(alice=Anyone("alice"))


@pytest.mark.parametrize(("method", "url", "wanted"), WANTED)
def test_what_each_request_needs(
    make_api: MakeApi, directory: Directory, method: str, url: str, wanted: str | None
) -> None:
    api = make(make_api, directory)
    path, _, query = url.partition("?")
    answer = api.simulate_request(method, path, query_string=query)
    if wanted is None:
        assert not directory.asked
        assert answer.status_code in (200, 404)
        return
    (question,) = directory.asked
    assert [":".join(access) for access in question.wanted] == wanted.split()
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, 'Basic realm="test"')
    assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    if method == "HEAD":
        assert not answer.content
        return
    (error,) = answer.json["errors"]
    expected = [
        {"Type": kind, "Class": "", "Name": name, "Action": action}
        for kind, name, action in (text.split(":") for text in wanted.split())
    ]
    assert error["code"] == "UNAUTHORIZED"
    assert error.get("detail", []) == expected


def test_the_table_has_every_route_and_every_method_that_it_takes(make_api: MakeApi, directory: Directory) -> None:
    """What is added to the routes is asked about here."""
    api = make(make_api, directory, "alice")
    told = {(method, url.partition("?")[0]) for method, url, _ in WANTED}
    for route in (each for each in vars(routes).values() if isinstance(each, routes.Route)):
        if not route.template.startswith("/v2/"):
            continue
        values = {"name": "team/app", "reference": "latest", "digest": UNKNOWN, "uuid": UUID}
        path = route.template.format(**values)
        for method in api.simulate_options(path).headers["Allow"].split(", "):
            same = {path, path.rstrip("/"), path.replace("latest", UNKNOWN)}
            assert any((method, each) in told for each in same), f"{method} {path}"


def test_without_authentication_nobody_is_anybody(make_api: MakeApi) -> None:
    answer = make_api().get("/v2/", headers={"Authorization": "Basic !!!"})
    assert answer.status_code == 200


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("rest", ["tags/list", "manifests/latest", "blobs/uploads/", f"blobs/{UNKNOWN}"])
def test_a_bad_name_is_told_to_those_alone_who_have_said_who_they_are(
    make_api: MakeApi, directory: Directory, name: str, rest: str
) -> None:
    method = "POST" if rest == "blobs/uploads/" else "GET"
    api = make(make_api, directory)
    path = f"/v2/{name}/{rest}"
    anonymous = api.simulate_request(method, path)
    assert refusal(anonymous) == (401, "UNAUTHORIZED")
    known = api.simulate_request(method, path, headers={"Authorization": "alice"})
    assert refusal(known) == (400, "NAME_INVALID")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Denied([]), 403, "DENIED"),
        (TooManyRequests(headers={"Retry-After": "60"}), 429, "TOOMANYREQUESTS"),
        (Unavailable(headers={"Retry-After": "2"}), 503, "UNAVAILABLE"),
        (ZeroDivisionError(), 500, "UNKNOWN"),
    ],
)
def test_a_refusal_has_the_form_of_the_specification(
    make_api: MakeApi, directory: Directory, error: Exception, status: int, code: str
) -> None:
    directory.error = error
    api = make(make_api, directory)
    answer = api.get("/v2/team/app/tags/list")
    assert refusal(answer) == (status, code)
    assert "Traceback" not in answer.text
    assert ("Retry-After" in answer.headers) == (status in (429, 503))


def test_a_refused_request_has_changed_nothing(make_api: MakeApi, directory: Directory) -> None:
    api = make(make_api, directory, "alice")
    api.push_image("team/app", "v1")
    location = api.start("team/app")
    before = api.snapshot()
    digest = sha(b"layer")
    for method, url in [
        ("DELETE", "/v2/team/app/manifests/v1"),
        ("DELETE", f"/v2/team/app/blobs/{digest}"),
        ("DELETE", location),
        ("PATCH", location),
        ("PUT", extend(location, digest=sha(b"x"))),
        ("POST", extend("/v2/team/app/blobs/uploads/", digest=sha(b"x"))),
        ("POST", extend("/v2/other/blobs/uploads/", mount=digest, **{"from": "team/app"})),
        ("PUT", "/v2/team/app/manifests/v2"),
    ]:
        path, _, query = url.partition("?")
        answer = api.simulate_request(
            method, path, query_string=query, body=b"x", headers={"Authorization": "mallory"}
        )
        assert refusal(answer) == (401, "UNAUTHORIZED")
    assert api.snapshot() == before


def test_a_refusal_does_not_wait_for_the_body(make_api: MakeApi, directory: Directory) -> None:
    api = make(make_api, directory)
    answer = api.stream("PATCH", f"/v2/team/app/blobs/uploads/{UUID}", [], breaks=True)
    assert answer.status_code == 401


# When an upload began


def state(**changes: object) -> str:
    fields = {"name": "team/app", "uuid": UUID, "offset": 0, "started_at": "2026-11-21T04:00:00.123456789Z"}
    return sign(UploadState(**(fields | changes)), SECRET)  # type: ignore[arg-type]


BEGAN = datetime(2026, 11, 21, 4, 0, 0, 123456, UTC).timestamp()


@pytest.mark.parametrize("method", ["PATCH", "PUT", "GET", "DELETE"])
def test_a_genuine_state_tells_when_an_upload_began(make_api: MakeApi, directory: Directory, method: str) -> None:
    api = make(make_api, directory)
    path = f"/v2/team/app/blobs/uploads/{UUID}"
    api.simulate_request(method, path, params={"_state": state()})
    assert directory.asked[0].began == pytest.approx(BEGAN)


@pytest.mark.parametrize(
    ("path", "token"),
    [
        (f"/v2/team/app/blobs/uploads/{UUID}", None),
        (f"/v2/team/app/blobs/uploads/{UUID}", "forged"),
        (f"/v2/team/app/blobs/uploads/{UUID}", state(name="other")),
        (f"/v2/team/app/blobs/uploads/{UUID}", state(uuid=UUID.replace("0b", "ff"))),
        (f"/v2/team/app/blobs/uploads/{UUID}", state(started_at="")),
        (f"/v2/team/app/blobs/uploads/{UUID}", state(started_at="yesterday")),
        ("/v2/team/app/blobs/uploads/latest", state()),
        (f"/v2/other/blobs/uploads/{UUID}", state()),
        ("/v2/team/app/manifests/latest", state()),
        ("/v2/team/app/blobs/uploads/", state()),
        ("/v2/TEAM/blobs/uploads/x", state()),
    ],
)
def test_nothing_else_does(make_api: MakeApi, directory: Directory, path: str, token: str | None) -> None:
    api = make(make_api, directory)
    answer = api.simulate_patch(path, params={"_state": token} if token else {})
    assert refusal(answer) == (401, "UNAUTHORIZED")
    assert directory.asked[0].began is None


# Where a request comes from


@pytest.mark.parametrize(
    ("peer", "headers", "source"),
    [
        ("192.0.2.7", {}, "192.0.2.7"),
        ("192.0.2.7", {"X-Forwarded-For": "198.51.100.1"}, "192.0.2.7"),
        ("10.0.0.1", {}, "10.0.0.1"),
        ("10.0.0.1", {"X-Forwarded-For": "198.51.100.1"}, "198.51.100.1"),
        ("10.0.0.1", {"X-Forwarded-For": "203.0.113.9, 198.51.100.1"}, "198.51.100.1"),
        ("10.0.0.1", {"X-Forwarded-For": "198.51.100.1, 10.0.0.2, 127.0.0.1"}, "198.51.100.1"),
        ("10.0.0.1", {"X-Forwarded-For": "198.51.100.1, what?"}, "10.0.0.1"),
        ("10.0.0.1", {"X-Forwarded-For": "10.0.0.3"}, "10.0.0.3"),
        ("10.0.0.1", {"Forwarded": 'for="[2001:db8::1]:4711";proto=https, for=10.0.0.9'}, "2001:db8::1"),
        # One of them is the client's own word: a new address for each guess, or somebody else's.
        ("10.0.0.1", {"Forwarded": "for=198.51.100.1", "X-Forwarded-For": "203.0.113.9"}, "10.0.0.1"),
        ("10.0.0.1", {"Forwarded": "for=198.51.100.1", "X-Forwarded-For": "a, 198.51.100.1"}, "198.51.100.1"),
        ("10.0.0.1", {"Forwarded": "proto=https"}, "10.0.0.1"),
        ("::ffff:10.0.0.1", {"X-Forwarded-For": "198.51.100.1:55"}, "198.51.100.1"),
        ("fd00::1", {"X-Forwarded-For": "2001:db8::1"}, "2001:db8::1"),
    ],
)
def test_the_clients_address_is_the_last_one_that_is_no_trusted_proxys(
    make_api: MakeApi, directory: Directory, peer: str, headers: dict[str, str], source: str
) -> None:
    proxies = ["10.0.0.0/8", "127.0.0.0/8", "fd00::/8"]
    make(make_api, directory, cluster={"trustedproxies": proxies}).get("/v2/", headers=headers, remote_addr=peer)
    assert directory.asked[0].source() == source


@pytest.mark.parametrize("peer", ["10.0.0.1", "127.0.0.1", "192.168.1.1", "::1"])
def test_no_peer_may_tell_another_address_where_nobody_wrote_who_is_a_proxy(
    make_api: MakeApi, directory: Directory, peer: str
) -> None:
    """Private ranges are the default, and there every client may be: it would try passwords as anybody."""
    for headers in ({"X-Forwarded-For": "198.51.100.1"}, {"Forwarded": "for=198.51.100.1"}):
        make(make_api, directory).get("/v2/", headers=headers, remote_addr=peer)
    assert {question.source() for question in directory.asked} == {peer}


# Mounts


def mount(api: Api, **query: str) -> Result:
    return api.post(extend("/v2/to/blobs/uploads/", **query))


@pytest.fixture
def shared(make_api: MakeApi) -> Callable[..., tuple[Api, Directory]]:
    """A blob in `from`, and a caller who may push to `to` and has these grants."""

    def shared(*grants: str) -> tuple[Api, Directory]:
        make_api().push("from", CONTENT)
        pushing = ("repository:to:pull", "repository:to:push")
        directory = Directory(bob=Limited("bob", *pushing, *grants))
        return make(make_api, directory, "bob"), directory

    return shared


@pytest.mark.parametrize("source", ["from", None])
def test_a_mount_takes_what_the_caller_may_pull(
    shared: Callable[..., tuple[Api, Directory]], source: str | None
) -> None:
    api, directory = shared("repository:from:pull")
    answer = mount(api, mount=sha(CONTENT), **({"from": source} if source else {}))
    assert answer.status_code == 201
    wanted = Access("repository", "from", "pull") if source else None
    assert directory.asked[0].mounts == wanted


@pytest.mark.parametrize("source", ["from", "nowhere", None])
@pytest.mark.parametrize("digest", [sha(CONTENT), UNKNOWN])
def test_what_the_caller_may_not_pull_is_as_if_it_were_not_there(
    shared: Callable[..., tuple[Api, Directory]], source: str | None, digest: str
) -> None:
    api, _ = shared("repository:from:push", "repository:other:pull")
    answer = mount(api, mount=digest, **({"from": source} if source else {}))
    assert (answer.status_code, answer.headers["Range"]) == (202, "0-0")
    assert "Docker-Content-Digest" not in answer.headers
    headers = set(answer.headers) - {"x-request-id"}
    assert headers == set(api.post("/v2/to/blobs/uploads/").headers) - {"x-request-id"}


@pytest.mark.parametrize("query", [{"from": ""}, {"from": "../x"}, {"from": "UPPER"}, {"from": 'a"b'}, {}])
def test_a_source_that_cannot_be_one_is_not_asked_for(
    shared: Callable[..., tuple[Api, Directory]], query: dict[str, str]
) -> None:
    api, directory = shared()
    assert mount(api, mount=UNKNOWN, **query).status_code == 202
    assert directory.asked[0].mounts is None


def test_only_a_post_mounts(make_api: MakeApi, directory: Directory) -> None:
    api = make(make_api, directory, "alice")
    api.get("/v2/to/blobs/uploads/?from=from&mount=" + UNKNOWN)
    api.get("/v2/to/manifests/latest?from=from")
    assert [question.mounts for question in directory.asked] == [None, None]


class Watching:
    """A caller who notes what they are asked about."""

    name = "carol"

    def __init__(self, allowed: Collection[str]) -> None:
        self._allowed = allowed
        self.asked: list[str] = []

    def may(self, access: Access) -> bool:
        self.asked.append(access.name)
        return access.name in self._allowed


@pytest.mark.parametrize("digest", [sha(CONTENT), UNKNOWN])
def test_an_anonymous_mount_does_the_same_work_whether_a_hidden_repository_has_the_blob_or_not(
    make_api: MakeApi, digest: str
) -> None:
    """Otherwise the time that it takes would tell who has it."""
    anyone = make_api()
    anyone.push("hidden", CONTENT)
    anyone.push("open", b"something else")
    carol = Watching({"to", "open"})
    answer = mount(make(make_api, Directory(carol=carol), "carol"), mount=digest)
    assert answer.status_code == 202
    assert carol.asked == ["to", "to", "hidden", "open"]


# Real accounts


@pytest.fixture
def accounts(tmp_path: Path) -> HtpasswdAuthenticator:
    path = tmp_path / "htpasswd"
    hashed = passwords.make("wonder:länd".encode(), passwords.LOWEST_COST)
    path.write_text(f"alice:{hashed}\n", encoding="utf-8")
    return HtpasswdAuthenticator("our realm", Htpasswd(str(path), SharedState(None)))


def basic(credential: bytes) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(credential).decode()}


def test_a_user_logs_in_and_pushes(make_api: MakeApi, accounts: HtpasswdAuthenticator) -> None:
    api = make_api(authenticator=accounts)
    challenged = api.get("/v2/")
    assert challenged.headers["WWW-Authenticate"] == 'Basic realm="our realm"'
    assert json.loads(challenged.content) == {
        "errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]
    }
    api._default_headers = basic("alice:wonder:länd".encode())
    assert api.get("/v2/").content == b"{}"
    api.push_image("team/app", "v1")
    assert api.get("/v2/_catalog").json == {"repositories": ["team/app"]}


@pytest.mark.parametrize(
    "header",
    [
        basic(b"alice:no"),
        basic(b"alice:" + b"x" * 500),
        basic(b"alice:\0"),
        basic(b"\0:\0"),
        basic(b""),
        {"Authorization": "Basic \xff\xfe"},
        {"Authorization": "Basic ===="},
        {"Authorization": "Negotiate YII="},
        {"Authorization": "x" * 8000},
        {"Authorization": ""},
    ],
)
def test_no_header_is_more_than_a_401(
    make_api: MakeApi, accounts: HtpasswdAuthenticator, header: dict[str, str]
) -> None:
    answer = make_api(authenticator=accounts).get("/v2/team/app/tags/list", headers=header)
    assert refusal(answer) == (401, "UNAUTHORIZED")


def test_the_client_under_test_sends_its_header(make_api: MakeApi, directory: Directory) -> None:
    """The rest of this file means nothing otherwise."""
    assert isinstance(make(make_api, directory, "alice"), falcon.testing.TestClient)
    assert make(make_api, directory, "alice").get("/v2/").status_code == 200


@pytest.mark.parametrize(
    ("headers", "peer", "realm"),
    [
        ({}, "10.0.0.1", "https://registry.example/auth/token"),
        ({"X-Forwarded-Proto": "http"}, "10.0.0.1", "http://registry.example/auth/token"),
        ({"X-Forwarded-Proto": "https"}, "10.0.0.1", "https://registry.example/auth/token"),
        ({"X-Forwarded-Proto": "gopher"}, "10.0.0.1", "https://registry.example/auth/token"),
        ({"X-Forwarded-Proto": "http"}, "8.8.8.8", "https://registry.example/auth/token"),
    ],
)
def test_a_realm_that_follows_the_host_is_one_of_https_if_no_proxy_says_otherwise(
    make_api: MakeApi, headers: dict[str, str], peer: str, realm: str
) -> None:
    """As Distribution has it: behind a proxy that ends TLS, tokens are not asked for in the clear."""
    terms = Terms("issuer", "service", "/auth/token", keys.ALL, follows_host=True)
    api = make_api(authenticator=TokenAuthenticator(terms, []))
    answer = api.get("/v2/", headers=headers, host="registry.example", remote_addr=peer)
    assert answer.headers["WWW-Authenticate"] == f'Bearer realm="{realm}",service="service"'
