"""Every error as the spec's JSON: ours, storage's, Falcon's own, and bugs. OCI distribution-spec, "Error Codes"."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import falcon
import falcon.asgi

from cluster.errors import (
    BadRequest,
    NoSuchRoute,
    RegistryError,
    RegistryErrors,
    SizeInvalid,
    StorageError,
    TooLarge,
    Unavailable,
    Unknown,
    Unsupported,
)
from cluster.registry.uploads import BodyEnded
from cluster.storage.driver import StorageFull, StorageTimeout

JSON = "application/json"
_RETRY = {"Retry-After": "5"}
_log = logging.getLogger(__name__)

Request = falcon.asgi.Request
Response = falcon.asgi.Response


def envelope(errors: Sequence[RegistryError]) -> bytes:
    """The body of an error answer; Distribution ends it with a newline, and so do we."""
    text = json.dumps({"errors": [error.to_dict() for error in errors]}, separators=(",", ":"))
    return text.encode("utf-8", "replace") + b"\n"


def respond(req: Request, resp: Response, errors: Sequence[RegistryError]) -> None:
    """Turn an answer into that of the first error, with all of them in its body."""
    req.scope["registry.error"] = errors[0]  # for the log
    resp.status = falcon.code_to_http_status(errors[0].status)
    resp.content_type = JSON
    resp.stream = None
    resp.data = envelope(errors)
    for name, value in errors[0].headers.items():
        resp.set_header(name, value)


def from_storage(error: StorageError) -> RegistryError:
    """What a client may know of a failure of storage: nothing of paths, all of what to do."""
    if isinstance(error, StorageFull):
        return Unavailable("the registry's storage is full: nothing was changed", headers=_RETRY)
    if isinstance(error, StorageTimeout):
        return Unavailable("the registry's storage does not answer: try again later", headers=_RETRY)
    return Unavailable("the registry's storage answered with an error: try again later", headers=_RETRY)


def from_falcon(error: falcon.HTTPError) -> RegistryError:
    """Falcon's own refusals: a path that is no route, a method that a route does not have, a bad header."""
    headers = dict(error.headers or {})
    status = falcon.http_status_to_code(error.status)
    if status == 404:
        return NoSuchRoute("there is nothing at this path")
    if status == 405:
        return Unsupported("this path does not take this method", headers=headers)
    if status == 413:
        return TooLarge(headers=headers)
    return BadRequest(error.description or error.title, message="the request is not acceptable", headers=headers)


def install(app: falcon.asgi.App[Request, Response]) -> None:
    """Make this module the only one that says how an error looks."""

    async def ours(req: Request, resp: Response, error: RegistryError, __: Any) -> None:
        respond(req, resp, [error])

    async def several(req: Request, resp: Response, error: RegistryErrors, __: Any) -> None:
        respond(req, resp, error.errors)

    async def ended(req: Request, resp: Response, error: BodyEnded, __: Any) -> None:
        respond(req, resp, [SizeInvalid(str(error))])

    async def storage(req: Request, resp: Response, error: StorageError, __: Any) -> None:
        _log.error("storage failed: %s: %s", _told(req), error)
        respond(req, resp, [from_storage(error)])

    async def framework(req: Request, resp: Response, error: falcon.HTTPError, __: Any) -> None:
        respond(req, resp, [from_falcon(error)])

    async def bug(req: Request, resp: Response, error: Exception, __: Any) -> None:
        _log.error("unhandled error: %s", _told(req), exc_info=error)
        respond(req, resp, [Unknown()])

    app.add_error_handler(Exception, bug)
    app.add_error_handler(falcon.HTTPError, framework)
    app.add_error_handler(RegistryError, ours)
    app.add_error_handler(RegistryErrors, several)
    app.add_error_handler(BodyEnded, ended)
    app.add_error_handler(StorageError, storage)


def _told(req: Request) -> str:
    """Which request this is, so that its line in the access log is found."""
    return f"{req.method} {req.path}, request {req.scope.get('registry.request_id', '-')}"
