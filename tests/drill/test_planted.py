"""A planted fault is found: a check that cannot fail is worth nothing.

Each flaw is in the nodes themselves (tests/drill/broken.py); the load, the record and the judge are those of every
drill. Beside each stands what differs by the flaw alone, and holds.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.drill.client import Client, digest_of
from cluster.drill.cluster import started, wait
from cluster.drill.facts import Facts, load
from cluster.drill.faults import Fault, Promise, Scene
from cluster.drill.load import Load
from cluster.drill.matrix import Cell, Row
from cluster.drill.meter import Kind, Meter
from cluster.drill.operations import Desk, image_manifest, shared_layer
from cluster.drill.run import Pace, drill
from cluster.drill.surroundings import Surroundings
from cluster.drill.verdict import verify
from cluster.places import Place
from tests.drill.broken import POWER
from tests.support.process import Node, free_port
from tests.support.tools import PROJECT, note

PACE = Pace(warm=4.0, hold=0, rest=1.0, total=0)
CLIENTS = 20  # four of a kind: flaws of tags need some that meet


@contextmanager
def nothing(_: Scene) -> Iterator[None]:
    yield


NOTHING = Fault("nothing", "nothing happens", nothing, Promise.RETRIED)


def drilled(directory: Path, flaw: str, fault: Fault = NOTHING, nodes: int = 3) -> dict[Kind, Cell]:
    """What a drill says of a cluster whose nodes have this flaw."""
    place = Place(
        around=[sys.executable, "-m", "tests.drill.broken", flaw],
        environment={"PYTHONPATH": PROJECT, POWER: power_of(directory)},
    )
    places = {f"node-{number + 1}": place for number in range(nodes)}
    port = free_port()
    with started(str(directory / "up"), nodes=nodes, port=port, places=places) as cluster:
        row = Row(fault)
        scene = Scene(cluster, Surroundings(str(directory), [], port), random.Random(1))
        drill(scene, row, PACE, Load(cluster.endpoint, str(directory), fault.name, CLIENTS))
    for cell in row.cells:
        for finding in cell.findings[:2]:
            note(f"{flaw}: {cell.kind}: {finding.splitlines()[0][:150]}")
    return {cell.kind: cell for cell in row.cells}


def power_of(directory: Path) -> str:
    return str(directory / "power")


def test_nodes_without_a_flaw_hold(tmp_path: Path) -> None:
    cells = drilled(tmp_path, "nothing")
    assert [cell.findings for cell in cells.values()] == [[]] * len(Kind)


def test_tags_without_fencing_are_found(tmp_path: Path) -> None:
    assert not drilled(tmp_path, "no-fencing")[Kind.TAG].linearizable


def test_a_cache_of_tags_that_is_stale_is_found(tmp_path: Path) -> None:
    assert not drilled(tmp_path, "stale-tags")[Kind.TAG].linearizable


def test_a_link_that_was_acknowledged_and_forgotten_is_found(tmp_path: Path) -> None:
    cells = drilled(tmp_path, "forgotten-links")
    assert cells[Kind.PUSH].lost + cells[Kind.CHUNKED].lost > 0


def test_a_layer_that_is_gone_and_that_no_record_names_is_found(tmp_path: Path) -> None:
    """Its pusher died before the answer; another client found it there, and pushed the manifest."""
    layer, name = shared_layer(0), "team/app"
    with Node(tmp_path / "node") as node, Facts(tmp_path / "facts") as facts:
        meter = Meter()
        desk = Desk(name, 1, Client(node.url, 1, meter), facts, meter, random.Random(1))
        for data in (b"{}", layer):
            desk.send(data, digest_of(data))
        manifest = image_manifest(b"{}", [layer])
        desk.put_manifest("v1", manifest)
        desk.client.close()
        facts.manifest(name, digest_of(manifest))
        assert verify(load(tmp_path / "facts"), [node.url], pauses=()).holds
        (link,) = Path(node.root).glob(f"**/{name}/_layers/sha256/{digest_of(layer).partition(':')[2]}/link")
        link.unlink()
        lost = verify(load(tmp_path / "facts"), [node.url], pauses=()).lost
        assert lost == [f"blob {name}@{digest_of(layer)}: {node.url} does not have it"]


def cut_power(directory: Path) -> Fault:
    """The power of a cluster of one node goes, and comes back."""

    @contextmanager
    def strike(scene: Scene) -> Iterator[None]:
        before = scene.cluster.nodes[0].pid
        with open(power_of(directory), "wb"):
            pass
        wait(lambda: scene.cluster.nodes[0].pid != before, 30, "the node is gone")
        yield

    return Fault("power-loss", "the power goes", strike, Promise.RETRIED)


@pytest.mark.parametrize("disk", ["honest-disk", "lying-disk"])
def test_what_a_disk_that_does_not_sync_forgets_at_a_loss_of_power_is_found(tmp_path: Path, disk: str) -> None:
    cells = drilled(tmp_path, disk, cut_power(tmp_path), nodes=1)
    assert os.path.exists(f"{power_of(tmp_path)}.kept"), "the power was cut"
    lost = {kind: cell.lost for kind, cell in cells.items()}
    assert (sum(lost.values()) > 0) == (disk == "lying-disk"), lost
