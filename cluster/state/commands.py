"""Shared state as Redis commands. Knows the keys and the form of the values, and nothing of connections (redis.py).

What cannot be read (another version's, somebody else's, forged) is not known. Upload hints carry a MAC: a digest
state decides what a blob's digest is (promise P5), so none is taken that did not come from a node of ours.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

from cluster.oci.digest import Digest
from cluster.oci.manifest import Descriptor
from cluster.oci.reference import RepositoryName
from cluster.state import keys
from cluster.state.store import Node, Turn, UploadHint

Command = tuple[str | bytes | int, ...]
"""Its name, its key, and the rest."""
Reply = Any


class Link(Protocol):
    """A way to the servers. Every method may fail with StateError."""

    async def call(self, *command: str | bytes | int) -> Reply:
        """One command, and what it returned."""

    async def together(self, *commands: Command) -> list[Reply]:
        """Several, as one step where all keys are kept by one server; else one after the other, in this order."""

    async def ping(self) -> None:
        """Every connection answers."""

    async def close(self) -> None:
        """Drop every connection; calls under way fail."""


class RedisStore:
    """A Store on Redis."""

    def __init__(self, link: Link, secrets: Sequence[bytes]) -> None:
        self._link = link
        self._secrets = secrets  # sign with the first, accept any

    async def remember(self, name: RepositoryName, digest: Digest, descriptor: Descriptor) -> None:
        commands: list[Command] = []
        for each in {digest, descriptor.digest}:
            commands += [
                ("HSET", keys.blob(each), "digest", str(descriptor.digest), "size", descriptor.size),
                ("HSETNX", keys.blob(each), "mediatype", descriptor.media_type),
                ("HSET", keys.repository_blob(name, each), "mediatype", descriptor.media_type),
                ("SADD", keys.repository_blobs(name), str(each)),
            ]
        await self._link.together(*commands)

    async def forget(self, name: RepositoryName, digests: Sequence[Digest]) -> None:
        # The membership goes first: without it, Distribution looks at storage.
        commands: list[Command] = [("SREM", keys.repository_blobs(name), *map(str, digests))]
        for digest in digests:
            commands += [
                ("DEL", keys.repository_blob(name, digest)),
                ("HDEL", keys.blob(digest), "digest", "size", "mediatype"),
            ]
        await self._link.together(*commands)

    async def save_hint(self, uuid: str, hint: UploadHint) -> None:
        states = {algorithm: base64.b64encode(state).decode() for algorithm, state in hint.states.items()}
        value = self._seal(uuid, json.dumps({"offset": hint.offset, "states": states}))
        await self._link.call("SET", keys.upload(uuid), value, "EX", keys.UPLOAD_TTL)

    async def load_hint(self, uuid: str) -> UploadHint | None:
        try:
            fields = _fields(self._unseal(uuid, await self._link.call("GET", keys.upload(uuid))))
            states = {algorithm: base64.b64decode(state) for algorithm, state in fields["states"].items()}
            return UploadHint(int(fields["offset"]), states)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    async def drop_hint(self, uuid: str) -> None:
        await self._link.call("DEL", keys.upload(uuid))

    async def beat(self, node: Node) -> None:
        await self._link.together(
            ("SET", keys.node(node.name), json.dumps(asdict(node)), "EX", keys.NODE_TTL),
            ("SADD", keys.NODES, node.name),
            ("EXPIRE", keys.NODES, keys.NODES_TTL),
        )

    async def nodes(self) -> list[Node]:
        names = sorted(name.decode("utf-8", "replace") for name in await self._link.call("SMEMBERS", keys.NODES))
        if not names:
            return []
        values = await self._link.call("MGET", *map(keys.node, names))
        gone = [name for name, value in zip(names, values, strict=True) if value is None]
        if gone:  # each comes back with its next beat
            await self._link.call("SREM", keys.NODES, *gone)
        return [node for node in map(_node, values) if node is not None]

    async def last_turn(self, role: str) -> Turn | None:
        try:
            fields = _fields(await self._link.call("GET", keys.turn(role)))
            return Turn(str(fields["node"]), float(fields["at"]))
        except (ValueError, KeyError, TypeError):
            return None

    async def record_turn(self, role: str, turn: Turn, seconds: float) -> None:
        await self._link.call("SET", keys.turn(role), json.dumps(asdict(turn)), "PX", _milliseconds(seconds))

    async def count_failure(self, what: str, seconds: float) -> None:
        key = self._failures_key(what)
        await self._link.together(("SET", key, 0, "PX", _milliseconds(seconds), "NX"), ("INCR", key))

    async def failures(self, what: str) -> int:
        count = await self._link.call("GET", self._failures_key(what))
        return int(count) if count is not None and count.isdigit() else 0

    async def advance(self, witness: str, number: int) -> int:
        """See the port; every connection has to answer too, so that a request finds none that is broken."""
        before, *_ = await self._link.together(
            ("GET", keys.epoch(witness)),
            ("SET", keys.epoch(witness), number, "EX", keys.EPOCH_TTL),
        )
        await self._link.ping()
        return int(before) if before is not None and before.isdigit() else 0

    async def close(self) -> None:
        await self._link.close()

    def _failures_key(self, what: str) -> str:
        """`what` may hold anything that somebody typed: it is not shown to whoever reads the keys."""
        return keys.failures(hmac.digest(self._secrets[0], f"failures {what}".encode(), "sha256").hex()[:32])

    def _seal(self, uuid: str, text: str) -> str:
        return f"{_mac(self._secrets[0], uuid, text)}.{text}"

    def _unseal(self, uuid: str, value: bytes | None) -> str | None:
        """The text, if a node of ours sealed it for this upload."""
        mac, _, text = (value or b"").decode("utf-8", "replace").partition(".")
        genuine = any(hmac.compare_digest(mac.encode(), _mac(key, uuid, text).encode()) for key in self._secrets)
        return text if genuine else None


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _mac(secret: bytes, uuid: str, text: str) -> str:
    return hmac.digest(secret, f"upload hint {uuid} {text}".encode(), "sha256").hex()


def _fields(text: str | bytes | None) -> dict[str, Any]:
    """A JSON object; ValueError or TypeError for anything else."""
    try:
        fields = json.loads(text)  # type: ignore[arg-type] # None is the TypeError
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(fields, dict):
        raise TypeError("not an object")
    return fields


def _node(value: bytes | None) -> Node | None:
    """Another version's may have fields that we do not know, or lack one; what somebody else wrote has anything."""
    try:
        fields = _fields(value)
        return Node(
            name=str(fields["name"]),
            url=str(fields["url"]),
            version=str(fields["version"]),
            pid=int(fields["pid"]),
            started=float(fields["started"]),
            clock=float(fields["clock"]),
            signs=str(fields["signs"]),
            accepts=tuple(map(str, fields["accepts"])),
            storage=str(fields["storage"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
