"""HAProxy and TLS: passed through, ended, ended and begun again; renewed under load; nodes that are not ours."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster import certificates
from cluster.settings import Cluster as Settings
from cluster.settings import Haproxy, HaproxyTls, PeerTls
from tests.failover.test_haproxy import Balancer
from tests.support.process import Node, eventually, free_port
from tests.support.redis import Certificates
from tests.support.tls import Load, TlsNode, make_certificates, push, trusting
from tests.support.tools import note

ABSOLUTE = {"http": {"relativeurls": False}, "cluster": {"workers": 1}}
PROBES = {"log": {"level": "debug"}}  # where probes are logged, too


class Site:
    """A directory with certificates, nodes on one storage, and HAProxy before them; all ends with it."""

    def __init__(self, directory: str, stack: ExitStack) -> None:
        self.directory = directory
        self.certs = make_certificates(f"{directory}/certs")
        self.nodes: dict[str, Node] = {}
        self._stack = stack

    def node(self, name: str, config: Mapping[str, Any] = ABSOLUTE) -> Node:
        """A node without TLS."""
        return self._add(name, Node(f"{self.directory}/{name}", config, root=f"{self.directory}/data"))

    def tls_node(
        self,
        name: str,
        config: Mapping[str, Any] = ABSOLUTE,
        certs: str | None = None,
        tls: Mapping[str, Any] | None = None,
    ) -> Node:
        place = f"{self.directory}/{name}"
        return self._add(name, TlsNode(place, certs or self.certs, config, root=f"{self.directory}/data", tls=tls))

    def balance(self, peer: PeerTls | None = None, *, proxy: bool = False, **haproxy: Any) -> Balancer:
        place = {"bind": f"127.0.0.1:{free_port()}", "socket": f"{self.directory}/haproxy.sock"}
        settings = Settings(proxyprotocol=proxy, tls=peer or PeerTls(), haproxy=Haproxy(**place, **haproxy))
        balancer = Balancer(self.directory, settings, {name: node.url for name, node in self.nodes.items()})
        self._stack.callback(balancer.start().kill)
        return balancer

    def ends_tls(self, peer: PeerTls | None = None) -> Balancer:
        """HAProxy that ends TLS with the certificate of this site."""
        return self.balance(peer, mode="http", tls=HaproxyTls(certificate=f"{self.certs}/{certificates.BUNDLE}"))

    def client(self, balancer: Balancer) -> httpx.Client:
        url, trust = f"https://127.0.0.1:{balancer.port}", trusting(self.certs)
        return self._stack.enter_context(httpx.Client(base_url=url, verify=trust, timeout=20, trust_env=False))

    def _add(self, name: str, node: Node) -> Node:
        self.nodes[name] = node.start()
        self._stack.callback(node.kill)
        return node


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        directory = tempfile.mkdtemp(prefix="tls-")  # a socket's path must be short
        stack.callback(shutil.rmtree, directory)
        yield Site(directory, stack)


def served_certificate(port: int) -> bytes:
    """What is shown at a port of 127.0.0.1, in DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    with context.wrap_socket(connection) as wrapped:
        return wrapped.getpeercert(binary_form=True) or b""


def checks(node: Node) -> int:
    """How often a node that logs its probes has said that it is ready."""
    return node.log().count('"GET /readyz HTTP/1.1" 200 ')


