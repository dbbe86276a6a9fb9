"""YAML, in and out: what a file or a variable says, before anybody knows which setting it is for.

Owns what becomes of YAML's guesses. A scalar that could be a number keeps its text until its setting is known; keys
that are written twice are told. No message quotes the text, which may hold a password.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar

import yaml

from cluster.config_words import HIDDEN, quoted_key
from cluster.errors import ConfigError

_QUOTED = re.compile(r"""(['"])(?:(?P<harmless>.|\\t|<[a-z ]+>)\1|.+\1)""")


class Plain(str):
    """An unquoted scalar that YAML takes for a number or a truth value.

    Only the setting knows whether the text or the value is meant: `secret: 0123` is four characters.
    """

    value: object


class _Loader(yaml.SafeLoader):
    """Keeps the text of plain scalars, takes dates for text, and notes the keys that are written twice."""

    bool_values: ClassVar[dict[str, bool]] = {**yaml.SafeLoader.bool_values, "y": True, "n": False}  # as in Go

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
        text = Plain(loader.construct_scalar(node))
        text.value = read(loader, node)
        return text

    return construct


for _tag, _constructor in (
    ("bool", _plain(_Loader.construct_yaml_bool)),
    ("int", _plain(_Loader.construct_yaml_int)),
    ("float", _plain(_Loader.construct_yaml_float)),
    *((name, _Loader.construct_yaml_str) for name in ("timestamp", "value", "merge")),
    *((name, _Loader.construct_undefined) for name in ("binary", "set", "omap", "pairs")),
):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _constructor)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("[yYnN]$"), list("yYnN"))


def parse_yaml(text: str, source: str, problems: list[str]) -> Any:
    """The values of a text; keys that are written twice are added to `problems`. ConfigError."""
    try:
        loader = _Loader(text)
        data = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        # What the parser quotes may be a piece of a password, but for single characters and the names of tokens.
        reason = _QUOTED.sub(lambda quoted: quoted[0] if quoted["harmless"] else HIDDEN, error.problem or "")
        hint = "; quote it if it is text" if re.search("token|alias|tag|node content", reason) else ""
        hint = "; indent with spaces" if "'\\t'" in reason else hint
        raise ConfigError([f"{source}{place}: not YAML: {reason}{hint}"]) from None
    except (yaml.YAMLError, ValueError, LookupError):
        raise ConfigError([f"{source}: not YAML: a character or a number that cannot be read"]) from None
    problems += [f"{source}, line {line}: {quoted_key(key)} is written twice" for line, key in loader.duplicates]
    return data


def typed(value: Any) -> Any:
    """What YAML reads, for settings that are not text and for maps of anything."""
    if isinstance(value, dict):
        return {str(key): typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return value.value if isinstance(value, Plain) else value


class _Dumper(yaml.SafeDumper):
    """Writes what `Plain` was read from."""


def _as_written(dumper: _Dumper, plain: Plain) -> yaml.ScalarNode:
    tag = dumper.resolve(yaml.ScalarNode, str(plain), (True, False))  # type: ignore[no-untyped-call]
    return yaml.ScalarNode(tag, str(plain))


_Dumper.add_representer(Plain, _as_written)


def dump(data: dict[str, Any]) -> str:
    """A tree of values as YAML, in its own order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
