"""TLS of the nodes: what `http.tls` means to OpenSSL, certificates that are renewed, how nodes trust each other.

Owns the contexts. Connections are the business of listener.py; certificates are made in certificates.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from typing import Any

from cluster.ciphers import ALWAYS_ON, CIPHERS
from cluster.errors import ConfigError
from cluster.settings import Config, PeerTls, Tls

_VERSIONS = {"tls1.2": ssl.TLSVersion.TLSv1_2, "tls1.3": ssl.TLSVersion.TLSv1_3}
_VERIFY = {
    "request-client-cert": ssl.CERT_NONE,  # nobody would look at what comes, so it is not asked for
    "verify-client-cert-if-given": ssl.CERT_OPTIONAL,
    "require-and-verify-client-cert": ssl.CERT_REQUIRED,
}

_LOOK = 1.0  # seconds between two looks at the files

Stamp = tuple[tuple[int, int, int], ...]

_log = logging.getLogger(__name__)


def alert_of(error: BaseException) -> bytes:
    """What a client is to be told of a handshake that failed."""
    alert: bytes = getattr(error, "alert", b"")
    return alert


class _Handshake(ssl.SSLObject):
    """Keeps the alert of a handshake that fails: event loops drop it, and clients would see a bare end."""

    outgoing: ssl.MemoryBIO

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLError as error:
            error.alert = self.outgoing.read()  # type: ignore[attr-defined]
            raise


class _ServerContext(ssl.SSLContext):
    sslobject_class = _Handshake

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **kwargs: Any
    ) -> ssl.SSLObject:
        wrapped = super().wrap_bio(incoming, outgoing, *args, **kwargs)
        if isinstance(wrapped, _Handshake):
            wrapped.outgoing = outgoing
        return wrapped


def server_context(settings: Tls) -> ssl.SSLContext:
    """What a node offers to its clients. ConfigError names the file or the setting that cannot be used."""
    context = _ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[settings.minimumtls or "tls1.2"]
    # Said to clients that ask: a registry is served over HTTP/1.1 here.
    context.set_alpn_protocols(["http/1.1"])
    _load_pair(context, settings.certificate, settings.key)
    _restrict(context, settings.ciphersuites)
    if settings.clientcas:
        for path in settings.clientcas:
            _load_authority(context, "http.tls.clientcas", path)
        context.verify_mode = _VERIFY[settings.clientauth or "require-and-verify-client-cert"]
    return context


def _load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    for name, path in (("certificate", certificate), ("key", key)):
        _see(f"http.tls.{name}", path)
    try:
        # A key with a passphrase would be asked for at a terminal that nobody watches.
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = f"http.tls.key: {key!r} is not the key of the certificate in {certificate!r}"
        else:
            problem = f"http.tls: {certificate!r} and {key!r} cannot be used: {error.reason or 'not in PEM form'}"
        raise ConfigError([problem]) from None
    except (OSError, ValueError) as error:
        raise ConfigError([f"http.tls: {certificate!r} and {key!r} cannot be used: {error}"]) from None


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase, wanted one without")


def _load_authority(context: ssl.SSLContext, setting: str, path: str) -> None:
    _see(setting, path)
    try:
        context.load_verify_locations(path)
    except OSError as error:  # ssl.SSLError is one
        reason = getattr(error, "reason", None) or error.strerror or "not in PEM form"
        raise ConfigError([f"{setting}: {path!r} cannot be used: {reason}"]) from None


def _see(setting: str, path: str) -> None:
    """OpenSSL does not say which file it could not read."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ConfigError([f"{setting}: {path!r} cannot be read: {error.strerror}"]) from None


def _restrict(context: ssl.SSLContext, names: list[str]) -> None:
    wanted = [CIPHERS[name] for name in names if name not in ALWAYS_ON]
    if not wanted:
        return
    try:
        context.set_ciphers(":".join(wanted))
    except ssl.SSLError:
        raise ConfigError(
            [f"http.tls.ciphersuites: {', '.join(names)}: {ssl.OPENSSL_VERSION} offers none of them"]
        ) from None


class ServedCertificate:
    """The context for new connections; made anew when its files are replaced, so that a renewal needs no restart.

    Connections keep the context that they began with.
    """

    def __init__(self, settings: Tls) -> None:
        self._settings = settings
        self._stamp = self._look()
        self._misfit: Stamp | None = None  # of files that could not be loaded when they were first seen
        self.context = server_context(settings)

    async def watch(self, every: float = _LOOK) -> None:
        """Look at the files for ever, `every` so many seconds; storage that hangs stops this alone."""
        while True:
            await asyncio.sleep(every)
            try:
                await asyncio.to_thread(self.refresh)
            except Exception:
                # Whatever it is (no thread can be started, for one), the next renewal is not to be missed for it.
                _log.exception("the files of the certificate cannot be looked at, next try in %g s", every)

    def refresh(self) -> None:
        """Take files that have changed; keep the old context while they do not fit together. Blocks on storage."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        # Looked at before it is loaded: a file that is replaced meanwhile is noticed the next time.
        try:
            self.context = server_context(self._settings)
        except ConfigError as error:
            if stamp != self._misfit:  # perhaps a renewal is under way: then all of it is there the next time
                self._misfit = stamp
                return
            _log.error("the renewed certificate cannot be served, the old one still is: %s", error)
        else:
            _log.info("the renewed certificate in %s is served", self._settings.certificate)
        self._stamp = stamp

    def _look(self) -> Stamp:
        """What changes when one of the files is replaced or written to."""
        return tuple(
            _stamp(path) for path in (self._settings.certificate, self._settings.key, *self._settings.clientcas)
        )


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return status.st_mtime_ns, status.st_ino, status.st_size


class _PeerContext(ssl.SSLContext):
    """Checks for one name, where there is one, whatever the host of the URL is."""

    name = ""

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        if self.name:
            kwargs["server_hostname"] = self.name
        return super().wrap_socket(*args, **kwargs)


def client_context(settings: PeerTls) -> ssl.SSLContext:
    """How a node or a command trusts the nodes that it asks (`cluster.tls`). ConfigError."""
    context = _PeerContext(ssl.PROTOCOL_TLS_CLIENT)
    context.name = settings.name
    if settings.ca:
        _load_authority(context, "cluster.tls.ca", settings.ca)
    else:
        context.load_default_certs()
    if settings.certificate:
        _see("cluster.tls.certificate", settings.certificate)
        try:
            context.load_cert_chain(settings.certificate, password=_no_passphrase)
        except (OSError, ValueError) as error:
            problem = (
                f"cluster.tls.certificate: {settings.certificate!r}: {error}, wanted a certificate and its key"
            )
            raise ConfigError([problem]) from None
    return context


def is_served(config: Config) -> bool:
    """Whether this node speaks TLS."""
    return bool(config.http.tls and config.http.tls.certificate)