def on_disk(certs: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(Path(certs, certificates.SERVER).read_text(encoding="ascii"))


def peer(site: Site, **more: str) -> PeerTls:
    return PeerTls(ca=f"{site.certs}/{certificates.CA}", **more)


def test_haproxy_ends_tls_and_clients_are_sent_back_to_https(site: Site) -> None:
    site.node("node-1")
    balancer = site.ends_tls()
    client = site.client(balancer)
    data = os.urandom(3 << 20)
    digest = push(client, data)
    assert client.get(f"/v2/team/app/blobs/{digest}").content == data
    location = client.post("/v2/team/app/blobs/uploads/").headers["Location"]
    assert location.startswith(f"https://127.0.0.1:{balancer.port}/v2/")
    with pytest.raises(httpx.ConnectError, match=r"(?i)version|protocol"):
        old = trusting(site.certs)
        with pytest.warns(DeprecationWarning):
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        httpx.get(f"https://127.0.0.1:{balancer.port}/v2/", verify=old, trust_env=False)


def test_a_certificate_that_haproxy_shows_is_renewed_by_a_reload_and_no_request_fails(site: Site) -> None:
    site.node("node-1")
    site.node("node-2")
    balancer = site.ends_tls()
    with Load(f"https://127.0.0.1:{balancer.port}", site.certs) as load:
        for _ in range(3):
            certificates.renew(site.certs)
            balancer.reload()
            eventually(lambda: served_certificate(balancer.port) == on_disk(site.certs), 20, "the new one is shown")
            load.until_good(20)
    note(f"HAProxy's certificate renewed three times: {load.good} rounds, {len(load.failed)} failed")
    assert load.failed == []


@pytest.mark.parametrize("mode", ["tcp", "http"])
def test_certificates_of_nodes_are_renewed_behind_haproxy_and_no_request_fails(site: Site, mode: str) -> None:
    for name in ("node-1", "node-2"):
        site.tls_node(name)
    balancer = site.balance() if mode == "tcp" else site.ends_tls(peer(site))
    with Load(f"https://127.0.0.1:{balancer.port}", site.certs) as load:
        for _ in range(3):
            certificates.renew(site.certs)
            ports = [node.port for node in site.nodes.values()]
            eventually(
                lambda: all(served_certificate(port) == on_disk(site.certs) for port in ports),  # noqa: B023
                20,
                "both nodes show the new one",
            )
            load.until_good(20)
        eventually(lambda: balancer.up() == 2, 20, "checks pass")
    note(f"certificates of nodes renewed three times, {mode}: {load.good} rounds, {len(load.failed)} failed")
    assert load.failed == []


def test_a_node_of_another_authority_gets_no_work(site: Site) -> None:
    """Neither checks nor requests go to whoever cannot show a certificate of this cluster."""
    site.tls_node("node-1")
    site.tls_node("stranger", certs=make_certificates(f"{site.directory}/other"))
    balancer = site.ends_tls(peer(site))
    eventually(lambda: balancer.status("stranger") == "DOWN", 20, "the stranger is not used")
    eventually(lambda: balancer.status("node-1") == "UP", 20, "a node of this authority is")
    client = site.client(balancer)
    for _ in range(6):
        assert client.get("/v2/", headers={"Connection": "close"}).status_code == 200


def test_the_name_in_the_certificate_counts_where_it_is_said(site: Site) -> None:
    named = f"{site.directory}/named"
    certificates.create(named, certificates.subject(["registry.example"], ["127.0.0.1"]))
    site.tls_node("node-1", certs=named)
    for name, status in (("other.example", "DOWN"), ("registry.example", "UP")):
        balancer = site.ends_tls(PeerTls(ca=f"{named}/{certificates.CA}", name=name))
        eventually(lambda: balancer.status("node-1") == status, 20, f"the node is {status}")  # noqa: B023
        assert site.client(balancer).get("/v2/").status_code == (200 if status == "UP" else 503)
        balancer.kill()


def test_a_client_address_is_told_ahead_of_tls_that_passes_through(site: Site) -> None:
    node = site.tls_node("node-1", {"cluster": {"workers": 1, "proxyprotocol": True}, **PROBES})
    before = checks(node)
    balancer = site.balance(proxy=True)
    eventually(lambda: checks(node) > before + 1, 20, "checks speak it too")
    transport = httpx.HTTPTransport(verify=trusting(site.certs), local_address="127.0.7.7")
    with httpx.Client(base_url=f"https://127.0.0.1:{balancer.port}", transport=transport, timeout=20) as client:
        assert client.get("/v2/told/tags/list").status_code == 404
    eventually(lambda: "/v2/told/" in node.log(), 20, "the request is logged")
    (line,) = [line for line in node.log().splitlines() if "/v2/told/" in line]
    assert line.startswith("127.0.7.7 ")


def test_nodes_that_know_clients_by_certificates_are_checked_with_one(site: Site) -> None:
    friends = Certificates(f"{site.directory}/friends")
    pair = Path(site.directory, "checker.pem")
    pair.write_text(Path(friends.client).read_text() + Path(friends.client_key).read_text())
    node = site.tls_node("node-1", {**ABSOLUTE, **PROBES}, tls={"clientcas": [friends.authority]})
    silent = site.balance()
    eventually(lambda: silent.status("node-1") == "DOWN", 20, "a check without a certificate is refused")
    silent.kill()
    balancer = site.balance(PeerTls(certificate=str(pair)))
    eventually(lambda: checks(node) > 1, 20, "a check with one is not")
    eventually(lambda: balancer.status("node-1") == "UP", 20, "and the node is used")
    trust = trusting(site.certs)
    trust.load_cert_chain(friends.client, friends.client_key)
    url = f"https://127.0.0.1:{balancer.port}/v2/"
    assert httpx.get(url, verify=trust, trust_env=False, timeout=20).status_code == 200
