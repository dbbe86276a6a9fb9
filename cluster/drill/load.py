"""The load of a drill: clients in threads, each of which does one kind of operation again and again.

Keeps a meter and a record of facts for each kind. Breaks nothing and judges nothing.
"""

from __future__ import annotations

import os
import random
import threading
import time
from types import TracebackType
from typing import Self

from cluster.drill.client import Client, NotDone
from cluster.drill.cluster import Trouble
from cluster.drill.facts import Facts
from cluster.drill.meter import Kind, Meter
from cluster.drill.operations import STEPS, Desk, seed

PAUSE = 0.1
"""Seconds between two steps of a client: the load is there to be broken, not to fill the machine."""
END = 180.0
"""Seconds for the steps under way to end, with all their retries and time-outs."""


def record_paths(directory: str, name: str) -> dict[Kind, str]:
    """Where the facts of each kind of operation are written to, under the fault of this name."""
    return {kind: f"{directory}/{name}-{_slug(kind)}.jsonl" for kind in Kind}


class Load:
    """As a context manager: clients work until the end of the block, and finish what they have begun."""

    def __init__(self, endpoint: str, directory: str, name: str, clients: int) -> None:
        """`name` is the fault's: repositories and files of facts begin with it."""
        os.makedirs(directory, exist_ok=True)
        self.meters = {kind: Meter() for kind in Kind}
        self.records = record_paths(directory, name)
        for path in filter(os.path.exists, self.records.values()):
            os.unlink(path)  # of a run before this one, on another cluster
        self.began = 0.0
        self._facts = {kind: Facts(path) for kind, path in self.records.items()}
        self._stopping = threading.Event()
        self._errors: list[BaseException] = []
        kinds = list(Kind)
        self._desks = [
            (kind, self._desk(endpoint, f"{name}/{_slug(kind)}", kind, number, self.meters[kind]))
            for number in range(clients)
            for kind in [kinds[number % len(kinds)]]
        ]
        self._seeders = [
            (kind, self._desk(endpoint, f"{name}/{_slug(kind)}", kind, clients + n, Meter()))
            for n, kind in enumerate(kinds)
        ]
        self._threads = [threading.Thread(target=self._run, args=desk, daemon=True) for desk in self._desks]

    def _desk(self, endpoint: str, name: str, kind: Kind, number: int, meter: Meter) -> Desk:
        chance = random.Random(f"{name} {number} {time.time_ns()}")  # noqa: S311 - content, not secrets
        return Desk(name, number, Client(endpoint, number, meter), self._facts[kind], meter, chance)

    def __enter__(self) -> Self:
        for kind, desk in self._seeders:
            try:
                seed(desk, kind)
            except NotDone as error:
                raise Trouble(f"the cluster does not take what a drill needs: {error}") from error
            desk.client.close()
        self.began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        deadline = time.monotonic() + (END if error is None else 1)
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        if error is not None:
            return  # the drill has failed already; clients end by themselves
        if any(thread.is_alive() for thread in self._threads):
            raise Trouble(f"clients are still at work {END:g} s after they were told to stop")
        for facts in self._facts.values():
            facts.close()
        if self._errors:
            raise self._errors[0]

    def _run(self, kind: Kind, desk: Desk) -> None:
        count = 0
        try:
            while not self._stopping.is_set():
                STEPS[kind](desk, count)
                desk.client.move()
                count += 1
                self._stopping.wait(PAUSE)
        except BaseException as error:  # shown by the thread that runs the drill
            self._errors.append(error)
        finally:
            desk.client.close()


def _slug(kind: Kind) -> str:
    return kind.replace(" ", "-")
