"""How a cluster is set up so that its parts can be cut off: networks, storage, Sentinels and clocks of their own.

Each kind says what the machine lacks for it, the places where the parts run (cluster/places.py), and has verbs that
faults.py calls. Everything is made of processes, namespaces and mounts that end with the drill.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from typing import NoReturn, Self

from cluster import files
from cluster.drill.cluster import Process, Trouble, wait
from cluster.places import Place
from cluster.supervisor import signal_group

UNSHARED = "--unshared"
"""The option by which the command knows that it runs in namespaces of its own."""
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_NOWHERE = "02:00:00:00:00:01"  # a link-layer address that nobody has
_STORAGE = 1 << 30  # bytes of memory that the storage of a drill may take
_SLOW = (0.12, 0.03)  # seconds that slow storage stands still, and works
_PIECES = (16 << 20, 1 << 20, 64 << 10, 4 << 10)  # bytes, by which storage is filled while others write to it
_COMMAND = 30.0
FILE_SERVER = "passthrough_ll"
"""libfuse's example of a file system that passes everything through (its package brings it as source). Others, as
bindfs, stand on libfuse's path names, with which a file that is replaced can be missing for a moment."""
SENTINEL_PORTS = range(100, 105)
"""Of two Redis servers and three Sentinels, counted from the port where clients go."""


class Setting(StrEnum):
    """Which surroundings a fault needs."""

    PLAIN = "plain"
    APART = "apart"
    SENTINELS = "sentinels"
    CLOCKS = "clocks"


class Surroundings:
    """Those of a plain cluster: nothing is special. As a context manager they are there from begin to end."""

    programs: Sequence[str] = ("haproxy", "redis-server")

    def __init__(self, directory: str, names: Sequence[str], port: int) -> None:
        """`names` are the nodes', `port` is where clients go."""
        os.makedirs(directory, exist_ok=True)
        self._directory = os.path.abspath(directory)
        self._names = list(names)
        self._port = port
        self._stack = ExitStack()

    @classmethod
    def missing(cls) -> list[str]:
        """What this machine does not have for it."""
        return [f"{program} is not installed" for program in cls.programs if find(program) is None]

    def places(self) -> dict[str, Place]:
        return {}

    def prepare(self) -> None:
        """Make it; what is made is put on the stack."""

    def __enter__(self) -> Self:
        with self._stack:
            self.prepare()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, command: Sequence[str], name: str) -> Process:
        process = Process(command, f"{self._directory}/{name}.log")
        self._stack.callback(process.stop)
        return process


