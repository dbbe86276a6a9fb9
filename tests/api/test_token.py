"""`/token`, and a registry that asks for its tokens: the two forms of a request, their answers, their refusals."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from falcon.testing import Result

from cluster import config
from cluster.api.edge import Record
from cluster.app import Parts, create_app
from cluster.auth import keys, passwords
from cluster.auth.bearer import Terms, TokenAuthenticator
from cluster.auth.build import build_authenticator, build_token_server, prepare_files
from cluster.auth.keyring import WatchedRing
from cluster.errors import ConfigError
from cluster.state.shared import SharedState
from cluster.storage.memory import MemoryDriver, MemoryUploads
from tests.api.conftest import SECRET, Api, errors, extend, refusal, sha

PASSWORD = "s3cr\u00e9t: word"
POLICY = """
rules:
  - {users: [anna], repositories: [team/**], actions: [pull, push, delete]}
  - {users: [anna], catalog: true}
  - {groups: [anonymous], repositories: [public/*], actions: [pull]}
"""
Make = Callable[..., "Registry"]


class Registry(Api):
    """A registry with a token server, and what it has logged of requests."""

    log: list[Record]

    def token(self, *scopes: str, user: str = "anna", password: str = PASSWORD, **query: str) -> Result:
        """GET /token; an empty user sends no login."""
        headers = {"Authorization": basic(user, password)} if user else {}
        return self.get(
            "/token?" + urlencode([*(("scope", scope) for scope in scopes), *query.items()]), headers=headers
        )

    def bearer(self, *scopes: str, **more: str) -> dict[str, str]:
        """The header of whoever has a token with these scopes."""
        answer = self.token(*scopes, **more)
        assert answer.status_code == 200, answer.text
        return {"Authorization": f"Bearer {answer.json['token']}"}

    def oauth(self, **fields: str) -> Result:
        """POST /token with a form; an empty value leaves a field out."""
        form = {"client_id": "test", "service": "registry.example", **fields}
        return self.form(urlencode({name: value for name, value in form.items() if value}))

    def form(self, body: str, media_type: str = "application/x-www-form-urlencoded") -> Result:
        return self.post("/token", body=body.encode(), headers={"Content-Type": media_type})


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes registries with these settings in `auth.token` and `http`; one may believe that it is later."""

    def registry(policy: str | None = POLICY, http: Any = None, later: float = 0, **token: Any) -> Registry:
        (tmp_path / "htpasswd").write_text(f"anna:{passwords.make(PASSWORD.encode(), passwords.LOWEST_COST)}\n")
        cluster: dict[str, Any] = {
            "tokenserver": {"htpasswd": str(tmp_path / "htpasswd"), "keys": str(tmp_path / "keys")}
        }
        if policy is not None:
            (tmp_path / "policy.yml").write_text(policy)
            cluster["policy"] = str(tmp_path / "policy.yml")
        sections = {
            "version": 0.1,
            "storage": {"inmemory": {}, "delete": {"enabled": True}},
            "auth": {"token": {"issuer": "us", "service": "registry.example", "autoredirect": True, **token}},
            "http": http or {},
            "cluster": cluster,
        }
        settings = config.parse(yaml.safe_dump(sections), {}).config
        prepare_files(settings)
        state, driver, log = SharedState(None), MemoryDriver(), list[Record]()
        authenticator = build_authenticator(settings, state)
        if later:
            terms = Terms("us", "registry.example", "https://auth.example/token", keys.ALL)
            ring = WatchedRing(str(tmp_path / "keys"))
            authenticator = TokenAuthenticator(terms, [], ring, now=lambda: time.time() + later)
        parts = Parts(
            driver,
            MemoryUploads(driver),
            [SECRET],
            [log.append],
            authenticator=authenticator,
            token_server=build_token_server(settings, state),
        )
        made = Registry(create_app(settings, parts), driver, lambda: dict(driver.files))
        made.log = log
        return made

    return registry


@pytest.fixture
def registry(make: Make) -> Registry:
    return make()


def test_a_client_follows_the_challenge_and_pushes_and_pulls(registry: Registry) -> None:
    challenge = registry.get("/v2/")
    assert refusal(challenge) == (401, "UNAUTHORIZED")
    realm = 'Bearer realm="http://falconframework.org/auth/token",service="registry.example"'
    assert challenge.headers["WWW-Authenticate"] == realm
    asked = registry.post("/v2/team/app/blobs/uploads/")
    assert asked.headers["WWW-Authenticate"] == f'{realm},scope="repository:team/app:pull,push"'
    headers = registry.bearer("repository:team/app:pull,push", service="registry.example")
    pushed = registry.post(
        extend("/v2/team/app/blobs/uploads/", digest=sha(b"layer")), body=b"layer", headers=headers
    )
    assert pushed.status_code == 201
    assert registry.get(f"/v2/team/app/blobs/{sha(b'layer')}", headers=headers).content == b"layer"
    other = registry.get("/v2/team/other/tags/list", headers=headers)
    assert other.headers["WWW-Authenticate"].endswith('error="insufficient_scope"')
    assert registry.get("/v2/_catalog", headers=registry.bearer("registry:catalog:*")).status_code == 200


def test_the_answer_to_get_is_what_clients_read(registry: Registry) -> None:
    before = int(time.time())
    answer = registry.token("repository:team/app:pull", service="registry.example")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Type"] == "application/json"
    assert set(answer.json) == {"token", "access_token", "expires_in", "issued_at"}
    assert answer.json["token"] == answer.json["access_token"]
    assert answer.json["expires_in"] == 300
    issued = time.strptime(answer.json["issued_at"], "%Y-%m-%dT%H:%M:%SZ")
    assert abs(time.mktime(issued) - time.timezone - before) < 60


@pytest.mark.parametrize("path", ["/token", "/auth/token"])
def test_the_server_is_at_token_and_where_the_challenge_points(make: Make, path: str) -> None:
    assert make().get(path, headers={"Authorization": basic("anna", PASSWORD)}).status_code == 200


def test_the_realm_may_be_a_url_of_ours(make: Make) -> None:
    registry = make(autoredirect=False, realm="https://registry.example/login/v2")
    assert 'realm="https://registry.example/login/v2"' in registry.get("/v2/").headers["WWW-Authenticate"]
    assert registry.get("/login/v2", headers={"Authorization": basic("anna", PASSWORD)}).status_code == 200


def test_the_server_is_below_the_prefix(make: Make) -> None:
    registry = make(http={"prefix": "/registry"})
    challenge = registry.get("/registry/v2/").headers["WWW-Authenticate"]
    assert 'realm="http://falconframework.org/registry/auth/token"' in challenge
    for path in ("/registry/token", "/registry/auth/token"):
        assert registry.get(path, headers={"Authorization": basic("anna", PASSWORD)}).status_code == 200


def test_without_a_token_server_there_is_nothing_at_token(api: Api) -> None:
    assert refusal(api.get("/token")) == (404, "UNSUPPORTED")


def test_scopes_come_as_repeated_parameters_or_as_one(registry: Registry) -> None:
    for scopes in (
        ["repository:team/a:pull", "repository:team/b:pull,push"],
        ["repository:team/a:pull repository:team/b:pull,push"],
    ):
        headers = registry.bearer(*scopes)
        assert registry.get("/v2/team/a/tags/list", headers=headers).status_code == 404
        assert registry.post("/v2/team/b/blobs/uploads/", headers=headers).status_code == 202
        assert registry.post("/v2/team/a/blobs/uploads/", headers=headers).status_code == 401


def test_whoever_has_no_account_may_pull_what_is_public(registry: Registry) -> None:
    headers = registry.bearer("repository:public/x:pull,push", "repository:team/x:pull", user="")
    empty = registry.get("/token?scope=repository:public/x:pull", headers={"Authorization": basic("", "")})
    assert empty.status_code == 200, "how podman and skopeo say that there was no login"
    assert registry.get("/v2/public/x/tags/list", headers=headers).status_code == 404
    assert registry.post("/v2/public/x/blobs/uploads/", headers=headers).status_code == 401
    assert registry.get("/v2/team/x/tags/list", headers=headers).status_code == 401


def test_where_nothing_is_public_a_login_is_asked_for(make: Make) -> None:
    answer = make(policy=None).token("repository:a:pull", user="")
    assert refusal(answer) == (401, "UNAUTHORIZED")
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="registry.example"'


@pytest.mark.parametrize(
    "header",
    [
        basic("anna", "wrong"),
        basic("anna", ""),
        basic("", PASSWORD),
        basic("nobody", PASSWORD),
        basic("anna", PASSWORD + "\0"),
        basic("anna", "x" * 2000),
        "Basic",
        "Basic !",
        "Basic YQ",
        "Basic " + base64.b64encode(b"anna").decode(),
        "Basic " + base64.b64encode(b"\xff:\xff").decode(),
        "Bearer abc",
        "Negotiate abc",
    ],
)
def test_a_wrong_login_is_refused_even_for_what_is_public(registry: Registry, header: str) -> None:
    answer = registry.get("/token?scope=repository:public/x:pull", headers={"Authorization": header})
    assert refusal(answer) == (401, "UNAUTHORIZED")
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="registry.example"'


@pytest.mark.parametrize(
    "query",
    [
        "scope=nonsense",
        "scope=repository:a:pull%0d%0aX-Evil:1",
        "service=other.example",
        "service=a&service=b",
        "&".join(f"scope=repository:a{number}:pull" for number in range(33)),
        "&".join(f"a{number}=1" for number in range(65)),
        "scope=%ff",
    ],
)
def test_a_malformed_request_is_told_so(registry: Registry, query: str) -> None:
    answer = registry.get(f"/token?{query}", headers={"Authorization": basic("anna", PASSWORD)})
    assert answer.status_code == 400
    assert errors(answer)[0]["detail"]
    assert "X-Evil" not in answer.headers


def test_oauth_by_password_and_then_by_refresh_token(registry: Registry) -> None:
    login = {"grant_type": "password", "username": "anna", "password": PASSWORD}
    first = registry.oauth(**login, access_type="offline", scope="repository:team/app:pull,push repository:x:pull")
    assert first.status_code == 200, first.text
    assert first.headers["Cache-Control"] == "no-store"
    assert first.json["scope"] == "repository:team/app:pull,push"
    assert set(first.json) == {"access_token", "token_type", "scope", "expires_in", "issued_at", "refresh_token"}
    second = registry.oauth(
        grant_type="refresh_token", refresh_token=first.json["refresh_token"], scope="repository:team/app:pull"
    )
    assert second.json["scope"] == "repository:team/app:pull"
    assert "refresh_token" not in second.json
    headers = {"Authorization": f"Bearer {second.json['access_token']}"}
    assert registry.get("/v2/team/app/tags/list", headers=headers).status_code == 404
    assert "refresh_token" not in registry.oauth(**login).json


@pytest.mark.parametrize("name", ["offline_token", "access_type"])
def test_get_gives_a_refresh_token_to_whoever_asks_for_one(registry: Registry, name: str) -> None:
    value = {"offline_token": "true", "access_type": "offline"}[name]
    assert registry.token(**{name: value}).json["refresh_token"]
    assert "refresh_token" not in registry.token(**{name: "false"}).json


@pytest.mark.parametrize(
    "fields",
    [
        {"grant_type": "password", "username": "anna", "password": "wrong"},
        {"grant_type": "password", "username": "anna", "password": "x" * 5000},
        {"grant_type": "password", "username": "nobody", "password": PASSWORD},
        {"grant_type": "refresh_token", "refresh_token": "a.b.c"},
        {"grant_type": "refresh_token", "refresh_token": "\u00e9"},
    ],
)
def test_a_wrong_grant_is_refused(registry: Registry, fields: dict[str, str]) -> None:
    answer = registry.oauth(**fields)
    assert refusal(answer) == (401, "UNAUTHORIZED")
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="registry.example"'


@pytest.mark.parametrize(
    "body",
    [
        "",
        "grant_type=password",
        "client_id=a",
        "client_id=a&grant_type=password&username=anna",
        "client_id=a&grant_type=refresh_token",
        "client_id=a&grant_type=authorization_code&code=1",
        "client_id=a&grant_type=password&username=a&username=b&password=c",
        "grant_type=password&username=anna&password=x",
        "client_id=a&scope=" + "x" * 40_000,
        "client_id=%ff",
        "\0",
    ],
)
def test_a_malformed_form_is_told_so(registry: Registry, body: str) -> None:
    answer = registry.form(body)
    assert answer.status_code == 400
    assert errors(answer)[0]["detail"]


def test_a_body_is_bounded(registry: Registry) -> None:
    answer = registry.oauth(grant_type="password", username="anna", password=PASSWORD, padding="x" * 40_000)
    assert answer.status_code == 400
    assert errors(answer)[0]["detail"] == "the body has more than 32768 bytes"


def test_a_body_of_another_type_is_told_so(registry: Registry) -> None:
    answer = registry.form(json.dumps({"grant_type": "password"}), "application/json")
    assert answer.status_code == 400


def test_other_methods_are_not_allowed(registry: Registry) -> None:
    assert refusal(registry.put("/token")) == (405, "UNSUPPORTED")


def test_a_mount_needs_a_token_for_its_source_and_gets_the_challenge_for_it(registry: Registry) -> None:
    both = ("repository:team/app:pull,push", "repository:team/base:pull,push")
    pushed = registry.post(
        extend("/v2/team/base/blobs/uploads/", digest=sha(b"layer")), body=b"layer", headers=registry.bearer(*both)
    )
    assert pushed.status_code == 201
    url = extend("/v2/team/app/blobs/uploads/", mount=sha(b"layer"), **{"from": "team/base"})
    answer = registry.post(url, headers=registry.bearer(both[0]))
    assert answer.status_code == 401
    assert 'scope="repository:team/app:pull,push repository:team/base:pull"' in answer.headers["WWW-Authenticate"]
    assert registry.post(url, headers=registry.bearer(*both)).status_code == 201


def test_a_token_that_expires_during_an_upload_still_ends_it_and_opens_nothing_else(make: Make) -> None:
    registry = make(later=600)
    headers = registry.bearer("repository:team/app:pull,push,delete")
    now = make().post("/v2/team/app/blobs/uploads/", headers=headers).headers["Location"]
    expired = registry.post("/v2/team/app/blobs/uploads/", headers=headers)
    assert 'error="invalid_token"' in expired.headers["WWW-Authenticate"]
    for url in (now.replace("_state=", "_state=x"), now.partition("?")[0], now.replace("team/app", "team/other")):
        assert registry.patch(url, body=b"la", headers=headers).status_code == 401
    # The session is on another registry's storage: what matters is that its absence is found out, by the resource.
    for method in (registry.patch, registry.put, registry.get, registry.delete):
        answer = method(extend(now, digest=sha(b"layer")), headers=headers)
        assert refusal(answer) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_the_log_is_told_who_got_a_token(registry: Registry) -> None:
    registry.token("repository:team/app:pull")
    registry.oauth(grant_type="password", username="anna", password=PASSWORD)
    registry.token("repository:public/x:pull", user="")
    assert [record.scope.get("registry.user") for record in registry.log] == ["anna", "anna", ""]


def test_a_key_directory_that_cannot_be_used_stops_the_start(make: Make, tmp_path: Path) -> None:
    make()
    (key,) = (tmp_path / "keys").iterdir()
    os.chmod(key, 0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        make()
