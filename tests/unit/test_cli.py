"""Words that the command line says of itself (cluster/cli.py, cluster/verbs.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import __main__, cli, verbs
from cluster.local import data_option
from tests.support.tools import PROJECT


def test_the_program_is_named_by_the_path_that_it_was_started_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "registry-cluster"
    program.touch(0o755)
    monkeypatch.setenv("PATH", os.devnull)
    assert verbs.program(str(program)) == str(program)
    assert verbs.program(".venv/bin/registry-cluster") == ".venv/bin/registry-cluster"
    assert verbs.program("/some/where/cluster/__main__.py") == f"{sys.executable} -m cluster"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert verbs.program(str(program)) == "registry-cluster"
    assert verbs.program(".venv/bin/registry-cluster") == ".venv/bin/registry-cluster"


def test_a_directory_is_named_where_commands_would_look_elsewhere(tmp_path: Path) -> None:
    assert data_option(os.path.abspath("data")) == data_option("data") == ""
    assert data_option(str(tmp_path / "a b")) == f" --data '{tmp_path}/a b'"


@contextmanager
def started(*words: str, stdout: int, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    command, environ = [sys.executable, "-m", "cluster", *words], os.environ | variables
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=stdout, stderr=pipe, env=environ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("words", [["drill", "list"], ["htpasswd", "-bn", "-C", "4", "anna", "secret"]])
def test_a_reader_who_leaves_is_no_accident(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with started(*words, stdout=writer) as command:
        os.close(writer)
        assert command.communicate(timeout=30)[1] == b""
    assert command.returncode == 1


def test_ctrl_c_is_no_accident(tmp_path: Path) -> None:
    fifo = tmp_path / "config.yml"
    os.mkfifo(fifo)
    with (
        started("config", "check", str(fifo), stdout=subprocess.DEVNULL) as command,
        fifo.open("wb"),  # open as soon as the command reads it
    ):
        command.send_signal(signal.SIGINT)
        assert command.communicate(timeout=30)[1] == b""
    assert command.returncode == 130


def test_ctrl_c_is_no_accident_while_modules_are_imported(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "pydantic.py").write_text(f"open({str(fifo)!r}).read()")  # found first, and waits
    with (
        started("--version", stdout=subprocess.DEVNULL, PYTHONPATH=str(tmp_path)) as command,
        fifo.open("wb"),  # open as soon as the import has begun
    ):
        command.send_signal(signal.SIGINT)
        assert command.communicate(timeout=30)[1] == b""
    assert command.returncode == 130


def test_the_console_scripts_begin_where_python_m_does() -> None:
    scripts = tomllib.loads(Path(PROJECT, "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {
        "registry-cluster": f"{__main__.__name__}:{__main__.main.__name__}",
        "htpasswd": f"{__main__.__name__}:{__main__.htpasswd.__name__}",
    }


@pytest.mark.parametrize("verb", [["up"], ["status"], ["drain", "node-1"], ["restart", "--rolling"]], ids=" ".join)
def test_a_variable_that_is_not_set_names_no_directory(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([*verb, "--data", ""])
    assert "argument --data: found nothing, wanted a path" in capsys.readouterr().err
