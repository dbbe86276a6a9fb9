"""The key ring in a file: the secrets that sign uploads, kept out of config.yml, of variables and of process lists.

Owns the file's form, its making and the three steps of a rotation. Each line is a role and a secret: `sign` signs,
`next` will, `past` did; all are accepted. So no step can be taken twice, and none while nodes may lack its secret.
Which nodes have read the file already is not known here: they read it when they start.
"""

from __future__ import annotations

import os
import secrets

from cluster import files
from cluster.errors import ConfigError

SIGN, NEXT, PAST = ROLES = ("sign", "next", "past")
_SECRET_BYTES = 32
_LIMIT = 64 * 1024  # bytes of a file that are read
_SHORTEST = 16  # characters of a secret

Ring = dict[str, str]  # role to secret


def keys(path: str) -> list[bytes]:
    """All secrets of a file, the one that signs first. ConfigError."""
    ring = _read(path)
    return [ring[role].encode() for role in ROLES if role in ring]


def init(path: str) -> bool:
    """Draw a secret into a new file; False when there is one, which is left as it is. ConfigError."""
    try:
        create(path, _text({SIGN: draw()}))
    except FileExistsError:
        _read(path)
        return False
    except OSError as error:
        raise ConfigError([f"{path}: cannot be written: {error.strerror or error}"]) from error
    return True


def add(path: str) -> None:
    """First step of a rotation: draw the secret that will sign. ConfigError."""
    ring = _read(path)
    if len(ring) > 1:
        raise ConfigError([f"{path}: a rotation is under way: found {_roles(ring)}, wanted sign alone"])
    _replace(path, {**ring, NEXT: draw()})


def promote(path: str) -> None:
    """Second step, when every node accepts the new secret: it signs from now on. ConfigError."""
    ring = _read(path)
    if NEXT not in ring:
        raise ConfigError([f"{path}: found {_roles(ring)}, wanted a next one: `secret add` draws it"])
    _replace(path, {SIGN: ring[NEXT], PAST: ring[SIGN]})


def drop(path: str) -> None:
    """Last step, when every node signs with the new secret: uploads that the old one signed end. ConfigError."""
    ring = _read(path)
    if PAST not in ring:
        raise ConfigError([f"{path}: found {_roles(ring)}, wanted a past one: `secret promote` makes it"])
    _replace(path, {SIGN: ring[SIGN]})


def draw() -> str:
    """A secret that nobody can guess."""
    return secrets.token_hex(_SECRET_BYTES)


def create(path: str, content: bytes) -> None:
    """A file of mode 0600, whole and durable; FileExistsError when there is one: exactly one caller makes it."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    files.create(path, content)


def _replace(path: str, ring: Ring) -> None:
    try:
        files.replace(path, _text(ring), keep=True)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be written: {error.strerror or error}"]) from error


def _read(path: str) -> Ring:
    """The ring of a file. ConfigError, which names lines and never what is in them."""
    try:
        with open(path, "rb") as file:
            text = file.read(_LIMIT).decode()
    except OSError as error:
        hint = (
            f": make it with `registry-cluster secret init {path}`" if isinstance(error, FileNotFoundError) else ""
        )
        raise ConfigError([f"{path}: cannot be read: {error.strerror or error}{hint}"]) from error
    except ValueError as error:
        raise ConfigError([f"{path}: not UTF-8 text"]) from error
    ring: Ring = {}
    for number, line in enumerate(text.splitlines(), 1):
        role, _, secret = line.strip().partition(" ")
        if not role or role.startswith("#"):
            continue
        if role not in ROLES or role in ring or len(secret.strip()) < _SHORTEST:
            wanted = f"sign, next or past, each once, with a secret of {_SHORTEST} characters or more"
            raise ConfigError([f"{path}, line {number}: wanted {wanted}"])
        ring[role] = secret.strip()
    if SIGN not in ring:
        raise ConfigError([f"{path}: no secret signs: wanted a line `sign SECRET`"])
    return ring


def _text(ring: Ring) -> bytes:
    head = "# Signs uploads. All nodes share it; `registry-cluster secret` changes it.\n"
    return (head + "".join(f"{role} {ring[role]}\n" for role in ROLES if role in ring)).encode()


def _roles(ring: Ring) -> str:
    return ", ".join(role for role in ROLES if role in ring)
