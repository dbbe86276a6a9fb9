"""What a line of the access log holds of a request, and what it costs; whole nodes are in tests/node."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from typing import Any

import pytest

from cluster.api.edge import Record
from cluster.auth.access import Access, to_detail
from cluster.errors import Denied, ManifestUnknown
from cluster.logs import AccessLog
from cluster.outlet import Outlet

LONG = b"a" * 20_000


def line(
    formatter: str = "text", *, query: bytes = b"", path: bytes = b"/v2/", error: Any = None, **headers: bytes
) -> str:
    """The line of one request, and of the error that it was answered with."""
    given = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    scope: dict[str, Any] = {"method": "GET", "http_version": "1.1", "raw_path": path, "query_string": query}
    scope["registry.error"] = error
    record = Record(scope, given, "id", 200, 0, 0, 0.0)

    async def write() -> bytes:
        with tempfile.TemporaryFile() as file:
            outlet = Outlet(file.fileno(), "file")
            log = AccessLog(formatter, {}, outlet)
            log(record)
            log.flush()
            outlet.drain(20)
            file.seek(0)
            return file.read()

    return asyncio.run(write()).decode()


@pytest.mark.parametrize("formatter", ["text", "json"])
@pytest.mark.parametrize(
    "request_of",
    [
        {"query": LONG},
        {"query": b"=" * 20_000},
        {"path": b"/v2/" + LONG},
        {"referer": b"http://x/?" + LONG},
        {"referer": LONG},
        {"user_agent": b"\xff" * 20_000},
    ],
)
def test_a_long_request_is_cut_in_the_log_and_costs_little(formatter: str, request_of: dict[str, bytes]) -> None:
    started = time.thread_time()  # of which others on this machine take nothing
    text = line(formatter, **request_of)
    assert time.thread_time() - started < 0.5
    assert len(text) < 13_000
    # The JSON form has no referer.
    assert "..." in text or (formatter == "json" and "referer" in request_of)


@pytest.mark.parametrize(
    ("query", "logged"),
    [
        (b"a=b&c", "a=b&c"),
        (b"_state=secret&digest=sha256:1", "_state=<hidden>&digest=sha256:1"),
        (b"a=1&%5Fstate=secret", "a=1&%5Fstate=<hidden>"),
        (b"Token=x=y&&=z", "Token=<hidden>&&=z"),
        (b"digest=x&_state=" + LONG, "digest=x&_state=<hidden>"),
    ],
)
def test_secrets_are_hidden_however_they_are_spelt(query: bytes, logged: str) -> None:
    assert f" /v2/?{logged} HTTP/1.1" in line(query=query)
    assert f'"http://x/?{logged}"' in line(referer=b"http://x/?" + query)
    assert json.loads(line("json", query=query))["http.request.uri"] == f"/v2/?{logged}"


def test_json_says_why_a_request_was_refused_in_words_of_distribution() -> None:
    said = json.loads(line("json", error=ManifestUnknown("a has no tag v1")))
    assert said["err.code"] == "manifest unknown"
    assert said["err.message"] == "manifest unknown"
    assert said["err.detail"] == "a has no tag v1"
    assert "err.detail" not in json.loads(line("json", error=ManifestUnknown()))
    assert "err.code" not in json.loads(line("json"))
    denied = json.loads(line("json", error=Denied(to_detail([Access("repository", "a", "push")]))))
    assert json.loads(denied["err.detail"]) == [{"Type": "repository", "Class": "", "Name": "a", "Action": "push"}]
    assert len(line("json", error=ManifestUnknown("x" * 20_000))) < 3000
