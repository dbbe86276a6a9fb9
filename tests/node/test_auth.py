"""Passwords on real nodes: files that change under load, limits over the cluster, logs, time, and bad moments."""

import base64
import itertools
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from cluster.auth import accounts, passwords
from cluster.auth.attempts import LIMIT
from tests.node.nodes import brief, no_trouble
from tests.node.raw import Answer, Wire, digest_of, get, head
from tests.support.process import Config, Node, eventually
from tests.support.redis import RedisServer

ALICE, PASSWORD = "alice", "correct-horse:bättery-staple"
COST = passwords.LOWEST_COST


def basic(user: str, password: str) -> str:
    return "Authorization: Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


KNOWN = basic(ALICE, PASSWORD)


def settings(path: str | Path, cluster: Config | None = None, **more: object) -> Config:
    """Accounts, and a client that may say for whom it asks, as a proxy does."""
    ours = {"trustedproxies": ["127.0.0.0/8"], **(cluster or {})}
    return {"auth": {"htpasswd": {"realm": "test", "path": str(path)}}, "cluster": ours, **more}


@pytest.fixture
def file(tmp_path: Path) -> str:
    """An htpasswd file with one user."""
    path = str(tmp_path / "htpasswd")
    accounts.put(path, ALICE, passwords.make(PASSWORD.encode(), COST))
    return path


def status(node: Node, *headers: str) -> int:
    return get(f"{node.url}/v2/", *headers).status


SOURCES = itertools.count()


def from_anywhere(node: Node, user: str, password: str) -> int:
    """The status for a credential that may still be wrong, from an address where nobody was wrong before."""
    number = next(SOURCES)
    source = f"X-Forwarded-For: 198.18.{number // 250}.{number % 250}"
    return status(node, basic(user, password), source)


# Files that change


def test_a_file_that_changes_under_load_fails_no_request_and_counts_within_seconds(
    tmp_path: Path, file: str
) -> None:
    accounts.put(file, "bob", passwords.make(b"old", COST))
    node = Node(tmp_path / "node", settings(file, cluster={"workers": 2}))
    over = threading.Event()

    def load() -> list[int]:
        """Statuses of one client, who logs in again on a new connection now and then."""
        seen = []
        while not over.is_set():
            with Wire(node.port) as wire:
                seen += [wire.ask("GET", "/v2/", KNOWN).status for _ in range(50)]
        return seen

    with brief(node), ThreadPoolExecutor(4) as clients:
        assert status(node, basic("bob", "old")) == 200
        loads = [clients.submit(load) for _ in range(4)]
        try:
            for number in range(15):
                accounts.put(file, f"user{number}", passwords.make(b"x", COST))
            accounts.put(file, "bob", passwords.make(b"new", COST))
            accounts.remove(file, "user0")
            eventually(lambda: from_anywhere(node, "bob", "new") == 200, 20, "the new password counts")
            # Each worker reads the file by itself.
            eventually(
                lambda: {from_anywhere(node, "bob", "old") for _ in range(8)} == {401},
                20,
                "and the old one does not",
            )
            eventually(lambda: from_anywhere(node, "user14", "x") == 200, 20, "the new user is known")
        finally:
            over.set()
        statuses = [each for load in loads for each in load.result(30)]
        assert len(statuses) > 100
        assert set(statuses) == {200}
        assert no_trouble(node.log())


def test_a_file_that_is_broken_while_a_node_serves_changes_nothing_and_the_log_names_the_line(
    tmp_path: Path, file: str
) -> None:
    with brief(Node(tmp_path / "node", settings(file))) as node:
        whole = Path(file).read_bytes()
        Path(file).write_bytes(whole + b"not an account\n")
        eventually(lambda: "line 2: wanted user:hash" in node.log(), 20, "the log tells the line")
        assert status(node, KNOWN) == 200
        Path(file).write_bytes(whole + b"bob:" + passwords.make(b"x", COST).encode() + b"\n")
        eventually(lambda: from_anywhere(node, "bob", "x") == 200, 20, "the file is read again")


