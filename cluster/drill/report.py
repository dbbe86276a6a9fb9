"""What came of drills, to read: one HTML page that needs nothing else, JSON, and Markdown tables.

Shows the matrix as it is; what holds and what is broken was decided in matrix.py.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from cluster.drill.matrix import Cell, Matrix, Row
from cluster.drill.meter import BUCKET, Bucket, Kind

_TEMPLATE = "report.html.j2"
WIDTH, HEIGHT = 720, 120
"""Of a plot, in its own units."""
_FLOOR = 0.001  # seconds: what is faster is drawn there
_DECADES = (0.001, 0.01, 0.1, 1.0, 10.0)


def write(matrix: Matrix, directory: str) -> list[str]:
    """Write the report; the paths of its files."""
    os.makedirs(directory, exist_ok=True)
    texts = {"index.html": page(matrix), "drill.json": as_json(matrix), "matrix.md": markdown(matrix)}
    for name, text in texts.items():
        with open(f"{directory}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    return [f"{directory}/{name}" for name in texts]


def as_json(matrix: Matrix) -> str:
    """Everything, for programs."""
    content = {
        "command": matrix.command,
        "date": matrix.date,
        "version": matrix.version,
        "nodes": matrix.nodes,
        "load": matrix.load,
        "holds": matrix.holds,
        "drills": [_row_fields(row) for row in matrix.rows],
    }
    return json.dumps(content, indent=2) + "\n"


def _row_fields(row: Row) -> dict[str, Any]:
    return {
        "name": row.fault.name,
        "what": row.fault.text,
        "promise": row.fault.promise,
        "refused_meanwhile": sorted(row.fault.refused),
        "state": row.state,
        "missing": row.missing,
        "problem": row.problem,
        "seconds": round(row.seconds, 1),
        "faults": [vars(span) for span in row.spans],
        "operations": {cell.kind: {**vars(cell), "holds": cell.holds} for cell in row.cells},
        "timeline": [vars(bucket) for bucket in row.buckets],
    }


@dataclass(frozen=True)
class Column:
    title: str
    text: Callable[[Sequence[Cell]], str]


def _sum(figure: Callable[[Cell], int]) -> Callable[[Sequence[Cell]], str]:
    return lambda cells: f"{sum(map(figure, cells)):,}"


def _recovered(cells: Iterable[Cell]) -> str:
    times = [cell.recovery for cell in cells]
    known = [seconds for seconds in times if seconds is not None]
    return f"{max(known, default=0.0):.1f} s" if len(known) == len(times) else "NEVER"


COLUMNS = [
    Column("facts", _sum(lambda cell: cell.acknowledged)),
    Column("lost", _sum(lambda cell: cell.lost)),
    Column("wrong bytes", _sum(lambda cell: cell.wrong)),
    Column("linearizable", lambda cells: "yes" if all(cell.linearizable for cell in cells) else "NO"),
    Column("requests", _sum(lambda cell: cell.requests)),
    Column("failed", _sum(lambda cell: cell.failed)),
    Column("steps", _sum(lambda cell: cell.steps)),
    Column("failed first", _sum(lambda cell: cell.first_failures)),
    Column("after retries", _sum(lambda cell: cell.failures)),
    Column("worst", lambda cells: f"{max((cell.worst for cell in cells), default=0.0):.2f} s"),
    Column("recovered", _recovered),
]
"""The figures of a cell, or of all cells of a row together."""


def markdown(matrix: Matrix) -> str:
    """The matrix by faults, and below it every cell."""
    titles = [column.title for column in COLUMNS]
    by_fault = [_line(["fault", *titles]), _line(["---"] * (len(titles) + 1))]
    by_cell = [_line(["fault", "operation", *titles]), _line(["---"] * (len(titles) + 2))]
    for row in matrix.rows:
        if not row.cells:
            by_fault.append(_line([row.fault.name, f"{row.state}: {'; '.join(row.missing) or row.problem}"]))
            continue
        by_fault.append(_line([row.fault.text, *(column.text(row.cells) for column in COLUMNS)]))
        for cell in row.cells:
            by_cell.append(_line([row.fault.name, cell.kind, *(column.text([cell]) for column in COLUMNS)]))
    head = f"{matrix.nodes} nodes, {matrix.load} clients, {matrix.date}: `{matrix.command}`"
    return "\n\n".join([head, "\n".join(by_fault), "\n".join(by_cell)]) + "\n"


def _line(words: Iterable[str]) -> str:
    return f"| {' | '.join(word.replace('|', '/') for word in words)} |"


def page(matrix: Matrix) -> str:
    """One page, with its style and its plots in it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template(_TEMPLATE)
    plots = {row.fault.name: Plot(row) for row in matrix.rows if row.buckets}
    return template.render(
        matrix=matrix, columns=COLUMNS, kinds=list(Kind), plots=plots, width=WIDTH, height=HEIGHT
    )


class Plot:
    """Two plots over one time: how long requests took, on a logarithmic scale, and how many of them failed."""

    def __init__(self, row: Row) -> None:
        self._buckets = row.buckets
        end = [row.buckets[-1].at + BUCKET] if row.buckets else []
        self._seconds = max([1.0, *end, *(span.ended for span in row.spans)])
        self._most = max([1, *(bucket.requests for bucket in row.buckets)])
        self.faults = [(self.x(span.began), max(self.x(span.ended) - self.x(span.began), 2)) for span in row.spans]
        self.worst = self._points(lambda bucket: _latency_y(bucket.worst))
        self.median = self._points(lambda bucket: _latency_y(bucket.median))
        self.levels = [
            (f"{level * 1000:g} ms" if level < 1 else f"{level:g} s", _latency_y(level)) for level in _DECADES
        ]
        step = next(step for step in (1, 2, 5, 10, 20, 60, 120, 600) if self._seconds / step <= 15 or step == 600)
        self.ticks = [(f"{at} s", self.x(at)) for at in range(0, int(self._seconds) + 1, step)]
        self.most = self._most

    def x(self, at: float) -> float:
        return round(WIDTH * at / self._seconds, 1)

    def bars(self) -> list[tuple[float, float, float]]:
        """Where each bucket is, how high its requests are, and how high the failed ones of them."""
        scale = HEIGHT / self._most
        return [
            (self.x(bucket.at), round(bucket.requests * scale, 1), round(bucket.failed * scale, 1))
            for bucket in self._buckets
        ]

    @property
    def bar(self) -> float:
        """How wide a bar is."""
        return max(self.x(BUCKET) - 0.5, 0.5)

    def _points(self, y: Callable[[Bucket], float]) -> str:
        return " ".join(f"{self.x(bucket.at)},{y(bucket)}" for bucket in self._buckets)


def _latency_y(seconds: float) -> float:
    decades = math.log10(max(seconds, _FLOOR) / _FLOOR)
    return round(HEIGHT * (1 - decades / math.log10(100 / _FLOOR)), 1)
