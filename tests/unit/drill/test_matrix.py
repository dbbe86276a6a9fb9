"""A cell holds its promise or does not, and every report says the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser

import pytest

from cluster.drill import report
from cluster.drill.faults import FAULTS, Fault, Promise, Scene
from cluster.drill.matrix import Cell, Matrix, Row, judge
from cluster.drill.meter import Bucket, Kind, Meter, Span
from cluster.drill.verdict import Verdict

SPANS = [Span(10.0, 20.0)]


@contextmanager
def nothing(_: Scene) -> Iterator[None]:
    yield


def fault(promise: Promise = Promise.RETRIED, refused: frozenset[Kind] = frozenset()) -> Fault:
    return Fault("a-fault", "a <fault> | of tests", nothing, promise, stays=True, refused=refused)


def meter(failed: int = 0, first: int = 0, failures: int = 0) -> Meter:
    made = Meter()
    for n in range(30):
        made.request(n, n + 0.5, "it <failed>" if 10 <= n < 10 + failed else None)
    for n in range(30):
        made.step(2 if n < first else 1, "with all tries" if n < failures else None)
    return made


def verdict(**found: list[str]) -> Verdict:
    return Verdict(registers=3, acknowledged=7, answers=9, **found)


def test_nothing_lost_and_nothing_felt_holds() -> None:
    cell = judge(fault(Promise.UNNOTICED), Kind.PUSH, meter(), SPANS, verdict())
    assert (cell.holds, cell.acknowledged, cell.requests, cell.recovery) == (True, 7, 30, 0.0)


@pytest.mark.parametrize("what", ["lost", "wrong", "returned", "histories", "unverified"])
def test_whatever_the_judge_found_breaks_the_promise(what: str) -> None:
    cell = judge(fault(), Kind.PUSH, meter(), SPANS, verdict(**{what: ["team/app is gone"]}))
    assert not cell.holds
    assert "team/app is gone" in cell.findings[0]


def test_a_request_that_failed_breaks_the_promise_that_none_does() -> None:
    for promise, holds in ((Promise.UNNOTICED, False), (Promise.RETRIED, True)):
        assert judge(fault(promise), Kind.TAG, meter(failed=1, first=1), SPANS, verdict()).holds is holds


def test_a_step_that_failed_with_all_retries_breaks_the_promise() -> None:
    full = fault(refused=frozenset({Kind.PUSH}))
    for kind in (Kind.PUSH, Kind.PULL):
        assert not judge(full, kind, meter(failed=3, first=1, failures=1), SPANS, verdict()).holds


def test_what_is_refused_meanwhile_is_well_once_it_is_possible_again() -> None:
    full, refused = fault(refused=frozenset({Kind.PUSH})), meter(failed=10, first=1)
    assert judge(full, Kind.PUSH, refused, SPANS, verdict()).recovery == 0.5
    assert judge(full, Kind.PULL, refused, SPANS, verdict()).recovery == 10.5
    lossy = judge(full, Kind.PUSH, refused, SPANS, verdict(lost=["a blob"]))
    assert not lossy.holds, "what may be refused may not be lost"


def test_what_is_not_well_again_and_what_was_never_done_hold_nothing() -> None:
    assert not judge(fault(), Kind.PUSH, meter(failed=20), SPANS, verdict()).holds
    assert not judge(fault(), Kind.PUSH, Meter(), SPANS, verdict()).holds


def matrix() -> Matrix:
    good, bad = Row(fault()), Row(fault())
    for row, lost in ((good, []), (bad, ["a blob of <team>/app"])):
        row.spans, row.buckets = SPANS, [Bucket(0.0, 10, 0, 0.004, 0.2), Bucket(0.25, 8, 3, 0.5, 12.0)]
        row.cells = [judge(row.fault, kind, meter(failed=2), SPANS, verdict(lost=lost)) for kind in Kind]
    return Matrix("registry-cluster drill run", "2026-01-01", "1.0", 3, 32, [good, bad])


def test_a_matrix_holds_when_all_that_was_run_does() -> None:
    whole = matrix()
    assert [row.state for row in whole.rows] == ["holds", "broken"]
    assert not whole.holds
    del whole.rows[1]
    assert whole.holds
    whole.rows.append(Row(fault(), missing=["bindfs is not installed"]))
    assert (whole.holds, [row.state for row in whole.missing]) == (True, ["not run"])
    whole.rows.append(Row(fault(), problem="the cluster did not come up"))
    assert not whole.holds


def test_json_has_every_figure() -> None:
    content = json.loads(report.as_json(matrix()))
    drill = content["drills"][1]
    assert (content["holds"], drill["state"], drill["faults"]) == (
        False,
        "broken",
        [{"began": 10.0, "ended": 20.0}],
    )
    assert set(drill["operations"]) == set(Kind)
    assert set(Cell.__dataclass_fields__) <= set(drill["operations"]["push"])
    assert drill["operations"]["push"]["lost"] == 1


def test_markdown_is_a_table_of_faults_and_one_of_cells() -> None:
    whole = matrix()
    whole.rows.append(Row(fault(), missing=["bindfs is not installed"]))
    tables = [block for block in report.markdown(whole).split("\n\n") if block.startswith("|")]
    by_fault, by_cell = (table.splitlines() for table in tables)
    assert (len(by_fault), len(by_cell)) == (2 + 3, 2 + 2 * len(Kind))
    assert {line.count("|") for line in by_cell} == {len(report.COLUMNS) + 3}
    assert "not run: bindfs is not installed" in by_fault[-1]


class Page(HTMLParser):
    """What a browser would fetch, and which elements are left open."""

    OPEN = ("meta", "rect", "line", "polyline", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.fetched += [str(value) for name, value in attributes if name in ("src", "href") and value]
        if tag not in self.OPEN:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.OPEN or self.open.pop() == tag


def test_the_page_needs_nothing_else_and_shows_text_as_text() -> None:
    text = report.page(matrix())
    page = Page(text)
    assert page.open == []
    assert all(target.startswith("#") for target in page.fetched), page.fetched
    assert "a blob of &lt;team&gt;/app" in text and "<team>" not in text
    assert "<polyline" in text


def test_every_fault_has_a_name_of_its_own_and_a_text() -> None:
    assert len({fault.name for fault in FAULTS}) == len({fault.text for fault in FAULTS}) == len(FAULTS)
