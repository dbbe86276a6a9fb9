"""A list of very many tags: one answer, sent as it is found, at a price in memory that does not grow with it."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cluster.oci.reference import RepositoryName, Tag
from cluster.storage import layout
from tests.node.nodes import brief
from tests.support.process import Node
from tests.support.tools import note

NAME = RepositoryName("many/tags")
DIGEST = b"sha256:" + b"0" * 64
MIB = 1 << 20


@pytest.fixture(params=[3_000, pytest.param(100_000, marks=pytest.mark.slow)])
def tagged(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Node, list[str]]]:
    """A node, and the tags of a repository that another registry has filled."""
    tags = [f"release-2026.11.{number}" for number in range(request.param)]
    for tag in tags:
        link = tmp_path / "data" / layout.ROOT / layout.tag_link(NAME, Tag(tag))
        link.parent.mkdir(parents=True)
        link.write_bytes(DIGEST)
    with brief(Node(tmp_path, root=tmp_path / "data")) as node:
        yield node, sorted(tags)


def peak(pid: int) -> int:
    """The most bytes of memory that a process had since `forget_peak`."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def test_all_tags_are_one_answer_and_are_never_held_together(tagged: tuple[Node, list[str]]) -> None:
    node, tags = tagged
    (worker,) = node.children()
    url = f"{node.url}/v2/{NAME}/tags/list"
    # The names of a directory are kept, sorted, for all answers.
    assert httpx.get(f"{url}?n=1", timeout=60, trust_env=False).json()["tags"] == tags[:1]
    forget_peak(worker)
    before = peak(worker)
    answer = httpx.get(url, timeout=60, trust_env=False)
    grown = peak(worker) - before
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert answer.json() == {"name": NAME, "tags": tags}
    note(f"{len(tags)} tags, {len(answer.content) / MIB:.1f} MiB, in one answer: memory +{grown / MIB:.1f} MiB")
    assert grown < 4 * MIB
