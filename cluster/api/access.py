"""What each request wants to do, and whoever sent it: asked once, before the resource runs.

Owns the one table from routes and methods to wanted accesses. Who is believed is decided behind the port
(auth/access.py); where no authentication is configured, this middleware is not there at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from cluster.api import routes
from cluster.api.errors import Request, Response
from cluster.api.urls import Urls
from cluster.auth.access import (
    ALL,
    CATALOG,
    DELETE,
    PULL,
    PUSH,
    REGISTRY,
    REPOSITORY,
    Access,
    Anyone,
    Authenticator,
    Caller,
    Question,
)
from cluster.errors import NameInvalid
from cluster.oci.reference import RepositoryName

# Distribution's, and so what every client asks a token server for. An upload is cancelled by DELETE, too.
_ACTIONS: Mapping[str, tuple[str, ...]] = {
    "GET": (PULL,),
    "HEAD": (PULL,),
    "POST": (PULL, PUSH),
    "PUT": (PULL, PUSH),
    "PATCH": (PULL, PUSH),
    "DELETE": (DELETE,),
}
_CATALOG = (Access(REGISTRY, CATALOG, ALL),)
_ANYONE = Anyone()


class AccessControl:
    """A Falcon middleware: lets a request through to its resource, or refuses it."""

    def __init__(
        self,
        authenticator: Authenticator,
        urls: Urls,
        upload_began: Callable[[Request, str, str], float | None],
        *,
        realm_scheme: str | None = None,
    ) -> None:
        """`realm_scheme`: of a realm that follows the host; by default the one under which the client knows us."""
        self._authenticator = authenticator
        self._urls = urls
        self._realm_scheme = realm_scheme
        self._upload_began = upload_began  # asked with the name and the uuid of an upload's URL

    async def process_resource(
        self, req: Request, resp: Response, resource: object, params: dict[str, Any]
    ) -> None:
        """Called by Falcon when a route was found; for a method that the route does not take, too."""
        template = req.uri_template or ""
        if not template.startswith("/v2/"):  # health, and what tells clients where to log in
            return
        caller = await self._authenticator.authenticate(self._question(req, template, params))
        req.context.caller = caller
        req.scope["registry.user"] = caller.name

    def _question(self, req: Request, template: str, params: dict[str, Any]) -> Question:
        method = req.method
        return Question(
            authorization=req.get_header("Authorization"),
            wanted=_wanted(template, method, params.get("name")),
            source=partial(self._urls.client, req),
            origin=partial(self._urls.origin, req, self._realm_scheme),
            began=self._upload_began(req, params["name"], params["uuid"]) if "uuid" in params else None,
            mounts=_mounts(req) if template == routes.UPLOADS.template and method == "POST" else None,
        )


def caller_of(req: Request) -> Caller:
    """Who sent this request."""
    caller: Caller = getattr(req.context, "caller", _ANYONE)
    return caller


def _wanted(template: str, method: str, name: str | None) -> tuple[Access, ...]:
    if name is not None:
        return tuple(Access(REPOSITORY, name, action) for action in _ACTIONS.get(method, ()))
    return _CATALOG if template == routes.CATALOG.template and method != "OPTIONS" else ()


def _mounts(req: Request) -> Access | None:
    """Pull on the source of a mount; a source that cannot be one is ignored, as the mount itself does."""
    try:
        return Access(REPOSITORY, RepositoryName.parse(req.get_param("from") or ""), PULL)
    except NameInvalid:
        return None
