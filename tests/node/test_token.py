"""Tokens between real nodes: what one signs the others believe, also while keys change and uploads last.

Two nodes share storage, accounts, policy and signing keys, as the nodes of a cluster do.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cluster.auth import keyring, keys, passwords
from cluster.auth.tokens import LEEWAY, sign_token
from tests.node.nodes import brief, no_trouble
from tests.node.raw import Wire, digest_of, head
from tests.node.test_commands import run
from tests.support.process import Config, Distribution3, Node, eventually, free_port
from tests.support.tokens import ISSUER, SERVICE, claims

PASSWORD = "a password that no log may show"
POLICY = """\
groups:
  team: [anna]
rules:
  - {groups: [team], repositories: [team/**], actions: [pull, push, delete]}
"""
SCOPE = "repository:team/app:pull,push"


@dataclass(frozen=True)
class Pair:
    """Two nodes, and the files that they share."""

    nodes: Sequence[Node]
    directory: Path

    @property
    def keys(self) -> str:
        return str(self.directory / "keys")

    def config(self, number: int = 0) -> str:
        return self.nodes[number].config_path

    def token(self, number: int = 0, **form: str) -> dict[str, Any]:
        """The answer of a node's token server."""
        login = {"grant_type": "password", "username": "anna", "password": PASSWORD, "client_id": "test"}
        answer = httpx.post(
            f"{self.nodes[number].url}/token", data={**login, "scope": SCOPE, **form}, timeout=20, trust_env=False
        )
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def ask(self, token: str, number: int = 0, path: str = "team/app/tags/list") -> httpx.Response:
        return httpx.get(f"{self.nodes[number].url}/v2/{path}", headers=bearer(token), timeout=20, trust_env=False)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def kid_of(token: str) -> str:
    header = token.partition(".")[0]
    return str(json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["kid"])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    shared = tmp_path_factory.mktemp("shared")
    (shared / "htpasswd").write_text(f"anna:{passwords.make(PASSWORD.encode(), passwords.LOWEST_COST)}\n")
    (shared / "policy.yml").write_text(POLICY)
    config: Config = {
        "auth": {"token": {"issuer": ISSUER, "service": SERVICE, "autoredirect": True}},
        "log": {"level": "debug"},
        "cluster": {
            "policy": str(shared / "policy.yml"),
            "tokenserver": {"htpasswd": str(shared / "htpasswd"), "keys": str(shared / "keys")},
        },
    }
    first = Node(shared / "first", config, root=shared / "data")
    second = Node(shared / "second", config, root=shared / "data")
    with brief(first), brief(second):
        yield Pair([first, second], shared)


@pytest.fixture(autouse=True)
def unharmed(pair: Pair) -> Iterator[None]:
    """Afterwards both nodes have answered nothing with a 5xx, and logged no password and no token."""
    before = [len(node.log()) for node in pair.nodes]
    yield
    for node, start in zip(pair.nodes, before, strict=True):
        log = node.log()
        # A policy that cannot be used is an error, and meant to be one.
        assert no_trouble("\n".join(line for line in log[start:].splitlines() if "stays in force" not in line))
        for secret in (PASSWORD, base64.b64encode(f"anna:{PASSWORD}".encode()).decode(), "eyJ"):
            assert secret not in log


def test_a_token_of_one_node_opens_the_other(pair: Pair) -> None:
    token = pair.token(0)["access_token"]
    for number in (0, 1):
        assert pair.ask(token, number).status_code == 404
        refused = pair.ask(token, number, "team/other/tags/list")
        assert (refused.status_code, 'error="insufficient_scope"' in refused.headers["WWW-Authenticate"]) == (
            401,
            True,
        )


def test_a_refresh_token_of_one_node_is_taken_by_the_other(pair: Pair) -> None:
    refresh = pair.token(0, access_type="offline")["refresh_token"]
    answer = pair.token(1, grant_type="refresh_token", refresh_token=refresh)
    assert pair.ask(answer["access_token"], 0).status_code == 404


@pytest.mark.parametrize(("size", "status"), [(20_000, 401), (2**20, 431)])
def test_a_token_that_is_far_too_long_is_refused_and_costs_nobody_else(pair: Pair, size: int, status: int) -> None:
    """By whoever reads tokens, or by whoever reads heads (RFC 6585 section 5)."""
    node = pair.nodes[0]
    with Wire(node.port) as wire:
        answer = wire.send(head("GET", "/v2/team/app/tags/list", f"Authorization: Bearer {'a' * size}")).answer()
    assert (answer.status, answer.error()) == (status, "UNAUTHORIZED" if status == 401 else "UNSUPPORTED")
    assert pair.ask(pair.token(0)["access_token"], 0).status_code == 404
    assert "Traceback" not in node.log()


def test_a_query_with_a_password_in_it_is_logged_without(pair: Pair) -> None:
    url = f"{pair.nodes[0].url}/token"
    httpx.get(url, params={"password": PASSWORD, "refresh_token": "eyJ", "account": "anna"}, trust_env=False)
    eventually(
        lambda: "password=<hidden>&refresh_token=<hidden>&account=anna" in pair.nodes[0].log(), 20, "it is logged"
    )


def test_a_token_that_expires_during_an_upload_still_ends_it_on_another_node(pair: Pair) -> None:
    (key, *_) = keyring.read(pair.keys).keys
    data = [b"a" * 100_000, b"b" * 100_000]
    uploads = [f"{node.url}/v2/team/app/blobs/uploads/" for node in pair.nodes]
    with httpx.Client(timeout=20, trust_env=False) as client:
        client.headers = httpx.Headers(bearer(pair.token()["access_token"]))
        begun = client.post(uploads[0])
        assert begun.status_code == 202
        # From here on with a token that was right when the upload began, and is not any more.
        now = int(time.time())
        access = [{"type": "repository", "name": "team/app", "actions": ["pull", "push"]}]
        token = sign_token(claims(exp=now + 1 - LEEWAY, nbf=now - 300, access=access), key)
        client.headers = httpx.Headers(bearer(token))
        eventually(lambda: pair.ask(token, 1).status_code == 401, 30, "the token has expired")
        assert client.post(uploads[1]).status_code == 401
        sent = client.patch(pair.nodes[1].url + begun.headers["Location"], content=data[0])
        assert sent.status_code == 202
        sent = client.patch(pair.nodes[0].url + sent.headers["Location"], content=data[1])
        assert sent.status_code == 202
        ended = client.put(f"{pair.nodes[1].url}{sent.headers['Location']}&digest={digest_of(*data)}")
        assert ended.status_code == 201
    fresh = pair.token()["access_token"]
    assert pair.ask(fresh, 1, f"team/app/blobs/{digest_of(*data)}").content == b"".join(data)


class Client(threading.Thread):
    """Gets tokens from one node and uses them on the other, and an old one too, until it is told to stop."""

    def __init__(self, pair: Pair, number: int, old: str) -> None:
        super().__init__()
        self.pair, self.number, self.old = pair, number, old
        self.failed: list[object] = []
        self.kids: set[str] = set()
        self.asked = 0
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                token = self.pair.token(self.number)["access_token"]
                self.kids.add(kid_of(token))
                for text in (token, self.old):
                    status = self.pair.ask(text, 1 - self.number).status_code
                    self.asked += 1
                    if status != 404:
                        self.failed.append(status)
            except (AssertionError, httpx.HTTPError) as error:
                self.failed.append(error)


def test_keys_rotate_under_load_without_a_failed_request(pair: Pair) -> None:
    old = pair.token()["access_token"]
    clients = [Client(pair, number, old) for number in (0, 1)]
    for client in clients:
        client.start()
    try:
        # As if it had been published two minutes ago, so that it signs at once: nodes that have not seen it yet are
        # asked to believe it.
        added, _ = keyring.rotate(pair.keys, "ES256", 3600, time.time() - keyring.ACTIVATION)
        eventually(
            lambda: all(added.kid in client.kids for client in clients), 60, "both nodes sign with the new key"
        )
        done = run("tokenkey", "rotate", "--config", pair.config())
        assert done.returncode == 0, done.stderr
        asked = [client.asked for client in clients]
        eventually(
            lambda: all(client.asked > before + 20 for client, before in zip(clients, asked, strict=True)),
            60,
            "the clients went on",
        )
    finally:
        for client in clients:
            client.stopping.set()
        for client in clients:
            client.join(60)
    assert [client.failed for client in clients] == [[], []]
    assert kid_of(old) != added.kid


def test_a_retired_key_is_not_believed_any_more_on_any_node(pair: Pair) -> None:
    token = pair.token()["access_token"]
    run("tokenkey", "rotate", "--config", pair.config())
    refused = run("tokenkey", "retire", kid_of(token), "--config", pair.config())
    assert refused.returncode == 1
    assert "may be alive" in refused.stderr
    done = run("tokenkey", "retire", kid_of(token), "--config", pair.config(), "--force")
    assert (done.returncode, done.stdout) == (0, f"{kid_of(token)}: removed\n")

    def works(number: int) -> bool:
        return pair.ask(pair.token(number)["access_token"], 1 - number).status_code == 404

    for number in (0, 1):
        eventually(lambda number=number: pair.ask(token, number).status_code == 401, 20, "the key is gone")  # type: ignore[misc]
    for number in (0, 1):
        eventually(lambda number=number: works(number), 20, "the new key is there")  # type: ignore[misc]
    listed = run("tokenkey", "list", "--config", pair.config()).stdout
    assert kid_of(token) not in listed
    assert listed.count(" signs\n") == 1


def test_a_changed_policy_counts_on_both_nodes_and_a_broken_one_does_not(pair: Pair) -> None:
    policy = pair.directory / "policy.yml"
    try:
        policy.write_text("rules: [{users: [anna], repositories: [other], actions: [pull]}]\n")
        for number in (0, 1):
            eventually(lambda number=number: not pair.token(number)["scope"], 20, "the new policy counts")  # type: ignore[misc]
        policy.write_text("rules: [{users: [anna]}]\n")
        for number in (0, 1):
            eventually(
                lambda number=number: "line 1: about nothing" in pair.nodes[number].log(),  # type: ignore[misc]
                20,
                "the broken policy is logged",
            )
            assert not pair.token(number)["scope"]
    finally:
        policy.write_text(POLICY)
    for number in (0, 1):
        eventually(lambda number=number: pair.token(number)["scope"] == SCOPE, 20, "the old policy is back")  # type: ignore[misc]


def test_the_policy_commands_say_who_may_what(pair: Pair) -> None:
    done = run("policy", "explain", "anna", "team/app", "--config", pair.config())
    assert done.stdout.splitlines()[0] == "anna may pull, push, delete in team/app"
    assert "  pull: rule 1 (line 4), team/**, as one of the group team" in done.stdout
    done = run("policy", "explain", "anonymous", "team/app", "--file", str(pair.directory / "policy.yml"))
    assert done.stdout.splitlines()[0] == "anonymous may do nothing in team/app"
    assert run("policy", "check", str(pair.directory / "policy.yml")).returncode == 0


def test_a_policy_with_mistakes_is_told_by_line_and_stops_a_start(pair: Pair, tmp_path: Path) -> None:
    wrong = tmp_path / "policy.yml"
    wrong.write_text("rules:\n  - users: [anna]\n    repositories: [Team/*]\n    actions: [pull]\n    allow: all\n")
    checked = run("policy", "check", str(wrong))
    assert checked.returncode == 1
    assert f"{wrong}: line 3: no repository can match 'Team/*'" in checked.stderr
    assert f"{wrong}: line 5: unknown key 'allow' in a rule" in checked.stderr
    settings = yaml.safe_load(Path(pair.config()).read_text())
    settings["cluster"]["policy"] = str(wrong)
    settings["http"]["addr"] = f"127.0.0.1:{free_port()}"
    (tmp_path / "config.yml").write_text(yaml.safe_dump(settings))
    started = run("serve", str(tmp_path / "config.yml"))
    assert started.returncode == 1
    assert "line 5: unknown key 'allow'" in started.stderr


class Guarded(Distribution3):
    """One that asks for tokens."""

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/v2/", timeout=2, trust_env=False).status_code == 401
        except httpx.TransportError:
            return False


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA", "RS256"])
def test_distribution_believes_our_tokens_by_the_key_set_that_we_print(
    pair: Pair, tmp_path: Path, algorithm: str
) -> None:
    directory = str(tmp_path / "keys")
    keyring.provide(directory, algorithm)
    settings = yaml.safe_load(Path(pair.config()).read_text())
    settings["cluster"]["tokenserver"]["keys"] = directory
    (tmp_path / "config.yml").write_text(yaml.safe_dump(settings))
    printed = run("tokenkey", "jwks", "--config", str(tmp_path / "config.yml"))
    assert printed.returncode == 0, printed.stderr
    (tmp_path / "jwks.json").write_text(printed.stdout)
    token = {
        "realm": f"{pair.nodes[0].url}/token",
        "service": SERVICE,
        "issuer": ISSUER,
        "jwks": str(tmp_path / "jwks.json"),
    }
    (key,) = keyring.read(directory).keys
    assert key.algorithm in keys.ASYMMETRIC
    access = [{"type": "repository", "name": "team/app", "actions": ["pull"]}]
    with Guarded(tmp_path / "distribution", {"auth": {"token": token}}) as theirs:
        asked = {
            text: httpx.get(f"{theirs.url}/v2/team/app/tags/list", headers=bearer(text), trust_env=False)
            for text in (
                sign_token(claims(access=access), key),
                sign_token(claims(access=access, iss="other"), key),
            )
        }
    assert [answer.status_code for answer in asked.values()] == [404, 401]
