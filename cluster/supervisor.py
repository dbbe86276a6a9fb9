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
from dataclasses import dataclass, field

from cluster.errors import ConfigError

_PR_SET_PDEATHSIG = 1
_RESTART_PAUSE = (0.1, 5.0)  # seconds before a process is started again: the first time, at most
_LIVED = 10.0  # seconds after which a process is taken to have started well
_STOP = 40.0  # seconds for a process to stop before it is killed; longer than a node drains
_READY = 30.0  # seconds for a process to be of use
_TRIES = 3  # ends with an exit code, before it was of use once, after which a process is not started again
_END_OF_LOG = 64 * 1024  # bytes in which its last line is looked for

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
    failed: int = 0  # how often it has ended by itself, with an exit code that is not 0


class Supervisor:
    """Keeps children running until it is told to stop."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
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
                raise ConfigError([f"{child.name} does not start: {_said(child.log, before)}"])
            if time.monotonic() > deadline:
                problem = f"{child.name} did not become ready in {_READY:g} s"
                raise ConfigError([f"{problem}: {_said(child.log, before)}"])
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Stop all children side by side."""
        self._stopping.set()
        await asyncio.gather(*self._tasks.values())

    async def wait(self) -> None:
        """Until somebody called `stop`."""
        await self._stopping.wait()

    async def _keep(self, child: Child) -> None:
        pause, longest = _RESTART_PAUSE
        while not self._stopping.is_set():
            started = time.monotonic()
            code = await self._run(child)
            if self._stopping.is_set():
                return
            child.failed += code > 0
            pause = _RESTART_PAUSE[0] if time.monotonic() - started > _LIVED else min(pause * 2, longest)
            say(f"{child.name} {_ending(code)}; starting it again in {pause:g} s")
            try:
                await asyncio.wait_for(self._stopping.wait(), pause)
            except TimeoutError:
                pass

    async def _run(self, child: Child) -> int:
        log = os.open(child.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        process = await asyncio.create_subprocess_exec(
            *child.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **child.environment},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        os.close(log)
        child.pid = process.pid
        self._changed()
        ended, stopping = asyncio.create_task(process.wait()), asyncio.create_task(self._stopping.wait())
        await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not ended.done():
            await self._end(process, ended)
        # What the leader leaves behind still holds its port; a node is its whole process group.
        signal_group(process.pid, signal.SIGKILL)
        child.pid = None
        self._changed()
        return await ended

    @staticmethod
    async def _end(process: asyncio.subprocess.Process, ended: asyncio.Task[int]) -> None:
        process.terminate()
        await asyncio.wait([ended], timeout=_STOP)
        signal_group(process.pid, signal.SIGKILL)


def say(text: str) -> None:
    """One line for the person in front of it."""
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
