"""Who takes part in the benchmark: each registry's program, configuration and environment, as data.

The same for all: file system storage, deletes allowed, one line of log for each request and nothing else.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.support.process import Config, Distribution3, Node, Registry
from tests.support.tools import require

# Distribution logs each request a second time at level info; its access log does not depend on the level.
# The cache is on in the configuration that its image ships.
USUAL: Config = {
    "log": {"level": "warn", "accesslog": {"disabled": False}},
    "storage": {"cache": {"blobdescriptor": "inmemory"}},
}


class Zot(Registry):
    """zot, whose access log is its log at level info."""

    def program(self) -> list[str]:
        return [require("zot")]

    def _defaults(self) -> Config:
        address, _, port = self.host.rpartition(":")
        return {
            "distSpecVersion": "1.1.0",
            "storage": {"rootDirectory": self.root},
            "http": {"address": address, "port": port},
            "log": {"level": "info"},
        }


@dataclass(frozen=True)
class Contestant:
    """One kind of registry and what makes it use exactly one core."""

    kind: type[Registry]
    config: Config = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)

    def on_core(self, core: int, directory: str, program: str = "") -> Registry:
        """A registry of this kind, not started, pinned to one core; `program` replaces the usual one."""
        registry = self.kind(directory, self.config, env=self.env)
        command = [program, "serve", registry.config_path] if program else registry.command
        registry.command = [require("taskset"), "-c", str(core), *command]
        return registry


CONTESTANTS: Mapping[str, Contestant] = {
    "registry-cluster": Contestant(Node, USUAL, {"WEB_CONCURRENCY": "1"}),
    "distribution": Contestant(Distribution3, USUAL, {"GOMAXPROCS": "1"}),
    "zot": Contestant(Zot, env={"GOMAXPROCS": "1"}),
}


def two_cores() -> tuple[int, int]:
    """One core for the registries and one for the load."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("the benchmark needs two cores: one for the registry, one for the load")
    return cores[0], cores[1]
