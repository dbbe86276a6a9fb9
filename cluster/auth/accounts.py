"""The htpasswd file as it is written: made, and edited while nodes read it.

Each edit replaces the whole file by one rename, under a lock that other edits of this kind respect; comments, other
lines, mode and owner stay. What a line means and what may be a password is in passwords.py.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster import files
from cluster.auth import passwords
from cluster.auth.access import read_name
from cluster.errors import ConfigError

_MODE = 0o600
_PATIENCE = 10.0  # seconds for somebody else's edit
_PAUSE = 0.02

_log = logging.getLogger(__name__)


def put(path: str, user: str, hashed: str, *, patience: float = _PATIENCE) -> bool:
    """Give a user this hash; False when the user is new. A missing file is made. ConfigError."""
    entry = f"{user}:{hashed}".encode()

    def change(lines: list[bytes]) -> list[bytes]:
        mine = [number for number, line in enumerate(lines) if _user(line) == user]
        place = mine[0] if mine else len(lines)
        others = [line for number, line in enumerate(lines) if number not in mine]
        return [*others[:place], entry, *others[place:]]

    return user in _edit(path, change, make=True, patience=patience)


def remove(path: str, user: str) -> bool:
    """Take a user out; False when there was none. ConfigError."""
    return user in _edit(path, lambda lines: [line for line in lines if _user(line) != user])


def clear(path: str) -> None:
    """Begin with a file that holds nobody. ConfigError."""
    if os.path.exists(path):
        _edit(path, lambda _: [])


def read(path: str) -> passwords.Accounts:
    """Who is in a file. ConfigError."""
    try:
        with open(path, "rb") as file:
            return passwords.parse(file.read())
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from None


def provide(path: str) -> None:
    """Make a file that is missing, as Distribution does: one user, and a password drawn for it. ConfigError.

    Distribution logs the password. Here it is in a file beside, which the log names: logs are read by many.
    """
    if os.path.lexists(path):
        return
    password, told = secrets.token_urlsafe(32), f"{path}.password"
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        try:
            files.create(path, f"docker:{passwords.make(password.encode())}\n".encode())
        except FileExistsError:  # of several nodes, the first one's password counts
            return
        files.replace(told, f"{password}\n".encode())
    except OSError as error:
        raise ConfigError([f"{path}: missing, and cannot be made: {error.strerror}"]) from None
    _log.warning("%s was missing and has been made, with the user docker, whose password is in %s", path, told)


def _edit(
    path: str, change: Callable[[list[bytes]], list[bytes]], *, make: bool = False, patience: float = _PATIENCE
) -> set[str]:
    """Replace the lines of a file; the users that it had before. ConfigError."""
    path = os.path.realpath(path)  # a link stays one
    try:
        if make and not os.path.exists(path):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, _MODE))
        with _locked(path, patience):
            before = read(path)
            with open(path, "rb") as file:
                lines = file.read().removesuffix(b"\n").split(b"\n")
            changed = change([] if lines == [b""] else lines)
            files.replace(path, b"".join(line + b"\n" for line in changed), keep=True)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be changed: {error.strerror}"]) from None
    return set(before.hashes)


@contextmanager
def _locked(path: str, patience: float) -> Iterator[None]:
    """Edit alone. The lock is on the file itself, and another edit puts another file in its place."""
    deadline = time.monotonic() + patience
    fd = _lock(path, deadline)
    try:
        while not os.path.samestat(os.fstat(fd), os.stat(path)):
            replaced, fd = fd, _lock(path, deadline)
            os.close(replaced)
        yield
    finally:
        os.close(fd)


def _lock(path: str, deadline: float) -> int:
    """A descriptor that holds the lock of whatever file is at a path now."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # a lock on NFS needs write access
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                os.close(fd)
                raise
        if time.monotonic() > deadline:
            os.close(fd)
            raise ConfigError([f"{path}: somebody else is editing it"])
        time.sleep(_PAUSE)


def _user(line: bytes) -> str | None:
    """Whose line this is; None for a comment or a blank one."""
    text = read_name(line).strip()
    return text.partition(":")[0] if text and not text.startswith("#") else None
