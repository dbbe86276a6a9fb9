"""Was there one register? Judges a recorded history of one tag: puts, compare-and-swaps, deletes and reads.

The search is Wing and Gong's, with memoisation: an order of all operations in which each one takes effect at one
moment between its invocation and its response, and saw what the register held then. An operation whose outcome is
not known may have taken effect at any later moment, or never. Knows nothing of HTTP or of clusters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from operator import attrgetter

Value = str | None
"""What a register holds; None: nothing."""

MAX_STATES = 300_000
"""How far one history is searched. Many unanswered writes at once can be ordered in more ways than memory holds."""


class Wanted(Enum):
    """A condition that is none: a put takes place whatever is there, a delete whenever something is."""

    ANYTHING = "anything"


class Outcome(StrEnum):
    DONE = "done"  # a write took place, a read was answered
    REFUSED = "refused"  # a write did not take place, because of what it `saw`
    UNKNOWN = "unknown"  # no answer, or one that leaves both open
    UNASKED = "unasked"  # it never reached anybody


@dataclass(eq=False)
class Operation:
    """One operation on one register, as its client knows it."""

    kind: str  # "put", "delete" or "read"
    value: Value = None  # what a put writes
    expected: Value | Wanted = Wanted.ANYTHING  # what a compare-and-swap wants to be there
    began: float = 0.0
    ended: float = math.inf
    outcome: Outcome = Outcome.UNKNOWN
    saw: Value = None  # what a read was answered, and why a write was refused
    note: str = ""  # for people

    def end(self, outcome: Outcome, saw: Value = None) -> None:
        """The answer is here. An unknown outcome stays open for ever."""
        self.outcome, self.saw = outcome, saw
        if outcome is not Outcome.UNKNOWN:
            self.ended = time.monotonic()

    def changes(self, held: Value) -> bool:
        """Whether this write takes place on a register that holds this."""
        if self.expected is Wanted.ANYTHING:
            return self.kind == "put" or held is not None
        return held == self.expected

    def fits(self, held: Value) -> bool:
        """Whether a register that holds this can have given the answer."""
        if self.kind == "read":
            return held == self.saw
        if self.outcome is Outcome.REFUSED:
            return held == self.saw and not self.changes(held)
        return self.changes(held)

    @property
    def is_blind(self) -> bool:
        """Whether it takes place on whatever is there, and so tells nothing of it."""
        return self.kind == "put" and self.expected is Wanted.ANYTHING

    @property
    def writes(self) -> bool:
        return self.kind != "read" and self.outcome is not Outcome.REFUSED

    def __str__(self) -> str:
        what = f"{self.kind} {self.value or ''}" if self.kind == "put" else self.kind
        wanted = "" if self.expected is Wanted.ANYTHING else f" if {self.expected}"
        saw = "" if self.outcome is Outcome.DONE and self.kind != "read" else f" saw {self.saw}"
        return (
            f"[{self.began:.4f} .. {self.ended:.4f}] {what}{wanted}: {self.outcome.value}{saw} {self.note}".rstrip()
        )


def check(operations: Sequence[Operation], initial: Value = None, limit: int = MAX_STATES) -> str | None:
    """None when the history is linearizable; else how far an order could be found, and what then did not fit.

    A search that takes too much memory is given up, and reported like one that found nothing: it proves nothing.
    """
    return _Search(operations, limit).run(initial)


@dataclass(frozen=True, slots=True)
class _State:
    """How far an order has come: which operations are in it, as bits, and what the register holds then."""

    known: int
    unknown: int
    held: Value
    unseen: bool  # the last operation is one of unknown outcome, and nothing has needed it yet


class _Search:
    """A depth-first search through the orders of one history."""

    def __init__(self, operations: Sequence[Operation], limit: int) -> None:
        self._limit = limit
        answered = [operation for operation in operations if operation.outcome in (Outcome.DONE, Outcome.REFUSED)]
        # A read without an answer says nothing; a write without one may be needed to explain what others saw.
        open_writes = [
            operation
            for operation in operations
            if operation.outcome is Outcome.UNKNOWN and operation.kind != "read"
        ]
        self._known = sorted(answered, key=attrgetter("began"))
        self._unknown = sorted(open_writes, key=attrgetter("began"))
        self._all = (1 << len(self._known)) - 1
        self._furthest = _State(0, 0, None, False)

    def run(self, initial: Value) -> str | None:
        first = _State(0, 0, initial, False)
        self._furthest = first
        visited = {first}
        branches = [self._next(first)]
        while branches:
            state = next(branches[-1], None)
            if state is None:
                branches.pop()
            elif state.known == self._all:
                return None
            elif state not in visited:
                visited.add(state)
                if len(visited) > self._limit:
                    return f"not decided after {self._limit} states. {self._explain()}"
                self._note_progress(state)
                branches.append(self._next(state))
        return None if not self._known else self._explain()

    def _next(self, state: _State) -> Iterator[_State]:
        """The states one operation later. Those that may be next began before every open answer had come."""
        candidates = self._candidates(state)
        for bit, operation in candidates:
            # What only looks can go first wherever it may go at all: it takes no choice from the others.
            if not operation.writes and operation.fits(state.held):
                yield _State(state.known | bit, state.unknown, state.held, False)
                return
        for bit, operation in candidates:
            # A write of unknown outcome that nobody saw before it was written over need not have taken place.
            if operation.writes and operation.fits(state.held) and not (state.unseen and operation.is_blind):
                yield _State(state.known | bit, state.unknown, operation.value, False)
        deadline = min((operation.ended for _, operation in candidates), default=math.inf)
        yield from self._next_unknown(state, deadline)

    def _next_unknown(self, state: _State, deadline: float) -> Iterator[_State]:
        for index, operation in enumerate(self._unknown):
            bit = 1 << index
            if operation.began > deadline:
                return
            if (
                not state.unknown & bit
                and operation.changes(state.held)
                and not (state.unseen and operation.is_blind)
            ):
                yield _State(state.known, state.unknown | bit, operation.value, True)

    def _candidates(self, state: _State) -> list[tuple[int, Operation]]:
        found = []
        deadline = math.inf
        index = _lowest_zero(state.known)
        while index < len(self._known) and self._known[index].began <= deadline:
            bit, operation = 1 << index, self._known[index]
            if not state.known & bit:
                found.append((bit, operation))
                deadline = min(deadline, operation.ended)
            index += 1
        return found

    def _note_progress(self, state: _State) -> None:
        if state.known.bit_count() > self._furthest.known.bit_count():
            self._furthest = state

    def _explain(self) -> str:
        state = self._furthest
        stuck = [f"  {operation}" for _, operation in self._candidates(state)]
        begin = max(_lowest_zero(state.known) - 8, 0)
        before = [f"  {operation}" for operation in self._known[begin : begin + 8]]
        still_open = [f"  {operation}" for operation in self._unknown]
        lines = [
            f"{state.known.bit_count()} of {len(self._known)} operations fit, and leave it at {state.held};",
            "none of these can be next:",
            *stuck,
            "before them:",
            *before,
            "outcome unknown:",
            *still_open,
        ]
        return "\n".join(lines)


def _lowest_zero(bits: int) -> int:
    """The index of the lowest bit that is not set."""
    return (~bits & (bits + 1)).bit_length() - 1