class Apart(Surroundings):
    """Each node in a network namespace, with one line to the proxy and one to Redis, and its own way to storage.

    The storage is a file system in memory that can be filled; each node sees it through a server of files that can
    be stopped. Nothing answers on a line that is cut: frames go to an address that nobody has.
    """

    programs = (*Surroundings.programs, "unshare", "nsenter", "ip", "mount", FILE_SERVER)

    @classmethod
    def missing(cls) -> list[str]:
        found = super().missing()
        if not found and subprocess.run([*_unshare(), "true"], capture_output=True, check=False).returncode:  # noqa: S603
            found.append("no network and mount namespaces can be made: run it as root")
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            found.append("/dev/fuse cannot be used: load the module fuse, or run it as root")
        return found

    def prepare(self) -> None:
        run("mount", "-t", "tmpfs", "none", "/run")
        self._stack.callback(run, "umount", "--lazy", "/run")
        os.makedirs("/run/netns")
        _forward()
        self._backing = f"{self._directory}/storage"
        os.makedirs(self._backing)
        run("mount", "-t", "tmpfs", "-o", f"size={_STORAGE},mode=755", "none", self._backing)
        self._stack.callback(run, "umount", "--lazy", self._backing)
        self._servers = {name: self._serve_files(name) for name in self._names}
        for number, name in enumerate(self._names, 1):
            self._make_network(number, name)

    def places(self) -> dict[str, Place]:
        redis = self._port + 1 + len(self._names)  # as `up` chooses it: all ports are free here
        found = {"redis": Place(arguments=["--bind", "0.0.0.0", "--protected-mode", "no"])}  # noqa: S104 - ours alone
        for number, name in enumerate(self._names, 1):
            found[name] = Place(
                host=_far("proxy", number),
                around=[require("nsenter"), f"--net=/run/netns/{name}", "--"],
                config={
                    "storage": {"filesystem": {"rootdirectory": self._mount(name)}},
                    "redis": {"addrs": [f"{_near('redis', number)}:{redis}"]},
                },
            )
        return found

    def cut(self, line: str, name: str) -> None:
        """The line to "proxy" or "redis": from now on nothing passes, and nobody is told."""
        number = self._names.index(name) + 1
        run("ip", "neigh", "replace", _far(line, number), "lladdr", _NOWHERE, "dev", f"{line}-{number}")
        run("ip", "-n", name, "neigh", "replace", _near(line, number), "lladdr", _NOWHERE, "dev", line)

    def join(self, line: str, name: str) -> None:
        number = self._names.index(name) + 1
        run("ip", "neigh", "del", _far(line, number), "dev", f"{line}-{number}")
        run("ip", "-n", name, "neigh", "del", _near(line, number), "dev", line)

    def hang(self, name: str) -> None:
        """The node's way to storage stands still: calls neither end nor fail."""
        signal_group(self._servers[name].pid, signal.SIGSTOP)

    def wake(self, name: str) -> None:
        signal_group(self._servers[name].pid, signal.SIGCONT)

    def fill(self) -> None:
        """Take all room that is left on the storage."""
        size = 0
        with open(f"{self._backing}/ballast", "wb") as file:
            for piece in _PIECES:
                try:
                    while True:
                        os.posix_fallocate(file.fileno(), size, piece)
                        size += piece
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def empty(self) -> None:
        os.unlink(f"{self._backing}/ballast")

    def _mount(self, name: str) -> str:
        return f"{self._directory}/mounts/{name}"

    def _serve_files(self, name: str) -> Process:
        # As a shared file system has to be: what one node writes is seen by the others at once, so nothing is
        # remembered of names, sizes and contents; and a lock excludes the others.
        options = f"source={self._backing},cache=never,timeout=0,flock"
        path = self._mount(name)
        os.makedirs(path)
        process = self._start([require(FILE_SERVER), "-f", "-o", options, path], f"files-{name}")
        self._stack.callback(run, "umount", "--lazy", path)

        def mounted() -> bool:
            process.check()
            return os.path.ismount(path)

        wait(mounted, _COMMAND, f"{path} is mounted")
        return process

    def _make_network(self, number: int, name: str) -> None:
        run("ip", "netns", "add", name)
        self._stack.callback(run, "ip", "netns", "del", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        for line in ("proxy", "redis"):
            near = f"{line}-{number}"
            run("ip", "link", "add", near, "type", "veth", "peer", "name", line, "netns", name)
            self._stack.callback(run, "ip", "link", "del", near)
            run("ip", "addr", "add", f"{_near(line, number)}/30", "dev", near)
            run("ip", "-n", name, "addr", "add", f"{_far(line, number)}/30", "dev", line)
            run("ip", "link", "set", near, "up")
            run("ip", "-n", name, "link", "set", line, "up")
        run("ip", "-n", name, "route", "add", "default", "via", _near("proxy", number))


class Sentinels(Surroundings):
    """A Redis with a replica and three Sentinels in place of the one that `up` starts."""

    programs = (*Surroundings.programs, "redis-cli")
    _MASTER = "main"

    def prepare(self) -> None:
        first, second, *self._sentinels = [self._port + offset for offset in SENTINEL_PORTS]
        for port in (first, second):
            directory = f"{self._directory}/redis-{port}"
            os.makedirs(directory)
            replica = ["--replicaof", f"127.0.0.1 {first}"] if port != first else []
            options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", directory, *replica]
            options += ["--repl-diskless-sync-delay", "0"]
            self._start([require("redis-server"), *options], f"redis-{port}")
        wait(lambda: "master_link_status:up" in ask(second, "INFO", "replication"), _COMMAND, "Redis replicates")
        for port in self._sentinels:
            self._start_sentinel(port, first)
        wait(self._complete, _COMMAND, "the Sentinels know each other and the replica")

    def places(self) -> dict[str, Place]:
        addresses = [f"127.0.0.1:{port}" for port in self._sentinels]
        config = {"redis": {"addrs": addresses, "mastername": self._MASTER}}
        return {name: Place(config=config) for name in self._names}

    def fail_over(self) -> None:
        """Make the replica the master."""
        wait(self._complete, _COMMAND, "a fail-over is possible")
        before = self._master()
        wait(lambda: ask(self._sentinels[0], "SENTINEL", "FAILOVER", self._MASTER) == "OK", _COMMAND, "it begins")
        wait(lambda: self._master() not in ("", before), _COMMAND, "the Sentinels name another master")

    def _master(self) -> str:
        return ask(self._sentinels[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._MASTER)

    def _start_sentinel(self, port: int, master: int) -> None:
        path = f"{self._directory}/sentinel-{port}.conf"
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f'dir "{self._directory}"',
            f"sentinel monitor {self._MASTER} 127.0.0.1 {master} 2",
            f"sentinel down-after-milliseconds {self._MASTER} 1000",
            f"sentinel failover-timeout {self._MASTER} 5000",
        ]
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        self._start([require("redis-server"), path, "--sentinel"], f"sentinel-{port}")

    def _complete(self) -> bool:
        """Whether all Sentinels know each other, and a replica that follows: what was the master takes a while."""
        master = {"num-slaves": "1", "num-other-sentinels": "2", "flags": "master"}
        replica = {"flags": "slave", "role-reported": "slave", "master-link-status": "ok"}
        return all(
            self._knows(port, "MASTER", master) and self._knows(port, "REPLICAS", replica)
            for port in self._sentinels
        )

    def _knows(self, sentinel: int, what: str, wanted: Mapping[str, str]) -> bool:
        lines = ask(sentinel, "SENTINEL", what, self._MASTER).split("\n")
        known = dict(zip(lines[::2], lines[1::2], strict=False))
        return all(known.get(name) == value for name, value in wanted.items())


class Clocks(Surroundings):
    """Each node with a clock of the day that can be set; what it measures time by stays true."""

    programs = (*Surroundings.programs, "cc")

    def prepare(self) -> None:
        self._library = f"{self._directory}/clock.so"
        source = os.path.join(os.path.dirname(__file__), "clock.c")
        run("cc", "-shared", "-fPIC", "-O2", "-o", self._library, source)
        for name in self._names:
            self.set(name, 0)

    def places(self) -> dict[str, Place]:
        return {
            name: Place(environment={"LD_PRELOAD": self._library, "CLOCK_AHEAD": self._file(name)})
            for name in self._names
        }

    def set(self, name: str, seconds: int) -> None:
        """How far a node's clock is ahead; heeded within a second."""
        files.replace(self._file(name), f"{seconds:+d}\n".encode(), mode=0o644)

    def _file(self, name: str) -> str:
        return f"{self._directory}/{name}.clock"


KINDS: dict[Setting, type[Surroundings]] = {
    Setting.PLAIN: Surroundings,
    Setting.APART: Apart,
    Setting.SENTINELS: Sentinels,
    Setting.CLOCKS: Clocks,
}


class Stutter:
    """Storage of all nodes that stands still most of the time; as a context manager."""

    def __init__(self, apart: Apart, names: Sequence[str]) -> None:
        self._apart = apart
        self._names = names
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        still, works = _SLOW
        while not self._stopping.is_set():
            for name in self._names:
                self._apart.hang(name)
            self._stopping.wait(still)
            for name in self._names:
                self._apart.wake(name)
            self._stopping.wait(works)


def unshare(words: Sequence[str]) -> NoReturn:
    """Become the same drill in network and mount namespaces of its own."""
    command = [*_unshare(), sys.executable, "-m", "cluster", "drill", *words, UNSHARED]
    os.execvp(command[0], command)  # noqa: S606 - that is what it is for


def enter() -> None:
    """In the namespaces: have a loopback, as everybody has."""
    run("ip", "link", "set", "lo", "up")


def _unshare() -> list[str]:
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    return [require("unshare"), *user, "--net", "--mount"]


def find(program: str) -> str | None:
    return shutil.which(program, path=_PATH)


def require(program: str) -> str:
    """The path of a program. Trouble."""
    if path := find(program):
        return path
    raise Trouble(f"{program} is not installed")


def run(program: str, *arguments: str) -> None:
    """A command that has to work. Trouble, with what it said."""
    command = [require(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND, check=False)  # noqa: S603
    if done.returncode:
        raise Trouble(f"{program} {' '.join(arguments)}: {done.stderr.strip()}")


def ask(port: int, *words: str) -> str:
    """What a Redis here answers; empty when it does not."""
    command = [require("redis-cli"), "-h", "127.0.0.1", "-p", str(port), "--raw", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip()


def _forward() -> None:
    """Let nodes reach each other through us. Where that is not allowed they go on without: only checks ask."""
    try:
        with open("/proc/sys/net/ipv4/ip_forward", "w", encoding="ascii") as file:
            file.write("1")
    except OSError:
        pass


def _near(line: str, number: int) -> str:
    """Our end of a node's line."""
    return f"10.{211 if line == 'proxy' else 212}.{number}.1"


def _far(line: str, number: int) -> str:
    """The node's end of it."""
    return f"10.{211 if line == 'proxy' else 212}.{number}.2"
