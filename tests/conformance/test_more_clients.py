"""The clients that take longer to set up: buildah, containerd and helm. Part of `make test-clients` alone.

What test_clients.py asks of its clients is asked again there too, of a node with several workers.
"""

import os
import tarfile
import tempfile
from collections.abc import Iterator

import httpx
import pytest

from tests.conformance.clients import Client, Helm, apart
from tests.conformance.test_clients import digest_of
from tests.support.images import Layout, contents
from tests.support.process import Process, Registry
from tests.support.tools import require_root

pytestmark = [pytest.mark.clients, pytest.mark.slow]


class Buildah(Client):
    program = "buildah"

    def options(self) -> list[str]:
        return ["--root", f"{self.home}/root", "--runroot", f"{self.home}/run", "--storage-driver", "vfs"]


class Ctr(Client):
    """containerd's own command, talking to a containerd that was started for it."""

    program = "ctr"

    def __init__(self, home: str, socket: str) -> None:
        super().__init__(home)
        self.socket = socket

    def options(self) -> list[str]:
        return ["--address", self.socket, "--namespace", "test"]


class Containerd(Process):
    """A private containerd without the Kubernetes part; the directory must be short for its sockets."""

    def __init__(self, directory: str) -> None:
        self.socket = os.path.join(directory, "sock")
        config = os.path.join(directory, "config.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        places = [f"--root={directory}/root", f"--state={directory}/state", f"--address={self.socket}"]
        super().__init__(
            [*apart("containerd"), f"--config={config}", *places],
            log=os.path.join(directory, "log"),
            ready=lambda: os.path.exists(self.socket),
        )


@pytest.fixture
def home() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="home-") as directory:
        yield directory


def test_buildah_gets_back_what_it_built(home: str, registry: Registry, raw: httpx.Client) -> None:
    require_root("buildah with a storage of its own")
    buildah, reference = Buildah(home), f"{registry.host}/buildah/built:v1"
    with open(os.path.join(home, "message"), "w", encoding="ascii") as file:
        file.write("from the build")
    working = buildah.run("from", "scratch").strip()
    buildah.run("copy", working, "message", "/message")
    buildah.run("commit", working, reference)
    built = buildah.run("images", "--quiet", "--no-trunc", reference).strip()
    buildah.run("push", "--tls-verify=false", reference)
    assert raw.get("/v2/buildah/built/manifests/v1").json()["config"]["digest"] == built

    buildah.run("rm", working)
    buildah.run("rmi", "--force", reference)
    buildah.run("pull", "--tls-verify=false", reference)
    assert buildah.run("images", "--quiet", "--no-trunc", reference).strip() == built
    mounted = buildah.run("mount", buildah.run("from", "--pull-never", reference).strip()).strip()
    with open(os.path.join(mounted, "message"), encoding="ascii") as file:
        assert file.read() == "from the build"
    buildah.run("umount", "--all")


@pytest.fixture
def ctr(home: str) -> Iterator[Ctr]:
    require_root("a containerd")
    with tempfile.TemporaryDirectory(prefix="containerd-") as directory, Containerd(directory) as engine:
        yield Ctr(home, engine.socket)


def test_containerd_gets_back_an_index_of_two_platforms(
    ctr: Ctr, registry: Registry, raw: httpx.Client, layout: Layout
) -> None:
    images = [layout.image([layout.layer({"arch": arch.encode()})], arch) for arch in ("amd64", "arm64")]
    index = layout.tag("v1", layout.index(images))
    name, reference = f"{registry.host}/containerd/index", f"{registry.host}/containerd/index:v1"
    ctr.run("images", "import", "--no-unpack", "--all-platforms", "--base-name", name, packed(layout, ctr.home))
    ctr.run("images", "push", "--plain-http", reference)
    assert digest_of(raw, "containerd/index", "v1") == index["digest"]

    ctr.run("images", "rm", "--sync", reference)
    ctr.fails("content", "get", index["digest"])
    ctr.run("images", "pull", "--plain-http", "--all-platforms", "--snapshotter", "native", reference)
    for digest in contents(layout.path, index["digest"]):
        assert ctr.raw("content", "get", digest) == layout.read(digest)


def packed(layout: Layout, directory: str) -> str:
    """The layout as one tar, which is what containerd imports."""
    path = os.path.join(directory, "layout.tar")
    with tarfile.open(path, "w") as archive:
        archive.add(layout.path, arcname=".")
    return path


def test_helm_gets_back_the_chart_it_pushed(home: str, registry: Registry, raw: httpx.Client) -> None:
    helm = Helm(home)
    archive, chart = helm.package(), f"{registry.host}/charts/greeting"
    helm.push(archive, f"{registry.host}/charts")
    assert raw.get("/v2/charts/greeting/tags/list").json()["tags"] == ["1.2.3"]
    with open(archive, "rb") as pushed:
        assert helm.pull(chart, os.path.join(home, "pulled")) == pushed.read()
    assert "text: hello" in helm.run("template", f"oci://{chart}", "--version", "1.2.3", *helm.secure())
