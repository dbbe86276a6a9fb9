"""Blobs of a repository: look up, read, delete, mount."""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster.errors import BlobUnknown
from cluster.oci.digest import CANONICAL, Digest
from cluster.oci.manifest import BLOB_MEDIA_TYPE, Descriptor
from cluster.oci.reference import RepositoryName
from cluster.registry.catalog import Catalog
from cluster.registry.links import Content, Links
from cluster.state.store import Announcements
from cluster.storage import layout
from cluster.storage.driver import Driver, NotFound, Reader

_SEARCH_BUDGET = 0.2  # seconds an anonymous mount may look for a repository that has the blob

MayPull = Callable[[RepositoryName], bool]


class BlobStore:
    """Which blobs a repository has, and their bytes."""

    def __init__(self, driver: Driver, catalog: Catalog, descriptors: Announcements | None = None) -> None:
        self._driver = driver
        self._catalog = catalog
        self._descriptors = descriptors  # told of what comes and goes, for Distribution nodes; never asked
        self.links = Links(driver, layout.layer_link)

    async def stat(self, name: RepositoryName, digest: Digest) -> Content:
        """The blob, if the repository has it; else BlobUnknown."""
        content = await self.links.find(name, digest)
        if content is None:
            raise BlobUnknown(f"{name} has no blob {digest}")
        return content

    async def confirm(self, name: RepositoryName, digest: Digest) -> Content:
        """As `stat`, for an answer that says that it was stored (`Links.confirm`)."""
        content = await self.links.confirm(name, digest)
        if content is None:
            raise BlobUnknown(f"{name} has no blob {digest}")
        return content

    async def open(self, content: Content) -> Reader:
        """The bytes of a blob that `stat` found. BlobUnknown when they have gone meanwhile."""
        try:
            return await self._driver.open(layout.blob(content.canonical))
        except NotFound:
            raise BlobUnknown(f"the data of {content.digest} is gone") from None

    async def delete(self, name: RepositoryName, digest: Digest) -> None:
        """Take the blob out of the repository; its bytes stay for others. BlobUnknown."""
        content = await self.stat(name, digest)
        await self.links.remove(name, content)
        await self.forget(name, content)

    async def forget(self, name: RepositoryName, content: Content) -> None:
        """Tell Distribution nodes that content left the repository, before the client hears of it."""
        if self._descriptors is not None:
            await self._descriptors.forget(name, [content.digest, content.canonical])

    async def add(self, name: RepositoryName, content: Content) -> None:
        """Make content whose data is durable a blob of the repository."""
        await self.links.add(name, content.digest, content.canonical)
        if self._descriptors is not None:
            descriptor = Descriptor(BLOB_MEDIA_TYPE, content.canonical, content.size)

            async def is_there() -> bool:
                return await self.links.find(name, content.digest) is not None

            await self._descriptors.remember(name, content.digest, descriptor, is_there)

    async def mount(self, name: RepositoryName, digest: Digest, source: RepositoryName) -> Content | None:
        """Make a blob of `source` a blob of this repository (OCI end-11). None when source does not have it."""
        content = await self.links.find(source, digest)
        if content is not None:
            await self.add(name, content)
        return content

    async def mount_from_any(
        self, name: RepositoryName, digest: Digest, may_pull: MayPull | None = None
    ) -> Content | None:
        """The same from whichever repository has it that the caller may pull; None when none is found in time.

        A caller who may pull everything (None) is told at once when nobody has it. Others are not: how long they
        wait must not depend on what is in repositories that they may not pull.
        """
        try:
            if may_pull is None and digest.algorithm == CANONICAL:
                await self._driver.size(layout.blob(digest))
        except NotFound:
            return None
        deadline = time.monotonic() + _SEARCH_BUDGET
        async for source in self._catalog.walk(mark=layout.LAYERS_DIRECTORY):
            if time.monotonic() > deadline:
                return None
            if may_pull is not None and not may_pull(source):
                continue
            if (content := await self.mount(name, digest, source)) is not None:
                return content
        return None
