"""A descriptor that a thread writes lines to: whoever reads the logs too slowly, or not at all, delays no request.

Owns the lines between the event loop and the descriptor, which may be shared: with other workers, and with other
outlets. Knows nothing of what a line says.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import threading
from collections import deque

_ROOM = 4 * 1024 * 1024  # bytes that may wait for whoever reads; what comes then is dropped, and counted
_FAREWELL = 1.0  # seconds that the end of the process waits for what is left

_log = logging.getLogger(__name__)


class Outlet:
    """Lines on their way to a descriptor. After a fork, parent and child have one each."""

    def __init__(self, fd: int, name: str) -> None:
        """`name`: what the log calls it, when it tells what was dropped."""
        self._fd = fd
        self._name = name
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """Afresh: threads do not survive a fork, and what waits is the parent's to write."""
        self._waiting: deque[bytes] = deque()
        self._size = 0  # bytes: those that wait, and those being written
        self._dropped = 0  # lines
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, lines: list[bytes]) -> None:
        """Have whole lines written, each with its end. Waits for nothing."""
        with self._changed:
            if self._size >= _ROOM:
                self._dropped += len(lines)
                return
            self._waiting.extend(lines)
            self._size += sum(map(len, lines))
            self._changed.notify_all()
            if self._thread is None:
                self._start()

    def drain(self, seconds: float = _FAREWELL) -> None:
        """Wait until all is written, at most that long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._size, seconds)

    # What logging.StreamHandler asks of a stream.

    def write(self, text: str) -> None:
        self.put([text.encode(errors="backslashreplace")])

    def flush(self) -> None:
        """Nobody waits for the thread."""

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=f"log-{self._name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no room for one: the next line tries again
            return
        self._thread = thread
        atexit.register(self.drain)

    def _run(self) -> None:
        while True:
            batch = self._take()
            self._write(batch)
            self._written(len(batch))

    def _take(self) -> bytes:
        """Whole lines, as many as a pipe takes without mixing them with those of others (pipe(7), PIPE_BUF)."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            batch = bytearray(self._waiting.popleft())
            while self._waiting and len(batch) + len(self._waiting[0]) <= select.PIPE_BUF:
                batch += self._waiting.popleft()
        return bytes(batch)

    def _write(self, batch: bytes) -> None:
        while batch:
            try:
                batch = batch[os.write(self._fd, batch) :]
            except BlockingIOError:  # somebody who shares it made it so
                select.select([], [self._fd], [])
            except OSError:  # nobody will ever read it: serving goes on
                return

    def _written(self, size: int) -> None:
        dropped = 0
        with self._changed:
            self._size -= size
            if self._size < _ROOM // 2:
                dropped, self._dropped = self._dropped, 0
            self._changed.notify_all()
        if dropped:
            _log.warning("%s was not read in time: %d lines of the log were dropped", self._name, dropped)
