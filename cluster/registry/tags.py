"""Tags: movable names of manifests. Every write holds the tag's lock (rules T1 to T5); reads take none.

Each tag is a register of its own, linearizable over all nodes on one strictly consistent storage. Its link holds a
sha256, which is all that Distribution and its garbage collection understand; that the writer named the manifest by
sha512 is noted beside it. Links that hold a sha512 (we wrote such once) are read all the same.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple

from cluster.errors import NameUnknown, PreconditionFailed, Unavailable
from cluster.oci.digest import CANONICAL, Digest
from cluster.oci.reference import RepositoryName, Tag
from cluster.registry.fairness import gather_limited
from cluster.registry.links import read_link
from cluster.storage import layout
from cluster.storage.driver import Driver, LockTimeout, NotFound

_CHECK_LASTS = 30.0  # seconds
_CHECKED = 256, 200_000  # repositories, and names of their tags
_BATCH = 1000  # tags that are looked at, and sent, at a time
LOCK_TIMEOUT = 10.0  # seconds, rule T2


@dataclass(frozen=True, slots=True)
class Precondition:
    """`If-Match` and `If-None-Match` of a write (RFC 9110 section 13), as digests; "*" means any."""

    match: frozenset[str] | None = None
    none_match: frozenset[str] | None = None

    def check(self, current: Digest | None) -> None:
        """PreconditionFailed, with the current digest in its detail, when a write must not take place."""
        held = {str(current), "*"} if current is not None else set()
        if self.match is not None and not held & self.match:
            raise PreconditionFailed({"current": current and str(current), "wanted": sorted(self.match)})
        if self.none_match is not None and held & self.none_match:
            raise PreconditionFailed({"current": str(current), "unwanted": sorted(self.none_match)})


class Pointer(NamedTuple):
    """What a tag says."""

    digest: Digest  # the manifest as the tag's writer named it
    held: Digest  # what the link holds: the sha256, but for old links


class TagStore:
    """The tags of every repository."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._checked: dict[RepositoryName, tuple[list[str], float]] = {}

    async def read(self, name: RepositoryName, tag: Tag) -> Pointer | None:
        """What the tag points to, by both names.

        The second look costs a system call that finds nothing and waits for nothing: the name has to be asked for
        where it lies, because the same manifest may be put again under its other name, on any node. A name is never
        removed, so one that is missing was missing when the link was read. One that is there may be of a writer who
        has noted it, and has not replaced the link yet; so it counts when the link is found unchanged afterwards.
        """
        link = layout.tag_link(name, tag)
        held = await read_link(self._driver, link)
        while held is not None and held.algorithm == CANONICAL:
            digest = await read_link(self._driver, layout.tag_name(name, tag, held))
            if digest is None:
                break
            before, held = held, await read_link(self._driver, link)
            if held == before:
                return Pointer(digest, held)
        return None if held is None else Pointer(held, held)

    async def put(
        self,
        name: RepositoryName,
        tag: Tag,
        manifest: Pointer,
        ensure: Callable[[], Awaitable[None]],
        precondition: Precondition | None = None,
    ) -> None:
        """Point the tag to a manifest, whose link is to hold its sha256. PreconditionFailed, Unavailable (rule T2).

        `ensure` is called under the lock and makes sure that the manifest is still in the repository. Before, so
        that no reader meets a tag without it; and after: a delete of it that runs at the same time takes the link
        and then looks for tags, so one of the two sees the other.
        """
        async with self._locked(name, tag):
            if precondition is not None:
                await self.check(name, tag, precondition)
            await ensure()
            content = str(manifest.held).encode()
            await self._driver.write(layout.tag_index_link(name, tag, manifest.held), content)
            # Where the tag points to this manifest already, the name alone changes, and in one step; otherwise it
            # counts for nobody before the link is replaced.
            await self._note_name(name, tag, manifest)
            await self._driver.write(layout.tag_link(name, tag), content)
            await ensure()

    async def check(self, name: RepositoryName, tag: Tag, precondition: Precondition) -> Pointer | None:
        """What the tag points to, if it is what a write expects; else PreconditionFailed."""
        current = await self.read(name, tag)
        precondition.check(current.digest if current is not None else None)
        return current

    async def _note_name(self, name: RepositoryName, tag: Tag, manifest: Pointer) -> None:
        path = layout.tag_name(name, tag, manifest.held)
        if manifest.digest != manifest.held or await read_link(self._driver, path) is not None:
            await self._driver.write(path, str(manifest.digest).encode())

    async def delete(
        self,
        name: RepositoryName,
        tag: Tag,
        precondition: Precondition | None = None,
        only_if: Callable[[Digest], Awaitable[bool]] | None = None,
    ) -> bool:
        """Remove the tag; False when there is none, or `only_if` does not hold of what its link holds."""
        precondition = precondition or Precondition()
        current = await self.check(name, tag, precondition)
        if current is None and not await self._has_directory(name, tag):
            return False  # before a lock is made: asking for nothing must leave nothing behind
        async with self._locked(name, tag):
            current = await self.check(name, tag, precondition)
            if current is not None:
                if only_if is not None and not await only_if(current.held):
                    return False
                # The link first: it is the moment at which the tag is gone. The rest only tidies up.
                await self._driver.remove(layout.tag_link(name, tag))
            # Also where there was no link: a node may have died just here, and nobody else comes by.
            try:
                await self._driver.remove(layout.tag(name, tag))
            except NotFound:
                pass
        return current is not None

    async def _has_directory(self, name: RepositoryName, tag: Tag) -> bool:
        try:
            await self._driver.stamp(layout.tag(name, tag))
        except NotFound:
            return False
        return True

    async def pointing_to(self, name: RepositoryName, digests: set[Digest]) -> list[Tag]:
        """The tags whose links hold any of the digests now."""
        tags = [Tag(tag) for tag in await self._names(name)]
        current = await gather_limited([read_link(self._driver, layout.tag_link(name, tag)) for tag in tags])
        return [tag for tag, digest in zip(tags, current, strict=True) if digest in digests]

    async def page(self, name: RepositoryName, last: str, limit: int) -> tuple[list[str], bool]:
        """At most `limit` tags behind `last` in byte order, and whether there are more. NameUnknown."""
        found: list[str] = []
        async with aclosing(self.batches(name, last, min(limit + 1, _BATCH))) as batches:
            async for tags in batches:
                found += tags
                if len(found) > limit:
                    break
        return found[:limit], len(found) > limit

    async def batches(self, name: RepositoryName, last: str, size: int = _BATCH) -> AsyncGenerator[list[str]]:
        """All tags behind `last` in byte order, some at a time, from one listing. NameUnknown before the first."""
        names = await self._names(name)
        if not names:
            await self._must_exist(name)
        begin = bisect.bisect_right(names, last) if last else 0
        is_checked, missing = self._is_checked(name, names), begin > 0
        for start in range(begin, len(names), size):
            tags = names[start : start + size]
            if not is_checked:
                # A directory without a link is a tag on its way in or out: not one that can be pulled.
                there = await gather_limited([self._has_link(name, Tag(tag)) for tag in tags])
                missing = missing or not all(there)
                tags = list(compress(tags, there))
                if start + size >= len(names) and not missing:
                    self._note_checked(name, names)
            if tags:
                yield tags

    def _is_checked(self, name: RepositoryName, names: list[str]) -> bool:
        """Whether this very listing was found to hold nothing but tags, a short while ago."""
        checked = self._checked.get(name)
        return checked is not None and checked[0] is names and time.monotonic() < checked[1]

    def _note_checked(self, name: RepositoryName, names: list[str]) -> None:
        # Removing a tag removes its directory, which makes another listing. Only a node that died between the two
        # leaves a name behind, and that is why the note grows old.
        self._checked.pop(name, None)
        self._checked[name] = (names, time.monotonic() + _CHECK_LASTS)
        repositories, most = _CHECKED
        held = sum(len(others) for others, _ in self._checked.values())
        while len(self._checked) > 1 and (len(self._checked) > repositories or held > most):
            others, _ = self._checked.pop(next(iter(self._checked)))
            held -= len(others)

    async def _must_exist(self, name: RepositoryName) -> None:
        """A repository with manifests and no tag is one; without any, there is none. NameUnknown."""
        try:
            await self._driver.stamp(layout.manifests(name))
        except NotFound:
            raise NameUnknown({"name": name}) from None

    async def _has_link(self, name: RepositoryName, tag: Tag) -> bool:
        try:
            return await self._driver.size(layout.tag_link(name, tag)) > 0
        except NotFound:
            return False

    async def _names(self, name: RepositoryName) -> list[str]:
        try:
            return await self._driver.names(layout.tags(name))
        except NotFound:
            return []

    @asynccontextmanager
    async def _locked(self, name: RepositoryName, tag: Tag) -> AsyncIterator[None]:
        try:
            async with self._driver.lock(layout.tag_lock(name, tag), LOCK_TIMEOUT):
                yield
        except LockTimeout as error:
            raise Unavailable(
                f"another writer holds the tag {tag} of {name} and does not let go ({error}); try again later",
                headers={"Retry-After": "5"},
            ) from error
