"""What a node writes about its requests, and what it must never write."""

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.node.nodes import brief
from tests.node.raw import Wire, begin, digest_of, get, head
from tests.support.process import SECRET, Node, eventually

LINE = re.compile(
    r'127\.0\.0\.1 - - \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000\] "(?P<request>[^"]*)" '
    r'(?P<status>\d{3}) (?P<size>\d+) "(?P<referer>[^"]*)" "(?P<agent>[^"]*)" \d+\.\d{6} (?P<id>\S+)'
)


def text_lines(node: Node, wanted: int) -> list[re.Match[str]]:
    """The access log but for health checks; waits for that many lines."""

    def lines() -> list[re.Match[str]]:
        whole, _, _ = node.log().rpartition("\n")  # the last line may be on its way
        found = (LINE.fullmatch(line) for line in whole.splitlines() if line.startswith("127.0.0.1"))
        return [line for line in found if line and "/readyz" not in line["request"]]

    eventually(lambda: len(lines()) >= wanted, 20, f"{wanted} lines are in the log")
    return lines()


def json_lines(node: Node, wanted: int) -> list[dict[str, Any]]:
    """The same where it is written as JSON; every line of the log must be an object."""

    def lines() -> list[dict[str, Any]]:
        whole, _, _ = node.log().rpartition("\n")  # the last line may be on its way
        entries = [json.loads(line) for line in whole.splitlines()]
        return [entry for entry in entries if entry.get("http.request.uri", "/readyz") != "/readyz"]

    eventually(lambda: len(lines()) >= wanted, 20, f"{wanted} lines are in the log")
    return lines()


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Node(tmp_path_factory.mktemp("talkative"), {"log": {"level": "debug"}}) as node:
        yield node


def test_a_request_is_one_line_in_the_form_of_apache(tmp_path: Path) -> None:
    with brief(Node(tmp_path)) as node:
        answer = get(f"{node.url}/v2/log/manifests/none?a=b", "User-Agent: tester/1 (a)", "Referer: http://a/b")
        (line,) = text_lines(node, 1)
        assert line["request"] == "GET /v2/log/manifests/none?a=b HTTP/1.1"
        assert (line["status"], line["size"]) == ("404", str(len(answer.body)))
        assert (line["agent"], line["referer"]) == ("tester/1 (a)", "http://a/b")
        assert line["id"] == answer.headers["x-request-id"]


def test_a_probe_that_is_told_that_all_is_well_leaves_no_line(tmp_path: Path) -> None:
    with brief(Node(tmp_path)) as node:
        for path in ("livez", "readyz", "healthz", "livez/else"):
            get(f"{node.url}/{path}")
        (line,) = text_lines(node, 1)
        assert (line["request"], line["status"]) == ("GET /livez/else HTTP/1.1", "404")


def test_a_request_is_one_object_where_json_is_asked_for(tmp_path: Path) -> None:
    with brief(Node(tmp_path, {"log": {"formatter": "json", "fields": {"environment": "test"}}})) as node:
        with Wire(node.port) as wire:
            location = begin(node.port, "log")
            answer = wire.ask("PATCH", location, "Content-Length: 5", "User-Agent: tester", body=b"hello")
        line = json_lines(node, 2)[-1]
        assert line["http.request.method"] == "PATCH"
        assert line["http.request.uri"] == location.partition("=")[0] + "=<hidden>"
        assert (line["http.request.read"], line["http.response.status"]) == (5, 202)
        assert (line["http.response.written"], line["http.request.useragent"]) == (0, "tester")
        assert line["http.request.id"] == answer.headers["x-request-id"]
        assert line["http.request.remoteaddr"] == "127.0.0.1"
        assert line["environment"] == "test"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert 0 < line["http.response.duration"] < 20


@pytest.mark.parametrize("formatter", ["text", "json"])
@pytest.mark.parametrize(("proxies", "told"), [(["127.0.0.0/8"], "192.0.2.7"), (["10.0.0.0/8"], "127.0.0.1")])
def test_behind_a_proxy_that_is_written_down_the_client_is_the_one_that_it_tells(
    tmp_path: Path, formatter: str, proxies: list[str], told: str
) -> None:
    config = {"log": {"formatter": formatter}, "cluster": {"trustedproxies": proxies}}
    with brief(Node(tmp_path, config)) as node:
        for path in ("/v2/", "/nowhere"):
            get(f"{node.url}{path}", "X-Forwarded-For: 198.51.100.1, 192.0.2.7")
        shown = f'"http.request.remoteaddr": "{told}"' if formatter == "json" else f"{told} - - ["
        eventually(lambda: sum(shown in line for line in node.log().splitlines()) == 2, 20, "both are in the log")


