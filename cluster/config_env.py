"""REGISTRY_* variables, laid over the file as Distribution does it.

Owns how the name of a variable leads to a setting: sections, maps and lists on the way, in any case of letters. The
values are YAML, and judged later with those of the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_args, get_origin

from cluster.config_schema import Reading, core, is_locked, model_of, opened
from cluster.config_yaml import parse_yaml
from cluster.errors import ConfigError
from cluster.settings import Config

_NOT_OVERRIDES = ("REGISTRY_CONFIGURATION_PATH", "REGISTRY_VERSION")
# What Kubernetes tells each pod of each Service, in variables that begin with the Service's name.
_OF_A_SERVICE = re.compile(
    r"""REGISTRY_(.+_)?
    ( SERVICE_HOST=([0-9.]+|[0-9a-f]*:[0-9a-f:.]+)
    | SERVICE_PORT(_.+)?=[0-9]+
    | PORT(_[0-9]+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://.*
    | PORT_[0-9]+_(TCP|UDP|SCTP)_(PROTO=(tcp|udp|sctp)|PORT=[0-9]+|ADDR=([0-9.]+|[0-9a-f]*:[0-9a-f:.]+))
    )""",
    re.VERBOSE,
)


class _Unrecognized(Exception):
    """No setting has the name of this variable."""


def override(data: dict[str, Any], environ: Mapping[str, str], reading: Reading) -> None:
    """Lay REGISTRY_* variables over the file, parents before their children."""
    for variable in sorted(environ):
        if not variable.startswith("REGISTRY_") or variable in _NOT_OVERRIDES:
            continue
        if _OF_A_SERVICE.fullmatch(f"{variable}={environ[variable]}"):
            reading.warnings.append(f"Ignoring {variable}: Kubernetes sets it for a Service")
            continue
        names = variable.split("_")[1:]
        path: list[str | int] = []
        try:
            value = partial(parse_yaml, environ[variable], variable, reading.problems)
            data.update(_assign(Config, data, names, value, path))
        except _Unrecognized:
            if is_locked(tuple(name.lower() for name in names)):
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
    annotation = core(annotation)
    arguments = get_args(annotation)
    if model := model_of(annotation):
        current = opened(model, current)
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
