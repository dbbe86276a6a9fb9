"""The number that each worker of a node has in memory shared by all."""

import os

from cluster.tally import Tally


def told_by_a_child(tally: Tally, worker: int, number: int) -> None:
    """Do what the arbiter and its worker do; the worker ends without a good-bye."""
    tally.admit(worker)
    if (pid := os.fork()) == 0:
        tally.tell(number)
        os._exit(0)
    os.waitpid(pid, 0)


def test_what_one_process_tells_is_seen_by_the_others() -> None:
    tally = Tally()
    told_by_a_child(tally, 1, 3)
    told_by_a_child(tally, 2, 4)
    assert tally.total() == 7


def test_a_worker_that_died_leaves_nothing_and_its_place_is_given_again() -> None:
    tally = Tally()
    for worker in range(5000):
        tally.admit(worker)
        tally.tell(2)
        assert tally.total() == 2
        tally.dismiss(worker)
        assert tally.total() == 0


def test_with_more_workers_than_places_the_others_are_counted_still() -> None:
    tally = Tally()
    for worker in range(1024):
        tally.admit(worker)
        tally.tell(1)
    tally.admit(1024)
    tally.tell(1)
    tally.dismiss(1024)
    assert tally.total() == 1024


def test_a_process_without_an_arbiter_has_one_number() -> None:
    tally = Tally()
    tally.tell(5)
    assert tally.total() == 5
