"""A node that speaks TLS: versions, ciphers, client certificates, renewal under load, and what is no TLS at all."""

import hashlib
import os
import signal
import socket
import ssl
import struct
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster import certificates
from cluster.settings import PeerTls
from cluster.tls import client_context
from tests.node.nodes import Impatient, brief, connections, no_trouble, workers_memory
from tests.node.raw import Wire, get, head
from tests.support.process import eventually, free_port
from tests.support.redis import Certificates
from tests.support.tls import Load, TlsNode, make_certificates, push, trusting

MIB = 1 << 20
TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


class TlsWire(Wire):
    """A bare connection with TLS on it; `preface` is sent before."""

    def __init__(self, node: TlsNode, context: ssl.SSLContext | None = None, preface: bytes = b"") -> None:
        super().__init__(node.port)
        try:
            self.socket.sendall(preface)
            context = context or trusting(node.certs)
            self.socket = self.tls = context.wrap_socket(self.socket, server_hostname="127.0.0.1")
        except OSError:
            self.close()
            raise
        self._file = self.socket.makefile("rb")

    @property
    def certificate(self) -> bytes:
        """What the node showed, in DER."""
        return self.tls.getpeercert(binary_form=True) or b""


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_certificates(tmp_path_factory.mktemp("certs"))


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, certs: str) -> Iterator[TlsNode]:
    debug = {"addr": f"127.0.0.1:{free_port()}"}
    config = {"http": {"relativeurls": False, "debug": debug}, "cluster": {"workers": 2}}
    with brief(TlsNode(tmp_path_factory.mktemp("node"), certs, config)) as node:
        eventually(lambda: len(node.children()) == 2, 20, "both workers run")
        yield node


@pytest.fixture
def node(started: TlsNode) -> Iterator[TlsNode]:
    """The running node; afterwards it has the same workers, and no trouble in its log."""
    before, workers = len(started.log()), started.children()
    yield started
    assert started.children() == workers, "a worker was replaced"
    assert no_trouble(started.log()[before:])


@pytest.fixture
def http(node: TlsNode) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=node.url, verify=trusting(node.certs), timeout=30, trust_env=False) as client:
        yield client


# -- What is served


def test_blobs_go_there_and_back_and_every_url_is_https(http: httpx.Client, node: TlsNode) -> None:
    data = os.urandom(16 * MIB + 1)
    digest = push(http, data)
    assert http.get(f"/v2/team/app/blobs/{digest}").content == data
    part = http.get(f"/v2/team/app/blobs/{digest}", headers={"Range": "bytes=1000000-1999999"})
    assert (part.status_code, part.content) == (206, data[1_000_000:2_000_000])
    location = http.post("/v2/team/app/blobs/uploads/").headers["Location"]
    assert location.startswith(f"{node.url}/v2/team/app/blobs/uploads/")


def test_the_debug_port_speaks_no_tls_as_in_distribution(node: TlsNode) -> None:
    assert get(f"http://{node.config['http']['debug']['addr']}/debug/health").status == 200


def test_http_1_1_is_what_is_agreed_on_whatever_else_a_client_offers(node: TlsNode) -> None:
    context = trusting(node.certs)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with TlsWire(node, context) as wire:
        assert wire.tls.selected_alpn_protocol() == "http/1.1"
        assert wire.ask("GET", "/v2/").status == 200


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
def test_plain_http_is_told_so(node: TlsNode, method: str) -> None:
    with Wire(node.port) as wire:
        answer = wire.ask(method, "/v2/", "Content-Length: 300000", body=b"x" * 300_000)
    assert answer.status == 400
    assert answer.headers["connection"] == "close"
    assert "Client sent an HTTP request to an HTTPS server." in answer.body.decode()
    assert answer.error()


