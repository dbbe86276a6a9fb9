"""Finds the programs that tests drive. A missing one skips its test by name; with CI=true it fails it."""

import os
import shutil
from typing import NoReturn

import pytest

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TOOLS = os.path.join(PROJECT, ".tools")
MORE = {"buildah", "containerd", "ctr", "helm"}

missing: set[str] = set()
"""What this test run looked for in vain; the summary names it."""
notes: list[str] = []
"""What a reader of the summary has to know besides passed and failed."""


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() == "true"


def find(name: str) -> str | None:
    """The path of a program: the project's own tools first, then PATH, the system's places and Go's."""
    gopath = os.environ.get("GOPATH") or os.path.expanduser("~/go")
    places = [os.path.join(TOOLS, "bin"), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
    return shutil.which(name, path=os.pathsep.join([*places, os.path.join(gopath, "bin")]))


def require(name: str) -> str:
    """The path of a program that the calling test cannot do without."""
    path = find(name)
    if path is None:
        missing.add(name)
        unmet(f"{name} is not installed: `deploy/bootstrap.sh {'more-tools' if name in MORE else 'tools'}`")
    return path


def note(text: str) -> None:
    """Have a line in the summary of this test run."""
    notes.append(text)


def require_root(what: str) -> None:
    if os.geteuid() != 0:
        unmet(f"{what} needs root")


def unmet(reason: str) -> NoReturn:
    """Skip the calling test, or fail it in CI, where nothing is skipped."""
    if in_ci():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
