"""A file that is read again when it changes, while requests are served from what was read last.

Owns when it is read and what happens when it cannot be: at the start that is a ConfigError, later the last good
content stays in force and the log says why. What a file means is its reader's business.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from cluster.errors import ConfigError

_LARGEST = 16 * 1024 * 1024  # bytes; no file of accounts, rules or keys comes near it
_SETTLED = 0.1  # seconds without a change

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Watched(Generic[T]):
    """What a file says now."""

    def __init__(
        self, path: str, read: Callable[[bytes], T], *, pause: Callable[[float], None] = time.sleep
    ) -> None:
        """Reads the file; `read` raises ConfigError for what it cannot understand. ConfigError."""
        self._path = path
        self._read = read
        self._pause = pause
        self._stamp: object = None  # of the content that was looked at last, good or not
        self._trouble = ""
        self.content: T
        self._load()

    async def refresh(self) -> bool:
        """Whether there is new content. Blocking calls are made in a thread; nothing fails."""
        try:
            changed = await asyncio.to_thread(self._load, patient=True)
        except ConfigError as error:
            self._explain(str(error))
            return False
        if changed:
            self._explain("")
        return changed

    def _load(self, *, patient: bool = False) -> bool:
        """Read the file if it is another one than last time; a patient look leaves one that changes just now to the
        next: whoever edits in place has perhaps written half of it. ConfigError.
        """
        try:
            with open(self._path, "rb") as file:
                if (stamp := _stamp(os.fstat(file.fileno()))) == self._stamp:
                    return False
                if patient and not self._is_left_alone(stamp):
                    return False
                content = file.read(_LARGEST + 1)
        except OSError as error:
            self._stamp = None  # once it can be read again, it is
            raise ConfigError([f"{self._path}: cannot be read: {error.strerror}"]) from None
        self._stamp = stamp
        if len(content) > _LARGEST:
            raise ConfigError([f"{self._path}: larger than {_LARGEST} bytes"])
        try:
            self.content = self._read(content)
        except ConfigError as error:
            raise ConfigError([f"{self._path}: {problem}" for problem in error.problems]) from None
        return True

    def _is_left_alone(self, stamp: tuple[int, ...]) -> bool:
        """Whether nobody changes the file for a moment. OSError.

        Waited for, because no clock of this node tells how long ago the last change was by the clock of storage.
        """
        self._pause(_SETTLED)
        return _stamp(os.stat(self._path)) == stamp

    def _explain(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            _log.error("what was read before stays in force: %s", trouble)
        elif not trouble:
            _log.info("%s: read again", self._path)
        self._trouble = trouble


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """Differs when the content does: a file put in its place has another inode, an edited one another time."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
