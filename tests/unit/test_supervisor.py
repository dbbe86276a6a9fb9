"""Processes that are kept running (cluster/supervisor.py), whatever fails around them, and what is said of them."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.supervisor import Child, Supervisor
from tests.support.process import eventually


def start(child: Child) -> None:
    async def run() -> None:
        supervisor = Supervisor(lambda: None)
        try:
            await supervisor.add(child)
        finally:
            await supervisor.stop()

    asyncio.run(run())


def script(log: Path, code: str, ready: bool) -> Child:
    return Child("part", [sys.executable, "-c", code], str(log), is_ready=lambda: ready)


def test_what_fails_again_and_again_is_given_up_with_the_last_it_said(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("from another day\n")
    with pytest.raises(ConfigError) as caught:
        start(script(log, "print('first'); raise SystemExit('no such file: /x')", ready=False))
    assert caught.value.problems == [f"part does not start: see {log}, which ends with: no such file: /x"]


def test_what_says_nothing_leaves_only_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("from another day\n")
    with pytest.raises(ConfigError) as caught:
        start(script(log, "raise SystemExit(1)", ready=False))
    assert caught.value.problems == [f"part does not start: see {log}"]


def test_what_ends_because_it_was_told_to_has_not_crashed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = tmp_path / "done"
    code = f"import pathlib, time; p = pathlib.Path({str(done)!r})\nif p.exists(): time.sleep(60)\np.touch()"
    said: list[str] = []

    def is_ready() -> bool:
        said.append(capsys.readouterr().err)
        return "starting it again" in "".join(said)

    start(Child("part", [sys.executable, "-c", code], str(tmp_path / "log"), is_ready=is_ready))
    assert "part has stopped; starting it again in" in "".join(said)
    assert "ended" not in "".join(said)


class FullDisk:
    """Where what runs is written down, while there is room."""

    def __init__(self, child: Child) -> None:
        self.full = False
        self.refused = 0
        self.written: list[int | None] = []
        self._child = child

    def write(self) -> None:
        if self.full:
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.written.append(self._child.pid)


def supervise(child: Child, changed: Callable[[], None], during: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        supervisor = Supervisor(changed)
        try:
            await supervisor.add(child)
            await during()
        finally:
            await supervisor.stop()

    asyncio.run(run())


async def comes(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(eventually, condition, 20, what)


def test_a_full_disk_keeps_nothing_from_being_started_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = script(tmp_path / "log", "import time; time.sleep(60)", ready=True)
    disk = FullDisk(child)

    async def during() -> None:
        first = child.pid
        assert first is not None and disk.written == [first]
        disk.full = True
        os.kill(first, signal.SIGKILL)
        await comes(lambda: child.pid not in (None, first) and disk.refused > 2, "it runs again")
        disk.full = False
        await comes(lambda: disk.written[-1] == child.pid, "what could not be told is told later")

    supervise(child, disk.write, during)
    assert disk.written[-1] is None
    said = capsys.readouterr().err
    assert said.count("what runs cannot be written down: [Errno 28] No space left on device") == 1


def test_what_cannot_be_written_down_at_the_end_ends_all_the_same(tmp_path: Path) -> None:
    child = script(tmp_path / "log", "import time; time.sleep(60)", ready=True)
    disk = FullDisk(child)

    async def during() -> None:
        disk.full = True

    supervise(child, disk.write, during)
    assert child.pid is None


def test_what_cannot_be_started_now_is_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs, away = tmp_path / "logs", tmp_path / "away"
    logs.mkdir()
    child = script(logs / "log", "import time; time.sleep(60)", ready=True)
    said: list[str] = []

    def has_said(text: str) -> bool:
        said.append(capsys.readouterr().err)
        return text in "".join(said)

    async def during() -> None:
        first = child.pid
        assert first is not None
        logs.rename(away)  # opening the log fails from now on
        os.kill(first, signal.SIGKILL)
        trouble = "part cannot be started ([Errno 2] No such file or directory"
        await comes(lambda: has_said(trouble), "somebody is told")
        away.rename(logs)
        await comes(lambda: child.pid is not None, "it runs again")

    supervise(child, lambda: None, during)


def test_what_can_never_be_started_is_given_up_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        start(Child("part", ["/no/such/program"], str(tmp_path / "log"), is_ready=lambda: False))
    assert caught.value.problems == ["part does not start: [Errno 2] No such file or directory: '/no/such/program'"]
