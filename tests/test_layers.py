"""The architecture as a test: which module may import which, and where each library of others has its home.

Reads the two tables of ARCHITECTURE.md that say so, and the source; imports nothing of it.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter

import pytest

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PACKAGE = os.path.join(PROJECT, "cluster")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of ARCHITECTURE.md."""
    with open(os.path.join(PROJECT, "ARCHITECTURE.md"), encoding="utf-8") as file:
        section = file.read().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    table = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in table[2:]]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# Floor: its modules, and the floors that they may use besides their own.
FLOORS: dict[str, tuple[list[str], set[str]]] = {
    floor: (code(modules), {name for name in uses.split(", ") if name})
    for floor, modules, uses, _ in rows("The floors")
}

# Library: the modules that may import it.
HOMES: dict[str, list[str]] = {code(library)[0]: code(homes) for library, homes, _ in rows("Dependencies")}

# Rules decide from values: no files, no network, no clock, no threads, no chance.
IMPURE = {
    "asyncio", "datetime", "io", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "select",
    "shutil", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time", "urllib", "uuid",
}  # fmt: skip

Sources = Mapping[str, str]


@functools.cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


@functools.cache
def sources() -> Mapping[str, str]:
    """The text of every module, by its name below the package."""
    found = {}
    for directory, _, names in os.walk(PACKAGE):
        for name in sorted(name for name in names if name.endswith(".py")):
            path = os.path.join(directory, name)
            module = os.path.relpath(path, PACKAGE).removesuffix(".py").replace(os.sep, ".")
            with open(path, encoding="utf-8") as file:
                found[module] = file.read()
    return found


def floor_of(module: str) -> str | None:
    if module.endswith("__init__"):
        return "errors"  # a package's own file: a docstring, which everybody may read
    return next((floor for floor, (modules, _) in FLOORS.items() if matches(module, modules)), None)


def matches(module: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def imports(source: str, modules: Sources) -> Iterator[str]:
    """What a module imports, inside of functions too; `from cluster.a import b` is cluster.a.b if there is one."""
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            base = str(node.module)
            inner = base.removeprefix("cluster").removeprefix(".")
            for alias in node.names:
                name = f"{inner}.{alias.name}".removeprefix(".")
                yield f"cluster.{name}" if base.startswith("cluster") and name in modules else base


def ours(source: str, modules: Sources) -> set[str]:
    """The modules of this package that a module imports, by their names below it."""
    found = {name.partition(".")[2] for name in imports(source, modules) if name.partition(".")[0] == "cluster"}
    return {name if name in modules else f"{name}.__init__".removeprefix(".") for name in found}


def others(source: str, modules: Sources) -> set[str]:
    """The top-level names of everything else."""
    return {name.partition(".")[0] for name in imports(source, modules)} - {"cluster"}


def broken_layers(modules: Sources) -> list[str]:
    problems = []
    for module, source in modules.items():
        floor = floor_of(module)
        if floor is None:
            problems.append(f"{module} is on no floor")
            continue
        allowed = FLOORS[floor][1] | {floor}
        for used in sorted(ours(source, modules)):
            if floor_of(used) not in allowed:
                problems.append(f"{module} ({floor}) imports {used} ({floor_of(used)})")
    return problems


def homeless_imports(modules: Sources) -> list[str]:
    problems = []
    for module, source in modules.items():
        for library in sorted(others(source, modules) - sys.stdlib_module_names):
            if not matches(module, HOMES.get(library, [])):
                problems.append(f"{module} imports {library}")
    return problems


def impure_rules(modules: Sources) -> list[str]:
    rules = {module: source for module, source in modules.items() if floor_of(module) == "rules"}
    return [f"{module} imports {name}" for module, text in rules.items() for name in others(text, modules) & IMPURE]


def cycle(modules: Sources) -> list[str]:
    try:
        list(TopologicalSorter({module: ours(text, modules) for module, text in modules.items()}).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def test_imports_go_downwards_only() -> None:
    assert broken_layers(sources()) == []


def test_every_library_of_others_stays_at_home() -> None:
    assert homeless_imports(sources()) == []


def test_the_rules_of_the_protocol_know_no_file_no_network_and_no_clock() -> None:
    assert impure_rules(sources()) == []


def test_no_two_modules_need_each_other() -> None:
    assert cycle(sources()) == []


def test_the_file_of_a_package_holds_a_docstring_and_nothing_else() -> None:
    for module, source in sources().items():
        if module.endswith(".__init__"):
            assert [type(node) for node in parsed(source).body] == [ast.Expr], module


def test_the_tables_are_there_and_name_each_other() -> None:
    assert len(FLOORS) > 10 and len(HOMES) > 10
    for floor, (_, uses) in FLOORS.items():
        assert uses <= FLOORS.keys() - {floor}, floor


def test_every_floor_and_every_home_is_lived_in() -> None:
    """A pattern that matches nothing guards nothing."""
    modules = [module for module in sources() if not module.endswith(".__init__")]
    for patterns in [modules for modules, _ in FLOORS.values()] + list(HOMES.values()):
        for pattern in patterns:
            assert any(fnmatchcase(module, pattern) for module in modules), pattern


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("oci.x", "from cluster.storage.driver import Driver", "oci.x (rules) imports storage.driver (ports)"),
        (
            "registry.x",
            "from cluster.storage import memory",
            "registry.x (registry) imports storage.memory (adapters)",
        ),
        (
            "registry.x",
            "def f():\n    import cluster.settings",
            "registry.x (registry) imports settings (settings)",
        ),
        (
            "api.x",
            "from cluster.storage.memory import MemoryDriver",
            "api.x (api) imports storage.memory (adapters)",
        ),
        (
            "storage.x",
            "from cluster.registry.tags import TagStore",
            "storage.x (adapters) imports registry.tags (registry)",
        ),
        ("new", "", "new is on no floor"),
    ],
)
def test_an_import_that_goes_upwards_is_found(module: str, source: str, problem: str) -> None:
    present = sources()
    assert set(broken_layers({**present, module: source})) - set(broken_layers(present)) == {problem}


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("registry.x", "import falcon", "registry.x imports falcon"),
        ("api.x", "def f():\n    from redis.asyncio import Redis", "api.x imports redis"),
        ("app", "import requests", "app imports requests"),
    ],
)
def test_a_library_away_from_home_is_found(module: str, source: str, problem: str) -> None:
    present = sources()
    assert set(homeless_imports({**present, module: source})) - set(homeless_imports(present)) == {problem}


def test_a_clock_in_the_rules_and_a_cycle_are_found() -> None:
    assert impure_rules({"oci.x": "import time"}) == ["oci.x imports time"]
    tangled = {"oci.a": "from cluster.oci.b import x", "oci.b": "from cluster.oci import a"}
    assert set(cycle(tangled)) == {"oci.a", "oci.b"}
