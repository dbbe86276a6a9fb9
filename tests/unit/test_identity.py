"""The mark that a node leaves on storage (cluster/identity.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.identity import Identity, mark_path, read_mark, write_mark

ME = Identity("node-1", "1", "a mark", "key", ("key",), 0.0)


def test_the_mark_of_the_last_start_is_read(tmp_path: Path) -> None:
    for mark in ("of the first start", "of the second"):
        write_mark(str(tmp_path), Identity("node-1", "1", mark, "key", ("key",), 0.0))
        assert read_mark(str(tmp_path), "node-1") == mark


def test_a_mark_that_cannot_be_placed_leaves_nothing_behind(tmp_path: Path) -> None:
    path = mark_path(str(tmp_path), ME.name)
    os.makedirs(path)
    with pytest.raises(OSError, match="directory"):
        write_mark(str(tmp_path), ME)
    assert os.listdir(os.path.dirname(path)) == ["node-1"]
