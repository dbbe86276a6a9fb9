"""The services on memory with a clock that stands still, and bodies and manifests to feed them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from cluster.oci.digest import Digest
from cluster.oci.manifest import OCI_INDEX, OCI_MANIFEST
from cluster.oci.reference import Reference, RepositoryName, Tag
from cluster.registry.blobs import BlobStore
from cluster.registry.catalog import Catalog
from cluster.registry.links import Content
from cluster.registry.manifests import ManifestStore, Rules
from cluster.registry.referrers import Referrers
from cluster.registry.tags import Precondition, TagStore
from cluster.registry.uploads import Body, BodyEnded, UploadService
from cluster.storage import layout
from cluster.storage.driver import Driver
from cluster.storage.memory import MemoryDriver, MemoryUploads

NAME = RepositoryName("team/app")
NOW = 1_700_000_000.0  # seconds


class Parts:
    """One node's services. With the memory of another one, the next node on the same storage."""

    def __init__(self, memory: MemoryDriver | None = None, driver: Driver | None = None) -> None:
        self.memory = memory or MemoryDriver()
        self.driver: Driver = driver or self.memory
        self.sessions = MemoryUploads(self.memory)
        self.now = NOW
        self.catalog = Catalog(self.driver)
        self.blobs = BlobStore(self.driver, self.catalog)
        self.uploads = UploadService(self.sessions, self.blobs, now=lambda: self.now)
        self.tags = TagStore(self.driver)
        self.referrers = Referrers(self.driver)
        self.manifests = self.manifest_store(Rules())

    def manifest_store(self, rules: Rules) -> ManifestStore:
        return ManifestStore(self.driver, self.blobs, self.tags, self.referrers, rules)

    async def push(
        self, content: bytes, reference: Reference | None = None, precondition: Precondition | None = None
    ) -> Digest:
        """PUT an index, by its digest where nothing else is said."""
        digest = Digest.of(content)
        await self.manifests.put(NAME, reference or digest, content, OCI_INDEX, precondition=precondition)
        return digest

    async def points_to(self, tag: Tag) -> Digest | None:
        """What a tag says, as its writer named it."""
        pointer = await self.tags.read(NAME, tag)
        return pointer.digest if pointer is not None else None

    async def add_blob(self, content: bytes) -> Digest:
        digest = Digest.of(content)
        await self.uploads.push(NAME, digest, body(content))
        return digest

    async def write_as_distribution(self, content: bytes, tag: Tag | None = None) -> Digest:
        """A manifest as somebody else puts it into the storage, link by link."""
        digest = Digest.of(content)
        files = {layout.blob(digest): content, layout.revision_link(NAME, digest): str(digest).encode()}
        if tag is not None:
            files[layout.tag_index_link(NAME, tag, digest)] = str(digest).encode()
            files[layout.tag_link(NAME, tag)] = str(digest).encode()
        for path, data in files.items():
            await self.memory.write(path, data)
        return digest

    async def bytes_of(self, content: Content) -> bytes:
        return await self.driver.read(layout.blob(content.canonical))


def body(*pieces: bytes, length: int | None = -1, content_range: str | None = None, breaks: bool = False) -> Body:
    """A body of these pieces; its Content-Length is theirs unless another one, or None, is given."""

    async def flow() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
        if breaks:
            raise BodyEnded("the connection broke")

    return Body(flow(), sum(map(len, pieces)) if length == -1 else length, content_range)


def index(text: str, children: Sequence[Digest] = (), subject: Digest | None = None, **more: Any) -> bytes:
    """An image index with something of its own."""
    fields: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [{"mediaType": OCI_MANIFEST, "digest": str(child), "size": 2} for child in children],
        "annotations": {"text": text},
    }
    if subject is not None:
        fields["subject"] = {"mediaType": OCI_INDEX, "digest": str(subject), "size": 2}
    return json.dumps(fields | more).encode()
