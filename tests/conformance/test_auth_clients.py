"""Stock clients log in, push, pull and log out, over TLS with a private authority, through HAProxy, on three nodes.

Accounts by htpasswd behind a HAProxy that passes TLS through, and tokens behind one that ends it; the other two
combinations, and helm, are part of `make test-clients` alone.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from cluster.trust import instructions
from tests.conformance.clients import (
    Client,
    Copier,
    Crane,
    Docker,
    DockerEngine,
    Engine,
    Helm,
    Oras,
    Podman,
    Regctl,
    Skopeo,
)
from tests.conformance.secured import USER, Secured, secured_cluster
from tests.support.images import Descriptor, Layout, contents, docker_archive
from tests.support.island import Island
from tests.support.tls import make_certificates
from tests.support.tools import require_root

pytestmark = pytest.mark.clients

C = TypeVar("C", bound=Client)

ADDRESS = "192.0.2.10"  # of documentation (RFC 5737): no registry is there
REFUSED = (
    r"(?i)unauthorized|authentication required|denied|no basic auth credentials|credential not found"
    r"|invalid username/password|\b401\b"
)
POLICY = f"""
rules:
  - {{users: [{USER}], repositories: ["**"], actions: ["*"]}}
  - {{groups: [anonymous], repositories: [public/**], actions: [pull]}}
"""
UNTRUSTED = r"(?i)certificate signed by unknown authority|unknown ca|failed to verify certificate"


def combination(auth: str, mode: str, slow: bool) -> object:
    return pytest.param((auth, mode), id=f"{auth}-{mode}", marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(
    scope="module",
    params=[
        combination("htpasswd", "tcp", slow=False),
        combination("token", "http", slow=False),
        combination("htpasswd", "http", slow=True),
        combination("token", "tcp", slow=True),
    ],
)
def secured(request: pytest.FixtureRequest) -> Iterator[Secured]:
    with secured_cluster(*request.param, ADDRESS) as running:
        yield running


@pytest.fixture
def other_ca(tmp_path: Path) -> str:
    """An authority that knows nothing of this cluster."""
    return f"{make_certificates(tmp_path / 'other')}/ca.crt"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "made")


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """An image of two layers, one of which takes several chunks."""
    return layout.tag("v1", layout.image([layout.big_layer(3), layout.layer({"etc/motd": b"welcome"})]))


def refuses_strangers(client: C, stranger: C, secured: Secured, use: Callable[[C], object]) -> None:
    """Neither a wrong password is taken, nor a registry that an authority of one's own does not vouch for.

    A client that asks nobody when it logs in is told when it is used.
    """
    with pytest.raises(AssertionError, match=REFUSED):
        client.login(secured.host, USER, "not the password")
        use(client)
    with pytest.raises(AssertionError, match=UNTRUSTED):
        stranger.login(secured.host, USER, secured.password)
        use(stranger)


@pytest.mark.parametrize("kind", [Skopeo, Crane, Oras, Regctl], ids=lambda kind: kind.program)
def test_a_copier_logs_in_pushes_pulls_and_logs_out(
    kind: type[Copier], secured: Secured, layout: Layout, image: Descriptor, tmp_path: Path, other_ca: str
) -> None:
    copier = kind(tmp_path / "home", secured.host, secured.ca)
    repository = f"{secured.host}/{kind.program}/image"
    source, pulled = f"{layout.path}:v1", str(tmp_path / "pulled")

    with pytest.raises(AssertionError, match=REFUSED):
        copier.push(source, f"{repository}:v1")
    stranger = kind(tmp_path / "stranger", secured.host, other_ca)
    refuses_strangers(copier, stranger, secured, lambda client: client.tags(repository))

    copier.login(secured.host, USER, secured.password)
    copier.push(source, f"{repository}:v1")
    copier.pull(f"{repository}:v1", f"{pulled}:v1")
    assert contents(pulled, image["digest"]) == contents(layout.path, image["digest"])
    copier.copy(f"{repository}:v1", f"{secured.host}/{kind.program}/copied:v2")  # mounts blobs: needs both scopes
    assert copier.tags(f"{secured.host}/{kind.program}/copied") == ["v2"]
    copier.delete(f"{repository}@{image['digest']}")
    assert copier.tags(f"{secured.host}/{kind.program}/copied") == ["v2"]

    copier.logout(secured.host)
    with pytest.raises(AssertionError, match=REFUSED):
        copier.pull(f"{secured.host}/{kind.program}/copied:v2", f"{pulled}-after:v1")


@pytest.mark.parametrize("auth", ["htpasswd", "token"])
def test_without_a_login_what_is_public_can_be_pulled_and_nothing_else(
    auth: str, layout: Layout, image: Descriptor, tmp_path: Path
) -> None:
    """skopeo, and podman by the same library, send an empty user and password where there was no login."""
    with secured_cluster(auth, policy=POLICY) as running:
        owner = Skopeo(tmp_path / "owner", running.host, running.ca)
        owner.login(running.host, USER, running.password)
        for repository in ("public/image", "team/image"):
            owner.push(f"{layout.path}:v1", f"{running.host}/{repository}:v1")
        for kind in (Skopeo, Crane, Oras, Regctl):
            copier, pulled = (
                kind(tmp_path / kind.program, running.host, running.ca),
                str(tmp_path / f"by-{kind.program}"),
            )
            copier.pull(f"{running.host}/public/image:v1", f"{pulled}:v1")
            assert contents(pulled, image["digest"]) == contents(layout.path, image["digest"])
            with pytest.raises(AssertionError, match=REFUSED):
                copier.pull(f"{running.host}/team/image:v1", f"{pulled}-team:v1")


def engine_round(engine: Engine, host: str, secured: Secured, layout: Layout, image: Descriptor) -> None:
    """Log in, push, pull and log out, by an engine that keeps images itself."""
    reference, archive = f"{host}/{engine.program}/image:v1", os.path.join(engine.home, "image.tar")
    identity = docker_archive(layout, image, reference, archive)
    engine.load(archive)
    with pytest.raises(AssertionError, match=REFUSED):
        engine.pull(reference)  # docker would try a push five times, over a minute
    engine.login(host, USER, secured.password)
    engine.push(reference)
    engine.remove(reference)
    engine.pull(reference)
    assert engine.image_id(reference) == identity
    engine.remove(reference)
    engine.logout(host)
    with pytest.raises(AssertionError, match=REFUSED):
        engine.pull(reference)


def test_podman_logs_in_pushes_pulls_and_logs_out(
    secured: Secured, layout: Layout, image: Descriptor, other_ca: str
) -> None:
    require_root("podman with a storage of its own")
    with tempfile.TemporaryDirectory(prefix="home-") as home, tempfile.TemporaryDirectory(prefix="home-") as other:
        podman = Podman(home, secured.ca)
        used = f"{secured.host}/podman/image:v1"
        refuses_strangers(podman, Podman(other, other_ca), secured, lambda client: client.pull(used))
        engine_round(podman, secured.host, secured, layout, image)


def test_docker_logs_in_pushes_pulls_and_logs_out_once_the_authority_is_where_certs_says(
    secured: Secured, layout: Layout, image: Descriptor
) -> None:
    """In a network of its own, because docker trusts whatever answers on loopback; the engine is not restarted."""
    require_root("a Docker engine")
    host = f"{ADDRESS}:{secured.cluster.port}"
    with (
        tempfile.TemporaryDirectory(prefix="engine-") as directory,
        tempfile.TemporaryDirectory(prefix="home-") as home,
        Island(directory, ADDRESS, secured.cluster.port) as island,
        DockerEngine(directory).within(island.namespace) as engine,
    ):
        docker = Docker(home, engine.socket)
        with pytest.raises(AssertionError, match=UNTRUSTED):
            docker.login(host, USER, secured.password)
        said = instructions(secured.certs, [ADDRESS], secured.cluster.port)
        engine.run_inside(next(line for line in said if "/etc/docker/certs.d/" in line))
        with pytest.raises(AssertionError, match=REFUSED):
            docker.login(host, USER, "not the password")
        engine_round(docker, host, secured, layout, image)


@pytest.mark.slow
def test_helm_logs_in_pushes_pulls_and_logs_out(secured: Secured, tmp_path: Path, other_ca: str) -> None:
    helm = Helm(tmp_path / "home", secured.ca)
    archive, charts = helm.package(), f"{secured.host}/charts"
    with pytest.raises(AssertionError, match=REFUSED):
        helm.push(archive, charts)
    stranger = Helm(tmp_path / "stranger", other_ca)
    refuses_strangers(helm, stranger, secured, lambda client: client.push(archive, charts))
    helm.login(secured.host, USER, secured.password)
    helm.push(archive, charts)
    assert helm.pull(f"{charts}/greeting", str(tmp_path / "pulled")) == Path(archive).read_bytes()
    helm.logout(secured.host)
    with pytest.raises(AssertionError, match=REFUSED):
        helm.pull(f"{charts}/greeting", str(tmp_path / "again"))
