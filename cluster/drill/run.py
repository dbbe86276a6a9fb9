"""Runs drills: starts the cluster that a fault needs, loads it, breaks it, heals it, and has it judged.

Decides the order and the pace. Says on the way what it does; report.py shows what came of it.
"""

from __future__ import annotations

import difflib
import math
import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

from cluster import __version__
from cluster.drill.cluster import Cluster, Trouble, started
from cluster.drill.facts import load
from cluster.drill.faults import FAULTS, Fault, Scene, named
from cluster.drill.load import Load
from cluster.drill.matrix import Matrix, Row, judge
from cluster.drill.meter import Span, timeline
from cluster.drill.surroundings import KINDS, SENTINEL_PORTS, Setting, Surroundings
from cluster.drill.swarm import Swarm
from cluster.drill.verdict import verify
from cluster.errors import ConfigError
from cluster.supervisor import say

VERIFY = 300.0
"""Seconds for the nodes to be asked for everything that was acknowledged."""


@dataclass(frozen=True)
class Pace:
    """Seconds of each part of a drill."""

    warm: float  # under load, before anything happens
    hold: float  # that a fault stays
    rest: float  # between the end of one and the next, and after the last
    total: float  # under load, as far as whole rounds of these fit into it; one fits always


QUICK = Pace(1.0, 4.0, 1.5, 0.0)


def thorough(minutes: float) -> Pace:
    return Pace(5.0, 30.0, 10.0, 60 * minutes)


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    faults: Sequence[Fault]
    nodes: int
    load: int
    pace: Pace
    directory: str  # where everything is written to
    command: str  # as a person types it
    target: str | None = None  # the directory of a running cluster, which is used in place of new ones
    locustfile: str | None = None  # whose users make the load, in place of our own clients

    def load_on(self, cluster: Cluster, fault: Fault) -> Load | Swarm:
        """The clients of a drill."""
        facts = f"{self.directory}/facts"
        if self.locustfile is None:
            return Load(cluster.endpoint, facts, fault.name, self.load)
        return Swarm(self.locustfile, cluster.endpoint, facts, fault.name, self.load)


def choose(names: Sequence[str], target: str | None) -> list[Fault]:
    """The faults of these names, or all; of those that can be done to a running cluster when it is one."""
    possible = [fault for fault in FAULTS if target is None or fits_target(fault)]
    if "all" in names:
        return possible
    chosen = []
    for name in names:
        fault = named(name)
        if fault is None:
            raise ConfigError([f"there is no drill {name!r}: {_meant(name)}"])
        if fault not in possible:
            raise ConfigError([f"{name} needs a cluster that is prepared for it: run it without --target"])
        chosen.append(fault)
    return [fault for fault in FAULTS if fault in chosen]


def _meant(name: str) -> str:
    known = "`registry-cluster drill list` names all"
    near = difflib.get_close_matches(name.lower(), ["all", *(fault.name for fault in FAULTS)], n=1)
    return f"did you mean {near[0]}? {known}" if near else known


def fits_target(fault: Fault) -> bool:
    """Whether it can be done to a cluster that was not prepared for it."""
    return fault.anywhere and fault.setting is Setting.PLAIN


def run(plan: Plan) -> Matrix:
    """All drills of a plan, one after the other."""
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    matrix = Matrix(plan.command, date, __version__, plan.nodes, plan.load)
    with _Stage(plan) as stage:
        for number, fault in enumerate(plan.faults, 1):
            row = Row(fault)
            matrix.rows.append(row)
            say(f"[{number}/{len(plan.faults)}] {fault.name}: {fault.text}")
            row.missing = KINDS[fault.setting].missing()
            if row.missing:
                say(f"  NOT RUN: {'; '.join(row.missing)}")
                continue
            _run_one(plan, stage, row)
            _tell(row)
    return matrix


def _run_one(plan: Plan, stage: _Stage, row: Row) -> None:
    began = time.monotonic()
    try:
        scene = stage.set_for(row.fault)
        drill(scene, row, plan.pace, plan.load_on(scene.cluster, row.fault))
    except (Trouble, ConfigError) as error:
        row.problem = str(error)
        stage.clear()
    row.seconds = time.monotonic() - began


