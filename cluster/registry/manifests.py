"""Manifests of a repository: put, with the rules of what may be missing; get; delete; and what a tag serves."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from cluster.errors import (
    Denied,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    RegistryErrors,
)
from cluster.oci.digest import Digest
from cluster.oci.manifest import (
    DOCKER_LIST,
    LIMIT,
    NON_DISTRIBUTABLE,
    Descriptor,
    Manifest,
    parse_manifest,
    stored_media_type,
)
from cluster.oci.reference import Reference, RepositoryName, Tag
from cluster.registry.blobs import BlobStore
from cluster.registry.links import Content, Links
from cluster.registry.referrers import Referrers
from cluster.registry.tags import Precondition, TagStore
from cluster.storage import layout
from cluster.storage.driver import Driver, NotFound

_TYPES = 65536  # manifests whose media type a worker remembers
_PLUGIN = "application/vnd.docker.plugin.v1+json"


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
    content: bytes | None  # None when only its head was asked for


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
        self._types: OrderedDict[Digest, str] = OrderedDict()

    async def put(
        self,
        name: RepositoryName,
        reference: Reference,
        content: bytes,
        content_type: str | None,
        tags: Sequence[Tag] = (),
        precondition: Precondition | None = None,
    ) -> tuple[Digest, Manifest]:
        """Store a manifest and point tags to it (OCI end-7a, end-7b). Nothing has changed when it is refused."""
        if len(content) > LIMIT:
            raise ManifestTooLarge(f"{len(content)} bytes: at most {LIMIT} are taken")
        canonical = Digest.of(content)
        digest = canonical
        if isinstance(reference, Digest):
            digest = reference
            if Digest.of(content, reference.algorithm) != reference:
                raise DigestInvalid(
                    f"the manifest is not {reference}, it is {Digest.of(content, reference.algorithm)}"
                )
        else:
            tags = [*tags, reference]
        manifest = parse_manifest(content, content_type)
        if precondition is not None and isinstance(reference, Tag):
            precondition.check(await self._tags.get(name, reference))  # and again under the lock, where it counts
        await self._check(name, manifest)

        async def ensure() -> None:
            if await self._links.find(name, digest) is None:
                await self._links.add(name, digest, canonical)

        await self._driver.write(layout.blob(canonical), content)
        await self._links.add(name, digest, canonical)
        await self._referrers.add(name, digest, len(content), manifest)
        for tag in dict.fromkeys(tags):
            await self._tags.put(name, tag, digest, ensure, precondition)
        return digest, manifest

    async def head(self, name: RepositoryName, reference: Reference) -> Stored:
        """What is known of a manifest without its bytes (OCI end-3). ManifestUnknown."""
        found = await self._find(name, reference)
        media_type = self._types.get(found.canonical)
        if media_type is None:
            return await self._load(found)
        return Stored(found.digest, media_type, found.size, None)

    async def get(self, name: RepositoryName, reference: Reference) -> Stored:
        """A manifest with its bytes as they were pushed (OCI end-3). ManifestUnknown."""
        return await self._load(await self._find(name, reference))

    async def platform_child(
        self, name: RepositoryName, stored: Stored, architecture: str, system: str
    ) -> Stored | None:
        """The manifest of a Docker manifest list for one platform: what a client that knows no lists is given."""
        if stored.media_type != DOCKER_LIST:
            return None
        content = stored.content or (await self.get(name, stored.digest)).content or b""
        for child in parse_manifest(content).children:
            if child.platform and (child.platform.architecture, child.platform.os) == (architecture, system):
                return await self.get(name, child.digest)
        raise ManifestUnknown(f"the list {stored.digest} has no manifest for {system}/{architecture}")

    async def delete(self, name: RepositoryName, digest: Digest) -> None:
        """Take a manifest, and the tags that point to it, out of the repository (OCI end-9, rule T5)."""
        found = await self._find(name, digest)
        names = {found.digest, found.canonical}

        async def points_here(current: Digest) -> bool:
            return current in names

        async def points_nowhere(current: Digest) -> bool:
            return await self._links.find(name, current) is None

        for tag in await self._tags.pointing_to(name, names):
            await self._tags.delete(name, tag, only_if=points_here)
        await self._links.remove(name, found)
        await self._blobs.forget(name, found)
        # A tag that was moved here meanwhile; a writer that comes later finds the link gone and makes it again.
        for tag in await self._tags.pointing_to(name, names):
            await self._tags.delete(name, tag, only_if=points_nowhere)

    async def delete_tag(self, name: RepositoryName, tag: Tag, precondition: Precondition | None) -> None:
        """Take a tag out of the repository; its manifest stays. ManifestUnknown, PreconditionFailed."""
        if not await self._tags.delete(name, tag, precondition):
            raise ManifestUnknown(f"{name} has no tag {tag}")

    async def _find(self, name: RepositoryName, reference: Reference) -> Content:
        digest = reference if isinstance(reference, Digest) else await self._tags.get(name, reference)
        found = digest and await self._links.find(name, digest)
        if not found:
            raise ManifestUnknown(f"{name} has no manifest {reference}")
        return found

    async def _load(self, found: Content) -> Stored:
        if found.size > LIMIT:
            raise ManifestUnknown(f"{found.digest} is no manifest: it has {found.size} bytes")
        try:
            content = await self._driver.read(layout.blob(found.canonical))
        except NotFound:
            raise ManifestUnknown(f"the data of {found.digest} is gone") from None
        return Stored(found.digest, self._media_type(found.canonical, content), len(content), content)

    def _media_type(self, canonical: Digest, content: bytes) -> str:
        """What the bytes say they are; kept, because they cannot change."""
        media_type = self._types.get(canonical)
        if media_type is None:
            try:
                media_type = stored_media_type(content)
            except ManifestInvalid as error:
                raise ManifestUnknown(f"{canonical} is not a manifest that can be served: {error.detail}") from None
            self._types[canonical] = media_type
            while len(self._types) > _TYPES:
                self._types.popitem(last=False)
        return media_type

    async def _check(self, name: RepositoryName, manifest: Manifest) -> None:
        """Refuse a manifest that refers to what the repository lacks, or to what the policy forbids."""
        self._check_class(manifest)
        errors = [] if self._rules.disabled else self._url_errors(manifest)
        if not self._rules.sparse:
            wanted = {blob.digest for blob in manifest.blobs if blob.media_type not in NON_DISTRIBUTABLE}
            missing = await self._blobs.links.missing(name, wanted)
            if not self._rules.disabled:
                missing |= await self._missing_children(name, manifest.children)
            errors += [ManifestBlobUnknown(str(digest)) for digest in sorted(missing, key=str)]
        if errors:
            raise RegistryErrors(errors)

    def _check_class(self, manifest: Manifest) -> None:
        if self._rules.classes and manifest.config_media_type:
            kind = "plugin" if manifest.config_media_type == _PLUGIN else "image"
            if kind not in self._rules.classes:
                raise Denied(f"this registry takes no {kind} (policy.repository.classes)")

    def _url_errors(self, manifest: Manifest) -> list[ManifestBlobUnknown | ManifestInvalid]:
        urls = [url for blob in manifest.blobs for url in blob.urls]
        return [
            ManifestInvalid(f"the layer url {url[:200]!r} is not allowed") for url in urls if not self._allowed(url)
        ]

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
