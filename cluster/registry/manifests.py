"""Manifests of a repository: put, with the rules of what may be missing; get; delete; and what a tag serves."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Protocol
from urllib.parse import urlsplit

from cluster.errors import (
    Denied,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    RegistryError,
    RegistryErrors,
    Unavailable,
)
from cluster.oci.digest import Digest
from cluster.oci.manifest import (
    DOCKER_LIST,
    LIMIT,
    NON_DISTRIBUTABLE,
    Descriptor,
    Manifest,
    parse_manifest,
    parse_stored,
    stored_media_type,
)
from cluster.oci.reference import Reference, RepositoryName, Tag
from cluster.registry.blobs import BlobStore
from cluster.registry.fairness import aside
from cluster.registry.links import Content, Links
from cluster.registry.referrers import Referrers
from cluster.registry.tags import Pointer, Precondition, TagStore
from cluster.storage import layout
from cluster.storage.driver import Driver, NotFound, Reader

_TYPES = 65536  # manifests whose media type a worker remembers
_LARGE = 256 * 1024  # bytes; what is larger is sent in pieces
_ALIAS = "sha512"  # the one algorithm by which a manifest may be named besides the canonical one
_OVERTAKEN = 10  # times that a tag may move while it is read
_TOLD = 1000  # errors of one answer: it is held as a whole, for clients that read slowly too (promise P7)
_CLASSES = {
    "application/vnd.docker.container.image.v1+json": "image",
    "application/vnd.oci.image.config.v1+json": "image",
    "application/vnd.docker.plugin.v1+json": "plugin",
}


class UrlPattern(Protocol):
    """A pattern of `validation.manifests.urls`. URLs are clients' own: it must take time that is linear in them."""

    def is_in(self, text: str) -> bool:
        """Whether some part of the text matches."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a manifest may leave open: `validation`, `policy` and `cluster.sparse` of the configuration."""

    disabled: bool = False
    sparse: bool = False
    urls_allow: tuple[UrlPattern, ...] = ()
    urls_deny: tuple[UrlPattern, ...] = ()
    platforms: str = "all"  # of an index, whose children must be there: all, none, or those of the list
    platform_list: frozenset[tuple[str, str]] = field(default_factory=frozenset)  # (architecture, os)
    classes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Stored:
    """A manifest that was found."""

    digest: Digest  # as the client named it; behind a tag, as the tag's writer named it
    media_type: str
    size: int  # bytes
    content: bytes | None  # None when only its head was asked for, or it is to be read from `reader`
    reader: Reader | None = None  # of a large one that is to be sent; whoever asked closes it


Load = Callable[[RepositoryName, Pointer], Awaitable[Stored | None]]


