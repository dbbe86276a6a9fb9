"""Accounts at the command line: `registry-cluster user` and `htpasswd`, with Apache's own program beside ours."""

import os
import pty
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.support.tools import require

SECRET = "wonder:länd"


def run(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}
    return subprocess.run(
        [sys.executable, "-m", "cluster", *arguments],
        input=given,
        capture_output=True,
        text=True,
        env=clean,
        timeout=60,
        check=False,
    )


def at_terminal(*arguments: str, answers: Sequence[str]) -> tuple[int, str]:
    """Run a command at a terminal, and answer each of its prompts; exit code, and all that was to be seen there."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cluster", *arguments]
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    seen, left = "", list(answers)
    try:
        while piece := _read(ours):
            seen += piece
            if left and seen.endswith(": "):
                os.write(ours, left.pop(0).encode() + b"\n")
        return child.wait(30), seen
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def _read(terminal: int) -> str:
    """What comes next; nothing when the other side has gone, or says nothing for long."""
    ready, _, _ = select.select([terminal], [], [], 30)
    try:
        return os.read(terminal, 4096).decode() if ready else ""
    except OSError:  # hung up
        return ""


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A file with one user."""
    path = str(tmp_path / "htpasswd")
    done = run("user", "add", "alice", "--file", path, "--password-stdin", "--cost", "4", given=f"{SECRET}\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "alice: added\n", "")
    return path


def test_a_user_is_added_verified_listed_changed_and_removed(file: str) -> None:
    verify = ("user", "verify", "--file", file, "--password-stdin", "alice")
    assert run(*verify, given=SECRET).stdout == "alice: the password is right\n"
    changed = run("user", "add", "--file", file, "--cost", "5", "--password-stdin", "alice", given="other\r\n")
    assert changed.stdout == "alice: password changed\n"
    assert (run(*verify, given=SECRET).returncode, run(*verify, given="other").returncode) == (1, 0)
    assert run("user", "list", "--file", file).stdout == "alice  bcrypt, cost 5\n"
    assert run("user", "remove", "--file", file, "alice").stdout == "alice: removed\n"
    assert Path(file).read_text() == ""
    gone = run("user", "remove", "--file", file, "alice")
    assert (gone.returncode, gone.stderr) == (1, f"registry-cluster: {file}: there is no user 'alice'\n")


def test_apaches_program_takes_the_file(file: str) -> None:
    verified = subprocess.run(
        [require("htpasswd"), "-vb", file, "alice", SECRET], capture_output=True, timeout=60, check=False
    )
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize(
    ("arguments", "given", "problem"),
    [
        (["bob"], "x" * 73, "the password has 73 bytes: bcrypt takes at most 72"),
        (["bob"], "", "the password is empty"),
        (["bob"], "a\0a", "the password holds a NUL byte"),
        (["b:ob"], SECRET, "user 'b:ob': wanted 1 to 255 bytes without a colon, a '#' at the start, or space"),
        (["bob", "--cost", "31"], SECRET, "cost 31: wanted 4 to 17"),
    ],
)
def test_what_cannot_be_a_password_is_refused_with_a_clear_word(
    file: str, arguments: list[str], given: str, problem: str
) -> None:
    before = Path(file).read_bytes()
    done = run("user", "add", "--file", file, "--password-stdin", *arguments, given=given)
    assert done.returncode == 1
    assert done.stderr.startswith(f"registry-cluster: {problem}")
    assert Path(file).read_bytes() == before


def test_a_password_is_asked_for_twice_and_never_shown(file: str) -> None:
    code, seen = at_terminal("user", "add", "bob", "--file", file, "--cost", "4", answers=["unseen", "unseen"])
    assert (code, "unseen" in seen) == (0, False), seen
    assert "New password for bob: " in seen
    assert run("user", "verify", "bob", "--file", file, "--password-stdin", given="unseen").returncode == 0
    code, seen = at_terminal("user", "add", "bob", "--file", file, "--cost", "4", answers=["unseen", "other"])
    assert code == 1
    assert "the two passwords differ: nothing was changed" in seen


def test_without_a_terminal_nothing_is_asked(file: str) -> None:
    done = run("user", "add", "bob", "--file", file)
    assert (done.returncode, done.stdout) == (1, "")
    assert "give it on standard input (--password-stdin)" in done.stderr


def test_the_file_is_the_one_of_the_configuration(tmp_path: Path, file: str) -> None:
    config = tmp_path / "config.yml"
    base = {"version": 0.1, "storage": {"inmemory": {}}}
    config.write_text(yaml.safe_dump({**base, "auth": {"htpasswd": {"realm": "r", "path": file}}}))
    assert run("user", "list", "--config", str(config)).stdout == "alice  bcrypt, cost 4\n"
    config.write_text(yaml.safe_dump({**base, "auth": {"htpasswd": {"realm": "r", "path": "/no/such/file"}}}))
    for step in (["list"], ["add", "bob", "--password-stdin"]):
        done = run("user", *step, "--config", str(config), given="x")
        assert done.returncode == 1
        assert done.stderr.startswith("registry-cluster: auth.htpasswd.path: /no/such/file: cannot be ")
    config.write_text(yaml.safe_dump(base))
    done = run("user", "list", "--config", str(config))
    assert (done.returncode, "pass the file with --file" in done.stderr) == (1, True)


# htpasswd


@pytest.mark.parametrize("flags", [["-Bbn"], ["-nb", "-B"], ["-nbBC", "4"], ["-nb"]])
def test_the_line_of_the_guides_is_printed(flags: list[str], tmp_path: Path) -> None:
    done = run("htpasswd", *flags, "alice", SECRET)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("alice:$2y$")
    assert done.stdout.endswith("\n\n")
    (tmp_path / "htpasswd").write_text(done.stdout)
    verified = subprocess.run(
        [require("htpasswd"), "-vb", tmp_path / "htpasswd", "alice", SECRET], capture_output=True, check=False
    )
    assert verified.returncode == 0


def test_the_file_form_makes_changes_and_checks_a_file(tmp_path: Path) -> None:
    path = str(tmp_path / "htpasswd")
    assert run("htpasswd", "-BbcC", "4", path, "alice", SECRET).stderr == "adding password for user alice\n"
    assert run("htpasswd", "-BiC", "4", path, "bob", given="x\n").stderr == "adding password for user bob\n"
    assert run("htpasswd", "-vb", path, "alice", SECRET).returncode == 0
    assert run("htpasswd", "-vb", path, "alice", "x").returncode == 3
    assert run("htpasswd", "-D", path, "alice").returncode == 0
    assert [line.partition(":")[0] for line in Path(path).read_text().splitlines()] == ["bob"]
    run("htpasswd", "-BbcC", "4", path, "carol", "x")
    assert [line.partition(":")[0] for line in Path(path).read_text().splitlines()] == ["carol"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["-mbn", "a", "b"], "-m: MD5 would match nothing here: bcrypt (-B) does"),
        (["-sbn", "a", "b"], "-s: SHA-1 would match nothing here"),
        (["-Bbn", "a"], "found 1 arguments behind the flags, wanted 2"),
        (["-Bbn", "a", "b", "c"], "found 3 arguments behind the flags, wanted 2"),
        (["-BbnC", "ten", "a", "b"], "-C: found 'ten', wanted a number"),
        (["-x"], "option -x not recognized"),
    ],
)
def test_other_flags_are_refused_with_a_clear_word(arguments: list[str], problem: str) -> None:
    done = run("htpasswd", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"htpasswd: {problem}")


def test_a_password_that_looks_like_a_flag_is_a_password(tmp_path: Path) -> None:
    assert run("htpasswd", "-Bbn", "alice", "-secret").stdout.startswith("alice:$2y$10$")
