"""`/v2/<name>/blobs/<digest>`: OCI end-2 and end-10, with ranges (RFC 9110 section 14)."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence

from cluster.api.conditions import check_match, etag, is_not_modified
from cluster.api.errors import Request, Response
from cluster.api.guard import Guard
from cluster.oci.digest import Digest
from cluster.oci.ranges import Span, parse_range
from cluster.oci.reference import RepositoryName
from cluster.registry.blobs import BlobStore
from cluster.registry.links import Content
from cluster.storage.driver import Reader

_TYPE = "application/octet-stream"


class BlobResource:
    """One blob of a repository."""

    def __init__(self, blobs: BlobStore, guard: Guard) -> None:
        self._blobs = blobs
        self._guard = guard

    async def on_get(self, req: Request, resp: Response, name: str, digest: str) -> None:
        content = await self._blobs.stat(RepositoryName.parse(name), Digest.parse(digest))
        check_match(req, content.digest)
        tag = etag(content.digest)
        if is_not_modified(req, content.digest):
            resp.status = 304
        elif req.method == "HEAD":  # ranges are defined for GET alone
            resp.content_type = _TYPE
            resp.content_length = content.size
        else:
            header = req.get_header("Range")
            spans = None
            if header is not None and req.get_header("If-Range", default=tag) == tag:
                spans = parse_range(header, content.size)
            await self._send(resp, content, spans)
        _describe(resp, content)

    on_head = on_get

    async def on_delete(self, req: Request, resp: Response, name: str, digest: str) -> None:
        self._guard.delete()
        await self._blobs.delete(RepositoryName.parse(name), Digest.parse(digest))
        resp.status = 202

    async def _send(self, resp: Response, content: Content, spans: list[Span] | None) -> None:
        boundary = secrets.token_hex(16) if spans is not None and len(spans) > 1 else ""
        if spans is None:
            parts = [Part(b"", (0, content.size))]
        elif len(spans) == 1:
            parts = [Part(b"", spans[0])]
        else:
            parts = _multipart(spans, content.size, boundary)
        stream = await Stream.begin(await self._blobs.open(content), parts)
        resp.content_type = f"multipart/byteranges; boundary={boundary}" if boundary else _TYPE
        if spans is not None:
            resp.status = 206
            if not boundary:
                start, stop = spans[0]
                resp.set_header("Content-Range", f"bytes {start}-{stop - 1}/{content.size}")
        if (whole := stream.whole()) is not None:  # as most manifests' configs are: cheaper than to be iterated
            resp.data = whole
            await stream.close()
        else:
            resp.stream = stream
            resp.content_length = stream.length


def _describe(resp: Response, content: Content) -> None:
    """What may be kept for a year: said when nothing can be refused any more, or a cache would keep the refusal."""
    resp.set_header("Docker-Content-Digest", str(content.digest))
    resp.set_header("ETag", etag(content.digest))
    resp.set_header("Cache-Control", "max-age=31536000")
    resp.set_header("Accept-Ranges", "bytes")


class Part:
    """Bytes of our own, then bytes of the blob."""

    __slots__ = ("head", "span")

    def __init__(self, head: bytes, span: Span) -> None:
        self.head = head
        self.span = span


def _multipart(spans: Sequence[Span], size: int, boundary: str) -> list[Part]:
    parts = []
    for start, stop in spans:
        lines = (
            f"\r\n--{boundary}",
            f"Content-Type: {_TYPE}",
            f"Content-Range: bytes {start}-{stop - 1}/{size}",
            "\r\n",
        )
        parts.append(Part("\r\n".join(lines).encode(), (start, stop)))
    return [*parts, Part(f"\r\n--{boundary}--\r\n".encode(), (0, 0))]


class Stream:
    """A body made of parts of an open blob; Falcon iterates it, and closes it whatever happens."""

    def __init__(self, reader: Reader, parts: list[Part]) -> None:
        self._reader = reader
        self._parts = parts
        self._bytes = self._read()
        self._first: bytes | None = None
        self.length = sum(len(part.head) + part.span[1] - part.span[0] for part in parts)

    @classmethod
    async def begin(cls, reader: Reader, parts: list[Part]) -> Stream:
        """With its first bytes read: when that fails, the client can still be told. StorageError."""
        stream = cls(reader, parts)
        try:
            stream._first = await anext(stream._bytes, None)
        except BaseException:
            reader.close()
            raise
        return stream

    def whole(self) -> bytes | None:
        """All of the body, where its first piece is that."""
        first = self._first or b""
        return first if len(first) == self.length else None

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        if (first := self._first) is not None:
            self._first = None
            return first
        return await anext(self._bytes)

    async def _read(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            head = part.head
            async for chunk in self._reader.chunks(*part.span):
                yield head + chunk if head else chunk
                head = b""
            if head:
                yield head

    async def close(self) -> None:
        self._reader.close()