def test_a_worker_that_comes_up_while_the_file_is_broken_lets_nobody_in_until_it_is_right(
    tmp_path: Path, file: str
) -> None:
    with brief(Node(tmp_path / "node", settings(file))) as node:
        whole = Path(file).read_bytes()
        Path(file).write_bytes(b"not an account\n")
        (worker,) = node.children()
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: node.children() not in ([], [worker]), 20, "there is another worker")
        eventually(lambda: get(f"{node.url}/readyz").status == 200, 20, "it serves")
        answer = get(f"{node.url}/v2/", KNOWN)
        assert (answer.status, answer.error(), answer.headers["retry-after"]) == (503, "UNAVAILABLE", "5")
        Path(file).write_bytes(whole)
        eventually(lambda: status(node, KNOWN) == 200, 20, "the file is read again")
        assert node.running


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"alice:x\n\nno account\n", "line 3: wanted user:hash"), (b":x\n", "line 1: wanted user:hash")],
)
def test_a_node_does_not_start_with_a_file_that_it_cannot_read(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    path = tmp_path / "htpasswd"
    path.write_bytes(content)
    node = Node(tmp_path / "node", settings(path))
    with pytest.raises(AssertionError, match="stopped at once"):
        node.start()
    assert f"{path}: {problem}" in node.log()
    assert "Traceback" not in node.log()


def test_of_nodes_that_find_no_file_one_makes_it_and_tells_its_password(tmp_path: Path) -> None:
    path = tmp_path / "auth" / "htpasswd"
    nodes = [Node(tmp_path / f"node-{number}", settings(path), root=tmp_path / "data") for number in range(2)]
    with brief(nodes[0]) as one, brief(nodes[1]) as other:
        told = f"the user docker, whose password is in {path}.password"
        assert sum(node.log().count(told) for node in nodes) == 1
        password = Path(f"{path}.password").read_text().strip()
        assert all(password not in node.log() for node in nodes)
        assert [status(node, basic("docker", password)) for node in (one, other)] == [200, 200]
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(path.parent)) == ["htpasswd", "htpasswd.password"]


# Limits


@contextmanager
def pair(tmp_path: Path, file: str, redis: RedisServer | None) -> Iterator[list[Node]]:
    """Two nodes of one worker."""
    more: Config = {"redis": {"addrs": [redis.address]}} if redis else {}
    nodes = [
        Node(tmp_path / f"node-{n}", settings(file, cluster={"name": f"node-{n}"}, **more), root=tmp_path / "data")
        for n in range(2)
    ]
    with brief(nodes[0]), brief(nodes[1]):
        yield nodes


def guess(node: Node, source: str = "", number: int = 0) -> Answer:
    headers = [f"X-Forwarded-For: {source}"] if source else []
    return get(f"{node.url}/v2/", basic(ALICE, f"wrong {number}"), *headers)


def test_guesses_are_limited_over_all_nodes_and_the_user_comes_in_from_elsewhere(tmp_path: Path, file: str) -> None:
    with RedisServer(tmp_path / "redis") as redis, pair(tmp_path, file, redis) as (one, other):
        for node in (one, other):
            eventually(lambda node=node: '"redis":{"status":"ok"}' in health(node), 20, "Redis is there")
        for number in range(LIMIT):
            assert guess((one, other)[number % 2], "203.0.113.9", number).status == 401
        for node in (one, other):
            eventually(lambda node=node: guess(node, "203.0.113.9").status == 429, 20, "it is stopped")
            refused = get(f"{node.url}/v2/", KNOWN, "X-Forwarded-For: 203.0.113.9")
            assert (refused.status, refused.error()) == (429, "TOOMANYREQUESTS")
            assert 0 < int(refused.headers["retry-after"]) <= 60
            assert status(node, KNOWN, "X-Forwarded-For: 203.0.113.10") == 200
            assert status(node, KNOWN) == 200
        (key,) = redis.ask("KEYS", "registry-cluster:failures:*")
        assert 0 < redis.ask("PTTL", key) <= 60_000
        assert ALICE.encode() not in key


def health(node: Node) -> str:
    return get(f"{node.url}/healthz").body.decode().replace(" ", "")


def test_without_redis_and_when_it_is_lost_each_worker_limits_by_itself(tmp_path: Path, file: str) -> None:
    redis = RedisServer(tmp_path / "redis")
    with redis, pair(tmp_path, file, redis) as (one, other):
        redis.kill()
        for number in range(LIMIT):
            assert guess(one, "203.0.113.9", number).status == 401
        assert guess(one, "203.0.113.9").status == 429
        assert guess(other, "203.0.113.9").status == 401


# Bodies


def test_a_refusal_reaches_a_client_that_sends_on(tmp_path: Path, file: str) -> None:
    body = os.urandom(4 * 1024 * 1024)
    with brief(Node(tmp_path / "node", settings(file))) as node:
        for framing in (f"Content-Length: {len(body)}", "Transfer-Encoding: chunked"):
            data = body if "Length" in framing else b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
            with Wire(node.port) as wire:
                refused = wire.ask("POST", f"/v2/a/blobs/uploads/?digest={digest_of(body)}", framing, body=data)
                assert (refused.status, refused.error()) == (401, "UNAUTHORIZED")
                assert refused.headers["www-authenticate"] == 'Basic realm="test"'
                assert wire.ask("GET", "/v2/", KNOWN).status == 200, "the connection is of use"
        with Wire(node.port) as wire:
            wire.send(head("PUT", "/v2/a/manifests/v1", "Expect: 100-continue", "Content-Length: 1000000"))
            refused = wire.answer()
            assert (refused.status, refused.interim) == (401, ())
        with Wire(node.port) as wire:
            assert wire.ask("HEAD", "/v2/a/manifests/v1").status == 401
            assert wire.ask("GET", "/v2/", KNOWN).status == 200
        assert no_trouble(node.log())


