"""What `registry-cluster up --tls --auth` adds to a cluster on one machine: certificates, accounts, tokens.

Makes the files below the cluster's directory, and says what the nodes' configuration has to say of them. Starts
nothing; what the settings mean is decided where they are read.
"""

from __future__ import annotations

import os
import secrets
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from cluster import certificates
from cluster.auth import accounts, passwords
from cluster.errors import ConfigError
from cluster.settings import PeerTls
from cluster.tls import client_context
from cluster.values import is_host_name

USER = "admin"
_PASSWORD_BYTES = 18
_RENEWED_BEFORE = timedelta(days=30)
_TOKENS = "/token"
_SERVICE = "registry-cluster"  # also the issuer: the tokens of this cluster are good for it alone


@dataclass(frozen=True)
class Protection:
    """What protects a cluster below this directory, for clients that know it by `endpoint`."""

    directory: str
    tls: bool = False
    auth: Literal["", "htpasswd", "token"] = ""

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"

    @property
    def authority(self) -> str | None:
        """The certificate that clients have to trust."""
        return f"{self._certs}/{certificates.CA}" if self.tls else None

    @property
    def accounts(self) -> str:
        """The htpasswd file."""
        return f"{self.directory}/auth/htpasswd"

    def provide(self) -> str | None:
        """Make what is missing; the password of the first account if it is new. ConfigError."""
        if self.tls:
            self._provide_certificates()
        return self._provide_account() if self.auth else None

    def trust(self) -> ssl.SSLContext:
        """For requests to the nodes; after `provide`."""
        return client_context(PeerTls(ca=self.authority or ""))

    def lay_over(self, config: dict[str, Any], endpoint: str) -> None:
        """Put it into the configuration of a node. ConfigError where that has something of its own there."""
        http, ours = config.setdefault("http", {}), config.setdefault("cluster", {})
        if http.get("tls"):
            raise ConfigError(["http.tls: remove it; with --tls, `up` makes the certificates of its nodes itself"])
        if self.auth and config.get("auth"):
            raise ConfigError(["auth: the configuration says who may log in already: leave out --auth"])
        if self.tls:
            http["tls"] = {
                "certificate": f"{self._certs}/{certificates.SERVER}",
                "key": f"{self._certs}/{certificates.SERVER_KEY}",
            }
            ours["tls"] = {"ca": self.authority}
            haproxy = ours.setdefault("haproxy", {})
            if haproxy.get("mode") == "http":
                haproxy["tls"] = {"certificate": f"{self._certs}/{certificates.BUNDLE}"}
        if self.auth == "htpasswd":
            config["auth"] = {"htpasswd": {"realm": _SERVICE, "path": self.accounts}}
        if self.auth == "token":
            # Clients may know this machine by several names: they are sent to the one that they came by.
            following = {"realm": f"{endpoint}{_TOKENS}", "autoredirect": True, "autoredirectpath": _TOKENS}
            config["auth"] = {"token": {**following, "service": _SERVICE, "issuer": _SERVICE}}
            ours["tokenserver"] = {"htpasswd": self.accounts, "keys": f"{self.directory}/auth/keys"}

    @property
    def _certs(self) -> str:
        return f"{self.directory}/certs"

    def _provide_certificates(self) -> None:
        if not os.path.exists(f"{self._certs}/{certificates.SERVER}"):
            names = ["localhost", *filter(is_host_name, [socket.gethostname()])]
            certificates.create(self._certs, certificates.subject(names, ["127.0.0.1", "::1"]))
        elif certificates.look(self._certs)[1] - datetime.now(UTC) < _RENEWED_BEFORE:
            certificates.renew(self._certs)

    def _provide_account(self) -> str | None:
        os.makedirs(os.path.dirname(self.accounts), mode=0o700, exist_ok=True)
        if os.path.exists(self.accounts):
            return None
        password = secrets.token_urlsafe(_PASSWORD_BYTES)
        accounts.put(self.accounts, USER, passwords.make(password.encode()))
        return password
