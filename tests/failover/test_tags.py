"""Every tag is one register, whichever nodes are asked, killed or stopped; and a held lock closes one tag only."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cluster.drill.history import Outcome, Wanted
from tests.failover.client import CONFIG, MANIFEST, Answer, Client, Ledger, Unanswered, digest_of
from tests.failover.cluster import Cluster, Member
from tests.failover.pusher import Crowd
from tests.support.history import History
from tests.support.process import eventually
from tests.support.tools import note

NAME = "team/tags"
LOCK = 10.0  # seconds that a writer waits for a tag's lock
CLIENTS = 6


def manifest(text: str) -> bytes:
    """A manifest that differs from others by this text, and refers to the empty blob alone."""
    empty = {"mediaType": CONFIG, "digest": digest_of(b"{}"), "size": 2}
    content = {"schemaVersion": 2, "mediaType": MANIFEST, "config": empty, "layers": [], "annotations": {"n": text}}
    return json.dumps(content).encode()


@pytest.fixture(autouse=True)
def config_blob(client: Client) -> None:
    client.push(NAME, b"{}")


class Writers:
    """Clients that put, swap, delete and read a few tags on every node in turn, and write down what they saw."""

    def __init__(self, cluster: Cluster, tags: list[str], history: History, seed: int, timeout: float) -> None:
        self.answers: Counter[int] = Counter()
        self._tags = tags
        self._history = history
        self._clients = [Client(cluster.urls, timeout=timeout, start=n) for n in range(CLIENTS)]
        self._chances = [random.Random(seed * CLIENTS + n) for n in range(CLIENTS)]

    def step(self, number: int, count: int) -> None:
        client, chance = self._clients[number], self._chances[number]
        tag, kind = chance.choice(self._tags), chance.random()
        try:
            if kind < 0.4:
                client.read_tag(NAME, tag, self._history)
                return
            content = manifest(f"{tag} {number} {count} {os.getpid()}") if kind < 0.9 else None
            expected = Wanted.ANYTHING
            if kind > 0.6:
                expected = client.read_tag(NAME, tag, self._history)
            if content is None and expected is None:
                expected = Wanted.ANYTHING
            answer = client.write_tag(NAME, tag, content, self._history, expected)
            self.answers[answer.status] += 1
        except Unanswered:
            self.answers[0] += 1
            time.sleep(0.05)

    def close(self) -> None:
        for client in self._clients:
            client.close()


@contextmanager
def writing(cluster: Cluster, tags: list[str], seed: int = 0, timeout: float = 3) -> Iterator[Writers]:
    """Concurrent writers and readers; at the end every tag is read on every node, and the history is judged.

    `timeout`: seconds that they wait for a node, which may be stopped.
    """
    history = History()
    writers = Writers(cluster, tags, history, seed, timeout)
    try:
        with Crowd(CLIENTS, writers.step):
            yield writers
    finally:
        writers.close()
    cluster.wait_until_whole()
    for url in cluster.urls:
        with Client([url]) as reader:
            for tag in tags:
                reader.read_tag(NAME, tag, history)
    history.judge()
    counted = Counter(op.outcome for ops in history.operations.values() for op in ops)
    note(
        f"tags, seed {seed}: {counted[Outcome.DONE]} operations done, {counted[Outcome.REFUSED]} refused, "
        f"{counted[Outcome.UNKNOWN]} unanswered; statuses {dict(sorted(writers.answers.items()))}"
    )


def at_random(
    cluster: Cluster, seed: int, seconds: float, trouble: Callable[[Member, random.Random], None]
) -> None:
    """Do this to a random node again and again."""
    chance, end = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(chance.uniform(0.1, 0.8))
        trouble(chance.choice(cluster.nodes), chance)


def kill(node: Member, chance: random.Random) -> None:
    node.wait_until_back()
    time.sleep(chance.uniform(0, 0.5))
    node.kill()


def stop_for_a_while(node: Member, chance: random.Random) -> None:
    with node.paused():
        time.sleep(chance.uniform(0.05, 1.5))


def stop_then_kill(node: Member, chance: random.Random) -> None:
    node.wait_until_back()
    with node.paused():
        time.sleep(chance.uniform(0.05, 1.0))
        node.kill()


LONG = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 9)]


def test_without_trouble_every_tag_is_one_register(cluster: Cluster) -> None:
    with writing(cluster, ["calm-a", "calm-b"], timeout=60) as writers:
        eventually(lambda: sum(writers.answers.values()) > 150, 60, "150 writes were answered")
        eventually(lambda: writers.answers[412] and writers.answers[202], 60, "a write was refused, a tag deleted")
    assert {status for status, count in writers.answers.items() if count} <= {201, 202, 404, 412}
    assert writers.answers[201] and writers.answers[202] and writers.answers[412]


@pytest.mark.parametrize("seed", [0, *LONG])
@pytest.mark.parametrize("trouble", [kill, stop_for_a_while, stop_then_kill])
def test_every_tag_stays_one_register_while_nodes_are_lost(
    cluster: Cluster, trouble: Callable[[Member, random.Random], None], seed: int
) -> None:
    tags = [f"{trouble.__name__}-{seed}-{n}" for n in range(3)]
    with writing(cluster, tags, seed) as writers:
        at_random(cluster, seed, 5 if seed == 0 else 30, trouble)
        eventually(lambda: writers.answers[201] > 20, 60, "20 writes were done")


def test_one_of_many_swaps_from_one_value_wins(cluster: Cluster, ledger: Ledger) -> None:
    tag, history = "race", ledger.tags
    with Client(cluster.urls) as client:
        client.write_tag(NAME, tag, manifest("start"), history).expect(201)
        for count in range(10):
            current = client.read_tag(NAME, tag, history)
            answers = race(cluster, tag, history, [manifest(f"{count} {n}") for n in range(4)], current)
            statuses = sorted(answer.status for answer in answers)
            assert statuses == [201, 412, 412, 412]
            assert {answer.code for answer in answers if answer.status == 412} == {"DENIED"}


def race(cluster: Cluster, tag: str, history: History, contents: list[bytes], expected: str | None) -> list[Answer]:
    """The answers to swaps from one value that are sent at the same moment."""
    barrier, answers = threading.Barrier(len(contents)), []

    def swap(start: int, content: bytes) -> None:
        with Client(cluster.urls, start=start) as client:
            barrier.wait()
            answers.append(client.write_tag(NAME, tag, content, history, expected))

    threads = [threading.Thread(target=swap, args=pair) for pair in enumerate(contents)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


class Waiting(threading.Thread):
    """A write of a held tag, under way; `answer` and `seconds` are there when it has been joined."""

    def __init__(self, client: Client, tag: str, history: History) -> None:
        super().__init__()
        self._client, self._tag, self._history = client, tag, history
        self.start()

    def run(self) -> None:
        started = time.monotonic()
        content = manifest(f"waited for {self._tag} {started}")
        self.answer = self._client.write_tag(NAME, self._tag, content, self._history)
        self.seconds = time.monotonic() - started

    def join(self, timeout: float | None = LOCK + 10) -> None:
        super().join(timeout)
        assert not self.is_alive(), f"no answer within {timeout} s"


def goes_on_beside(clients: list[Client], held: str, history: History) -> None:
    """Everything but writing that one tag works as ever."""
    for number, client in enumerate(clients):
        started = time.monotonic()
        assert client.read_tag(NAME, held, history) is not None
        client.write_tag(NAME, f"{held}-other-{number}", manifest(f"{held} {number}"), history).expect(201)
        client.ask("GET", f"/v2/{NAME}/tags/list").expect(200)
        client.push(NAME, f"pushed beside {held} {number}".encode())
        assert time.monotonic() - started < LOCK  # nothing waited for the lock


def holds(pids: list[int], path: str) -> bool:
    """Whether one of these processes holds the lock of a file."""
    inode = str(os.stat(path).st_ino)
    with open("/proc/locks", encoding="ascii") as file:
        rows = [line.split() for line in file if "->" not in line]
    return any(row[1] == "FLOCK" and int(row[4]) in pids and row[5].endswith(f":{inode}") for row in rows)


@contextmanager
def stopped_with_lock(cluster: Cluster, node: Member, tag: str, history: History) -> Iterator[None]:
    """A node that was stopped while it held a tag's lock: stopped at random moments until one fits."""
    path, chance, workers = cluster.tag_lock(NAME, tag), random.Random(3), node.workers()
    with Client([node.url], timeout=60) as client:
        for attempt in range(200):
            content = manifest(f"{tag} attempt {attempt}")
            writer = threading.Thread(target=_write_or_lose, args=(client, tag, content, history))
            writer.start()
            time.sleep(chance.uniform(0, 0.01 + attempt / 2000))  # later and later, for a slow machine
            with node.paused():
                if holds(workers, path):
                    note(f"stopped while it held a tag's lock: after {attempt + 1} tries")
                    yield
                    break
            writer.join()
        else:
            raise AssertionError("200 writes were stopped, and none held the lock then")
        writer.join()


