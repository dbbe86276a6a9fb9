"""The configuration: finds config.yml, lays REGISTRY_* variables over it, checks it, shows it.

All mistakes are told at once, a line for each, and no line holds a secret. What the sections contain is declared in
cluster/settings.py; what the process builds from them is decided in cluster/app.py.
"""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from cluster.errors import ConfigError
from cluster.settings import DRIVERS, UNSERVED_DRIVERS, Config, Section, is_addr

PLACES = (Path("/etc/distribution/config.yml"), Path("/etc/docker/registry/config.yml"))
HIDDEN = "<hidden>"

Keys = tuple[str | int, ...]
_NOT_OVERRIDES = ("REGISTRY_CONFIGURATION_PATH", "REGISTRY_VERSION")
_OLD_NAMES: tuple[tuple[Keys, Keys], ...] = (
    (("loglevel",), ("log", "level")),
    (("storage", "cache", "layerinfo"), ("storage", "cache", "blobdescriptor")),
    (("redis", "addr"), ("redis", "addrs")),
)
# Where a key that nobody understood may leave open what should be shut.
_LOCKS: tuple[Keys, ...] = (
    ("auth",),
    ("cluster", "policy"),
    ("cluster", "tokenserver"),
    ("http", "tls"),
    ("proxy",),
    ("middleware",),
)
_SECRET_KEY = re.compile(
    r"passw|passphrase|secret|credential|connectionstring|(api|license|access|account|container)key", re.IGNORECASE
)
_USER_INFO = re.compile(r"(?<=://)[^/\s]*@")


@dataclass(frozen=True)
class Loaded:
    config: Config
    warnings: list[str]


@dataclass
class _Reading:
    """What one pass over a configuration gathers."""

    problems: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    origins: dict[Keys, str] = field(default_factory=dict)  # the variable or old name that a value came by
    config: Config = field(default_factory=Config)


def find(argument: str | None, environ: Mapping[str, str], places: Sequence[Path] = PLACES) -> Path:
    """The argument, else REGISTRY_CONFIGURATION_PATH, else the file where Distribution's images keep it."""
    named = argument or environ.get("REGISTRY_CONFIGURATION_PATH")
    if named:
        return Path(named)
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(["the argument", "REGISTRY_CONFIGURATION_PATH", *map(str, places)])
    raise ConfigError([f"no configuration file; looked at {looked}"])


def load(path: Path, environ: Mapping[str, str]) -> Loaded:
    """The configuration of a file; ConfigError names everything that is wrong with it."""
    return parse(_text(path), environ, str(path))


def parse(text: str, environ: Mapping[str, str], source: str = "config.yml") -> Loaded:
    """The configuration of a text; `source` is where its mistakes are said to be."""
    reading = _read(text, environ, source)
    if reading.problems:
        raise ConfigError(reading.problems)
    return Loaded(reading.config, reading.unknown + reading.warnings)


def check(path: Path, environ: Mapping[str, str]) -> list[str]:
    """Every problem of a file, unknown keys included."""
    try:
        reading = _read(_text(path), environ, str(path))
    except ConfigError as error:
        return error.problems
    return reading.problems + reading.unknown


def show(config: Config) -> str:
    """The effective configuration without its secrets, as YAML that can be read back."""
    data = config.model_dump(mode="json", exclude_none=True)
    for name in DRIVERS:
        if name != config.storage.driver:
            del data["storage"][name]
    return yaml.safe_dump(_masked(data), sort_keys=False, allow_unicode=True)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except ValueError:
        raise ConfigError([f"{path}: cannot be read: not UTF-8 text"]) from None


