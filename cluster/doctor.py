"""Do the nodes of a cluster agree: on their keys, their storage, their Redis, their clocks, versions and `mixed`?

Asked by `registry-cluster doctor`, and by every node that joins (joining.py). The others are those of
`cluster.nodes`, and those whose heartbeat is in Redis. One that cannot be reached is no refusal, nor is anything
about Redis.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cluster.app import data_directory
from cluster.errors import StateError
from cluster.identity import Identity, has_mark, identify
from cluster.peers import UNANSWERED, ask
from cluster.settings import Config, Redis
from cluster.state.build import open_store, servers
from cluster.state.keys import NODE_TTL
from cluster.state.store import Node
from cluster.storage import layout
from cluster.tls import client_context

_TIMEOUT = 3.0  # seconds for a node to answer, and for Redis
_LONGEST = 8.0  # seconds for all nodes: a name server may hang, and an answer never end
_CLOCK = 5.0  # seconds that two clocks may differ, the way there and back left out
_MOST_HEARTBEATS = 64  # that are followed


@dataclass(frozen=True, slots=True)
class Heartbeats:
    """What Redis says of the nodes; where there is `trouble`, it could not be asked."""

    nodes: tuple[Node, ...] = ()
    trouble: str = ""


@dataclass(slots=True)
class Finding:
    """What came out about one other node."""

    url: str
    heartbeat: Node | None = None  # by which it was found, if not by cluster.nodes
    node: dict[str, Any] | None = None  # what it says of itself; None when it does not answer
    redis: str = ""  # what it says of Redis
    clock: float = 0.0  # seconds by which its clock differs, the way there and back left out
    unreached: str = ""
    refusals: list[str] = field(default_factory=list)  # the two cannot work together
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its name, or its URL while that is not known."""
        return str(self.node["name"]) if self.node else self.heartbeat.name if self.heartbeat else self.url

    @property
    def life(self) -> tuple[str, float] | None:
        """By which two URLs are known to be those of one node: its name, and its start; None while not known."""
        if self.node:
            return self.name, float(self.node.get("started", 0))
        return (self.name, self.heartbeat.started) if self.heartbeat else None

    def precedes(self, me: Identity) -> bool:
        """Whether it answers, and started earlier. Both say the same of the two, whatever their clocks say."""
        node = self.node
        return node is not None and (node.get("started", 0), str(node.get("mark"))) < (me.started, me.mark)


def examine(config: Config, keys: Sequence[bytes]) -> tuple[list[str], bool]:
    """What somebody finds who looks with the configuration of a node: the lines to print, and whether all agree.

    `keys`: the node's key ring. Changes nothing. ConfigError.
    """
    trust = client_context(config.cluster.tls)
    heartbeats = listen(config.redis, keys)
    lines = []
    if heartbeats is not None:
        lines.append(f"redis: {f'not reached: {heartbeats.trouble}' if heartbeats.trouble else 'answers'}")
    findings = compare(*standing(config, keys), config.cluster.nodes, trust, heartbeats, starting=False)
    for finding in findings:
        lines += _told(finding)
    if not findings:
        lines.append("no other node is known: cluster.nodes names none, and no heartbeat of one is in Redis")
    return lines, not any(finding.refusals for finding in findings)


def _told(finding: Finding) -> list[str]:
    state = f"not reached: {finding.unreached}" if finding.node is None else "agrees"
    head = f"{finding.name}: {'disagrees' if finding.refusals else state}"
    return [head, *(f"  {text}" for text in (*finding.refusals, *finding.warnings))]


def standing(config: Config, keys: Sequence[bytes]) -> tuple[Identity, str | None]:
    """What the other nodes are compared with: this node's identity, and its data directory if it has one."""
    return identify(config, keys), data_directory(config) if config.storage.driver == "filesystem" else None


