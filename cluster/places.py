"""Where the parts of a cluster on one machine run, when that is not simply here.

Drills (cluster/drill/) take a node's network, storage or clock away; they say by this how a part is started, so
that `registry-cluster up` can run it. Prepares no place itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """What is special about one part."""

    host: str = "127.0.0.1"  # a node's address
    around: Sequence[str] = ()  # a command that runs another one, in namespaces for instance
    arguments: Sequence[str] = ()  # more of them, behind its own
    environment: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)  # laid over a node's configuration


def read(path: str) -> dict[str, Place]:
    """Places by the names of their parts, from a JSON file. ConfigError when it is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return {name: Place(**place) for name, place in json.load(file).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError([f"{path}: {error}: wanted a JSON object of places by the names of parts"]) from error


def laid_over(config: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the nested keys of another one laid on top."""
    laid = dict(config)
    for key, value in over.items():
        inner = laid.get(key)
        laid[key] = laid_over(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return laid
