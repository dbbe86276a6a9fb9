"""Nodes that are apart: cut off from the proxy, alone with Redis, on full storage, with clocks 10 minutes apart.

These need namespaces and mounts that `registry-cluster drill` makes, so it does the work: it loads the cluster,
breaks and heals it, and asks every node for everything that was acknowledged. That it finds what is lost is shown
by tests/drill/test_planted.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support.tools import TOOLS, note, require_root

APART = {
    "proxy-cut-off": "a node behind a network that lets nothing pass to the proxy",
    "redis-one-node": "Redis that only one node can reach",
    "storage-full": "no room on the shared storage",
    "clock-skew": "clocks 10 minutes apart",
}


@pytest.fixture(
    scope="module",
    params=[("--quick",), pytest.param(("--minutes", "1"), marks=pytest.mark.slow)],
    ids=["quick", "thorough"],
)
def drills(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the drills say, by their names."""
    require_root("network namespaces and mounts")
    report = tmp_path_factory.mktemp("report")
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "drill", "run", *APART, *request.param, "--report", str(report)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{TOOLS}/bin:{os.environ['PATH']}"},
        timeout=1100,
        check=False,
    )
    assert (report / "drill.json").exists(), done.stderr
    found = json.loads((report / "drill.json").read_text(encoding="utf-8"))
    return {drill["name"]: drill for drill in found["drills"]}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", APART)
def test_nothing_is_lost_all_nodes_agree_and_it_recovers(drills: dict[str, Any], name: str) -> None:
    drill = drills[name]
    assert not drill["missing"] and not drill["problem"], drill
    for operation, cell in drill["operations"].items():
        assert cell["acknowledged"] > 0, operation
        assert (cell["lost"], cell["wrong"], cell["unverified"], cell["linearizable"]) == (0, 0, 0, True), cell
        assert cell["recovery"] is not None, operation
        assert cell["findings"] == [], cell
    cells = drill["operations"].values()
    facts, failed = sum(cell["acknowledged"] for cell in cells), sum(cell["first_failures"] for cell in cells)
    recovery, failures = max(cell["recovery"] for cell in cells), sum(cell["failures"] for cell in cells)
    note(
        f"{APART[name]}: {facts} facts, 0 lost; {failed} steps failed on the first try, {failures} after the "
        f"retries; recovered in {recovery:.1f} s"
    )
