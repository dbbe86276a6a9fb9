"""The port of the token server: what a client asks of it, and what it is given. Facts of the token specification.

Owns the scope grammar of Distribution's token specification, `type[(class)]:name:action[,action]`, in both
directions. Knows no HTTP, no key and no account; tokens are made in issuer.py, the endpoint is api/token.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from cluster.auth.access import Access

_SCOPE_LIMIT = 1024  # characters of one scope: a name has at most 255
_SCOPES_LIMIT = 32  # of one request; clients ask for one or two
_TYPE = re.compile(r"([a-z0-9]+)(?:\(([a-z0-9]+)\))?")
_ACTIONS = re.compile(r"(?:[a-z]+|\*)?(?:,(?:[a-z]+|\*))*")


class MalformedScope(ValueError):
    """Not of the grammar; the text says what is wrong and is safe to show."""


class Scope(NamedTuple):
    """Actions on one resource; the class, such as `plugin`, is read and not looked at."""

    type: str
    name: str
    actions: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Scope:
        """Split at the first and the last colon, for a name may hold the port of a host. MalformedScope."""
        kind, _, rest = text.partition(":")
        name, colon, actions = rest.rpartition(":")
        match = _TYPE.fullmatch(kind)
        if len(text) > _SCOPE_LIMIT or match is None or not colon or not name or not _ACTIONS.fullmatch(actions):
            raise MalformedScope(
                f"{text[:100]!r} is not a scope: wanted type:name:actions, such as repository:team/app:pull,push"
            )
        return cls(match[1], name, tuple(dict.fromkeys(action for action in actions.split(",") if action)))

    def __str__(self) -> str:
        return f"{self.type}:{self.name}:{','.join(self.actions)}"


def parse_scopes(texts: Sequence[str]) -> list[Scope]:
    """The scopes of a request, which may be repeated, separated by spaces, or both. MalformedScope."""
    words = [word for text in texts for word in text.split(" ") if word]
    if len(words) > _SCOPES_LIMIT:
        raise MalformedScope(f"{len(words)} scopes: at most {_SCOPES_LIMIT} are allowed in one request")
    return merged([Scope.parse(word) for word in words])


def merged(scopes: Sequence[Scope]) -> list[Scope]:
    """One scope for each resource, in the order in which they came first."""
    actions: dict[tuple[str, str], dict[str, None]] = {}
    for scope in scopes:
        actions.setdefault((scope.type, scope.name), {}).update(dict.fromkeys(scope.actions))
    return [Scope(kind, name, tuple(wanted)) for (kind, name), wanted in actions.items()]


def scopes_of(accesses: Sequence[Access]) -> list[Scope]:
    """The scopes that a challenge asks for."""
    return merged([Scope(access.type, access.name, (access.action,)) for access in accesses])


@dataclass(frozen=True, slots=True)
class Password:
    """What an account proves itself with."""

    user: str
    password: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """What stands for a password that was right before."""

    token: str = field(repr=False)


Login = Password | RefreshToken | None  # None: without an account


@dataclass(frozen=True, slots=True)
class Wish:
    """A request for a token."""

    scopes: Sequence[Scope]
    service: str | None = None  # that the token is for; the one there is when not said
    offline: bool = False  # with a refresh token


@dataclass(frozen=True, slots=True)
class Issued:
    """A token and what has to be said of it."""

    user: str  # empty for whoever has no account
    token: str = field(repr=False)
    scopes: Sequence[Scope]  # that it grants: what was asked for and is allowed
    lifetime: int  # seconds
    issued_at: int  # Unix time
    refresh_token: str | None = field(default=None, repr=False)


class WrongService(ValueError):
    """A token was asked for somebody else's service."""


class TokenServer(Protocol):
    """Makes tokens."""

    async def issue(self, login: Login, wish: Wish, source: str) -> Issued:
        """A token that grants what is wished for and allowed; `source` is the client's address, for limits.

        Raises WrongService, Unauthorized for a wrong login (or none, where nobody may do anything without),
        TooManyRequests after too many wrong passwords, Unavailable when accounts cannot be asked now.
        """

    async def refresh(self) -> None:
        """Take in the files that have changed. Called each second, beside requests; fails with nothing."""
