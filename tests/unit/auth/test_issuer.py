"""Our own token server (cluster/auth/issuer.py): what a login gets, and when it ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.auth import keyring, keys, passwords, policy
from cluster.auth.access import PULL, REPOSITORY, Access, Question
from cluster.auth.bearer import Terms as BearerTerms
from cluster.auth.bearer import TokenAuthenticator
from cluster.auth.files import Watched
from cluster.auth.grants import Issued, Login, Password, RefreshToken, Wish, WrongService, parse_scopes
from cluster.auth.htpasswd import Htpasswd
from cluster.auth.issuer import Issuer, Terms
from cluster.auth.keyring import WatchedRing
from cluster.auth.tokens import TOKEN_LIMIT, open_token, sign_token
from cluster.errors import Unauthorized
from cluster.state.shared import SharedState
from tests.support.tokens import claims

pytestmark = pytest.mark.anyio

TERMS = Terms("auth.example", "registry.example", 300, 30 * 24 * 3600)
ANNA = Password("anna", b"secret")
RULES = b"""
rules:
  - {users: [anna], repositories: [team/**], actions: [pull, push]}
  - {users: [anna], catalog: true}
  - {groups: [anonymous], repositories: [public/*], actions: [pull]}
"""


class Clock:
    """Begins with the real time, and then stands still."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Server:
    """A token server with its files, and a registry that believes its tokens."""

    def __init__(self, directory: Path, rules: bytes | None, terms: Terms = TERMS) -> None:
        self.clock = Clock()
        self.accounts = directory / "htpasswd"
        self.set_password("secret")
        self.keys = str(directory / "keys")
        keyring.provide(self.keys, "ES256")
        watched = None
        if rules is not None:
            (directory / "policy.yml").write_bytes(rules)
            watched = Watched(str(directory / "policy.yml"), policy.parse)
        self.terms = terms
        accounts = Htpasswd(str(self.accounts), SharedState(None))
        self.issuer = Issuer(terms, accounts, WatchedRing(self.keys), watched, now=self.clock)
        self.registry = TokenAuthenticator(
            BearerTerms(terms.issuer, terms.service, "https://auth.example/token", keys.ALL),
            [],
            WatchedRing(self.keys),
            now=self.clock,
        )

    def set_password(self, password: str | None) -> None:
        """As a person who edits the file a minute ago; None removes the user."""
        line = "" if password is None else f"anna:{passwords.make(password.encode(), passwords.LOWEST_COST)}\n"
        self.accounts.write_text(f"{line}ben:{passwords.make(b'other', passwords.LOWEST_COST)}\n")
        os.utime(self.accounts, (time.time() - 60, time.time() - 60))

    async def issue(self, login: Login, *scopes: str, **wish: Any) -> Issued:
        return await self.issuer.issue(login, Wish(parse_scopes(scopes), **wish), "192.0.2.1")

    async def caller(self, token: str, *wanted: Access) -> str:
        question = Question(f"Bearer {token}", wanted, lambda: "192.0.2.1", lambda: "https://registry.example")
        return (await self.registry.authenticate(question)).name


Make = Callable[..., Server]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda rules=RULES, **more: Server(tmp_path, rules, **more)


def granted(issued: Issued) -> list[str]:
    return list(map(str, issued.scopes))


async def test_a_login_gets_what_it_asks_for_and_may_have(make: Make) -> None:
    server = make()
    issued = await server.issue(
        ANNA, "repository:team/app:pull,push,delete", "repository:other:pull", "repository:public/x:pull"
    )
    assert granted(issued) == ["repository:team/app:pull,push", "repository:public/x:pull"]
    assert (issued.user, issued.lifetime, issued.refresh_token) == ("anna", 300, None)
    assert await server.caller(issued.token, Access(REPOSITORY, "team/app", PULL)) == "anna"
    with pytest.raises(Unauthorized):
        await server.caller(issued.token, Access(REPOSITORY, "other", PULL))


async def test_a_star_asks_for_all_that_there_is(make: Make) -> None:
    assert granted(await make().issue(ANNA, "repository:team/app:*")) == ["repository:team/app:pull,push"]
    assert granted(await make(None).issue(ANNA, "repository:x:*")) == ["repository:x:pull,push,delete"]


async def test_the_catalog_is_granted_by_the_policy(make: Make) -> None:
    server = make()
    assert granted(await server.issue(ANNA, "registry:catalog:*")) == ["registry:catalog:*"]
    assert granted(await server.issue(Password("ben", b"other"), "registry:catalog:*")) == []


async def test_whoever_has_no_account_gets_what_the_policy_opens(make: Make) -> None:
    issued = await make().issue(None, "repository:public/x:pull,push", "repository:team/app:pull", offline=True)
    assert granted(issued) == ["repository:public/x:pull"]
    assert (issued.user, issued.refresh_token) == ("", None)
    with pytest.raises(Unauthorized):
        await make(None).issue(None, "repository:public/x:pull")


@pytest.mark.parametrize(
    "login", [Password("anna", b"wrong"), Password("nobody", b"secret"), RefreshToken("x.y.z")]
)
async def test_a_wrong_login_gets_nothing(make: Make, login: Login) -> None:
    with pytest.raises(Unauthorized):
        await make().issue(login, "repository:public/x:pull")


async def test_tokens_are_for_one_service_only(make: Make) -> None:
    assert await make().issue(ANNA, service="registry.example")
    with pytest.raises(WrongService):
        await make().issue(ANNA, service="other.example")


async def test_a_refresh_token_stands_for_the_password(make: Make) -> None:
    server = make()
    refresh = (await server.issue(ANNA, offline=True)).refresh_token
    assert refresh is not None
    server.clock.now += 29 * 24 * 3600
    issued = await server.issue(RefreshToken(refresh), "repository:team/app:pull", offline=True)
    assert (issued.user, granted(issued), issued.refresh_token) == ("anna", ["repository:team/app:pull"], None)
    server.clock.now += 24 * 3600 + 60
    with pytest.raises(Unauthorized, match="the token has expired"):
        await server.issue(RefreshToken(refresh), "repository:team/app:pull")


@pytest.mark.parametrize("password", ["changed", "secret", None])
async def test_a_refresh_token_ends_when_the_account_or_its_hash_changes(make: Make, password: str | None) -> None:
    server = make()
    refresh = (await server.issue(ANNA, offline=True)).refresh_token
    assert refresh is not None
    server.set_password(password)
    await server.issuer.refresh()
    with pytest.raises(Unauthorized, match="the account or its password has changed"):
        await server.issue(RefreshToken(refresh))


async def test_the_two_kinds_of_tokens_are_never_taken_for_each_other(make: Make) -> None:
    server = make()
    issued = await server.issue(ANNA, "repository:team/app:pull", offline=True)
    assert issued.refresh_token is not None
    with pytest.raises(Unauthorized, match="made for another service"):
        await server.caller(issued.refresh_token)
    with pytest.raises(Unauthorized, match="made for another service"):
        await server.issue(RefreshToken(issued.token))


async def test_a_refresh_token_of_another_account_or_another_issuer_is_none(make: Make) -> None:
    server = make()
    refresh = (await server.issue(ANNA, offline=True)).refresh_token
    assert refresh is not None
    key = keyring.read(server.keys).keys[0]
    right = dict(open_token(refresh, keyring.read(server.keys).trust(), keys.ASYMMETRIC))
    for wrong in ({"sub": "ben"}, {"iss": "evil.example"}, {"bond": ""}, {"bond": "\u00e9"}, {"aud": "other"}):
        with pytest.raises(Unauthorized):
            await server.issue(RefreshToken(sign_token({**right, **wrong}, key)))
    assert await server.issue(RefreshToken(sign_token(right, key)))


async def test_no_refresh_token_is_given_when_there_are_none(make: Make) -> None:
    server = make(terms=Terms("auth.example", "registry.example", 300, 0))
    assert (await server.issue(ANNA, offline=True)).refresh_token is None
    key = keyring.read(server.keys).keys[0]
    old = claims(aud=TERMS.refresh_audience, iat=int(time.time()) - 100, exp=int(time.time()) + 3600)
    with pytest.raises(Unauthorized, match="expired"):
        await server.issue(RefreshToken(sign_token(old, key)))


async def test_the_longest_token_that_can_be_asked_for_is_one_that_is_taken(make: Make) -> None:
    server = make(None)
    scopes = [f"repository:{'a' * 250}{number:05}:pull,push,delete" for number in range(32)]
    issued = await server.issue(ANNA, *scopes)
    assert len(issued.scopes) == 32
    assert len(issued.token) < TOKEN_LIMIT
    assert await server.caller(issued.token) == "anna"


async def test_a_new_policy_counts_for_the_next_token(make: Make, tmp_path: Path) -> None:
    server = make()
    for content, expected in [
        (b"rules: [{users: [anna], repositories: [x], actions: [pull]}]", []),
        (b"rules: [", []),  # the last good one stays
        (RULES, ["repository:team/app:pull"]),
    ]:
        (tmp_path / "policy.yml").write_bytes(content)
        os.utime(tmp_path / "policy.yml", (time.time() - 60, time.time() - 60))
        await server.issuer.refresh()
        assert granted(await server.issue(ANNA, "repository:team/app:pull")) == expected


async def test_a_token_of_one_node_is_believed_by_another_after_a_rotation(make: Make) -> None:
    server = make()
    new, _ = keyring.rotate(server.keys, "ES256", 0, time.time())
    await server.issuer.refresh()
    server.clock.now += keyring.ACTIVATION + 1
    issued = await server.issue(ANNA, "repository:team/app:pull")
    # This registry has not looked at the directory since.
    assert await server.caller(issued.token, Access(REPOSITORY, "team/app", PULL)) == "anna"
    keyring.retire(server.keys, new.kid, 0, time.time(), force=True)
    await server.registry.refresh()
    with pytest.raises(Unauthorized, match="names a key that is not known"):
        await server.caller(issued.token)


def test_nothing_secret_shows_itself() -> None:
    shown = repr([ANNA, RefreshToken("r.e.f"), Issued("anna", "t.o.k", [], 1, 1, "r.e.f")])
    assert "secret" not in shown
    assert "t.o.k" not in shown
    assert "r.e.f" not in shown
