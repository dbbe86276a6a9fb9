"""The table of faults: what each does to a cluster, what it needs, and what clients may feel of it.

A fault is a context manager: it strikes when the block is entered, and is healed when it is left. When it strikes,
how long it stays and what is made of it is decided in run.py.
"""

from __future__ import annotations

import math
import os
import random
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import yaml

from cluster import files, operate
from cluster.drill.cluster import Cluster, Node, Trouble
from cluster.drill.meter import Kind
from cluster.drill.surroundings import Apart, Clocks, Sentinels, Setting, Stutter, Surroundings
from cluster.supervisor import signal_group

S = TypeVar("S", bound=Surroundings)

SKEW = 600
"""Seconds between the first node's clock and the last one's."""


@dataclass
class Scene:
    """What a fault is done to."""

    cluster: Cluster
    surroundings: Surroundings
    chance: random.Random

    def node(self) -> Node:
        return self.chance.choice(self.cluster.nodes)


class Promise(StrEnum):
    """What clients feel. Whatever it is, nothing that was acknowledged is lost."""

    UNNOTICED = "no request fails"
    RETRIED = "no step fails after a stock client's retries"


@dataclass(frozen=True)
class Fault:
    name: str
    text: str
    strike: Callable[[Scene], AbstractContextManager[None]]
    promise: Promise
    setting: Setting = Setting.PLAIN
    stays: bool = False
    """Whether it is there until it is healed; else it is over as soon as it has struck."""
    longest: float = math.inf
    """Seconds that it stays at most: what a client's retries can bridge, where no node can do what is asked."""
    refused: frozenset[Kind] = frozenset()
    """What cannot be done while it is there, and must be possible again as soon as it is healed."""
    anywhere: bool = True
    """Whether it can be done to any cluster of `up`, and leaves it as it was."""


