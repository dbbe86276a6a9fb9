"""Links: the small files by which a repository says that a blob or a manifest is in it.

The one place that answers "present": it looks at the repository's link and then at the data on storage, every time,
and at nothing else (rule B3). No cache can outlive a delete, and garbage collection has one place to hook in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.errors import DigestInvalid
from cluster.oci.digest import CANONICAL, Digest
from cluster.oci.reference import RepositoryName
from cluster.registry.fairness import gather_limited
from cluster.storage import layout
from cluster.storage.driver import Driver, NotFound

LinkPath = Callable[[RepositoryName, Digest], str]


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes that a repository has."""

    digest: Digest  # as the client named it
    canonical: Digest  # where the data lies: always a sha256
    size: int  # bytes


async def read_link(driver: Driver, path: str) -> Digest | None:
    """The digest that a link holds; None when there is no link, or something that is none."""
    try:
        text = await driver.read(path)
        return Digest.parse(text.decode("ascii", "replace"))
    except (NotFound, DigestInvalid):
        return None


class Links:
    """The links of one kind: a repository's blobs, or its manifests."""

    def __init__(self, driver: Driver, path: LinkPath) -> None:
        self._driver = driver
        self._path = path

    async def find(self, name: RepositoryName, digest: Digest) -> Content | None:
        """The content, if this repository has it now."""
        canonical = await self.resolve(name, digest)
        if canonical is None:
            return None
        try:
            size = await self._driver.size(layout.blob(canonical))
        except NotFound:
            return None
        return Content(digest, canonical, size)

    async def confirm(self, name: RepositoryName, digest: Digest) -> Content | None:
        """As `find`, and it stays through a loss of power: whoever made the link may have died before that was so.

        For answers that promise it; a look alone does not (HEAD, GET).
        """
        content = await self.find(name, digest)
        if content is None:
            return None
        try:
            for known_as in {digest, content.canonical}:
                await self._driver.settle(self._path(name, known_as))
        except NotFound:
            return None
        return content

    async def resolve(self, name: RepositoryName, digest: Digest) -> Digest | None:
        """Where the data of a linked digest lies. For who reads that data next, and so sees whether it is there."""
        canonical = await read_link(self._driver, self._path(name, digest))
        if canonical is None or canonical.algorithm != CANONICAL:
            return None
        # A sha512 link is an alias: it counts as long as the sha256 link is there.
        if canonical != digest and await read_link(self._driver, self._path(name, canonical)) is None:
            return None
        return canonical

    async def missing(self, name: RepositoryName, digests: set[Digest]) -> set[Digest]:
        """Those of the digests that this repository does not have. What it has is durable (`confirm`)."""
        found = await gather_limited([self.confirm(name, digest) for digest in digests])
        return digests - {content.digest for content in found if content is not None}

    async def add(self, name: RepositoryName, digest: Digest, canonical: Digest) -> None:
        """Say that the repository has this content, whose data is durable already."""
        await self._driver.write(self._path(name, canonical), str(canonical).encode())
        if digest != canonical:
            await self._driver.write(self._path(name, digest), str(canonical).encode())

    async def remove(self, name: RepositoryName, content: Content, *aliases: Digest) -> None:
        """Take the content out of the repository, under every name it has there. Twice does no harm."""
        for digest in dict.fromkeys((content.canonical, content.digest, *aliases)):
            try:
                await self._driver.remove(self._path(name, digest))
            except NotFound:
                pass
