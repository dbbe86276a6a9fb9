"""`registry-cluster up`: several nodes, Redis and HAProxy on one machine, as real processes, for one person.

Owns the processes: starts them, starts again what dies, stops all of them, and keeps `cluster.json` true. Each node
is `registry-cluster serve` in a process group of its own, as it would run anywhere else. Operations on a running
cluster are in operate.py.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from cluster.errors import ConfigError

STATE = "cluster.json"
_HOST = "127.0.0.1"
_PR_SET_PDEATHSIG = 1
_RESTART_PAUSE = (0.1, 5.0)  # seconds before a process is started again: the first time, at most
_LIVED = 10.0  # seconds after which a process is taken to have started well
_STOP = 40.0  # seconds for a process to stop before it is killed; longer than a node drains
_SOCKET_NAME = 80  # characters
_READY = 30.0  # seconds for a process to be of use

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


class Supervisor:
    """Keeps children running until it is told to stop."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._stopping = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def add(self, child: Child) -> None:
        """Start a child, and return when it is of use. ConfigError when that does not happen in time."""
        self._tasks[child.name] = asyncio.create_task(self._keep(child))
        deadline = time.monotonic() + _READY
        while not (child.pid is not None and await asyncio.to_thread(child.is_ready)):
            if time.monotonic() > deadline or self._stopping.is_set():
                raise ConfigError([f"{child.name} did not become ready in {_READY:g} s: see {child.log}"])
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
            pause = _RESTART_PAUSE[0] if time.monotonic() - started > _LIVED else min(pause * 2, longest)
            say(f"{child.name} ended ({_ending(code)}); starting it again in {pause:g} s")
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
            preexec_fn=_die_with_parent,
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


