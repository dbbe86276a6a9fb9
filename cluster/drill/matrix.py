"""The matrix: a row for each fault, a cell for each operation under it, and whether each kept its promise.

Values only: run.py fills them in, report.py shows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.drill.faults import Fault, Promise
from cluster.drill.meter import Bucket, Kind, Meter, Span
from cluster.drill.verdict import Verdict

SHOWN = 10
"""Findings of a kind that are kept; their number is exact."""


@dataclass
class Cell:
    """One operation under one fault."""

    kind: Kind
    acknowledged: int
    lost: int
    wrong: int
    linearizable: bool
    unverified: int
    requests: int
    failed: int
    steps: int
    first_failures: int
    failures: int
    worst: float
    recovery: float | None
    """Seconds; None: it was not well again."""
    findings: list[str]
    """Broken promises in words, the first of each kind."""
    reasons: list[str]
    """Why requests failed, the first of them."""

    @property
    def holds(self) -> bool:
        return not self.findings


@dataclass
class Row:
    """One fault."""

    fault: Fault
    seconds: float = 0.0
    spans: list[Span] = field(default_factory=list)
    """When the fault was there, from the beginning of the load."""
    cells: list[Cell] = field(default_factory=list)
    buckets: list[Bucket] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Why it could not be run here."""
    problem: str = ""
    """What ended it before it could be judged."""

    @property
    def holds(self) -> bool:
        """Whether it was run, and every promise held."""
        return not self.missing and not self.problem and all(cell.holds for cell in self.cells)

    @property
    def state(self) -> str:
        if self.missing:
            return "not run"
        return "holds" if self.holds else "broken"


@dataclass
class Matrix:
    """One run of drills."""

    command: str
    date: str
    version: str
    nodes: int
    load: int
    rows: list[Row] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether everything that was run kept its promises."""
        return all(row.holds for row in self.rows if not row.missing)

    @property
    def missing(self) -> list[Row]:
        return [row for row in self.rows if row.missing]


def judge(fault: Fault, kind: Kind, meter: Meter, spans: Sequence[Span], verdict: Verdict) -> Cell:
    """What came of one operation."""
    recovery = meter.recovery(spans, refused=kind in fault.refused)
    cell = Cell(
        kind=kind,
        acknowledged=verdict.acknowledged,
        lost=len(verdict.lost),
        wrong=len(verdict.wrong),
        linearizable=not (verdict.histories or verdict.returned),
        unverified=len(verdict.unverified),
        requests=len(meter.samples),
        failed=meter.failed,
        steps=meter.steps,
        first_failures=meter.first_failures,
        failures=len(meter.failures),
        worst=meter.worst,
        recovery=recovery,
        findings=_findings(verdict),
        reasons=meter.reasons[:SHOWN],
    )
    if recovery is None:
        cell.findings.append("it was not well again")
    if not meter.steps:
        cell.findings.append("not one step came to its end: this shows nothing")
    if meter.failures:
        text = f"{len(meter.failures)} steps failed with all retries, the first: {meter.failures[0]}"
        cell.findings.append(text)
    if meter.failed and fault.promise is Promise.UNNOTICED:
        cell.findings.append(f"{meter.failed} requests failed, the first: {meter.reasons[0]}")
    return cell


def _findings(verdict: Verdict) -> list[str]:
    kinds = {
        "lost": verdict.lost,
        "wrong bytes": verdict.wrong,
        "came back": verdict.returned,
        "not linearizable": verdict.histories,
        "not verified": verdict.unverified,
    }
    return [f"{name}: {what}" for name, found in kinds.items() for what in found[:SHOWN]]
