"""The running registry that the conformance tests talk to, and images made for them."""

import os
import tempfile
from collections.abc import Iterator

import httpx
import pytest

from tests.support.images import Descriptor, Layout, root_files
from tests.support.process import Distribution2, Distribution3, Node, Registry

KINDS: dict[str, type[Registry]] = {"node": Node, "distribution2": Distribution2, "distribution3": Distribution3}
ACCEPT = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, " + (
    "application/vnd.docker.distribution.manifest.v2+json"
)


WORKERS = [pytest.param(1, id="one-worker"), pytest.param(4, id="four-workers", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=WORKERS)
def running(request: pytest.FixtureRequest) -> Iterator[Registry]:
    """A registry for the tests of one file; REGISTRY_UNDER_TEST names another one to compare ours with."""
    kind = KINDS[os.environ.get("REGISTRY_UNDER_TEST", "node")]
    with (
        tempfile.TemporaryDirectory(prefix="registry-") as directory,
        kind(directory, {"cluster": {"workers": request.param}} if kind is Node else None) as registry,
    ):
        yield registry


@pytest.fixture
def registry(running: Registry) -> Iterator[Registry]:
    """The running registry; where a test fails, what it logged meanwhile is shown."""
    before = len(running.log())
    yield running
    print(running.log()[before:][-5_000:])


@pytest.fixture
def raw(registry: Registry) -> Iterator[httpx.Client]:
    """Plain HTTP to the registry, for what no client tells."""
    with httpx.Client(base_url=registry.url, timeout=60, trust_env=False, headers={"Accept": ACCEPT}) as client:
        yield client


@pytest.fixture
def layout(tmp_path: os.PathLike[str]) -> Layout:
    return Layout(os.path.join(tmp_path, "made"))


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """An image of two layers, `v1` in the layout."""
    layers = [layout.layer(root_files(layout.path)), layout.layer({"etc/motd": b"welcome"})]
    return layout.tag("v1", layout.image(layers))