def _write_or_lose(client: Client, tag: str, content: bytes, history: History) -> None:
    try:
        client.write_tag(NAME, tag, content, history)
    except Unanswered:  # its node was killed
        pass


def test_a_node_stopped_while_it_holds_a_tag_closes_that_tag_and_no_other_until_it_wakes(
    cluster: Cluster, each: list[Client], ledger: Ledger
) -> None:
    tag, sleeper = "wakes", cluster.nodes[0]
    each[0].write_tag(NAME, tag, manifest("before"), ledger.tags).expect(201)
    with stopped_with_lock(cluster, sleeper, tag, ledger.tags), Client(cluster.urls[1:2]) as late:
        waiting = Waiting(late, tag, ledger.tags)
        goes_on_beside(each[1:], tag, ledger.tags)
        waiting.join()
        assert (waiting.answer.status, waiting.answer.code) == (503, "UNAVAILABLE"), waiting.answer
        assert int(waiting.answer.headers["Retry-After"]) > 0
        assert LOCK - 1 < waiting.seconds < LOCK + 10
    each[1].write_tag(NAME, tag, manifest("after"), ledger.tags).expect(201)


def test_a_node_killed_while_it_holds_a_tag_lets_go_at_once(
    cluster: Cluster, each: list[Client], ledger: Ledger
) -> None:
    tag, sleeper = "dies", cluster.nodes[0]
    each[0].write_tag(NAME, tag, manifest("before"), ledger.tags).expect(201)
    with stopped_with_lock(cluster, sleeper, tag, ledger.tags), Client(cluster.urls[1:2]) as late:
        waiting = Waiting(late, tag, ledger.tags)
        goes_on_beside(each[2:], tag, ledger.tags)
        assert waiting.is_alive()
        sleeper.kill()
        waiting.join()
        assert waiting.answer.status == 201, waiting.answer
