"""`/v2/<name>/blobs/uploads/` and below: OCI end-4, end-5, end-6, end-11, end-13, end-14."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from urllib.parse import parse_qsl

from cluster.api.access import caller_of
from cluster.api.errors import Request, Response
from cluster.api.guard import Guard
from cluster.api.urls import Urls
from cluster.auth.access import PULL, REPOSITORY, Access, Anyone
from cluster.errors import DigestInvalid, NameInvalid, RangeInvalid, RegistryError, UploadInvalid
from cluster.oci.digest import CANONICAL, Digest, parse_algorithm
from cluster.oci.ranges import format_chunk_range
from cluster.oci.reference import RepositoryName, parse_upload_id
from cluster.oci.upload import UploadState, sign, verify
from cluster.registry.blobs import BlobStore
from cluster.registry.links import Content
from cluster.registry.uploads import Body, UploadService

_FORM = "application/x-www-form-urlencoded"
_FORM_LIMIT = 8 * 1024  # bytes


class UploadUrls:
    """The signed `Location` of a session, and its check."""

    def __init__(self, urls: Urls, secrets: Sequence[bytes]) -> None:
        self._urls = urls
        self._secrets = secrets  # sign with the first, accept any

    def describe(self, req: Request, resp: Response, state: UploadState) -> None:
        """Where a client goes on, and from which byte."""
        path = f"/v2/{state.name}/blobs/uploads/{state.uuid}"
        resp.set_header("Location", self._urls.location(req, path, _state=sign(state, self._secrets[0])))
        resp.set_header("Range", format_chunk_range(state.offset))
        resp.set_header("Docker-Upload-UUID", state.uuid)

    def read(self, req: Request, name: str, uuid: str) -> UploadState:
        """The session that a request is about. NameInvalid, UploadInvalid, UploadUnknown."""
        repository = RepositoryName.parse(name)
        token = req.get_param("_state")
        if token is None:
            raise UploadInvalid("the URL has no _state: use the Location of the answer before")
        return verify(token, self._secrets, repository, parse_upload_id(uuid))

    def began(self, req: Request, name: str, uuid: str) -> float | None:
        """When the session that a request is about began, in seconds since the epoch; None if it is not genuine."""
        try:
            return datetime.fromisoformat(self.read(req, name, uuid).started_at).timestamp()
        except (RegistryError, ValueError, OverflowError):
            return None

    def created(self, req: Request, resp: Response, name: str, content: Content) -> None:
        """201: the blob is there."""
        resp.status = 201
        resp.set_header("Location", self._urls.location(req, f"/v2/{name}/blobs/{content.digest}"))
        resp.set_header("Docker-Content-Digest", str(content.digest))


class UploadsResource:
    """Where uploads begin."""

    def __init__(
        self,
        uploads: UploadService,
        blobs: BlobStore,
        guard: Guard,
        urls: UploadUrls,
        *,
        anonymous_mount: bool = True,
        chunk_min_length: int = 0,
    ) -> None:
        self._uploads = uploads
        self._blobs = blobs
        self._guard = guard
        self._urls = urls
        self._anonymous_mount = anonymous_mount
        self._chunk_min_length = chunk_min_length  # bytes; 0 says nothing to clients

    async def on_post(self, req: Request, resp: Response, name: str) -> None:
        self._guard.write()
        repository = RepositoryName.parse(name)
        content = await self._mount(req, repository, await _parameters(req))
        if content is None and (digest := req.get_param("digest")) is not None:
            with self._guard.upload():
                content = await self._uploads.push(repository, _digest(digest), _body(req))
        if content is not None:
            self._urls.created(req, resp, repository, content)
            return
        algorithm = parse_algorithm(req.get_param("digest-algorithm", default=CANONICAL))
        self._urls.describe(req, resp, await self._uploads.start(repository, algorithm))
        resp.status = 202
        if self._chunk_min_length:
            resp.set_header("OCI-Chunk-Min-Length", str(self._chunk_min_length))

    async def _mount(
        self, req: Request, repository: RepositoryName, parameters: Mapping[str, str]
    ) -> Content | None:
        """The blob that a mount found; whatever is wrong with it, the client is given a session instead.

        What the caller may not pull is not there: storage is not asked for it, so the time tells nothing either.
        """
        text = parameters.get("mount")
        if text is None:
            return None
        caller = caller_of(req)

        def may_pull(source: RepositoryName) -> bool:
            return caller.may(Access(REPOSITORY, source, PULL))

        try:
            digest = Digest.parse(text)
            text = parameters.get("from")
            if text is not None:
                source = RepositoryName.parse(text)
                return await self._blobs.mount(repository, digest, source) if may_pull(source) else None
        except (DigestInvalid, NameInvalid):
            return None
        if not self._anonymous_mount:
            return None
        everything = isinstance(caller, Anyone)
        return await self._blobs.mount_from_any(repository, digest, None if everything else may_pull)


class UploadResource:
    """One session."""

    def __init__(self, uploads: UploadService, guard: Guard, urls: UploadUrls) -> None:
        self._uploads = uploads
        self._guard = guard
        self._urls = urls

    async def on_get(self, req: Request, resp: Response, name: str, uuid: str) -> None:
        self._urls.describe(req, resp, await self._uploads.status(self._urls.read(req, name, uuid)))
        resp.status = 204

    on_head = on_get

    async def on_patch(self, req: Request, resp: Response, name: str, uuid: str) -> None:
        self._guard.write()
        state = self._urls.read(req, name, uuid)
        with self._guard.upload():
            try:
                state = await self._uploads.append(state, _body(req))
            except RangeInvalid as refusal:
                await self._tell_position(req, resp, state, refusal)
                raise
        self._urls.describe(req, resp, state)
        resp.status = 202

    async def on_put(self, req: Request, resp: Response, name: str, uuid: str) -> None:
        self._guard.write()
        state = self._urls.read(req, name, uuid)
        digest = _digest(req.get_param("digest"))
        with self._guard.upload():
            try:
                content = await self._uploads.finish(state, digest, _body(req))
            except RangeInvalid as refusal:
                await self._tell_position(req, resp, state, refusal)
                raise
        self._urls.created(req, resp, state.name, content)

    async def on_delete(self, req: Request, resp: Response, name: str, uuid: str) -> None:
        self._guard.write()
        state = self._urls.read(req, name, uuid)
        await self._uploads.cancel(state)
        resp.set_header("Docker-Upload-UUID", state.uuid)
        resp.status = 204

    async def _tell_position(self, req: Request, resp: Response, state: UploadState, refusal: RangeInvalid) -> None:
        """With a 416, the Location from which the upload goes on: clients need not ask for it."""
        self._urls.describe(req, resp, await self._uploads.status(state))
        if "Range" in refusal.headers:
            refusal.headers["Range"] = str(resp.get_header("Range"))


async def _parameters(req: Request) -> dict[str, str]:
    """`mount` and `from` of the query, or of a small form in the body: Distribution takes them from either.

    With `digest` in the query the body is a blob, whatever its type says; curl calls any body a form. `digest` in
    a form comes without the blob: the client is given a session, as with a mount that found nothing.
    """
    query = {name: value for name in ("mount", "from") if (value := req.get_param(name)) is not None}
    media_type = (req.content_type or "").partition(";")[0].strip().lower()
    if query or req.get_param("digest") is not None or media_type != _FORM:
        return query
    body = b""
    async for piece in req.stream:
        body += piece
        if len(body) > _FORM_LIMIT:
            return {}  # no form of a mount; the rest is thrown away with the answer
    return dict(parse_qsl(body.decode("ascii", "replace")))


def _digest(text: str | None) -> Digest:
    if text is None:
        raise DigestInvalid("the digest parameter is missing", message="digest missing")
    return Digest.parse(text)


def _body(req: Request) -> Body:
    # A request with neither length nor chunks has no body (RFC 9112 section 6.3).
    length = req.content_length
    if length is None and req.get_header("Transfer-Encoding") is None:
        length = 0
    return Body(_pieces(req), length, req.get_header("Content-Range"), req.scope["registry.take_over"])


async def _pieces(req: Request) -> AsyncIterator[bytes]:
    async for piece in req.stream:
        yield piece
