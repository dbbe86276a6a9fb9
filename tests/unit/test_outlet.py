"""Lines on their way to a descriptor that somebody else reads, or does not read."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import select
import threading
from collections.abc import Iterator

import pytest

from cluster.outlet import Outlet
from tests.support.process import eventually

LINE = b"x" * 1023 + b"\n"
ROOM = 4 * 1024 * 1024


class Pipe:
    """Its reading end, and an outlet to the other one."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        fcntl.fcntl(self.reading, fcntl.F_SETPIPE_SZ, 64 * 1024)
        self.outlet = Outlet(self.writing, "pipe")

    def read(self, size: int) -> bytes:
        """That many bytes; waits for them."""
        found = b""
        while len(found) < size:
            ready, _, _ = select.select([self.reading], [], [], 20)
            assert ready, f"{len(found)} of {size} bytes came"
            found += os.read(self.reading, size - len(found))
        return found

    def read_what_is_there(self) -> bytes:
        found = b""
        while select.select([self.reading], [], [], 0)[0]:
            found += os.read(self.reading, 64 * 1024)
        return found


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    found = Pipe()
    yield found
    os.close(found.reading)  # what still waits fails, and the thread is idle before its end is closed, too
    found.outlet.drain(20)
    os.close(found.writing)


def test_lines_come_whole_and_in_order(pipe: Pipe) -> None:
    lines = [b"%d\n" % number for number in range(10_000)]
    for start in range(0, len(lines), 100):
        pipe.outlet.put(lines[start : start + 100])
    assert pipe.read(sum(map(len, lines))) == b"".join(lines)
    pipe.outlet.drain(20)


def test_who_does_not_read_keeps_nobody_waiting_and_hears_what_was_dropped(
    pipe: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    given = 2 * ROOM // len(LINE)
    for _ in range(given):
        pipe.outlet.put([LINE])  # would hang here
    with caplog.at_level(logging.WARNING):
        came = pipe.read(ROOM)
        pipe.outlet.drain(20)
        eventually(lambda: "dropped" in caplog.text, 20, "the log tells")
    came += pipe.read_what_is_there()
    (dropped,) = re.findall(r"pipe was not read in time: (\d+) lines of the log were dropped", caplog.text)
    assert came == LINE * (given - int(dropped))
    pipe.outlet.put([b"after\n"])
    assert pipe.read(6) == b"after\n"


def test_lines_of_several_who_share_a_pipe_are_not_mixed(pipe: Pipe) -> None:
    others = [Outlet(pipe.writing, "pipe") for _ in range(3)]
    size = 0
    for number in range(3000):
        for letter, outlet in zip(b"abc", others, strict=True):
            line = bytes([letter]) * (number % 200) + b"\n"
            outlet.put([line])
            size += len(line)
    found = pipe.read(size).splitlines()
    assert len(found) == 9000
    assert all(len(set(line)) <= 1 for line in found)
    for outlet in others:
        outlet.drain(20)


def test_a_descriptor_that_does_not_block_is_waited_for(pipe: Pipe) -> None:
    os.set_blocking(pipe.writing, False)
    pipe.outlet.put([LINE] * 500)
    assert pipe.read(500 * len(LINE)) == LINE * 500


def test_nobody_at_the_other_end_is_no_trouble(pipe: Pipe) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    outlet = Outlet(writing, "broken")
    outlet.put([LINE] * 10)
    outlet.drain(20)
    outlet.put([LINE])
    outlet.drain(20)
    os.close(writing)


def test_what_is_left_is_waited_for_but_not_for_long(pipe: Pipe) -> None:
    pipe.outlet.put([LINE] * 500)
    pipe.outlet.drain(0.01)  # nobody reads: it comes back
    reader = threading.Thread(target=pipe.read, args=(500 * len(LINE),))
    reader.start()
    pipe.outlet.drain(20)
    reader.join(20)
    assert not reader.is_alive()
