"""Turns the rounds of a benchmark into figures: medians, ratios, Markdown and JSON. It measures nothing."""

import dataclasses
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


@dataclass
class Row:
    """All rounds of one measure: for each seat, in the order of the rounds, how much it did in a second."""

    name: str
    unit: str
    rounds: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of processor time that one answer cost; what else runs on the machine hardly changes them."""
    latencies: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """p50 and p99 in milliseconds; empty for transfers."""

    def add(self, seat: str, per_second: float, cpu: float) -> None:
        """The outcome of one round."""
        self.rounds.setdefault(seat, []).append(per_second)
        self.cpu.setdefault(seat, []).append(cpu)

    def ratio(self, ours: str, theirs: str) -> float:
        """How many times theirs we do: the ratio of the medians."""
        return statistics.median(self.rounds[ours]) / statistics.median(self.rounds[theirs])

    def thrift(self, ours: str, theirs: str) -> float:
        """How many times our processor time they spend on one answer: the ratio of the medians."""
        return statistics.median(self.cpu[theirs]) / statistics.median(self.cpu[ours])

    def paired(self, ours: str, theirs: str) -> list[float]:
        """The ratio in each pair of rounds: how much of it is noise."""
        return [a / b for a, b in zip(self.rounds[ours], self.rounds[theirs], strict=True)]


@dataclass(frozen=True)
class Report:
    """The rows and what they were measured on; the first seat is compared with every other."""

    seats: Sequence[str]
    rows: Sequence[Row]
    conditions: dict[str, Any]

    def markdown(self) -> str:
        ours, *others = self.seats
        head = ["request", *(f"{seat} (min / median / max)" for seat in self.seats)]
        for seat in others:
            head += [f"ratio to {seat} (min to max)", "CPU ratio"]
        table = [head, ["---"] + ["---:"] * (len(head) - 1)]
        for row in self.rows:
            cells = [row.name, *(_spread(row.rounds[seat], row.unit) for seat in self.seats)]
            for seat in others:
                cells += [_ratio(row, ours, seat), f"{row.thrift(ours, seat):.2f}"]
            table.append(cells)
        lines = [_aligned(cells, table) for cells in table]
        notes = [f"- {key}: {value}" for key, value in self.conditions.items()]
        return "\n".join(["# Benchmark", "", *lines, "", *notes, ""])

    def write(self, directory: str) -> None:
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, "bench.md"), "w", encoding="utf-8") as file:
            file.write(self.markdown())
        with open(os.path.join(directory, "bench.json"), "w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(self) | {"ratios": self._ratios()}, file, indent=2)
            file.write("\n")

    def _ratios(self) -> dict[str, dict[str, float]]:
        ours, *others = self.seats
        return {row.name: {seat: row.ratio(ours, seat) for seat in others} for row in self.rows}


def conditions(directory: str, cores: tuple[int, int]) -> dict[str, Any]:
    """The machine, as far as it matters for the figures."""
    kind = subprocess.run(["df", "--output=fstype", directory], capture_output=True, text=True, check=True)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": f"{os.cpu_count()}; registries on {cores[0]}, load on {cores[1]}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "storage": kind.stdout.split()[-1],
    }


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _spread(values: list[float], unit: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{low:,.0f} / {middle:,.0f} / {high:,.0f} {unit}"


def _ratio(row: Row, ours: str, theirs: str) -> str:
    pairs = row.paired(ours, theirs)
    return f"{row.ratio(ours, theirs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})"


def _aligned(cells: list[str], table: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
