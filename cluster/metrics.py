"""Prometheus metrics, under Distribution's names. The only importer of prometheus_client.

Several workers share one set: each keeps its numbers in files of a directory, and whichever is asked adds them up.
That directory must be named in the environment before this module is imported (serve.py does).
"""

from __future__ import annotations

import asyncio

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from cluster.api.edge import Record
from cluster.api.errors import Request, Response

# Every set of labels is kept for good and shown in each exposition, so a client may not make one up.
_METHODS = {name: name.lower() for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)
_BYTES = tuple(float(1 << power) for power in range(8, 36, 3))


class Metrics:
    """What is counted of requests."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        by_handler = ["handler"]
        self._requests = Counter(
            "registry_http_requests", "Requests answered.", ["code", "handler", "method"], registry=registry
        )
        self._seconds = Histogram(
            "registry_http_request_duration_seconds",
            "Time from a request's head to the end of its answer.",
            [*by_handler, "method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._received = Histogram(
            "registry_http_request_size_bytes", "Request bodies.", by_handler, buckets=_BYTES, registry=registry
        )
        self._sent = Histogram(
            "registry_http_response_size_bytes", "Answer bodies.", by_handler, buckets=_BYTES, registry=registry
        )
        self.in_flight = Gauge(
            "registry_http_in_flight_requests",
            "Requests under way.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def __call__(self, record: Record) -> None:
        handler = record.scope.get("registry.handler", "none")
        method = _METHODS.get(record.scope["method"], "other")
        self._requests.labels(str(record.status), handler, method).inc()
        self._seconds.labels(handler, method).observe(record.seconds)
        self._received.labels(handler).observe(record.received)
        self._sent.labels(handler).observe(record.sent)


def forget_worker(pid: int) -> None:
    """A worker has ended: its gauges no longer count."""
    multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


class MetricsResource:
    """The numbers of all workers, on the debug port."""

    async def on_get(self, req: Request, resp: Response) -> None:
        resp.content_type = CONTENT_TYPE_LATEST
        resp.data = await asyncio.to_thread(_exposition)  # it reads a file of each worker there ever was


def _exposition() -> bytes:
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
