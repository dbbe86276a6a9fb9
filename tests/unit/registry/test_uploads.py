"""Upload sessions as the service runs them: offsets, digests, and the rules U5 to U8 of what is refused or kept."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest

from cluster.errors import BlobUnknown, DigestInvalid, RangeInvalid, SizeInvalid, StorageError, UploadUnknown
from cluster.oci.digest import Digest, new_hasher
from cluster.oci.upload import UploadState
from cluster.registry.uploads import Body, UploadService
from cluster.state.store import UploadHint
from cluster.storage import layout
from cluster.storage.driver import NotFound, StorageFull, StorageTimeout
from cluster.storage.memory import MemoryDriver, MemoryUploads
from tests.unit.registry.parts import NAME, Parts, body

pytestmark = pytest.mark.anyio

CONTENT = bytes(range(256)) * 3000
DIGEST = Digest.of(CONTENT)


async def begin(parts: Parts, *chunks: bytes, algorithm: str = "sha256") -> UploadState:
    state = await parts.uploads.start(NAME, algorithm)
    for chunk in chunks:
        state = await parts.uploads.append(state, body(chunk))
    return state


async def has_ended(parts: Parts, state: UploadState) -> bool:
    try:
        await parts.uploads.status(state)
    except UploadUnknown:
        return True
    return False


# The common pushes


async def test_a_session_begins_empty_at_the_time_of_the_clock(parts: Parts) -> None:
    state = await parts.uploads.start(NAME)
    assert (state.name, state.offset, state.started_at) == (NAME, 0, "2023-11-14T22:13:20Z")
    assert await parts.uploads.status(state) == state


@pytest.mark.parametrize("size", [1, 1000, 128 * 1024, 200_000])
async def test_a_streamed_push_is_a_blob_of_its_bytes(parts: Parts, size: int) -> None:
    pieces = [CONTENT[at : at + size] for at in range(0, min(len(CONTENT), 3000 * size), size)]
    content = b"".join(pieces)
    state = await parts.uploads.start(NAME)
    state = await parts.uploads.append(state, body(*pieces, length=None))
    assert state.offset == len(content)
    blob = await parts.uploads.finish(state, Digest.of(content), body())
    assert await parts.bytes_of(blob) == content
    assert await parts.blobs.stat(NAME, Digest.of(content)) == blob
    assert await has_ended(parts, state)


async def test_a_push_in_one_request_leaves_no_session(parts: Parts) -> None:
    blob = await parts.uploads.push(NAME, DIGEST, body(CONTENT))
    assert await parts.bytes_of(blob) == CONTENT
    assert await parts.memory.names(layout.uploads(NAME)) == []


async def test_the_last_chunk_may_come_with_the_commit(parts: Parts) -> None:
    state = await begin(parts, CONTENT[:1000])
    chunk = body(CONTENT[1000:], content_range=f"1000-{len(CONTENT) - 1}")
    assert (await parts.uploads.finish(state, DIGEST, chunk)).size == len(CONTENT)


@pytest.mark.parametrize("empty", [body(), body(length=None), body(b"", length=None)])
async def test_a_blob_may_be_empty(parts: Parts, empty: Body) -> None:
    state = await begin(parts)
    blob = await parts.uploads.finish(state, Digest.of(b""), empty)
    assert (blob.size, await parts.bytes_of(blob)) == (0, b"")


@pytest.mark.parametrize("announced", [True, False])
async def test_content_under_sha512_lies_under_its_sha256(parts: Parts, announced: bool) -> None:
    state = await begin(parts, CONTENT[:5], CONTENT[5:], algorithm="sha512" if announced else "sha256")
    wide = Digest.of(CONTENT, "sha512")
    blob = await parts.uploads.finish(state, wide, body())
    assert (blob.digest, blob.canonical) == (wide, DIGEST)
    assert (await parts.blobs.stat(NAME, wide)).canonical == DIGEST
    assert (await parts.blobs.stat(NAME, DIGEST)).digest == DIGEST


class Watched(Parts):
    """Counts the bytes that are read again."""

    def __init__(self) -> None:
        super().__init__()
        self.replayed = 0
        replay = self.sessions.replay

        async def watch(path: str, start: int, stop: int, observe: object) -> None:
            self.replayed += stop - start
            await replay(path, start, stop, observe)  # type: ignore[arg-type]

        self.sessions.replay = watch  # type: ignore[method-assign]


async def test_the_common_push_reads_nothing_again() -> None:
    parts = Watched()
    state = await begin(parts, CONTENT[:7], CONTENT[7:1000], CONTENT[1000:])
    await parts.uploads.finish(state, DIGEST, body())
    assert parts.replayed == 0


@pytest.mark.parametrize("lost", [[], [7], [1000], [7, 1000]])
async def test_a_lost_or_broken_state_costs_a_read_and_nothing_else(lost: list[int]) -> None:
    parts = Watched()
    state = await begin(parts, CONTENT[:7], CONTENT[7:1000])
    session = parts.sessions.session(layout.upload(NAME, state.uuid))
    for offset in lost:
        session.states["sha256", offset] = b"no state at all"
    state = await parts.uploads.append(state, body(CONTENT[1000:]))
    await parts.uploads.finish(state, DIGEST, body())
    assert parts.replayed == (1000 if 1000 in lost else 0)


def state_of(content: bytes, size: int, algorithm: str = "sha256") -> bytes:
    """A good state of `size` bytes, of this content over and over."""
    hasher = new_hasher(algorithm)
    hasher.update((content * (size // len(content) + 1))[:size])
    saved = hasher.state()
    assert saved is not None
    return saved


@pytest.mark.parametrize("last", [b"", CONTENT[1000:]])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_no_state_that_is_wrong_refuses_bytes_that_are_right(algorithm: str, last: bytes) -> None:
    parts = Watched()
    content = CONTENT[:1000] + last
    state = await begin(parts, CONTENT[:1000], algorithm=algorithm)
    session = parts.sessions.session(layout.upload(NAME, state.uuid))
    for name, offset in list(session.states):
        session.states[name, offset] = state_of(b"other bytes", offset, name)
    blob = await parts.uploads.finish(state, Digest.of(content, algorithm), body(last))
    assert blob.canonical == Digest.of(content)
    assert await parts.bytes_of(blob) == content
    assert parts.replayed == len(content)


async def test_a_state_that_was_found_wrong_is_put_right() -> None:
    parts = Watched()
    state = await begin(parts, CONTENT)
    session = parts.sessions.session(layout.upload(NAME, state.uuid))
    right = session.states["sha256", len(CONTENT)]
    session.states["sha256", len(CONTENT)] = state_of(b"other bytes", len(CONTENT))
    commit = parts.sessions.commit

    async def fail(*_: object) -> None:
        raise StorageFull("no space left")

    parts.sessions.commit = fail  # type: ignore[method-assign]
    with pytest.raises(StorageFull):
        await parts.uploads.finish(state, DIGEST, body())
    assert session.states["sha256", len(CONTENT)] == right
    parts.sessions.commit = commit  # type: ignore[method-assign]
    await parts.uploads.finish(state, DIGEST, body())
    assert parts.replayed == len(CONTENT)


async def test_a_body_that_is_not_whole_leaves_its_digest_state_too() -> None:
    parts = Watched()
    state = await begin(parts, CONTENT[:7])
    with pytest.raises(SizeInvalid):
        await parts.uploads.append(state, body(CONTENT[7:500], breaks=True))
    state = await parts.uploads.append(await parts.uploads.status(state), body(CONTENT[500:]))
    await parts.uploads.finish(state, DIGEST, body())
    assert parts.replayed == 0


async def test_a_state_that_cannot_be_put_aside_refuses_no_chunk() -> None:
    parts = Watched()

    async def fail(*_: object) -> None:
        raise StorageFull("no space left")

    parts.sessions.save_state = fail  # type: ignore[method-assign]
    state = await begin(parts, CONTENT[:1000], CONTENT[1000:])
    assert state.offset == len(CONTENT)
    await parts.uploads.finish(state, DIGEST, body())
    assert parts.replayed == 1000 + len(CONTENT)


class CountedHints:
    """A store that knows nothing, and is asked for it."""

    def __init__(self) -> None:
        self.loads = 0

    async def save_hint(self, uuid: str, hint: UploadHint) -> None:
        pass

    async def load_hint(self, uuid: str) -> UploadHint | None:
        self.loads += 1
        return None

    async def drop_hint(self, uuid: str) -> None:
        pass


async def test_a_request_asks_for_the_hint_once_at_most(parts: Parts) -> None:
    hints = CountedHints()
    uploads = UploadService(parts.sessions, parts.blobs, hints=hints)
    state = await uploads.start(NAME, "sha512")
    state = await uploads.append(state, body(CONTENT[:9]))
    states = parts.sessions.session(layout.upload(NAME, state.uuid)).states
    assert hints.loads == 0
    states.clear()
    state = await uploads.append(state, body(CONTENT[9:99]))
    assert hints.loads == 1
    states.clear()
    await uploads.finish(state, Digest.of(CONTENT, "sha512"), body(CONTENT[99:]))
    assert hints.loads == 2


# Offsets


@pytest.mark.parametrize(
    "content_range", ["0-4", "6-10", "5-", "-5-9", "5-3", "bytes 5-9/*", "\u0665-9", "5-99999999999999"]
)
async def test_a_chunk_elsewhere_is_refused_with_the_true_range(parts: Parts, content_range: str) -> None:
    state = await begin(parts, b"12345")
    with pytest.raises((RangeInvalid, SizeInvalid)) as refusal:
        await parts.uploads.append(state, body(b"67890", content_range=content_range))
    if isinstance(refusal.value, RangeInvalid):
        assert refusal.value.headers["Range"] == "0-4"
    assert await parts.uploads.status(state) == state


async def test_an_old_token_is_refused_and_the_session_lives(parts: Parts) -> None:
    old = await begin(parts, b"12345")
    new = await parts.uploads.append(old, body(b"67890"))
    for _ in range(2):
        with pytest.raises(RangeInvalid) as refusal:
            await parts.uploads.append(old, body(b"67890"))
        assert refusal.value.headers["Range"] == "0-9"
    assert (await parts.uploads.finish(new, Digest.of(b"1234567890"), body())).size == 10


async def test_of_two_writers_one_is_refused_and_the_bytes_are_one_writers(parts: Parts) -> None:
    state = await begin(parts, b"12345")
    release = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"slow "
        await release.wait()
        yield b"writer"

    first = asyncio.create_task(parts.uploads.append(state, Body(slow())))
    await asyncio.sleep(0)
    state = await parts.uploads.append(state, body(b"newcomer"))
    release.set()
    with pytest.raises(RangeInvalid) as refusal:
        await first
    assert refusal.value.headers["Range"] == "0-12"
    assert (await parts.uploads.finish(state, Digest.of(b"12345newcomer"), body())).size == 13


# Bodies that are not whole (U8)


@pytest.mark.parametrize(("size", "finishes"), [(3, False), (6, False), (3, True), (6, True)])
async def test_a_body_without_a_length_has_the_size_of_its_content_range(
    parts: Parts, size: int, finishes: bool
) -> None:
    state = await begin(parts, b"12345")
    chunk = body(b"67890x"[:size], length=None, content_range="5-9")
    with pytest.raises(SizeInvalid):
        if finishes:
            await parts.uploads.finish(state, Digest.of(b"1234567890"), chunk)
        else:
            await parts.uploads.append(state, chunk)
    assert (await parts.uploads.status(state)).offset == 5 + size
    right = await begin(parts, b"12345")
    right = await parts.uploads.append(right, body(b"67890", length=None, content_range="5-9"))
    assert right.offset == 10


@pytest.mark.parametrize("cut", ["breaks", "is shorter", "is longer"])
async def test_a_body_that_is_not_whole_is_kept_and_not_acknowledged(parts: Parts, cut: str) -> None:
    state = await begin(parts, b"12345")
    length = {"breaks": 10, "is shorter": 10, "is longer": 2}[cut]
    with pytest.raises(SizeInvalid):
        await parts.uploads.append(state, body(b"678", length=length, breaks=cut == "breaks"))
    resumed = await parts.uploads.status(state)
    assert resumed.offset == 8
    blob = await parts.uploads.finish(resumed, Digest.of(b"1234567890"), body(b"90"))
    assert await parts.bytes_of(blob) == b"1234567890"


async def test_a_commit_whose_body_breaks_off_can_be_resumed(parts: Parts) -> None:
    state = await begin(parts)
    with pytest.raises(SizeInvalid):
        await parts.uploads.finish(state, DIGEST, body(CONTENT[:500], length=len(CONTENT), breaks=True))
    resumed = await parts.uploads.status(state)
    assert resumed.offset == 500
    assert (await parts.uploads.finish(resumed, DIGEST, body(CONTENT[500:]))).size == len(CONTENT)


async def test_a_short_body_is_not_committed_even_where_it_has_the_digest(parts: Parts) -> None:
    state = await begin(parts)
    with pytest.raises(SizeInvalid):
        await parts.uploads.finish(state, Digest.of(b"all"), body(b"all", length=4))
    assert (await parts.uploads.status(state)).offset == 3


# Digests that do not match


@pytest.mark.parametrize("last", [b"", b"more"])
async def test_a_wrong_digest_links_nothing_and_ends_the_session(parts: Parts, last: bytes) -> None:
    state = await begin(parts, CONTENT)
    with pytest.raises(DigestInvalid):
        await parts.uploads.finish(state, Digest.of(b"something else"), body(last))
    assert await has_ended(parts, state)
    for digest in (DIGEST, Digest.of(CONTENT + last), Digest.of(b"something else")):
        with pytest.raises(BlobUnknown):
            await parts.blobs.stat(NAME, digest)
        with pytest.raises(NotFound):
            await parts.driver.size(layout.blob(digest))


async def test_a_push_in_one_request_with_a_wrong_digest_leaves_nothing(parts: Parts) -> None:
    with pytest.raises(DigestInvalid):
        await parts.uploads.push(NAME, Digest.of(b"something else"), body(CONTENT))
    assert await parts.memory.names(layout.uploads(NAME)) == []


# Storage that fails


class Failing(MemoryUploads):
    """Sessions of which one call fails, as on a disk with errors."""

    def __init__(self, memory: MemoryDriver, call: str, error: StorageError) -> None:
        super().__init__(memory)
        self._call = call
        self._error = error
        self.removals = 0

    def _fail(self, call: str) -> None:
        if call == self._call:
            raise self._error

    async def commit(self, path: str, size: int, target: str, digest: Digest | None = None) -> None:
        self._fail("commit")
        await super().commit(path, size, target, digest)

    async def remove(self, path: str) -> None:
        self.removals += 1
        self._fail("remove")
        await super().remove(path)


def failing(parts: Parts, call: str, error: StorageError) -> Failing:
    parts.sessions = sessions = Failing(parts.memory, call, error)
    parts.uploads = UploadService(sessions, parts.blobs)
    return sessions


@pytest.mark.parametrize("error", [StorageError("EIO"), StorageTimeout("hangs")])
async def test_a_commit_that_has_taken_place_is_acknowledged_although_its_session_stays(
    parts: Parts, error: StorageError, caplog: pytest.LogCaptureFixture
) -> None:
    failing(parts, "remove", error)
    state = await begin(parts, CONTENT)
    blob = await parts.uploads.finish(state, DIGEST, body())
    assert await parts.bytes_of(blob) == CONTENT
    assert await parts.uploads.push(NAME, Digest.of(b"other"), body(b"other"))
    assert all("its session stays" in line for line in caplog.messages) and len(caplog.messages) == 2


async def test_a_wrong_digest_is_told_although_the_session_stays(parts: Parts) -> None:
    failing(parts, "remove", StorageError("EIO"))
    state = await begin(parts, CONTENT)
    for push in (
        parts.uploads.finish(state, Digest.of(b"other"), body()),
        parts.uploads.push(NAME, Digest.of(b"other"), body(CONTENT)),
    ):
        with pytest.raises(DigestInvalid):
            await push


async def test_a_push_in_one_request_that_storage_fails_leaves_no_session(parts: Parts) -> None:
    failing(parts, "commit", StorageFull("no space left"))
    with pytest.raises(StorageFull):
        await parts.uploads.push(NAME, DIGEST, body(CONTENT))
    assert await parts.memory.names(layout.uploads(NAME)) == []


async def test_storage_that_hangs_is_not_waited_for_twice(parts: Parts) -> None:
    sessions = failing(parts, "commit", StorageTimeout("hangs"))
    with pytest.raises(StorageTimeout):
        await parts.uploads.push(NAME, DIGEST, body(CONTENT))
    assert sessions.removals == 0


# Answers that were lost (U7)


@pytest.mark.parametrize("last", [b"", CONTENT[9:]])
async def test_a_repeated_commit_is_answered_like_the_first(parts: Parts, last: bytes) -> None:
    state = await begin(parts, CONTENT[: len(CONTENT) - len(last)])
    first = await parts.uploads.finish(state, DIGEST, body(last))
    for _ in range(2):
        assert await parts.uploads.finish(state, DIGEST, body(last)) == first


async def test_a_commit_whose_chunk_had_arrived_before_succeeds(parts: Parts) -> None:
    state = await begin(parts, CONTENT[:9])
    await parts.uploads.append(state, body(CONTENT[9:]))  # its answer was lost
    assert (await parts.uploads.finish(state, DIGEST, body(CONTENT[9:]))).size == len(CONTENT)


async def test_a_repeated_commit_is_refused_where_the_blob_was_deleted_since(parts: Parts) -> None:
    state = await begin(parts, CONTENT)
    await parts.uploads.finish(state, DIGEST, body())
    await parts.blobs.delete(NAME, DIGEST)
    with pytest.raises(UploadUnknown):
        await parts.uploads.finish(state, DIGEST, body())


async def test_commits_at_the_same_time_all_succeed(parts: Parts) -> None:
    state = await begin(parts, CONTENT)
    outcomes = await asyncio.gather(*(parts.uploads.finish(state, DIGEST, body()) for _ in range(5)))
    assert len(set(outcomes)) == 1


# Ends


async def test_a_cancelled_session_is_gone_for_every_call(parts: Parts) -> None:
    state = await begin(parts, b"12345")
    await parts.uploads.cancel(state)
    for call in (
        lambda: parts.uploads.cancel(state),
        lambda: parts.uploads.status(state),
        lambda: parts.uploads.append(state, body(b"6")),
        lambda: parts.uploads.finish(state, Digest.of(b"12345"), body()),
    ):
        with pytest.raises(UploadUnknown):
            await call()


async def test_the_digest_is_that_of_hashlib(parts: Parts) -> None:
    blob = await parts.uploads.push(NAME, DIGEST, body(CONTENT))
    assert blob.canonical.encoded == hashlib.sha256(CONTENT).hexdigest()
