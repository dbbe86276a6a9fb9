"""Files that are read again when they change (cluster/auth/files.py)."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.auth.files import Watched
from cluster.errors import ConfigError

pytestmark = pytest.mark.anyio


def words(content: bytes) -> list[bytes]:
    if b"bad" in content:
        raise ConfigError(["line 1: bad"])
    return content.split()


def age(path: Path) -> None:
    """Let the last change be some time ago, as a file's usually is."""
    settled = time.time() - 5
    os.utime(path, (settled, settled))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    """Puts a file in its place by a rename."""

    def write(content: bytes) -> Path:
        path, other = tmp_path / "file", tmp_path / "other"
        other.write_bytes(content)
        age(other)
        other.replace(path)
        return path

    return write


async def test_what_has_changed_is_read_again(write: Callable[[bytes], Path]) -> None:
    watched = Watched(str(write(b"one two")), words)
    assert watched.content == [b"one", b"two"]
    assert not await watched.refresh()
    write(b"two one")  # of the same size and age
    assert await watched.refresh()
    assert watched.content == [b"two", b"one"]
    assert not await watched.refresh()


@pytest.mark.parametrize("hours", [-1, 0, 1])
async def test_a_file_that_is_edited_in_place_is_read_when_it_is_left_alone(
    write: Callable[[bytes], Path], hours: int
) -> None:
    """Whatever the clock says that dates its changes: it need not be that of this node."""
    path = write(b"one two")
    rest = [b"one", b"one three"]

    def dated(content: bytes) -> None:
        path.write_bytes(content)
        os.utime(path, (time.time() + hours * 3600,) * 2)

    def pause(seconds: float) -> None:
        assert seconds >= 0.1
        if rest:
            dated(rest.pop(0))

    watched = Watched(str(path), words, pause=pause)
    dated(b"on")
    for _ in range(2):
        assert not await watched.refresh()
        assert watched.content == [b"one", b"two"]
    assert await watched.refresh()
    assert watched.content == [b"one", b"three"]


@pytest.mark.parametrize("harm", ["bad", "gone", "directory", "huge"])
async def test_what_was_read_last_stays_in_force_and_the_log_says_why_once(
    write: Callable[[bytes], Path], harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = write(b"one")
    watched = Watched(str(path), words)
    match harm:
        case "bad":
            write(b"bad")
        case "huge":
            write(b"x" * (16 * 1024 * 1024 + 1))
        case "gone":
            path.unlink()
        case _:
            path.unlink()
            path.mkdir()
    for _ in range(3):
        assert not await watched.refresh()
    assert watched.content == [b"one"]
    (line,) = caplog.messages
    assert line.startswith(f"what was read before stays in force: {path}: ")
    if path.is_dir():
        path.rmdir()
    write(b"two")
    assert await watched.refresh()
    assert watched.content == [b"two"]
    assert caplog.messages[-1] == f"{path}: read again"


async def test_a_file_that_comes_back_unchanged_ends_the_trouble(
    write: Callable[[bytes], Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = write(b"one")
    watched = Watched(str(path), words)
    path.rename(path.with_name("away"))
    assert not await watched.refresh()
    path.with_name("away").rename(path)
    await watched.refresh()
    assert caplog.messages[-1] == f"{path}: read again"


@pytest.mark.parametrize("content", [b"bad", None])
def test_at_the_start_it_has_to_be_right(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{path}: (line 1: bad|cannot be read: No such file or directory)"):
        Watched(str(path), words)
