"""Stock clients push, pull, list, mount and delete real images on a running node."""

import gzip
import json
import os
import platform
import socket
import tempfile
from collections.abc import Iterator
from functools import partial

import httpx
import pytest

from tests.conformance.clients import Copier, Crane, Docker, DockerEngine, Engine, Oras, Podman, Regctl, Skopeo
from tests.support.images import (
    KIB,
    MIB,
    Descriptor,
    Layout,
    contents,
    diff_ids_in_archive,
    docker_archive,
    noise,
    sha256,
    sha256_of,
)
from tests.support.process import Registry, eventually
from tests.support.tools import require_root

pytestmark = pytest.mark.clients

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


def copiers(*kinds: type[Copier]) -> pytest.MarkDecorator:
    """Run a test once for each of these clients."""
    return pytest.mark.parametrize("copier", kinds, indirect=True, ids=lambda kind: kind.program)


EVERY_COPIER = copiers(Skopeo, Crane, Oras, Regctl)


@pytest.fixture
def copier(request: pytest.FixtureRequest, registry: Registry, tmp_path: os.PathLike[str]) -> Copier:
    made: Copier = request.param(os.path.join(tmp_path, "home"), registry.host)
    return made


@pytest.fixture(scope="module")
def docker_socket() -> Iterator[str]:
    require_root("a Docker engine")
    with tempfile.TemporaryDirectory(prefix="engine-") as directory, DockerEngine(directory) as engine:
        yield engine.socket


