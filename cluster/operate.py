"""Operations on a cluster that `registry-cluster up` runs: status, drain, rolling restart.

Reads `cluster.json`, asks nodes over HTTP, and talks to HAProxy's runtime socket. Starts no process: the supervisor
in local.py starts again what this stops.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from cluster.errors import ConfigError
from cluster.haproxy import BalancerError, Runtime
from cluster.local import STATE, data_option, is_ready
from cluster.peers import ask
from cluster.settings import PeerTls
from cluster.supervisor import say
from cluster.tls import client_context

_QUIET = 1.0  # seconds that sessions of a drained node may still have; then it is told to stop, and finishes them
_PATIENCE = 3.0  # seconds for a node to answer
_RESTART = 60.0  # seconds for a node to stop and come back
_OTHERS = 30.0  # seconds for HAProxy to give clients to another node: it wants two good checks of one that was away


def read_state(directory: str) -> dict[str, Any]:
    """`cluster.json` of a cluster that runs, or did. ConfigError when there is none."""
    path = f"{directory}/{STATE}"
    try:
        with open(path, encoding="utf-8") as file:
            state: dict[str, Any] = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        place = directory if directory.startswith(("/", ".")) else f"./{directory}"
        wanted = "start one with `registry-cluster up`, or name its directory with --data"
        raise ConfigError([f"no cluster in {place}: {wanted}"]) from None
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from error
    return state


def status(directory: str) -> tuple[list[str], bool]:
    """One line for each part of the cluster, and whether every node takes work. A drained one does.

    A node does so without Redis, too: what is wrong with that is said, and no more.
    """
    state = read_state(directory)
    trust, drained = _trust(state), _drained(state)
    told = {node["name"]: _told(node, trust, node["name"] in drained) for node in state["nodes"]}
    nodes = [f"{node['name']:<9} {node['url']}  {told[node['name']].text}" for node in state["nodes"]]
    without = ", ".join(name for name, answer in told.items() if answer.redis == "failing")
    redis, balancer = state["redis"], state["balancer"]
    lines = [
        f"endpoint  {state['endpoint']}{'' if any(map(_runs, state['nodes'])) else '  stopped'}",
        *nodes,
        f"redis     {redis['url']}  {_process(redis)}  {redis['kind']}"
        + (f"  does not work for {without}" if without else ""),
        f"balancer  {balancer['kind']}" + ("" if balancer["kind"] == "reuseport" else f"  {_process(balancer)}"),
    ]
    return lines, bool(told) and all(answer.is_up for answer in told.values())


class _Answer(NamedTuple):
    """What a node says of itself, or why that is not known."""

    text: str
    is_up: bool = False  # whether it takes work
    redis: str = ""


def _told(node: dict[str, Any], trust: ssl.SSLContext, drained: bool) -> _Answer:
    if not _runs(node):
        return _Answer("stopped")
    process = _process(node)
    try:
        health = _health(node["url"], trust)
        is_up, version, uploads = bool(health["ready"]), health["node"]["version"], health["uploads"]
        storage, redis = health["storage"]["status"], str(health["redis"]["status"])
    except (OSError, http.client.HTTPException):
        return _Answer(f"{process}  does not answer")
    except (ValueError, KeyError, TypeError):
        return _Answer(f"{process}  what answers there is no node: /healthz holds no report of one")
    ready = "not ready" if not is_up else "draining" if drained else "ready"
    text = f"{process}  {ready}  version {version}  uploads {uploads}  storage {storage}"
    return _Answer(text, is_up, redis)


def _drained(state: dict[str, Any]) -> set[str]:
    """The nodes that get no new client, as far as HAProxy can be asked."""
    if "socket" not in state["balancer"] or not _runs(state["balancer"]):
        return set()
    try:
        servers = Runtime(state["balancer"]["socket"]).servers()
    except BalancerError:
        return set()
    return {server.name for server in servers if server.status.startswith("DRAIN")}


def _runs(part: dict[str, Any]) -> bool:
    """Whether a part has a process. One that was killed with its supervisor is still in the file."""
    if part["pid"] is None:
        return False
    try:
        os.kill(part["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _process(part: dict[str, Any]) -> str:
    return f"pid {part['pid']}" if _runs(part) else "stopped"


def seen_by(socket: str) -> list[str]:
    """One line for each node of a running HAProxy; one for all the places that have got no address from DNS."""
    servers = Runtime(socket).servers()
    free = [server.name for server in servers if not server.address]
    lines = [
        f"{server.name:<9} {server.address}  {server.status}  sessions {server.sessions}"
        for server in servers
        if server.address
    ]
    return [*lines, f"free: {' '.join(free)}"] if free else lines


def drain(directory: str, name: str) -> None:
    """Send no new client to a node. ConfigError when there is no such node, or no HAProxy to tell it to."""
    state = read_state(directory)
    _node(state, name)
    _runtime(state).drain(name)


def undrain(directory: str, name: str) -> None:
    """Send clients to a node again."""
    state = read_state(directory)
    _node(state, name)
    _runtime(state).ready(name)


def restart_rolling(directory: str) -> None:
    """Restart one node after the other, each drained first, so that no request fails. ConfigError."""
    nodes = read_state(directory)["nodes"]
    for node in nodes:
        _see_running(node, among=nodes)
    for node in nodes:
        _restart(directory, str(node["name"]))


def _restart(directory: str, name: str) -> None:
    state = read_state(directory)
    node = _node(state, name)
    _see_running(node, among=state["nodes"])
    runtime = _runtime(state) if state["balancer"]["kind"] == "haproxy" else None
    if runtime is not None:
        _see_another(runtime, name)
    say(f"{name}: draining")
    undo = f"registry-cluster drain {name} --undo{data_option(directory)}"
    try:
        _replace(directory, node, runtime, undo)
    except KeyboardInterrupt:
        if runtime is None:
            raise
        raise ConfigError(
            [f"stopped: {name} is still drained: when it is ready, `{undo}` sends clients to it again"]
        ) from None
    say(f"{name}: restarted")


def _see_another(runtime: Runtime, name: str) -> None:
    """Return when another node gets clients too, where there is one. ConfigError when that does not come.

    A node that runs again is not yet one that HAProxy sends clients to, and somebody may have drained it.
    """

    def is_there() -> bool:
        others = [server.status for server in runtime.servers() if server.name != name]
        return not others or "UP" in others

    if is_there():
        return
    say(f"{name}: waiting until another node gets clients")
    if not _wait(is_there, _OTHERS):
        raise ConfigError(
            [f"{name} is the only node that gets clients: `registry-cluster status` says what the others do"]
        )


def _replace(directory: str, node: dict[str, Any], runtime: Runtime | None, undo: str) -> None:
    name = str(node["name"])
    if runtime is not None:
        runtime.drain(name)
        _wait(lambda: runtime.sessions(name) == 0, _QUIET)
    with suppress(ProcessLookupError):  # it has died just now, and is started again all the same
        os.kill(node["pid"], signal.SIGTERM)
    if not _wait(lambda: _is_back(directory, name, node["pid"]), _RESTART):
        problem = f"{name} did not come back within {_RESTART:g} s: see {directory}/run/{name}.log"
        if runtime is not None:
            problem += f"; it is still drained: when it is ready, `{undo}` sends clients to it again"
        raise ConfigError([problem])
    if runtime is not None:
        runtime.ready(name)


def _see_running(node: dict[str, Any], among: Sequence[dict[str, Any]]) -> None:
    """ConfigError when a node does not run, which says what to do."""
    if _runs(node):
        return
    what = "start the cluster with `registry-cluster up`"
    if any(map(_runs, among)):
        what = "`up` starts it again by itself, and `registry-cluster status` says when it is back"
    raise ConfigError([f"{node['name']} is not running; {what}"])


def _is_back(directory: str, name: str, old: int) -> bool:
    state = read_state(directory)
    node = _node(state, name)
    return node["pid"] not in (None, old) and is_ready(node["url"], _trust(state))


def _trust(state: dict[str, Any]) -> ssl.SSLContext:
    """How the nodes are known to be those of this cluster."""
    return client_context(PeerTls(ca=state.get("ca", "")))


def _node(state: dict[str, Any], name: str) -> dict[str, Any]:
    for node in state["nodes"]:
        if node["name"] == name:
            return dict(node)
    known = ", ".join(node["name"] for node in state["nodes"])
    raise ConfigError([f"there is no node {name!r}: wanted one of {known}"])


def _runtime(state: dict[str, Any]) -> Runtime:
    socket = state["balancer"].get("socket")
    if socket is None:
        raise ConfigError(["this cluster has no HAProxy: install it, and start the cluster again"])
    if not _runs(state["balancer"]):
        raise ConfigError(["HAProxy is not running; start the cluster with `registry-cluster up`"])
    return Runtime(socket)


def _health(url: str, trust: ssl.SSLContext) -> Any:
    """The report of a node. OSError or HTTPException when nothing answers, ValueError when it is no report."""
    return json.loads(ask(f"{url}/healthz", trust, timeout=_PATIENCE)[1])  # one that is not ready says 503, and why


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
