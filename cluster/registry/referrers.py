"""Which manifests have a given subject (OCI "Listing Referrers").

The index is made of facts that never change: this manifest names that subject. So an entry is never wrong and never
removed with its manifest; whether the manifest is in the repository now is asked when the list is read. What
somebody else (Distribution, earlier or meanwhile) put into the repository is noticed by the stamp of the revisions
directory, and only what has not been looked at before is read.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

from cluster.errors import ManifestInvalid
from cluster.oci.digest import ALGORITHMS, CANONICAL, Digest
from cluster.oci.manifest import LIMIT, Manifest, parse_manifest
from cluster.oci.reference import RepositoryName
from cluster.registry.links import Links, gather_limited, read_link
from cluster.storage import layout
from cluster.storage.driver import Driver, NotFound

_REPOSITORIES = 4096  # whose stamps a worker remembers
_SAVE_EVERY = 1000  # revisions, when a large repository is looked at for the first time

Stamps = tuple[int | None, ...]


class Referrers:
    """The index by subject of every repository."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._links = Links(driver, layout.revision_link)
        self._complete: OrderedDict[RepositoryName, Stamps] = OrderedDict()

    async def add(self, name: RepositoryName, digest: Digest, size: int, manifest: Manifest) -> None:
        """Note the subject of a manifest of `size` bytes that is about to be acknowledged."""
        if manifest.subject is not None:
            entry = json.dumps(manifest.descriptor(digest, size).to_dict(), separators=(",", ":"))
            await self._driver.write(layout.referrer(name, manifest.subject.digest, digest), entry.encode())

    async def page(
        self, name: RepositoryName, subject: Digest, artifact_type: str | None, last: str, limit: int
    ) -> tuple[list[dict[str, Any]], str | None]:
        """At most `limit` descriptors behind the cursor `last`, and the cursor of the next page or None."""
        await self._catch_up(name)
        found: list[dict[str, Any]] = []
        while len(found) < limit:
            try:
                entries = await self._driver.names(layout.referrers(name, subject), last, limit)
            except NotFound:
                return found, None
            descriptors = await gather_limited([self._read(name, subject, entry) for entry in entries])
            for entry, descriptor in zip(entries, descriptors, strict=True):
                last = entry
                if descriptor and artifact_type in (None, descriptor.get("artifactType")):
                    found.append(descriptor)
                if len(found) == limit:
                    return found, last if entry != entries[-1] or len(entries) == limit else None
            if len(entries) < limit:
                return found, None
        return found, last

    async def _read(self, name: RepositoryName, subject: Digest, entry: str) -> dict[str, Any] | None:
        """The descriptor of an entry whose manifest is in the repository now."""
        digest = layout.digest_of(entry)
        if digest is None or await self._links.find(name, digest) is None:
            return None
        try:
            descriptor = json.loads(await self._driver.read(layout.referrer(name, subject, digest)))
        except (NotFound, ValueError):
            return None
        return descriptor if isinstance(descriptor, dict) else None

    async def _catch_up(self, name: RepositoryName) -> None:
        """Look at revisions that nobody has looked at for a subject."""
        stamps = tuple([await self._stamp(name, algorithm) for algorithm in ALGORITHMS])
        if self._complete.get(name) == stamps:
            return
        seen = await self._seen(name)
        # Aliases first: a manifest that a client named by sha512 goes by that name in the list.
        aliases = [Digest("sha512", encoded) for encoded in await self._revisions(name, "sha512")]
        links = [read_link(self._driver, layout.revision_link(name, alias)) for alias in aliases]
        named = set(await gather_limited(links))
        plain = [Digest(CANONICAL, encoded) for encoded in await self._revisions(name, CANONICAL)]
        fresh = [digest for digest in [*aliases, *plain] if layout.file_name(digest) not in seen]
        for start in range(0, len(fresh), _SAVE_EVERY):
            for digest in fresh[start : start + _SAVE_EVERY]:
                if digest in named or await self._look_at(name, digest):
                    seen.add(layout.file_name(digest))
            await self._driver.write(layout.seen(name), "\n".join(sorted(seen)).encode())
        # Stamps from before the look: what came during it is looked at next time.
        self._complete[name] = stamps
        self._complete.move_to_end(name)
        while len(self._complete) > _REPOSITORIES:
            self._complete.popitem(last=False)

    async def _seen(self, name: RepositoryName) -> set[str]:
        try:
            return set((await self._driver.read(layout.seen(name))).decode("ascii", "replace").split())
        except NotFound:
            return set()

    async def _stamp(self, name: RepositoryName, algorithm: str) -> int | None:
        try:
            return await self._driver.stamp(layout.revisions(name, algorithm))
        except NotFound:
            return None

    async def _revisions(self, name: RepositoryName, algorithm: str) -> list[str]:
        try:
            names = await self._driver.names(layout.revisions(name, algorithm))
        except NotFound:
            return []
        return [encoded for encoded in names if layout.digest_of(f"{algorithm}-{encoded}") is not None]

    async def _look_at(self, name: RepositoryName, digest: Digest) -> bool:
        """Note the subject of a revision; False when it is to be looked at again next time."""
        # Its link need not be there: somebody may be about to write it, and no stamp that we look at would tell.
        canonical = digest
        if digest.algorithm != CANONICAL:
            alias = await read_link(self._driver, layout.revision_link(name, digest))
            if alias is None or alias.algorithm != CANONICAL:
                return False
            canonical = alias
        try:
            if await self._driver.size(layout.blob(canonical)) <= LIMIT:
                data = await self._driver.read(layout.blob(canonical))
                await self.add(name, digest, len(data), parse_manifest(data))
        except NotFound:
            return False
        except ManifestInvalid:
            pass  # schema 1, or worse: it has no subject
        return True
