"""The judge: asks every node for everything that was written down, compares bytes, and says what was not kept.

Reads a record (cluster/drill/facts.py) and judges each register's history together with what every node answers at
the end. Config and layers of an image whose manifest is served are asked for as well, whoever pushed them. Makes no
load, and tells a node that cannot be asked from one that has lost something.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from cluster.drill.facts import Kind, Record, Register
from cluster.drill.history import Operation, Outcome, check

ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before a question is asked again: a node that was killed just now comes back."""
TIMEOUT = 30.0
PIECE = 256 * 1024


@dataclass
class Verdict:
    """What was not kept. The registry kept everything when all lists are empty."""

    registers: int = 0
    acknowledged: int = 0
    answers: int = 0
    """How many times a node was asked and answered."""
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Bytes that do not have their digest."""
    returned: list[str] = field(default_factory=list)
    """What was deleted and is there again, or was there before anybody wrote it."""
    histories: list[str] = field(default_factory=list)
    """Registers that did not behave as one register, whichever order their operations took."""
    unverified: list[str] = field(default_factory=list)
    """What could not be asked or judged: nothing is known of it."""

    @property
    def holds(self) -> bool:
        return not (self.lost or self.wrong or self.returned or self.histories or self.unverified)

    def __str__(self) -> str:
        """One line of counts, and below it every finding."""
        findings = {
            "lost": self.lost,
            "wrong bytes": self.wrong,
            "came back": self.returned,
            "not linearizable": self.histories,
            "not verified": self.unverified,
        }
        counts = ", ".join(f"{len(found)} {name}" for name, found in findings.items())
        lines = [f"{self.acknowledged} facts of {self.registers} registers, {self.answers} answers: {counts}"]
        lines += [f"{name}: {what}" for name, found in findings.items() for what in found]
        return "\n".join(lines)


def verify(
    record: Record, nodes: Sequence[str], *, within: float = 600, pauses: Sequence[float] = PAUSES
) -> Verdict:
    """Ask every node (its URL) for every register, all nodes at once, for so many seconds.

    After each of the `pauses`, what gave no answer that tells is asked again.
    """
    verdict = Verdict(len(record.operations), record.acknowledged())
    verdict.lost += dict.fromkeys(record.lost)  # what many clients saw is one finding
    verdict.wrong += dict.fromkeys(record.wrong)
    verdict.unverified += record.unusable
    deadline = time.monotonic() + within
    witnesses = [_Witness(node, deadline, pauses) for node in nodes]
    _hear(verdict, witnesses, record.operations)
    # What was accepted as a part of an image was there, whoever pushed it. Who deletes writes that down.
    parts = set().union(*(witness.parts for witness in witnesses)) - set(record.operations)
    _hear(verdict, witnesses, {part: [_accepted(part)] for part in sorted(parts)})
    for witness in witnesses:
        verdict.wrong += witness.wrong
        verdict.unverified += witness.unverified
    return verdict


def _hear(
    verdict: Verdict, witnesses: Sequence[_Witness], histories: Mapping[Register, Sequence[Operation]]
) -> None:
    with ThreadPoolExecutor(max(len(witnesses), 1)) as pool:
        statements = list(pool.map(lambda witness: witness.testify(sorted(histories)), witnesses))
    for register, operations in histories.items():
        reads = [statement[register] for statement in statements if register in statement]
        verdict.answers += len(reads)
        _judge(verdict, register, operations, reads)


def _accepted(part: Register) -> Operation:
    put = Operation("put", part.reference)
    put.end(Outcome.DONE)
    return put


def _judge(verdict: Verdict, register: Register, operations: Sequence[Operation], reads: list[Operation]) -> None:
    if problem := check([*operations, *reads]):
        misfits = [read for read in reads if check([*operations, read])]
        if check(operations) or not misfits:  # the clients alone saw it, or the nodes disagree
            verdict.histories.append(f"{register}:\n{problem}")
        for read in misfits:
            if read.saw is None:
                verdict.lost.append(f"{register}: {read.note} does not have it")
            elif register.kind is Kind.TAG:
                verdict.histories.append(f"{register}: {read.note} has {read.saw}\n{problem}")
            else:
                verdict.returned.append(f"{register}: {read.note} has it")


class _Unanswered(Exception):
    """Nobody listened, the connection broke, or the time was over."""


class _Witness:
    """One node, asked for one register after the other over one connection."""

    def __init__(self, node: str, deadline: float, pauses: Sequence[float]) -> None:
        address = urlsplit(node)
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(address.hostname or "", address.port, timeout=TIMEOUT)
        self._node = node
        self._deadline = deadline
        self._pauses = pauses
        self.wrong: list[str] = []
        self.unverified: list[str] = []
        self.parts: set[Register] = set()  # of the images whose manifests it served

    def testify(self, registers: Sequence[Register]) -> dict[Register, Operation]:
        """A read for each register that it answered for; it is asked no more when it stopped answering."""
        reads: dict[Register, Operation] = {}
        try:
            for index, register in enumerate(registers):
                try:
                    if (read := self._read(register)) is not None:
                        reads[register] = read
                except _Unanswered as error:
                    left = len(registers) - index
                    self.unverified.append(f"{self._node} did not answer for {left} registers: {error}")
                    break
        finally:
            self._connection.close()
        return reads

    def _read(self, register: Register) -> Operation | None:
        """What it holds; None, and a note, when it gives no answer that tells, or bytes that are not those."""
        for pause in (*self._pauses, None):
            read = Operation("read", began=time.monotonic(), note=self._node)
            try:
                status, asked, got, content = self._ask(register)
                said = f"status {status}"
            except _Unanswered as error:
                if pause is None:
                    raise
                said = str(error)
            else:
                if status == 404:
                    read.end(Outcome.DONE, None)
                    return read
                if status == 200:
                    self.parts |= _parts(register.name, content)
                    return self._compare(register, read, asked, got)
            if pause is not None:
                time.sleep(pause)
        self.unverified.append(f"{register}: {self._node} gives no answer that tells: {said}")
        return None

    def _compare(self, register: Register, read: Operation, asked: str, got: str) -> Operation | None:
        if asked and got != asked:
            self.wrong.append(f"{register}: {self._node} gives {got} for {asked}")
            return None
        read.end(Outcome.DONE, got)
        return read

    def _ask(self, register: Register) -> tuple[int, str, str, bytes]:
        """The status, the digest that the bytes should have (empty: nobody says), and that which they have.

        And the bytes themselves, of a manifest.
        """
        if time.monotonic() > self._deadline:
            raise _Unanswered("no time is left")
        try:
            self._connection.request("GET", register.path, headers={"Accept": ACCEPT})
            answer = self._connection.getresponse()
            asked, content = register.reference, bytearray()
            if register.kind is Kind.TAG:
                asked = answer.headers.get("Docker-Content-Digest", "")
            take = None if register.kind is Kind.BLOB else content.extend
            got = _digest(answer, asked.partition(":")[0] or "sha256", take)
            return answer.status, asked, got, bytes(content)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise _Unanswered(repr(error)) from error


def _parts(name: str, content: bytes) -> set[Register]:
    """The config and the layers of an image; nothing of anything else, nor of layers that are elsewhere."""
    try:
        manifest = json.loads(content)
        described = [manifest["config"], *manifest["layers"]]
        return {Register.blob(name, str(one["digest"])) for one in described if not one.get("urls")}
    except (ValueError, LookupError, TypeError, AttributeError):
        return set()


def _digest(answer: http.client.HTTPResponse, algorithm: str, take: Callable[[bytes], object] | None = None) -> str:
    """The digest of a body that is read to its end in pieces, each of which is shown to `take`."""
    hasher = hashlib.new(algorithm)
    while piece := answer.read(PIECE):
        hasher.update(piece)
        if take is not None:
            take(piece)
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)
    return f"{algorithm}:{hasher.hexdigest()}"