# Logs


@pytest.mark.parametrize("formatter", ["text", "json"])
def test_the_log_tells_the_user_and_never_a_credential(tmp_path: Path, file: str, formatter: str) -> None:
    wrong = "swordfish-and-chips"
    log = {"level": "debug", "formatter": formatter}
    with brief(Node(tmp_path / "node", settings(file, log=log))) as node:
        assert status(node, KNOWN) == 200
        assert status(node, basic(ALICE, wrong)) == 401
        assert status(node, basic(wrong, wrong)) == 401, "who types the password for the user is not told either"
        assert status(node, f"Authorization: Bearer {wrong}") == 401
        assert status(node, f"Authorization: Basic {wrong}") == 401
        for path in (f"/v2/a/tags/list?password={wrong}", f"/v2/a/tags/list?account=b&refresh_token={wrong}"):
            assert get(f"{node.url}{path}", KNOWN).status == 404
        eventually(lambda: node.log().count("/v2/") >= 7, 20, "all requests are logged")
        told = '"auth.user.name": "alice"' if formatter == "json" else "127.0.0.1 - alice ["
        lines = [line for line in node.log().splitlines() if "/v2/" in line]
        assert [told in line for line in lines] == [True, False, False, False, False, True, True]
    encoded = [basic(ALICE, word).rpartition(" ")[2] for word in (PASSWORD, wrong)]
    for directory, _, names in os.walk(tmp_path / "node"):
        for name in names:
            found = Path(directory, name).read_bytes()
            for secret in (PASSWORD, wrong, quote(PASSWORD), *encoded):
                assert secret.encode() not in found, (name, secret)


# Time


def test_a_user_who_is_not_there_takes_as_long_as_a_wrong_password(tmp_path: Path) -> None:
    path = str(tmp_path / "htpasswd")
    known = [f"known{number}" for number in range(12)]
    for user in known:
        accounts.put(path, user, passwords.make(b"x", 8))  # some 15 ms
    with brief(Node(tmp_path / "node", settings(path))) as node, Wire(node.port) as wire:

        def seconds(user: str) -> float:
            started = time.perf_counter()
            assert wire.ask("GET", "/v2/", basic(user, "wrong")).status == 401
            return time.perf_counter() - started

        seconds("warm-up")
        pairs = [(seconds(user), seconds(f"nobody{number}")) for number, user in enumerate(known)]
        there, elsewhere = (statistics.median(times) for times in zip(*pairs, strict=True))
        assert 1 / 3 < there / elsewhere < 3, pairs
        assert elsewhere > 0.003, "a password was checked"


def test_a_flood_of_guesses_does_not_stop_those_who_are_known(tmp_path: Path, file: str) -> None:
    accounts.put(file, "bob", passwords.make(b"x", 12))  # a quarter of a second for each guess
    over = threading.Event()
    with brief(Node(tmp_path / "node", settings(file))) as node, ThreadPoolExecutor(16) as guessers:
        assert status(node, KNOWN) == 200

        def flood(guesser: int) -> set[int]:
            seen = set()
            for number in range(1000):
                if over.is_set():
                    break
                seen.add(status(node, basic(f"bob{guesser}-{number}", "x")))
            return seen

        floods = [guessers.submit(flood, guesser) for guesser in range(16)]
        try:
            with Wire(node.port) as wire:
                assert [wire.ask("GET", "/v2/", KNOWN).status for _ in range(200)] == [200] * 200
        finally:
            over.set()
        assert set().union(*(flood.result(60) for flood in floods)) <= {401, 503}


def test_the_command_line_and_a_running_node_agree(tmp_path: Path, file: str) -> None:
    with brief(Node(tmp_path / "node", settings(file))) as node:
        added = subprocess.run(
            [sys.executable, "-m", "cluster", "user", "add", "carol", "--file", file, "--password-stdin"],
            input=b"looking-glass\n",
            capture_output=True,
            timeout=60,
            check=True,
        )
        assert added.stdout == b"carol: added\n"
        eventually(lambda: from_anywhere(node, "carol", "looking-glass") == 200, 20, "the user is known")
