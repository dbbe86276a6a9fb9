"""Listings that are kept: believed only when no change can have left their stamp, bounded by names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.storage.disk import Disk
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.listings import Listings
from cluster.storage.threads import Threads

pytestmark = pytest.mark.anyio


class Clock:
    """A monotonic clock that is told what to say."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class CountingDisk(Disk):
    """The real disk, and how often it read a directory."""

    def __init__(self) -> None:
        self.reads = 0

    def names(self, path: str) -> list[str]:
        self.reads += 1
        return super().names(path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def keep(listings: Listings, path: str, names: list[str], clock: Clock) -> None:
    """Have a listing kept: read twice, with the rest between."""
    listings.note(path, 1, names, listings.begin())
    clock.now += 2
    listings.note(path, 1, names, listings.begin())


@pytest.mark.parametrize("cached", [True, False])
async def test_a_change_within_one_tick_is_noticed_on_a_node_whose_clock_is_ahead(
    tmp_path: Path, threads: Threads, clock: Clock, cached: bool
) -> None:
    """Storage's clock is an hour behind: what it dates now looks old here."""
    tick = os.stat(tmp_path).st_mtime - 3600
    driver = FilesystemDriver(str(tmp_path), threads, None if cached else Disk(), listings=Listings(now=clock))
    expected = []
    for name in ("first", "second", "third"):
        (tmp_path / "directory" / name).mkdir(parents=True)
        os.utime(tmp_path / "directory", (tick, tick))
        expected.append(name)
        clock.now += 0.5
        assert await driver.names("directory") == expected


@pytest.mark.parametrize("hours", [-1, 0, 1])
async def test_a_directory_that_was_left_alone_is_not_read_again_whatever_the_clocks_say(
    tmp_path: Path, threads: Threads, clock: Clock, hours: int
) -> None:
    (tmp_path / "directory/name").mkdir(parents=True)
    changed = os.stat(tmp_path).st_mtime + hours * 3600
    os.utime(tmp_path / "directory", (changed, changed))
    disk = CountingDisk()
    driver = FilesystemDriver(str(tmp_path), threads, disk, listings=Listings(now=clock))
    reads = []
    for _ in range(4):
        assert await driver.names("directory") == ["name"]
        reads.append(disk.reads)
        clock.now += 2
    assert reads == [1, 2, 2, 2]
    (tmp_path / "directory/other").mkdir()
    assert await driver.names("directory") == ["name", "other"]


def test_a_read_that_began_too_early_is_not_believed(clock: Clock) -> None:
    listings = Listings(now=clock)
    began = listings.begin()
    listings.note("a", 1, ["name"], began)
    clock.now += 10
    listings.note("a", 1, ["name"], began)  # begun with the first, and slow
    assert listings.find("a") is None
    listings.note("a", 1, ["name"], listings.begin())
    assert listings.find("a") == (1, ["name"])


def test_another_stamp_begins_anew(clock: Clock) -> None:
    listings = Listings(now=clock)
    keep(listings, "a", ["name"], clock)
    listings.note("a", 2, ["name", "other"], listings.begin())
    assert listings.find("a") is None


def test_as_many_names_are_kept_as_there_is_room_for(clock: Clock) -> None:
    listings = Listings(most=10, now=clock)
    for path in "abc":
        keep(listings, path, [f"{number}" for number in range(4)], clock)
    assert [path for path in "abc" if listings.find(path)] == ["b", "c"]
    listings.find("b")  # asked for: the other one goes first
    keep(listings, "d", ["name"] * 4, clock)
    assert [path for path in "abcd" if listings.find(path)] == ["b", "d"]


def test_a_listing_that_is_dropped_leaves_its_room(clock: Clock) -> None:
    listings = Listings(most=10, now=clock)
    for _ in range(5):
        keep(listings, "a", ["name"] * 8, clock)
        listings.note("a", 2, [], listings.begin())
    keep(listings, "b", ["name"] * 5, clock)
    keep(listings, "c", ["name"] * 5, clock)
    assert listings.find("b") and listings.find("c")


def test_a_directory_that_is_larger_than_the_room_is_kept_alone(clock: Clock) -> None:
    listings = Listings(most=10, now=clock)
    keep(listings, "small", ["name"], clock)
    keep(listings, "large", ["name"] * 11, clock)
    assert listings.find("large") and not listings.find("small")
    keep(listings, "small", ["name"], clock)
    assert listings.find("small") and not listings.find("large")


def test_directories_are_bounded_too(clock: Clock) -> None:
    listings = Listings(directories=3, now=clock)
    for path in "abcd":
        keep(listings, path, [], clock)
    assert [path for path in "abcd" if listings.find(path)] == ["b", "c", "d"]