def test_what_is_no_tls_at_all_is_dropped_and_harms_nobody(node: TlsNode) -> None:
    for garbage in (b"", b"\x16", b"\x16\x03\x01\xff\xff" + os.urandom(400), b"\x00" * 50, b"\r\n\r\n\0\r\nQUIT\n"):
        with Wire(node.port) as wire:
            wire.send(garbage)
            wire.socket.shutdown(socket.SHUT_WR)
            try:
                wire.rest()
            except ConnectionError:
                pass
    with TlsWire(node) as wire:
        assert wire.ask("GET", "/v2/").status == 200


def test_clients_that_do_not_read_cost_no_more_memory_than_without_tls(node: TlsNode, http: httpx.Client) -> None:
    """Each holds what was encrypted for it: about four times what is read of a blob at a time."""
    digest, clients = push(http, os.urandom(24 * MIB)), 30
    before = workers_memory(node)
    with ExitStack() as stack:
        for _ in range(clients):
            wire = stack.enter_context(TlsWire(node))
            wire.send(head("GET", f"/v2/team/app/blobs/{digest}"))
            assert wire.answer_head()[0] == 200
        time.sleep(1)
        assert workers_memory(node) - before < clients * 600 * 1024


# -- Versions and cipher suites


def outdated() -> ssl.SSLContext:
    """A client of old: TLS 1.1 at most."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    return context


def agreed(node: TlsNode, context: ssl.SSLContext) -> str:
    """The version of TLS that a client gets; a refusal is an SSLError."""
    with TlsWire(node, context) as wire:
        assert wire.ask("GET", "/v2/").status == 200
        return str(wire.tls.version())


def test_tls_1_2_and_1_3_are_spoken_and_nothing_older(node: TlsNode) -> None:
    assert agreed(node, trusting(node.certs, maximum_version=TLS12)) == "TLSv1.2"
    assert agreed(node, trusting(node.certs)) == "TLSv1.3"
    with pytest.raises(ssl.SSLError, match=r"(?i)version"):
        agreed(node, outdated())


def test_a_higher_minimum_is_kept(tmp_path: Path, certs: str) -> None:
    with brief(TlsNode(tmp_path, certs, tls={"minimumtls": "tls1.3"})) as node:
        assert agreed(node, trusting(certs)) == "TLSv1.3"
        with pytest.raises(ssl.SSLError, match=r"(?i)version"):
            agreed(node, trusting(certs, maximum_version=TLS12))
        assert no_trouble(node.log())


def test_cipher_suites_limit_tls_1_2_alone(tmp_path: Path, certs: str) -> None:
    suites = ["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"]
    with brief(TlsNode(tmp_path, certs, tls={"ciphersuites": suites})) as node:
        with TlsWire(node, trusting(certs, maximum_version=TLS12)) as wire:
            assert (wire.tls.cipher() or ("",))[0] == "ECDHE-ECDSA-AES256-GCM-SHA384"
        other = trusting(certs, maximum_version=TLS12)
        other.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
        with pytest.raises(ssl.SSLError, match=r"(?i)handshake failure"):
            agreed(node, other)
        assert agreed(node, trusting(certs)) == "TLSv1.3"


# -- Certificates of clients


def shown(certs: str, files: Certificates | None) -> ssl.SSLContext:
    context = trusting(certs)
    if files is not None:
        context.load_cert_chain(files.client, files.client_key)
    return context


@pytest.mark.parametrize(
    ("how", "unknown", "nobody"),
    [
        ("", False, False),
        ("require-and-verify-client-cert", False, False),
        ("verify-client-cert-if-given", False, True),
        ("request-client-cert", True, True),
    ],
)
def test_clients_are_known_by_their_certificates(
    tmp_path: Path, certs: str, how: str, unknown: bool, nobody: bool
) -> None:
    """Whoever the authority knows is served; whoever another one knows, or nobody, only where that is said."""
    friends, strangers = Certificates(tmp_path / "friends"), Certificates(tmp_path / "strangers")
    asking = {"clientcas": [friends.authority], **({"clientauth": how} if how else {})}
    with brief(TlsNode(tmp_path, certs, tls=asking)) as node:
        for who, welcome in ((friends, True), (strangers, unknown), (None, nobody)):
            if welcome:
                agreed(node, shown(certs, who))
            else:
                with pytest.raises(ssl.SSLError, match=r"(?i)unknown ca|certificate required"):
                    agreed(node, shown(certs, who))
        assert no_trouble(node.log())


# -- Renewal


def served(node: TlsNode) -> bytes:
    with TlsWire(node) as wire:
        return wire.certificate


def shows(node: TlsNode, certificate: bytes) -> bool:
    """Whether every worker shows it, as far as a few connections can tell."""
    return all(served(node) == certificate for _ in range(12))


def on_disk(certs: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(Path(certs, certificates.SERVER).read_text())


@pytest.fixture
def renewed(tmp_path: Path) -> Iterator[TlsNode]:
    """A node with two workers and certificates of its own."""
    own = make_certificates(tmp_path / "certs")
    with brief(TlsNode(tmp_path, own, {"cluster": {"workers": 2}})) as node:
        eventually(lambda: len(node.children()) == 2, 20, "both workers run")
        yield node


def test_a_renewed_certificate_is_served_by_every_worker_and_no_request_fails(renewed: TlsNode) -> None:
    node = renewed
    first = served(node)
    with TlsWire(node) as kept, Load(node.url, node.certs) as load:
        for _ in range(3):
            certificates.renew(node.certs)
            eventually(lambda: shows(node, on_disk(node.certs)), 20, "both workers show the new one")
            load.until_good(20)
        assert kept.ask("GET", "/v2/").status == 200
        assert kept.certificate == first
    assert load.failed == []
    assert no_trouble(node.log())


def test_a_renewal_that_does_not_fit_together_is_refused_until_it_does(renewed: TlsNode, tmp_path: Path) -> None:
    node, old = renewed, served(renewed)
    other = make_certificates(tmp_path / "other")
    key = Path(node.certs, certificates.SERVER_KEY)
    kept, foreign = key.read_bytes(), Path(other, certificates.SERVER_KEY).read_bytes()
    for broken, complaint in ((foreign, "is not the key of the certificate"), (b"no key", "cannot be used")):
        before = len(node.log())
        key.write_bytes(broken)
        eventually(lambda: node.log().count(complaint, before) >= 2, 20, "both workers complain")  # noqa: B023
        assert "the old one still is" in node.log()[before:]
        assert all(served(node) == old for _ in range(6))
    key.unlink()
    eventually(lambda: "cannot be read" in node.log(), 20, "a missing key is named")
    assert served(node) == old
    key.write_bytes(kept)
    certificates.renew(node.certs)
    eventually(lambda: shows(node, on_disk(node.certs)), 20, "the good one is served")
    assert not any(line.strip() and line in node.log() for line in foreign.decode().splitlines()[1:-1])


# -- What does not start


@pytest.mark.parametrize(
    ("tls", "said"),
    [
        (
            {"key": "{other}/server-key.pem"},
            "http.tls.key: '{other}/server-key.pem' is not the key of the certificate in",
        ),
        (
            {"certificate": "{other}/none.crt"},
            "http.tls.certificate: '{other}/none.crt' cannot be read: No such file",
        ),
        ({"key": "{other}"}, "http.tls.key: '{other}' cannot be read: Is a directory"),
        ({"certificate": "{other}/server-key.pem"}, "cannot be used: not in PEM form"),
        ({"clientcas": ["{other}/server-key.pem"]}, "http.tls.clientcas: '{other}/server-key.pem' cannot be used"),
        ({"key": "{other}/locked.key"}, "the key has a passphrase, wanted one without"),
        ({"minimumtls": "tls1.0"}, 'http.tls.minimumtls: found "tls1.0", wanted'),
        ({"ciphersuites": ["TLS_NULL"]}, 'http.tls.ciphersuites[0]: found "TLS_NULL", wanted a name of Go'),
        ({"clientauth": "require-any-client-cert"}, 'http.tls.clientauth: found "require-any-client-cert", wanted'),
        ({"letsencrypt": {"email": "a@b.c"}}, "http.tls.letsencrypt: not supported"),
    ],
)
def test_what_cannot_be_served_is_said_and_the_exit_code_is_1(
    tmp_path: Path, certs: str, tls: dict[str, Any], said: str
) -> None:
    other = make_certificates(tmp_path / "other")
    locked = ["openssl", "ec", "-aes256", "-passout", "pass:x", "-in", f"{other}/server-key.pem"]
    subprocess.run([*locked, "-out", f"{other}/locked.key"], check=True, capture_output=True)
    filled = {
        key: [text.format(other=other) for text in value] if isinstance(value, list) else value
        for key, value in tls.items()
    }
    filled = {key: value.format(other=other) if isinstance(value, str) else value for key, value in filled.items()}
    node = TlsNode(tmp_path, certs, tls=filled)
    with pytest.raises(AssertionError, match="stopped at once"):
        node.start()
    assert said.format(other=other) in node.log()
    assert "Traceback" not in node.log()


# -- In front of TLS


class ImpatientTls(TlsNode, Impatient):
    """It waits a second for a head, and for a handshake."""


def test_a_client_that_does_not_get_to_the_end_of_its_handshake_is_dropped(tmp_path: Path, certs: str) -> None:
    hello = bytes.fromhex("16030100c8010000c40303")  # the beginning of a ClientHello
    with brief(ImpatientTls(tmp_path, certs)) as node, ExitStack() as stack:
        wires = [stack.enter_context(Wire(node.port)) for _ in range(3)]
        for wire, sent in zip(wires, (b"", b"\x16", hello), strict=True):
            wire.send(sent)
        for wire in wires:
            try:
                wire.rest()
            except ConnectionError:
                pass
        eventually(lambda: connections(node.port) == 0, 20, "nothing of them is left")
        with TlsWire(node) as wire:  # and one whose request does not come
            assert wire.answer().status == 408
        assert no_trouble(node.log())


def proxy_header(address: str, port: int) -> bytes:
    """What HAProxy's send-proxy-v2 sends ahead of TLS (PROXY protocol, section 2.2)."""
    told = socket.inet_aton(address) + socket.inet_aton("127.0.0.1") + struct.pack("!HH", port, 443)
    return b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack("!H", len(told)) + told


