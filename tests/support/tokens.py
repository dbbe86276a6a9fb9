"""Keys, certificates and tokens as somebody else's token server makes them, and as nobody should.

Writes tokens by hand where a library would refuse to.
"""

import base64
import datetime
import json
import time
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

ISSUER, SERVICE = "auth.example", "registry.example"
Private = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def pem(key: Private) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def certificate(
    key: Private,
    name: str = "signer",
    *,
    issuer: str | None = None,
    by: Private | None = None,
    ca: bool = False,
    days: tuple[int, int] = (-1, 30),
) -> x509.Certificate:
    """A certificate; signed by itself when nobody else is named."""
    now = datetime.datetime.now(datetime.UTC)
    signer = by or key
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer or name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )


def bundle(*certificates: x509.Certificate) -> bytes:
    return b"".join(found.public_bytes(serialization.Encoding.PEM) for found in certificates)


def x5c(*certificates: x509.Certificate) -> list[str]:
    return [base64.b64encode(found.public_bytes(serialization.Encoding.DER)).decode() for found in certificates]


def claims(now: int | None = None, **changed: Any) -> dict[str, Any]:
    """What a right token says at this time, with changes; None leaves a claim out."""
    now = now or int(time.time())
    right = {
        "iss": ISSUER,
        "aud": SERVICE,
        "sub": "anna",
        "exp": now + 300,
        "nbf": now,
        "iat": now,
        "access": [{"type": "repository", "name": "team/app", "actions": ["pull", "push", "delete"]}],
        **changed,
    }
    return {name: value for name, value in right.items() if value is not None}


def token(
    key: Any, header: Mapping[str, Any], algorithm: str = "ES256", now: int | None = None, **changed: Any
) -> str:
    """A token that is signed as it says."""
    return jwt.encode(claims(now, **changed), key, algorithm, headers=dict(header))


def raw_token(header: Any, payload: Any, signer: Any = None) -> str:
    """A token of any JSON text, signed by `signer(text)`, or by nothing."""
    parts = [encoded(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in (header, payload)]
    text = ".".join(parts)
    return f"{text}.{encoded(signer(text.encode())) if signer is not None else ''}"


def es256(key: ec.EllipticCurvePrivateKey) -> Any:
    """A signer for raw tokens."""
    return lambda text: jwt.get_algorithm_by_name("ES256").sign(text, key)


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
