"""Real registries as child processes: start, stop, kill, pause, wait, and files around them.

Knows nothing about images or clients. A child runs in a session of its own, so a signal to its group reaches
its workers too, and the kernel kills it when the test run dies.
"""

import errno
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import httpx
import yaml

from tests.support.tools import require

T = TypeVar("T")
Config = Mapping[str, Any]

SECRET = "one secret for every node of a test"


_given: set[int] = set()


def free_port() -> int:
    """A TCP port that nobody listens on, and that was not given to anybody here before.

    It is below the range that the kernel uses for clients, so it stays free until it is used, and while its server
    is away.
    """
    for _ in range(100):
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))  # fails when it is taken on any address; nobody listens on it
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
        if port not in _given:
            _given.add(port)
            return port
    raise AssertionError("no free port found in 100 attempts")


def eventually(condition: Callable[[], T], within: float, what: str) -> T:
    """Ask until the answer is true, and return it; fail with `what` after that many seconds.

    The last look begins behind the deadline: who was kept from looking, by a machine that stood still, looks again.
    """
    deadline = time.monotonic() + within
    while True:
        is_last = time.monotonic() > deadline
        if answer := condition():
            return answer
        if is_last:
            raise AssertionError(f"not within {within} s: {what}")
        time.sleep(0.02)


def members(group: int) -> list[int]:
    """The living processes of a process group; what waits to be reaped does not count, whoever should reap it."""
    found = []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                _state, _parent, member_of = file.read().rpartition(")")[2].split()[:3]
            if int(member_of) == group and _runs(entry):
                found.append(int(entry))
        except OSError:  # it has been reaped meanwhile
            continue
    return found


def _runs(pid: str) -> bool:
    """Whether any thread of a process runs: one may still hold its sockets when the first is a zombie already."""
    return not _states(pid) <= set("ZX")


def _states(pid: str) -> set[str]:
    """What the threads of a process do, in the kernel's letters."""
    found = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{thread}/stat", encoding="utf-8", errors="replace") as file:
                found.add(file.read().rpartition(")")[2].split()[0])
        except OSError:
            continue
    return found


def stop_group(group: int) -> None:
    """Stop a process group where it stands, and return when all of it does.

    The signal goes to one thread of each process, and that one stops the others when it gets to run: on a busy
    machine they go on for a while, and give back what they were seen to hold.
    """
    os.killpg(group, signal.SIGSTOP)
    eventually(lambda: _stands_still(group), 20, f"process group {group} stands still")


def _stands_still(group: int) -> bool:
    try:
        return all(_states(str(pid)) <= set("TZX") for pid in members(group))
    except FileNotFoundError:  # it has been reaped meanwhile
        return False


