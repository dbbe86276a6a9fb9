"""The configuration: finds config.yml, lays REGISTRY_* variables over it, checks it, shows it.

All mistakes are told at once, a line for each, and no line holds a secret. This is the order of the steps, and the
old names of settings; the steps themselves are in config_yaml.py (the text), config_env.py (the variables),
config_schema.py (types and unknown keys), config_rules.py (what settings mean for each other), config_files.py (the
files that they name) and config_words.py (what is said). What the sections contain is declared in
cluster/settings.py; what the process builds from them is decided in cluster/app.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config_env import override
from cluster.config_files import unreadable
from cluster.config_rules import broken_rules, without_effect
from cluster.config_schema import Reading, fit, validate
from cluster.config_words import HIDDEN, Keys, dotted, masked, masks, named, shown
from cluster.config_yaml import dump, parse_yaml
from cluster.errors import ConfigError
from cluster.settings import DRIVERS, UNSERVED_DRIVERS, Config

PLACES = (Path("/etc/distribution/config.yml"), Path("/etc/docker/registry/config.yml"))
_OLD_NAMES: tuple[tuple[Keys, Keys], ...] = (
    (("loglevel",), ("log", "level")),
    (("storage", "cache", "layerinfo"), ("storage", "cache", "blobdescriptor")),
    (("redis", "addr"), ("redis", "addrs")),
)


@dataclass(frozen=True)
class Loaded:
    config: Config
    warnings: list[str]


def find(argument: str | None, environ: Mapping[str, str], places: Sequence[Path] = PLACES) -> Path:
    """The argument (`-` is standard input), else REGISTRY_CONFIGURATION_PATH, else as in Distribution's images."""
    written = argument or environ.get("REGISTRY_CONFIGURATION_PATH")
    if written:
        return Path("/dev/stdin" if written == "-" else written)
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(["the argument", "REGISTRY_CONFIGURATION_PATH", *map(str, places)])
    raise ConfigError([f"no configuration file; looked at {looked}"])


def load(path: Path, environ: Mapping[str, str]) -> Loaded:
    """The configuration of a file; ConfigError names everything that is wrong with it."""
    return parse(read_text(path), environ, str(path))


def parse(text: str, environ: Mapping[str, str], source: str = "config.yml") -> Loaded:
    """The configuration of a text; `source` is where its mistakes are said to be."""
    reading = _read(text, environ, source)
    if reading.problems:
        raise ConfigError(reading.problems)
    return Loaded(reading.config, reading.unknown + reading.warnings)


def check(path: Path, environ: Mapping[str, str]) -> Loaded:
    """As `load`; unknown keys are problems too, and files that cannot be read here are warned of. ConfigError."""
    reading = _read(read_text(path), environ, str(path))
    if problems := reading.problems + reading.unknown:
        raise ConfigError(problems)
    return Loaded(reading.config, reading.warnings + unreadable(reading.config))


def show(config: Config) -> str:
    """The effective configuration, as YAML that can be read back when the secrets are put in again."""
    data = config.model_dump(mode="json", exclude_none=True)
    for name in DRIVERS:
        if name != config.storage.driver:
            del data["storage"][name]
    return dump(masked(data))


def read_text(path: str | Path) -> str:
    """What stands in a file that is a configuration. ConfigError."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except ValueError:
        raise ConfigError([f"{path}: cannot be read: not UTF-8 text"]) from None


def _read(text: str, environ: Mapping[str, str], source: str) -> Reading:
    reading = Reading()
    try:
        data = parse_yaml(text, source, reading.problems)
        if not isinstance(data, dict):
            raise ConfigError(
                [f"{source}: found {shown((), data)}, wanted a section with version, storage, http ..."]
            )
        override(data, environ, reading)
        data = fit(Config, data, (), reading)
    except RecursionError:
        raise ConfigError([f"{source}: nested too deeply"]) from None
    for path in masks(data):
        what = f"found {HIDDEN}, which `config show` prints in place of a secret: wanted the secret"
        reading.problems.append(f"{named(path, reading.origins)}: {what}")
    _rename_old(data, reading)
    _see_delete(data, reading)
    if "version" not in data:
        reading.problems.append("version: missing, wanted 0.1")
    drivers = [name for name in (*DRIVERS, *UNSERVED_DRIVERS) if name in (_section(data, ("storage",)) or ())]
    failed = validate(data, reading)
    for name, line in broken_rules(reading.config, drivers, reading.origins):
        path = tuple(name.split("."))
        if not any(path[: len(loc)] == loc for loc in failed):
            reading.problems.append(f"{named(path, reading.origins)}: {line}")
    for name, line in without_effect(reading.config):
        reading.warnings.append(f"{named(tuple(name.split('.')), reading.origins)}: {line}")
    return reading


def _rename_old(data: dict[str, Any], reading: Reading) -> None:
    for old, new in _OLD_NAMES:
        holder = _section(data, old[:-1])
        value = holder.pop(old[-1], None) if holder is not None else None
        if value in (None, ""):
            continue
        origin = reading.origins.get(old, dotted(old))
        target = _section(data, new[:-1], make=True)
        if target is not None and new[-1] in target:
            reading.warnings.append(f"{origin}: ignored, {dotted(new)} is written too")
        elif target is not None:
            target[new[-1]] = [value] if new[-1] == "addrs" else value
            reading.origins[new] = origin
            if new[-1] != "addrs":  # the one spelling of v2.8, not a deprecated one
                reading.warnings.append(f"{origin}: an old name of {dotted(new)}")


def _see_delete(data: dict[str, Any], reading: Reading) -> None:
    """Distribution takes anything for `storage.delete.enabled`, and only a truth value for a yes: so do we."""
    path: Keys = ("storage", "delete", "enabled")
    holder = _section(data, path[:-1]) or {}
    if not isinstance(value := holder.get("enabled", False), bool):
        what = f"found {shown(path, value)}, which allows no deletes, as in Distribution: wanted true or false"
        reading.unknown.append(f"{named(path, reading.origins)}: {what}, without quotes")
        holder["enabled"] = False


def _section(data: dict[str, Any], path: Keys, make: bool = False) -> dict[str | int, Any] | None:
    """The map at a path, or None where there is none (`make` makes missing ones)."""
    holder: Any = data
    for key in path:
        if not isinstance(holder, dict):
            return None
        holder = holder.setdefault(key, {}) if make else holder.get(key)
    return holder if isinstance(holder, dict) else None
