"""`registry-cluster certs`: a private certificate authority and one server certificate, as files in a directory.

The only maker of certificates; how they are served is in tls.py, where clients want the authority in trust.py.
What a directory holds: ca.crt, ca-key.pem, server.pem, server-key.pem, and haproxy.pem, the last two in one file.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster import files
from cluster.errors import ConfigError
from cluster.values import is_host_name

# No name ends in .key: docker and podman would take that for a client's, where they are given the whole directory.
CA, CA_KEY = "ca.crt", "ca-key.pem"
SERVER, SERVER_KEY = "server.pem", "server-key.pem"
BUNDLE = "haproxy.pem"

_CA_LIFE = timedelta(days=3653)
_SERVER_LIFE = timedelta(days=397)  # browsers and Go on Apple systems refuse what lives longer than 398
_BACKDATED = timedelta(hours=1)  # for clients whose clock is behind
_COMMON_NAME = 64  # characters (RFC 5280, ub-common-name)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Subject:
    """What a server certificate is good for."""

    names: tuple[str, ...]
    addresses: tuple[Address, ...]

    @property
    def hosts(self) -> list[str]:
        """All of it, as it stands in URLs and references, brackets aside."""
        return [*self.names, *map(str, self.addresses)]


def subject(names: Sequence[str], addresses: Sequence[str]) -> Subject:
    """The subject of these host names and IP addresses. ConfigError names every one that is none."""
    problems = [
        f"--name {name}: wanted a host name, such as registry.example" for name in names if not is_host_name(name)
    ]
    parsed: list[Address] = []
    for text in addresses:
        try:
            parsed.append(ipaddress.ip_address(text))
        except ValueError:
            problems.append(f"--ip {text}: wanted an IP address, such as 192.0.2.10")
    if not problems and not names and not addresses:
        problems.append("wanted at least one --name or --ip: clients check what they connect to")
    if problems:
        raise ConfigError(problems)
    return Subject(tuple(dict.fromkeys(name.lower() for name in names)), tuple(dict.fromkeys(parsed)))


def create(directory: str, what: Subject, *, force: bool = False) -> None:
    """A new authority and a certificate from it. ConfigError, also when there is one already.

    `force` replaces an authority: whoever trusted it has to be given the new one.
    """
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"{directory}: cannot be made: {error.strerror}"]) from None
    with _alone(directory):
        found = [name for name in (CA, CA_KEY, SERVER, SERVER_KEY, BUNDLE) if os.path.exists(f"{directory}/{name}")]
        if found and not force:
            raise ConfigError(
                [
                    f"{directory}: {', '.join(found)} already exist: `registry-cluster certs renew {directory}` "
                    "makes a new certificate of the same authority, --force a new authority"
                ]
            )
        key = ec.generate_private_key(ec.SECP256R1())
        authority = _authority(key)
        files.replace(f"{directory}/{CA_KEY}", _pem_of_key(key), keep=True)
        files.replace(f"{directory}/{CA}", _pem_of(authority), 0o644, keep=True)
        _issue(directory, authority, key, what)


def renew(directory: str) -> None:
    """A new certificate for what the old one is good for, from the same authority. ConfigError."""
    with _alone(directory):
        authority = _read_certificate(f"{directory}/{CA}")
        key = _read_key(f"{directory}/{CA_KEY}")
        if key.public_key() != authority.public_key():
            raise ConfigError([f"{directory}: {CA_KEY} is not the key of {CA}: restore the one that belongs to it"])
        if authority.not_valid_after_utc <= datetime.now(UTC):
            ended = f"{authority.not_valid_after_utc:%Y-%m-%d}"
            raise ConfigError([f"{directory}/{CA}: ended on {ended}: make a new one with --force"])
        _issue(directory, authority, key, look(directory)[0])


def look(directory: str) -> tuple[Subject, datetime]:
    """What the server certificate of a directory is good for, and until when. ConfigError."""
    certificate = _read_certificate(f"{directory}/{SERVER}")
    return _subject_of(certificate), certificate.not_valid_after_utc


def _subject_of(certificate: x509.Certificate) -> Subject:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ConfigError([f"{SERVER}: has no subject alternative names, wanted one that was made here"]) from None
    addresses = found.get_values_for_type(x509.IPAddress)
    return Subject(
        tuple(found.get_values_for_type(x509.DNSName)),
        tuple(address for address in addresses if isinstance(address, Address)),
    )


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    # A name of its own: two authorities of one name in a trust store would be taken for each other.
    name = _name(f"registry-cluster CA {secrets.token_hex(4)}")
    return (
        _builder(name, name, key.public_key(), datetime.now(UTC) + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _issue(
    directory: str, authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey, what: Subject
) -> None:
    """Replace key and certificate. Both are complete before the first is renamed: who reads them in between finds
    two that do not belong together, keeps what it has, and finds the new ones a moment later."""
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(datetime.now(UTC) + _SERVER_LIFE, authority.not_valid_after_utc)
    names = [*map(x509.DNSName, what.names), *map(x509.IPAddress, what.addresses)]
    certificate = (
        _builder(_name(what.hosts[0]), authority.subject, key.public_key(), until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        # Nodes that ask for client certificates are asked by HAProxy and by each other with this one.
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    public, private = _pem_of(certificate), _pem_of_key(key)
    contents = {SERVER_KEY: (private, 0o600), SERVER: (public, 0o644), BUNDLE: (public + private, 0o600)}
    aside: dict[str, str] = {}
    try:
        # The node that reads a key is often another user than the one who renews it: owner and mode stay.
        for name, (data, mode) in contents.items():
            aside[name] = files.beside(f"{directory}/{name}", data, mode, keep=True)
        for name in contents:
            os.replace(aside[name], f"{directory}/{name}")
            del aside[name]
    finally:
        for temporary in aside.values():
            os.unlink(temporary)
    files.sync(directory)


def _builder(
    name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _BACKDATED)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:_COMMON_NAME])])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


# -- Files


@contextmanager
def _alone(directory: str) -> Iterator[None]:
    """One maker of certificates in a directory: what two wrote would not fit together."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError([f"{directory}: {error.strerror}: `registry-cluster certs` makes one"]) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigError([f"{directory}: certificates are being made there: try again in a moment"]) from None
    except OSError as error:
        raise ConfigError([f"{directory}: cannot be written: {error.strerror}"]) from None
    finally:
        os.close(fd)


def _read_certificate(path: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError:
        raise ConfigError(
            [f"{path}: no certificate in PEM form, wanted one that `registry-cluster certs` made"]
        ) from None


def _read_key(path: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError([f"{path}: no EC key in PEM form, wanted the one that `registry-cluster certs` made"])
    return key


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}: `registry-cluster certs` makes one"]) from None


def _pem_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
