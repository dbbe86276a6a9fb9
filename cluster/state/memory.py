"""Shared state in this process's memory: the twin of tests. What has expired is noticed when it is read."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from cluster.oci.digest import Digest
from cluster.oci.manifest import Descriptor
from cluster.oci.reference import RepositoryName
from cluster.state import keys
from cluster.state.store import Node, Turn, UploadHint


class MemoryStore:
    """A Store whose keys are a dictionary."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._values: dict[str, tuple[Any, float]] = {}  # with the time it is forgotten at

    def flush(self) -> None:
        """Lose everything."""
        self._values.clear()

    def _set(self, key: str, value: Any, ttl: float = float("inf")) -> None:
        self._values[key] = (value, self._now() + ttl)

    def _get(self, key: str) -> Any:
        value, until = self._values.get(key, (None, 0.0))
        return value if self._now() < until else None

    async def remember(self, name: RepositoryName, digest: Digest, descriptor: Descriptor) -> None:
        known = Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)
        for each in {digest, descriptor.digest}:
            self._set(keys.repository_blob(name, each), known)

    def descriptor(self, name: RepositoryName, digest: Digest) -> Descriptor | None:
        """What was remembered, as a Distribution node would see it."""
        known: Descriptor | None = self._get(keys.repository_blob(name, digest))
        return known

    async def forget(self, name: RepositoryName, digests: Sequence[Digest]) -> None:
        for digest in digests:
            self._values.pop(keys.repository_blob(name, digest), None)

    async def save_hint(self, uuid: str, hint: UploadHint) -> None:
        self._set(keys.upload(uuid), hint, keys.UPLOAD_TTL)

    async def load_hint(self, uuid: str) -> UploadHint | None:
        hint: UploadHint | None = self._get(keys.upload(uuid))
        return hint

    async def drop_hint(self, uuid: str) -> None:
        self._values.pop(keys.upload(uuid), None)

    async def beat(self, node: Node) -> None:
        self._set(keys.node(node.name), node, keys.NODE_TTL)

    async def nodes(self) -> list[Node]:
        found = [self._get(key) for key in sorted(self._values) if key.startswith(keys.node(""))]
        return [node for node in found if node is not None]

    async def last_turn(self, role: str) -> Turn | None:
        turn: Turn | None = self._get(keys.turn(role))
        return turn

    async def record_turn(self, role: str, turn: Turn, seconds: float) -> None:
        self._set(keys.turn(role), turn, seconds)

    async def count_failure(self, what: str, seconds: float) -> None:
        key = keys.failures(what)
        if (count := self._get(key)) is None:
            self._set(key, 1, seconds)
        else:
            self._values[key] = (count + 1, self._values[key][1])

    async def failures(self, what: str) -> int:
        return int(self._get(keys.failures(what)) or 0)

    async def advance(self, witness: str, number: int) -> int:
        before = int(self._get(keys.epoch(witness)) or 0)
        self._set(keys.epoch(witness), number, keys.EPOCH_TTL)
        return before

    async def close(self) -> None:
        """There is nothing to let go of."""
