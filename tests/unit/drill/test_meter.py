"""What clients felt, as figures: recoveries, worst times, and the buckets of plots."""

from __future__ import annotations

import pytest

from cluster.drill.meter import KEPT, Meter, Span, timeline


def metered(*requests: tuple[float, float, bool]) -> Meter:
    """A meter of requests: when they began, how long they took, whether they were good."""
    meter = Meter()
    for began, seconds, good in requests:
        meter.request(began, began + seconds, None if good else "it failed")
    return meter


def test_a_fault_that_no_request_felt_took_no_time_to_recover_from() -> None:
    assert metered((1, 0.1, True), (11, 0.1, True)).recovery([Span(10, 10)], refused=False) == 0


def test_recovery_ends_with_the_first_good_answer_behind_the_last_failure() -> None:
    meter = metered((10.1, 0.4, False), (10.2, 0.1, True), (11, 2, False), (12, 0.5, True), (12.5, 1, True))
    assert meter.recovery([Span(10, 10)], refused=False) == pytest.approx(3.5)


def test_a_request_that_was_under_way_when_the_fault_struck_counts() -> None:
    assert metered((9, 3, False), (12, 1, True)).recovery([Span(10, 10)], refused=False) == pytest.approx(3)


def test_what_never_was_good_again_did_not_recover() -> None:
    assert metered((1, 1, True), (11, 1, False)).recovery([Span(10, 10)], refused=False) is None


def test_of_several_blows_the_longest_recovery_counts() -> None:
    meter = metered((10, 1, False), (11, 1, True), (20, 4, False), (24, 1, True), (30, 1, False), (31, 1, True))
    assert meter.recovery([Span(10, 10), Span(20, 20), Span(30, 30)], refused=False) == pytest.approx(5)


def test_a_request_that_the_next_blow_broke_is_no_failure_of_the_one_before() -> None:
    meter = metered((10, 1, False), (11, 1, True), (19.5, 1, False), (21, 1, True))
    assert meter.recovery([Span(10, 10), Span(20, 20)], refused=False) == pytest.approx(2)


def test_what_a_fault_makes_impossible_recovers_from_its_end_on() -> None:
    meter = metered((10, 1, False), (14, 5, True), (15.5, 1, False), (16, 1.5, True))
    assert meter.recovery([Span(10, 15)], refused=True) == pytest.approx(2.5)
    assert metered((10, 1, False), (14, 5, True)).recovery([Span(10, 15)], refused=True) is None


def test_steps_are_counted_by_what_their_clients_saw() -> None:
    meter = Meter()
    meter.step(1, None)
    meter.step(3, None)
    meter.step(4, "all tries failed")
    assert (meter.steps, meter.first_failures, meter.failures) == (3, 2, ["all tries failed"])


def test_requests_are_counted_and_only_some_reasons_kept() -> None:
    meter = metered(*[(n, 0.5, False) for n in range(100)], (100, 7, True))
    assert (len(meter.samples), meter.failed, len(meter.reasons), meter.worst) == (101, 100, KEPT, 7)


def test_a_timeline_has_what_ended_in_each_bucket() -> None:
    meter = metered((5, 0.1, True), (5, 0.2, True), (5.05, 0.3, False), (6, 0.1, True))
    first, *_, last = timeline(meter.samples, start=5, width=0.25)
    assert (first.at, first.requests, first.failed, first.worst) == (0, 2, 0, pytest.approx(0.2))
    assert (last.at, last.requests, last.median) == (1.0, 1, pytest.approx(0.1))
    assert sum(bucket.failed for bucket in timeline(meter.samples, 5, 0.25)) == 1
