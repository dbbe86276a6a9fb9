"""The one table of all endpoints, and the router that reads it.

Repository names contain slashes, which no template of Falcon's own router can place in the middle; so a path is
matched from its end. The router is loose (any name, any last segment) and cluster/oci is strict: a bad name is
NAME_INVALID and not a page that is not found. OCI distribution-spec, "Endpoints".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import falcon.asgi
from falcon.routing import map_http_methods, set_default_responders

Found = tuple[object, dict[str, Any], dict[str, str], str]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint: `template` is its label in logs and metrics, `param` what its last segment is."""

    template: str
    handler: str  # the name that Distribution's metrics have for it
    param: str | None = None


BASE = Route("/v2/", "base")
CATALOG = Route("/v2/_catalog", "catalog")
# In the order in which they are tried: a name may itself end with `blobs/uploads` or `manifests`.
TAGS = Route("/v2/{name}/tags/list", "tags")
UPLOADS = Route("/v2/{name}/blobs/uploads/", "blob_upload")
UPLOAD = Route("/v2/{name}/blobs/uploads/{uuid}", "blob_upload_chunk", "uuid")
BLOB = Route("/v2/{name}/blobs/{digest}", "blob", "digest")
MANIFEST = Route("/v2/{name}/manifests/{reference}", "manifest", "reference")
REFERRERS = Route("/v2/{name}/referrers/{digest}", "referrers", "digest")
ROOT = Route("/", "root")
LIVE = Route("/livez", "health")
READY = Route("/readyz", "health")
HEALTH = Route("/healthz", "health")
_WITHOUT_PREFIX = {route.template for route in (ROOT, LIVE, READY, HEALTH)}


class Router:
    """What Falcon asks of a router: `add_route` and `find`."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._resources: dict[str, tuple[Route, object, dict[str, Any]]] = {}

    def add(self, route: Route, resource: object) -> None:
        """Serve a route by the `on_get`, `on_put`, ... of a resource."""
        methods = map_http_methods(resource)
        set_default_responders(methods, asgi=True)
        self._resources[route.template] = (route, resource, methods)

    def find(self, uri: str, req: falcon.asgi.Request) -> Found | None:
        """The resource for a path, or None."""
        path = self._path(req, uri)
        if path is None:
            return None
        exact = self._resources.get(path)
        if exact is not None and "{" not in path:  # somebody may ask for a template, letter by letter
            return self._found(exact, {}, req)
        if path == "/v2":
            return self._found(self._resources[BASE.template], {}, req)
        if not path.startswith("/v2/"):
            return None
        match = _match(path[4:].split("/"))
        if match is None:
            return None
        route, params = match
        known = self._resources.get(route.template)
        return known and self._found(known, params, req)

    def _path(self, req: falcon.asgi.Request, uri: str) -> str | None:
        """The path below the configured prefix; an encoded slash stays encoded, and so fits no grammar."""
        raw = req.scope.get("raw_path") or uri.encode("utf-8", "replace")
        path = str(raw, "latin-1").partition("?")[0]
        if "%" in path:
            path = "/".join(unquote(segment).replace("/", "%2F") for segment in path.split("/"))
        if self._prefix:
            if not path.startswith(self._prefix + "/"):
                return path if path in _WITHOUT_PREFIX else None
            path = path[len(self._prefix) :]
        return path

    @staticmethod
    def _found(
        known: tuple[Route, object, dict[str, Any]], params: dict[str, str], req: falcon.asgi.Request
    ) -> Found:
        route, resource, methods = known
        req.scope["registry.handler"] = route.handler
        return resource, methods, params, route.template


def _match(segments: list[str]) -> tuple[Route, dict[str, str]] | None:
    """The route of a path below /v2/, by its last segments."""
    if len(segments) < 3:
        return None
    *_, before, kind, last = segments
    if (kind, last) == ("tags", "list"):
        return TAGS, {"name": "/".join(segments[:-2])}
    if before == "blobs" and kind == "uploads" and len(segments) > 3:
        name = "/".join(segments[:-3])
        return (UPLOAD, {"name": name, "uuid": last}) if last else (UPLOADS, {"name": name})
    if (kind, last) == ("blobs", "uploads"):
        return UPLOADS, {"name": "/".join(segments[:-2])}
    route = {"blobs": BLOB, "manifests": MANIFEST, "referrers": REFERRERS}.get(kind)
    if route is None or route.param is None:
        return None
    return route, {"name": "/".join(segments[:-2]), route.param: last}
