"""The conformance suite of the OCI distribution-spec, as its authors publish it, against a node with two workers.

Owns no rules of its own: it runs the programs `oci-conformance` and `oci-conformance-1.1` (the suite as it was in
2023) and counts. The summary of the run shows the totals.
"""

import os
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import pytest

from tests.support import tools
from tests.support.process import Node

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Totals:
    """What the suite counted, and what it says about everything that did not pass."""

    tests: int
    sparse: int  # those of them that push manifests whose parts are not there
    failed: int
    errors: int
    skipped: int
    disabled: int
    complaints: str

    def __str__(self) -> str:
        passed = self.tests - self.failed - self.errors - self.skipped - self.disabled
        return (
            f"{passed} of {self.tests} pass, "
            f"{self.failed} FAIL, {self.errors} Error, {self.skipped} Skip, {self.disabled} Disabled"
        )


@pytest.fixture(scope="module")
def suite() -> str:
    """The suite's program."""
    return tools.require("oci-conformance")


@pytest.mark.parametrize(
    ("version", "sparse", "disabled"),
    [("1.1", False, 2), ("dev", False, 0), ("dev", True, 0)],
    ids=["1.1", "dev", "dev and sparse"],
)
def test_the_official_suite_finds_nothing_wrong(
    suite: str, version: str, sparse: bool, disabled: int, tmp_path: os.PathLike[str]
) -> None:
    with Node(os.path.join(tmp_path, "node"), {"cluster": {"workers": 2, "sparse": sparse}}) as node:
        totals = run(suite, node, version, sparse, os.path.join(tmp_path, "results"))
    tools.note(f"official suite at {version}{' with sparse sets' if sparse else ''}: {totals}")
    assert totals.tests > 700, "the suite is much smaller than it was"
    assert (totals.failed, totals.errors, totals.skipped) == (0, 0, 0), f"{totals}\n{totals.complaints}"
    assert totals.disabled == disabled, "at 1.1: the cancel of an upload, by each algorithm"
    assert (totals.sparse > 0) == sparse, f"{totals.sparse} tests of sparse sets"


def test_the_suite_that_most_registries_still_run_finds_nothing_wrong(tmp_path: os.PathLike[str]) -> None:
    suite = tools.require("oci-conformance-1.1")
    with Node(os.path.join(tmp_path, "node"), {"cluster": {"workers": 2}}) as node:
        report = execute(
            suite,
            os.path.join(tmp_path, "results"),
            {
                "OCI_ROOT_URL": f"http://{node.host}",
                "OCI_NAMESPACE": "conformance/one",
                "OCI_CROSSMOUNT_NAMESPACE": "conformance/two",
                "OCI_AUTOMATIC_CROSSMOUNT": "1",
                "OCI_HIDE_SKIPPED_WORKFLOWS": "0",
                **{f"OCI_TEST_{part}": "1" for part in ("PULL", "PUSH", "CONTENT_DISCOVERY", "CONTENT_MANAGEMENT")},
            },
        )
    totals = read(report)
    tools.note(f"official suite as it was in 2023, at 1.1: {totals}")
    assert totals.tests > 70, "the suite is much smaller than it was"
    assert (totals.failed, totals.errors, totals.skipped) == (0, 0, 0), f"{totals}\n{totals.complaints}"
    assert totals.disabled == 4, "two are for registries that cannot be pushed to, two for one that does not mount"


class Target(Protocol):
    """What the suite is run against."""

    @property
    def host(self) -> str:
        """Host and port."""


def run(
    suite: str, node: Target, version: str, sparse: bool, results: str, access: Mapping[str, str] | None = None
) -> Totals:
    """Run the suite; its exit code says no more than its report, so only a missing report is an error here.

    `access` are variables that say how the registry is reached, where plain HTTP is not enough.
    """
    settings = {
        "OCI_REGISTRY": node.host,
        "OCI_TLS": "disabled",
        "OCI_VERSION": version,
        "OCI_RESULTS_DIR": results,
        "OCI_DATA_SPARSE": str(sparse).lower(),
        **(access or {}),
    }
    return read(execute(suite, results, settings))


def execute(suite: str, results: str, settings: Mapping[str, str]) -> str:
    """Run one of the programs; the path of its JUnit report."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OCI_")}
    os.makedirs(results)
    done = subprocess.run(
        [suite],
        env={**inherited, **settings},
        cwd=results,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    report = os.path.join(results, "junit.xml")
    assert os.path.exists(report), f"the suite wrote no report: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return report


def read(report: str) -> Totals:
    """The totals of a JUnit report; an attribute that is not there is a zero."""
    root = ElementTree.parse(report).getroot()
    complaints = [
        f"{case.get('name')}: {case.get('status')} {case.findtext('system-out', '').strip()}"
        for case in root.iter("testcase")
        if case.get("status") != "passed"
    ]
    return Totals(
        tests=int(root.get("tests", "0")),
        sparse=sum("sparse" in case.get("name", "") for case in root.iter("testcase")),
        failed=int(root.get("failures", "0")),
        errors=int(root.get("errors", "0")),
        skipped=int(root.get("skipped", "0")),
        disabled=int(root.get("disabled", "0")),
        complaints="\n".join(complaints),
    )
