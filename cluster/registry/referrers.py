"""Which manifests have a given subject (OCI "Listing Referrers").

The index is made of facts that never change: this manifest names that subject. So an entry is never wrong and never
removed with its manifest; whether the manifest is in the repository now is asked when the list is read. What
somebody else (Distribution, earlier or meanwhile) put into the repository is noticed by the stamp of the revisions
directory, and only what has not been looked at before is read.

There is one entry for each manifest, under its sha256; by which digest the list names it is written in the entry.
What is written while a list is asked for is a cache: where it cannot be written (storage is full, or read-only),
what was found is kept in memory, and the list is as long.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import DigestInvalid, ManifestInvalid, StorageError
from cluster.oci.digest import CANONICAL, Digest
from cluster.oci.manifest import LIMIT, Manifest, parse_stored
from cluster.oci.reference import RepositoryName
from cluster.registry.fairness import aside, gather_limited
from cluster.registry.links import Links, read_link
from cluster.storage import layout
from cluster.storage.driver import Driver, NotFound

PAGE = 3 * 1024 * 1024 + 512 * 1024  # bytes of descriptors in a page: clients read 4 MiB of a list, and no more
_ALIAS = "sha512"
_REMEMBERED = 100_000  # revisions whose names a worker keeps, of all repositories, and how many repositories
_REPOSITORIES = 4096
_SAVE_EVERY = 1000  # revisions, when a large repository is looked at for the first time
_SAVE_SHARE = 50  # what was looked at since is saved when it is more than one in so many: saving costs all of them
_TURN = 64  # revisions after which others have their turn on the event loop
_TICK = 2.0  # seconds; no file system's clock is coarser
_AT_ONCE = 8  # entries that are held at a time
_HEAVY = 256 * 1024  # bytes of entries after which they are held one by one
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Known:
    """What this worker knows of one repository. The first two are hex of a sha256, as the revisions are named."""

    seen: set[str] | None = None  # looked at: their entries are written, or in `kept`; None: storage knows
    unsaved: int = 0  # of these, how many more than storage says
    kept: dict[Digest, set[str]] = field(default_factory=dict)  # by subject: entries that could not be written
    stamp: int | None = None  # of the revisions, before they were looked at for the last time
    again: float | None = None  # when they have to be looked at again although the stamp is the same
    is_saved: bool = False  # whether storage says some of it
    writes: bool = True  # whether the look that is under way still tries to write

    @property
    def size(self) -> int:
        """Names held."""
        return len(self.seen or ()) + sum(map(len, self.kept.values()))

    def note(self, canonical: Digest) -> None:
        """A revision has been looked at."""
        if self.seen is not None and canonical.encoded not in self.seen:
            self.seen.add(canonical.encoded)
            self.unsaved += 1


class Referrers:
    """The index by subject of every repository."""

    def __init__(self, driver: Driver, *, writable: bool = True, now: Callable[[], float] = time.monotonic) -> None:
        self._driver = driver
        self._writable = writable
        self._now = now
        self._links = Links(driver, layout.revision_link)
        self._known: OrderedDict[RepositoryName, _Known] = OrderedDict()

    async def add(
        self, name: RepositoryName, digest: Digest, canonical: Digest, size: int, manifest: Manifest
    ) -> None:
        """Note the subject of a manifest of `size` bytes that is about to be acknowledged."""
        if manifest.subject is None:
            return  # it will be looked at once, by the rules for what others have stored
        await self._write(name, canonical, digest, size, manifest)
        if (known := self._known.get(name)) is not None:
            known.note(canonical)

    async def page(
        self,
        name: RepositoryName,
        subject: Digest,
        artifact_type: str | None,
        last: str,
        limit: int,
        hold: Callable[[int], None] = lambda _: None,
    ) -> tuple[list[bytes], str | None]:
        """Descriptors behind the cursor `last`, as JSON, and the cursor of the next page or None.

        At most `limit` of them, and of one more than there is room for in `PAGE` bytes only the first. `hold` is
        told how many bytes are held by now, again and again; when it raises, nothing more is read.
        """
        known = await self._catch_up(name)
        found: list[bytes] = []
        size = 0
        while True:
            entries = await self._entries(name, subject, known, last, limit)
            start, width = 0, 1
            while start < len(entries):
                batch = entries[start : start + width]
                start += len(batch)
                texts = await gather_limited([self._read(name, subject, entry, artifact_type) for entry in batch])
                read = sum(len(text) for text in texts if text is not None)
                hold(size + read)
                for entry, text in zip(batch, texts, strict=True):
                    if text is not None and found and size + len(text) > PAGE:
                        return found, last
                    last = entry
                    if text is not None:
                        found.append(text)
                        size += len(text) + 1
                    if len(found) == limit:
                        return found, last if entry != entries[-1] or len(entries) == limit else None
                width = 1 if read > _HEAVY else min(2 * width, _AT_ONCE)
                await asyncio.sleep(0)  # what is in the kernel's caches is read without waiting
            if len(entries) < limit:
                return found, None

    async def _entries(
        self, name: RepositoryName, subject: Digest, known: _Known, last: str, limit: int
    ) -> list[str]:
        """Names of entries behind `last`, at most `limit`."""
        try:
            stored = await self._driver.names(layout.referrers(name, subject), last, limit)
        except NotFound:
            stored = []
        kept = {f"{CANONICAL}-{encoded}" for encoded in known.kept.get(subject, ())}
        return sorted({*stored, *(entry for entry in kept if entry > last)})[:limit] if kept else stored

    async def _read(
        self, name: RepositoryName, subject: Digest, entry: str, artifact_type: str | None
    ) -> bytes | None:
        """The descriptor of an entry whose manifest is in the repository now, if it is of the type asked for."""
        canonical = layout.digest_of(entry)
        # Entries under a sha512 were written once; each of these has one under its sha256 by now.
        if canonical is None or canonical.algorithm != CANONICAL:
            return None
        if await self._links.find(name, canonical) is None:
            return None
        size = LIMIT
        try:
            text = await self._driver.read(layout.referrer(name, subject, canonical))
            size = len(text)
            descriptor = await aside(size, json.loads, text)
        except NotFound:
            descriptor = await self._describe(name, subject, canonical)
        except ValueError:
            return None
        if not isinstance(descriptor, dict) or artifact_type not in (None, descriptor.get("artifactType")):
            return None
        if descriptor.get("digest") != str(canonical) and not await self._is_alias(name, descriptor, canonical):
            descriptor["digest"] = str(canonical)
        return await aside(size, _dump, descriptor)

    async def _describe(self, name: RepositoryName, subject: Digest, canonical: Digest) -> dict[str, Any] | None:
        """The descriptor of a manifest whose entry could not be written."""
        known = self._known.get(name)
        if known is None or canonical.encoded not in known.kept.get(subject, ()):
            return None
        try:
            found = await self._examine(canonical)
        except NotFound:
            found = None
        if found is None:
            return None
        manifest, content = found
        return manifest.descriptor(await self._name(name, canonical, content), len(content)).to_dict()

    async def _is_alias(self, name: RepositoryName, descriptor: dict[str, Any], canonical: Digest) -> bool:
        """Whether the manifest still goes by the other digest of its descriptor."""
        try:
            alias = Digest.parse(str(descriptor.get("digest")))
        except DigestInvalid:
            return False
        return await read_link(self._driver, layout.revision_link(name, alias)) == canonical

    # What others have put there

    async def _catch_up(self, name: RepositoryName) -> _Known:
        """Look at revisions that nobody has looked at for a subject; what is known then."""
        began, stamp = self._now(), await self._stamp(name)
        known = self._known.get(name)
        if known is not None and known.stamp == stamp and (known.again is None or began < known.again):
            return known
        if known is None or (known.is_saved and not await self._is_saved(name)):
            known = _Known()  # somebody removed the index: what was written of it before is no longer there
        known.writes = self._writable
        if known.seen is None:
            known.seen = await self._load(name)
            known.is_saved = bool(known.seen)
        fresh = await self._fresh(name, known.seen)
        for start in range(0, len(fresh), _SAVE_EVERY):
            await self._look_at(name, known, fresh[start : start + _SAVE_EVERY])
            if known.unsaved > known.size // _SAVE_SHARE:
                await self._save(name, known)
        if known.size > _REMEMBERED:
            await self._save(name, known)
            if not known.unsaved and not known.kept:
                known.seen = None  # too many to be held: they are read again when something has changed
        # The stamp from before the look: what came during it is looked at next time. What came within the same tick
        # of storage's clock has the same stamp, so each is looked at twice, the second time when that must be over.
        is_over = known.stamp == stamp and known.again is not None and began >= known.again
        known.stamp, known.again = stamp, None if is_over else began + _TICK
        self._remember(name, known)
        return known

    async def _fresh(self, name: RepositoryName, seen: set[str]) -> list[Digest]:
        """Revisions that were not looked at."""
        try:
            names = await self._driver.names(layout.revisions(name, CANONICAL))
        except NotFound:
            return []
        missing = await aside(len(names) * 64, _without, names, seen)
        digests = (layout.digest_of(f"{CANONICAL}-{encoded}") for encoded in missing)
        return [digest for digest in digests if digest is not None]

    async def _look_at(self, name: RepositoryName, known: _Known, revisions: list[Digest]) -> None:
        """Note the subjects of revisions. What has no data yet is looked at again next time."""
        for number, canonical in enumerate(revisions):
            # Its link need not be there: somebody may be about to write it, and no stamp would tell of that.
            if number % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            try:
                found = await self._examine(canonical)
            except NotFound:
                continue
            if found is not None and (subject := found[0].subject) is not None:
                await self._note(name, known, canonical, subject.digest, *found)
            known.note(canonical)

    async def _examine(self, canonical: Digest) -> tuple[Manifest, bytes] | None:
        """A manifest on storage, with its bytes; None for what is none that can be served. NotFound."""
        path = layout.blob(canonical)
        if await self._driver.size(path) > LIMIT:
            return None
        content = await self._driver.read(path)
        try:
            return await aside(len(content), parse_stored, content), content
        except ManifestInvalid:
            return None  # schema 1, or worse: it has no subject

    async def _note(
        self,
        name: RepositoryName,
        known: _Known,
        canonical: Digest,
        subject: Digest,
        manifest: Manifest,
        content: bytes,
    ) -> None:
        """Write the entry of a manifest that was looked at; where that cannot be done, keep it in mind."""
        if known.writes:
            digest = await self._name(name, canonical, content)
            try:
                await self._write(name, canonical, digest, len(content), manifest)
                return
            except StorageError as error:
                self._give_up(name, known, error)
        known.kept.setdefault(subject, set()).add(canonical.encoded)

    async def _name(self, name: RepositoryName, canonical: Digest, content: bytes) -> Digest:
        """By which digest a manifest goes: by its sha512, where a client named it so."""
        try:
            await self._driver.stamp(layout.revisions(name, _ALIAS))
        except NotFound:
            return canonical
        alias = await aside(len(content), Digest.of, content, _ALIAS)
        held = await read_link(self._driver, layout.revision_link(name, alias))
        return alias if held == canonical else canonical

    async def _write(
        self, name: RepositoryName, canonical: Digest, digest: Digest, size: int, manifest: Manifest
    ) -> None:
        if manifest.subject is not None:
            entry = await aside(size, _dump, manifest.descriptor(digest, size).to_dict())
            await self._driver.write(layout.referrer(name, manifest.subject.digest, canonical), entry)

    # What was looked at

    def _remember(self, name: RepositoryName, known: _Known) -> None:
        """Keep what is known of the repositories that were asked for last; the rest is read again."""
        self._known[name] = known
        self._known.move_to_end(name)
        held = sum(other.size for other in self._known.values())
        while len(self._known) > 1 and (held > _REMEMBERED or len(self._known) > _REPOSITORIES):
            _, dropped = self._known.popitem(last=False)
            held -= dropped.size

    async def _is_saved(self, name: RepositoryName) -> bool:
        try:
            return await self._driver.size(layout.seen(name)) > 0
        except NotFound:
            return False

    async def _load(self, name: RepositoryName) -> set[str]:
        try:
            text = await self._driver.read(layout.seen(name))
        except NotFound:
            return set()
        return await aside(len(text), _split, text)

    async def _save(self, name: RepositoryName, known: _Known) -> None:
        """Say on storage which revisions have been looked at, but for those whose entries are not there."""
        if not known.writes or known.seen is None:
            return
        unsaved, names = known.unsaved, known.seen.difference(*known.kept.values())
        try:
            await self._driver.write(layout.seen(name), await aside(len(names) * 64, _join, names))
            known.unsaved -= unsaved
            known.is_saved = True
        except StorageError as error:
            self._give_up(name, known, error)

    def _give_up(self, name: RepositoryName, known: _Known, error: StorageError) -> None:
        """Write nothing more in this look: each attempt might take as long as this one, and the list waits."""
        known.writes = False
        _log.warning("the index of referrers of %s could not be written: %s", name, error)

    async def _stamp(self, name: RepositoryName) -> int | None:
        try:
            return await self._driver.stamp(layout.revisions(name, CANONICAL))
        except NotFound:
            return None


def _dump(descriptor: dict[str, Any]) -> bytes:
    try:
        return json.dumps(descriptor, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a character, which Distribution takes: it can only be written escaped
        return json.dumps(descriptor, separators=(",", ":")).encode()


def _without(names: list[str], seen: set[str]) -> list[str]:
    return [name for name in names if name not in seen]


def _split(text: bytes) -> set[str]:
    # Lines with an algorithm are of a time when other rules said what has a subject: these are looked at again.
    return {name for name in text.decode("ascii", "replace").split() if "-" not in name}


def _join(names: set[str]) -> bytes:
    return "\n".join(sorted(names)).encode()