class LocalCluster:
    """The parts of one cluster, below one directory."""

    def __init__(self, *, nodes: int, port: int, directory: str, base: Mapping[str, Any] | None = None) -> None:
        self._directory = os.path.abspath(directory)
        self._run = f"{self._directory}/run"
        self._port = port
        self._base = dict(base or {})
        self._supervisor = Supervisor(self._write_state)
        self._node_urls = {f"node-{n + 1}": f"http://{_HOST}:{_free_port(port + 1 + n)}" for n in range(nodes)}
        self._redis_port = _free_port(port + 1 + nodes)
        self._redis_kind = "redis-server" if shutil.which("redis-server") else "embedded"
        haproxy = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        self._haproxy = haproxy
        self._nodes: list[Child] = []
        self._redis: Child | None = None
        self._balancer: Child | None = None

    async def run(self) -> None:
        """Start everything, serve until SIGINT or SIGTERM, stop everything."""
        loop = asyncio.get_running_loop()
        stopping: list[asyncio.Task[None]] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: stopping.append(asyncio.create_task(self._supervisor.stop())))
        self._prepare()
        try:
            await self._start()
            self._print_welcome()
            await self._supervisor.wait()
            say("stopping")
        finally:
            await self._supervisor.stop()
            self._write_state()

    async def _start(self) -> None:
        self._redis = self._redis_child()
        await self._supervisor.add(self._redis)
        self._nodes = [self._node_child(name, url) for name, url in self._node_urls.items()]
        await asyncio.gather(*(self._supervisor.add(node) for node in self._nodes))
        if self._haproxy is not None:
            self._balancer = self._haproxy_child(self._haproxy)
            await self._supervisor.add(self._balancer)

    def _prepare(self) -> None:
        for directory in (self._directory, self._run, f"{self._directory}/registry"):
            os.makedirs(directory, exist_ok=True)
        self._claim()
        if not _is_free(self._port):
            raise ConfigError([f"port {self._port} is taken: stop what listens there, or choose another (--port)"])
        if self._haproxy is None:
            say("haproxy is not installed: the nodes share the port themselves (SO_REUSEPORT), without stickiness")
        if self._redis_kind == "embedded":
            say("redis-server is not installed: using an embedded one, for trying things out")

    def _claim(self) -> None:
        """One cluster in a directory: two would write over each other's files. Given up when this process ends."""
        fd = os.open(f"{self._directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                [f"a cluster is running in {self._directory} already: stop it, or choose another one (--data)"]
            ) from None

    def _secret(self) -> str:
        path = f"{self._directory}/secret"
        if not os.path.exists(path):
            write_private(path, secrets.token_hex(32))
        with open(path, encoding="ascii") as file:
            return file.read()

    def _redis_child(self) -> Child:
        port, log = self._redis_port, f"{self._run}/redis.log"
        command = [sys.executable, "-m", "cluster.embedded", str(port)]
        if self._redis_kind == "redis-server":
            # Nothing that matters is only there: it keeps no file.
            options = ["--port", str(port), "--bind", _HOST, "--save", "", "--appendonly", "no", "--dir", self._run]
            command = ["redis-server", *options]
        return Child("redis", command, log, is_ready=lambda: _accepts(port))

    def _node_child(self, name: str, url: str) -> Child:
        path = f"{self._run}/{name}.yml"
        write_private(path, yaml.safe_dump(self._node_config(name, url), sort_keys=False))
        command = [sys.executable, "-m", "cluster", "serve", path]
        return Child(name, command, f"{self._run}/{name}.log", is_ready=lambda: is_ready(url))

    def _node_config(self, name: str, url: str) -> dict[str, Any]:
        """What the user's configuration says, and what makes it this node of this cluster."""
        config: dict[str, Any] = json.loads(json.dumps(self._base)) or {"version": "0.1"}
        config.setdefault("storage", {"delete": {"enabled": True}})
        config["storage"]["filesystem"] = {"rootdirectory": f"{self._directory}/registry"}
        config.setdefault("health", {"storagedriver": {"enabled": True, "interval": "10s", "threshold": 3}})
        http = config.setdefault("http", {})
        http.update(addr=url.removeprefix("http://"), secret=http.get("secret") or self._secret())
        config["redis"] = {"addrs": [f"{_HOST}:{self._redis_port}"]}
        ours = config.setdefault("cluster", {})
        ours.update(name=name, nodes=list(self._node_urls.values()))
        ours.setdefault("workers", max(1, (os.cpu_count() or 1) // len(self._node_urls)))
        if self._haproxy is None:
            ours["sharedaddr"] = f"{_HOST}:{self._port}"
        else:
            ours.setdefault("haproxy", {}).update(
                bind=f"{_HOST}:{self._port}", socket=self._socket, names=list(self._node_urls)
            )
        return config

    @property
    def _socket(self) -> str:
        path = f"{self._run}/haproxy.sock"
        # The kernel takes no longer name for a socket (unix(7): 108 bytes; HAProxy adds to it while it starts).
        return path if len(path) < _SOCKET_NAME else f"/tmp/registry-cluster-{self._port}.sock"  # noqa: S108

    def _haproxy_child(self, program: str) -> Child:
        path, log = f"{self._run}/haproxy.cfg", f"{self._run}/haproxy.log"
        first = next(iter(self._node_urls))
        with open(path, "wb") as file:
            file.write(_output([sys.executable, "-m", "cluster", "haproxy", f"{self._run}/{first}.yml"]))
        url = f"http://{_HOST}:{self._port}"
        return Child("haproxy", [program, "-W", "-db", "-f", path], log, is_ready=lambda: is_ready(url))

    def _write_state(self) -> None:
        """`cluster.json`: what runs where, for people, tests and operate.py. Replaced in one step."""
        balancer: dict[str, Any] = {"kind": "reuseport", "pid": None, "config": None}
        if self._haproxy is not None:
            pid = self._balancer.pid if self._balancer else None
            balancer = {"kind": "haproxy", "pid": pid, "config": f"{self._run}/haproxy.cfg", "socket": self._socket}
        state = {
            "endpoint": f"http://{_HOST}:{self._port}",
            "nodes": [
                {"name": node.name, "url": self._node_urls[node.name], "pid": node.pid} for node in self._nodes
            ],
            "redis": {
                "kind": self._redis_kind,
                "url": f"redis://{_HOST}:{self._redis_port}",
                "pid": self._redis.pid if self._redis else None,
            },
            "balancer": balancer,
        }
        path = f"{self._directory}/{STATE}"
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump(state, file, indent=2)
        os.replace(f"{path}.new", path)

    def _print_welcome(self) -> None:
        host = f"{_HOST}:{self._port}"
        print(
            f"\n  registry-cluster: {len(self._nodes)} nodes at http://{host}, data in {self._directory}\n\n"
            f"  push an image:   docker tag IMAGE {host}/team/app:v1 && docker push {host}/team/app:v1\n"
            "  or, without an engine:\n"
            "                   skopeo copy --dest-tls-verify=false docker://SOME/IMAGE "
            f"docker://{host}/team/app:v1\n"
            f"  look at it:      curl http://{host}/v2/_catalog\n"
            f"  lose a node:     registry-cluster status --data {self._directory}; kill -9 -PID of one\n"
            "  stop it:         Ctrl-C\n",
            flush=True,
        )


def read_base(path: str) -> dict[str, Any]:
    """A configuration that all nodes are to have. ConfigError when it is not YAML of the right shape."""
    try:
        with open(path, encoding="utf-8") as file:
            base = yaml.safe_load(file)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError([f"{path}: {error}"]) from error
    if not isinstance(base, dict):
        raise ConfigError([f"{path}: wanted a configuration as `serve` takes it"])
    return base


def say(text: str) -> None:
    """One line for the person in front of it."""
    print(f"registry-cluster: {text}", file=sys.stderr, flush=True)


def write_private(path: str, text: str) -> None:
    """A file that only its owner may read, replaced in one step."""
    temporary = f"{path}.{secrets.token_hex(4)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


def is_ready(url: str) -> bool:
    """Whether a node says that it takes work."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:  # noqa: S310 - a URL of our own making
            return int(answer.status) == 200
    except OSError:
        return False


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal a process and all that it started."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass


def _output(command: list[str]) -> bytes:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout  # noqa: S603 - our own command


def _die_with_parent() -> None:
    """In the child, before it becomes the command: when we are killed, nothing stays behind."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((_HOST, port)) == 0


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _free_port(wanted: int) -> int:
    """This port, or if it is taken one that the kernel chooses."""
    if _is_free(wanted):
        return wanted
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
