"""Any request to any route: never a 5xx, never JSON in another form, and nothing changed by what was refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote_to_bytes

import falcon
import falcon.testing
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster import config
from cluster.app import Parts, create_app
from cluster.auth import passwords
from cluster.auth.build import build_authenticator, build_token_server, prepare_files
from cluster.identity import identify
from cluster.state.shared import SharedState
from tests.api.conftest import (
    CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    SECRET,
    UNKNOWN,
    Api,
    Json,
    Storage,
    descriptor,
    empty_storage,
    encode,
    index,
    sha,
)

IMAGE = {
    "schemaVersion": 2,
    "mediaType": MANIFEST,
    "config": descriptor(b"{}", CONFIG),
    "layers": [descriptor(b"layer")],
    "subject": {"mediaType": MANIFEST, "digest": UNKNOWN, "size": 1},
}
KNOWN = [sha(b"{}"), sha(b"layer"), sha(encode(IMAGE)), sha(encode(IMAGE), "sha512"), UNKNOWN]
ENDS_A_SESSION = {"DIGEST_INVALID", "SIZE_INVALID"}


@dataclass(frozen=True)
class Request:
    """A request as bytes. `<session>` stands for the path and query of an open upload, `<token>` for a token."""

    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    pieces: list[bytes]
    breaks: bool


# -- What requests are made of

ODD = [
    b"..",
    b".",
    b"",
    b"%00",
    b"%2F",
    b"%2e%2e",
    b"%FF",
    b"%",
    b"%zz",
    b"{name}",
    b"\xff",
    b"_layers",
    b"A",
    b"a" * 300,
]
ODD += [
    b"a--b",
    b"a__b",
    b"a_-b",
    b"\xc3\xa4",
    b"*",
    b"'\"",
    b"blobs",
    b"manifests",
    b"uploads",
    b"list",
    b"x" * 129,
]
digests = st.sampled_from(
    [value.encode() for value in [*KNOWN, *KNOWN, "sha256:zz", "md5:00", "sha256:" + "A" * 64]]
)
tags = st.sampled_from([b"v1", b"v1", b"v2", b"latest"])
odd = st.one_of(st.sampled_from(ODD), st.binary(max_size=12))
names = st.sampled_from([b"a"] * 12 + [b"a/b", b"new"] * 2 + ODD)
EVERY = ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"]
READ, MANIFESTS, SESSION = (
    ["GET", "HEAD"],
    ["GET", "HEAD", "PUT", "PUT", "DELETE"],
    ["GET", "PATCH", "PUT", "PUT", "DELETE"],
)

# A route and the methods that it has; a request takes one of them more often than not.
routes = st.one_of(
    st.tuples(
        st.sampled_from([b"/", b"/v2", b"/v2/", b"/v2/_catalog", b"/livez", b"/healthz", b"*", b"//v2/"]),
        st.just(READ),
    ),
    st.tuples(st.just(b"<session>"), st.just(SESSION)),
    st.tuples(st.just(b"/v2/a/blobs/%s" % KNOWN[1].encode()), st.just(READ)),
    st.tuples(st.just(b"/v2/a/manifests/v1"), st.just(MANIFESTS)),
    st.tuples(names.map(lambda name: b"/v2/%s/tags/list" % name), st.just(READ)),
    st.tuples(names.map(lambda name: b"/v2/%s/blobs/uploads/" % name), st.just(["POST"])),
    st.tuples(
        st.builds(lambda *parts: b"/v2/%s/blobs/%s" % parts, names, digests | odd), st.just([*READ, "DELETE"])
    ),
    st.tuples(st.builds(lambda *parts: b"/v2/%s/manifests/%s" % parts, names, digests | tags), st.just(MANIFESTS)),
    st.tuples(st.builds(lambda *parts: b"/v2/%s/manifests/%s" % parts, names, odd), st.just(MANIFESTS)),
    st.tuples(st.builds(lambda *parts: b"/v2/%s/referrers/%s" % parts, names, digests | odd), st.just(READ)),
    st.tuples(st.builds(lambda *parts: b"/v2/%s/blobs/uploads/%s" % parts, names, odd), st.just(SESSION)),
    st.tuples(st.lists(odd, max_size=6).map(lambda parts: b"/" + b"/".join(parts)), st.just(EVERY)),
)
values = st.one_of(digests, tags, odd, st.sampled_from([b"0", b"1", b"-1", b"9" * 20, b"sha512", b"a", b"a%2Fb"]))
keys = [b"n", b"last", b"mount", b"from", b"_state", b"tag", b"artifactType", b"digest-algorithm", b"x", b"digest"]
pairs = st.one_of(
    st.tuples(st.just(b"digest"), digests),
    st.tuples(st.just(b"tag"), tags),
    st.tuples(st.sampled_from(keys), values),
)
queries = st.one_of(
    st.just(b""),
    st.lists(pairs, max_size=3).map(lambda found: b"&".join(map(b"=".join, found))),
    st.binary(max_size=20),
)
ranges = st.one_of(
    st.sampled_from(
        [b"3-4", b"0-2", b"0-4", b"bytes=0-1", b"bytes=-1", b"bytes=1-", b"bytes=0-0,2-3", b"bytes=9-"]
    ),
    st.from_regex(rb"[0-9]{1,3}-[0-9]{1,20}|bytes=-?[0-9]{0,5}-?[0-9,]{0,5}", fullmatch=True),
)
etags = st.sampled_from([b"*", *(b'"%s"' % digest.encode() for digest in KNOWN)])
texts = st.binary(max_size=30).filter(lambda value: not set(value) & set(b"\r\n\0"))
media_types = st.sampled_from(
    [value.encode() for value in (MANIFEST, MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST)]
)
others = [b"host", b"forwarded", b"x-forwarded-host", b"x-forwarded-proto", b"x-request-id", b"cookie", b"accept"]
headers = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([b"range", b"content-range"]), ranges | texts),
        st.tuples(st.sampled_from([b"if-match", b"if-none-match", b"if-range"]), etags | texts),
        st.tuples(st.sampled_from([b"content-type", b"accept"]), media_types),
        st.tuples(st.sampled_from([*others, b"content-type"]), texts),
        st.just((b"expect", b"100-continue")),
    ),
    max_size=3,
    unique_by=lambda header: header[0],  # a server joins or refuses headers that are there twice
)
bodies = st.one_of(
    st.sampled_from(
        [[], [encode(IMAGE)], [encode(index())], [b"layer"], [b"{}"], [b"e", b"r"], [b"[" * 3000], [b"{"]]
    ),
    st.lists(st.binary(max_size=40), max_size=3),
    st.dictionaries(
        st.sampled_from([*IMAGE, "manifests"]), st.none() | st.integers() | st.text(max_size=5), max_size=2
    ).map(lambda changes: [encode(IMAGE | changes)]),
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    (target, methods), query = draw(routes), draw(queries)
    if query:
        target += (b"&" if target == b"<session>" else b"?") + query
    pieces = draw(bodies)
    fields = draw(headers)
    if pieces and draw(st.booleans()):
        fields.append((b"content-length", str(sum(map(len, pieces))).encode()))
    elif pieces:
        fields.append((b"transfer-encoding", b"chunked"))
    method = draw(st.sampled_from(methods if draw(st.integers(0, 4)) else EVERY))
    return Request(method, target, fields, pieces, bool(pieces) and draw(st.integers(0, 9)) == 0)


# -- The same, with a login, and what a token server is asked

LOGIN = b"anna:secret"
logins = st.one_of(
    st.sampled_from([LOGIN, LOGIN, b"anna:wrong", b":", b"a:", b":a", b"a", b"\xff:\0", b"a:" + b"b" * 800]).map(
        lambda login: b"Basic " + base64.b64encode(login)
    ),
    st.just(b"Bearer <token>"),
    st.sampled_from(
        [b"Basic", b"Basic !", b"Bearer", b"Bearer a.b.c", b"Bearer  <token>", b"Digest a", b"<token>"]
    ),
    st.builds(
        lambda header, claims: (
            b"Bearer " + b".".join(map(base64.urlsafe_b64encode, (header, claims, b"signature")))
        ),
        st.sampled_from([b'{"alg":"none"}', b'{"alg":"ES256","kid":"a"}', b'{"alg":"ES256","x5c":[""]}', b"[]"]),
        st.sampled_from([b"{}", b"null", b'{"exp":1e99}', b"\xff"]),
    ),
    st.binary(max_size=30).filter(lambda value: not set(value) & set(b"\r\n\0")),
)
scopes = st.sampled_from(
    [
        b"repository:a:pull,push",
        b"repository:a:*",
        b"registry:catalog:*",
        b"repository::",
        b"a",
        b"%00",
        b"%ff",
        b"",
    ]
)
wishes = st.lists(
    st.one_of(
        st.tuples(st.just(b"scope"), scopes),
        st.tuples(st.just(b"grant_type"), st.sampled_from([b"password", b"refresh_token", b"a"])),
        st.tuples(st.just(b"username"), st.sampled_from([b"anna", b"", b"%00", b"%ff"])),
        st.tuples(st.just(b"password"), st.sampled_from([b"secret", b"wrong", b"%00"])),
        st.tuples(st.just(b"refresh_token"), st.sampled_from([b"<token>", b"a.b.c", b"%ff"])),
        st.tuples(
            st.sampled_from([b"client_id", b"service", b"access_type", b"offline_token"]), odd | st.just(b"us")
        ),
    ),
    max_size=6,
).map(lambda found: b"&".join(map(b"=".join, found)))
FORM = (b"content-type", b"application/x-www-form-urlencoded")


@st.composite
def logged_in(draw: st.DrawFn) -> Request:
    if draw(st.booleans()):
        request = draw(requests())
    else:
        path, asked = draw(st.sampled_from([b"/token", b"/auth/token"])), draw(wishes)
        request = Request("GET", path + b"?" + asked, [], [], False)
        if draw(st.booleans()):
            request = Request("POST", path, [FORM, (b"content-length", b"%d" % len(asked))], [asked], False)
    if draw(st.integers(0, 4)):
        request = replace(request, headers=[*request.headers, (b"authorization", draw(logins))])
    return request


def filled_in(request: Request, token: bytes) -> Request:
    """The request with a right token where one stands."""
    fields = [(name, value.replace(b"<token>", token)) for name, value in request.headers]
    return replace(request, headers=fields)


# -- Sending them, and what must be true of the answers


def send(api: Api, request: Request, session: str) -> falcon.testing.ASGIResponseEventCollector:
    """The scope as gunicorn makes it: the raw path as it came, the query as bytes."""
    raw_path, _, query = request.target.replace(b"<session>", session.encode()).partition(b"?")
    scope: Json = {
        **falcon.testing.create_scope("/", method=request.method),
        "path": unquote_to_bytes(raw_path).decode("utf-8", "replace"),
        "raw_path": raw_path,
        "query_string": query,
        "headers": [(b"host", b"127.0.0.1"), *request.headers],
        "client": ("127.0.0.1", 40000),
        "server": ("127.0.0.1", 5000),
    }
    events = [{"type": "http.request", "body": piece, "more_body": True} for piece in request.pieces]
    events += [] if request.breaks else [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Json:
        return events.pop(0) if events else {"type": "http.disconnect"}

    answer = falcon.testing.ASGIResponseEventCollector()
    falcon.async_to_sync(api.application.edge, scope, receive, answer.collect)
    return answer


def check(request: Request, answer: falcon.testing.ASGIResponseEventCollector) -> str:
    """The code of a refusal, or nothing; fails where an answer is not one that the specification has."""
    assert answer.status is not None
    assert answer.status < 500, (request, answer.body_chunks)
    assert answer.more_body is False, "the answer has no end"
    fields = dict(answer.headers)
    body = b"".join(answer.body_chunks)
    if request.method == "HEAD" or answer.status in (204, 304):
        assert body == b""
    elif "content-length" in fields:
        assert int(fields["content-length"]) == len(body)
    if answer.status < 400:
        return ""
    assert fields["content-type"] == "application/json"
    if request.method == "HEAD":
        return "?"
    entries = json.loads(body)["errors"]
    assert entries
    assert all(entry["code"].isupper() and entry["message"] for entry in entries)
    return str(entries[0]["code"])


def outside_of_sessions(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if "/_uploads/" not in path}


def check_storage(request: Request, code: str, before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """What was refused, and what only asks, has changed nothing; two refusals may end or prolong a session."""
    index_of_subjects = {path for path in after if path.endswith("/_referrers/_seen")}
    if request.method in ("GET", "HEAD", "OPTIONS", "TRACE", "BREW"):
        after = {path: content for path, content in after.items() if path not in index_of_subjects - set(before)}
        assert after == before | {path: after[path] for path in index_of_subjects & set(before)}
    elif code in ENDS_A_SESSION:
        assert outside_of_sessions(after) == outside_of_sessions(before)
    elif code:
        assert after == before


def play(api: Api, script: Sequence[Request], asked: Api | None = None, token: bytes = b"") -> None:
    """Send it to a registry that holds an image, or to `asked`, another way into the same."""
    api.push_image("a", "v1", subject=IMAGE["subject"])
    session = api.append(api.start("a"), b"lay")
    api = asked or api
    for request in (filled_in(request, token) for request in script):
        before = api.snapshot()
        code = check(request, send(api, request, session))
        check_storage(request, code, before, api.snapshot())
    leftover = [path for path in api.snapshot() if path.startswith("_cluster/tmp")]
    assert leftover == [], "a refused request left a temporary file"


@pytest.mark.parametrize(("kind", "examples"), [("memory", 300), ("filesystem", 60)])
def test_no_request_breaks_the_registry(kind: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(requests(), min_size=1, max_size=6))
    def scripts(script: list[Request]) -> None:
        with empty_storage(kind) as storage:
            play(storage.api(), script)

    scripts()


def guarded(directory: Path) -> Callable[[Storage], Api]:
    """Makes clients of registries with a token server, whose tokens they ask for."""
    (directory / "htpasswd").write_text(f"anna:{passwords.make(b'secret', passwords.LOWEST_COST)}\n")
    (directory / "policy.yml").write_text("rules: [{users: [anna], repositories: [a], actions: ['*']}]")
    server = {"htpasswd": str(directory / "htpasswd"), "keys": str(directory / "keys")}
    sections = {
        "version": 0.1,
        "storage": {"inmemory": {}, "delete": {"enabled": True}},
        "auth": {"token": {"issuer": "us", "service": "us", "autoredirect": True}},
        "cluster": {"tokenserver": server, "policy": str(directory / "policy.yml")},
    }
    made, state = config.parse(yaml.safe_dump(sections), {}).config, SharedState(None)
    prepare_files(made)
    authenticator, tokens = build_authenticator(made, state), build_token_server(made, state)
    identity = identify(made, [SECRET])  # slow to make, on purpose

    def api(storage: Storage) -> Api:
        parts = Parts(
            storage.driver,
            storage.uploads,
            [SECRET],
            identity=identity,
            authenticator=authenticator,
            token_server=tokens,
        )
        return Api(create_app(made, parts), storage.driver, storage.snapshot)

    return api


def test_no_request_breaks_a_registry_that_asks_for_tokens_or_its_token_server(tmp_path: Path) -> None:
    make = guarded(tmp_path)
    login = {"Authorization": f"Basic {base64.b64encode(LOGIN).decode()}"}

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(logged_in(), min_size=1, max_size=6))
    def scripts(script: list[Request]) -> None:
        with empty_storage("memory") as storage:
            api = make(storage)
            token = api.get("/token?scope=repository:a:pull,push,delete", headers=login).json["token"]
            play(storage.api(), script, api, token.encode())

    scripts()
