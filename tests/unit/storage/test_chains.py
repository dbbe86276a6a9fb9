"""What is remembered of published segments."""

from __future__ import annotations

from cluster.storage.chains import Chains, Segment


def run(session: str, count: int) -> list[Segment]:
    return [Segment(f"{session}/{number}", number, 1, True) for number in range(count)]


def test_a_chain_is_known_until_it_has_ended() -> None:
    chains = Chains()
    assert chains.find("one") == []
    for count in (1, 3):
        chains.note("one", run("one", count))
        assert chains.find("one") == run("one", count)
    chains.forget("one")
    chains.forget("one")
    assert chains.find("one") == []


def test_the_sessions_that_nobody_asked_for_of_late_are_forgotten_first() -> None:
    chains = Chains(most=6)
    for session in ("one", "two"):
        chains.note(session, run(session, 3))
    chains.find("one")
    chains.note("three", run("three", 2))
    assert [len(chains.find(session)) for session in ("one", "two", "three")] == [3, 0, 2]
    chains.note("one", run("one", 7))  # more than there is room for
    assert [len(chains.find(session)) for session in ("one", "two", "three")] == [0, 0, 0]
    chains.note("two", run("two", 6))
    assert len(chains.find("two")) == 6
