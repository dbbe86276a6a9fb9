"""Real images made on the spot: OCI layouts, artifacts and archives for `docker load`.

Owns the bytes of test images and the reading back of what a client pulled; drives no client and no registry.
Large layers are written as a stream, and the same arguments give the same bytes.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Descriptor = dict[str, Any]
"""An OCI descriptor as it stands in JSON: mediaType, digest, size and what else belongs to it."""

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = LAYER + "+gzip"
EMPTY_JSON = "application/vnd.oci.empty.v1+json"
KIB = 1024
MIB = 1024 * KIB


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sha256_of(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return "sha256:" + digest.hexdigest()


def noise(size: int, seed: int = 0) -> Iterator[bytes]:
    """That many bytes that cannot be compressed, a mebibyte at a time."""
    source = random.Random(seed)
    for start in range(0, size, MIB):
        yield source.randbytes(min(MIB, size - start))


@dataclass(frozen=True)
class Layer:
    """A layer as the manifest sees it, and the digest of its uncompressed tar, as the config sees it."""

    descriptor: Descriptor
    diff_id: str


class Layout:
    """An OCI image layout directory that grows by what is added to it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        os.makedirs(os.path.join(self.path, "blobs", "sha256"), exist_ok=True)
        self._write("oci-layout", {"imageLayoutVersion": "1.0.0"})
        self._tags: dict[str, Descriptor] = {}

    def file(self, digest: str) -> str:
        """Where a blob of this layout lies."""
        return os.path.join(self.path, "blobs", *digest.split(":"))

    def read(self, digest: str) -> bytes:
        with open(self.file(digest), "rb") as file:
            return file.read()

    def stream(self, chunks: Iterable[bytes], media_type: str) -> Descriptor:
        """Add a blob that need not fit into memory."""
        digest, size = hashlib.sha256(), 0
        with tempfile.NamedTemporaryFile(dir=self.path, delete=False) as file:
            for chunk in chunks:
                digest.update(chunk)
                size += file.write(chunk)
        name = "sha256:" + digest.hexdigest()
        os.replace(file.name, self.file(name))
        return {"mediaType": media_type, "digest": name, "size": size}

    def blob(self, data: bytes, media_type: str = "application/octet-stream") -> Descriptor:
        return self.stream([data], media_type)

    def json(self, value: Mapping[str, Any], media_type: str) -> Descriptor:
        return self.blob(json.dumps(value).encode(), media_type)

    def layer(self, files: Mapping[str, bytes]) -> Layer:
        """A gzip layer that holds these files."""
        members = ((name, len(data), [data]) for name, data in files.items())
        return self._gzip_layer(_tar(members), level=6)

    def big_layer(self, mebibytes: int, seed: int = 0) -> Layer:
        """A gzip layer of a little more than that many MiB: one file of noise, stored, not compressed."""
        size = mebibytes * MIB
        return self._gzip_layer(_tar([("noise", size, noise(size, seed))]), level=0)

    def zero_layer(self) -> Layer:
        """A layer of zero bytes, which is a tar without members too."""
        descriptor = self.blob(b"", LAYER)
        return Layer(descriptor, descriptor["digest"])

    def image(self, layers: Sequence[Layer], architecture: str = "amd64", **more: object) -> Descriptor:
        """An image manifest with its config; `more` goes into the manifest (subject, annotations)."""
        config = {
            "architecture": architecture,
            "os": "linux",
            "created": "2024-01-01T00:00:00Z",
            "config": {"Cmd": ["/bin/program"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created_by": f"layer {n}"} for n, _ in enumerate(layers)],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.json(config, CONFIG),
            "layers": [layer.descriptor for layer in layers],
            **more,
        }
        return self.json(manifest, MANIFEST) | {"platform": {"os": "linux", "architecture": architecture}}

    def index(self, manifests: Sequence[Descriptor]) -> Descriptor:
        return self.json({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(manifests)}, INDEX)

    def artifact(self, artifact_type: str, data: bytes, subject: Descriptor | None = None) -> Descriptor:
        """An artifact with one layer, referring to its subject if one is given."""
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": artifact_type,
            "config": self.blob(b"{}", EMPTY_JSON),
            "layers": [self.blob(data)],
        }
        if subject is not None:
            manifest["subject"] = {key: subject[key] for key in ("mediaType", "digest", "size")}
        return self.json(manifest, MANIFEST)

    def tag(self, name: str, descriptor: Descriptor) -> Descriptor:
        """Give it a name in index.json, which is what clients copy by."""
        self._tags[name] = descriptor
        named = [
            entry | {"annotations": {"org.opencontainers.image.ref.name": tag}} for tag, entry in self._tags.items()
        ]
        self._write("index.json", {"schemaVersion": 2, "mediaType": INDEX, "manifests": named})
        return descriptor

    def _gzip_layer(self, tar: Iterable[bytes], level: int) -> Layer:
        plain = hashlib.sha256()
        descriptor = self.stream(_gzip(tar, level, plain), LAYER_GZIP)
        return Layer(descriptor, "sha256:" + plain.hexdigest())

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        with open(os.path.join(self.path, name), "w", encoding="utf-8") as file:
            json.dump(value, file)


def contents(path: str | os.PathLike[str], digest: str) -> dict[str, int]:
    """Digest and size of all that a manifest in a layout reaches, after hashing every one of the files."""
    file = os.path.join(path, "blobs", *digest.split(":"))
    with open(file, "rb") as blob:
        found = sha256_of(iter(lambda: blob.read(MIB), b""))
    assert found == digest, f"{file} holds {found}"
    reached = {digest: os.path.getsize(file)}
    for child in _children(file):
        reached |= contents(path, child["digest"])
        assert reached[child["digest"]] == child["size"], f"{child} has another size"
    return reached


def _children(file: str) -> list[Descriptor]:
    """What a manifest or an index refers to; nothing for any other blob."""
    if os.path.getsize(file) > 4 * MIB:
        return []
    with open(file, "rb") as blob:
        try:
            value = json.load(blob)
        except ValueError:
            return []
    if not isinstance(value, dict) or value.get("schemaVersion") != 2:
        return []
    config = [value["config"]] if "config" in value else []
    return [*config, *value.get("layers", []), *value.get("manifests", [])]


def docker_archive(layout: Layout, image: Descriptor, name: str, path: str) -> str:
    """Write an image as `docker save` would, for `docker load`; its id, which is the digest of its config."""
    manifest = json.loads(layout.read(image["digest"]))
    config = manifest["config"]["digest"]
    files = {f"{config.partition(':')[2]}.json": layout.read(config)}
    for layer in manifest["layers"]:
        hexadecimal = layer["digest"].partition(":")[2]
        files[f"{hexadecimal}/layer.tar"] = zlib.decompress(layout.read(layer["digest"]), wbits=31)
    names = list(files)
    files["manifest.json"] = json.dumps([{"Config": names[0], "RepoTags": [name], "Layers": names[1:]}]).encode()
    with open(path, "wb") as archive:
        archive.writelines(_tar((member, len(data), [data]) for member, data in files.items()))
    return str(config)


def diff_ids_in_archive(path: str) -> list[str]:
    """The digests of the layers in an archive that `docker save` wrote, in order."""
    with tarfile.open(path) as archive:

        def read(name: str) -> bytes:
            member = archive.extractfile(name)
            assert member is not None, f"{name} is no file"
            return member.read()

        (image,) = json.loads(read("manifest.json"))
        return [sha256(read(layer)) for layer in image["Layers"]]


def root_files(directory: str) -> dict[str, bytes]:
    """A small root file system: one program (busybox, or one compiled here), where there is one, and a text."""
    files = {"etc/os-release": b'NAME="made for a test"\n'}
    program = shutil.which("busybox", path="/bin:/usr/bin") or _compiled(directory)
    if program:
        with open(program, "rb") as file:
            files["bin/program"] = file.read()
    return files


def _compiled(directory: str) -> str | None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    source, program = os.path.join(directory, "program.c"), os.path.join(directory, "program")
    with open(source, "w", encoding="ascii") as file:
        file.write('#include <stdio.h>\nint main(void) { return puts("it runs") < 0; }\n')
    done = subprocess.run([compiler, "-static", "-o", program, source], capture_output=True, check=False)
    return program if done.returncode == 0 else None


def _tar(members: Iterable[tuple[str, int, Iterable[bytes]]]) -> Iterator[bytes]:
    """A tar of these names, sizes and bytes as a stream; everything is executable, nothing has a date."""
    for name, size, chunks in members:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o755
        yield info.tobuf(tarfile.GNU_FORMAT)
        yield from chunks
        yield bytes(-size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _gzip(chunks: Iterable[bytes], level: int, plain: Any) -> Iterator[bytes]:
    """The same stream as gzip, while `plain` (a hash) sees what goes in."""
    packer = zlib.compressobj(level, zlib.DEFLATED, wbits=31)
    for chunk in chunks:
        plain.update(chunk)
        yield packer.compress(chunk)
    yield packer.flush()
