"""What is said about settings: how one is named, and what of its value may be shown.

Owns the masking of secrets: every line about a configuration, and what `config show` prints, goes through here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "<hidden>"

_FILES = ("htpasswd", "secretfile")  # keys of files that hold secrets; where a file is may be known

Keys = tuple[str | int, ...]
Origins = Mapping[Keys, str]  # the variable or the old name that a value came by
_SECRET_KEY = re.compile(
    r"passw|passphrase|secret|credential|connectionstring|(api|license|access|account|container)key", re.IGNORECASE
)
_USER_INFO = re.compile(r"((?<=://)|^(?=[^/\s:@]*:))[^/\s]*@")  # a URL may have lost its scheme


def quoted_key(key: str) -> str:
    """A key as it is, or quoted and cut where it could be taken for something else."""
    return key if re.fullmatch(r"[\w.-]{1,80}", key) else json.dumps(key[:80])


def dotted(path: Keys) -> str:
    """A setting as people write it: `cluster.nodes[1]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{quoted_key(key)}" for key in path).removeprefix(".")


def named(path: Keys, origins: Origins) -> str:
    """A setting, with the variable or the old name that it came by."""
    origin = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), None)
    return dotted(path) + (f" ({origin})" if origin else "")


def _is_secret(path: Keys) -> bool:
    sent = "headers" in path and path[0] != "http"  # headers of requests carry tokens, those of answers do not
    return sent or any(isinstance(key, str) and key not in _FILES and _SECRET_KEY.search(key) for key in path)


def shown(path: Keys, value: Any) -> str:
    """What was found at a place, in a few words, without its secrets."""
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return "a section" if isinstance(value, dict) else "a list"
    if _is_secret(path):
        return HIDDEN
    text = json.dumps(masked(value), ensure_ascii=not str(value).isprintable(), default=repr)
    return text if len(text) <= 80 else text[:76] + '..."'


def masked(value: Any, path: Keys = ()) -> Any:
    """A copy without secrets; what is empty shows that it is empty."""
    if isinstance(value, dict):
        return {key: masked(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(item, (*path, index)) for index, item in enumerate(value)]
    if _is_secret(path) and value not in ("", None):
        return HIDDEN
    return _USER_INFO.sub(f"{HIDDEN}@", value) if isinstance(value, str) else value


def masks(value: Any, path: Keys = ()) -> Iterator[Keys]:
    """The places at which there is a mask where a secret should be."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from masks(item, (*path, key))
    if isinstance(value, str) and HIDDEN in value:
        yield path
