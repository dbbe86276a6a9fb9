"""`/token`: GET and the OAuth2 POST of Distribution's token specification, where the cluster makes its own tokens.

Owns the parameters, the forms of the two answers, and the bounds of a request. Who is given what is decided behind
the port (auth/grants.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

import falcon

from cluster.api.errors import JSON, Request, Response
from cluster.api.urls import Urls
from cluster.auth.access import CREDENTIAL_LIMIT, NOBODY, read_basic
from cluster.auth.grants import (
    Issued,
    Login,
    MalformedScope,
    Password,
    RefreshToken,
    TokenServer,
    Wish,
    WrongService,
    parse_scopes,
)
from cluster.errors import Unauthorized

_FORM = "application/x-www-form-urlencoded"
_BODY_LIMIT = 32 * 1024  # bytes; a refresh token and some scopes
_FIELDS_LIMIT = 64
_TRUTHS = ("1", "true")

Parameters = Mapping[str, Sequence[str]]


class TokenResource:
    """Where clients exchange a login for a token."""

    def __init__(self, server: TokenServer, urls: Urls, realm: str) -> None:
        self._server = server
        self._urls = urls
        self._challenge = f'Basic realm="{realm}"'

    async def on_get(self, req: Request, resp: Response) -> None:
        """The form of docker, podman and all others; without a login, for whoever may pull without an account."""
        asked = _parameters(req.query_string)
        offline = _one(asked, "offline_token") in _TRUTHS or _one(asked, "access_type") == "offline"
        issued = await self._issue(req, asked, offline)
        # `token` is the older name, and some clients know only one of the two.
        _answer(resp, {"token": issued.token, "access_token": issued.token, **_said_of(issued)})

    async def on_post(self, req: Request, resp: Response) -> None:
        """The OAuth2 form (RFC 6749 sections 4.3 and 6)."""
        if (req.content_type or "").partition(";")[0].strip().lower() != _FORM:
            raise falcon.HTTPBadRequest(description=f"wanted a body of type {_FORM}")
        body = await req.stream.read(_BODY_LIMIT + 1)
        if len(body) > _BODY_LIMIT:
            raise falcon.HTTPBadRequest(description=f"the body has more than {_BODY_LIMIT} bytes")
        asked = _parameters(body.decode("latin-1"))
        _required(asked, "client_id")
        issued = await self._issue(req, asked, _one(asked, "access_type") == "offline")
        scope = " ".join(map(str, issued.scopes))
        _answer(resp, {"access_token": issued.token, "scope": scope, "token_type": "Bearer", **_said_of(issued)})

    async def _issue(self, req: Request, asked: Parameters, offline: bool) -> Issued:
        try:
            login = _grant(asked) if req.method == "POST" else _basic(req.get_header("Authorization"))
            wish = Wish(parse_scopes(asked.get("scope", ())), _one(asked, "service") or None, offline)
            issued = await self._server.issue(login, wish, self._urls.client(req))
        except (MalformedScope, WrongService) as error:
            raise falcon.HTTPBadRequest(description=str(error)) from None
        except Unauthorized as refusal:
            refusal.headers["WWW-Authenticate"] = self._challenge
            raise
        req.scope["registry.user"] = issued.user  # for the log
        return issued


def _grant(asked: Parameters) -> Login:
    match _one(asked, "grant_type"):
        case "password":
            user, password = _required(asked, "username"), _required(asked, "password").encode()
            if len(user) + len(password) > CREDENTIAL_LIMIT:
                raise Unauthorized
            return Password(user, password)
        case "refresh_token":
            return RefreshToken(_required(asked, "refresh_token"))
    raise falcon.HTTPBadRequest(description="wanted grant_type password or refresh_token")


def _basic(authorization: str | None) -> Login:
    """User and password of a Basic header (RFC 7617), if there are any. Unauthorized for what is none."""
    if (credential := read_basic(authorization)) is None:
        raise Unauthorized(message="wanted a user and a password as Basic authentication")
    return Password(*credential) if credential != NOBODY else None


def _parameters(text: str) -> Parameters:
    try:
        return parse_qs(text, keep_blank_values=True, max_num_fields=_FIELDS_LIMIT, errors="strict")
    except ValueError:
        raise falcon.HTTPBadRequest(description="parameters that are too many, or not UTF-8 text") from None


def _one(asked: Parameters, name: str) -> str:
    """A parameter that makes sense once; empty when it is not there."""
    values = asked.get(name, ("",))
    if len(values) > 1:
        raise falcon.HTTPBadRequest(description=f"{name} is there {len(values)} times")
    return values[0]


def _required(asked: Parameters, name: str) -> str:
    if value := _one(asked, name):
        return value
    raise falcon.HTTPBadRequest(description=f"{name} is missing")


def _said_of(issued: Issued) -> dict[str, Any]:
    said: dict[str, Any] = {
        "expires_in": issued.lifetime,
        "issued_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(issued.issued_at)),
    }
    return said if issued.refresh_token is None else {**said, "refresh_token": issued.refresh_token}


def _answer(resp: Response, answer: Mapping[str, Any]) -> None:
    resp.content_type = JSON
    resp.set_header("Cache-Control", "no-store")  # RFC 6749 section 5.1
    resp.data = json.dumps(answer).encode()
