"""What clients were told: an append-only record that many processes write, and read back for the judge.

Every blob, manifest and tag is a register (cluster/drill/history.py): pushes put, deletes delete, and whoever asks
reads. An operation is written down before it is sent and once more with its outcome, so a client that is killed in
between leaves one that may have taken place. Asks no node anything; cluster/drill/verdict.py does.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from cluster.drill.history import Operation, Outcome, Wanted


class Kind(StrEnum):
    BLOB = "blob"
    MANIFEST = "manifest"
    TAG = "tag"


@dataclass(frozen=True, order=True)
class Register:
    """One thing that a repository holds or does not. Content holds its own digest, a tag that of a manifest."""

    kind: Kind
    name: str
    reference: str

    @classmethod
    def blob(cls, name: str, digest: str) -> Self:
        return cls(Kind.BLOB, name, digest)

    @classmethod
    def manifest(cls, name: str, digest: str) -> Self:
        return cls(Kind.MANIFEST, name, digest)

    @classmethod
    def tag(cls, name: str, tag: str) -> Self:
        return cls(Kind.TAG, name, tag)

    @property
    def path(self) -> str:
        """Where a registry serves it."""
        return f"/v2/{self.name}/{'blobs' if self.kind is Kind.BLOB else 'manifests'}/{self.reference}"

    def __str__(self) -> str:
        return f"{self.kind} {self.name}{':' if self.kind is Kind.TAG else '@'}{self.reference}"


class Facts:
    """The writing end. Threads may share one; each process opens its own, on one file of a local disk."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # What is appended by one call lies in the file as a whole, whoever else appends.
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self.clock = _clock()
        self._writer = secrets.token_hex(4)
        self._numbers = itertools.count()

    @contextmanager
    def record(self, register: Register, operation: Operation) -> Iterator[Operation]:
        """An operation that begins now; it stays open unless the block calls its `end`."""
        number = f"{self._writer}-{next(self._numbers)}"
        operation.began = time.monotonic()
        self._append(_begun(number, self.clock, register, operation))
        try:
            yield operation
        finally:
            if operation.outcome is not Outcome.UNKNOWN:
                self._append(_ended(number, operation))

    def blob(self, name: str, digest: str) -> None:
        """A push that was acknowledged. What somebody may delete, or push beside us, goes through `record`."""
        self._acknowledge(Register.blob(name, digest))

    def manifest(self, name: str, digest: str) -> None:
        self._acknowledge(Register.manifest(name, digest))

    def lost(self, what: str) -> None:
        """What a client itself saw missing, such as acknowledged bytes of an upload."""
        self._append({"lost": what})

    def wrong(self, what: str) -> None:
        """Bytes that a client got and that do not have their digest."""
        self._append({"wrong": what})

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _acknowledge(self, register: Register) -> None:
        with self.record(register, Operation("put", register.reference)) as operation:
            operation.end(Outcome.DONE)

    def _append(self, fact: dict[str, Any]) -> None:
        line = json.dumps(fact).encode() + b"\n"
        if os.write(self._file, line) != len(line):
            raise OSError("the record of facts was cut short; nothing that follows can be judged by it")


@dataclass
class Record:
    """The reading end: all operations on all registers, and what clients themselves saw broken."""

    operations: dict[Register, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    """Why a part of it cannot be judged: a record with such a part proves nothing."""

    def acknowledged(self) -> int:
        """How many writes the registry said were done."""
        everything = itertools.chain.from_iterable(self.operations.values())
        return sum(operation.writes and operation.outcome is Outcome.DONE for operation in everything)


def load(*paths: str | os.PathLike[str]) -> Record:
    """What was written to these files, by whomever."""
    return _Reader().read(paths)


class _Reader:
    def __init__(self) -> None:
        self._record = Record()
        self._open: dict[str, Operation] = {}
        self._clocks: dict[Register, str] = {}

    def read(self, paths: tuple[str | os.PathLike[str], ...]) -> Record:
        for path in paths:
            with open(path, "rb") as file:
                for number, line in enumerate(file, 1):
                    # A last line without its end is of a writer that was killed: what it was about to send was not
                    # sent, and what it was about to acknowledge stays open.
                    if line.endswith(b"\n"):
                        self._take_line(line, f"{os.fspath(path)}, line {number}")
        return self._record

    def _take_line(self, line: bytes, place: str) -> None:
        try:
            self._take(json.loads(line))
        except (ValueError, LookupError, TypeError) as error:
            self._record.unusable.append(f"{place} is not a fact: {error!r}")

    def _take(self, fact: dict[str, Any]) -> None:
        if "lost" in fact:
            self._record.lost.append(fact["lost"])
        elif "wrong" in fact:
            self._record.wrong.append(fact["wrong"])
        elif "register" in fact:
            self._begin(fact)
        else:
            operation = self._open.pop(fact["id"])
            operation.outcome, operation.ended = Outcome(fact["outcome"]), fact["at"]
            operation.saw, operation.note = fact["saw"], fact["note"]

    def _begin(self, fact: dict[str, Any]) -> None:
        kind, name, reference = fact["register"]
        register = Register(Kind(kind), name, reference)
        expected = fact.get("expected", Wanted.ANYTHING)
        operation = Operation(fact["kind"], fact["value"], expected, began=fact["at"])
        self._open[fact["id"]] = operation
        self._record.operations[register].append(operation)
        if self._clocks.setdefault(register, fact["clock"]) != fact["clock"]:
            self._record.unusable.append(f"{register} was used from machines whose clocks cannot be compared")


def _begun(number: str, clock: str, register: Register, operation: Operation) -> dict[str, Any]:
    fact: dict[str, Any] = {
        "id": number,
        "clock": clock,
        "at": operation.began,
        "register": [register.kind, register.name, register.reference],
        "kind": operation.kind,
        "value": operation.value,
    }
    if operation.expected is not Wanted.ANYTHING:
        fact["expected"] = operation.expected
    return fact


def _ended(number: str, operation: Operation) -> dict[str, Any]:
    return {
        "id": number,
        "at": operation.ended,
        "outcome": operation.outcome,
        "saw": operation.saw,
        "note": operation.note,
    }


def _clock() -> str:
    """Whose monotonic clock this is: that of one boot of one machine, the same for all of its processes."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read(8)
