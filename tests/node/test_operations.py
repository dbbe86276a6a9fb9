"""What those who run a node rely on: health, metrics, limits, clean-up, where it listens, and its configuration."""

import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

import cluster.drill
from tests.node.nodes import brief, no_trouble, stored
from tests.node.raw import Answer, Place, Wire, begin, chunk, get, head, push
from tests.support.process import Config, Node, eventually, free_port
from tests.support.tools import require


class Watched(Node):
    """A node with two workers and a debug port; its temporary files are in its directory too."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.debug = f"127.0.0.1:{free_port()}"
        debug = {"addr": self.debug, "prometheus": {"enabled": True}}
        check = {"storagedriver": {"enabled": True, "interval": "200ms", "threshold": 2}}
        config = {"http": {"debug": debug}, "health": check, "cluster": {"workers": 2}}
        super().__init__(directory, config, env={"TMPDIR": os.fspath(directory)})

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name with those labels."""
        total = 0.0
        for line in get(f"http://{self.debug}/metrics").body.decode().splitlines():
            match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if match and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', match[1] or "")).items():
                total += float(match[2])
        return total


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with brief(Watched(tmp_path_factory.mktemp("watched"))) as node:
        yield node


def test_a_node_whose_storage_is_another_one_now_takes_no_more_work(tmp_path: Path) -> None:
    """As when a mount goes away, and below it lies the tree of a start of long ago: it can be written to."""
    node = Watched(tmp_path)
    with brief(node):
        node.stop()
        shutil.copytree(node.root, tmp_path / "below")
        node.start()
        mounted = tmp_path / "mounted"
        os.rename(node.root, mounted)
        os.rename(tmp_path / "below", node.root)
        eventually(lambda: get(f"{node.url}/readyz").status == 503, 20, "the node is unready")
        assert get(f"{node.url}/healthz").json()["storage"]["error"] == "StorageReplaced"
        assert "the mark of this node is not in" in node.log()
        os.rename(node.root, tmp_path / "below")
        os.rename(mounted, node.root)
        eventually(lambda: get(f"{node.url}/readyz").status == 200, 20, "the node is ready again")


def test_a_healthy_node_says_so_in_three_ways(watched: Watched) -> None:
    assert get(f"{watched.url}/livez").json() == {"status": "live"}
    assert get(f"{watched.url}/readyz").json() == {"status": "ready"}
    health = get(f"{watched.url}/healthz").json()
    assert (health["status"], health["ready"], health["storage"]["status"]) == ("ok", True, "ok")
    assert get(f"http://{watched.debug}/debug/health").json() == {}
    for path in ("livez", "readyz", "healthz"):
        with Wire(watched.port) as wire:
            answer = wire.ask("HEAD", f"/{path}")
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")


def test_failing_storage_makes_the_node_unready_and_not_dead_until_it_is_back(watched: Watched) -> None:
    blob = push(watched.port, "health", [b"health"])
    away = f"{watched.root}.away"
    before = len(watched.log())

    def told(what: str) -> bool:
        """Whether both workers have said so: each looks by itself, and any may take the next request."""
        return watched.log().count(what, before) >= 2

    os.rename(watched.root, away)
    try:
        eventually(lambda: told("storage fails: "), 20, "both workers notice")
        for _ in range(10):
            eventually(lambda: get(f"{watched.url}/readyz").status == 503, 20, "the node is not ready")
        assert get(f"{watched.url}/livez").status == 200
        assert get(f"{watched.url}/v2/").status == 200
        health = get(f"{watched.url}/healthz")
        assert (health.status, health.json()["storage"]["status"]) == (503, "failing")
        failing = eventually(lambda: get(f"http://{watched.debug}/debug/health").json(), 20, "the check fails")
        assert list(failing) == ["storagedriver_filesystem"]
        with Wire(watched.port) as wire:
            started = wire.ask("POST", "/v2/health/blobs/uploads/", "Content-Length: 0")
        assert (started.status, started.error()) == (503, "UNAVAILABLE")
        assert "retry-after" in started.headers
        assert not os.path.exists(watched.root), "nothing may be written where storage is not mounted"
    finally:
        os.rename(away, watched.root)
    eventually(lambda: told("storage works again"), 20, "both workers notice that, too")
    for _ in range(10):
        eventually(lambda: get(f"{watched.url}/readyz").status == 200, 20, "the node is ready again")
    assert get(f"{watched.url}/v2/health/blobs/{blob}").body == b"health"
    eventually(lambda: get(f"http://{watched.debug}/debug/health").json() == {}, 20, "so says the other port")