def listening(port: int) -> bool:
    """Whether somebody accepts connections on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def merge(base: Config, over: Config) -> dict[str, Any]:
    """`base` with the nested keys of `over` laid on top; None removes a key."""
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = merge(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


class Process:
    """One command in a session of its own, its output in a file; as a context manager it is always stopped.

    The kernel ties the child to the thread that started it: start processes from a thread that outlives them.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: str,
        env: Mapping[str, str | None] | None = None,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """`env` is laid over the environment (None removes a variable); `ready` says when it can be used."""
        self.command = list(command)
        self.log_path = log
        self.env = dict(env or {})
        self.ready = ready
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The leader of the process group."""
        assert self._child is not None, "not started"
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and not self._exited()

    def start(self) -> Self:
        assert self._child is None, "already started"
        environment = {name: value for name, value in {**os.environ, **self.env}.items() if value is not None}
        with open(self.log_path, "ab") as log:
            self._child = subprocess.Popen(
                # setpriv (util-linux) sets the death signal and then becomes the command.
                [require("setpriv"), "--pdeathsig", "KILL", "--", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def wait_ready(self, within: float = 30) -> None:
        """Return when the process can be used; fail with the end of its log when it cannot."""
        try:
            eventually(lambda: self._exited() or self.ready(), within, f"{self.command[0]} is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None
        assert not self._exited(), f"{self.command[0]} stopped at once\n{self.tail()}"

    def wait(self, within: float) -> int:
        """Wait until it ends by itself; its exit code, negative for a signal."""
        eventually(self._exited, within, f"{self.command[0]} (pid {self.pid}) has ended")
        return self._reap()

    def stop(self, within: float = 20) -> int:
        """Ask the leader to end, and kill the group after the deadline; its exit code (-9: was killed)."""
        if self._child is None:
            return 0
        self.send(signal.SIGTERM)
        try:
            eventually(self._exited, within, "the process has ended")
        except AssertionError:
            pass
        return self._reap()

    def kill(self) -> None:
        """End the whole group at once, as a power cut ends a machine."""
        if self._child is not None:
            self._reap()

    def pause(self) -> None:
        """Stop the whole group where it stands: alive, holding what it holds."""
        stop_group(self.pid)

    def resume(self) -> None:
        self._signal_group(signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the leader alone."""
        if not self._exited():
            os.kill(self.pid, number)

    def children(self) -> list[int]:
        """The pids of the direct children: for our server, its workers."""
        with open(f"/proc/{self.pid}/task/{self.pid}/children", encoding="ascii") as file:
            return [int(pid) for pid in file.read().split()]

    def log(self) -> str:
        """All it has written so far."""
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self if self._child is not None else self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _exited(self) -> bool:
        """Whether the leader has ended. It is not reaped yet, so that its number stays the group's."""
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return ended is not None

    def _reap(self) -> int:
        assert self._child is not None, "not started"
        group = self.pid
        self._signal_group(signal.SIGKILL)
        code = self._child.wait()
        self._child = None
        eventually(lambda: not members(group), 30, f"nothing of process group {group} is left")
        return code

    def _signal_group(self, number: signal.Signals) -> None:
        os.killpg(self.pid, number)


class Registry(Process):
    """A registry on a port of 127.0.0.1 with its configuration, log and data in one directory.

    `config` is laid over the default configuration key by key (None removes a key); `root` is the storage
    root, for registries that share one. Variables that would change its configuration do not reach it.
    """

    probe = "/v2/"
    """The path that answers 200 when the registry can be used."""
    extra: ClassVar[Config] = {}
    """What one kind of registry adds to the default configuration."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        config: Config | None = None,
        *,
        root: str | os.PathLike[str] | None = None,
        port: int | None = None,
        env: Mapping[str, str | None] | None = None,
    ) -> None:
        self.directory = os.fspath(directory)
        self.root = os.fspath(root) if root is not None else os.path.join(self.directory, "data")
        self.port = port or free_port()
        self.config = merge(merge(self._defaults(), self.extra), config or {})
        self.config_path = os.path.join(self.directory, "config.yml")
        ours: dict[str, str | None] = {name: None for name in os.environ if name.startswith("REGISTRY_")}
        super().__init__(
            [*self.program(), "serve", self.config_path],
            log=os.path.join(self.directory, "log"),
            env={**ours, "WEB_CONCURRENCY": None, "OTEL_TRACES_EXPORTER": "none", **(env or {})},
            ready=self._answers,
        )

    @property
    def host(self) -> str:
        """What stands before the repository in a reference."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def program(self) -> Sequence[str]:
        raise NotImplementedError

    def start(self) -> Self:
        os.makedirs(self.directory, exist_ok=True)
        os.makedirs(self.root, exist_ok=True)
        with open(self.config_path, "w", encoding="utf-8") as file:
            yaml.safe_dump(self.config, file)
        return super().start()

    def _defaults(self) -> Config:
        return {
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": self.root}, "delete": {"enabled": True}},
            "http": {"addr": self.host, "secret": SECRET},
        }

    def _answers(self) -> bool:
        try:
            return httpx.get(self.url + self.probe, timeout=2, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


class Node(Registry):
    """One node of ours; one worker, unless the configuration given says more."""

    probe = "/readyz"
    extra: ClassVar[Config] = {"cluster": {"workers": 1}}

    def program(self) -> Sequence[str]:
        return [sys.executable, "-m", "cluster"]


class Distribution2(Registry):
    """CNCF Distribution 2.8, as Debian packages it."""

    def program(self) -> Sequence[str]:
        return [require("docker-registry")]


class Distribution3(Registry):
    """CNCF Distribution 3.1.1, built from its source."""

    def program(self) -> Sequence[str]:
        return [require("registry")]
