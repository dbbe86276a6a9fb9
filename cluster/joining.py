"""A node among the others: it joins them before it serves, and looks again while others start beside it.

A node that could not work with one that serves does not start. One that finds out in its first minute, because the
other was not to be reached before, stops; and of any two, only the one that started later: a node that serves is
never stopped by one that comes. What is compared, and with whom, is in doctor.py.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence

from cluster import doctor
from cluster.app import data_directory
from cluster.errors import ConfigError
from cluster.identity import Identity, write_mark
from cluster.settings import Config
from cluster.tls import client_context

_LONGEST = 60.0  # seconds after its start in which a node looks again
_PAUSE = 2.0  # seconds between two looks

_log = logging.getLogger(__name__)


def join(config: Config, keys: Sequence[bytes]) -> Identity:
    """Compare with the other nodes, and leave this node's mark, if it has one. ConfigError names who disagrees."""
    identity, directory = doctor.standing(config, keys)
    heartbeats = doctor.listen(config.redis, keys)
    if heartbeats is not None and heartbeats.trouble:
        _log.warning("Redis cannot be asked for the other nodes: %s", heartbeats.trouble)
    trust = client_context(config.cluster.tls)
    findings = doctor.compare(identity, directory, config.cluster.nodes, trust, heartbeats)
    for finding in findings:
        for warning in finding.warnings:
            _log.warning("node %s: %s", finding.name, warning)
    if refusals := _refusals(findings):
        raise ConfigError(refusals)
    if directory is not None and identity.mark:
        try:
            write_mark(directory, identity)
        except OSError as error:
            raise ConfigError([f"the mark of this node cannot be written: {error}"]) from error
    return identity


class Company:
    """The nodes that start beside this one. Made by the arbiter, once this node has joined."""

    def __init__(self, config: Config, keys: Sequence[bytes], identity: Identity) -> None:
        self._config = config
        self._keys = keys
        self._identity = identity
        self._trust = client_context(config.cluster.tls)  # once: the system's authorities are a large file
        self._arbiter = os.getpid()
        self._until = time.monotonic() + _LONGEST

    def watch(self) -> None:
        """In a worker: look again and again, until the node has been up for a minute.

        In a thread of its own, and not in the arbiter, which forks; one that hangs keeps no worker from ending.
        """
        threading.Thread(target=self._watch, name="company", daemon=True).start()

    def _watch(self) -> None:
        while time.monotonic() < self._until:
            try:
                refusals = self._look()
            except Exception:  # an answer that nobody foresaw: the next look may succeed
                _log.exception("the other nodes could not be compared with this one")
                refusals = []
            if refusals:
                _log.error("this node stops, as the last one that started: %s", "; ".join(refusals))
                if os.getppid() == self._arbiter:
                    os.kill(self._arbiter, signal.SIGTERM)
                return
            time.sleep(_PAUSE)

    def _look(self) -> list[str]:
        config, me = self._config, self._identity
        directory = data_directory(config) if config.storage.driver == "filesystem" else None
        heartbeats = doctor.listen(config.redis, self._keys)
        findings = doctor.compare(me, directory, config.cluster.nodes, self._trust, heartbeats)
        return _refusals([finding for finding in findings if finding.precedes(me)])


def _refusals(findings: Sequence[doctor.Finding]) -> list[str]:
    return [f"node {finding.name}: {text}" for finding in findings for text in finding.refusals]
