"""The disk that the tests of power loss stand on: what it keeps and what it forgets."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.support.disks import ForgetfulDisk, PowerLoss


@pytest.fixture
def disk() -> ForgetfulDisk:
    return ForgetfulDisk()


def put(disk: ForgetfulDisk, path: str, content: bytes, *, sync: bool = False) -> None:
    fd = disk.create(path)
    disk.write(fd, content)
    if sync:
        disk.sync(fd)
    disk.close(fd)


def test_a_synced_file_in_an_unsynced_directory_is_lost(disk: ForgetfulDisk) -> None:
    put(disk, "/data/file", b"content", sync=True)
    assert disk.crash().names("/data") == []


def test_an_unsynced_file_in_a_synced_directory_is_empty(disk: ForgetfulDisk) -> None:
    put(disk, "/data/file", b"content")
    disk.sync_path("/data")
    assert disk.crash().read("/data/file") == b""


def test_a_synced_file_holds_what_its_last_sync_saw(disk: ForgetfulDisk) -> None:
    fd = disk.create("/data/file")
    disk.write(fd, b"synced")
    disk.sync(fd)
    disk.write(fd, b", not synced")
    disk.close(fd)
    disk.sync_path("/data")
    assert disk.read("/data/file") == b"synced, not synced"
    assert disk.crash().read("/data/file") == b"synced"


def test_a_rename_takes_two_syncs_between_directories(disk: ForgetfulDisk) -> None:
    for name in ("old", "new"):
        disk.mkdir(f"/data/{name}")
    put(disk, "/data/old/file", b"content", sync=True)
    for directory in ("/data", "/data/old"):
        disk.sync_path(directory)
    disk.rename("/data/old/file", "/data/new/file")
    assert (disk.crash().names("/data/old"), disk.crash().names("/data/new")) == (["file"], [])
    disk.sync_path("/data/new")
    assert (disk.crash().names("/data/old"), disk.crash().names("/data/new")) == (["file"], ["file"])
    disk.sync_path("/data/old")
    assert (disk.crash().names("/data/old"), disk.crash().names("/data/new")) == ([], ["file"])


def test_an_unlinked_file_comes_back_until_its_directory_is_synced(disk: ForgetfulDisk) -> None:
    put(disk, "/data/file", b"content", sync=True)
    disk.sync_path("/data")
    disk.unlink("/data/file")
    assert disk.crash().read("/data/file") == b"content"
    disk.sync_path("/data")
    assert disk.crash().names("/data") == []


def test_a_new_directory_is_lost_with_all_that_was_synced_in_it(disk: ForgetfulDisk) -> None:
    disk.mkdir("/data/directory")
    put(disk, "/data/directory/file", b"content", sync=True)
    disk.sync_path("/data/directory")
    assert disk.crash().names("/data") == []
    disk.sync_path("/data")
    assert disk.crash().read("/data/directory/file") == b"content"


def test_two_names_stay_one_file(disk: ForgetfulDisk) -> None:
    put(disk, "/data/one", b"content", sync=True)
    disk.link("/data/one", "/data/two")
    disk.sync_path("/data")
    found = disk.crash()
    found.rename("/data/one", "/data/two")
    assert sorted(found.names("/data")) == ["one", "two"]


def test_with_chance_everything_between_nothing_and_all_survives(disk: ForgetfulDisk) -> None:
    put(disk, "/data/one", b"one")
    put(disk, "/data/two", b"two")

    def found(seed: int) -> tuple[tuple[str, bytes], ...]:
        survivor = disk.crash(random.Random(seed))
        return tuple(sorted((name, survivor.read(f"/data/{name}")) for name in survivor.names("/data")))

    outcomes = {found(seed) for seed in range(300)}
    assert {(), (("one", b"one"), ("two", b"two")), (("one", b""),)} <= outcomes
    torn = {content for outcome in outcomes for _, content in outcome}
    assert b"tw\0" in torn and all(len(content) in (0, 3) for content in torn)
    assert found(7) == found(7)


def test_the_power_goes_after_the_step_that_was_asked_for(disk: ForgetfulDisk) -> None:
    disk.steps_left = 2
    fd = disk.create("/data/file")
    disk.write(fd, b"content")
    after: list[Callable[[], object]] = [
        lambda: disk.sync(fd),
        lambda: disk.read("/data/file"),
        lambda: disk.names("/data"),
        lambda: disk.create("/data/another"),
    ]
    for call in after:
        with pytest.raises(PowerLoss):
            call()
    disk.close(fd)


def test_a_lock_lasts_as_long_as_its_descriptor(disk: ForgetfulDisk) -> None:
    holder, other = disk.open_lock("/data/lock"), disk.open_lock("/data/lock")
    assert disk.try_lock(holder) and disk.try_lock(holder)
    assert not disk.try_lock(other)
    disk.close(holder)
    assert disk.try_lock(other)
    disk.close(other)


def test_the_power_may_go_between_a_change_and_its_sync(disk: ForgetfulDisk) -> None:
    put(disk, "/data/old", b"content", sync=True)
    disk.sync_path("/data")
    changes: list[Callable[[], object]] = [
        lambda: disk.mkdir("/data/directory"),
        lambda: disk.link("/data/old", "/data/second"),
        lambda: disk.rename("/data/second", "/data/directory/third"),
        lambda: disk.unlink("/data/old"),
        lambda: disk.unlink("/data/directory/third"),
        lambda: disk.rmdir("/data/directory"),
    ]
    for change in changes:
        disk.steps_left = 1
        change()
        assert disk.steps_left == 0
        with pytest.raises(PowerLoss):
            disk.sync_path("/data")
        assert disk.crash().names("/data") == ["old"]
    disk.survive()
    assert disk.names("/data") == []