def _read(text: str, environ: Mapping[str, str], source: str) -> _Reading:
    reading = _Reading()
    try:
        data = _yaml(text, source, reading)
        if not isinstance(data, dict):
            raise ConfigError(
                [f"{source}: found {_found((), data)}, wanted a section with version, storage, http ..."]
            )
        _override(data, environ, reading)
        data = _fit(Config, data, (), reading)
    except RecursionError:
        raise ConfigError([f"{source}: nested too deeply"]) from None
    _rename_old(data, reading)
    if "version" not in data:
        reading.problems.append("version: missing, wanted 0.1")
    drivers = [name for name in (*DRIVERS, *UNSERVED_DRIVERS) if name in (_section(data, ("storage",)) or ())]
    failed = _validate(data, reading)
    for name, line in _broken_rules(reading.config, drivers, reading):
        path = tuple(name.split("."))
        if not any(path[: len(loc)] == loc for loc in failed):
            reading.problems.append(f"{_name(path, reading)}: {line}")
    for name, line in _without_effect(reading.config):
        reading.warnings.append(f"{_name(tuple(name.split('.')), reading)}: {line}")
    return reading


# -- YAML


class _Plain(str):
    """An unquoted scalar that YAML takes for a number or a truth value.

    Only the setting knows whether the text or the value is meant: `secret: 0123` is four characters.
    """

    value: object


