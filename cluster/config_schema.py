"""A tree of values against the schema of cluster/settings.py: into its types, then into its models.

Owns which unknown keys are mistakes and which only warnings, and the words for a value of the wrong type. What no
single value shows is in config_rules.py.
"""

from __future__ import annotations

import difflib
import types
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from cluster.config_words import Keys, dotted, named, shown
from cluster.config_yaml import typed
from cluster.settings import Config, Section

_LOCKS: tuple[Keys, ...] = (
    ("auth",),
    ("cluster", "policy"),
    ("cluster", "tokenserver"),
    ("http", "tls"),
    ("proxy",),
    ("middleware",),
)


@dataclass
class Reading:
    """What one pass over a configuration gathers."""

    problems: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    origins: dict[Keys, str] = field(default_factory=dict)  # the variable or old name that a value came by
    config: Config = field(default_factory=Config)


def core(annotation: Any) -> Any:
    """The annotation without Optional and Annotated."""
    while (origin := get_origin(annotation)) in (Annotated, Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        if origin is not Annotated and len(members) > 1:
            break
        annotation = members[0]
    return annotation


def model_of(annotation: Any) -> type[Section] | None:
    """The section that an annotation (without Optional) stands for, if it is one."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def opened(model: type[Section], value: Any) -> Any:
    """The keys below a section, whose short forms are nothing at all and, for some, a name."""
    if value is None:
        return {}
    return {str(value): {}} if model.named and isinstance(value, str) else value


def fit(annotation: Any, value: Any, path: Keys, reading: Reading) -> Any:
    """`value` in the types that the schema asks for where YAML leaves a choice; unknown keys are left out."""
    annotation = core(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if model := model_of(annotation):
        value = opened(model, value)
        return _fit_section(model, value, path, reading) if isinstance(value, dict) else typed(value)
    if origin in (dict, list) and value is None:
        return origin()
    if origin is list and isinstance(value, list):
        return [fit(arguments[0], item, (*path, index), reading) for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {str(key): fit(arguments[1], item, (*path, str(key)), reading) for key, item in value.items()}
    text = annotation is str or (origin is Literal and all(isinstance(choice, str) for choice in arguments))
    return str(value) if text and isinstance(value, str) else typed(value)


def _fit_section(model: type[Section], value: dict[Any, Any], path: Keys, reading: Reading) -> dict[str, Any]:
    fitted = {}
    for key, item in value.items():
        known = model.model_fields.get(str(key))
        if known is None:
            _report_unknown(model, (*path, str(key)), reading)
            continue
        inner = fit(known.annotation, item, (*path, str(key)), reading)
        if inner is not None:  # as in Go, null leaves the default
            fitted[str(key)] = inner
    return fitted


def _report_unknown(model: type[Section], path: Keys, reading: Reading) -> None:
    near = difflib.get_close_matches(str(path[-1]).lower(), model.model_fields, n=1)
    meant = (*path[:-1], *near)
    locked = is_locked(path) or (bool(near) and is_locked(meant))
    line = f"{named(path, reading.origins)}: unknown key" + (f", did you mean {dotted(meant)}?" if near else "")
    (reading.problems if locked else reading.unknown).append(line)


def is_locked(path: Keys) -> bool:
    """Whether a mistake here may leave open what should be shut."""
    return any(path[: len(lock)] == lock for lock in _LOCKS)


def validate(data: dict[str, Any], reading: Reading) -> list[Keys]:
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


def _wrong(loc: Keys, error: Any, reading: Reading) -> str:
    context = {key: str(value).replace("'", '"') for key, value in error.get("ctx", {}).items()}
    wanted = _WANTED.get(error["type"], "{msg}").format(msg=error["msg"], **context)
    place = tuple(key for key in loc if key != "[key]")
    return f"{named(place, reading.origins)}: found {shown(place, error['input'])}, wanted {wanted}"
