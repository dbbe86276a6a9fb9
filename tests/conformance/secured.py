"""A cluster of three nodes with TLS and an account, as `registry-cluster up --tls --auth` makes it.

Owns how it is started and how its password is learnt; drives no client.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.certificates import CA
from tests.failover.cluster import Cluster
from tests.support.process import eventually
from tests.support.tls import make_certificates

USER = "admin"


@dataclass(frozen=True)
class Secured:
    """A running cluster, the password of its account, and the directory of its certificates."""

    cluster: Cluster
    password: str
    certs: str

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.cluster.port}"

    @property
    def ca(self) -> str:
        return f"{self.certs}/{CA}"


@contextmanager
def secured_cluster(auth: str, mode: str = "tcp", *addresses: str, policy: str = "") -> Iterator[Secured]:
    """With accounts (htpasswd) or tokens, behind HAProxy in this mode; known by these addresses too.

    `policy` is what says who may do what. When all is done, no node may have logged the password.
    """
    ours: dict[str, object] = {"haproxy": {"mode": mode}}
    config = {"version": "0.1", "storage": {"delete": {"enabled": True}}, "cluster": ours}
    with tempfile.TemporaryDirectory(prefix="secured-") as directory:
        if policy:
            ours["policy"] = f"{directory}/policy.yml"
            Path(directory, "policy.yml").write_text(policy, encoding="utf-8")
        certs = make_certificates(f"{directory}/data/certs", *addresses)  # `up` takes those that are there
        with Cluster(directory, config=config, options=["--tls", "--auth", auth]) as cluster:
            found = eventually(lambda: re.search(r"password: +(\S+)", cluster.log()), 20, "a password is shown")
            password = found[1] if found else ""
            yield Secured(cluster, password, certs)
            for node in cluster.nodes:
                assert password not in node.log(), "a log holds the password"
