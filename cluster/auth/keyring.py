"""The signing keys of the token server: a directory that all nodes share, one PEM file for each key.

Owns which key signs now, when a new one does, and how long an old one is kept. A file's name is the Unix time at
which its key was published; its id is made of the key itself. A new key verifies everywhere before it signs, and an
old one verifies until the last token that it signed has expired. What a token is, is in tokens.py.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cluster import files
from cluster.auth.keys import BadKey, PublicKey, Trust, VerifyingKey, public_jwk, thumbprint
from cluster.errors import ConfigError, Unavailable

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

ACTIVATION = 120  # seconds from publishing to signing: longer than NFS clients believe an old directory listing
_FIRST = 0  # when the first key of a directory was published: it signs at once, and two cannot both be it
_NAME = re.compile(r"([0-9]{10})\.pem")
_KEYS_LIMIT = 64  # files; more are a mistake, and every one costs time at the start
_FILE_LIMIT = 16 * 1024  # bytes
_HURRY = 1.0  # seconds between two looks that unknown keys bring about
_PATIENCE = 3.0  # seconds a request waits for such a look

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, and what tokens call it."""

    kid: str
    algorithm: str
    published: int  # Unix time
    private: PrivateKey = field(repr=False)
    public: PublicKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys of a directory at one moment, the oldest first. Never empty."""

    keys: Sequence[SigningKey]

    def signer(self, now: float) -> SigningKey:
        """The newest key that every node has had the time to see; where there is none, the oldest."""
        seen = [key for key in self.keys if key.published + ACTIVATION <= now]
        return seen[-1] if seen else self.keys[0]

    def trust(self) -> Trust:
        """What all of them verify."""
        return Trust({key.kid: VerifyingKey.of(key.public) for key in self.keys})

    def needed_until(self, kid: str, lifetime: float) -> float:
        """When the last token that this key signs has expired; never, as long as it is the newest."""
        for key, successor in zip(self.keys, self.keys[1:], strict=False):
            if key.kid == kid:
                return successor.published + ACTIVATION + lifetime
        return math.inf


def read(directory: str) -> KeyRing:
    """The key ring of a directory. ConfigError names every file that cannot be used."""
    try:
        names = sorted(name for name in os.listdir(directory) if _NAME.fullmatch(name))
    except OSError as error:
        raise ConfigError([f"{directory}: cannot be read: {error.strerror}"]) from None
    if not 0 < len(names) <= _KEYS_LIMIT:
        raise ConfigError([f"{directory}: found {len(names)} signing keys, wanted 1 to {_KEYS_LIMIT}"])
    keys: list[SigningKey] = []
    problems: list[str] = []
    for name in names:
        try:
            keys.append(_read_key(directory, name))
        except FileNotFoundError:
            continue  # retired just now
        except OSError as error:
            problems.append(f"{directory}/{name}: cannot be read: {error.strerror}")
        except BadKey as error:
            problems.append(f"{directory}/{name}: {error}")
    if problems or not keys:
        raise ConfigError(problems or [f"{directory}: the signing keys vanish while they are read"])
    return KeyRing(tuple(keys))


def provide(directory: str, algorithm: str) -> None:
    """Make the first key where there is none; of several nodes that start at once, one makes it. ConfigError."""
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        if any(_NAME.fullmatch(name) for name in os.listdir(directory)):
            return
        _publish(directory, _FIRST, algorithm)
    except FileExistsError:
        return
    except OSError as error:
        raise ConfigError([f"{directory}: cannot be made: {error.strerror}"]) from None
    _log.warning("%s was without signing keys, and has one now", directory)


def rotate(directory: str, algorithm: str, lifetime: float, now: float) -> tuple[SigningKey, list[SigningKey]]:
    """Publish a new key, and remove what nothing needs any more: the new one, and the removed. ConfigError."""
    ring = read(directory)
    if (newest := ring.keys[-1].published) >= int(now):
        when = f"the newest key was published at {_utc(newest)}, and this clock says {_utc(now)}"
        raise ConfigError([f"{directory}: {when}: rotate again from {_utc(newest + 1)} on"])
    try:
        _publish(directory, int(now), algorithm)
        added = next(key for key in read(directory).keys if key.published == int(now))
        over = [key for key in ring.keys if ring.needed_until(key.kid, lifetime) < now]
        for key in over:
            os.unlink(_path(directory, key.published))
    except FileExistsError:
        raise ConfigError([f"{directory}: somebody else has just published a key"]) from None
    except OSError as error:
        raise ConfigError([f"{directory}: cannot be changed: {error.strerror}"]) from None
    return added, over


def retire(directory: str, kid: str, lifetime: float, now: float, *, force: bool) -> None:
    """Remove a key. Without `force` only one that no living token was signed with. ConfigError."""
    ring = read(directory)
    key = next((key for key in ring.keys if key.kid == kid), None)
    if key is None:
        raise ConfigError([f"{directory}: no key has the id {kid!r}; wanted one of {_ids(ring)}"])
    if len(ring.keys) == 1:
        raise ConfigError([f"{directory}: this is the only key: rotate first"])
    until = ring.needed_until(kid, lifetime)
    if not force and until >= now:
        when = f"until {_utc(until)}" if until < math.inf else "as long as it is the newest"
        raise ConfigError([f"{kid}: tokens that it signed may be alive {when}; --force ends them with it"])
    try:
        os.unlink(_path(directory, key.published))
    except OSError as error:
        raise ConfigError([f"{directory}: cannot be changed: {error.strerror}"]) from None


def describe(ring: KeyRing, lifetime: float, now: float) -> list[str]:
    """A line for each key: its id, its algorithm, and what it does."""
    signer = ring.signer(now)
    lines = []
    for key in ring.keys:
        until = ring.needed_until(key.kid, lifetime)
        if key.kid == signer.kid:
            state = "signs"
        elif key.published > signer.published:
            state = f"verifies, signs from {_utc(key.published + ACTIVATION)}"
        elif until < now:
            state = "not needed any more: the next rotation removes it"
        else:
            state = f"verifies, needed until {_utc(until)}"
        lines.append(f"{key.kid} {key.algorithm} {state}")
    return lines


def key_set(ring: KeyRing) -> dict[str, object]:
    """The public keys (RFC 7517)."""
    return {
        "keys": [
            {**public_jwk(key.public), "kid": key.kid, "alg": key.algorithm, "use": "sig"} for key in ring.keys
        ]
    }


class WatchedRing:
    """The key ring of a directory, read again when it changes; the last good one stays."""

    def __init__(self, directory: str, *, patience: float = _PATIENCE) -> None:
        """ConfigError."""
        self._directory = directory
        self._patience = patience
        self._stamp = _stamp(directory)
        self.content = read(directory)
        self._trouble = ""
        self._looked = 0.0
        self._look: asyncio.Task[bool] | None = None

    async def refresh(self) -> bool:
        """Whether there is another content. Blocking calls are made in a thread; nothing fails."""
        stamp = await asyncio.to_thread(_stamp, self._directory)
        if stamp == self._stamp:
            return False
        try:
            content = await asyncio.to_thread(read, self._directory)
        except ConfigError as error:
            if str(error) != self._trouble:
                _log.error("the signing keys that were read before stay in force: %s", error)
            self._trouble = str(error)
            return False
        self._stamp, self._trouble = stamp, ""
        changed = content.keys != self.content.keys
        self.content = content
        return changed

    async def hurry(self) -> bool:
        """As `refresh`, for a request whose token has an unknown key, and at most once a second. Unavailable."""
        if self._look is None or (self._look.done() and time.monotonic() >= self._looked + _HURRY):
            self._looked = time.monotonic()
            self._look = asyncio.create_task(self.refresh())
        await asyncio.wait({self._look}, timeout=self._patience)
        if not self._look.done():
            raise Unavailable("the signing keys cannot be read now", headers={"Retry-After": "5"})
        return self._look.result()


def _publish(directory: str, published: int, algorithm: str) -> None:
    """A new key in its file of mode 0600, complete from the moment that it is there. FileExistsError, OSError."""
    content = _generate(algorithm).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    owner = os.stat(directory)
    for_another = owner.st_uid != os.geteuid()  # root does this for the user that the nodes run as
    files.create(_path(directory, published), content, owner=owner if for_another else None)


def _generate(algorithm: str) -> PrivateKey:
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(public_exponent=65537, key_size=3072)


def _read_key(directory: str, name: str) -> SigningKey:
    """OSError, BadKey."""
    with open(os.path.join(directory, name), "rb") as file:
        if os.fstat(file.fileno()).st_mode & stat.S_IRWXO:
            raise BadKey("everybody on this machine may read or change it: chmod 600")
        content = file.read(_FILE_LIMIT)
    try:
        private = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadKey("not a private key in PEM, without a password") from None
    if not isinstance(private, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise BadKey("a key of an unknown kind, wanted P-256, Ed25519 or RSA")
    public = private.public_key()
    able = VerifyingKey.of(public).algorithms
    algorithm = "RS256" if "RS256" in able else min(able)
    return SigningKey(thumbprint(public), algorithm, int(name.partition(".")[0]), private, public)


def _path(directory: str, published: int) -> str:
    return os.path.join(directory, f"{published:010}.pem")


def _stamp(directory: str) -> object:
    """Differs when a key was added, removed or replaced."""
    try:
        with os.scandir(directory) as entries:
            found = [(entry.name, entry.stat()) for entry in entries if _NAME.fullmatch(entry.name)]
    except OSError as error:
        return error.errno
    return sorted((name, status.st_ino, status.st_mtime_ns, status.st_mode) for name, status in found)


def _ids(ring: KeyRing) -> str:
    return ", ".join(key.kid for key in ring.keys)


def _utc(when: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))
