"""Bearer authentication: a request's token, and the challenge for a request without the right one.

Owns the `Authorization` and `WWW-Authenticate` headers (RFC 6750, Distribution's token specification) and the
memory of tokens that were verified: a signature is checked once for each token and not for each request. What makes
a token genuine is in tokens.py.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from cluster.auth.access import Access, Question, to_detail
from cluster.auth.files import Watched
from cluster.auth.grants import scopes_of
from cluster.auth.keyring import KeyRing, WatchedRing
from cluster.auth.keys import Trust, together
from cluster.auth.tokens import Grant, InvalidToken, UnknownKey, Verifier
from cluster.errors import NameInvalid, Unauthorized
from cluster.oci.reference import RepositoryName

_BELIEVED_FOR = 600.0  # seconds after which every token is verified again: certificates in chains expire, too
_REMEMBERED = 8 * 1024 * 1024  # characters of tokens whose contents are kept: some thousand tokens
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """Whose tokens count here, and where clients get them."""

    issuer: str
    service: str
    realm: str  # a URL; with `follows_host` the path alone
    algorithms: Collection[str]
    follows_host: bool = False  # the realm has the scheme and host under which the client knows us


class TokenAuthenticator:
    """Believes whoever brings a token; a token alone says what its bearer may do."""

    def __init__(
        self,
        terms: Terms,
        files: Sequence[Watched[Trust]],
        ring: WatchedRing | None = None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._terms = terms
        self._files = files
        self._ring = ring
        self._now = now
        self._key = secrets.token_bytes(32)
        self._grants: dict[bytes, tuple[Grant, int]] = {}  # with the length of the token
        self._size = 0
        self._trusted: KeyRing | None = None  # whose keys are among those that the verifier trusts
        self._trust_again()

    async def authenticate(self, question: Question) -> Grant:
        """See the port. A mount needs pull on its source: clients come back with a token that has it."""
        token = _read(question.authorization)
        wanted = [*question.wanted, question.mounts] if question.mounts is not None else question.wanted
        if token is None:
            raise self._refusal(question, wanted)
        try:
            digest = hashlib.blake2b(token.encode(), key=self._key, digest_size=16).digest()
            known = self._grants.get(digest)
            grant = known[0] if known is not None else await self._believe(token, digest)
            grant.check_time(self._now(), question.began)
        except InvalidToken as error:
            raise self._refusal(question, wanted, "invalid_token", str(error)) from None
        missing = [access for access in wanted if not grant.may(access)]
        if missing:
            _refuse_names(missing)
            raise self._refusal(question, wanted, "insufficient_scope", "the token does not grant this")
        return grant

    async def refresh(self) -> None:
        """See the port."""
        changed = [await file.refresh() for file in self._files]
        if self._ring is not None:
            await self._ring.refresh()
        if any(changed) or self._has_other_keys or time.monotonic() >= self._believed_until:
            self._trust_again()

    async def _believe(self, token: str, digest: bytes) -> Grant:
        """What a genuine token says, which is kept under this digest. InvalidToken."""
        try:
            grant = self._verifier.read(token)
        except UnknownKey:
            # Another node may have begun to sign with a key that this one has not seen.
            if self._ring is None:
                raise
            await self._ring.hurry()
            if self._has_other_keys:
                self._trust_again()
            grant = self._verifier.read(token)
        self._remember(digest, grant, len(token))
        return grant

    def _remember(self, digest: bytes, grant: Grant, length: int) -> None:
        if digest in self._grants:
            return
        self._grants[digest] = (grant, length)
        self._size += length
        while self._size > _REMEMBERED:
            _, length = self._grants.pop(next(iter(self._grants)))
            self._size -= length

    def _trust_again(self) -> None:
        """Take the keys that there are now, and forget what others have verified."""
        parts = [file.content for file in self._files]
        if self._ring is not None:
            self._trusted = self._ring.content
            parts.append(self._trusted.trust())
        terms = self._terms
        self._verifier = Verifier(together(parts), terms.issuer, terms.service, terms.algorithms)
        self._grants.clear()
        self._size = 0
        self._believed_until = time.monotonic() + _BELIEVED_FOR

    @property
    def _has_other_keys(self) -> bool:
        """Whether the ring holds others than are trusted here. Whoever asked for the look that found them may have
        left meanwhile, or have been told that it takes too long.
        """
        return self._ring is not None and self._ring.content is not self._trusted

    def _refusal(
        self, question: Question, wanted: Sequence[Access], error: str = "", reason: str = ""
    ) -> Unauthorized:
        """401 with the challenge. All that is in it is ours, or of a grammar without quotes and line ends."""
        terms = self._terms
        realm = f"{question.origin()}{terms.realm}" if terms.follows_host else terms.realm
        parts = [f'realm="{realm}"', f'service="{terms.service}"']
        if scopes := scopes_of([access for access in wanted if _is_nameable(access)]):
            parts.append(f'scope="{" ".join(map(str, scopes))}"')
        if error:
            parts.append(f'error="{error}"')
            _log.debug("a token was refused: %s", reason)
        message = f"authentication required: {reason}" if reason else None
        headers = {"WWW-Authenticate": f"Bearer {','.join(parts)}"}
        return Unauthorized(to_detail(wanted), message=message, headers=headers)


def _read(authorization: str | None) -> str | None:
    """The token of a Bearer header; None for anything else, which Distribution takes for no credential at all."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token or " " in token or not token.isascii():
        return None
    return token


def _is_nameable(access: Access) -> bool:
    """Whether a scope can be about it: a name of a URL may still be any text."""
    try:
        RepositoryName.parse(access.name)
    except NameInvalid:
        return False
    return True


def _refuse_names(missing: Sequence[Access]) -> None:
    """NameInvalid for what no token can ever grant: to the bearer of a genuine one, not to everybody."""
    for access in missing:
        RepositoryName.parse(access.name)
