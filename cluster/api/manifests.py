"""`/v2/<name>/manifests/<reference>`: OCI end-3, end-7 and end-9."""

from __future__ import annotations

from cluster.api.blobs import Part, Stream
from cluster.api.conditions import check_match, etag, is_not_modified, precondition
from cluster.api.errors import Request, Response
from cluster.api.guard import Guard, Room, Share
from cluster.api.urls import Urls
from cluster.errors import ManifestTooLarge, ManifestUnknown, TagInvalid, TooManyTags
from cluster.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST, LIMIT, OCI_INDEX, plain_media_type
from cluster.oci.reference import Reference, RepositoryName, Tag, parse_reference
from cluster.registry.manifests import ManifestStore, Stored

_FREE = 256 * 1024  # bytes of a body that any request may hold (promise P7)
_MAX_TAGS = 64  # in one PUT; the spec asks for ten at least
_PLATFORM = ("amd64", "linux")  # of the manifest that an old client gets of a list, as in Distribution
_LISTS = {DOCKER_LIST, OCI_INDEX}


class ManifestResource:
    """One manifest of a repository."""

    def __init__(self, manifests: ManifestStore, guard: Guard, urls: Urls) -> None:
        self._manifests = manifests
        self._guard = guard
        self._room = Room("manifests")
        self._urls = urls

    async def on_get(self, req: Request, resp: Response, name: str, reference: str) -> None:
        repository, wanted = RepositoryName.parse(name), _parse_existing(reference)
        head = req.method == "HEAD"
        if isinstance(wanted, Tag) and _knows_no_lists(req):
            stored = await self._manifests.for_platform(repository, wanted, _PLATFORM, head=head)
        elif head:
            stored = await self._manifests.head(repository, wanted)
        else:
            stored = await self._manifests.open(repository, wanted)
        try:
            self._answer(req, resp, stored)
        finally:
            if stored.reader is not None and resp.stream is None:
                stored.reader.close()

    on_head = on_get

    def _answer(self, req: Request, resp: Response, stored: Stored) -> None:
        check_match(req, stored.digest)
        _describe(resp, stored)
        if is_not_modified(req, stored.digest):
            resp.status = 304
            return
        resp.content_type = stored.media_type
        if stored.reader is not None:
            resp.stream = Stream(stored.reader, [Part(b"", (0, stored.size))])
        if stored.content is not None:
            resp.data = stored.content
        else:
            resp.content_length = stored.size

    async def on_put(self, req: Request, resp: Response, name: str, reference: str) -> None:
        self._guard.write()
        repository, wanted = RepositoryName.parse(name), parse_reference(reference)
        tags = [Tag.parse(tag) for tag in req.get_param_as_list("tag") or []]
        if len(tags) > _MAX_TAGS:
            raise TooManyTags(f"{len(tags)} tag parameters: at most {_MAX_TAGS} are taken")
        with self._room.share() as share:
            content = await _read(req, share)
            digest, manifest = await self._manifests.put(
                repository, wanted, content, req.content_type, tags, precondition(req)
            )
        resp.status = 201
        resp.set_header("Location", self._urls.location(req, f"/v2/{repository}/manifests/{digest}"))
        resp.set_header("Docker-Content-Digest", str(digest))
        resp.set_header("ETag", etag(digest))
        if manifest.subject is not None:
            resp.set_header("OCI-Subject", str(manifest.subject.digest))
        if tags:
            resp.set_header("OCI-Tag", ", ".join(dict.fromkeys(tags)))

    async def on_delete(self, req: Request, resp: Response, name: str, reference: str) -> None:
        self._guard.delete("GET, HEAD, PUT")
        repository, wanted = RepositoryName.parse(name), _parse_existing(reference)
        if isinstance(wanted, Tag):
            await self._manifests.delete_tag(repository, wanted, precondition(req))
        else:
            await self._manifests.delete(repository, wanted)
        resp.status = 202


def _parse_existing(text: str) -> Reference:
    """What a request asks for that makes nothing. No manifest can have a name that is no tag: ManifestUnknown.

    The conformance suite 1.1 asks for such a name where it wants to see a 404.
    """
    try:
        return parse_reference(text)
    except TagInvalid as error:
        raise ManifestUnknown(error.detail) from None


def _describe(resp: Response, stored: Stored) -> None:
    resp.set_header("Docker-Content-Digest", str(stored.digest))
    resp.set_header("ETag", etag(stored.digest))


def _knows_no_lists(req: Request) -> bool:
    """An old Docker client: it takes a schema 2 manifest, and neither a list nor an index."""
    accept = req.get_header("Accept")
    if accept is None or DOCKER_MANIFEST not in accept:
        return False
    return not _LISTS & {plain_media_type(part) for part in accept.split(",")}


async def _read(req: Request, share: Share) -> bytes:
    """The whole body, at most what a manifest may have. ManifestTooLarge before more than that is taken.

    TooManyRequests when it is large and there is no room for it now.
    """
    if (req.content_length or 0) > LIMIT:
        raise ManifestTooLarge(f"{req.content_length} bytes: at most {LIMIT} are taken")
    body = bytearray()
    async for piece in req.stream:
        body += piece
        if len(body) > LIMIT:
            raise ManifestTooLarge(f"more than {LIMIT} bytes")
        if len(body) > _FREE:
            share.take(req.content_length or LIMIT)
    return bytes(body)
