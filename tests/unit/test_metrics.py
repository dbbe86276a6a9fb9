"""What is counted of requests, and that clients cannot make it grow."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from cluster.api.edge import Record
from cluster.metrics import Metrics


def count(metrics: Metrics, method: str) -> None:
    scope = {"method": method, "registry.handler": "base"}
    metrics(Record(scope, {}, "id", 200, 0, 0, 0.0))


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_requests_are_counted_by_method(method: str) -> None:
    registry = CollectorRegistry()
    count(Metrics(registry), method)
    wanted = {"code": "200", "handler": "base", "method": method.lower()}
    assert registry.get_sample_value("registry_http_requests_total", wanted) == 1


def test_methods_that_clients_make_up_are_one() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for number in range(100):
        count(metrics, f"X{number}")
    wanted = {"code": "200", "handler": "base", "method": "other"}
    assert registry.get_sample_value("registry_http_requests_total", wanted) == 100
    assert generate_latest(registry).count(b"registry_http_requests_total{") == 1
