"""`registry-cluster up --tls --auth`: what it makes and says, and that every operation works on such a cluster."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from cluster import certificates
from tests.failover.cluster import Cluster
from tests.failover.conftest import CONFIG
from tests.failover.test_up import run
from tests.support.process import eventually, free_port
from tests.support.tls import Load, trusting
from tests.support.tools import PROJECT, note, require

PASSWORD = re.compile(r"password: +(\S+)")


def said(cluster: Cluster) -> str:
    """What a person sees when all runs."""
    eventually(lambda: "lose a node:" in cluster.log(), 20, "the cluster says how it is used")
    return cluster.log()


@contextmanager
def up(directory: Path, *options: str) -> Iterator[Cluster]:
    with Cluster(directory, nodes=2, config=CONFIG, options=options) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with up(tmp_path_factory.mktemp("up"), "--tls", "--auth") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def password(protected: Cluster) -> str:
    found = PASSWORD.search(said(protected))
    assert found
    return found[1]


def ask(cluster: Cluster, path: str, *login: str) -> httpx.Response:
    auth = (login[0], login[1]) if login else None
    trust = trusting(f"{cluster.data}/certs")
    return httpx.get(cluster.endpoint + path, auth=auth, verify=trust, trust_env=False, timeout=20)


def test_it_says_how_to_get_in_and_that_is_the_only_way(protected: Cluster, password: str) -> None:
    host = f"127.0.0.1:{protected.port}"
    text = said(protected)
    assert f"docker login -u admin {host}\n" in text
    assert f"install -D -m 644 {protected.data}/certs/ca.crt /etc/docker/certs.d/{host}/ca.crt\n" in text
    assert ask(protected, "/v2/", "admin", password).status_code == 200
    for login in ((), ("admin", "guessed"), ("root", password)):
        answer = ask(protected, "/v2/_catalog", *login)
        assert (answer.status_code, answer.headers["WWW-Authenticate"][:6]) == (401, "Basic ")


def test_a_password_is_shown_even_if_the_cluster_does_not_come_up(tmp_path: Path) -> None:
    words = ["up", "--auth", "--port", str(free_port()), "--data", str(tmp_path)]
    up = subprocess.Popen([sys.executable, "-m", "cluster", *words], cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    try:
        eventually((tmp_path / "cluster.json").exists, 30, "something was started")
        up.send_signal(signal.SIGINT)
        _, text = up.communicate(timeout=60)
    finally:
        up.kill()
    found = re.search(r"the account admin is there already, with the password (\S+)", text)
    assert found, text
    verb = ["user", "verify", "--file", str(tmp_path / "auth/htpasswd"), "--password-stdin", "admin"]
    subprocess.run([sys.executable, "-m", "cluster", *verb], cwd=PROJECT, input=found[1], text=True, check=True)


def test_cluster_json_names_https_and_the_authority(protected: Cluster) -> None:
    state = protected.state()
    assert state["endpoint"] == f"https://127.0.0.1:{protected.port}"
    assert state["ca"] == f"{protected.data}/certs/ca.crt"
    assert all(url.startswith("https://127.0.0.1:") for url in protected.urls)
    named = certificates.look(f"{protected.data}/certs")[0].hosts
    assert {"localhost", "127.0.0.1", "::1"} <= set(named)


def test_nothing_secret_can_be_read_by_others(protected: Cluster, password: str) -> None:
    """The log of `up` stands for the terminal here, the only place where the password is shown."""
    for place, _, names in os.walk(protected.data):
        for name in names:
            path = Path(place, name)
            private = name.endswith(("-key.pem", ".yml", ".log", "htpasswd", "haproxy.pem", "secret"))
            assert not private or stat.S_IMODE(path.stat().st_mode) == 0o600, path
            assert password.encode() not in content(path), path


def content(path: Path) -> bytes:
    """What a file holds: nothing when it is none, or was only there for a moment, as those that probe storage."""
    try:
        return path.read_bytes() if path.is_file() else b""
    except FileNotFoundError:
        return b""


def test_every_operation_knows_its_nodes_by_the_authority(protected: Cluster) -> None:
    lines = {line.split()[0]: line for line in run(protected, "status").stdout.splitlines()}
    for node in protected.nodes:
        assert f"{node.url}  pid {node.pid}  ready  version " in lines[node.name]
    doctor = [*protected.verb("doctor")[:-2], f"{protected.data}/run/node-1.yml"]
    done = subprocess.run(doctor, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert {"node-1: agrees", "node-2: agrees"} <= set(done.stdout.splitlines())
    for arguments in (["node-2"], ["node-2", "--undo"]):
        assert run(protected, "drain", *arguments).returncode == 0


def test_a_certificate_and_a_rolling_restart_are_renewed_under_load_without_a_failed_request(
    protected: Cluster, password: str
) -> None:
    before = {node.pid for node in protected.nodes}
    with Load(protected.endpoint, f"{protected.data}/certs", auth=("admin", password)) as load:
        certificates.renew(f"{protected.data}/certs")
        load.until_good(20)
        done = run(protected, "restart", "--rolling")
        assert done.returncode == 0, done.stderr
        load.until_good(20)
    note(f"certificate renewed and nodes restarted: {load.good} rounds, {len(load.failed)} failed")
    assert load.failed == []
    assert not before & {node.pid for node in protected.nodes}


def test_the_next_start_keeps_accounts_and_authority_and_renews_what_is_about_to_end(tmp_path: Path) -> None:
    with up(tmp_path, "--tls", "--auth") as cluster:
        found = PASSWORD.search(said(cluster))
        assert found
    certs = Path(cluster.data, "certs")
    authority = (certs / certificates.CA).read_bytes()
    shorten(certs)
    (tmp_path / "up.log").unlink()
    with up(tmp_path, "--tls", "--auth") as cluster:
        assert not PASSWORD.search(said(cluster))
        assert f"{sys.executable} -m cluster user add --file" in said(cluster)
        assert f"{sys.executable} -m cluster status --data {cluster.data}; kill" in said(cluster)
        assert ask(cluster, "/v2/", "admin", found[1]).status_code == 200
    assert (certs / certificates.CA).read_bytes() == authority
    assert certificates.look(str(certs))[1] - datetime.now(UTC) > timedelta(days=300)


def shorten(certs: Path) -> None:
    """Replace the certificate by one that ends tomorrow."""
    request = [require("openssl"), "req", "-x509", "-days", "1", "-subj", "/CN=localhost"]
    signer = ["-CA", str(certs / certificates.CA), "-CAkey", str(certs / certificates.CA_KEY)]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:0:0:0:0:0:0:0:1"]
    made = ["-key", str(certs / certificates.SERVER_KEY), "-out", str(certs / certificates.SERVER)]
    subprocess.run([*request, *signer, *names, *made], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("config", "options", "problem"),
    [
        ({"auth": {"htpasswd": {"realm": "r", "path": "/p"}}}, ["--auth"], "auth: the configuration says who may"),
        (
            {"http": {"tls": {"certificate": "/c", "key": "/k"}}},
            ["--tls"],
            "http.tls: remove it; with --tls, `up` makes",
        ),
        ({"http": {"tls": {"certificate": "/c", "key": "/k"}}}, [], "http.tls: remove it; with --tls, `up` makes"),
    ],
)
def test_a_configuration_that_brings_its_own_protection_is_refused(
    tmp_path: Path, config: dict[str, object], options: list[str], problem: str
) -> None:
    cluster = Cluster(tmp_path, nodes=1, config={**CONFIG, **config}, options=options)
    with pytest.raises(AssertionError, match="stopped at once"):
        cluster.start()
    assert problem in cluster.log()
    assert "Traceback" not in cluster.log()


def test_accounts_alone_are_asked_for_over_plain_http_too(tmp_path: Path) -> None:
    with up(tmp_path, "--auth") as cluster:
        found = PASSWORD.search(said(cluster))
        assert found
        assert "trust it:" not in said(cluster)
        for password, status in ((found[1], 200), ("guessed", 401)):
            answer = httpx.get(f"{cluster.endpoint}/v2/", auth=("admin", password), trust_env=False, timeout=20)
            assert answer.status_code == status