def test_a_balancer_tells_the_clients_address_ahead_of_tls(tmp_path: Path, certs: str) -> None:
    with brief(TlsNode(tmp_path, certs, {"cluster": {"proxyprotocol": True}})) as node:
        with TlsWire(node, preface=proxy_header("192.0.2.77", 4711)) as wire:
            assert [wire.ask("GET", f"/v2/told/manifests/{n}").status for n in range(3)] == [404] * 3
        with TlsWire(node) as wire:
            assert wire.ask("GET", "/v2/untold/tags/list").status == 404
        lines = {"told": 3, "untold": 1}
        eventually(lambda: all(node.log().count(f"/v2/{n}/") == lines[n] for n in lines), 20, "all are logged")
        for line in node.log().splitlines():
            if "/v2/told/" in line:
                assert line.startswith("192.0.2.77 ")
            elif "/v2/untold/" in line:
                assert line.startswith("127.0.0.1 ")


# -- The end


def test_a_stop_finishes_what_is_under_way_and_waits_for_nobody_else(tmp_path: Path, certs: str) -> None:
    data = os.urandom(24 * MIB)
    with brief(TlsNode(tmp_path, certs, {"cluster": {"workers": 2}})) as node, ExitStack() as stack:
        http = stack.enter_context(
            httpx.Client(base_url=node.url, verify=trusting(certs), timeout=30, trust_env=False)
        )
        digest = push(http, data)
        http.close()
        idle = [stack.enter_context(TlsWire(node)) for _ in range(5)]
        assert all(wire.ask("GET", "/v2/").status == 200 for wire in idle)
        silent = stack.enter_context(Wire(node.port))  # has not said hello
        download = stack.enter_context(TlsWire(node))
        download.send(head("GET", f"/v2/team/app/blobs/{digest}"))
        status, headers = download.answer_head()
        assert status == 200
        node.send(signal.SIGTERM)
        assert all(wire.rest() == b"" for wire in idle)
        assert silent.rest() == b""
        time.sleep(1)
        assert node.running
        received = download.read(int(headers["content-length"]))
        assert hashlib.sha256(received).hexdigest() == digest.removeprefix("sha256:")
        download.close()
        assert node.wait(within=20) == 0
        assert no_trouble(node.log())