def test_json_says_why_a_request_was_refused(tmp_path: Path) -> None:
    with brief(Node(tmp_path, {"log": {"formatter": "json"}})) as node:
        get(f"{node.url}/v2/log/manifests/none")
        get(f"{node.url}/nowhere")
        unknown, nowhere = json_lines(node, 2)
        assert (unknown["err.code"], unknown["err.detail"]) == ("manifest unknown", "log has no manifest none")
        assert nowhere["err.message"] == "no such route"


def test_no_line_is_written_where_the_access_log_is_off(tmp_path: Path) -> None:
    with Node(tmp_path, {"log": {"accesslog": {"disabled": True}}}) as node:
        assert get(f"{node.url}/v2/").status == 200
        assert node.stop() == 0
        assert "GET /v2/" not in node.log()


def test_a_request_keeps_the_id_that_it_came_with(talkative: Node) -> None:
    answer = get(f"{talkative.url}/v2/log/tags/list", "X-Request-Id: from-the-balancer:1.2_3")
    assert answer.headers["x-request-id"] == "from-the-balancer:1.2_3"
    eventually(lambda: re.search(r" from-the-balancer:1\.2_3$", talkative.log(), re.MULTILINE), 20, "it is logged")


@pytest.mark.parametrize("given", [None, "", "a b", 'a"b', "a" * 129, "\xe4", "a\tb"])
def test_a_request_without_a_usable_id_gets_one_of_its_own(talkative: Node, given: str | None) -> None:
    header = [] if given is None else [f"X-Request-Id: {given}"]
    with Wire(talkative.port) as wire:
        ids = {wire.ask("GET", "/v2/", *header).headers["x-request-id"] for _ in range(10)}
    assert len(ids) == 10
    assert all(re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", id_) for id_ in ids)


def test_what_a_client_writes_cannot_forge_a_line(talkative: Node) -> None:
    before = len(talkative.log())
    quotes = 'User-Agent: "" 200 0 "" "\\'
    get(f"{talkative.url}/v2/%0a127.0.0.1%20-%20-/tags/list?a=%0d%0a", quotes, "Referer: \xff\xe4")

    def lines() -> list[str]:
        """Whole lines about the request; what is told for debugging is written before the access log."""
        whole, _, _ = talkative.log()[before:].rpartition("\n")
        return [line for line in whole.splitlines() if "%0a127" in line and "debug" not in line]

    (line,) = eventually(lines, 20, "the request is logged")
    assert LINE.fullmatch(line) and line.isascii() and line.isprintable()


def test_neither_tokens_nor_credentials_nor_secrets_get_into_any_log(talkative: Node) -> None:
    node = talkative
    password = "correct-horse-battery-staple"
    basic = base64.b64encode(f"user:{password}".encode()).decode()
    secret_headers = [
        f"Authorization: Basic {basic}",
        f"Cookie: session={password}",
        f"X-Registry-Auth: {password}",
    ]
    with Wire(node.port) as wire:
        location = begin(node.port, "secrets")
        tokens = [location]
        for body in (b"hello", b"world"):
            answer = wire.ask("PATCH", location, "Content-Length: 5", *secret_headers, body=body)
            location = answer.headers["location"]
            tokens.append(location)
        assert wire.ask("PATCH", tokens[0], "Content-Length: 5", *secret_headers, body=b"wrong").status == 416
        assert wire.ask("GET", location.replace("_state", "%5Fst%61te"), *secret_headers).status == 204
        assert wire.ask("GET", "/v2/", f"Referer: http://{node.host}{location}").status == 200
        assert wire.ask("GET", f"http://user:{password}@{node.host}/v2/", *secret_headers).status == 200
        assert wire.ask("PUT", f"{location}&digest={digest_of(b'wrong')}", "Content-Length: 0").status == 400
    with Wire(node.port) as wire:
        wire.send(head("GET", "/v2/", *secret_headers, "broken"))
        assert wire.answer().status == 400
    eventually(lambda: "%5Fst%61te=<hidden>" in node.log(), 20, "the requests are logged")
    assert node.stop() == 0
    log = node.log()
    assert "_state=<hidden>" in log and "debug" in log
    for secret in [password, basic, SECRET, *(location.partition("_state=")[2][:40] for location in tokens)]:
        assert secret not in log, secret


def test_a_log_that_nobody_reads_keeps_no_request_waiting_and_no_node_from_stopping(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    reading = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    node = Node(tmp_path, {"log": {"level": "debug"}})
    try:
        with brief(node), Wire(node.port) as wire:
            for _ in range(500):  # a mebibyte of lines; a pipe holds a sixteenth of that
                assert wire.ask("GET", f"/v2/log/tags/list?{'a' * 2000}").status == 404
            assert node.stop() == 0
        assert b" /v2/log/tags/list?aaa" in os.read(reading, 64 * 1024)
    finally:
        os.close(reading)
