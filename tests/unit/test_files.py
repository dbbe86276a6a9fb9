"""Small files that are there whole or not at all."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import files


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_put_there_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.replace(str(path), b"one")
    assert (path.read_bytes(), mode(path)) == (b"one", 0o600)
    path.chmod(0o640)
    files.replace(str(path), b"two", keep=True)
    assert (path.read_bytes(), mode(path)) == (b"two", 0o640)
    files.replace(str(path), b"three", 0o644)
    assert (path.read_bytes(), mode(path)) == (b"three", 0o644)
    assert os.listdir(tmp_path) == ["file"]


def test_the_owner_stays_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    owner = (os.geteuid(), os.getegid())
    before = (1234, 1235) if not owner[0] else owner  # only root gives files away
    os.chown(path, *before)
    files.replace(str(path), b"kept", keep=True)
    assert (path.stat().st_uid, path.stat().st_gid) == before
    files.replace(str(path), b"anew")
    assert (path.stat().st_uid, path.stat().st_gid) == owner


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/file")
    files.replace(str(tmp_path / "link"), b"content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"content"


def test_of_several_who_create_a_file_one_does(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def create(number: int) -> bool:
        try:
            files.create(str(path), b"%d" % number)
        except FileExistsError:
            return False
        return path.read_bytes() == b"%d" % number

    with ThreadPoolExecutor(8) as callers:
        assert sum(callers.map(create, range(8))) == 1
    assert os.listdir(tmp_path) == ["file"]


def test_what_cannot_be_put_there_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "directory" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        files.replace(str(tmp_path / "directory"), b"content")
    with pytest.raises(FileExistsError):
        files.create(str(tmp_path / "directory"), b"content")
    with pytest.raises(FileNotFoundError):
        files.replace(str(tmp_path / "none" / "file"), b"content")
    assert os.listdir(tmp_path) == ["directory"]