def _kill(pid: int | None, what: str, cluster: Cluster) -> None:
    signal_group(cluster.running(pid, what), signal.SIGKILL)


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """A process group that stands still: alive, holding what it holds."""
    signal_group(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        signal_group(pid, signal.SIGCONT)


@contextmanager
def kill_node(scene: Scene) -> Iterator[None]:
    node = scene.node()
    _kill(node.pid, node.name, scene.cluster)
    yield


@contextmanager
def kill_all_nodes(scene: Scene) -> Iterator[None]:
    for node in scene.cluster.nodes:
        _kill(node.pid, node.name, scene.cluster)
    yield


@contextmanager
def stop_node(scene: Scene) -> Iterator[None]:
    node = scene.node()
    with _stopped(scene.cluster.running(node.pid, node.name)):
        yield


@contextmanager
def restart_nodes(scene: Scene) -> Iterator[None]:
    operate.restart_rolling(scene.cluster.directory)
    yield


@contextmanager
def kill_redis(scene: Scene) -> Iterator[None]:
    _kill(scene.cluster.redis_pid, "Redis", scene.cluster)
    yield


@contextmanager
def stop_redis(scene: Scene) -> Iterator[None]:
    with _stopped(scene.cluster.running(scene.cluster.redis_pid, "Redis")):
        yield


@contextmanager
def flush_redis(scene: Scene) -> Iterator[None]:
    with socket.create_connection(("127.0.0.1", scene.cluster.redis_port), timeout=10) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        if not (answer := connection.recv(100)).startswith(b"+OK"):
            raise Trouble(f"FLUSHALL: {answer!r}")
    yield


@contextmanager
def fail_over_redis(scene: Scene) -> Iterator[None]:
    _as(Sentinels, scene).fail_over()
    yield


@contextmanager
def kill_balancer(scene: Scene) -> Iterator[None]:
    _kill(scene.cluster.balancer_pid, "HAProxy", scene.cluster)
    yield


@contextmanager
def reload_balancer(scene: Scene) -> Iterator[None]:
    pid = scene.cluster.running(scene.cluster.balancer_pid, "HAProxy")
    os.kill(pid, signal.SIGUSR2)
    yield


@contextmanager
def rotate_secret(scene: Scene) -> Iterator[None]:
    """Add the new one everywhere, swap, drop the old one; after each step the nodes are restarted one by one."""
    new = secrets.token_hex(32)
    paths = [f"{scene.cluster.directory}/run/{node.name}.yml" for node in scene.cluster.nodes]
    with open(paths[0], encoding="utf-8") as file:
        old = str(yaml.safe_load(file)["http"]["secret"])
    for first, others in ((old, [new]), (new, [old]), (new, [])):
        for path in paths:
            _give_secrets(path, first, others)
        operate.restart_rolling(scene.cluster.directory)
    yield


def _give_secrets(path: str, first: str, others: list[str]) -> None:
    with open(path, encoding="utf-8") as file:
        config = yaml.safe_load(file)
    config["http"]["secret"] = first
    config["cluster"]["secrets"] = others
    files.replace(path, yaml.safe_dump(config, sort_keys=False).encode())


@contextmanager
def _cut(scene: Scene, line: str, nodes: Sequence[Node]) -> Iterator[None]:
    apart = _as(Apart, scene)
    for node in nodes:
        apart.cut(line, node.name)
    try:
        yield
    finally:
        for node in nodes:
            apart.join(line, node.name)


def cut_off_from_redis(scene: Scene) -> AbstractContextManager[None]:
    return _cut(scene, "redis", [scene.node()])


def redis_for_one(scene: Scene) -> AbstractContextManager[None]:
    return _cut(scene, "redis", scene.cluster.nodes[1:])


def cut_off_from_proxy(scene: Scene) -> AbstractContextManager[None]:
    return _cut(scene, "proxy", [scene.node()])


@contextmanager
def _hung(scene: Scene, nodes: Sequence[Node]) -> Iterator[None]:
    apart = _as(Apart, scene)
    for node in nodes:
        apart.hang(node.name)
    try:
        yield
    finally:
        for node in nodes:
            apart.wake(node.name)


def cut_off_from_storage(scene: Scene) -> AbstractContextManager[None]:
    return _hung(scene, [scene.node()])


def hang_storage(scene: Scene) -> AbstractContextManager[None]:
    return _hung(scene, scene.cluster.nodes)


@contextmanager
def slow_storage(scene: Scene) -> Iterator[None]:
    stutter = Stutter(_as(Apart, scene), [node.name for node in scene.cluster.nodes])
    stutter.start()
    try:
        yield
    finally:
        stutter.stop()


@contextmanager
def fill_storage(scene: Scene) -> Iterator[None]:
    apart = _as(Apart, scene)
    apart.fill()
    try:
        yield
    finally:
        apart.empty()


@contextmanager
def skew_clocks(scene: Scene) -> Iterator[None]:
    clocks, nodes = _as(Clocks, scene), scene.cluster.nodes
    step = SKEW // max(len(nodes) - 1, 1)
    for number, node in enumerate(nodes):
        clocks.set(node.name, number * step - SKEW // 2)
    try:
        yield
    finally:
        for node in nodes:
            clocks.set(node.name, 0)


def _as(kind: type[S], scene: Scene) -> S:
    """The surroundings of this fault's setting."""
    if not isinstance(scene.surroundings, kind):
        raise Trouble(f"this needs surroundings of the kind {kind.__name__}")
    return scene.surroundings


_WRITES = frozenset({Kind.PUSH, Kind.CHUNKED, Kind.TAG, Kind.DELETE})
_ALL = frozenset(Kind)

FAULTS = [
    Fault("node-kill", "kill -9 of a node, which is started again", kill_node, Promise.RETRIED),
    Fault(
        "all-nodes-kill",
        "kill -9 of all nodes at once",
        kill_all_nodes,
        Promise.RETRIED,
        refused=_ALL,
    ),
    Fault("node-stop", "a node is paused (SIGSTOP) and resumes", stop_node, Promise.RETRIED, stays=True),
    Fault("rolling-restart", "one node after the other", restart_nodes, Promise.UNNOTICED),
    Fault("redis-kill", "kill -9 of Redis, which comes back empty", kill_redis, Promise.UNNOTICED),
    Fault("redis-hang", "Redis is paused (SIGSTOP) and resumes", stop_redis, Promise.UNNOTICED, stays=True),
    Fault("redis-flush", "Redis forgets everything", flush_redis, Promise.UNNOTICED),
    Fault("haproxy-kill", "kill -9 of HAProxy, which is started again", kill_balancer, Promise.RETRIED),
    Fault("haproxy-reload", "HAProxy reloads its configuration", reload_balancer, Promise.UNNOTICED),
    Fault(
        "secret-rotation",
        "add a secret, swap, drop the old one",
        rotate_secret,
        Promise.UNNOTICED,
        anywhere=False,
    ),
    Fault(
        "redis-failover",
        "Sentinel makes the replica the master",
        fail_over_redis,
        Promise.UNNOTICED,
        Setting.SENTINELS,
    ),
    Fault(
        "redis-one-node",
        "only one node can reach Redis",
        redis_for_one,
        Promise.UNNOTICED,
        Setting.APART,
        stays=True,
    ),
    Fault(
        "redis-cut-off",
        "one node cannot reach Redis",
        cut_off_from_redis,
        Promise.UNNOTICED,
        Setting.APART,
        stays=True,
    ),
    Fault(
        "proxy-cut-off",
        "nothing passes between HAProxy and one node",
        cut_off_from_proxy,
        Promise.RETRIED,
        Setting.APART,
        stays=True,
    ),
    Fault(
        "storage-cut-off",
        "one node's storage hangs",
        cut_off_from_storage,
        Promise.RETRIED,
        Setting.APART,
        stays=True,
    ),
    Fault(
        "storage-full",
        "the storage is full for 4 s",
        fill_storage,
        Promise.RETRIED,
        Setting.APART,
        stays=True,
        longest=4.0,
        refused=_WRITES,
    ),
    Fault(
        "storage-slow",
        "the storage is stalled most of the time",
        slow_storage,
        Promise.RETRIED,
        Setting.APART,
        stays=True,
    ),
    Fault(
        "storage-hang",
        "the storage of all nodes hangs for 12 s",
        hang_storage,
        Promise.RETRIED,
        Setting.APART,
        stays=True,
        longest=12.0,
        refused=_ALL,
    ),
    Fault(
        "clock-skew",
        "the clocks of the nodes are 10 minutes apart",
        skew_clocks,
        Promise.UNNOTICED,
        Setting.CLOCKS,
        stays=True,
    ),
]
"""In the order in which `drill run all` takes them: those of one setting together."""


def named(name: str) -> Fault | None:
    return next((fault for fault in FAULTS if fault.name == name), None)