@pytest.fixture(params=["podman", "docker"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    # podman takes no path longer than 50 characters for what it holds at run time.
    with tempfile.TemporaryDirectory(prefix="home-") as home:
        if request.param == "docker":
            yield Docker(home, request.getfixturevalue("docker_socket"))
        else:
            require_root("podman with a storage of its own")
            yield Podman(home)


def digest_of(raw: httpx.Client, repository: str, reference: str) -> str | None:
    """The digest under which the registry serves a manifest, or None."""
    answer = raw.head(f"/v2/{repository}/manifests/{reference}")
    return answer.headers["Docker-Content-Digest"] if answer.status_code == 200 else None


def goes_there_and_back(
    copier: Copier, raw: httpx.Client, layout: Layout, image: Descriptor, repository: str
) -> None:
    """Push an image, pull it into another layout, and compare every byte that it reaches."""
    reference = f"{copier.host}/{repository}:v1"
    copier.push(f"{layout.path}:v1", reference)
    assert digest_of(raw, repository, "v1") == image["digest"]
    pulled = os.path.join(copier.home, "pulled")
    copier.pull(reference, f"{pulled}:v1")
    assert contents(pulled, image["digest"]) == contents(layout.path, image["digest"])


@EVERY_COPIER
def test_an_image_comes_back_byte_for_byte(
    copier: Copier, raw: httpx.Client, layout: Layout, image: Descriptor
) -> None:
    goes_there_and_back(copier, raw, layout, image, f"{copier.program}/image")


@EVERY_COPIER
def test_an_index_of_two_platforms_comes_back_byte_for_byte(
    copier: Copier, raw: httpx.Client, layout: Layout
) -> None:
    shared = layout.layer({"shared": b"by both"})
    images = [layout.image([shared, layout.layer({"arch": arch.encode()})], arch) for arch in ("amd64", "arm64")]
    index = layout.tag("v1", layout.index(images))
    goes_there_and_back(copier, raw, layout, index, f"{copier.program}/deep/er/index")
    for child in images:
        assert digest_of(raw, f"{copier.program}/deep/er/index", child["digest"]) == child["digest"]


@EVERY_COPIER
def test_a_layer_of_zero_bytes_comes_back(copier: Copier, raw: httpx.Client, layout: Layout) -> None:
    image = layout.tag("v1", layout.image([layout.layer({"a": b"b"}), layout.zero_layer()]))
    goes_there_and_back(copier, raw, layout, image, f"{copier.program}/zero")
    empty = raw.get(f"/v2/{copier.program}/zero/blobs/{sha256(b'')}")
    assert (empty.status_code, empty.content) == (200, b"")


@copiers(Crane, Oras, Regctl)
def test_an_artifact_comes_back_byte_for_byte(copier: Copier, raw: httpx.Client, layout: Layout) -> None:
    artifact = layout.tag("v1", layout.artifact("application/vnd.example.report", b"all is well"))
    goes_there_and_back(copier, raw, layout, artifact, f"{copier.program}/artifact")


@copiers(Skopeo)
def test_a_layer_of_a_gibibyte_comes_back_and_is_served_whole(
    copier: Copier, raw: httpx.Client, gibibyte: tuple[Layout, Descriptor, Descriptor]
) -> None:
    layout, image, layer = gibibyte
    with tempfile.TemporaryDirectory(prefix="home-") as home:
        goes_there_and_back(Skopeo(home, copier.host), raw, layout, image, "skopeo/large")
    with raw.stream("GET", f"/v2/skopeo/large/blobs/{layer['digest']}") as answer:
        assert int(answer.headers["Content-Length"]) == layer["size"] > 1024 * MIB
        assert sha256_of(answer.iter_bytes(MIB)) == layer["digest"]


@pytest.fixture(scope="module")
def gibibyte() -> Iterator[tuple[Layout, Descriptor, Descriptor]]:
    """An image whose first layer has a little over a gibibyte: its layout, its manifest, that layer."""
    with tempfile.TemporaryDirectory(prefix="gibibyte-") as directory:
        layout = Layout(directory)
        large = layout.big_layer(1024)
        yield layout, layout.tag("v1", layout.image([large, layout.layer({"a": b"b"})])), large.descriptor


@copiers(Oras, Regctl)
def test_an_artifact_is_found_by_its_subject(
    copier: Oras | Regctl, raw: httpx.Client, layout: Layout, image: Descriptor
) -> None:
    repository = f"{copier.program}/subject"
    reference = f"{copier.host}/{repository}:v1"
    copier.push(f"{layout.path}:v1", reference)
    for kind in ("sbom", "signature"):
        with open(os.path.join(copier.home, kind), "w", encoding="ascii") as file:
            file.write(f"a {kind}")
        copier.attach(reference, f"application/vnd.example.{kind}", kind)

    listed = raw.get(f"/v2/{repository}/referrers/{image['digest']}")
    assert listed.status_code == 200, listed.text
    digests = {entry["artifactType"].rpartition(".")[2]: entry["digest"] for entry in listed.json()["manifests"]}
    assert set(digests) == {"sbom", "signature"}
    for kind, digest in digests.items():
        assert copier.referrers(reference, f"application/vnd.example.{kind}") == [digest]
        manifest = raw.get(f"/v2/{repository}/manifests/{digest}").json()
        assert manifest["subject"]["digest"] == image["digest"]
        content = raw.get(f"/v2/{repository}/blobs/{manifest['layers'][0]['digest']}")
        assert content.text == f"a {kind}"


@EVERY_COPIER
def test_a_copy_to_another_repository_mounts_the_layers(
    copier: Copier, registry: Registry, raw: httpx.Client, layout: Layout, image: Descriptor
) -> None:
    source, target = f"{copier.program}/mount/source", f"{copier.program}/mount/target"
    copier.push(f"{layout.path}:v1", f"{copier.host}/{source}:v1")
    copier.copy(f"{copier.host}/{source}:v1", f"{copier.host}/{target}:v1")
    assert digest_of(raw, target, "v1") == image["digest"]
    layers = json.loads(layout.read(image["digest"]))["layers"]
    for layer in layers:
        assert raw.get(f"/v2/{target}/blobs/{layer['digest']}").content == layout.read(layer["digest"])

    for layer in layers:
        about = f"/v2/{target}/", layer["digest"].partition(":")[2]
        eventually(partial(logged, registry, "POST", "mount=", *about), 20, "the layer was mounted")
        assert not logged(registry, "PUT", *about), "the layer was uploaded all the same"


def logged(registry: Registry, *words: str) -> list[str]:
    """The lines of the access log that hold all these words."""
    return [line for line in registry.log().splitlines() if all(word in line for word in words)]


@EVERY_COPIER
def test_tags_are_listed_in_byte_order(copier: Copier, layout: Layout, image: Descriptor) -> None:
    repository = f"{copier.host}/{copier.program}/tags"
    for tag in ("v2", "Z", "v10", "a.b"):
        copier.push(f"{layout.path}:v1", f"{repository}:{tag}")
    assert copier.tags(repository) == ["Z", "a.b", "v10", "v2"]


@copiers(Crane, Oras, Regctl)
def test_the_catalog_lists_what_was_pushed(
    copier: Crane | Oras | Regctl, layout: Layout, image: Descriptor
) -> None:
    pushed = {f"{copier.program}/catalog/{name}" for name in ("a", "a/b", "a-b")}
    for repository in pushed:
        copier.push(f"{layout.path}:v1", f"{copier.host}/{repository}:v1")
    assert pushed <= set(copier.repositories())


@copiers(Crane, Regctl)
def test_deleting_a_tag_leaves_the_other_tags(
    copier: Copier, raw: httpx.Client, layout: Layout, image: Descriptor
) -> None:
    repository = f"{copier.program}/untag"
    for tag in ("v1", "keep"):
        copier.push(f"{layout.path}:v1", f"{copier.host}/{repository}:{tag}")
    copier.delete(f"{copier.host}/{repository}:v1")
    assert digest_of(raw, repository, "v1") is None
    assert digest_of(raw, repository, "keep") == image["digest"]
    assert copier.tags(f"{copier.host}/{repository}") == ["keep"]


@EVERY_COPIER
def test_deleting_a_manifest_by_digest_takes_its_tags(
    copier: Copier, raw: httpx.Client, layout: Layout, image: Descriptor
) -> None:
    repository = f"{copier.program}/delete"
    copier.push(f"{layout.path}:v1", f"{copier.host}/{repository}:v1")
    copier.delete(f"{copier.host}/{repository}@{image['digest']}")
    assert digest_of(raw, repository, "v1") is None
    assert digest_of(raw, repository, image["digest"]) is None
    copier.push(f"{layout.path}:v1", f"{copier.host}/{repository}:v1")
    assert digest_of(raw, repository, "v1") == image["digest"]


def test_an_engine_gets_back_what_it_pushed(
    engine: Engine, registry: Registry, raw: httpx.Client, layout: Layout, image: Descriptor
) -> None:
    repository = f"{engine.program}/pushed"
    reference, archive = f"{registry.host}/{repository}:v1", os.path.join(engine.home, "image.tar")
    identity = docker_archive(layout, image, reference, archive)
    engine.load(archive)
    engine.push(reference)

    manifest = raw.get(f"/v2/{repository}/manifests/v1").json()
    assert manifest["config"]["digest"] == identity
    blobs = [raw.get(f"/v2/{repository}/blobs/{layer['digest']}").content for layer in manifest["layers"]]
    assert [sha256(gzip.decompress(blob)) for blob in blobs] == diff_ids_in_archive(archive)

    engine.remove(reference)
    engine.pull(reference)
    assert engine.image_id(reference) == identity
    engine.save(reference, os.path.join(engine.home, "saved.tar"))
    assert diff_ids_in_archive(os.path.join(engine.home, "saved.tar")) == diff_ids_in_archive(archive)


def test_an_engine_takes_its_platform_from_an_index(
    engine: Engine, registry: Registry, layout: Layout, tmp_path: os.PathLike[str]
) -> None:
    images = {a: layout.image([layout.layer({"arch": a.encode()})], a) for a in ("amd64", "arm64")}
    layout.tag("v1", layout.index(list(images.values())))
    reference = f"{registry.host}/{engine.program}/index:v1"
    Crane(os.path.join(tmp_path, "crane"), registry.host).push(f"{layout.path}:v1", reference)
    engine.pull(reference)
    wanted = json.loads(layout.read(images[ARCHITECTURE]["digest"]))["config"]["digest"]
    assert engine.image_id(reference) == wanted


def test_an_upload_whose_connection_broke_goes_on_where_it_stopped(registry: Registry, raw: httpx.Client) -> None:
    data = b"".join(noise(8 * MIB, seed=7))
    half = len(data) // 2
    location = raw.post("/v2/raw/resumed/blobs/uploads/").headers["Location"]
    send_and_break(registry, location, data[:half], announced=len(data))

    def kept() -> int:
        """How much of it the registry has, as a client reads it from the status of the upload."""
        answer = raw.get(location)
        assert answer.status_code == 204
        return int(answer.headers["Range"].removeprefix("0-")) + 1

    # What was still on its way through the node may be lost: it holds no more than this for one request.
    eventually(lambda: half - 256 * KIB <= kept() <= half, 20, "the upload kept what was sent")
    start = kept()
    answer = raw.patch(
        raw.get(location).headers["Location"],
        content=data[start:],
        headers={"Content-Range": f"{start}-{len(data) - 1}", "Content-Type": "application/octet-stream"},
    )
    assert (answer.status_code, answer.headers["Range"]) == (202, f"0-{len(data) - 1}")
    digest = sha256(data)
    done = raw.put(httpx.URL(answer.headers["Location"]).copy_merge_params({"digest": digest}))
    assert (done.status_code, done.headers["Docker-Content-Digest"]) == (201, digest)
    assert raw.get(f"/v2/raw/resumed/blobs/{digest}").content == data


def send_and_break(registry: Registry, location: str, body: bytes, announced: int) -> None:
    """A PATCH that announces more than it sends, and whose connection then closes."""
    target = httpx.URL(location).raw_path.decode()
    head = [
        f"PATCH {target} HTTP/1.1",
        f"Host: {registry.host}",
        f"Content-Length: {announced}",
        f"Content-Range: 0-{announced - 1}",
        "Content-Type: application/octet-stream",
    ]
    with socket.create_connection(("127.0.0.1", registry.port), timeout=30) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
