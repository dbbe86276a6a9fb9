"""Lists: tags (OCI end-8), referrers (end-12), and Docker's catalog."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Iterator
from contextlib import aclosing
from typing import Any

from cluster.api.errors import JSON, Request, Response
from cluster.api.guard import Room, Share
from cluster.api.urls import Urls, next_link
from cluster.errors import PaginationInvalid
from cluster.oci.digest import Digest
from cluster.oci.manifest import OCI_INDEX
from cluster.oci.reference import RepositoryName
from cluster.registry.catalog import Catalog
from cluster.registry.referrers import Referrers
from cluster.registry.tags import TagStore

_CATALOG_PAGE = 100  # Distribution's default
_REFERRERS_PAGE = 1000
_INDEX_HEAD = b'{"schemaVersion":2,"mediaType":"%b","manifests":[' % OCI_INDEX.encode()
_PIECE = 256 * 1024  # bytes of a body that are sent at a time
_NUMBER = re.compile(r"[0-9]{1,18}")


def page_size(req: Request) -> int | None:
    """The `n` of a list; None when it is not there, or empty. PaginationInvalid when it is no number."""
    text = req.get_param("n")
    if not text:
        return None
    if _NUMBER.fullmatch(text) is None:
        raise PaginationInvalid({"n": text[:40]})
    return int(text)


def _answer(resp: Response, body: dict[str, Any]) -> None:
    resp.content_type = JSON
    resp.data = _json(body) + b"\n"


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


async def _tag_list(
    repository: RepositoryName, first: list[str], more: AsyncGenerator[list[str]]
) -> AsyncIterator[bytes]:
    """The same form as `_answer`, piece by piece. What fails in the middle cuts the connection."""
    async with aclosing(more):
        yield _json({"name": repository, "tags": first}).removesuffix(b"]}")
        async for tags in more:
            yield b"," + _json(tags)[1:-1]
        yield b"]}\n"


class TagsResource:
    """`/v2/<name>/tags/list`"""

    def __init__(self, tags: TagStore, urls: Urls, maximum: int) -> None:
        self._tags = tags
        self._urls = urls
        self._maximum = maximum  # entries of one page; an `n` above it is cut to it

    async def on_get(self, req: Request, resp: Response, name: str) -> None:
        repository = RepositoryName.parse(name)
        last, limit = req.get_param("last", default=""), page_size(req)
        if limit is None:
            await self._answer_all(resp, repository, last)
            return
        limit = min(limit, self._maximum)
        tags, more = await self._tags.page(repository, last, limit)
        if more and limit:
            path = f"{self._urls.prefix}/v2/{repository}/tags/list"
            resp.set_header("Link", next_link(path, last=tags[-1], n=limit))
        _answer(resp, {"name": repository, "tags": tags})

    on_head = on_get

    async def _answer_all(self, resp: Response, repository: RepositoryName, last: str) -> None:
        """All tags in one answer. Where they are many they are sent as they are found, and never held together."""
        batches = self._tags.batches(repository, last)
        first: list[str] = await anext(batches, [])
        second = await anext(batches, None)
        if second is None:
            _answer(resp, {"name": repository, "tags": first})
            return
        resp.content_type = JSON
        resp.stream = _tag_list(repository, first + second, batches)


class CatalogResource:
    """`/v2/_catalog`"""

    def __init__(self, catalog: Catalog, urls: Urls, maximum: int) -> None:
        self._catalog = catalog
        self._urls = urls
        self._maximum = maximum

    async def on_get(self, req: Request, resp: Response) -> None:
        limit = page_size(req)
        if limit is None:
            limit = min(_CATALOG_PAGE, self._maximum)
        if limit > self._maximum:
            raise PaginationInvalid({"n": limit, "maximum": self._maximum})
        names: list[RepositoryName] = []
        if limit:
            names, more = await self._catalog.page(req.get_param("last", default=""), limit)
            if more:
                path = f"{self._urls.prefix}/v2/_catalog"
                resp.set_header("Link", next_link(path, last=names[-1], n=limit))
        _answer(resp, {"repositories": names})

    on_head = on_get


def _pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, `_PIECE` at a time: put together piece by piece, all of them are never held twice."""
    held = bytearray()
    for part in parts:
        for start in range(0, len(part), _PIECE):
            held += part[start : start + _PIECE]
            if len(held) >= _PIECE:
                yield bytes(held[:_PIECE])
                del held[:_PIECE]
    yield bytes(held)


class _Large:
    """A large body for a client that may read it slowly: it is held until then, within what there is room for."""

    def __init__(self, parts: list[bytes], share: Share) -> None:
        self._share = share
        self._bytes = self._read(parts)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._bytes

    def __anext__(self) -> Awaitable[bytes]:
        return anext(self._bytes)

    async def _read(self, parts: list[bytes]) -> AsyncIterator[bytes]:
        for piece in _pieces(parts):
            yield piece

    async def close(self) -> None:
        self._share.give_back()


class ReferrersResource:
    """`/v2/<name>/referrers/<digest>`: never 404, also for a subject or repository that nobody knows."""

    def __init__(self, referrers: Referrers, urls: Urls, room: Room | None = None) -> None:
        self._referrers = referrers
        self._urls = urls
        self._room = room or Room("lists")

    async def on_get(self, req: Request, resp: Response, name: str, digest: str) -> None:
        share = Share(self._room)
        try:
            await self._answer(req, resp, name, digest, share)
        finally:
            if not isinstance(resp.stream, _Large):  # which has it until it is sent
                share.give_back()

    on_head = on_get

    async def _answer(self, req: Request, resp: Response, name: str, digest: str, share: Share) -> None:
        repository, subject = RepositoryName.parse(name), Digest.parse(digest)
        artifact_type = req.get_param("artifactType") or None
        limit = min(page_size(req) or _REFERRERS_PAGE, _REFERRERS_PAGE)
        last = req.get_param("last", default="")

        def hold(size: int) -> None:
            if size > _PIECE:  # small lists are answered however many large ones are being read
                share.take(size)

        found, cursor = await self._referrers.page(repository, subject, artifact_type, last, limit, hold)
        if artifact_type is not None:
            resp.set_header("OCI-Filters-Applied", "artifactType")
        if cursor is not None:
            query = {"artifactType": artifact_type} if artifact_type else {}
            path = f"{self._urls.prefix}/v2/{repository}/referrers/{subject}"
            resp.set_header("Link", next_link(path, last=cursor, n=limit, **query))
        resp.content_type = OCI_INDEX
        parts = list(_index(found))
        size = sum(map(len, parts))
        hold(size)
        if req.method == "HEAD":
            resp.content_length = size
        elif size <= _PIECE:
            resp.data = b"".join(parts)
        else:
            resp.stream, resp.content_length = _Large(parts, share), size


def _index(descriptors: list[bytes]) -> Iterator[bytes]:
    yield _INDEX_HEAD
    for number, descriptor in enumerate(descriptors):
        if number:
            yield b","
        yield descriptor
    yield b"]}\n"
