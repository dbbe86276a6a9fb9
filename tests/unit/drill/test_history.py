"""The judge of tag histories accepts what one register can do, and rejects what it cannot."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.drill.history import Operation, Outcome, Value, Wanted, check
from tests.support.history import History

ANYTHING = Wanted.ANYTHING
DONE, REFUSED, UNKNOWN = Outcome.DONE, Outcome.REFUSED, Outcome.UNKNOWN


def put(began: float, ended: float, value: str, expected: Value | Wanted = ANYTHING) -> Operation:
    return Operation("put", value, expected, began, ended, DONE)


def delete(began: float, ended: float, expected: Value | Wanted = ANYTHING) -> Operation:
    return Operation("delete", None, expected, began, ended, DONE)


def read(began: float, ended: float, saw: Value) -> Operation:
    return Operation("read", began=began, ended=ended, outcome=DONE, saw=saw)


def refused(began: float, ended: float, value: str, expected: Value, saw: Value) -> Operation:
    return Operation("put", value, expected, began, ended, REFUSED, saw)


def unknown(began: float, value: str | None, expected: Value | Wanted = ANYTHING) -> Operation:
    return Operation("put" if value else "delete", value, expected, began)


LINEARIZABLE = {
    "nothing happened": [],
    "one after the other": [read(0, 1, None), put(2, 3, "a"), read(4, 5, "a"), delete(6, 7), read(8, 9, None)],
    "a read beside a write sees the old value": [put(0, 1, "a"), put(2, 9, "b"), read(3, 4, "a"), read(5, 6, "b")],
    "two writes at once take either order": [put(0, 5, "a"), put(1, 4, "b"), read(6, 7, "a")],
    "the swap that won, and the one that lost": [
        put(0, 1, "a"),
        put(2, 6, "b", "a"),
        refused(3, 5, "c", "a", "b"),
        read(7, 8, "b"),
    ],
    "an unanswered write that was seen later": [put(0, 1, "a"), unknown(2, "b"), read(3, 4, "a"), read(5, 6, "b")],
    "an unanswered write that nobody saw": [put(0, 1, "a"), unknown(2, "b"), read(3, 4, "a"), read(5, 6, "a")],
    "an unanswered write that took effect between two others": [
        put(0, 1, "a"),
        unknown(2, "b"),
        put(3, 4, "c"),
        read(5, 6, "b"),
    ],
    "an unanswered write between two deletes": [put(0, 1, "a"), unknown(2, "b"), delete(3, 4), delete(5, 6)],
    "unanswered swaps that follow from each other": [
        put(0, 1, "a"),
        unknown(2, "b", "a"),
        unknown(2, "c", "b"),
        read(3, 4, "c"),
    ],
    "a delete that found nothing": [Operation("delete", None, ANYTHING, 0, 1, REFUSED, None), put(2, 3, "a")],
    "create if absent": [put(0, 1, "a", None), refused(2, 3, "b", None, "a"), read(4, 5, "a")],
}

VIOLATIONS = {
    "a write that reached nobody, and was seen": [
        put(0, 1, "a"),
        Operation("put", "b", ANYTHING, 2, 3, Outcome.UNASKED),
        read(4, 5, "b"),
    ],
    "a stale read": [put(0, 1, "a"), put(2, 3, "b"), read(4, 5, "a")],
    "two readers that saw two orders": [
        put(0, 9, "a"),
        put(0, 9, "b"),
        read(1, 2, "a"),
        read(3, 4, "b"),
        read(5, 6, "a"),
    ],
    "a lost update: two swaps from one value": [put(0, 1, "a"), put(2, 5, "b", "a"), put(3, 6, "c", "a")],
    "a refused swap that took effect": [put(0, 1, "a"), refused(2, 3, "c", "b", "a"), read(4, 5, "c")],
    "a swap that was refused though its condition held": [put(0, 1, "a"), refused(2, 3, "b", "a", "a")],
    "a value that nobody wrote": [put(0, 1, "a"), read(2, 3, "z")],
    "a value seen before it was written": [read(0, 1, "a"), put(2, 3, "a")],
    "an acknowledged write that vanished": [put(0, 1, "a"), read(2, 3, None)],
    "a deleted value that came back": [put(0, 1, "a"), delete(2, 3), read(4, 5, "a")],
    "two deletes of one value": [put(0, 1, "a"), delete(2, 3), delete(4, 5)],
    "an unanswered write that took effect twice": [
        unknown(0, "b"),
        read(1, 2, "b"),
        put(3, 4, "a"),
        read(5, 6, "b"),
    ],
    "an unanswered write that took effect before it began": [put(0, 1, "a"), read(2, 3, "b"), unknown(4, "b")],
    "an unanswered swap whose condition never held": [put(0, 1, "a"), unknown(2, "b", "z"), read(3, 4, "b")],
}


@pytest.mark.parametrize("history", LINEARIZABLE.values(), ids=LINEARIZABLE)
def test_what_one_register_can_do_is_accepted(history: Sequence[Operation]) -> None:
    assert check(history) is None


@pytest.mark.parametrize("history", VIOLATIONS.values(), ids=VIOLATIONS)
def test_what_no_register_does_is_rejected(history: Sequence[Operation]) -> None:
    assert check(history) is not None


def test_a_rejection_shows_the_operation_that_does_not_fit() -> None:
    problem = check(VIOLATIONS["a stale read"]) or ""
    assert "2 of 3 operations fit, and leave it at b" in problem
    assert "read: done saw a" in problem


def test_an_operation_without_an_answer_stays_open() -> None:
    history = History()
    with pytest.raises(OSError), history.record("tag", Operation("put", "a")):
        raise OSError("the connection broke")
    with history.record("tag", Operation("read")) as operation:
        operation.end(DONE, None)
    first, second = history.operations["tag"]
    assert (first.outcome, first.ended) == (UNKNOWN, math.inf)
    assert first.began <= second.began <= second.ended < math.inf
    history.judge()


def test_each_register_is_judged_by_itself_and_the_wrong_one_is_named() -> None:
    history = History()
    history.operations.update(good=[put(0, 1, "a"), read(2, 3, "a")], bad=[put(0, 1, "b"), read(2, 3, "a")])
    with pytest.raises(AssertionError, match="bad is not linearizable"):
        history.judge()


def plausible(seed: int, length: int, spread: float) -> list[Operation]:
    """A history that a real register gave: each operation takes effect at a moment within its interval."""
    chance = random.Random(seed)
    held: Value = None
    history = []
    for moment in range(1, length + 1):
        began, ended = moment - chance.uniform(0, spread), moment + chance.uniform(0, spread)
        kind = chance.choice(["put", "put", "delete", "read"])
        value = f"v{moment}" if kind == "put" else None
        expected = chance.choice([ANYTHING, held, "v1"]) if kind != "read" else ANYTHING
        operation = Operation(kind, value, expected, began, ended, DONE, held)
        if operation.writes and not operation.changes(held):
            operation.outcome = REFUSED
        if operation.writes:
            held = operation.value
            if chance.random() < 0.1:
                operation.outcome, operation.ended = UNKNOWN, math.inf
        history.append(operation)
    return history


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 120), spread=st.floats(0, 4))
def test_what_a_real_register_did_is_always_accepted(seed: int, length: int, spread: float) -> None:
    assert check(plausible(seed, length, spread)) is None


def in_some_order(history: Sequence[Operation]) -> bool:
    """The definition itself, by trying every order of every choice of unanswered writes."""
    answered = [operation for operation in history if operation.outcome is not UNKNOWN]
    open_writes = [operation for operation in history if operation.outcome is UNKNOWN]
    for count in range(len(open_writes) + 1):
        for chosen in itertools.combinations(open_writes, count):
            if any(_is_order(order) for order in itertools.permutations([*answered, *chosen])):
                return True
    return False


def _is_order(order: Sequence[Operation]) -> bool:
    held: Value = None
    for index, operation in enumerate(order):
        if any(later.ended < operation.began for later in order[index + 1 :]):
            return False
        if not (operation.changes(held) if operation.outcome is UNKNOWN else operation.fits(held)):
            return False
        held = operation.value if operation.writes else held
    return True


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_search_agrees_with_the_definition_on_small_histories(seed: int) -> None:
    chance = random.Random(seed)
    history = plausible(seed, 6, 2)
    for operation in history:  # most of them are wrong after this
        if chance.random() < 0.3:
            operation.saw = chance.choice([None, "v1", "v2", "v3"])
        if chance.random() < 0.2:
            operation.outcome = chance.choice([DONE, REFUSED] if operation.kind != "read" else [DONE])
            operation.ended = min(operation.ended, operation.began + 2)
    assert (check(history) is None) == in_some_order(history)


def test_a_search_that_takes_too_much_memory_is_given_up_and_says_so() -> None:
    history = plausible(7, 200, 3)
    assert check(history) is None
    assert "not decided after 100 states" in (check(history, limit=100) or "")


def test_a_long_history_of_many_clients_takes_few_states() -> None:
    history = plausible(7, 2000, 3)
    assert check(history, limit=2 * len(history)) is None