class ManifestStore:
    """The manifests of every repository."""

    def __init__(
        self, driver: Driver, blobs: BlobStore, tags: TagStore, referrers: Referrers, rules: Rules | None = None
    ) -> None:
        self._driver = driver
        self._blobs = blobs
        self._tags = tags
        self._referrers = referrers
        self._rules = rules or Rules()
        self._links = Links(driver, layout.revision_link)
        self._types: OrderedDict[str, tuple[str, int]] = OrderedDict()  # media type and size, by hex of the sha256

    async def put(
        self,
        name: RepositoryName,
        reference: Reference,
        content: bytes,
        content_type: str | None,
        tags: Sequence[Tag] = (),
        precondition: Precondition | None = None,
    ) -> tuple[Digest, Manifest]:
        """Store a manifest and point tags to it (OCI end-7a, end-7b). Nothing has changed when it is refused.

        A tag reference is written first, and `precondition` is asked of it alone. Beside a digest it is asked of
        each of `tags`, and of nothing when there are none: content cannot change. Each tag is a register of its own
        (promise P3): when somebody moves one of several meanwhile, those before it have been written.
        """
        if len(content) > LIMIT:
            raise ManifestTooLarge(f"{len(content)} bytes: at most {LIMIT} are taken")
        canonical, digest, manifest = await aside(len(content), _read_pushed, reference, content, content_type)
        first = [reference] if isinstance(reference, Tag) else []
        guarded = dict.fromkeys(first or tags) if precondition is not None else {}
        for tag in guarded:  # and again under the lock, where it counts
            await self._tags.check(name, tag, precondition or Precondition())
        await self._check(name, manifest)

        async def ensure() -> None:
            if await self._links.find(name, digest) is None:
                await self._links.add(name, digest, canonical)

        await self._driver.write(layout.blob(canonical), content)
        await self._links.add(name, digest, canonical)
        await self._referrers.add(name, digest, canonical, len(content), manifest)
        for tag in dict.fromkeys([*first, *tags]):
            pointer = Pointer(digest, canonical)
            await self._tags.put(name, tag, pointer, ensure, precondition if tag in guarded else None)
        return digest, manifest

    async def head(self, name: RepositoryName, reference: Reference) -> Stored:
        """What is known of a manifest without its bytes (OCI end-3). ManifestUnknown."""
        return await self._look(name, reference, self._head)

    async def open(self, name: RepositoryName, reference: Reference) -> Stored:
        """A manifest with its bytes as they were pushed, for sending (OCI end-3). ManifestUnknown.

        A large one comes with a reader, for clients that take long.
        """
        return await self._look(name, reference, self._open)

    async def for_platform(
        self, name: RepositoryName, tag: Tag, platform: tuple[str, str], *, head: bool = False
    ) -> Stored:
        """What a client that knows no lists is given for a tag: of a Docker manifest list, one manifest of it.

        As `open`, or as `head`. ManifestUnknown also where the list has none for the platform, (architecture,
        operating system).
        """
        find = self._head if head else self._open

        async def load(name: RepositoryName, pointer: Pointer) -> Stored | None:
            # Only a list is read as a whole, and let go of: whoever is sent a manifest may take his time (P7).
            found = await self._head(name, pointer)
            if found is None or found.media_type != DOCKER_LIST:
                return found and await find(name, pointer)
            listing = await self._get(name, pointer)
            if listing is None:
                return None
            content = listing.content or b""
            for child in (await aside(len(content), parse_stored, content)).children:
                if child.platform and (child.platform.architecture, child.platform.os) == platform:
                    return await find(name, Pointer(child.digest, child.digest))
            raise ManifestUnknown(f"the list {listing.digest} has no manifest for {'/'.join(platform)}")

        return await self._look(name, tag, load)

    async def delete(self, name: RepositoryName, digest: Digest) -> None:
        """Take a manifest, and the tags that point to it, out of the repository (OCI end-9, rule T5)."""
        found = await self._links.find(name, digest)
        if found is None:
            raise ManifestUnknown(f"{name} has no manifest {digest}")
        names = {found.digest, found.canonical, *await self._aliases(found)}

        async def points_here(current: Digest) -> bool:
            return current in names

        async def points_nowhere(current: Digest) -> bool:
            return await self._links.find(name, current) is None

        for tag in await self._tags.pointing_to(name, names):
            await self._tags.delete(name, tag, only_if=points_here)
        await self._links.remove(name, found, *names)
        for alias in names - {found.canonical}:
            await self._blobs.forget(name, Content(alias, found.canonical, found.size))
        # A tag that was moved here meanwhile; a writer that comes later finds the link gone and makes it again.
        for tag in await self._tags.pointing_to(name, names):
            await self._tags.delete(name, tag, only_if=points_nowhere)

    async def delete_tag(self, name: RepositoryName, tag: Tag, precondition: Precondition | None) -> None:
        """Take a tag out of the repository; its manifest stays. ManifestUnknown, PreconditionFailed."""
        if not await self._tags.delete(name, tag, precondition):
            raise ManifestUnknown(f"{name} has no tag {tag}")

    async def _aliases(self, found: Content) -> list[Digest]:
        """The other names under which a manifest may be here: whoever deletes it may not know them."""
        try:
            content = await self._driver.read(layout.blob(found.canonical)) if found.size <= LIMIT else b""
        except NotFound:
            return []
        return [await aside(len(content), Digest.of, content, _ALIAS)]

    async def _look(self, name: RepositoryName, reference: Reference, load: Load) -> Stored:
        """What `load` makes of the manifest that a reference names. ManifestUnknown.

        Between reading a tag and its manifest, the tag may move and the manifest be deleted. So a tag is without
        its manifest only if it still says the same, and the manifest is still not there.
        """
        if isinstance(reference, Digest):
            return _known(await load(name, Pointer(reference, reference)), name, reference)
        pointer = await self._tags.read(name, reference)
        for _ in range(_OVERTAKEN):
            stored = await load(name, pointer) if pointer is not None else None
            if stored is not None or pointer is None:
                return _known(stored, name, reference)
            before, pointer = pointer, await self._tags.read(name, reference)
            if pointer == before:
                return _known(await load(name, before), name, reference)
        raise Unavailable("the tag moves faster than it can be read", headers={"Retry-After": "1"})

    async def _head(self, name: RepositoryName, pointer: Pointer) -> Stored | None:
        found = await self._links.find(name, pointer.held)
        if found is None:
            return None
        known = self._types.get(found.canonical.encoded)
        if known is None:
            return await self._read(pointer.digest, found.canonical)
        return Stored(pointer.digest, known[0], found.size, None)

    async def _get(self, name: RepositoryName, pointer: Pointer) -> Stored | None:
        canonical = await self._links.resolve(name, pointer.held)
        return await self._read(pointer.digest, canonical) if canonical is not None else None

    async def _open(self, name: RepositoryName, pointer: Pointer) -> Stored | None:
        canonical = await self._links.resolve(name, pointer.held)
        if canonical is None:
            return None
        known = self._types.get(canonical.encoded)
        if known is None or known[1] <= _LARGE:
            stored = await self._read(pointer.digest, canonical)
            if stored is None or stored.size <= _LARGE:
                return stored
            known = stored.media_type, stored.size
        try:
            reader = await self._driver.open(layout.blob(canonical))
        except NotFound:
            return None
        return Stored(pointer.digest, known[0], reader.size, None, reader)

    async def _read(self, digest: Digest, canonical: Digest) -> Stored | None:
        """A manifest that is linked, if its data is there. ManifestUnknown when that is none."""
        known = self._types.get(canonical.encoded)
        path = layout.blob(canonical)
        try:
            # What has been served as a manifest before is none of those blobs that are too large to be read.
            if known is None and (size := await self._driver.size(path)) > LIMIT:
                raise ManifestUnknown(f"{digest} is no manifest: it has {size} bytes")
            content = await self._driver.read(path)
        except NotFound:
            return None
        media_type = known[0] if known is not None else await self._media_type(canonical, content)
        return Stored(digest, media_type, len(content), content)

    async def _media_type(self, canonical: Digest, content: bytes) -> str:
        """What the bytes say they are; kept, because they cannot change."""
        try:
            media_type = await aside(len(content), stored_media_type, content)
        except ManifestInvalid as error:
            raise ManifestUnknown(f"{canonical} is not a manifest that can be served: {error.detail}") from None
        self._types[canonical.encoded] = media_type, len(content)
        while len(self._types) > _TYPES:
            self._types.popitem(last=False)
        return media_type

    async def _check(self, name: RepositoryName, manifest: Manifest) -> None:
        """Refuse a manifest that refers to what the repository lacks, or to what the policy forbids."""
        self._check_class(manifest)
        missing: set[Digest] = set()
        if not self._rules.sparse:
            wanted = {blob.digest for blob in manifest.blobs if not _is_elsewhere(blob)}
            missing = await self._blobs.links.missing(name, wanted)
            if not self._rules.disabled:
                missing |= await self._missing_children(name, manifest.children)
        unknown = (ManifestBlobUnknown(str(digest)) for digest in sorted(missing, key=str))
        found = unknown if self._rules.disabled else chain(self._url_errors(manifest), unknown)
        errors: list[RegistryError] = list(islice(found, _TOLD))
        if next(found, None) is not None:
            errors.append(ManifestInvalid("and more of this kind"))
        if errors:
            raise RegistryErrors(errors)

    def _check_class(self, manifest: Manifest) -> None:
        """An index has no class; a config of another type is none of those that can be allowed."""
        config, allowed = manifest.config_media_type, self._rules.classes
        if allowed and config and _CLASSES.get(config) not in allowed:
            taken = " and ".join(sorted(allowed))
            raise Denied(f"config {config[:200]}: only {taken} is taken here (policy.repository.classes)")

    def _url_errors(self, manifest: Manifest) -> Iterator[ManifestInvalid]:
        for blob in manifest.blobs:
            for url in blob.urls:
                if not self._allowed(url):
                    yield ManifestInvalid(f"the layer url {url[:200]!r} is not allowed")

    def _allowed(self, url: str) -> bool:
        try:
            parts = urlsplit(url)
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.fragment:
            return False
        rules = self._rules
        if rules.urls_allow and not any(pattern.is_in(url) for pattern in rules.urls_allow):
            return False
        return not any(pattern.is_in(url) for pattern in rules.urls_deny)

    async def _missing_children(self, name: RepositoryName, children: Sequence[Descriptor]) -> set[Digest]:
        """Children of an index that are neither manifests nor blobs here: build caches list blobs in an index."""
        wanted = {child.digest for child in children if self._must_exist(child)}
        missing = await self._links.missing(name, wanted)
        return await self._blobs.links.missing(name, missing)

    def _must_exist(self, child: Descriptor) -> bool:
        if self._rules.platforms != "list":
            return self._rules.platforms == "all"
        platform = child.platform
        return platform is not None and (platform.architecture, platform.os) in self._rules.platform_list


def _read_pushed(reference: Reference, content: bytes, content_type: str | None) -> tuple[Digest, Digest, Manifest]:
    """The canonical digest of a manifest that is pushed, the one that its client calls it by, and what it says.

    DigestInvalid where that is another manifest's, ManifestInvalid.
    """
    canonical = Digest.of(content)
    digest = canonical
    if isinstance(reference, Digest):
        digest = Digest.of(content, reference.algorithm)
        if digest != reference:
            raise DigestInvalid(f"the manifest is not {reference}, it is {digest}")
    return canonical, digest, parse_manifest(content, content_type)


def _is_elsewhere(blob: Descriptor) -> bool:
    """Whether clients fetch this layer from where its urls say, and need not push it."""
    return blob.media_type in NON_DISTRIBUTABLE and bool(blob.urls)


def _known(stored: Stored | None, name: RepositoryName, reference: Reference) -> Stored:
    if stored is None:
        raise ManifestUnknown(f"{name} has no manifest {reference}")
    return stored
