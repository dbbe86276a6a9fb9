"""Upload sessions: start, append, commit, cancel, by the rules of ARCHITECTURE.md, "Uploads".

What the hashers saw is what the driver stored, and a blob is linked only under a digest that was computed (in
states.py) over exactly the bytes on storage (promise P5).
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from cluster.errors import BlobUnknown, DigestInvalid, RegistryError, SizeInvalid, StorageError
from cluster.oci.digest import CANONICAL, Digest
from cluster.oci.reference import RepositoryName
from cluster.oci.upload import UploadState, check_chunk, differs, unknown, wrong_offset
from cluster.registry.blobs import BlobStore
from cluster.registry.links import Content
from cluster.registry.states import DigestStates, Hashers
from cluster.state.store import UploadHints
from cluster.storage import layout
from cluster.storage.driver import Changed, NotFound, OffsetTaken, SegmentWriter, StorageTimeout, Uploads

_BATCH = 64 * 1024  # bytes to gather, from clients that send little at a time, before they are stored
_log = logging.getLogger(__name__)


class BodyEnded(Exception):
    """A request's body ended before it was complete: the connection broke, or nothing came for too long."""


class Inflow(Protocol):
    """What comes of a body, taken where it is stored in place of where it arrives."""

    def take(self, most: int, /) -> bytes | memoryview:
        """What has come, at most so much; empty when that is nothing now (storage/driver.Take)."""

    def give_back(self) -> None:
        """The pieces of the body go on from here."""


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body, and what its head said of it. Iterating raises BodyEnded when it breaks off."""

    pieces: AsyncIterator[bytes]
    length: int | None = None  # Content-Length, bytes
    content_range: str | None = None
    take_over: Callable[[], Inflow | None] = lambda: None  # None: the pieces are all there is

    @property
    def is_empty(self) -> bool:
        """Whether the head says that there is none."""
        return self.length == 0


class UploadService:
    """Everything that may happen to an upload session."""

    def __init__(
        self,
        uploads: Uploads,
        blobs: BlobStore,
        *,
        hints: UploadHints | None = None,
        now: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._uploads = uploads
        self._blobs = blobs
        self._hints = hints
        self._now = now
        self._new_id = new_id

    async def start(self, name: RepositoryName, algorithm: str = CANONICAL) -> UploadState:
        """Begin a session (OCI end-4a, end-4c)."""
        started_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._now()))
        state = UploadState(name, self._new_id(), 0, started_at, algorithm)
        await self._uploads.create(_path(state), started_at)
        return state

    async def status(self, state: UploadState) -> UploadState:
        """The session as storage has it (OCI end-13). UploadUnknown."""
        return state.at(await self._extent(state))

    async def append(self, state: UploadState, body: Body) -> UploadState:
        """Store a chunk (OCI end-5). RangeInvalid with the true range, SizeInvalid, UploadUnknown."""
        check_chunk(state, await self._extent(state), body.content_range, body.length)
        states = self._states(state)
        end, hashers = await self._store(state, body, states)
        await states.save(end, hashers)
        return state.at(end)

    async def finish(self, state: UploadState, digest: Digest, body: Body) -> Content:
        """Store the last chunk, if any, and make the whole a blob of the repository (OCI end-6).

        DigestInvalid (the session is over then), RangeInvalid, SizeInvalid, UploadUnknown.
        """
        try:
            return await self._finish(state, digest, body)
        except RegistryError as refusal:
            # Rule U7: whoever lost the answer to a commit, or a race for it, asks again and must hear of success.
            if isinstance(refusal, DigestInvalid):
                await self._tidy(state)
            try:
                return await self._blobs.confirm(RepositoryName(state.name), digest)
            except BlobUnknown:
                raise refusal from None

    async def push(self, name: RepositoryName, digest: Digest, body: Body) -> Content:
        """A whole blob in one request (OCI end-4b); refusals as `finish`.

        No session stays behind, unless storage does not let it be removed: then it is the purger's. Nobody else
        knows it, so rule U7 has nothing to say: bytes that are not those of the digest are refused although the
        blob may be there already.
        """
        state = await self.start(name, digest.algorithm)
        try:
            return await self._finish(state, digest, body)
        except StorageTimeout:  # whoever waits for the answer would wait once more
            raise
        except (RegistryError, StorageError):
            await self._tidy(state)
            raise

    async def cancel(self, state: UploadState) -> None:
        """End the session (OCI end-14). UploadUnknown when it has ended."""
        if not await self._end(state):
            raise unknown(state)

    async def _finish(self, state: UploadState, digest: Digest, body: Body) -> Content:
        size = await self._extent(state)
        states = self._states(state)
        hashers: Hashers = {}
        if not body.is_empty:
            try:
                check_chunk(state, size, body.content_range, body.length)
                size, hashers = await self._store(state, body, states)
            except RegistryError as refusal:
                # The chunk may be there by now: then the chain without this body is what was asked for (U7).
                size = await self._extent(state)
                if isinstance(refusal, SizeInvalid) or not await states.tell(size, digest):
                    raise
        content = Content(digest, await states.prove(size, digest, hashers), size)
        try:
            return await self._publish(state, content)
        except Changed as error:
            # What was hashed is not there any more, and what the states say of it is of no use: the bytes tell.
            _log.warning("upload %s: %s", state.uuid, error)
            return await self._publish(state, Content(digest, await states.prove_anew(size, digest), size))

    async def _publish(self, state: UploadState, content: Content) -> Content:
        try:
            target = layout.blob(content.canonical)
            await self._uploads.commit(_path(state), content.size, target, content.canonical)
        except NotFound:  # ended; or another request has added to it since we looked
            raise wrong_offset(await self._extent(state), "the upload has changed meanwhile") from None
        await self._blobs.add(RepositoryName(state.name), content)
        await self._tidy(state)
        return content

    def _states(self, state: UploadState) -> DigestStates:
        return DigestStates(self._uploads, self._hints, state, _path(state))

    async def _tidy(self, state: UploadState) -> None:
        """Remove a session whose outcome is decided; one that cannot be removed is the purger's."""
        try:
            await self._end(state)
        except StorageError as error:
            _log.warning("upload %s: its session stays: %s", state.uuid, error)

    async def _end(self, state: UploadState) -> bool:
        """Remove the session; False when somebody else did."""
        if self._hints is not None:
            await self._hints.drop_hint(state.uuid)
        try:
            await self._uploads.remove(_path(state))
        except NotFound:
            return False
        return True

    async def _extent(self, state: UploadState) -> int:
        try:
            return await self._uploads.extent(_path(state))
        except NotFound:
            raise unknown(state) from None

    async def _store(self, state: UploadState, body: Body, states: DigestStates) -> tuple[int, Hashers]:
        """Add a body at the end of the session: its new size, and the hashers that have seen all of it."""
        hashers = {name: await states.hasher(name, state.offset) for name in {CANONICAL, state.algorithm}}

        def observe(piece: bytes | memoryview) -> None:
            for hasher in hashers.values():
                hasher.update(piece)

        try:
            writer = await self._uploads.append(_path(state), state.offset, observe)
        except NotFound:
            raise unknown(state) from None
        kept = True
        try:
            short = await _pump(body, writer) or differs(body.content_range, writer.size)
            if short is None:
                await writer.seal()
            else:
                kept = await writer.leave()
        except OffsetTaken:
            raise wrong_offset(await self._extent(state), "another request has stored this chunk") from None
        except NotFound:
            raise unknown(state) from None
        finally:
            await writer.discard()
        end = state.offset + writer.size
        if short is not None:  # what came is kept for a resume, and not acknowledged (U8)
            if kept:
                await states.save(end, hashers)
            raise SizeInvalid(short)
        return end, hashers


async def _pump(body: Body, writer: SegmentWriter) -> str | None:
    """Bytes from the client to storage, a batch at a time; what comes meanwhile waits at the connection.

    Returns why the body is not whole, or None.
    """
    batch: list[bytes] = []
    held = 0
    short = None
    try:
        async for piece in body.pieces:
            batch.append(piece)
            held += len(piece)
            if held >= _BATCH:
                await writer.write(batch)
                batch, held = [], 0
                await _pour(body, writer)
    except BodyEnded as error:
        short = f"the body ended early ({error}); the upload goes on from what came"
    if batch:
        await writer.write(batch)
    if short is None and body.length is not None and writer.size != body.length:
        short = f"the body has {writer.size} bytes, Content-Length said {body.length}"
    return short


async def _pour(body: Body, writer: SegmentWriter) -> None:
    """While a body comes faster than it is stored, take it from the connection in the thread that stores it.

    Each piece that is handed from thread to thread costs more than a tenth of what storing it does.
    """
    inflow = body.take_over()
    if inflow is not None:
        try:
            while await writer.fill(inflow.take):
                pass
        finally:
            inflow.give_back()


def _path(state: UploadState) -> str:
    return layout.upload(RepositoryName(state.name), state.uuid)
