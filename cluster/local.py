"""`registry-cluster up`: several nodes, Redis and HAProxy on one machine, as real processes, for one person.

Decides what runs, and keeps `cluster.json` true. Each node is `registry-cluster serve` in a process group of its
own, as it would run anywhere else. What the parts are told is in blueprint.py, their processes are kept by
supervisor.py, certificates and accounts are made by protect.py, operations on what runs are in operate.py.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import ssl
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from cluster import files
from cluster.blueprint import Blueprint
from cluster.errors import ConfigError
from cluster.peers import UNANSWERED, ask
from cluster.places import Place
from cluster.protect import USER, Protection
from cluster.supervisor import Child, Supervisor, say
from cluster.trust import reference_host
from cluster.values import SOCKET_PATH_LIMIT

STATE = "cluster.json"
DATA = "data"
"""The directory of a cluster, where no other is named."""
_HOST = "127.0.0.1"
_PATIENCE = 2.0  # seconds for a node to answer


class LocalCluster:
    """The parts of one cluster, below one directory."""

    def __init__(
        self,
        *,
        nodes: int,
        port: int,
        protection: Protection,
        base: Mapping[str, Any] | None = None,
        places: Mapping[str, Place] | None = None,
        program: str = "registry-cluster",
    ) -> None:
        """`program` is how a person types this one."""
        self._protection = protection
        self._program = program
        self._password: str | None = None  # of an account that was made just now, until it is shown
        self._directory = os.path.abspath(protection.directory)
        self._run = f"{self._directory}/run"
        self._port = port
        self._base = dict(base or {})
        self._places = dict(places or {})
        self._supervisor = Supervisor(self._write_state)
        self._endpoint = f"{protection.scheme}://{_HOST}:{port}"
        self._node_urls = {
            name: f"{protection.scheme}://{self._place(name).host}:{_free_port(port + number)}"
            for number, name in enumerate((f"node-{n + 1}" for n in range(nodes)), 1)
        }
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
            if not stopping:
                self._print_welcome()
            await self._supervisor.wait()
            say("stopping")
        finally:
            await self._supervisor.stop()
            with suppress(FileNotFoundError):  # HAProxy leaves it
                os.unlink(self._socket)
            if self._password is not None:
                say(f"the account {USER} is there already, with the password {self._password}")

    async def _start(self) -> None:
        self._redis = self._redis_child()
        await self._supervisor.add(self._redis)
        self._nodes = [self._node_child(name, url) for name, url in self._node_urls.items()]
        await asyncio.gather(*(self._supervisor.add(node) for node in self._nodes))
        if self._haproxy is not None:
            self._balancer = self._haproxy_child(self._haproxy)
            await self._supervisor.add(self._balancer)

    def _prepare(self) -> None:
        self._see_place()
        blueprint = self._draw()
        warnings = blueprint.check()
        if not os.path.exists(self._directory):
            self._see_port()  # before anything is made, as all that is above
        try:
            for directory in (self._directory, self._run, f"{self._directory}/registry"):
                os.makedirs(directory, exist_ok=True)
            self._claim()
        except OSError as error:
            raise ConfigError([f"--data {self._directory}: cannot be used: {error.strerror}"]) from None
        self._see_port()  # a cluster that runs in this directory already has been told of first
        if self._haproxy is None:
            say("haproxy is not installed: the nodes share the port themselves (SO_REUSEPORT), without stickiness")
        if self._redis_kind == "embedded":
            say("redis-server is not installed: using an embedded one, for trying things out")
        self._blueprint = replace(blueprint, secret=self._secret(blueprint.secret))
        for warning in warnings:
            say(f"warning: {warning}")
        self._password = self._protection.provide()

    def _see_place(self) -> None:
        """ConfigError, before anything is made, for a directory that HAProxy's configuration could not name."""
        authority = self._protection.authority
        named = [*([self._socket] if self._haproxy is not None else []), *([authority] if authority else [])]
        if not all(re.fullmatch(r"[A-Za-z0-9._/-]+", path) for path in named):
            raise ConfigError(
                [f'--data: found "{self._directory}", wanted a path of letters, digits, ".", "_", "-" and "/"']
            )

    def _see_port(self) -> None:
        if not _is_free(self._port):
            raise ConfigError([f"port {self._port} is taken: stop what listens there, or choose another (--port)"])

    def _draw(self) -> Blueprint:
        return Blueprint(
            base=self._base,
            nodes=self._node_urls,
            root=f"{self._directory}/registry",
            secret=secrets.token_hex(32),
            redis=f"{_HOST}:{self._redis_port}",
            front=f"{_HOST}:{self._port}",
            endpoint=self._endpoint,
            socket=self._socket if self._haproxy is not None else None,
            protection=self._protection,
            places=self._places,
            environ=os.environ,
        )

    def _claim(self) -> None:
        """One cluster in a directory: two would write over each other's files. Given up when this process ends."""
        fd = os.open(f"{self._directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                [f"a cluster is running in {self._directory} already: stop it, or choose another one (--data)"]
            ) from None

    def _secret(self, drawn: str) -> str:
        """The secret of the cluster in this directory: the one that was drawn at its first start."""
        path = f"{self._directory}/secret"
        if not os.path.exists(path):
            files.replace(path, drawn.encode())
        with open(path, encoding="ascii") as file:
            return file.read()

    def _redis_child(self) -> Child:
        port, log = self._redis_port, f"{self._run}/redis.log"
        command = [sys.executable, "-m", "cluster.embedded", str(port)]
        if self._redis_kind == "redis-server":
            # Nothing that matters is only there: it keeps no file.
            options = ["--port", str(port), "--bind", _HOST, "--save", "", "--appendonly", "no", "--dir", self._run]
            command = ["redis-server", *options, *self._place("redis").arguments]
        return Child("redis", command, log, is_ready=lambda: _accepts(port))

    def _node_child(self, name: str, url: str) -> Child:
        path = f"{self._run}/{name}.yml"
        files.replace(path, self._blueprint.text(name).encode())
        place, trust, log = self._place(name), self._protection.trust(), f"{self._run}/{name}.log"
        command = [*place.around, sys.executable, "-m", "cluster", "serve", path, *place.arguments]
        return Child(name, command, log, place.environment, is_ready=lambda: is_ready(url, trust))

    def _place(self, part: str) -> Place:
        return self._places.get(part, Place())

    @property
    def _socket(self) -> str:
        path = f"{self._run}/haproxy.sock"
        return path if len(path) <= SOCKET_PATH_LIMIT else f"/tmp/registry-cluster-{self._port}.sock"  # noqa: S108

    def _haproxy_child(self, program: str) -> Child:
        path, log = f"{self._run}/haproxy.cfg", f"{self._run}/haproxy.log"
        with open(path, "w", encoding="utf-8") as file:
            file.write(self._blueprint.balancer())
        trust = self._protection.trust()
        command = [program, "-W", "-db", "-f", path]
        return Child("haproxy", command, log, is_ready=lambda: is_ready(self._endpoint, trust))

    def _write_state(self) -> None:
        """`cluster.json`: what runs where, for people, tests and operate.py. Replaced in one step."""
        balancer: dict[str, Any] = {"kind": "reuseport", "pid": None, "config": None}
        if self._haproxy is not None:
            pid = self._balancer.pid if self._balancer else None
            balancer = {"kind": "haproxy", "pid": pid, "config": f"{self._run}/haproxy.cfg", "socket": self._socket}
        state: dict[str, Any] = {
            "endpoint": self._endpoint,
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
        if self._protection.authority is not None:
            state["ca"] = self._protection.authority
        path = f"{self._directory}/{STATE}"
        files.replace(path, json.dumps(state, indent=2).encode(), mode=0o644)

    def _print_welcome(self) -> None:
        host = reference_host(_HOST, self._port)
        authority = self._protection.authority
        certs = f"--dest-cert-dir {os.path.dirname(authority)}" if authority else "--dest-tls-verify=false"
        count = "1 node" if len(self._nodes) == 1 else f"{len(self._nodes)} nodes"
        lines = [
            f"\n  registry-cluster: {count} at {self._endpoint}, data in {self._directory}\n",
            "  Use a second terminal for all of this; Ctrl-C in this one stops it.\n",
            *self._ways_in(host),
            f"  push an image:   docker tag IMAGE {host}/team/app:v1 && docker push {host}/team/app:v1",
            "  or, without an engine:",
            f"                   skopeo copy {certs} docker://SOME/IMAGE docker://{host}/team/app:v1",
            f"  look at it:      curl {self._curl_options()}{self._endpoint}/v2/_catalog",
            f"  lose a node:     {self._program} status{data_option(self._directory)}; kill -9 -PID of one\n",
        ]
        print("\n".join(lines), flush=True)
        self._password = None

    def _ways_in(self, host: str) -> list[str]:
        """What a client needs before it may do anything."""
        lines = []
        if authority := self._protection.authority:
            lines.append(f"  trust it:        install -D -m 644 {authority} /etc/docker/certs.d/{host}/ca.crt")
        if self._protection.auth:
            lines.append(f"  log in:          docker login -u {USER} {host}")
            if self._password is not None:
                lines.append(f"  password:        {self._password}   (shown this once)")
            lines.append(f"  more accounts:   {self._program} user add --file {self._protection.accounts} NAME")
        return lines

    def _curl_options(self) -> str:
        authority = f"--cacert {self._protection.authority} " if self._protection.authority else ""
        return authority + (f"-u {USER} " if self._protection.auth == "htpasswd" else "")


def data_option(directory: str) -> str:
    """What commands need to find a cluster, with a space before it; nothing where they look by themselves."""
    place = os.path.abspath(directory)
    return "" if place == os.path.abspath(DATA) else f" --data {shlex.quote(place)}"


def is_ready(url: str, trust: ssl.SSLContext) -> bool:
    """Whether a node says that it takes work."""
    try:
        return ask(f"{url}/readyz", trust, timeout=_PATIENCE)[0] == 200
    except UNANSWERED:
        return False


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((_HOST, port)) == 0


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError):  # there is none above 65535
            return False
    return True


def _free_port(wanted: int) -> int:
    """This port, or if it is taken one that the kernel chooses."""
    if _is_free(wanted):
        return wanted
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
