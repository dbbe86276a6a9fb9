"""Small files that are there whole or not at all: written beside their place, synced, and put there in one step.

For accounts, keys, certificates and configurations; what storage holds of a registry is written by `storage/`.
Every function raises OSError, and leaves nothing behind then.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress


def replace(path: str, content: bytes, mode: int = 0o600, *, keep: bool = False) -> None:
    """Put a file there, in place of another or of none. A symbolic link stays one.

    `keep`: owner and mode of the one before stay, so that whoever reads it goes on reading it.
    """
    path = os.path.realpath(path)
    temporary = beside(path, content, mode, keep=keep)
    try:
        os.replace(temporary, path)
    except BaseException:  # a file that is mounted by itself, for one
        os.unlink(temporary)
        raise
    sync(os.path.dirname(path))


def create(path: str, content: bytes, mode: int = 0o600, owner: os.stat_result | None = None) -> None:
    """Put a file there; FileExistsError when there is one: of several callers exactly one makes it."""
    temporary = _written(path, content, mode, owner)
    try:
        os.link(temporary, path)
    finally:
        os.unlink(temporary)
    sync(os.path.dirname(path))


def beside(path: str, content: bytes, mode: int = 0o600, *, keep: bool = False) -> str:
    """The file that is to replace this one, for a caller who puts several in place together; where it is."""
    if not keep or not os.path.exists(path):
        return _written(path, content, mode, None)
    before = os.stat(path)
    return _written(path, content, stat.S_IMODE(before.st_mode), before)


def sync(directory: str) -> None:
    """Make what was put into a directory, or taken out of it, outlive a loss of power."""
    fd = os.open(directory or ".", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _written(path: str, content: bytes, mode: int, owner: os.stat_result | None) -> str:
    """A synced file in the same directory, never readable for others than it is meant for."""
    temporary = f"{path}.{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            if owner is not None and (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(fd, owner.st_uid, owner.st_gid)
            os.fchmod(fd, mode)
            file.write(content)
            file.flush()
            os.fsync(fd)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return temporary
