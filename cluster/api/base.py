"""`GET /v2/`, the version probe (OCI end-1), and `/`."""

from __future__ import annotations

from cluster.api.errors import JSON, Request, Response


class BaseResource:
    """Says that this is a registry."""

    async def on_get(self, req: Request, resp: Response) -> None:
        resp.content_type = JSON
        resp.data = b"{}"

    on_head = on_get


class RootResource:
    """Says that something is listening; some load balancers ask for no more."""

    async def on_get(self, req: Request, resp: Response) -> None:
        resp.set_header("Cache-Control", "no-cache")

    on_head = on_get
