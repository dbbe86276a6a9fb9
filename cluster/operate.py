"""Operations on a cluster that `registry-cluster up` runs: status, drain, rolling restart.

Reads `cluster.json`, asks nodes over HTTP, and talks to HAProxy's runtime socket. Starts no process: the supervisor
in local.py starts again what this stops.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from cluster.errors import ConfigError
from cluster.haproxy import Runtime
from cluster.local import STATE, is_ready
from cluster.settings import PeerTls
from cluster.supervisor import say
from cluster.tls import client_context

_QUIET = 1.0  # seconds that sessions of a drained node may still have; then it is told to stop, and finishes them
_RESTART = 60.0  # seconds for a node to stop and come back


def read_state(directory: str) -> dict[str, Any]:
    """`cluster.json` of a running cluster. ConfigError when there is none."""
    path = f"{directory}/{STATE}"
    try:
        with open(path, encoding="utf-8") as file:
            state: dict[str, Any] = json.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: {error}: is there a cluster? `registry-cluster up` makes one"]) from error
    return state


def status(directory: str) -> list[str]:
    """One line for each part of the cluster."""
    state = read_state(directory)
    trust = _trust(state)
    lines = [f"endpoint  {state['endpoint']}"]
    for node in state["nodes"]:
        health = _health(node["url"], trust)
        if health is None:
            lines.append(f"{node['name']:<9} {node['url']}  pid {node['pid']}  does not answer")
            continue
        ready = "ready" if health["ready"] else "not ready"
        lines.append(
            f"{node['name']:<9} {node['url']}  pid {node['pid']}  {ready}  version {health['node']['version']}  "
            f"uploads {health['uploads']}  storage {health['storage']['status']}"
        )
    redis, balancer = state["redis"], state["balancer"]
    lines.append(f"redis     {redis['url']}  pid {redis['pid']}  {redis['kind']}")
    lines.append(f"balancer  {balancer['kind']}  pid {balancer['pid']}")
    return lines


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
    """Restart one node after the other, each drained first, so that no request fails."""
    for node in read_state(directory)["nodes"]:
        _restart(directory, str(node["name"]))


def _restart(directory: str, name: str) -> None:
    state = read_state(directory)
    pid = _node(state, name)["pid"]
    runtime = _runtime(state) if state["balancer"]["kind"] == "haproxy" else None
    say(f"{name}: draining")
    if runtime is not None:
        runtime.drain(name)
        _wait(lambda: runtime.sessions(name) == 0, _QUIET)
    os.kill(pid, signal.SIGTERM)
    if not _wait(lambda: _is_back(directory, name, pid), _RESTART):
        raise ConfigError([f"{name} did not come back within {_RESTART:g} s: see its log in {directory}/run"])
    if runtime is not None:
        runtime.ready(name)
    say(f"{name}: restarted")


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
    return Runtime(socket)


def _health(url: str, trust: ssl.SSLContext) -> dict[str, Any] | None:
    try:
        # A URL of cluster.json.
        with urllib.request.urlopen(f"{url}/healthz", timeout=3, context=trust) as answer:  # noqa: S310
            report: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        report = json.load(error)
    except (OSError, ValueError):
        return None
    return report


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
