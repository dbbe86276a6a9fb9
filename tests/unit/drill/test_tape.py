"""Meters that are made of a tape are those that clients in this process would have filled."""

from __future__ import annotations

from pathlib import Path

from cluster.drill.meter import Kind, Meter
from cluster.drill.tape import Tape, play


def test_what_was_written_is_what_is_played(tmp_path: Path) -> None:
    meter, tape = Meter(), Tape(tmp_path / "tape")
    for began, ended, failure in ((1.0, 1.5, None), (2.0, 4.0, "PUT /x: 503"), (2.5, 2.75, None)):
        meter.request(began, ended, failure)
        tape.request(Kind.PUSH, began, ended, failure)
    for tries, failure in ((1, None), (2, None), (4, "push: 503")):
        meter.step(tries, failure)
        tape.step(Kind.PUSH, tries, failure)
    tape.close()
    played = play(tmp_path / "tape")
    for figure in ("samples", "steps", "first_failures", "failures", "reasons", "failed", "worst"):
        assert getattr(played[Kind.PUSH], figure) == getattr(meter, figure), figure
    assert (meter.steps, meter.first_failures, meter.failed) == (3, 2, 1)
    assert set(played) == set(Kind) and not played[Kind.PULL].steps


def test_what_a_writer_that_was_killed_had_not_finished_is_left_out(tmp_path: Path) -> None:
    tape = Tape(tmp_path / "tape")
    tape.step(Kind.PULL, 1, None)
    tape.close()
    with open(tmp_path / "tape", "a", encoding="utf-8") as file:
        file.write('{"kind": "pull", "tri')
    assert play(tmp_path / "tape")[Kind.PULL].steps == 1
