"""Our own token server: accounts, policy and signing keys together make tokens.

Owns what a token of ours says, and refresh tokens: signed by the same keys, for another audience so that neither
can be taken for the other, and bound to the password's hash, so that a changed password or a removed account ends
them. The endpoint is api/token.py; a token is checked by tokens.py like anybody's.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from cluster.auth.access import ALL, REPOSITORY, Access
from cluster.auth.files import Watched
from cluster.auth.grants import Issued, Login, Password, RefreshToken, Scope, Wish, WrongService
from cluster.auth.keyring import KeyRing, WatchedRing
from cluster.auth.keys import ASYMMETRIC
from cluster.auth.policy import ACTIONS, EVERY_ACCOUNT, Rules
from cluster.auth.tokens import (
    Claims,
    InvalidToken,
    UnknownKey,
    check_parties,
    check_time,
    open_token,
    sign_token,
    text,
)
from cluster.errors import Unauthorized


class Accounts(Protocol):
    """Who may log in (htpasswd.py)."""

    async def verify(self, user: str, password: bytes, source: str) -> bool:
        """Whether this is the user's password. TooManyRequests, Unavailable."""

    def hash_of(self, user: str) -> str | None:
        """What stands for the user's password now; None for a user that there is not."""

    async def refresh(self) -> None:
        """Take in what has changed."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is the same in all tokens."""

    issuer: str
    service: str
    lifetime: int  # seconds
    refresh_lifetime: int  # seconds; 0: there are no refresh tokens

    @property
    def refresh_audience(self) -> str:
        """No registry's: a refresh token opens nothing but this token server."""
        return f"{self.service}#refresh"


class Issuer:
    """Makes tokens of the service that this cluster is."""

    def __init__(
        self,
        terms: Terms,
        accounts: Accounts,
        ring: WatchedRing,
        policy: Watched[Rules] | None = None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._terms = terms
        self._accounts = accounts
        self._ring = ring
        self._policy = policy
        self._now = now

    async def issue(self, login: Login, wish: Wish, source: str) -> Issued:
        """See the port."""
        if wish.service not in (None, self._terms.service):
            raise WrongService(f"this is the token server of {self._terms.service!r} alone")
        user = await self._who(login, source)
        granted = [scope for scope in (self._allowed(user, scope) for scope in wish.scopes) if scope.actions]
        now = int(self._now())
        claims = {
            **self._claims(user, self._terms.service, now, self._terms.lifetime),
            "access": [{"type": kind, "name": name, "actions": list(actions)} for kind, name, actions in granted],
        }
        refresh_token = None
        if wish.offline and isinstance(login, Password) and self._terms.refresh_lifetime:
            refresh_token = self._refresh_token(user, now)
        return Issued(user, self._sign(claims), granted, self._terms.lifetime, now, refresh_token)

    async def refresh(self) -> None:
        """See the port."""
        await self._accounts.refresh()
        await self._ring.refresh()
        if self._policy is not None:
            await self._policy.refresh()

    async def _who(self, login: Login, source: str) -> str:
        """The account, empty for none. Unauthorized."""
        match login:
            case Password(user, password):
                if not await self._accounts.verify(user, password, source):
                    raise Unauthorized
                return user
            case RefreshToken(token):
                return await self._refreshed(token)
        if not self._rules.is_open:
            raise Unauthorized  # says more than a token for nothing: clients know that they have to log in
        return ""

    async def _refreshed(self, token: str) -> str:
        try:
            try:
                claims = self._open(token, self._ring.content)
            except UnknownKey:
                await self._ring.hurry()
                claims = self._open(token, self._ring.content)
            user, bond = text(claims, "sub"), text(claims, "bond")
        except InvalidToken as error:
            raise Unauthorized(message=f"the refresh token is of no use: {error}") from None
        hashed = self._accounts.hash_of(user)
        if hashed is None or not hmac.compare_digest(bond.encode(), _bond(user, hashed).encode()):
            raise Unauthorized(message="the refresh token is of no use: the account or its password has changed")
        return user

    def _open(self, token: str, ring: KeyRing) -> Claims:
        """The claims of a refresh token. InvalidToken."""
        claims = open_token(token, ring.trust(), ASYMMETRIC)
        check_parties(claims, self._terms.issuer, self._terms.refresh_audience)
        # What we wrote; a shorter life that was configured since then holds for old ones too.
        check_time(claims["nbf"], min(claims["exp"], claims["iat"] + self._terms.refresh_lifetime), self._now())
        return claims

    def _refresh_token(self, user: str, now: int) -> str | None:
        hashed = self._accounts.hash_of(user)
        if hashed is None:  # removed while the password was being checked
            return None
        claims = self._claims(user, self._terms.refresh_audience, now, self._terms.refresh_lifetime)
        return self._sign({**claims, "bond": _bond(user, hashed)})

    def _claims(self, user: str, audience: str, now: int, lifetime: int) -> dict[str, object]:
        return {
            "iss": self._terms.issuer,
            "sub": user,
            "aud": audience,
            "exp": now + lifetime,
            "nbf": now,
            "iat": now,
            "jti": secrets.token_urlsafe(16),
        }

    def _sign(self, claims: Claims) -> str:
        return sign_token(claims, self._ring.content.signer(self._now()))

    @property
    def _rules(self) -> Rules:
        return EVERY_ACCOUNT if self._policy is None else self._policy.content

    def _allowed(self, user: str, scope: Scope) -> Scope:
        """What of a scope somebody may do; `*` asks for all there is."""
        return Scope(scope.type, scope.name, tuple(dict.fromkeys(self._actions(user, scope))))

    def _actions(self, user: str, scope: Scope) -> Iterator[str]:
        for action in scope.actions:
            wanted = ACTIONS if action == ALL and scope.type == REPOSITORY else (action,)
            yield from (each for each in wanted if self._rules.permits(user, Access(scope.type, scope.name, each)))


def _bond(user: str, hashed: str) -> str:
    """Changes with the password. The hash holds a random salt of 128 bits: nothing can be guessed from this."""
    return hashlib.sha256(f"{user}\0{hashed}".encode()).hexdigest()[:32]
