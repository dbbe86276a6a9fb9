"""Who a node is, for the other nodes: its name, its storage, and which uploads it can read, without its secrets.

Each start writes a mark with a number of its own to storage. Another node that sees the number over HTTP and finds
the mark on its own storage knows that the two are one. A node that must not write has none, and says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster import __version__, files
from cluster.settings import Config
from cluster.storage import layout

_SALT = b"registry-cluster: fingerprint of a key"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a node says of itself in `/healthz`."""

    name: str
    version: str
    mark: str  # drawn at the start, and on storage under the node's name; empty where nothing may be written
    signs: str  # fingerprint of the key that signs its uploads
    accepts: tuple[str, ...]  # fingerprints of all keys that it takes
    started: float  # seconds since the epoch
    mixed: bool = False  # whether it keeps uploads where Distribution finds them

    def to_dict(self) -> dict[str, Any]:
        """For JSON; with the clock, which is asked at the moment of the answer."""
        return {**asdict(self), "accepts": list(self.accepts), "clock": time.time()}


def identify(config: Config, keys: Sequence[bytes]) -> Identity:
    """The identity of a node that starts now."""
    fingerprints = tuple(fingerprint(key) for key in keys)
    mark = "" if config.storage.maintenance.readonly.enabled else secrets.token_hex(16)
    name, mixed = node_name(config), config.cluster.mixed
    return Identity(name, __version__, mark, fingerprints[0], fingerprints, time.time(), mixed)


def node_name(config: Config) -> str:
    """`cluster.name`, else the host's name and the port."""
    return config.cluster.name or f"{socket.gethostname()}-{config.http.addr.rpartition(':')[2]}"


def fingerprint(key: bytes) -> str:
    """Tells equal keys from others. Slow on purpose: it can be seen, and must not help to guess a weak secret."""
    return hashlib.scrypt(key, salt=_SALT, n=2**14, r=8, p=1, dklen=12).hex()


def mark_path(directory: str, name: str) -> str:
    """Where the mark of a node lies, below the data directory."""
    safe = "".join(char if char.isalnum() or char in "-._" else "_" for char in name)[:200]
    return f"{directory}/{layout.NODES}/{safe}"


def write_mark(directory: str, identity: Identity) -> None:
    """Leave the mark on storage, visible to whoever reads it from another node. OSError."""
    path = mark_path(directory, identity.name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    mark = {"name": identity.name, "mark": identity.mark, "started": identity.started}
    files.replace(path, json.dumps(mark).encode(), mode=0o644)


def has_mark(directory: str, name: str, mark: str, started: float) -> bool:
    """Whether the mark of this start of a node is on this storage, or was, until it made room for a later one.

    A name has one mark: a node that was restarted replaces that of its former life, which may be ending still.
    OSError when storage cannot be asked.
    """
    try:
        with open(mark_path(directory, name), encoding="ascii") as file:
            found = json.load(file)
        return bool(found["mark"] == mark or found["started"] > started)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return False
