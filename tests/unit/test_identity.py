"""The mark that a node leaves on storage (cluster/identity.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.identity import Identity, has_mark, mark_path, write_mark

ME = Identity("node-1", "1", "a mark", "key", ("key",), 0.0)


def test_the_mark_of_a_start_makes_room_for_that_of_a_later_one_of_the_name(tmp_path: Path) -> None:
    """A node that ends still is not on another storage because its successor has begun."""
    here = str(tmp_path)
    assert not has_mark(here, "node-1", "of the first start", 1.0)
    for started, mark in ((1.0, "of the first start"), (2.0, "of the second")):
        write_mark(here, Identity("node-1", "1", mark, "key", ("key",), started))
        assert has_mark(here, "node-1", mark, started)
    assert has_mark(here, "node-1", "of the first start", 1.0)
    assert not has_mark(here, "node-1", "of a third one", 3.0)  # as in a tree that was left long ago
    assert not has_mark(here, "node-2", "of the second", 2.0)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"mark": "x", "started": "noon"}'])
def test_what_is_no_mark_is_none(tmp_path: Path, content: str) -> None:
    path = Path(mark_path(str(tmp_path), ME.name))
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert not has_mark(str(tmp_path), ME.name, ME.mark, ME.started)


def test_a_mark_that_cannot_be_placed_leaves_nothing_behind(tmp_path: Path) -> None:
    path = mark_path(str(tmp_path), ME.name)
    os.makedirs(path)
    with pytest.raises(OSError, match="directory"):
        write_mark(str(tmp_path), ME)
    assert os.listdir(os.path.dirname(path)) == ["node-1"]
