"""The port of authentication: what a request wants to do, who asks, and what whoever asks may do.

Owns the words that all adapters share. Knows no file, no password and no token; what a route wants is decided in
api/access.py, who is believed in htpasswd.py and tokens.py, who may what in policy.py.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

PULL, PUSH, DELETE, ALL = "pull", "push", "delete", "*"
CREDENTIAL_LIMIT = 1024  # characters; no user and password that can match need as many
NOBODY = ("", b"")  # the user and the password of whoever has no login
REPOSITORY, REGISTRY, CATALOG = "repository", "registry", "catalog"


class Access(NamedTuple):
    """One action on one resource, as token scopes spell it: `repository:team/app:pull`."""

    type: str  # REPOSITORY or REGISTRY
    name: str
    action: str


def to_detail(accesses: Sequence[Access]) -> list[dict[str, str]] | None:
    """What a refusal says it was about, as Distribution says it; None for nothing."""
    found = [{"Type": each.type, "Class": "", "Name": each.name, "Action": each.action} for each in accesses]
    return found or None


class Caller(Protocol):
    """Whoever sent a request, after they have been believed."""

    @property
    def name(self) -> str:
        """For the log; empty for an anonymous caller."""

    def may(self, access: Access) -> bool:
        """Whether this caller may do that; asked of other repositories during a mount. No I/O."""


@dataclass(slots=True)
class Question:
    """A request, as far as it matters here. What takes time to find out is found out when somebody asks."""

    authorization: str | None  # the header, as it came: not yet believed in any way
    wanted: Sequence[Access]  # all of them are needed; none for /v2/ itself
    source: Callable[[], str]  # the client's address, for limits
    origin: Callable[[], str]  # scheme and host under which the client knows us, for a realm that follows it
    began: float | None = None  # Unix time: the start of the upload that it goes on with, from a genuine state
    mounts: Access | None = None
    """Pull on the source of a mount. Needed where the client can come back with a credential that has it (tokens);
    elsewhere a caller without it is answered as if the source did not have the blob."""


class Policy(Protocol):
    """Who may do what."""

    def permits(self, user: str, access: Access) -> bool:
        """Whether it grants that; `user` is empty for whoever has no account. No I/O."""


class Authenticator(Protocol):
    """Decides about requests."""

    async def authenticate(self, question: Question) -> Caller:
        """The caller, who may do all that is wanted.

        Raises Unauthorized with the challenge in `WWW-Authenticate`, Denied when no other credential would be asked
        for, TooManyRequests after too many wrong passwords, Unavailable when the answer cannot be known now.
        """

    async def refresh(self) -> None:
        """Take in the files that have changed. Called each second, beside requests; fails with nothing."""


@dataclass(frozen=True, slots=True)
class Anyone:
    """A caller who may do everything: everybody where nothing restricts them."""

    name: str = ""

    def may(self, access: Access) -> bool:  # noqa: ARG002 - the port's signature
        """Everything."""
        return True


def read_basic(authorization: str | None) -> tuple[str, bytes] | None:
    """User and password of a Basic header (RFC 7617); None for anything else.

    NOBODY for no header, and for one in which both are empty: podman and skopeo send that where there was no login.
    """
    if not authorization:
        return NOBODY
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic" or len(encoded) > CREDENTIAL_LIMIT:
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(" "), validate=True).partition(b":")
        if not colon or (password and not user):
            return None
        return read_name(user), password
    except (binascii.Error, ValueError):
        return None


def read_name(name: bytes) -> str:
    """A user's name as a client sends it, or a file has it: UTF-8, or else Latin-1, as old tools write it."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")
