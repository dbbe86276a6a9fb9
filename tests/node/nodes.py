"""Nodes as the tests of this folder need them, and what can be seen of one from outside.

Reads /proc and the storage of a node; sends nothing that a client would not.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tests.node.raw import get
from tests.support.process import Node

N = TypeVar("N", bound=Node)

_WITH_PATIENCE = """
import os, pathlib, sys
from cluster import config
from cluster.api.edge import Patience
from cluster.serve import serve
serve(config.load(pathlib.Path(sys.argv[2]), os.environ).config, Patience({}))
"""
_TROUBLE = re.compile(r'Traceback|level=(error|critical)|HTTP/1\.[01]" 5\d\d |never retrieved|never awaited')


class Impatient(Node):
    """A node that waits for its clients a few seconds only."""

    patience = "head=1, body=4, refused=2, reading=2, idle=2, linger=1"

    def program(self) -> Sequence[str]:
        return [sys.executable, "-c", _WITH_PATIENCE.format(self.patience)]


@contextmanager
def brief(node: N) -> Iterator[N]:
    """Run a node whose end is of no interest, and which therefore is not waited for."""
    with node:
        try:
            yield node
        finally:
            node.kill()


def unharmed(node: Node) -> Iterator[Node]:
    """Lend a node, and see that it goes on serving with the same workers and without trouble in its log."""
    before, workers = len(node.log()), node.children()
    yield node
    assert get(f"{node.url}/v2/").json() == {}
    assert node.children() == workers, "a worker was replaced"
    assert no_trouble(node.log()[before:])


def no_trouble(log: str) -> bool:
    """Whether a log tells of no 5xx, no error and no bug; where it does, the log is shown."""
    if found := _TROUBLE.search(log):
        print(log[max(found.start() - 2000, 0) :][:8000])
    return found is None


def stored(node: Node, location: str) -> int | None:
    """How many bytes of the PATCH under way are on storage; None when there is none for this upload."""
    session = location.partition("?")[0].removeprefix("/v2/").replace("/blobs/uploads/", "/_uploads/")
    found = list(Path(node.root, "docker/registry/v2/repositories", session, "_seg").glob("*.*"))
    return found[0].stat().st_size if found else None


def holds(pid: int, part: str) -> bool:
    """Whether a process has a file open whose path has this part."""
    return any(part in _target(path) for path in Path(f"/proc/{pid}/fd").iterdir())


def _target(descriptor: Path) -> str:
    """What it leads to; nothing when it was closed since it was listed."""
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:
        return ""


def workers_memory(node: Node) -> int:
    """The bytes that the workers of a node hold for themselves."""
    found = (re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()) for pid in node.children())
    return sum(int(match[1]) * 1024 for match in found if match)


def connections(port: int) -> int:
    """How many connections somebody holds open at this port of 127.0.0.1."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # Local address, state (0A listens), inode: none for one that is not accepted yet, or was dropped already.
    return sum(row[1].endswith(f":{port:04X}") and row[3] != "0A" and row[9] != "0" for row in lines)