def drill(scene: Scene, row: Row, pace: Pace, load_: Load | Swarm) -> None:
    """Load a cluster that is there, break it by the row's fault, and fill the row. Trouble."""
    fault, cluster = row.fault, scene.cluster
    cluster.wait_until_whole()
    with load_:
        time.sleep(pace.warm)
        end = load_.began + pace.total
        spans = [_strike(scene, fault, pace)]
        while time.monotonic() + (time.monotonic() - spans[-1].began) < end:
            spans.append(_strike(scene, fault, pace))
    cluster.wait_until_whole()
    row.spans = [Span(span.began - load_.began, span.ended - load_.began) for span in spans]
    samples = [sample for meter in load_.meters.values() for sample in meter.samples]
    row.buckets = timeline(samples, load_.began)
    urls = [node.url for node in cluster.nodes]
    for kind, meter in load_.meters.items():
        verdict = verify(load(load_.records[kind]), urls, within=VERIFY)
        row.cells.append(judge(fault, kind, meter, spans, verdict))


def _strike(scene: Scene, fault: Fault, pace: Pace) -> Span:
    """One blow, until all is well again."""
    began = time.monotonic()
    with fault.strike(scene):
        if fault.stays:
            time.sleep(min(pace.hold, fault.longest))
    ended = time.monotonic() if fault.stays else began
    scene.cluster.wait_until_whole()
    say(f"  {time.monotonic() - began:.1f} s after the blow all parts of the cluster are well again")
    time.sleep(pace.rest)
    return Span(began, ended)


def _tell(row: Row) -> None:
    if row.problem:
        say(f"  COULD NOT BE JUDGED: {row.problem}")
        return
    cells = row.cells
    lost, wrong = sum(cell.lost for cell in cells), sum(cell.wrong for cell in cells)
    requests, failed = sum(cell.requests for cell in cells), sum(cell.failed for cell in cells)
    failures = sum(cell.failures for cell in cells)
    recovery = max(math.inf if cell.recovery is None else cell.recovery for cell in cells)
    say(
        f"  {row.state}: {sum(cell.acknowledged for cell in cells)} facts, {lost} lost, {wrong} wrong; "
        f"{requests} requests, {failed} failed; {failures} steps failed with all retries; "
        f"recovered in {recovery:.1f} s; {row.seconds:.0f} s in all"
    )
    for cell in cells:
        for finding in cell.findings:
            say(f"    {cell.kind}: {finding.splitlines()[0]}")  # the report has the rest


class _Stage:
    """The cluster that drills are run on: kept as long as the next fault needs the same surroundings."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stack = ExitStack()
        self._scene: Scene | None = None
        self._setting: Setting | None = None

    def __enter__(self) -> _Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        self._scene = self._setting = None
        self._stack.close()

    def set_for(self, fault: Fault) -> Scene:
        # A long drill writes much: the next one begins with an empty storage.
        if self._setting is not fault.setting or (self._plan.pace is not QUICK and self._plan.target is None):
            self.clear()
        if self._scene is None:
            cluster, surroundings = self._start(fault.setting)
            self._scene = Scene(cluster, surroundings, random.Random())  # noqa: S311 - which node, not a secret
            self._setting = fault.setting
        return self._scene

    def _start(self, setting: Setting) -> tuple[Cluster, Surroundings]:
        if self._plan.target is not None:
            return Cluster(self._plan.target), Surroundings(f"{self._plan.directory}/surroundings", [], 0)
        directory = self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix="drill-", ignore_cleanup_errors=True)
        )
        # Its logs are what is left of it.
        self._stack.callback(_keep_logs, directory, f"{self._plan.directory}/logs/{setting}")
        port = _free_port()
        names = [f"node-{number + 1}" for number in range(self._plan.nodes)]
        surroundings = self._stack.enter_context(KINDS[setting](f"{directory}/around", names, port))
        cluster = self._stack.enter_context(
            started(f"{directory}/up", nodes=self._plan.nodes, port=port, places=surroundings.places())
        )
        return cluster, surroundings


def _keep_logs(directory: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    for folder in (f"{directory}/around", f"{directory}/up", f"{directory}/up/run"):
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            if name.endswith(".log"):
                shutil.move(f"{folder}/{name}", f"{target}/{name}")  # perhaps to another file system


def _free_port() -> int:
    """A port below those that the kernel gives to clients; nobody listens on it, nor on those that go with it."""
    while True:
        port = random.randrange(12_000, 30_000)  # noqa: S311 - no secret
        if not any(_is_taken(port + offset) for offset in (*range(10), *SENTINEL_PORTS)):
            return port


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
