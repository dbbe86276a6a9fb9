"""Passwords and the htpasswd file: what may be a password, how one is hashed, what a line of the file means.

The only importer of bcrypt. Reads and writes no file (files.py and accounts.py do), and remembers nothing. A check
takes as long as the hash was made to take, 50 ms and more: never to be done on the event loop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import bcrypt

from cluster.auth.access import read_name
from cluster.errors import ConfigError

AUTHENTICATED, ANONYMOUS = "authenticated", "anonymous"  # groups of every policy, and so no user's name
COST = 10
LOWEST_COST, HIGHEST_COST = 4, 17  # at 17 one check takes some seconds

_LONGEST = 72  # bytes: bcrypt does not look at what follows
_BCRYPT = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}")


class PasswordRefused(Exception):
    """Cannot be a password, or a user's name, or a cost; the text says why."""


@dataclass(frozen=True)
class Accounts:
    """Who is in an htpasswd file, and with which hash."""

    hashes: Mapping[str, str]
    warnings: Sequence[str] = ()  # of users who can never log in, and of names that are read with a guess

    @cached_property
    def costs(self) -> list[int]:
        """The costs of all hashes; where there is none, the one that a new hash would have."""
        return sorted(cost for cost in map(_cost, self.hashes.values()) if cost is not None) or [COST]


def parse(content: bytes) -> Accounts:
    """Read an htpasswd file: `user:hash` lines, comments, blank lines. Of two lines for a user the last one counts.

    Hashes of other kinds (MD5, SHA, crypt) and none at all match nothing, as in Distribution. ConfigError names the
    line.
    """
    hashes: dict[str, str] = {}
    warnings, problems = [], []
    for number, line in enumerate(content.split(b"\n"), 1):
        text = read_name(line).strip()
        if not text or text.startswith("#"):
            continue
        user, colon, hashed = text.partition(":")
        if not (user and colon):
            problems.append(f"line {number}: wanted user:hash")
            continue
        hashes[user] = hashed
        if read_name(line).encode() != line:
            warnings.append(f"line {number}: {user!r} is not UTF-8 text, and was read as Latin-1")
        if _cost(hashed) is None:
            why = "the hash is not one of bcrypt" if hashed else "there is no hash"
            warnings.append(f"line {number}: {user!r} cannot log in: {why}")
    if problems:
        raise ConfigError(problems)
    return Accounts(hashes, warnings)


def matches(password: bytes, hashed: str | None) -> bool:
    """Whether this is the password of a hash; False for a hash that can never match, and for None. Slow.

    What follows byte 72 is not looked at, as in Distribution: Apache's htpasswd makes hashes of longer passwords.
    """
    if b"\0" in password or hashed is None or _cost(hashed) is None:  # bcrypt takes `a, NUL, a` for `a`
        return False
    return bcrypt.checkpw(password[:_LONGEST], hashed.encode())


def placeholder(cost: int) -> str:
    """A hash that matches no password, and takes as long as any of that cost."""
    return f"$2b${cost:02}${'.' * 53}"


def is_usable(hashed: str) -> bool:
    """Whether some password can match this hash."""
    return _cost(hashed) is not None


def make(password: bytes, cost: int = COST) -> str:
    """The hash of a new password, in the form that Apache's htpasswd gives it. PasswordRefused. Slow."""
    if not password:
        raise PasswordRefused("the password is empty")
    if len(password) > _LONGEST:
        raise PasswordRefused(f"the password has {len(password)} bytes: bcrypt takes at most {_LONGEST}")
    if b"\0" in password:
        raise PasswordRefused("the password holds a NUL byte")
    if not LOWEST_COST <= cost <= HIGHEST_COST:
        raise PasswordRefused(f"cost {cost}: wanted {LOWEST_COST} to {HIGHEST_COST}")
    hashed = bcrypt.hashpw(password, bcrypt.gensalt(cost)).decode()
    return "$2y$" + hashed.removeprefix("$2b$")  # two names of one algorithm; this one every tool knows


def check_name(user: str) -> str:
    """A name that an htpasswd file and HTTP's Basic scheme (RFC 7617) can carry, and a policy. PasswordRefused."""
    if not user or len(user.encode()) > 255 or ":" in user or user.startswith("#") or user != user.strip():
        raise PasswordRefused(
            f"user {user[:80]!r}: wanted 1 to 255 bytes without a colon, a '#' at the start, or space around it"
        )
    if not user.isprintable():
        raise PasswordRefused(f"user {user[:80]!r}: holds a character that cannot be printed")
    if user in (ANONYMOUS, AUTHENTICATED):
        raise PasswordRefused(f"user {user!r}: in a policy this is a group")
    return user


def _cost(hashed: str) -> int | None:
    """The cost of a bcrypt hash that can be checked; None for anything else."""
    match = _BCRYPT.fullmatch(hashed)
    cost = int(match[1]) if match else 0
    return cost if LOWEST_COST <= cost <= HIGHEST_COST else None
