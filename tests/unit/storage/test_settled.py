"""Which files are taken to be durable."""

from __future__ import annotations

from cluster.storage.settled import Settled

NOW = 1_700_000_000.0
SECOND = 1_000_000_000


class Clock:
    """Storage's, and how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return NOW


def stamp(age: float) -> int:
    return int((NOW - age) * SECOND)


def test_what_is_old_by_the_clock_of_storage_is_durable() -> None:
    clock = Clock()
    settled = Settled(clock)
    assert not settled.knows("old", stamp(3600)), "nobody has looked at the clock"
    for age, durable in ((3600, True), (70, True), (50, False), (0, False), (-3600, False)):
        assert settled.finds("file", stamp(age)) == settled.knows("file", stamp(age)) == durable
    assert clock.asked == 1


def test_what_was_synced_is_durable_until_another_file_takes_its_place() -> None:
    settled = Settled(Clock())
    settled.note("file", stamp(1))
    assert settled.knows("file", stamp(1))
    assert not settled.finds("file", stamp(0.5))
    assert not settled.finds("another", stamp(1))


def test_only_so_many_are_remembered() -> None:
    settled = Settled(Clock(), most=2)
    for name in ("one", "two", "three"):
        settled.note(name, stamp(1))
    assert [settled.knows(name, stamp(1)) for name in ("one", "two", "three")] == [False, True, True]