def test_half_a_connection_ends_and_an_upload_keeps_what_came(node: TlsNode, http: httpx.Client) -> None:
    location = httpx.URL(http.post("/v2/half/blobs/uploads/").headers["Location"]).raw_path.decode()
    with TlsWire(node) as wire:
        wire.send(head("PATCH", location, "Content-Length: 1000"), b"x" * 400)
        wire.tls.unwrap().close()

    def kept() -> bool:
        return http.get(location).headers.get("Range") == "0-399"

    eventually(kept, 20, "the first part is there")


def test_a_node_is_not_reached_by_a_client_that_trusts_another_authority(node: TlsNode, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        agreed(node, trusting(other))


def test_one_file_may_hold_both_certificate_and_key(tmp_path: Path, certs: str) -> None:
    """So that a renewal by rename replaces both in one step."""
    bundle = f"{certs}/{certificates.BUNDLE}"
    with brief(TlsNode(tmp_path, certs, tls={"certificate": bundle, "key": bundle})) as node:
        assert served(node) == on_disk(certs)


# -- Nodes that ask each other


def test_a_worker_that_follows_one_that_died_shows_the_certificate_of_now(renewed: TlsNode) -> None:
    node = renewed
    certificates.renew(node.certs)
    eventually(lambda: shows(node, on_disk(node.certs)), 20, "both workers show the new one")
    before = node.children()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(set(node.children()) - set(before)) == 2, 20, "both workers were replaced")
    eventually(lambda: listens(node), 20, "they take connections")
    assert shows(node, on_disk(node.certs))


