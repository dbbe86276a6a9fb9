"""Load on a cluster of containers: raw clients, and the engine itself, which pushes images and pulls them back."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.compose.engine import Engine
from tests.failover.client import Client, Ledger
from tests.failover.pusher import PAUSES, Crowd, Pusher
from tests.support.images import Layout, docker_archive

CHUNK = 96 * 1024
PUSHERS, PULLERS = 3, 2
PAUSE = (
    0.3  # seconds between two steps of a client: the machine has other work, and every fact is asked for at the end
)
TIMEOUT = 60.0  # seconds for an answer: more than what a node that hangs is given


class Load:
    """Raw clients, all through the balancer: pushers in small chunks, and pullers of what was acknowledged."""

    def __init__(self, endpoint: str, ledger: Ledger, seed: int) -> None:
        self._ledger = ledger
        self._seed = seed
        self._chances = [random.Random(f"{seed} {number}") for number in range(PUSHERS + PULLERS)]
        self._clients = [Client([endpoint], timeout=TIMEOUT) for _ in self._chances]
        self._pushers = [Pusher(client, ledger) for client in self._clients]

    def step(self, number: int, count: int) -> None:
        pusher, chance = self._pushers[number], self._chances[number]
        if number < PUSHERS:
            layers = [chance.randbytes(chance.randint(1, 300_000)) for _ in range(2)]
            pusher.push_image(f"team/fire-{self._seed}-{number}", f"v{count % 3}", layers, CHUNK)
        elif self._ledger.blobs:
            pusher.pull(*chance.choice(self._ledger.blobs))
        time.sleep(PAUSE)

    def close(self) -> None:
        for client in self._clients:
            client.close()


class EngineLoad:
    """The engine as a client: each image is new, and comes back with its id.

    It repeats by itself what fails, but for its first question: so its commands are tried again as well.
    """

    def __init__(self, engine: Engine, host: str, directory: str) -> None:
        self.images = 0
        self.first_failures: list[str] = []
        self.failures: list[str] = []  # with all retries
        self._engine = engine
        self._host = host
        self._directory = directory

    def step(self, _: int, count: int) -> None:
        place = os.path.join(self._directory, str(count))
        layout = Layout(place)
        image = layout.image([layout.layer({"data": random.Random(f"{place}").randbytes(500_000)})])
        reference = f"{self._host}/team/engine:v{count}"
        config = docker_archive(layout, image, reference, f"{place}.tar")
        self._engine.docker("load", "--input", f"{place}.tar")
        self._insist("push", reference)
        self._engine.docker("rmi", "--force", reference)
        self._insist("pull", reference)
        found = self._engine.docker("image", "inspect", "--format", "{{.Id}}", reference).strip()
        assert found == config, f"{reference} was pushed as {config} and came back as {found}"
        self._engine.docker("rmi", "--force", reference)
        self.images += 1

    def _insist(self, *arguments: str) -> None:
        for attempt, pause in enumerate((*PAUSES, None)):
            try:
                self._engine.docker(*arguments)
                return
            except AssertionError as error:
                if pause is None:
                    self.failures.append(str(error))
                    raise
                if attempt == 0:
                    self.first_failures.append(str(error))
                time.sleep(pause)


@contextmanager
def working(endpoint: str, ledger: Ledger, seed: int) -> Iterator[None]:
    """Raw clients work while the block runs."""
    load = Load(endpoint, ledger, seed)
    try:
        with Crowd(PUSHERS + PULLERS, load.step):
            yield
    finally:
        load.close()
