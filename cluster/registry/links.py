"""Links: the small files by which a repository says that a blob or a manifest is in it.

The one place that answers "present": it looks at the repository's link and then at the data on storage, every time,
and at nothing else (rule B3). No cache can outlive a delete, and garbage collection has one place to hook in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.errors import DigestInvalid
from cluster.oci.digest import CANONICAL, Digest
from cluster.oci.reference import RepositoryName
from cluster.storage import layout
from cluster.storage.driver import Driver, NotFound

T = TypeVar("T")
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
        """Those of the digests that this repository does not have."""
        found = await gather_limited([self.find(name, digest) for digest in digests])
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


_AT_ONCE = 16
_AT_ONCE_SECONDS = 0.0005  # a call that took longer had to wait for storage


async def gather_limited(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The outcomes of many small storage calls, in order.

    What is in the kernel's caches is answered at once, and one by one is fastest. When a call had to wait, the rest
    go side by side, but only some at a time: one client must not fill the pool of threads.
    """
    outcomes: list[T] = []
    width, done = 1, 0
    try:
        while done < len(calls):
            batch = calls[done : done + width]
            done += len(batch)
            started = time.perf_counter()
            outcomes += [await batch[0]] if width == 1 else await asyncio.gather(*batch)
            width = 1 if time.perf_counter() - started < _AT_ONCE_SECONDS else _AT_ONCE
    finally:
        for call in calls[done:]:
            call.close()
    return outcomes
