"""Histories of many registers, as the clients of a test write them down; the rule is cluster/drill/history.py's."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cluster.drill.history import Operation, check


@dataclass
class History:
    """The operations of all clients on all registers, each begun and ended by the client's own thread."""

    operations: dict[str, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def record(self, register: str, operation: Operation) -> Iterator[Operation]:
        """An operation that begins now; it stays open unless the block calls its `end`."""
        with self._lock:
            self.operations[register].append(operation)
        operation.began = time.monotonic()
        yield operation

    def judge(self) -> None:
        """Fail with the registers whose histories are not those of a register."""
        found = {register: check(operations) for register, operations in self.operations.items()}
        problems = [f"{register} is not linearizable:\n{problem}" for register, problem in found.items() if problem]
        if problems:
            raise AssertionError("\n".join(problems))
