"""Processes that are kept running (cluster/supervisor.py): what is said of one that does not start."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.supervisor import Child, Supervisor


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
