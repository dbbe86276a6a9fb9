"""Public keys that tokens are believed by: what each may verify, its ids, and the files that hold them.

Owns the two ids that Distribution gives a key (libtrust's fingerprint in v2.8, RFC 7638's thumbprint in v3), the
certificates of `rootcertbundle` and the key set of `jwks`. Private keys are in keyring.py, tokens in tokens.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jwt
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import verification
from jwt import algorithms

from cluster.errors import ConfigError

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

ASYMMETRIC = ("ES256", "ES384", "ES512", "EdDSA", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512")
ALL = (*ASYMMETRIC, "HS256", "HS384", "HS512")
_OF_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_OF_CURVE = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_OF_SECRET = {32: "HS256", 48: "HS384", 64: "HS512"}  # RFC 7518 section 3.2: at least as long as the hash
_RSA_BITS = 2048  # RFC 7518 section 3.3
_EXPONENT_BITS = 31  # as Go has it; a check with an exponent as long as the modulus takes 100 times as long
# RFC 7638: what a thumbprint is made of; the rest of a key is names, hints, and what is private.
_REQUIRED = {"EC": ("crv", "kty", "x", "y"), "RSA": ("e", "kty", "n"), "OKP": ("crv", "kty", "x")}
_PRIVATE = {"d", "p", "q", "dp", "dq", "qi", "oth"}
_CHAIN_LIMIT = 10  # certificates in a token
_log = logging.getLogger(__name__)
_BAD_KEY = (ValueError, TypeError, KeyError, jwt.PyJWTError, UnsupportedAlgorithm, RecursionError)


class BadKey(Exception):
    """Not a key that could verify a token; the text says why and shows nothing of it."""


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A key, and the algorithms that it may be used with: never more than its own kind."""

    key: PublicKey | bytes = field(repr=False)
    algorithms: frozenset[str]

    @classmethod
    def of(cls, key: object) -> VerifyingKey:
        """A public key with all algorithms of its kind. BadKey."""
        match key:
            case rsa.RSAPublicKey():
                return cls(_bounded(key), _OF_RSA)
            case ec.EllipticCurvePublicKey() if key.curve.name in _OF_CURVE:
                return cls(key, frozenset({_OF_CURVE[key.curve.name]}))
            case ed25519.Ed25519PublicKey():
                return cls(key, frozenset({"EdDSA"}))
        raise BadKey("a key of an unknown kind, wanted RSA, P-256, P-384, P-521 or Ed25519")


@dataclass(frozen=True)
class Trust:
    """Every key that a token may be signed with, and the certificates that may vouch for others."""

    keys: Mapping[str, VerifyingKey]  # by each id that a token may call it
    roots: verification.Store | None = None

    def by_id(self, kid: str) -> VerifyingKey | None:
        """The key of this id, if there is one."""
        return self.keys.get(kid)

    def by_key(self, jwk: Mapping[str, Any]) -> VerifyingKey | None:
        """The key that a token holds itself, if it is trusted: for its content, whatever the token calls it, or for
        a chain of certificates that it carries. BadKey.
        """
        if _PRIVATE & set(jwk):  # of which a key would be rebuilt, at great cost
            return None
        try:
            found = thumbprint(jwt.PyJWK.from_dict(dict(jwk)).key)
        except _BAD_KEY:
            return None
        if found in self.keys or jwk.get("x5c") is None:
            return self.keys.get(found)
        key = self.by_chain(jwk["x5c"])
        return key if thumbprint(key.key) == found else None  # RFC 7517 section 4.7

    def by_chain(self, chain: object) -> VerifyingKey:
        """The key of the first certificate, which the others connect with a root. BadKey."""
        if not isinstance(chain, list) or not all(isinstance(entry, str) for entry in chain):
            raise BadKey("an x5c that is not a list of certificates")
        if self.roots is None or not 0 < len(chain) <= _CHAIN_LIMIT:
            raise BadKey("a chain of certificates that nothing here can vouch for")
        try:
            ders = [base64.b64decode(text, validate=True) for text in chain]
            leaf, *others = found = [x509.load_der_x509_certificate(der) for der in ders]
            _check_work(found)
            # What browsers ask of names and purposes does not matter here; that each issuer is a CA does.
            builder = verification.PolicyBuilder().store(self.roots).time(datetime.now(UTC))
            anything = verification.ExtensionPolicy.permit_all()
            a_ca = anything.require_present(x509.BasicConstraints, verification.Criticality.AGNOSTIC, None)
            builder.extension_policies(ca_policy=a_ca, ee_policy=anything).build_client_verifier().verify(
                leaf, others
            )
            return VerifyingKey.of(leaf.public_key())
        except (*_BAD_KEY, verification.VerificationError):
            raise BadKey("a chain of certificates that does not verify") from None


def _bounded(key: rsa.RSAPublicKey) -> rsa.RSAPublicKey:
    """A key that is neither weak nor slow. BadKey."""
    if key.key_size < _RSA_BITS:
        raise BadKey(f"an RSA key of {key.key_size} bits, wanted at least {_RSA_BITS}")
    if (bits := key.public_numbers().e.bit_length()) > _EXPONENT_BITS:
        raise BadKey(f"an RSA key with a public exponent of {bits} bits, wanted at most {_EXPONENT_BITS}")
    return key


