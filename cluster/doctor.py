"""Do the nodes of a cluster agree: on their keys, their storage, their clocks and versions?

Asked by `registry-cluster doctor`, and by every node at its start, which refuses to start when it could not work
with a node that answers. One that cannot be reached is no reason; a node that serves is never stopped by this.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cluster.identity import Identity, read_mark

_TIMEOUT = 3.0  # seconds for a node to answer
_CLOCK = 5.0  # seconds that two clocks may differ, the way there and back left out
_ANSWER_LIMIT = 64 * 1024  # bytes of an answer that are read


@dataclass(slots=True)
class Finding:
    """What came out about one other node."""

    url: str
    node: dict[str, Any] | None = None  # what it says of itself; None when it does not answer
    unreached: str = ""
    refusals: list[str] = field(default_factory=list)  # the two cannot work together
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its name, or its URL while that is not known."""
        return str(self.node["name"]) if self.node else self.url


def compare(me: Identity, directory: str | None, urls: Sequence[str], *, starting: bool = True) -> list[Finding]:
    """Ask all nodes side by side; `directory` is this node's data, None where it has none to compare.

    `starting`: this is a node that is about to serve, so another one with its name is one too many. Otherwise it is
    somebody who looks with the configuration of a node, and that node is only one of those asked.
    """
    if not urls:
        return []
    with ThreadPoolExecutor(min(len(urls), 16)) as pool:
        findings = pool.map(lambda url: _examine(me, directory, url, starting), urls)
        return [found for found in findings if found is not None]


def _examine(me: Identity, directory: str | None, url: str, starting: bool) -> Finding | None:
    """None when it is this node itself that answers."""
    finding = Finding(url)
    started = time.time()
    try:
        node = _ask(url)
    except (OSError, ValueError, KeyError) as error:
        finding.unreached = str(error) or type(error).__name__
        return finding
    if node.get("mark") == me.mark:
        return None
    finding.node = node
    _compare_keys(me, finding, node)
    if starting and node["name"] == me.name:
        finding.refusals.append(f"it has the name of this node, {me.name}: give each its own (cluster.name)")
    elif directory is not None:
        _compare_storage(directory, finding, node)
    difference = abs(float(node.get("clock", started)) - (started + time.time()) / 2)
    if difference > _CLOCK + (time.time() - started):
        finding.warnings.append(f"its clock differs by {difference:.0f} s")
    if node.get("version") != me.version:
        finding.warnings.append(f"it runs version {node.get('version')}, this node {me.version}")
    return finding


def _ask(url: str) -> dict[str, Any]:
    try:
        question = f"{url.rstrip('/')}/healthz"
        with urllib.request.urlopen(question, timeout=_TIMEOUT) as answer:  # noqa: S310 - settings take http(s) only
            text = answer.read(_ANSWER_LIMIT)
    except urllib.error.HTTPError as error:  # a node whose storage fails says 503, and still who it is
        text = error.read(_ANSWER_LIMIT)
    node = json.loads(text)["node"]
    if not isinstance(node, dict) or not isinstance(node.get("name"), str):
        raise ValueError("the answer is not that of a registry-cluster node")
    return node


def _compare_keys(me: Identity, finding: Finding, node: dict[str, Any]) -> None:
    if node.get("signs") not in me.accepts:
        finding.refusals.append(
            "this node cannot read uploads that it signs: its http.secret must be in this node's http.secret "
            "or cluster.secrets"
        )
    if me.signs not in (node.get("accepts") or []):
        finding.refusals.append(
            "it cannot read uploads that this node signs: this node's http.secret must first be in its "
            "cluster.secrets"
        )


def _compare_storage(directory: str, finding: Finding, node: dict[str, Any]) -> None:
    if read_mark(directory, finding.name) != node.get("mark"):
        finding.refusals.append(
            f"it works on another storage: its mark is not in {directory}/_cluster/nodes (the same mount on both?)"
        )
