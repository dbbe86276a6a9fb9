"""Bearer tokens: what makes one genuine, and what it then grants. Distribution's token specification, RFC 7519.

Owns the signature (by PyJWT), the strict reading of header and claims, and the times. Which keys are trusted is
keys.py's business, how a request carries a token is bearer.py's; the tokens of our own server are written here too.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm

from cluster.auth.access import ALL, Access
from cluster.auth.keyring import SigningKey
from cluster.auth.keys import BadKey, Trust, VerifyingKey

TOKEN_LIMIT = 16 * 1024  # characters
LEEWAY = 60  # seconds that the clocks of two machines may differ, as Distribution has it
UPLOAD_LIMIT = 24 * 3600  # seconds for which an upload keeps its token alive

_jws = jwt.PyJWS()
Claims = Mapping[str, Any]


class InvalidToken(Exception):
    """A token that proves nothing; the text says why, shows nothing of it, and may be told to its bearer."""


class UnknownKey(InvalidToken):
    """Signed with a key of which only the id is known: it may be new."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a genuine token says. It is the caller whom the registry serves."""

    name: str
    expires: int  # Unix time
    not_before: int
    actions: Mapping[tuple[str, str], Collection[str]] = field(repr=False)

    def may(self, access: Access) -> bool:
        """Whether the token's access list holds that: names are exact, `*` is every action."""
        actions = self.actions.get((access.type, access.name), ())
        return access.action in actions or ALL in actions

    def check_time(self, now: float, began: float | None = None) -> None:
        """Whether it counts at this time, or counted when the upload began that a request goes on with.

        So a token that expires during an upload does not end it; a day later it does. InvalidToken.
        """
        is_going_on = began is not None and now - UPLOAD_LIMIT <= began <= now
        check_time(self.not_before, self.expires, now, began if is_going_on else None)


@dataclass(frozen=True, slots=True)
class Verifier:
    """Believes tokens of one issuer, for one service."""

    trust: Trust
    issuer: str
    service: str
    algorithms: Collection[str]  # that are allowed at all; what a key may be used for is narrower

    def read(self, token: str) -> Grant:
        """What a token says, whatever the time is. InvalidToken."""
        claims = open_token(token, self.trust, self.algorithms)
        check_parties(claims, self.issuer, self.service)
        not_before = _integer(claims, "nbf", 0)
        _integer(claims, "iat", 0)
        if claims.get("exp") is None:
            raise InvalidToken("the token does not say when it expires")
        return Grant(text(claims, "sub"), _integer(claims, "exp"), not_before, _actions(claims.get("access")))


def open_token(token: str, trust: Trust, algorithms: Collection[str]) -> Claims:
    """The claims of a token that a trusted key has signed. InvalidToken."""
    if len(token) > TOKEN_LIMIT:
        raise InvalidToken(f"the token is longer than {TOKEN_LIMIT} characters")
    try:
        header = _parse(jwt.utils.base64url_decode(token.partition(".")[0]))
        algorithm, key = header.get("alg"), _key(header, trust)
        if algorithm not in algorithms or algorithm not in key.algorithms:
            raise InvalidToken("the token is signed in a way that is not accepted here")
        return _parse(_jws.decode(token, key.key, algorithms=[algorithm]))
    except BadKey as error:
        raise InvalidToken(f"the token has {error}") from None
    except jwt.InvalidSignatureError:
        raise InvalidToken("the token's signature is wrong") from None
    except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, RecursionError):
        raise InvalidToken("the token cannot be read") from None


def sign_token(claims: Claims, key: SigningKey) -> str:
    """A token with these claims."""
    return jwt.encode(dict(claims), key.private, algorithm=key.algorithm, headers={"kid": key.kid})


def check_parties(claims: Claims, issuer: str, audience: str) -> None:
    """Whether the right one made the token, for the right one. InvalidToken."""
    if claims.get("iss") != issuer:
        raise InvalidToken("the token was made by somebody else")
    found = claims.get("aud")
    if found != audience and not (isinstance(found, list) and audience in found):
        raise InvalidToken("the token was made for another service")


def check_time(not_before: int, expires: int, now: float, used_since: float | None = None) -> None:
    """InvalidToken before the one and after the other, unless it has been in use since before that."""
    if now < not_before - LEEWAY:
        raise InvalidToken("the token is not valid yet")
    if (now if used_since is None else used_since) >= expires + LEEWAY:
        raise InvalidToken("the token has expired")


def text(claims: Claims, name: str) -> str:
    """A claim that is text, empty when it is null or not there, and can be logged as it is. InvalidToken."""
    value = claims.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or not value.isprintable():
        raise InvalidToken(f"the token's {name} is not text")
    return value


def _key(header: Mapping[str, Any], trust: Trust) -> VerifyingKey:
    """The key that a header points to, looked for as Distribution does: x5c, then jwk, then kid."""
    if (chain := header.get("x5c")) is not None:
        return trust.by_chain(chain)
    jwk, kid = header.get("jwk"), header.get("kid")
    if jwk is not None:
        key = trust.by_key(jwk) if isinstance(jwk, dict) else None
        if key is None:
            raise InvalidToken("the token brings a key that is not trusted")
        return key
    if not isinstance(kid, str) or not kid:
        raise InvalidToken("the token names no key")
    if (key := trust.by_id(kid)) is None:
        raise UnknownKey("the token names a key that is not known")
    return key


def _integer(claims: Claims, name: str, default: int | None = None) -> int:
    value = claims.get(name)
    if value is None:
        value = default
    if type(value) is not int:
        raise InvalidToken(f"the token's {name} is not a whole number of seconds")
    return value


def _actions(entries: Any) -> dict[tuple[str, str], frozenset[str]]:
    """The access list, the entries for one resource put together, those for none left out. InvalidToken."""
    granted: dict[tuple[str, str], frozenset[str]] = {}
    if not isinstance(entries, list | None):
        raise InvalidToken("the token's access is not a list")
    for entry in entries or ():
        kind, name, actions = _entry(entry)
        if kind is None or name is None:
            continue
        granted[kind, name] = granted.get((kind, name), frozenset()) | frozenset(actions)
    return granted


def _entry(entry: Any) -> tuple[str | None, str | None, Sequence[str]]:
    if isinstance(entry, dict):
        kind, name, actions = entry.get("type"), entry.get("name"), entry.get("actions")
        actions = [] if actions is None else actions
        is_list = isinstance(actions, list) and all(isinstance(action, str) for action in actions)
        if isinstance(kind, str | None) and isinstance(name, str | None) and is_list:
            return kind, name, actions
    raise InvalidToken("the token's access is not a list of type, name and actions")


def _parse(content: bytes) -> dict[str, Any]:
    """A JSON object in which nothing is said twice, or two readers could take it for two things. ValueError."""
    value = json.loads(content, object_pairs_hook=_unique)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is written twice")
    return found
