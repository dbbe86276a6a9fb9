"""What clients in other processes felt: they write each request and each step down, and meters are made of it.

An append-only file of lines of JSON, with one writer. Times are of the monotonic clock, which all processes of a
machine share. What clients were told of content is in facts.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from cluster.drill.meter import Kind, Meter


class Tape:
    """The writing end."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - until close()

    def request(self, kind: Kind, began: float, ended: float, failure: str | None) -> None:
        self._append({"kind": kind, "began": began, "ended": ended, "failure": failure})

    def step(self, kind: Kind, tries: int, failure: str | None) -> None:
        """A step is over, after so many tries."""
        self._append({"kind": kind, "tries": tries, "failure": failure})

    def close(self) -> None:
        self._file.close()

    def _append(self, fact: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(fact) + "\n")


def play(path: str | os.PathLike[str]) -> dict[Kind, Meter]:
    """The meters of all kinds, as if the clients had been here. A last line without its end is left out."""
    meters = {kind: Meter() for kind in Kind}
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                break
            fact = json.loads(line)
            meter = meters[Kind(fact["kind"])]
            if "tries" in fact:
                meter.step(fact["tries"], fact["failure"])
            else:
                meter.request(fact["began"], fact["ended"], fact["failure"])
    return meters
