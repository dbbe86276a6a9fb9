"""What is found out about a node that answers (cluster/doctor.py); tests/failover/test_doctor.py has real ones."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.doctor import Finding, Heartbeats, compare
from cluster.identity import Identity, mark_path, write_mark
from cluster.settings import PeerTls
from cluster.state.store import Node
from cluster.tls import client_context
from tests.support.answers import answering

ME = Identity("node-1", "1.0", "mine", "key", ("key",), 200.0)
OTHER = Identity("node-2", "1.0", "its own", "key", ("key",), 100.0)


def serving(other: Identity, **said: Any) -> AbstractContextManager[str]:
    """A node that says this of itself; its URL."""
    report = {"node": {**other.to_dict(), **said}, "redis": {"status": "not configured"}}
    return answering(200, json.dumps(report).encode())


def found(url: str, directory: Path | None = None, heartbeats: Heartbeats | None = None) -> list[Finding]:
    urls = [url] if url else []
    return compare(ME, str(directory) if directory else None, urls, client_context(PeerTls()), heartbeats)


def test_a_node_that_agrees_gives_nothing_to_say(tmp_path: Path) -> None:
    write_mark(str(tmp_path), OTHER)
    with serving(OTHER) as url:
        (finding,) = found(url, tmp_path)
    assert (finding.name, finding.refusals, finding.warnings) == ("node-2", [], [])


@pytest.mark.parametrize("ahead", [-60, 60])
def test_a_clock_that_differs_is_a_warning(ahead: float) -> None:
    with serving(OTHER, clock=time.time() + ahead) as url:
        (finding,) = found(url)
    assert finding.refusals == []
    (warning,) = finding.warnings
    assert warning in ("its clock differs by 60 s", "its clock differs by 59 s")


@pytest.mark.parametrize("ahead", [-3, 3])
def test_a_clock_that_differs_by_less_than_five_seconds_is_not(ahead: float) -> None:
    with serving(OTHER, clock=time.time() + ahead) as url:
        (finding,) = found(url)
    assert finding.warnings == []


def test_another_version_is_a_warning() -> None:
    with serving(OTHER, version="0.9") as url:
        (finding,) = found(url)
    assert (finding.refusals, finding.warnings) == ([], ["it runs version 0.9, this node 1.0"])


def test_clock_and_version_of_a_node_that_does_not_answer_are_those_of_its_heartbeat() -> None:
    clock = time.time() - 3600
    beat = Node("node-2", "", "0.9", 1, 100.0, clock, "key", ("key",), "its own")
    (finding,) = found("", heartbeats=Heartbeats((beat,)))
    version, late = finding.warnings
    assert (finding.refusals, version) == ([], "it runs version 0.9, this node 1.0")
    assert late in ("its clock differs by 3600 s", "its clock differs by 3601 s")


def test_a_node_is_not_compared_with_itself() -> None:
    with serving(ME) as url:
        assert found(url) == []


def test_storage_that_cannot_be_asked_for_a_mark_is_not_another_one(tmp_path: Path) -> None:
    Path(mark_path(str(tmp_path), OTHER.name)).mkdir(parents=True)
    with serving(OTHER) as url:
        (finding,) = found(url, tmp_path)
    assert finding.refusals == []
    assert "whether it works on the same storage is not known" in finding.warnings[0]


@pytest.mark.parametrize(
    ("other", "precedes"),
    [
        (OTHER, True),
        (replace(OTHER, started=300.0), False),
        (replace(OTHER, started=200.0, mark="a"), True),  # of two that started at once, too, exactly one is first
        (replace(OTHER, started=200.0, mark="z"), False),
    ],
)
def test_of_two_nodes_both_know_which_started_first(other: Identity, precedes: bool) -> None:
    with serving(other) as url:
        (finding,) = found(url)
    assert finding.precedes(ME) is precedes
    assert Finding("", node=ME.to_dict()).precedes(other) is not precedes