def listen(section: Redis | None, secrets: Sequence[bytes]) -> Heartbeats | None:
    """The heartbeats in Redis; None where none is configured. Takes a few seconds at most."""
    if section is None:
        return None
    where = servers(section)

    async def ask() -> list[Node]:
        async with asyncio.timeout(_TIMEOUT):
            store = await open_store(where, secrets)
            try:
                return await store.nodes()
            finally:
                await store.close()

    try:
        return Heartbeats(tuple(asyncio.run(ask())))
    except TimeoutError:
        return Heartbeats(trouble=f"no answer within {_TIMEOUT:g} s")
    except (StateError, OSError) as error:
        return Heartbeats(trouble=str(error) or type(error).__name__)
    except Exception as error:
        # Whatever Redis says, it is no reason not to start (promise P4).
        return Heartbeats(trouble=f"an answer was not understood: {error!r}")


def compare(
    me: Identity,
    directory: str | None,
    urls: Sequence[str],
    trust: ssl.SSLContext,
    heartbeats: Heartbeats | None = None,
    *,
    starting: bool = True,
) -> list[Finding]:
    """Ask all nodes side by side; `directory` is this node's data, None where it has none to compare.

    `trust`: by which nodes with TLS are known.
    `starting`: this is a node that joins, so another one with its name is one too many, and itself is left out.
    Otherwise it is somebody who looks with the configuration of a node, and that node is only one of those asked.
    """
    asked = [Finding(url) for url in urls]
    for beat in heartbeats.nodes if heartbeats else ():
        # A heartbeat outlives its node for some seconds: one with our name is of our former life.
        is_known = beat.url.rstrip("/") in {url.rstrip("/") for url in urls} or (starting and beat.name == me.name)
        if not is_known and len(asked) < len(urls) + _MOST_HEARTBEATS:
            asked.append(Finding(beat.url, beat))
    if not asked:
        return []
    # Whoever of `urls` has our name and our start is ourselves.
    findings = [finding for finding in _each_once(_ask_all(asked, trust)) if finding.life != (me.name, me.started)]
    for finding in findings:
        if finding.node is None:
            _compare_heartbeat(me, finding)
            continue
        finding.refusals += _compare_keys(me, finding.node)
        if starting and finding.name == me.name:
            finding.refusals.append(f"it has the name of this node, {me.name}: give each its own (cluster.name)")
        elif directory is not None:
            _compare_storage(directory, finding, finding.node)
        if finding.clock > _CLOCK:
            finding.warnings.append(f"its clock differs by {finding.clock:.0f} s")
        finding.warnings += [*_compare_versions(me, finding.node), *_compare_mixed(me, finding.node)]
        finding.warnings += _compare_redis(heartbeats, finding)
    return findings


def _each_once(asked: Sequence[Finding]) -> list[Finding]:
    """One finding for each node, however many URLs it has; those that answer come first."""
    seen: set[tuple[str, float]] = set()
    nodes = []
    for finding in sorted(asked, key=lambda finding: finding.node is None):
        if finding.life not in seen:
            nodes.append(finding)
        if finding.life is not None:
            seen.add(finding.life)
    return nodes


