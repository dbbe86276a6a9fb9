"""Authentication from the configuration: a part of the composition root, beside cluster/app.py."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from cluster.auth import accounts, bearer, issuer, keyring, keys, policy
from cluster.auth.access import Authenticator, Caller, Question
from cluster.auth.bearer import TokenAuthenticator
from cluster.auth.files import Watched
from cluster.auth.grants import Issued, Login, TokenServer, Wish
from cluster.auth.htpasswd import Htpasswd, HtpasswdAuthenticator
from cluster.auth.issuer import Issuer
from cluster.auth.keyring import WatchedRing
from cluster.errors import ConfigError, Unavailable
from cluster.settings import Config, Token
from cluster.state.store import Failures

_log = logging.getLogger(__name__)


def build_authenticator(config: Config, state: Failures) -> Authenticator | None:
    """Whoever decides about requests; None where everybody may do everything. ConfigError for unusable files."""
    if config.auth.htpasswd is not None:
        section, path = config.auth.htpasswd, config.cluster.policy
        rules = Watched(path, policy.parse) if path else None
        return HtpasswdAuthenticator(section.realm, Htpasswd(section.path, state), rules)
    if config.auth.token is not None:
        return _token_authenticator(config, config.auth.token)
    return None


def build_token_server(config: Config, state: Failures) -> TokenServer | None:
    """Whoever makes tokens, where this cluster does. ConfigError for unusable files."""
    token, section, path = config.auth.token, config.cluster.tokenserver, config.cluster.policy
    if token is None or section is None:
        return None
    terms = issuer.Terms(token.issuer, token.service, int(section.lifetime), int(section.refresh))
    rules = Watched(path, policy.parse) if path else None
    return Issuer(terms, Htpasswd(section.htpasswd, state), WatchedRing(section.keys), rules)


def _token_authenticator(config: Config, section: Token) -> TokenAuthenticator:
    files = []
    if section.rootcertbundle:
        files.append(Watched(section.rootcertbundle, keys.read_bundle))
    if section.jwks:
        files.append(Watched(section.jwks, keys.read_jwks))
    server = config.cluster.tokenserver
    terms = bearer.Terms(
        section.issuer,
        section.service,
        _realm(config) if section.autoredirect else section.realm,
        frozenset(section.signingalgorithms or keys.ALL),
        follows_host=section.autoredirect,
    )
    return TokenAuthenticator(terms, files, WatchedRing(server.keys) if server is not None else None)


def token_paths(config: Config) -> list[str]:
    """Where the token server answers, below `http.prefix`: at /token, and where clients are sent."""
    if config.cluster.tokenserver is None:
        return []
    path = _realm(config).removeprefix(config.http.prefix)
    return ["/token"] if path.startswith("/v2") or len(path) < 2 else sorted({"/token", path})


def _realm(config: Config) -> str:
    """The path at which clients ask for tokens; our own token server is below the prefix, like all of us."""
    token = config.auth.token or Token()
    if not token.autoredirect:
        return urlsplit(token.realm).path
    return f"{config.http.prefix if config.cluster.tokenserver else ''}{token.autoredirectpath}"


def prepare_files(config: Config) -> None:
    """Make the files that a node makes at its first start. ConfigError."""
    if config.auth.htpasswd is not None:
        accounts.provide(config.auth.htpasswd.path)
    if (server := config.cluster.tokenserver) is not None:
        accounts.provide(server.htpasswd)
        keyring.provide(server.keys, server.algorithm)


T = TypeVar("T", Authenticator, TokenServer)


class _Closed(Generic[T]):
    """Stands in for what cannot be had: lets nobody in until the files are right.

    A node does not start like this; but a worker that replaces one that died must come up beside the others, and
    must not bring down the node because somebody is editing a file just now.
    """

    def __init__(self, make: Callable[[], T | None], trouble: ConfigError) -> None:
        self._make: Callable[[], T | None] = make
        self._made: T | None = None
        _log.error("nobody is let in: %s", trouble)

    @property
    def _behind(self) -> T:
        if self._made is None:
            raise Unavailable("accounts or keys cannot be read now", headers={"Retry-After": "5"})
        return self._made

    async def refresh(self) -> None:
        if self._made is not None:
            await self._made.refresh()
            return
        try:
            self._made = await asyncio.to_thread(self._make)
        except ConfigError:
            return
        _log.info("accounts and keys can be read again")


class Closed(_Closed[Authenticator]):
    """In place of an authenticator."""

    async def authenticate(self, question: Question) -> Caller:
        return await self._behind.authenticate(question)


class ClosedTokenServer(_Closed[TokenServer]):
    """In place of a token server."""

    async def issue(self, login: Login, wish: Wish, source: str) -> Issued:
        return await self._behind.issue(login, wish, source)