def _check_work(chain: Sequence[x509.Certificate]) -> None:
    """Refuse a chain that is costly to look at: anybody may send one, and it holds up all other requests. BadKey.

    Certificates of one subject are all tried as the issuer of each other: a hundred signatures for ten of them.
    """
    if len({certificate.subject for certificate in chain}) < len(chain):
        raise BadKey("a chain of certificates in which a subject is there twice")
    for certificate in chain:
        VerifyingKey.of(certificate.public_key())


def thumbprint(key: object) -> str:
    """RFC 7638: how v3 calls a key, and we ours. TypeError for what is no public key."""
    text = json.dumps(public_jwk(key), separators=(",", ":"))
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def public_jwk(key: object) -> dict[str, str]:
    """The required members of a public key as JSON (RFC 7517), in their order. TypeError for what is none."""
    match key:
        case rsa.RSAPublicKey():
            jwk = algorithms.RSAAlgorithm.to_jwk(key, as_dict=True)
        case ec.EllipticCurvePublicKey():
            jwk = algorithms.ECAlgorithm.to_jwk(key, as_dict=True)
        case ed25519.Ed25519PublicKey():
            jwk = algorithms.OKPAlgorithm.to_jwk(key, as_dict=True)
        case _:
            raise TypeError("a key of an unknown kind")
    return {name: jwk[name] for name in _REQUIRED[jwk["kty"]]}


def fingerprint(key: CertificatePublicKeyTypes) -> str:
    """libtrust's id, in groups of four: how v2.8 calls a key."""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    text = base64.b32encode(hashlib.sha256(der).digest()[:30]).decode()
    return ":".join(text[start : start + 4] for start in range(0, len(text), 4))


def read_bundle(content: bytes) -> Trust:
    """`rootcertbundle`: certificates in PEM, each a root for chains and a key by itself. ConfigError."""
    try:
        certificates = x509.load_pem_x509_certificates(content)
    except ValueError:
        raise ConfigError(["not a bundle of certificates in PEM (-----BEGIN CERTIFICATE-----)"]) from None
    keys: dict[str, VerifyingKey] = {}
    roots, problems = [], []
    for number, certificate in enumerate(certificates, 1):
        try:
            public = certificate.public_key()
            key = VerifyingKey.of(public)
        except (BadKey, UnsupportedAlgorithm, ValueError) as error:
            problems.append(f"certificate {number}: {error}")
        else:
            keys[thumbprint(public)] = keys[fingerprint(public)] = key
            roots.append(certificate)
    _leave_out("rootcertbundle", problems, keys)
    return Trust(keys, verification.Store(roots))


def read_jwks(content: bytes) -> Trust:
    """`jwks`: a key set (RFC 7517), each key known by its `kid` and, if public, its thumbprint. ConfigError."""
    try:
        entries = json.loads(content)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        entries = None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(['not a key set: wanted {"keys": [...]} with at least one key in it'])
    keys: dict[str, VerifyingKey] = {}
    problems = []
    for number, entry in enumerate(entries, 1):
        if isinstance(entry, dict) and _PRIVATE & set(entry):
            why = "this is a private key: put the public part here, and the private one away"
            raise ConfigError([f"key {number}: {why}"])
        try:
            kid, key = _read_jwk(entry)
            if kid in keys:
                raise BadKey("its kid is another key's too")
        except BadKey as error:
            problems.append(f"key {number}: {error}")
            continue
        keys[kid] = key
        if not isinstance(key.key, bytes):
            keys.setdefault(thumbprint(key.key), key)
    _leave_out("jwks", problems, keys)
    return Trust(keys)


def _leave_out(what: str, problems: Sequence[str], keys: Mapping[str, VerifyingKey]) -> None:
    """Warn of what is there and is no key for us (RFC 7517 section 5). ConfigError if there is nothing else.

    Whoever publishes keys for others too, or a kind that is new, must not shut out those who have the right one.
    """
    if not keys:
        raise ConfigError(problems)
    for problem in problems:
        _log.warning("%s: left out: %s", what, problem)


def _read_jwk(entry: Any) -> tuple[str, VerifyingKey]:
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str) or not entry["kid"]:
        raise BadKey("wanted an object with a kid, by which tokens name it")
    if entry.get("use", "sig") != "sig":
        raise BadKey("its use is not sig")
    try:
        key = jwt.PyJWK.from_dict({name: value for name, value in entry.items() if name != "alg"}).key
    except _BAD_KEY:
        raise BadKey("cannot be read") from None
    trusted = _secret(key) if isinstance(key, bytes) else VerifyingKey.of(key)
    if (only := entry.get("alg")) is None:
        return entry["kid"], trusted
    if not isinstance(only, str) or only not in trusted.algorithms:
        raise BadKey("its alg does not go with its kind")
    return entry["kid"], VerifyingKey(trusted.key, frozenset({only}))


def _secret(key: bytes) -> VerifyingKey:
    fitting = frozenset(name for length, name in _OF_SECRET.items() if len(key) >= length)
    if not fitting:
        raise BadKey(f"a shared secret of {len(key)} bytes, wanted at least 32")
    return VerifyingKey(key, fitting)


def together(parts: list[Trust]) -> Trust:
    """All that any of them trusts."""
    keys = {kid: key for part in reversed(parts) for kid, key in part.keys.items()}
    return Trust(keys, next((part.roots for part in parts if part.roots is not None), None))
