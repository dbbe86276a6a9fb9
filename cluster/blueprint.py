"""What the parts of a cluster on one machine are told: the configuration of each node, and that of HAProxy.

Lays what makes a node this node of this cluster over what a person wrote for all of them, and finds what is wrong
with it before anything runs. Makes no file and starts nothing: that is local.py.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster import config, haproxy
from cluster.config_yaml import dump, parse_yaml
from cluster.errors import ConfigError
from cluster.places import Place, laid_over
from cluster.protect import Protection
from cluster.settings import DRIVERS, UNSERVED_DRIVERS

_SHOWN = 40  # characters of what is wrong


@dataclass(frozen=True)
class Blueprint:
    """One cluster, for nodes that find `environ` around them."""

    base: Mapping[str, Any]  # what a person wrote for all nodes
    nodes: Mapping[str, str]  # names to URLs
    root: str  # directory of the storage
    secret: str  # of a base that has none
    redis: str  # its address
    front: str  # the address where clients go
    endpoint: str  # its URL
    socket: str | None  # of HAProxy; None: there is none, and the nodes share the port
    protection: Protection
    places: Mapping[str, Place]
    environ: Mapping[str, str]

    def check(self) -> list[str]:
        """Warnings, if there is nothing worse. ConfigError has all problems of all parts, each once."""
        problems: dict[str, None] = {}
        warnings: dict[str, None] = {}
        for name in self.nodes:
            try:
                warnings |= dict.fromkeys(self._load(name).warnings)
            except ConfigError as error:
                problems |= dict.fromkeys(error.problems)
        if problems:
            raise ConfigError(list(problems))
        if self.socket is not None:
            self.balancer()
        return list(warnings)

    def text(self, name: str) -> str:
        """The configuration of a node, as YAML. ConfigError."""
        return dump(self._node(name))

    def balancer(self) -> str:
        """HAProxy's configuration. ConfigError."""
        settings = self._load(next(iter(self.nodes))).config.cluster
        return haproxy.render(settings, haproxy.names_of(settings))

    def _load(self, name: str) -> config.Loaded:
        around = {**self.environ, **self._place(name).environment}
        return config.parse(self.text(name), around, name)

    def _node(self, name: str) -> dict[str, Any]:
        """What the person's configuration says, and what makes it this node of this cluster."""
        node: dict[str, Any] = copy.deepcopy(dict(self.base)) or {"version": "0.1"}
        _lay_storage(node, self.root)
        node.setdefault("health", {"storagedriver": {"enabled": True, "interval": "5s", "threshold": 3}})
        http, ours = _section(node, "http"), _section(node, "cluster")
        http.update(addr=self.nodes[name].partition("://")[2], secret=http.get("secret") or self.secret)
        node["redis"] = {"addrs": [self.redis]}
        ours.update(name=name, nodes=list(self.nodes.values()))
        ours.setdefault("workers", max(1, (os.cpu_count() or 1) // len(self.nodes)))
        balancer = _section(ours, "haproxy", "cluster.haproxy")
        if self.socket is None:
            ours["sharedaddr"] = self.front
        else:
            balancer.update(bind=self.front, socket=self.socket, names=list(self.nodes))
        self.protection.lay_over(node, self.endpoint)
        return laid_over(node, self._place(name).config)

    def _place(self, part: str) -> Place:
        return self.places.get(part, Place())


def read_base(path: str) -> dict[str, Any]:
    """A configuration that all nodes are to have. ConfigError when it is not YAML of the right shape."""
    problems: list[str] = []
    base = parse_yaml(config.read_text(path), path, problems)
    if problems:
        raise ConfigError(problems)
    if not isinstance(base, dict):
        raise ConfigError([f"{path}: wanted a configuration as `serve` takes it"])
    return base


def _lay_storage(node: dict[str, Any], root: str) -> None:
    """The nodes share a directory, and no other driver has one. ConfigError where another one is written."""
    if isinstance(node.get("storage"), str):  # Distribution's short form
        node["storage"] = {node["storage"]: {}}
    if node.get("storage") is None:
        node["storage"] = {"delete": {"enabled": True}}
    storage = _section(node, "storage")
    if others := ", ".join(_others(storage)):
        raise ConfigError(
            [f"storage: found {others}, wanted filesystem: the nodes of `up` share a directory, {root}"]
        )
    storage["filesystem"] = {"rootdirectory": root}


def _others(storage: Mapping[str, Any]) -> Iterator[str]:
    return (name for name in (*DRIVERS, *UNSERVED_DRIVERS) if name in storage and name != "filesystem")


def _section(holder: dict[str, Any], key: str, name: str = "") -> dict[str, Any]:
    """A section, made where there is none. ConfigError where something else is written."""
    section = holder.get(key)
    if section is None:
        section = holder[key] = {}
    if not isinstance(section, dict):
        raise ConfigError([f"{name or key}: found {str(section)[:_SHOWN]!r}, wanted a section"])
    return section