def test_that_redis_fails_is_told_to_anybody_and_where_it_is_only_to_the_log(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with brief(Node(tmp_path, {"redis": {"addrs": [address]}})) as node:
        eventually(lambda: address in node.log(), 20, "the log says why")
        health = get(f"{node.url}/healthz")
        assert (health.status, health.json()["redis"]) == (200, {"status": "failing"})


def test_the_debug_port_and_the_main_port_serve_nothing_of_each_other(watched: Watched) -> None:
    for path in ("/metrics", "/debug/health"):
        answer = get(f"{watched.url}{path}")
        assert (answer.status, answer.error()) == (404, "UNSUPPORTED")
        assert get(f"http://{watched.debug}{path}").status == 200
    assert get(f"http://{watched.debug}/v2/").status == 404
    assert get(f"http://{watched.debug}/livez").status == 200


def test_requests_are_counted_exactly_once_whichever_worker_took_them(watched: Watched) -> None:
    def counted(code: str) -> float:
        labels = {"code": code, "handler": "manifest", "method": "get"}
        return watched.metric("registry_http_requests_total", **labels)

    assert counted("404") == 0
    for _ in range(100):
        assert get(f"{watched.url}/v2/count/manifests/none").status == 404
    eventually(lambda: counted("404") == 100, 20, "all requests are counted")
    for name in ("request_duration_seconds", "response_size_bytes"):  # noted a moment after the request itself
        metric = partial(watched.metric, f"registry_http_{name}_count", handler="manifest")
        eventually(lambda metric=metric: metric() == 100, 20, f"{name} of all requests is noted")  # type: ignore[misc]
    for _ in range(10):  # whichever worker adds them up
        assert counted("404") == 100


def test_sizes_of_bodies_are_measured(watched: Watched) -> None:
    sizes = {"handler": "blob_upload_chunk"}
    before = watched.metric("registry_http_request_size_bytes_sum", **sizes)
    digest = push(watched.port, "sizes", [b"x" * 100_000])
    assert get(f"{watched.url}/v2/sizes/blobs/{digest}").status == 200
    received = "registry_http_request_size_bytes_sum"
    eventually(lambda: watched.metric(received, **sizes) - before == 100_000, 20, "the upload is measured")
    sent = "registry_http_response_size_bytes_sum"
    eventually(lambda: watched.metric(sent, handler="blob") >= 100_000, 20, "the download is measured")


def test_counters_stay_and_gauges_go_when_a_worker_dies(tmp_path: Path) -> None:
    with brief(Watched(tmp_path)) as node, Wire(node.port) as wire:
        for _ in range(20):
            get(f"{node.url}/v2/")
        counter = "registry_http_requests_total"
        eventually(lambda: node.metric(counter, handler="base") == 20, 20, "all requests are counted")
        wire.send(head("PATCH", begin(node.port, "dies"), "Content-Length: 10"), b"half")
        gauge = "registry_http_in_flight_requests"
        eventually(lambda: node.metric(gauge) == 1, 20, "the upload is seen under way")
        before = set(node.children())
        for pid in before:
            os.kill(pid, 9)
        eventually(lambda: len(set(node.children()) - before) == 2, 20, "both workers were replaced")
        eventually(lambda: answers(node.debug), 20, "the debug port answers")
        assert node.metric(counter, handler="base") == 20
        assert node.metric(gauge) == 0


def answers(address: str) -> bool:
    try:
        return get(f"http://{address}/livez").status == 200
    except OSError:
        return False


def test_no_second_arbiter_comes_beside_the_first(tmp_path: Path) -> None:
    """gunicorn would start one at SIGUSR2, with the same name and the same address."""
    with Node(tmp_path) as node:
        workers = node.children()
        node.send(signal.SIGUSR2)
        taken = f"http.addr: {node.host}: address already in use"
        eventually(lambda: taken in node.log() and node.children() == workers, 20, "it has ended")
        assert get(f"{node.url}/readyz").status == 200


def test_the_files_in_which_workers_share_their_numbers_go_with_the_node(tmp_path: Path) -> None:
    with Watched(tmp_path) as node:
        (shared,) = tmp_path.glob("registry-cluster-metrics-*")
        eventually(lambda: len({file.stem.split("_")[-1] for file in shared.iterdir()}) == 2, 20, "both have files")
        assert node.stop() == 0
        assert not shared.exists()


def test_a_worker_takes_no_more_bodies_than_it_may(tmp_path: Path) -> None:
    with brief(Node(tmp_path, {"cluster": {"maxuploads": 1}})) as node, Wire(node.port) as wire:
        location = begin(node.port, "bound")
        wire.send(head("PATCH", location, "Transfer-Encoding: chunked"), chunk(b"first"))
        other = begin(node.port, "bound")
        with Wire(node.port) as second:
            refused = eventually(lambda: too_many(second, other), 20, "the second body is refused")
            assert refused is not None
            assert refused.headers["retry-after"].isdecimal()
            assert wire.send(chunk(b"")).answer().status == 202
            accepted = second.ask("PATCH", other, "Content-Length: 6", body=b"second")
            assert accepted.status == 202
        eventually(lambda: get(f"{node.url}/healthz").json()["uploads"] == 0, 20, "no upload is under way")


def test_uploads_under_way_are_shown_for_all_workers_and_those_of_a_dead_one_are_not(tmp_path: Path) -> None:
    with brief(Node(tmp_path, {"cluster": {"workers": 2}})) as node, ExitStack() as stack:
        eventually(lambda: len(node.children()) == 2, 20, "there are two workers")

        def shown() -> set[int]:
            """What ten requests see, whichever workers take them."""
            return {get(f"{node.url}/healthz").json()["uploads"] for _ in range(10)}

        for _ in range(8):  # more than one worker takes
            wire = stack.enter_context(Wire(node.port))
            wire.send(head("PATCH", begin(node.port, "counted"), "Transfer-Encoding: chunked"), chunk(b"first"))
        eventually(lambda: shown() == {8}, 20, "every worker knows of all eight")
        for worker in node.children():
            os.kill(worker, signal.SIGKILL)
        eventually(lambda: answers(node.host) and shown() == {0}, 20, "nothing of the dead is counted")


def too_many(wire: Wire, location: str) -> Answer | None:
    answer = wire.ask("PATCH", location, "Content-Length: 0")
    return answer if answer.status == 429 and answer.error() == "TOOMANYREQUESTS" else None


def test_uploads_that_nobody_goes_on_with_are_purged_and_those_under_way_are_not(tmp_path: Path) -> None:
    purging = {"enabled": True, "age": "1s", "interval": "500ms"}
    with (
        brief(Node(tmp_path, {"storage": {"maintenance": {"uploadpurging": purging}}})) as node,
        Wire(node.port) as wire,
    ):
        busy = begin(node.port, "purge/busy")
        wire.send(head("PATCH", busy, "Transfer-Encoding: chunked"), chunk(b"slow"))
        eventually(lambda: stored(node, busy) is not None, 20, "the upload is under way")
        idle = begin(node.port, "purge/idle")
        eventually(lambda: get(node.url + idle).status == 404, 20, "the idle upload is purged")
        assert get(node.url + idle).error() == "BLOB_UPLOAD_UNKNOWN"
        time.sleep(2)  # two ages and four intervals: long enough to be purged, if writing did not save it
        answer = wire.send(chunk(b"er"), chunk(b"")).answer()
        assert (answer.status, answer.headers["range"]) == (202, "0-5")
        assert no_trouble(node.log())


def test_a_node_whose_clock_is_a_month_ahead_purges_nothing_that_is_young(tmp_path: Path) -> None:
    library, ahead = tmp_path / "clock.so", tmp_path / "ahead"
    source = Path(cluster.drill.__file__).with_name("clock.c")
    subprocess.run([require("cc"), "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
    ahead.write_text(f"{30 * 86400}\n", encoding="ascii")
    purging = {"enabled": True, "age": "168h", "interval": "500ms"}
    config = {"storage": {"maintenance": {"uploadpurging": purging}}}
    env = {"LD_PRELOAD": str(library), "CLOCK_AHEAD": str(ahead)}
    with brief(Node(tmp_path, config, env=env)) as node:
        young = begin(node.port, "purge/young")
        purges = node.log().count("upload purge:")
        eventually(lambda: node.log().count("upload purge:") > purges + 1, 20, "another purge is over")
        assert get(node.url + young).status == 204


class Elsewhere(Node):
    """A node that does not listen at its port of 127.0.0.1, or not there alone."""

    def __init__(self, directory: str | os.PathLike[str], place: Place, config: Config) -> None:
        self.place = place
        super().__init__(directory, config)

    def _answers(self) -> bool:
        try:
            with Wire(self.place) as wire:
                return wire.ask("GET", "/readyz").status == 200
        except OSError:
            return False


def test_a_node_listens_on_a_unix_socket_and_removes_it_at_the_end(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with Elsewhere(tmp_path, path, {"http": {"net": "unix", "addr": path, "relativeurls": False}}) as node:
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        with Wire(path) as wire:
            assert wire.ask("GET", "/v2/").json() == {}
            answer = wire.ask("POST", "/v2/u/blobs/uploads/", "Content-Length: 0", "X-Forwarded-Proto: https")
            assert answer.headers["location"].startswith("https://registry.test/v2/u/blobs/uploads/")
        assert no_trouble(node.log())
    assert not os.path.exists(path)


@pytest.mark.parametrize(("address", "hosts"), [("[::1]", ["::1"]), ("", ["::1", "127.0.0.1"])])
def test_a_node_listens_on_ipv6(tmp_path: Path, address: str, hosts: list[str]) -> None:
    port = free_port()
    with brief(Elsewhere(tmp_path, ("::1", port), {"http": {"addr": f"{address}:{port}"}})) as node:
        for host in hosts:
            with Wire((host, port)) as wire:
                assert wire.ask("GET", "/v2/").json() == {}
        assert no_trouble(node.log())


def test_variables_override_the_file(tmp_path: Path) -> None:
    variables = {
        "REGISTRY_HTTP_HEADERS_X-From-Variable": "[yes]",
        "REGISTRY_STORAGE_DELETE_ENABLED": "false",
        "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(tmp_path / "elsewhere"),
        "REGISTRY_HTTP_RELATIVEURLS": "false",
        "REGISTRY_LOG_FORMATTER": "json",
        "WEB_CONCURRENCY": "3",
    }
    (tmp_path / "elsewhere").mkdir()
    with brief(Node(tmp_path, {"http": {"headers": {"X-From-File": ["kept"]}}}, env=variables)) as node:
        digest = push(node.port, "variables", [b"blob"])
        with Wire(node.port) as wire:
            answer = wire.ask("DELETE", f"/v2/variables/blobs/{digest}")
        assert answer.status == 405
        assert (answer.headers["x-from-variable"], answer.headers["x-from-file"]) == ("yes", "kept")
        assert begin(node.port, "variables").startswith("http://registry.test/v2/")
        eventually(lambda: len(node.children()) == 3, 20, "there are three workers")
        assert all(line.startswith("{") for line in node.log().splitlines())
    assert (tmp_path / "elsewhere/docker/registry/v2/repositories/variables").is_dir()
