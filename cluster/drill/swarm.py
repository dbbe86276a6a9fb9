"""The load of a drill, made by locust: the users of a locustfile, in a process of its own.

Starts and stops that process, and reads what its users wrote down; what they do is the locustfile's. Stands in for
load.py wherever a drill is told to use a locustfile.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from types import TracebackType
from typing import Self

from cluster.drill.cluster import Process, wait
from cluster.drill.load import END, PAUSE, record_paths
from cluster.drill.meter import Kind, Meter
from cluster.drill.tape import play
from cluster.errors import ConfigError

READY = 60.0
"""Seconds for the first users to have done something of each kind, so that there is something to pull."""


def check(locustfile: str) -> None:
    """ConfigError when no load can be made by this file."""
    if importlib.util.find_spec("locust") is None:
        raise ConfigError(["locust is not installed here; please install it (`pip install locust`)"])
    if not os.path.isfile(locustfile):
        raise ConfigError([f"there is no {locustfile}: wanted a locustfile, such as tests/load/locustfile.py"])


class Swarm:
    """As a context manager: users work until the end of the block, and finish what they have begun."""

    def __init__(self, locustfile: str, endpoint: str, directory: str, name: str, users: int) -> None:
        """`name` is the fault's: files begin with it."""
        os.makedirs(directory, exist_ok=True)
        self.records = record_paths(directory, name)
        self.meters: dict[Kind, Meter] = {}
        """What the users felt; known when they have ended."""
        self.began = 0.0
        self._tape = f"{directory}/{name}.tape"
        for path in filter(os.path.exists, (*self.records.values(), self._tape)):
            os.unlink(path)  # of a run before this one, on another cluster
        self._log = f"{directory}/{name}.locust.log"
        # fmt: off
        self._command = [
            sys.executable, "-m", "locust", "--locustfile", locustfile, "--headless", "--only-summary",
            "--users", str(users), "--spawn-rate", str(users), "--stop-timeout", str(int(END)), "--host", endpoint,
            "--drill", f"{directory}/{name}", "--pause", str(PAUSE),
        ]
        # fmt: on

    def __enter__(self) -> Self:
        self._process = Process(self._command, self._log)
        try:
            wait(self._is_ready, READY, "users have pushed and pulled")
        except BaseException:
            self._process.stop()
            raise
        self.began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._process.check()
        self._process.stop(within=END if error is None else 1)
        if error is None:
            self.meters = play(self._tape)

    def _is_ready(self) -> bool:
        self._process.check()
        if not os.path.exists(self._tape):
            return False
        return all(meter.steps for meter in play(self._tape).values())
