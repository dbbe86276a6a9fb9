"""Nodes are killed at random while images are pushed and pulled: nothing acknowledged is lost, no byte is wrong.

The kills come from outside at random moments, so that in the long form every step of a push is hit. Clients try a
step again three times at most; what failed on the first try is counted and printed, and after the retries nothing
may have failed.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.haproxy import Runtime
from tests.failover.client import Client, Ledger
from tests.failover.cluster import BACK, Cluster, Member
from tests.failover.pusher import Crowd, Pusher
from tests.support.images import Layout, contents
from tests.support.process import eventually
from tests.support.tools import find, in_ci, note, require

NAME = "team/kills"
CHUNK = 96 * 1024
TRIES = 4  # of a stock client: once, and three times again
# What Go's HTTP client says of one in hundreds of connections that the other side breaks in mid-request. skopeo
# takes that for its own doing: a push that it gave up at once has to be repeated by who called it.
_CLOSED = "use of closed network connection"
PUSHERS, PULLERS = 3, 2


class Load:
    """Raw clients: pushers of images in small chunks, and pullers of what was acknowledged."""

    def __init__(self, cluster: Cluster, ledger: Ledger, seed: int) -> None:
        self._ledger = ledger
        self._chances = [random.Random(f"{seed} {n}") for n in range(PUSHERS + PULLERS)]
        # Most go to the nodes in turn, each request to the next one; one pusher goes through the balancer.
        urls = [[cluster.endpoint] if n == 0 else cluster.urls for n in range(PUSHERS + PULLERS)]
        self._clients = [Client(url, timeout=15, start=n, redispatch=True) for n, url in enumerate(urls)]
        self._pushers = [Pusher(client, ledger) for client in self._clients]

    def step(self, number: int, count: int) -> None:
        pusher, chance = self._pushers[number], self._chances[number]
        if number < PUSHERS:
            layers = [chance.randbytes(chance.randint(1, 300_000)) for _ in range(2)]
            # Three tags in turn for each pusher: what a tag held before is written over again and again.
            pusher.push_image(f"{NAME}-{number}", f"v{count % 3}", layers, CHUNK)
        elif self._ledger.blobs:
            pusher.pull(*chance.choice(self._ledger.blobs))
        if number >= PUSHERS:
            time.sleep(0.03)  # or there would be pulls only

    def close(self) -> None:
        for client in self._clients:
            client.close()


class Stock:
    """A stock client that pushes one image after the other through the balancer, and pulls each back."""

    def __init__(self, program: str, directory: Path, cluster: Cluster) -> None:
        self.program = program
        self.first_failures: list[str] = []
        self.failures: list[str] = []
        self.images = 0  # pushed, and pulled back whole
        self._directory = directory / program
        self._directory.mkdir()
        self._host = cluster.endpoint.removeprefix("http://")
        policy = self._directory / ".config/containers/policy.json"
        policy.parent.mkdir(parents=True)
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def step(self, _: int, count: int) -> None:
        made = Layout(self._directory / f"made-{count}")
        layers = [made.layer({f"file-{n}": random.Random(f"{count} {n}").randbytes(200_000)}) for n in range(2)]
        image = made.tag("v1", made.image(layers))
        target, pulled = f"{self._host}/{NAME}-{self.program}:v{count}", self._directory / f"pulled-{count}"
        if self.program == "skopeo":
            copy = ("copy", "--retry-times", str(TRIES - 1))
            push = (*copy, "--dest-tls-verify=false", f"oci:{made.path}:v1", f"docker://{target}")
            pull = (*copy, "--src-tls-verify=false", f"docker://{target}", f"oci:{pulled}:v1")
        else:
            push = ("push", "--insecure", made.path, target)
            pull = ("pull", "--insecure", "--format=oci", target, str(pulled))
        if self._insist(*push) and self._insist(*pull):
            assert contents(pulled, image["digest"]) == contents(made.path, image["digest"])
            self.images += 1
        for path in (made.path, pulled):
            shutil.rmtree(path, ignore_errors=True)

    def _insist(self, *arguments: str) -> bool:
        """Whether a step went well, once it was tried as often as is allowed.

        skopeo tries again by itself, but for one kind of broken connection: it has to be started again then, as the
        others have to for each.
        """
        for attempt in range(TRIES):
            done = subprocess.run(
                [require(self.program), *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env={**os.environ, "HOME": str(self._directory), "TMPDIR": str(self._directory)},
                timeout=120,
                check=False,
            )
            said = done.stderr.decode()
            if attempt == 0 and (done.returncode != 0 or "retry" in said):
                self.first_failures.append(said)
            if done.returncode == 0:
                return True
            if self.program == "skopeo" and _CLOSED not in said:
                break
            time.sleep(1)
        self.failures.append(f"{self.program} {' '.join(arguments)}: {said[-1000:]}")
        return False


@dataclass
class Killer:
    """Kills random nodes, never the last one that gets work; notes how long each takes to be back."""

    cluster: Cluster
    chance: random.Random
    kills: int = 0
    recoveries: list[float] = field(default_factory=list)  # seconds
    _away: dict[str, float] = field(default_factory=dict)  # since when

    def run(self, count: int) -> None:
        """Kill that many, and return when all are back."""
        nodes, due = self.cluster.nodes, time.monotonic()
        balancer = Runtime(self.cluster.state()["balancer"]["socket"])
        while self.kills < count or self._away:
            time.sleep(0.05)
            up = {server.name for server in balancer.servers() if server.status == "UP"}
            ready = [node for node in nodes if node.name in up and node.is_back]
            self._note_recoveries(ready)
            if self.kills < count and len(ready) > 1 and time.monotonic() > due:
                self._kill(self.chance.choice(ready))
                due = time.monotonic() + self.chance.uniform(0.05, 1.5)
            assert all(time.monotonic() - since < BACK for since in self._away.values()), self._away

    def _kill(self, node: Member) -> None:
        node.kill()
        self.kills += 1
        self._away[node.name] = time.monotonic()

    def _note_recoveries(self, ready: list[Member]) -> None:
        for node in ready:
            if (since := self._away.pop(node.name, None)) is not None:
                self.recoveries.append(time.monotonic() - since)


def stock_clients(directory: Path, cluster: Cluster) -> list[Stock]:
    """Those that are installed; in CI all of them."""
    there = [name for name in ("skopeo", "crane") if (require(name) if in_ci() else find(name))]
    return [Stock(name, directory, cluster) for name in there]


def loaded(cluster: Cluster, ledger: Ledger, directory: Path, killer: Killer, kills: int) -> list[Stock]:
    """Kill nodes under load; the stock clients that took part."""
    load, stock = Load(cluster, ledger, seed=kills), stock_clients(directory, cluster)
    try:
        with Crowd(PUSHERS + PULLERS, load.step), Crowd(len(stock), lambda n, count: stock[n].step(n, count)):
            eventually(lambda: len(ledger.manifests) >= 3, 60, "the first images are pushed")
            killer.run(kills)
            cluster.wait_until_whole()
            before = len(ledger.manifests)
            eventually(lambda: len(ledger.manifests) >= before + 3, 60, "pushing goes on")
            eventually(lambda: all(client.images or client.failures for client in stock), 120, "an image of each")
    finally:
        load.close()
    return stock


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [15, pytest.param(220, marks=pytest.mark.slow)])
def test_random_kills_lose_nothing_that_was_acknowledged(cluster: Cluster, tmp_path: Path, kills: int) -> None:
    killer, ledger, started = Killer(cluster, random.Random(kills)), Ledger(), time.monotonic()
    stock = loaded(cluster, ledger, tmp_path, killer, kills)
    seconds = time.monotonic() - started
    ledger.verify(cluster.urls)
    first = len(ledger.first_failures) + sum(len(client.first_failures) for client in stock)
    failed = ledger.failures + [failure for client in stock for failure in client.failures]
    copied = ", ".join(f"{client.images} by {client.program}" for client in stock)
    note(
        f"{killer.kills} kills in {seconds:.0f} s: {ledger.acknowledged()} facts acknowledged, 0 lost; "
        f"{len(ledger.pulled)} pulls, 0 with wrong bytes; images pushed and pulled: {copied or 'no stock client'}; "
        f"{first} steps failed on the first try, {len(failed)} after the retries; a killed node was back after "
        f"{statistics.median(killer.recoveries):.1f} s (median), {max(killer.recoveries):.1f} s at most"
    )
    assert failed == []
    assert all(client.images for client in stock)
