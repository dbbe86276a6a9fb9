"""The htpasswd file as it is written (cluster/auth/accounts.py)."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.auth import accounts, passwords
from cluster.errors import ConfigError
from tests.support.process import eventually
from tests.support.tools import require_root

COST = passwords.LOWEST_COST


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A file that is there; nothing else may be left beside it."""
    path = tmp_path / "htpasswd"
    path.write_bytes(b"# ours\nalice:one\n\nbob:two\nalice:three")
    yield path
    assert {each.name for each in tmp_path.iterdir()} <= {"htpasswd", "real"}


def test_a_new_user_comes_at_the_end_and_everything_else_stays(path: Path) -> None:
    assert not accounts.put(str(path), "carol", "hash")
    assert path.read_bytes() == b"# ours\nalice:one\n\nbob:two\nalice:three\ncarol:hash\n"


def test_another_password_takes_the_place_of_all_lines_of_its_user(path: Path) -> None:
    assert accounts.put(str(path), "alice", "hash")
    assert path.read_bytes() == b"# ours\nalice:hash\n\nbob:two\n"


def test_a_removed_user_has_no_line(path: Path) -> None:
    assert accounts.remove(str(path), "alice")
    assert path.read_bytes() == b"# ours\n\nbob:two\n"
    before = path.read_bytes()
    assert not accounts.remove(str(path), "alice")
    assert path.read_bytes() == before


def test_a_name_in_latin_1_can_be_removed(path: Path) -> None:
    path.write_bytes("m\xfcller:one\nbob:two\n".encode("latin-1"))
    assert accounts.remove(str(path), "m\xfcller")
    assert path.read_bytes() == b"bob:two\n"


def test_a_missing_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new"
    assert not accounts.put(str(path), "alice", "hash")
    assert path.read_bytes() == b"alice:hash\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_mode_stays(path: Path) -> None:
    path.chmod(0o640)
    accounts.put(str(path), "alice", "hash")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_the_owner_stays(path: Path) -> None:
    require_root("to give a file away")
    os.chown(path, 12345, 54321)
    accounts.put(str(path), "alice", "hash")
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


def test_a_link_stays_one(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to("real")
    accounts.put(str(path), "carol", "hash")
    assert path.is_symlink()
    assert b"carol:hash" in path.with_name("real").read_bytes()


def test_a_file_with_a_mistake_is_left_as_it_is(path: Path) -> None:
    path.write_bytes(b"alice:one\nno account\n")
    with pytest.raises(ConfigError, match=f"{path}: line 2: wanted user:hash"):
        accounts.put(str(path), "bob", "hash")
    assert path.read_bytes() == b"alice:one\nno account\n"


def test_no_reader_ever_sees_half_a_file_and_no_edit_is_lost(path: Path) -> None:
    path.write_bytes(b"alice:one\n")
    over = threading.Event()

    def look() -> int:
        looks = 0
        while not over.is_set():
            assert accounts.read(str(path)).hashes["alice"] == "one"
            looks += 1
        return looks

    with ThreadPoolExecutor(9) as pool:
        reader = pool.submit(look)
        try:
            # Each waits for all that come before it, and each edit for the disk.
            list(pool.map(lambda number: accounts.put(str(path), f"user{number}", "x", patience=120), range(40)))
        finally:
            over.set()
        assert reader.result() > 0
    assert len(accounts.read(str(path)).hashes) == 41


def test_whoever_holds_the_file_for_too_long_is_not_waited_for(path: Path) -> None:
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="somebody else is editing it"):
            accounts.put(str(path), "carol", "hash", patience=0.1)


def test_whoever_holds_the_file_that_came_in_its_place_is_not_waited_for_either(path: Path) -> None:
    """Another edit puts another file there while this one waits, and the next edit comes first."""

    def opened() -> int:
        return sum(link.resolve() == path for link in Path("/proc/self/fd").iterdir())

    with ThreadPoolExecutor(1) as pool, path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = pool.submit(accounts.put, str(path), "carol", "hash", patience=1)
        eventually(lambda: opened() == 2, 20, "the edit waits")
        renewed = path.with_name("real")
        renewed.write_bytes(path.read_bytes())
        with renewed.open("rb") as again:
            fcntl.flock(again, fcntl.LOCK_EX)
            renewed.rename(path)
            fcntl.flock(held, fcntl.LOCK_UN)
            with pytest.raises(ConfigError, match="somebody else is editing it"):
                waiting.result(timeout=20)


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be changed: No such file or directory"):
        accounts.put(str(tmp_path / "none" / "htpasswd"), "alice", "hash")
    with pytest.raises(ConfigError, match="cannot be changed: No such file or directory"):
        accounts.remove(str(tmp_path / "htpasswd"), "alice")


def test_a_missing_file_is_provided_once_with_a_user_whose_password_is_in_a_file_beside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "auth" / "htpasswd"
    with ThreadPoolExecutor(4) as nodes:
        list(nodes.map(lambda _: accounts.provide(str(path)), range(4)))
    (line,) = caplog.messages
    told = Path(line.rpartition(" ")[2])
    password = told.read_text().strip()
    assert password not in line
    assert list(accounts.read(str(path)).hashes) == ["docker"]
    assert passwords.matches(password.encode(), accounts.read(str(path)).hashes["docker"])
    assert len(password) == 43
    assert [stat.S_IMODE(file.stat().st_mode) for file in (path, told)] == [0o600, 0o600]
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert sorted(os.listdir(path.parent)) == ["htpasswd", "htpasswd.password"]


def test_a_file_that_is_there_is_not_provided(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = path.read_bytes()
    accounts.provide(str(path))
    assert path.read_bytes() == before
    assert not caplog.messages


def test_a_file_that_cannot_be_provided_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="missing, and cannot be made: File exists"):
        accounts.provide(str(tmp_path / "file" / "htpasswd"))
