"""What a node finds out about its storage and its secret before it serves (cluster/serve.py)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cluster import config
from cluster.app import data_directory
from cluster.errors import ConfigError
from cluster.serve import check_storage, key_ring
from cluster.storage import layout


def settings(root: Path) -> config.Config:
    return config.parse(f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {root}}}}}\n", {}).config


def test_storage_that_can_do_everything_is_left_as_it_was(tmp_path: Path) -> None:
    check_storage(settings(tmp_path))
    assert not [name for _, _, names in os.walk(tmp_path) for name in names]


@pytest.mark.parametrize(("call", "module"), [("link", "os"), ("flock", "fcntl")])
def test_storage_without_links_or_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, module: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(f"{module}.{call}", refuse)
    with pytest.raises(ConfigError, match="cannot make a hard link, or cannot lock a file"):
        check_storage(settings(tmp_path))
    assert not [name for _, _, names in os.walk(tmp_path) for name in names]


def test_the_secret_that_a_node_draws_is_kept(tmp_path: Path) -> None:
    (drawn,) = key_ring(settings(tmp_path), draw=True)
    assert len(drawn) >= 32
    for draw in (True, False):
        assert key_ring(settings(tmp_path), draw=draw) == [drawn]


@pytest.mark.parametrize("draw", [True, False])
def test_a_secret_that_somebody_has_emptied_signs_nothing(tmp_path: Path, draw: bool) -> None:
    path = Path(data_directory(settings(tmp_path)), layout.SECRET)
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(ConfigError, match="and so is"):
        key_ring(settings(tmp_path), draw=draw)