def _ask_all(findings: Sequence[Finding], trust: ssl.SSLContext) -> list[Finding]:
    """Ask side by side, in threads that are left behind when they take too long."""
    answers: dict[int, Finding] = {}

    def ask(number: int, finding: Finding) -> None:
        answers[number] = _ask(finding, trust)

    threads = [threading.Thread(target=ask, args=each, daemon=True) for each in enumerate(findings)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + _LONGEST
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    late = f"no answer within {_LONGEST:g} s"
    return [answers.get(number) or replace(finding, unreached=late) for number, finding in enumerate(findings)]


def _ask(finding: Finding, trust: ssl.SSLContext) -> Finding:
    """Have a node say who it is: the finding with what comes, or with the reason why nothing does."""
    question = f"{finding.url.rstrip('/')}/healthz"
    started = time.time()
    try:
        report = json.loads(ask(question, trust, timeout=_TIMEOUT)[1])
        node = report["node"]
        if not _is_node(node):
            raise ValueError("the answer is not that of a registry-cluster node")
        ended = time.time()
        difference = abs(float(node.get("clock", started)) - (started + ended) / 2)
        clock = max(difference - (ended - started), 0.0)
        return replace(finding, node=node, redis=str(report["redis"]["status"]), clock=clock)
    except (*UNANSWERED, KeyError, TypeError, RecursionError) as error:
        # Whoever has the address now may speak another protocol: that is no node, and no reason for anything.
        return replace(finding, unreached=str(error).strip() or type(error).__name__)


def _is_node(node: Any) -> bool:
    """Whether this is how a node describes itself, as far as it is compared here; other versions may say less."""
    if not isinstance(node, dict) or not isinstance(node.get("name"), str):
        return False
    numbers = (node.get("clock", 0), node.get("started", 0))
    return isinstance(node.get("accepts", []), list) and all(isinstance(one, (int, float)) for one in numbers)


def _compare_heartbeat(me: Identity, finding: Finding) -> None:
    """What a heartbeat tells of a node that does not answer: it may be gone, so nothing of this is a refusal."""
    if finding.heartbeat is None:
        return
    node = asdict(finding.heartbeat)
    finding.warnings += [*_compare_keys(me, node), *_compare_versions(me, node)]
    behind = time.time() - finding.heartbeat.clock  # it may be as old as it is kept
    if not -_CLOCK < behind < NODE_TTL + _CLOCK:
        finding.warnings.append(f"its clock differs by {abs(behind):.0f} s")


def _compare_keys(me: Identity, node: dict[str, Any]) -> list[str]:
    problems = []
    if node.get("signs") not in me.accepts:
        problems.append(
            "this node cannot read uploads that it signs: its http.secret must be in this node's http.secret "
            "or cluster.secrets"
        )
    if me.signs not in (node.get("accepts") or []):
        problems.append(
            "it cannot read uploads that this node signs: this node's http.secret must first be in its "
            "cluster.secrets"
        )
    return problems


def _compare_storage(directory: str, finding: Finding, node: dict[str, Any]) -> None:
    mark, place = node.get("mark"), f"{directory}/{layout.NODES}"
    if not mark:  # one that must not write has left none
        return
    try:
        is_here = has_mark(directory, finding.name, mark, node.get("started", 0))
    except OSError as error:
        finding.warnings.append(f"whether it works on the same storage is not known: {error}")
        return
    if not is_here:
        finding.refusals.append(
            f"it works on another storage: its mark is not in {place} (the same mount on both?)"
        )


def _compare_versions(me: Identity, node: dict[str, Any]) -> list[str]:
    theirs = node.get("version")
    return [] if theirs == me.version else [f"it runs version {theirs}, this node {me.version}"]


def _compare_mixed(me: Identity, node: dict[str, Any]) -> list[str]:
    """Our nodes may differ while the setting goes over them; Distribution finds the uploads of one kind only."""
    theirs = node.get("mixed", me.mixed)
    if theirs == me.mixed:
        return []
    with_it, without = ("it has", "this node has not") if theirs else ("this node has", "it has not")
    return [f"{with_it} cluster.mixed, {without}: Distribution nodes must not serve now"]


def _compare_redis(heartbeats: Heartbeats | None, finding: Finding) -> list[str]:
    """Whether both have the same Redis: then its heartbeat is in ours, a moment after its start."""
    has_one, node = finding.redis != "not configured", finding.node or {}
    if heartbeats is None:
        return ["it uses a Redis, this node none (redis.addrs)"] if has_one else []
    if not has_one:
        return ["it uses no Redis, this node does (redis.addrs)"]
    if finding.redis != "ok":
        return [f"it cannot use Redis ({finding.redis}): its log says why"]
    age = float(node.get("clock", 0)) - float(node.get("started", 0))
    is_there = any((beat.name, beat.started) == finding.life for beat in heartbeats.nodes)
    if is_there or heartbeats.trouble or age < NODE_TTL:
        return []
    return ["it uses another Redis: its heartbeat is not in that of this node (redis.addrs, redis.db)"]
