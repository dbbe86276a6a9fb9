"""The digests of an upload session, as one request needs them: from the states put aside, or from the bytes (U5).

Owns which states are loaded, and which are put aside for the requests to come. A state is a fact about bytes that
somebody else has seen: nothing is refused for what one says, without a look at the bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from cluster.errors import DigestInvalid, StorageError
from cluster.oci.digest import CANONICAL, Digest, Hasher, new_hasher, restore_hasher
from cluster.oci.upload import UploadState, unknown
from cluster.state.store import UploadHint, UploadHints
from cluster.storage.driver import NotFound, Observer, Uploads

_log = logging.getLogger(__name__)

Hashers = dict[str, Hasher]
"""By the name of the algorithm."""


class DigestStates:
    """The states of one session, for one request."""

    def __init__(self, uploads: Uploads, hints: UploadHints | None, state: UploadState, path: str) -> None:
        self.were_used = False
        """Whether a hasher goes on from a state, in place of all bytes."""
        self._uploads = uploads
        self._hints = hints
        self._state = state
        self._path = path
        self._hint: UploadHint | None = None
        self._was_asked = False

    async def hasher(self, algorithm: str, offset: int) -> Hasher:
        """One that has seen the first `offset` bytes: from the newest state, plus what it lacks. UploadUnknown."""
        known, hasher = 0, None
        if offset and (found := await self._load(algorithm, offset)) is not None:
            known, saved = found
            hasher = restore_hasher(algorithm, saved, known)
        if hasher is None:
            known, hasher = 0, new_hasher(algorithm)
        else:
            self.were_used = True
        if known < offset:
            await self._replay(known, offset, hasher.update)
        return hasher

    async def tell(self, offset: int, digest: Digest) -> bool:
        """Whether the first `offset` bytes have this digest, as far as the states are right. UploadUnknown."""
        return (await self.hasher(digest.algorithm, offset)).hexdigest() == digest.encoded

    async def prove(self, offset: int, digest: Digest, hashers: Hashers) -> Digest:
        """The canonical digest of bytes that have this digest; DigestInvalid when they do not. UploadUnknown.

        `hashers` have seen these bytes; what is missing there is made.
        """
        names = {digest.algorithm, CANONICAL}
        found = {name: hashers.get(name) or await self.hasher(name, offset) for name in names}
        if found[digest.algorithm].hexdigest() != digest.encoded:
            if not self.were_used:
                raise _differs(offset, digest)
            canonical = await self.prove_anew(offset, digest)
            _log.warning("upload %s: a digest state of its first %d bytes was wrong", self._state.uuid, offset)
            return canonical
        return Digest(CANONICAL, found[CANONICAL].hexdigest())

    async def prove_anew(self, offset: int, digest: Digest) -> Digest:
        """As `prove`, by all bytes and no state; those are replaced that are there for this offset."""
        found = await self._reread({digest.algorithm, CANONICAL}, offset)
        if found[digest.algorithm].hexdigest() != digest.encoded:
            raise _differs(offset, digest)
        await self.save(offset, found)
        return Digest(CANONICAL, found[CANONICAL].hexdigest())

    async def _reread(self, algorithms: Iterable[str], offset: int) -> Hashers:
        """Hashers that have seen the first `offset` bytes themselves."""
        hashers = {name: new_hasher(name) for name in algorithms}

        def observe(piece: bytes | memoryview) -> None:
            for hasher in hashers.values():
                hasher.update(piece)

        await self._replay(0, offset, observe)
        return hashers

    async def _replay(self, start: int, stop: int, observe: Observer) -> None:
        try:
            await self._uploads.replay(self._path, start, stop, observe)
        except NotFound:
            raise unknown(self._state) from None

    async def save(self, offset: int, hashers: Hashers) -> None:
        """Put the digests so far aside, on storage and as a hint: whoever finishes need not read the bytes."""
        found = {name: hasher.state() for name, hasher in hashers.items()}
        states = {name: digest_state for name, digest_state in found.items() if digest_state is not None}
        try:
            for algorithm, digest_state in states.items():
                await self._uploads.save_state(self._path, algorithm, offset, digest_state)
        except StorageError as error:
            # What came is stored, and says so to the client; without the state somebody reads it once more.
            _log.warning("upload %s: no digest state of its first %d bytes: %s", self._state.uuid, offset, error)
        if states and self._hints is not None:
            await self._hints.save_hint(self._state.uuid, UploadHint(offset, states))

    async def _load(self, algorithm: str, offset: int) -> tuple[int, bytes] | None:
        """The newest state known, with its offset: from storage, or from the hint where that knows more."""
        found = await self._uploads.load_state(self._path, algorithm, offset)
        if self._hints is None or (found is not None and found[0] == offset):
            return found
        hint = await self._load_hint(self._hints)
        if hint is None or algorithm not in hint.states or not (found[0] if found else 0) < hint.offset <= offset:
            return found
        return hint.offset, hint.states[algorithm]

    async def _load_hint(self, hints: UploadHints) -> UploadHint | None:
        """Once for a request: that is how long it may wait for shared state (promise P4)."""
        if not self._was_asked:
            self._was_asked = True
            self._hint = await hints.load_hint(self._state.uuid)
        return self._hint


def _differs(offset: int, digest: Digest) -> DigestInvalid:
    return DigestInvalid(f"the {offset} bytes of the upload are not {digest}")
