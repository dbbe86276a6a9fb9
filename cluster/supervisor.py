"""Processes that are kept running: started, started again when they die, stopped together.

Knows nothing of registries. What runs is decided in local.py.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from cluster.errors import ConfigError

_PR_SET_PDEATHSIG = 1
_RESTART_PAUSE = (0.1, 5.0)  # seconds before a process is started again: the first time, at most
_LIVED = 10.0  # seconds after which a process is taken to have started well
_STOP = 40.0  # seconds for a process to stop before it is killed; longer than a node drains
_READY = 30.0  # seconds for a process to be of use
_TRIES = 3  # ends with an exit code, before it was of use once, after which a process is not started again
_END_OF_LOG = 64 * 1024  # bytes in which its last line is looked for
_TELL_AGAIN = 1.0  # seconds until what runs is written down again, where that failed

_libc = ctypes.CDLL(None)


@dataclass
class Child:
    """One process that is to be running."""

    name: str
    command: list[str]
    log: str
    environment: Mapping[str, str] = field(default_factory=dict)
    is_ready: Callable[[], bool] = lambda: True
    pid: int | None = None
    failed: int = 0  # how often it has ended by itself, with an exit code that is not 0, or could not be started
    trouble: str = ""  # why it could not be started, the last time


class Supervisor:
    """Keeps children running until it is told to stop. A full disk, or a fork that fails, is no reason to stop."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """`changed` writes down what runs. It is called in a thread, because it waits for a disk; one at a time."""
        self._changed = changed
        self._telling = asyncio.Lock()
        self._again: asyncio.Task[None] | None = None  # tells again what could not be written down
        self._stopping = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def add(self, child: Child) -> None:
        """Start a child; return when it is of use, or not wanted any more.

        ConfigError, with what it said last, when that takes too long, or it fails again and again.
        """
        before = os.path.getsize(child.log) if os.path.exists(child.log) else 0
        self._tasks[child.name] = asyncio.create_task(self._keep(child))
        deadline = time.monotonic() + _READY
        while not (child.pid is not None and await asyncio.to_thread(child.is_ready)):
            if self._stopping.is_set():
                return
            if child.failed >= _TRIES:
                raise ConfigError([f"{child.name} does not start: {child.trouble or _said(child.log, before)}"])
            if time.monotonic() > deadline:
                problem = f"{child.name} did not become ready in {_READY:g} s"
                raise ConfigError([f"{problem}: {_said(child.log, before)}"])
            await asyncio.sleep(0.05)
        async with self._telling:  # by now it is written down, if it can be
            pass

    async def stop(self) -> None:
        """Stop all children side by side."""
        self._stopping.set()
        for ended in await asyncio.gather(*self._tasks.values(), return_exceptions=True):
            if ended is not None:  # whatever became of one, the others are stopped
                say(f"a process was not looked after to its end: {ended!r}")
        await self._tell()

    async def wait(self) -> None:
        """Until somebody called `stop`."""
        await self._stopping.wait()

    async def _keep(self, child: Child) -> None:
        pause, longest = _RESTART_PAUSE
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                process = await _spawn(child)
            except OSError as error:  # no room for its log, or for another process
                failed, child.trouble, ending = True, str(error), f"cannot be started ({error})"
            else:
                code = await self._watch(child, process)
                failed, child.trouble, ending = code > 0, "", _ending(code)
            if self._stopping.is_set():
                return
            child.failed += failed
            pause = _RESTART_PAUSE[0] if time.monotonic() - started > _LIVED else min(pause * 2, longest)
            say(f"{child.name} {ending}; starting it again in {pause:g} s")
            await self._stops_within(pause)

    async def _watch(self, child: Child, process: asyncio.subprocess.Process) -> int:
        """From its start to its end, which comes at the latest when everything stops; its exit code."""
        child.pid = process.pid
        await self._tell()
        ended, stopping = asyncio.create_task(process.wait()), asyncio.create_task(self._stopping.wait())
        await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not ended.done():
            await self._end(process, ended)
        # What the leader leaves behind still holds its port; a node is its whole process group.
        signal_group(process.pid, signal.SIGKILL)
        child.pid = None
        await self._tell()
        return await ended

    async def _tell(self) -> None:
        """Have it written down that something changed; later, where that cannot be done now."""
        if (trouble := await self._told()) and self._again is None:
            say(f"what runs cannot be written down: {trouble}")
            self._again = asyncio.create_task(self._tell_again())

    async def _tell_again(self) -> None:
        while not await self._stops_within(_TELL_AGAIN) and await self._told():
            pass
        self._again = None

    async def _told(self) -> OSError | None:
        async with self._telling:
            try:
                await asyncio.to_thread(self._changed)
            except OSError as error:
                return error
        return None

    async def _stops_within(self, seconds: float) -> bool:
        """Whether somebody calls `stop` in this time."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
        return self._stopping.is_set()

    @staticmethod
    async def _end(process: asyncio.subprocess.Process, ended: asyncio.Task[int]) -> None:
        process.terminate()
        await asyncio.wait([ended], timeout=_STOP)
        signal_group(process.pid, signal.SIGKILL)


async def _spawn(child: Child) -> asyncio.subprocess.Process:
    """OSError."""
    log = os.open(child.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return await asyncio.create_subprocess_exec(
            *child.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **child.environment},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    finally:
        os.close(log)


def say(text: str) -> None:
    """One line for the person in front of it; none where it cannot be written, on a full disk for one."""
    with suppress(OSError):
        print(f"registry-cluster: {text}", file=sys.stderr, flush=True)


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal a process and all that it started."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass


def die_with_parent() -> None:
    """In the child, before it becomes the command: when we are killed, nothing stays behind."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _ending(code: int) -> str:
    if code == 0:  # somebody asked it to, as `restart --rolling` does
        return "has stopped"
    return f"ended ({f'signal {signal.Signals(-code).name}' if code < 0 else f'exit code {code}'})"


def _said(log: str, before: int) -> str:
    """The last line that was written to a log since it had so many bytes, and where there is more."""
    with open(log, "rb") as file:
        file.seek(max(before, os.path.getsize(log) - _END_OF_LOG))
        lines = file.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"see {log}, which ends with: {last}" if last else f"see {log}"