class _Loader(yaml.SafeLoader):
    """Keeps the text of plain scalars, takes dates for text, and notes the keys that are written twice."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.duplicates: list[tuple[int, str]] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            if key.value in seen:
                self.duplicates.append((key.start_mark.line + 1, key.value))
            seen.add(key.value)
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        text = super().construct_scalar(node)
        text.encode()  # an escaped half of a surrogate pair is no text
        return text


def _plain(read: Callable[[_Loader, yaml.ScalarNode], object]) -> Callable[[_Loader, yaml.ScalarNode], str]:
    def construct(loader: _Loader, node: yaml.ScalarNode) -> str:
        text = _Plain(loader.construct_scalar(node))
        text.value = read(loader, node)
        return text

    return construct


for _tag, _constructor in (
    ("bool", _plain(_Loader.construct_yaml_bool)),
    ("int", _plain(_Loader.construct_yaml_int)),
    ("float", _plain(_Loader.construct_yaml_float)),
    ("timestamp", _Loader.construct_yaml_str),
    *((name, _Loader.construct_undefined) for name in ("binary", "set", "omap", "pairs")),
):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _constructor)


def _yaml(text: str, source: str, reading: _Reading) -> Any:
    try:
        loader = _Loader(text)
        data = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        # What the parser quotes may be a piece of a password.
        reason = re.sub(r"""(['"])[^<].+\1""", HIDDEN, error.problem or "")
        hint = "; quote it if it is text" if re.search("token|alias|tag", reason) else ""
        raise ConfigError([f"{source}{place}: not YAML: {reason}{hint}"]) from None
    except (yaml.YAMLError, ValueError, LookupError):
        raise ConfigError([f"{source}: not YAML: a character or a number that cannot be read"]) from None
    reading.problems += [f"{source}, line {line}: {_key(key)} is written twice" for line, key in loader.duplicates]
    return data


# -- The schema, walked


def _core(annotation: Any) -> Any:
    """The annotation without Optional and Annotated."""
    while (origin := get_origin(annotation)) in (Annotated, Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        if origin is not Annotated and len(members) > 1:
            break
        annotation = members[0]
    return annotation


def _model(annotation: Any) -> type[Section] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _opened(model: type[Section], value: Any) -> Any:
    """The keys below a section, whose short forms are nothing at all and, for some, a name."""
    if value is None:
        return {}
    return {str(value): {}} if model.named and isinstance(value, str) else value


def _fit(annotation: Any, value: Any, path: Keys, reading: _Reading) -> Any:
    """`value` in the types that the schema asks for where YAML leaves a choice; unknown keys are left out."""
    annotation = _core(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if model := _model(annotation):
        value = _opened(model, value)
        return _fit_section(model, value, path, reading) if isinstance(value, dict) else _typed(value)
    if origin in (dict, list) and value is None:
        return origin()
    if origin is list and isinstance(value, list):
        return [_fit(arguments[0], item, (*path, index), reading) for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {str(key): _fit(arguments[1], item, (*path, str(key)), reading) for key, item in value.items()}
    text = annotation is str or (origin is Literal and all(isinstance(choice, str) for choice in arguments))
    return str(value) if text and isinstance(value, str) else _typed(value)


def _fit_section(model: type[Section], value: dict[Any, Any], path: Keys, reading: _Reading) -> dict[str, Any]:
    fitted = {}
    for key, item in value.items():
        known = model.model_fields.get(str(key))
        if known is None:
            _report_unknown(model, (*path, str(key)), reading)
            continue
        inner = _fit(known.annotation, item, (*path, str(key)), reading)
        if inner is not None:  # as in Go, null leaves the default
            fitted[str(key)] = inner
    return fitted


def _typed(value: Any) -> Any:
    """What YAML reads, for settings that are not text and for maps of anything."""
    if isinstance(value, dict):
        return {str(key): _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return value.value if isinstance(value, _Plain) else value


def _report_unknown(model: type[Section], path: Keys, reading: _Reading) -> None:
    near = difflib.get_close_matches(str(path[-1]).lower(), model.model_fields, n=1)
    meant = (*path[:-1], *near)
    locked = _locked(path) or (bool(near) and _locked(meant))
    line = f"{_name(path, reading)}: unknown key" + (f", did you mean {_dotted(meant)}?" if near else "")
    (reading.problems if locked else reading.unknown).append(line)


def _locked(path: Keys) -> bool:
    return any(path[: len(lock)] == lock for lock in _LOCKS)


# -- Environment variables


class _Unrecognized(Exception):
    """No setting has the name of this variable."""


def _override(data: dict[str, Any], environ: Mapping[str, str], reading: _Reading) -> None:
    """Lay REGISTRY_* variables over the file, parents before their children."""
    for variable in sorted(environ):
        if not variable.startswith("REGISTRY_") or variable in _NOT_OVERRIDES:
            continue
        names = variable.split("_")[1:]
        path: list[str | int] = []
        try:
            value = partial(_yaml, environ[variable], variable, reading)
            data.update(_assign(Config, data, names, value, path))
        except _Unrecognized:
            if _locked(tuple(name.lower() for name in names)):
                reading.problems.append(f"{variable}: no such setting, and what it should protect may be open")
            else:
                reading.warnings.append(f"Ignoring unrecognized environment variable {variable}")
        except IndexError as error:
            reading.problems.append(f"{variable}: {error}")
        except ConfigError as error:
            reading.problems += error.problems
        else:
            reading.origins[tuple(path)] = variable


def _assign(
    annotation: Any, current: Any, names: Sequence[str], value: Callable[[], Any], path: list[str | int]
) -> Any:
    """`current` with `value` at the place that `names` lead to; `path` receives the keys on the way.

    A level of the wrong type stays as it is: it is reported later, and nothing starts.
    """
    if not names:
        return value()
    annotation = _core(annotation)
    arguments = get_args(annotation)
    if model := _model(annotation):
        current = _opened(model, current)
        fields = {model.go_names.get(key, key.upper()): key for key in model.model_fields}
        if names[0] not in fields:
            raise _Unrecognized
        key = fields[names[0]]
        inner: Any = model.model_fields[key].annotation
    elif get_origin(annotation) is list or (annotation is Any and isinstance(current, list)):
        return _assign_item(arguments[0] if arguments else Any, current or [], names, value, path)
    elif get_origin(annotation) is dict or annotation is Any:
        current = current if annotation is not Any or isinstance(current, dict) else {}
        inner = arguments[1] if arguments else Any
        key = _map_key(current or {}, names[0], keep_case=get_origin(inner) is list)  # header names keep theirs
    else:
        raise _Unrecognized
    path.append(key)
    if not isinstance(current or {}, dict):
        return current
    below = (current or {}).get(key)
    return {**(current or {}), key: _assign(inner, below, names[1:], value, path)}


def _map_key(current: Any, name: str, keep_case: bool) -> str:
    """The key of a map that a part of a variable's name means: one that is there in any case, else a new one."""
    return next(
        (str(key) for key in current if str(key).lower() == name.lower()), name if keep_case else name.lower()
    )


def _assign_item(
    annotation: Any, current: Any, names: Sequence[str], value: Callable[[], Any], path: list[str | int]
) -> Any:
    if not re.fullmatch("[0-9]{1,6}", names[0]):
        raise _Unrecognized
    index = int(names[0])
    path.append(index)
    if not isinstance(current, list):
        return current
    if index > len(current):
        raise IndexError(f"the next index of this list is {len(current)}, not {index}")
    below = current[index] if index < len(current) else None
    return [*current[:index], _assign(annotation, below, names[1:], value, path), *current[index + 1 :]]


# -- Validation and the rules between sections


def _rename_old(data: dict[str, Any], reading: _Reading) -> None:
    for old, new in _OLD_NAMES:
        holder = _section(data, old[:-1])
        value = holder.pop(old[-1], None) if holder is not None else None
        if value in (None, ""):
            continue
        origin = reading.origins.get(old, _dotted(old))
        target = _section(data, new[:-1], make=True)
        if target is not None and new[-1] in target:
            reading.warnings.append(f"{origin}: ignored, {_dotted(new)} is written too")
        elif target is not None:
            target[new[-1]] = [value] if new[-1] == "addrs" else value
            reading.origins[new] = origin
            if new[-1] != "addrs":  # the one spelling of v2.8, not a deprecated one
                reading.warnings.append(f"{origin}: an old name of {_dotted(new)}")


def _section(data: dict[str, Any], path: Keys, make: bool = False) -> dict[str | int, Any] | None:
    """The map at a path, or None where there is none (`make` makes missing ones)."""
    holder: Any = data
    for key in path:
        if not isinstance(holder, dict):
            return None
        holder = holder.setdefault(key, {}) if make else holder.get(key)
    return holder if isinstance(holder, dict) else None


def _validate(data: dict[str, Any], reading: _Reading) -> list[Keys]:
    """Build the configuration; places that fail are reported, and left out so that the rules can be checked."""
    failed: list[Keys] = []
    while True:
        try:
            reading.config = Config.model_validate(data)
            return failed
        except ValidationError as error:
            wrong = error.errors(include_url=False)
            reading.problems += [_wrong(item["loc"], item, reading) for item in wrong]
            failed += [item["loc"] for item in wrong]
            pruned = [_prune(data, item["loc"]) for item in wrong]
            if not any(pruned):
                return [*failed, ()]  # the rules would judge the defaults


def _prune(data: dict[str, Any], loc: Keys) -> bool:
    """Take away the innermost map entry of a place; False where it is gone already."""
    holder: Any = data
    entry: tuple[dict[Any, Any], Any] | None = None
    for key in loc:
        if not isinstance(holder, dict) or key == "[key]":
            break
        if key not in holder:
            return False
        entry, holder = (holder, key), holder[key]
    if entry is not None:
        del entry[0][entry[1]]
    return entry is not None


_WANTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section",
    "model_type": "a section",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "literal_error": "{expected}",
    "value_error": "{error}",
}


def _wrong(loc: Keys, error: Any, reading: _Reading) -> str:
    context = {key: str(value).replace("'", '"') for key, value in error.get("ctx", {}).items()}
    wanted = _WANTED.get(error["type"], "{msg}").format(msg=error["msg"], **context)
    place = tuple(key for key in loc if key != "[key]")
    return f"{_name(place, reading)}: found {_found(place, error['input'])}, wanted {wanted}"


def _on(items: Sequence[Any] | None) -> bool:
    """Whether a list has entries that are not switched off."""
    return any(not getattr(item, "disabled", False) for item in items or ())


_REFUSED: tuple[tuple[str, Callable[[Config], object]], ...] = (
    ("auth.silly", lambda c: c.auth.silly is not None),
    ("proxy.remoteurl", lambda c: c.proxy and c.proxy.remoteurl),
    ("middleware.registry", lambda c: c.middleware and _on(c.middleware.registry)),
    ("middleware.repository", lambda c: c.middleware and _on(c.middleware.repository)),
    ("middleware.storage", lambda c: c.middleware and _on(c.middleware.storage)),
)
_WITHOUT_EFFECT: tuple[tuple[str, Callable[[Config], object]], ...] = (
    ("log.hooks", lambda c: _on(c.log.hooks)),
    ("log.reportcaller", lambda c: c.log.reportcaller),
    ("http.http2", lambda c: c.http.http2 and not c.http.http2.disabled),
    ("http.h2c", lambda c: c.http.h2c and c.http.h2c.enabled),
    ("notifications.endpoints", lambda c: c.notifications and _on(c.notifications.endpoints)),
    ("health.file", lambda c: c.health.file),
    ("health.http", lambda c: c.health.http),
    ("health.tcp", lambda c: c.health.tcp),
    ("compatibility.schema1", lambda c: c.compatibility and c.compatibility.schema1.enabled),
    ("reporting", lambda c: c.reporting),
)


def _broken_rules(config: Config, drivers: list[str], reading: _Reading) -> Iterator[tuple[str, str]]:
    """What no single value shows: a setting, and what is wrong with it."""
    yield from _broken_storage_rules(config, drivers, reading)
    for name, written in _REFUSED:
        if written(config):
            yield name, "not supported yet; to ignore it would change who may do what, or where bytes go"
    if config.http.net == "tcp" and not is_addr(config.http.addr):
        yield "http.addr", f"found {_found((), config.http.addr)}, wanted host:port, such as :5000"
    if config.cluster.secretfile and config.http.secret:
        yield "cluster.secretfile", "written beside http.secret, wanted one of the two"
    if len(config.cluster.nodes) > 1 and not config.http.secret and not config.cluster.secretfile:
        yield "http.secret", "missing, wanted one secret that all of cluster.nodes share"
    yield from _broken_auth_rules(config)
    yield from _broken_tls_rules(config)


def _broken_auth_rules(config: Config) -> Iterator[tuple[str, str]]:
    kinds = [name for name in ("htpasswd", "token", "silly") if getattr(config.auth, name) is not None]
    if len(kinds) > 1:
        yield "auth", f"found {', '.join(kinds)}, wanted one of them"
    if (htpasswd := config.auth.htpasswd) is not None:
        if not (htpasswd.realm and htpasswd.realm.isascii() and htpasswd.realm.isprintable()):
            yield "auth.htpasswd.realm", f"found {_found((), htpasswd.realm)}, wanted a line of ASCII text"
        if not htpasswd.path:
            yield "auth.htpasswd.path", "missing, wanted the path of the file of accounts"
    elif config.cluster.policy and config.cluster.tokenserver is None:
        why = "somebody else's tokens say who may what" if config.auth.token else "nobody is asked who they are"
        yield "cluster.policy", f"wanted auth.htpasswd or cluster.tokenserver too: {why}"
    yield from _broken_token_rules(config)


def _broken_token_rules(config: Config) -> Iterator[tuple[str, str]]:
    token, server = config.auth.token, config.cluster.tokenserver
    if server is not None:
        if token is None:
            yield "cluster.tokenserver", "wanted auth.token too: nobody is asked for the tokens that it makes"
        for name in ("htpasswd", "keys"):
            if not getattr(server, name):
                yield f"cluster.tokenserver.{name}", "missing, wanted a path that all nodes share"
    if token is None:
        return
    for name in ("issuer", "service"):
        if not getattr(token, name):
            yield f"auth.token.{name}", "missing: every token has to name it"
    if not token.autoredirect and not re.match("https?://[^/]", token.realm):
        yield "auth.token.realm", f"found {_found((), token.realm)}, wanted a URL, or auth.token.autoredirect"
    if server is None and not (token.rootcertbundle or token.jwks):
        yield "auth.token", "no keys to know tokens by: wanted rootcertbundle, jwks, or cluster.tokenserver"


def _broken_tls_rules(config: Config) -> Iterator[tuple[str, str]]:
    tls = config.http.tls
    if tls is None or not tls.model_dump(exclude_defaults=True):
        return
    if tls.letsencrypt.model_dump(exclude_defaults=True):
        yield (
            "http.tls.letsencrypt",
            "not supported: have another program keep http.tls.certificate and http.tls.key, which are read again "
            "when they change",
        )
        return
    for name in ("certificate", "key"):
        if not getattr(tls, name):  # Distribution would listen without TLS
            yield f"http.tls.{name}", "missing, wanted a path: the other settings of http.tls protect nothing alone"
    if tls.clientauth and not tls.clientcas:
        yield "http.tls.clientauth", "wanted http.tls.clientcas too: there is nobody to verify certificates by"
    if tls.certificate and (plain := [url for url in config.cluster.nodes if url.startswith("http:")]):
        yield "cluster.nodes", f"found {', '.join(plain)}, wanted https: the nodes have http.tls"


def _broken_storage_rules(config: Config, drivers: list[str], reading: _Reading) -> Iterator[tuple[str, str]]:
    if not drivers:
        yield "storage", f"no driver, wanted {' or '.join(DRIVERS)}"
    if len(drivers) > 1:
        origins = {path[1]: origin for path, origin in reading.origins.items() if path[0] == "storage" and path[1:]}
        found = ", ".join(f"{name} ({origins[name]})" if name in origins else name for name in drivers)
        by_variable = [name for name in drivers if name in origins]
        how = f"; set REGISTRY_STORAGE={by_variable[-1]} too, to replace the file's" if by_variable else ""
        yield "storage", f"found {found}, wanted one driver{how}"
    for name in drivers:
        if name not in DRIVERS:
            yield f"storage.{name}", f"this driver is not supported yet, wanted {' or '.join(DRIVERS)}"
    if drivers == ["inmemory"]:
        alone = "inmemory storage lives in one process"
        if (config.cluster.workers or 1) > 1:
            yield "cluster.workers", f"found {config.cluster.workers}, wanted 1: {alone}"
        if len(config.cluster.nodes) > 1:
            yield "cluster.nodes", f"found {len(config.cluster.nodes)} nodes, wanted 1: {alone}"


def _without_effect(config: Config) -> Iterator[tuple[str, str]]:
    for name, written in _WITHOUT_EFFECT:
        if written(config):
            yield name, "not supported yet, without effect"
    if config.validation.enabled is not None:
        yield "validation.enabled", "an old setting without effect, see validation.disabled"
    if config.storage.cache.blobdescriptor == "redis" and config.redis is None:
        yield "storage.cache.blobdescriptor", "redis, but no redis section has an address"


# -- Words for people


def _key(key: str) -> str:
    return key if re.fullmatch(r"[\w.-]{1,80}", key) else json.dumps(key[:80])


def _dotted(path: Keys) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{_key(key)}" for key in path).removeprefix(".")


def _name(path: Keys, reading: _Reading) -> str:
    """A setting, with the variable or the old name that it came by."""
    origins = (reading.origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in reading.origins)
    origin = next(origins, None)
    return _dotted(path) + (f" ({origin})" if origin else "")


def _is_secret(path: Keys) -> bool:
    sent = "headers" in path and path[0] != "http"  # headers of requests carry tokens, those of answers do not
    return sent or any(isinstance(key, str) and _SECRET_KEY.search(key) for key in path)


def _found(path: Keys, value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return "a section" if isinstance(value, dict) else "a list"
    if _is_secret(path):
        return HIDDEN
    text = json.dumps(_masked(value), ensure_ascii=not str(value).isprintable(), default=repr)
    return text if len(text) <= 80 else text[:76] + '..."'


def _masked(value: Any, path: Keys = ()) -> Any:
    """A copy without secrets; what is empty shows that it is empty."""
    if isinstance(value, dict):
        return {key: _masked(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, (*path, index)) for index, item in enumerate(value)]
    if _is_secret(path) and value not in ("", None):
        return HIDDEN
    return _USER_INFO.sub(f"{HIDDEN}@", value) if isinstance(value, str) else value
