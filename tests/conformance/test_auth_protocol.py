"""The protocol's own tests once more, by somebody who has to log in: with a password, and with tokens.

Owns no rule: the tests are those of test_protocol.py, run here over TLS, through HAProxy, against three nodes.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conformance import test_official_suite as official
from tests.conformance import test_protocol as protocol
from tests.conformance.secured import USER, Secured, secured_cluster
from tests.support.tls import trusting
from tests.support.tools import note

# The same functions, collected here a second time; what needs a node of its own stays there.
globals().update(
    {
        name: test
        for name, test in vars(protocol).items()
        if name.startswith("test_") and name != "test_a_sparse_data_set_is_pushed_where_it_is_allowed"
    }
)

suite = official.suite

_NAME = re.compile(r"/v2/(.+?)/(?:blobs|manifests|tags|referrers)/")


class Bearer(httpx.Auth):
    """What a client does that knows the token specification, and adds scopes to those it has.

    So a blob can be mounted without saying from where: its token covers the repositories of one test.
    """

    requires_response_body = True

    def __init__(self, login: httpx.BasicAuth, endpoint: str) -> None:
        self._login = login
        self._endpoint = endpoint
        self._tokens: dict[tuple[str, ...], str] = {}
        self._names: dict[str, list[str]] = {}  # of each test's repositories, by what their names begin with

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Response]:  # type: ignore[override]
        scopes = self._scopes(request.url)
        if scopes not in self._tokens:
            asked = [("service", "registry-cluster"), *(("scope", scope) for scope in scopes)]
            question = httpx.Request("GET", f"{self._endpoint}/token", params=asked)
            answer = yield next(self._login.auth_flow(question))  # type: ignore[misc]
            assert answer.status_code == 200, answer.text
            self._tokens[scopes] = answer.json()["token"]
        request.headers["Authorization"] = f"Bearer {self._tokens[scopes]}"
        yield request  # type: ignore[misc]

    def _scopes(self, url: httpx.URL) -> tuple[str, ...]:
        match = _NAME.match(url.path)
        if match is None:
            return ("registry:catalog:*",) if url.path == "/v2/_catalog" else ()
        names = self._names.setdefault("/".join(match[1].split("/")[:2]), [])
        names += [name for name in (match[1], *url.params.get_list("from")) if name not in names]
        return tuple(f"repository:{name}:pull,push,delete" for name in names)


@pytest.fixture(scope="module", params=["htpasswd", "token"])
def secured(request: pytest.FixtureRequest) -> Iterator[Secured]:
    with secured_cluster(request.param) as running:
        yield running


@pytest.fixture(scope="module")
def http(secured: Secured) -> Iterator[httpx.Client]:
    login, endpoint = httpx.BasicAuth(USER, secured.password), secured.cluster.endpoint
    with httpx.Client(base_url=endpoint, verify=trusting(secured.certs), timeout=30, trust_env=False) as client:
        asked = client.get("/v2/").headers["WWW-Authenticate"]
        client.auth = Bearer(login, endpoint) if asked.startswith("Bearer ") else login
        yield client


@pytest.fixture
def client(http: httpx.Client, algorithm: str) -> protocol.Client:
    """Requests to a repository that no other test has."""
    return protocol.Client(http, algorithm, f"conformance/{uuid.uuid4().hex}")


@pytest.mark.timeout(900)
def test_the_official_suite_finds_nothing_wrong(
    request: pytest.FixtureRequest, secured: Secured, suite: str, tmp_path: Path
) -> None:
    access = {
        "OCI_TLS": "enabled",
        "OCI_USERNAME": USER,
        "OCI_PASSWORD": secured.password,
        "SSL_CERT_FILE": secured.ca,
    }
    totals = official.run(suite, secured, "dev", False, str(tmp_path / "results"), access)
    note(f"official suite at dev, auth by {request.node.callspec.params['secured']}: {totals}")
    assert totals.tests > 700
    assert (totals.failed, totals.errors, totals.skipped) == (0, 0, 0), f"{totals}\n{totals.complaints}"
