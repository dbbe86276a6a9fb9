"""`/livez`, `/readyz`, `/healthz`, and `/debug/health` as Distribution has it.

Three questions: does the process turn, may a balancer send work, and what does it all depend on.
"""

from __future__ import annotations

import json
from typing import Any

from cluster.api.errors import JSON, Request, Response
from cluster.registry.health import Health


def _answer(resp: Response, body: dict[str, Any], *, good: bool) -> None:
    resp.status = 200 if good else 503
    resp.content_type = JSON
    resp.set_header("Cache-Control", "no-store")
    resp.data = json.dumps(body).encode() + b"\n"


class LiveResource:
    """The process turns."""

    async def on_get(self, req: Request, resp: Response) -> None:
        _answer(resp, {"status": "live"}, good=True)

    on_head = on_get


class ReadyResource:
    """The node takes work: not while it drains, nor while its own storage fails."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def on_get(self, req: Request, resp: Response) -> None:
        problem = self._health.not_ready()
        _answer(resp, {"status": problem or "ready"}, good=problem is None)

    on_head = on_get


class HealthResource:
    """Everything the node depends on, for people and monitoring; 503 when any of it is down."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def on_get(self, req: Request, resp: Response) -> None:
        report = await self._health.report()
        _answer(resp, report, good=report["status"] == "ok")

    on_head = on_get


class DebugHealthResource:
    """Distribution's form: an object of failing checks, empty when all is well."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def on_get(self, req: Request, resp: Response) -> None:
        failing = self._health.failing()
        _answer(resp, failing, good=not failing)

    on_head = on_get