def listens(node: TlsNode) -> bool:
    try:
        return bool(served(node))
    except OSError:
        return False


@pytest.mark.parametrize(
    ("peer", "problem"),
    [
        ({"name": "registry.example"}, ""),
        ({}, "IP address mismatch"),
        ({"name": "other.example"}, "Hostname mismatch"),
        ({"name": "registry.example", "ca": ""}, "unable to get local issuer certificate"),
    ],
)
def test_a_node_is_known_by_the_authority_and_by_its_name(
    tmp_path: Path, peer: dict[str, str], problem: str
) -> None:
    named = str(tmp_path / "certs")
    certificates.create(named, certificates.subject(["registry.example"], []))
    trust = client_context(PeerTls(**{"ca": f"{named}/{certificates.CA}", **peer}))
    with brief(Named(tmp_path, named)) as node:
        try:
            with urllib.request.urlopen(f"{node.url}/healthz", timeout=30, context=trust) as answer:
                assert (answer.status, problem) == (200, "")
        except urllib.error.URLError as error:
            assert problem and problem in str(error)


def test_nodes_that_ask_for_certificates_are_asked_with_their_own(tmp_path: Path, certs: str) -> None:
    """The one that `certs` makes is good for both ends of a connection."""
    authority, bundle = f"{certs}/{certificates.CA}", f"{certs}/{certificates.BUNDLE}"
    with brief(TlsNode(tmp_path, certs, tls={"clientcas": [authority]})) as node:
        trust = client_context(PeerTls(ca=authority, certificate=bundle))
        with urllib.request.urlopen(f"{node.url}/healthz", timeout=30, context=trust) as answer:
            assert answer.status == 200
        with pytest.raises(OSError, match="certificate required"):
            urllib.request.urlopen(f"{node.url}/healthz", timeout=10, context=client_context(PeerTls(ca=authority)))


class Named(TlsNode):
    """A node whose certificate is not for the address that it is asked at."""

    def _answers(self) -> bool:
        return "listening with TLS" in self.log()
