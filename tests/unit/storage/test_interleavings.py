"""Two and three operations on one upload session, on several nodes, in every order of their calls to storage.

Rules U1 to U9, and U11: sessions in segments, those that Distribution began, and those beside it (`cluster.mixed`).
 What must hold (J1 to J5) is in `judge` and `look`; a writer that is stopped is one whose turn does
not come, one that is killed makes no call any more.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import math
import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DigestInvalid, RangeInvalid, RegistryError, SizeInvalid, UploadUnknown
from cluster.oci.digest import Digest
from cluster.oci.ranges import format_chunk_range
from cluster.oci.reference import RepositoryName
from cluster.oci.upload import UploadState
from cluster.registry.blobs import BlobStore
from cluster.registry.catalog import Catalog
from cluster.registry.uploads import Body, BodyEnded, UploadService
from cluster.storage import layout
from cluster.storage.disk import Disk
from cluster.storage.driver import LockTimeout, NotFound
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.mixed import MixedUploads
from cluster.storage.segments import SegmentUploads
from cluster.storage.sessions import Sessions
from tests.support.schedules import InPlace, Killed, Stage, explore, wander

NAME = RepositoryName("team/app")
UUID = "0b1c2d3e-1111-4222-8333-444455556666"
SESSION = layout.upload(NAME, UUID)
FAR = 1e12  # a time at which everything is old


Kind = Callable[[str, FilesystemDriver, Disk], SegmentUploads]


# Whoever waited for somebody else's copy would never come to an end here: nobody does.
def plain(root: str, driver: FilesystemDriver, disk: Disk) -> SegmentUploads:
    return SegmentUploads(root, driver, InPlace(), disk, patience=0)


def mixed(root: str, driver: FilesystemDriver, disk: Disk) -> SegmentUploads:
    return MixedUploads(root, driver, InPlace(), disk, patience=0)


class Node:
    """The services of one node."""

    def __init__(self, root: str, disk: Disk, kind: Kind) -> None:
        driver = FilesystemDriver(root, InPlace(), disk)
        self.root = root
        self.segments = kind(root, driver, disk)
        self.blobs = BlobStore(driver, Catalog(driver))
        self.driver = driver
        # The second in which a session was begun is in a file: it must not be what two runs differ in.
        self.service = UploadService(self.segments, self.blobs, new_id=lambda: UUID, now=lambda: 0.0)


Operation = Callable[[Node], Coroutine[Any, Any, Any]]
Begin = Callable[[Node, tuple[bytes, ...]], Coroutine[Any, Any, None]]


def body(data: bytes) -> Body:
    async def pieces() -> AsyncIterator[bytes]:
        yield data

    return Body(pieces(), len(data))


def at(offset: int) -> UploadState:
    return UploadState(NAME, UUID, offset, "")


@dataclass(frozen=True)
class Patch:
    offset: int
    data: bytes
    refusals: tuple[type[RegistryError], ...] = ()

    async def __call__(self, node: Node) -> Any:
        return await node.service.append(at(self.offset), body(self.data))


@dataclass(frozen=True)
class Broken:
    """A chunk whose connection breaks off behind these bytes."""

    offset: int
    data: bytes
    refusals: tuple[type[RegistryError], ...] = (SizeInvalid,)

    async def __call__(self, node: Node) -> Any:
        async def pieces() -> AsyncIterator[bytes]:
            yield self.data
            raise BodyEnded("the connection broke")

        return await node.service.append(at(self.offset), Body(pieces()))


@dataclass(frozen=True)
class Finish:
    """The token is that of the client's own last answer; `last` is the body of the PUT."""

    offset: int
    content: bytes
    last: bytes = b""
    refusals: tuple[type[RegistryError], ...] = ()

    async def __call__(self, node: Node) -> Any:
        return await node.service.finish(at(self.offset), Digest.of(self.content), body(self.last))


@dataclass(frozen=True)
class Cancel:
    refusals: tuple[type[RegistryError], ...] = ()

    async def __call__(self, node: Node) -> Any:
        return await node.service.cancel(at(0))


@dataclass(frozen=True)
class Status:
    refusals: tuple[type[RegistryError], ...] = ()

    async def __call__(self, node: Node) -> Any:
        return await node.service.status(at(0))


@dataclass(frozen=True)
class Purge:
    refusals: tuple[type[RegistryError], ...] = ()

    async def __call__(self, node: Node) -> Any:
        return await node.segments.purge(SESSION, FAR)


Action = Patch | Broken | Finish | Cancel | Status | Purge
A, B, C = b"aaaa", b"bbbbbb", b"cc"
GONE = (UploadUnknown,)
MOVED = (RangeInvalid,)


@dataclass(frozen=True)
class Case:
    held: tuple[bytes, ...]
    """What was acknowledged before."""
    operations: tuple[Action, ...]
    interruptions: float = 2
    """How often somebody is made to wait who could go on, in the short form; one time more in the long form."""


@contextlib.contextmanager
def in_memory() -> Iterator[str]:
    """A directory in memory, where there is one: what is synced is not the question here."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="interleavings-") as directory:
        yield directory


@pytest.fixture(scope="module")
def root() -> Iterator[str]:
    with in_memory() as directory:
        yield directory


@pytest.fixture
def empty() -> Iterator[str]:
    with in_memory() as directory:
        yield directory


@pytest.fixture(scope="module")
def stage(root: str) -> Iterator[Stage[Node]]:
    with contextlib.closing(make_stage(root, plain, plain, plain)) as stage:
        yield stage


def make_stage(root: str, *kinds: Kind) -> Stage[Node]:
    """Nodes that know every directory that stays."""
    left = list(kinds)
    stage: Stage[Node] = Stage(root, lambda disk: Node(root, disk, left.pop(0)), len(kinds))
    for actor in stage.actors:
        stage.run(begin(actor.node, (A, B)))
        stage.run(Finish(10, A + B)(actor.node))
    return stage


async def begin(node: Node, held: tuple[bytes, ...]) -> None:
    state = await node.service.start(NAME)
    for data in held:
        state = await node.service.append(state, body(data))


def clear(root: str) -> None:
    """Forget sessions and blobs; the directories above them stay."""
    places = [f"{root}/repositories/{NAME}/_uploads", f"{root}/repositories/{NAME}/_layers/sha256"]
    for place in [*places, *glob.glob(f"{root}/blobs/sha256/*")]:
        for name in os.listdir(place):
            shutil.rmtree(f"{place}/{name}")
    for name in os.listdir(f"{root}/{layout.TEMPORARY}"):
        os.unlink(f"{root}/{layout.TEMPORARY}/{name}")


def forget(stage: Stage[Node]) -> None:
    """The session of every run has the same name, and in life no two have."""
    for actor in stage.actors:
        actor.node.segments.sessions.chains.clear()


def look(root: str) -> None:
    """J1: whatever is linked as a blob holds exactly the bytes of its digest."""
    for path in glob.glob(f"{root}/blobs/sha256/*/*/data"):
        with open(path, "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == path.split("/")[-2]


def judge(stage: Stage[Node], case: Case, also: tuple[type[Exception], ...] = ()) -> None:
    """What must hold when all operations have ended; `also`: outcomes that may be besides."""
    outcomes = [actor.outcome for actor in stage.actors[: len(case.operations)]]
    for operation, outcome, actor in zip(case.operations, outcomes, stage.actors, strict=False):
        assert not isinstance(outcome, Exception) or isinstance(outcome, (*operation.refusals, *also, Killed)), (
            outcome
        )
        assert not actor.held, "a descriptor is left open"
    stage.run(_judge_session(stage, case, outcomes))
    for operation, outcome in zip(case.operations, outcomes, strict=True):
        if isinstance(operation, Status) and not isinstance(outcome, Exception):
            assert outcome.offset >= len(b"".join(case.held)), (
                "the position that was told is before what was promised"
            )
        if isinstance(operation, Finish) and not isinstance(outcome, Exception):
            stage.run(_judge_commit(stage.node, operation))


async def _judge_session(stage: Stage[Node], case: Case, outcomes: list[Any]) -> None:
    node = stage.node
    done = [operation for operation, outcome in zip(case.operations, outcomes, strict=True) if _worked(outcome)]
    ended = any(isinstance(operation, (Finish, Cancel)) for operation in done)
    ended = ended or any(isinstance(outcome, DigestInvalid) or outcome is True for outcome in outcomes)
    try:
        extent = await node.segments.extent(SESSION)
    except NotFound:
        killers = (Finish, Cancel, Purge)
        assert ended or any(
            isinstance(operation, killers) and isinstance(outcome, Killed)
            for operation, outcome in zip(case.operations, outcomes, strict=True)
        ), "the session has gone, and nobody ended it"
        return
    assert not ended, "J5: a session that was ended is there"
    seen: list[bytes] = []
    await node.segments.replay(SESSION, 0, extent, seen.append)
    content = b"".join(seen)
    held = b"".join(case.held)
    assert content[: len(held)] == held, "J3: an acknowledged chunk was undone"
    for patch in done:
        if isinstance(patch, Patch):
            assert content[patch.offset : patch.offset + len(patch.data)] == patch.data, "J3"
    # Of two operations the refused one has seen what the other did; a third may have gone on since.
    true = [extent] if len(outcomes) == 2 else range(len(held), extent + 1)
    for outcome in outcomes:
        if isinstance(outcome, RangeInvalid):
            assert outcome.headers["Range"] in map(format_chunk_range, true), "not the true Range"
    await Finish(extent, content)(node)  # and everything works again
    await _judge_commit(node, Finish(extent, content))


def _worked(outcome: Any) -> bool:
    return not isinstance(outcome, Exception) and outcome is not False


async def _judge_commit(node: Node, finish: Finish) -> None:
    found = await node.blobs.stat(NAME, Digest.of(finish.content))  # J2
    assert await node.driver.read(layout.blob(found.canonical)) == finish.content
    assert await finish(node) == found  # J4


CASES = {
    "two chunks for one offset": Case((A,), (Patch(4, B, MOVED), Patch(4, C, MOVED))),
    "the same chunk twice": Case((), (Patch(0, A, MOVED), Patch(0, A, MOVED))),
    "a chunk that breaks off and the whole one": Case(
        (A,), (Broken(4, B[:2], (SizeInvalid, *MOVED)), Patch(4, B, MOVED))
    ),
    "a chunk that breaks off and a commit of all": Case(
        (A,), (Broken(4, B[:2], (SizeInvalid, *MOVED, *GONE)), Finish(4, A + B, B, (RangeInvalid, DigestInvalid)))
    ),
    "a chunk that breaks off and a status": Case((A,), (Broken(4, B, (SizeInvalid, *MOVED)), Status())),
    "two chunks that break off": Case(
        (A,), (Broken(4, B, (SizeInvalid, *MOVED)), Broken(4, C, (SizeInvalid, *MOVED)))
    ),
    "a chunk and a status": Case((A,), (Patch(4, B, MOVED), Status())),
    "a chunk and a cancel": Case((A,), (Patch(4, B, GONE), Cancel()), math.inf),
    "a chunk and a purge": Case((A,), (Patch(4, B, GONE), Purge())),
    "a chunk and a commit without it": Case(
        (A,), (Patch(4, B, (*MOVED, *GONE)), Finish(4, A, refusals=(DigestInvalid, RangeInvalid)))
    ),
    "a chunk and a commit of it": Case((A,), (Patch(4, B, (*MOVED, *GONE)), Finish(4, A + B, last=B))),
    "a commit and a commit": Case((A,), (Finish(4, A), Finish(4, A))),
    "two commits of two segments": Case((A, B), (Finish(10, A + B), Finish(10, A + B)), 1),
    "two commits with a last chunk": Case((A,), (Finish(4, A + B, last=B), Finish(4, A + B, last=B)), 1),
    "a commit and a cancel": Case((A,), (Finish(4, A, refusals=GONE), Cancel(GONE)), math.inf),
    "a commit of two segments and a purge": Case((A, B), (Finish(10, A + B, refusals=GONE), Purge())),
    "a status and a cancel": Case((A,), (Status(GONE), Cancel()), math.inf),
    "two cancels": Case((A,), (Cancel(GONE), Cancel(GONE)), math.inf),
}


def go_through(
    stage: Stage[Node],
    case: Case,
    interruptions: float,
    first: Begin = begin,
    also: tuple[type[Exception], ...] = (),
) -> int:
    """Every order of a case, with all that must hold."""

    def start() -> None:
        clear(stage.root)
        forget(stage)
        stage.run(first(stage.node, case.held))
        stage.begin(case.operations)

    def check() -> None:
        look(stage.root)
        if not stage.ready():
            judge(stage, case, also)

    return explore(stage, start, check, interruptions)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_two_operations_in_every_order_with_few_interruptions(stage: Stage[Node], case: Case) -> None:
    assert go_through(stage, case, case.interruptions) > 50


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_two_operations_in_every_order_with_one_more_interruption(stage: Stage[Node], case: Case) -> None:
    assert go_through(stage, case, case.interruptions + 1) > 50


class PublishingByRename(Sessions):
    """A protocol that is known to be broken: the last writer takes the offset."""

    def publish(self, session: str, path: str, offset: int) -> None:
        self._disk.rename(path, f"{session}/_seg/{offset:020d}")


def broken(root: str, driver: FilesystemDriver, disk: Disk) -> SegmentUploads:
    return SegmentUploads(root, driver, InPlace(), disk, sessions=PublishingByRename(driver, disk, 0), patience=0)


def test_a_broken_protocol_is_found_out(empty: str) -> None:
    with (
        contextlib.closing(make_stage(empty, broken, broken)) as stage,
        pytest.raises(AssertionError),
    ):
        go_through(stage, CASES["two chunks for one offset"], 1)


# U11


async def begin_as_distribution(node: Node, held: tuple[bytes, ...]) -> None:
    session = Path(node.root, SESSION)
    session.mkdir()
    (session / "startedat").write_bytes(b"1970-01-01T00:00:00Z")
    (session / "data").write_bytes(b"".join(held))


BESIDE = {
    name: CASES[name]
    for name in (
        "two chunks for one offset",
        "the same chunk twice",
        "a chunk and a status",
        "a chunk and a cancel",
        "a chunk and a commit of it",
        "a commit and a commit",
    )
}
FLEETS = {
    "mixed": ((mixed, mixed), begin),
    "mixed, of Distribution": ((mixed, mixed), begin_as_distribution),
    "plain, of Distribution": ((plain, plain), begin_as_distribution),
    "one of each": ((mixed, plain), begin),
    "one of each, of Distribution": ((plain, mixed), begin_as_distribution),
}


@pytest.mark.parametrize("interruptions", [1, pytest.param(2, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
@pytest.mark.parametrize("case", BESIDE.values(), ids=BESIDE)
@pytest.mark.parametrize(("kinds", "first"), FLEETS.values(), ids=FLEETS)
def test_sessions_that_have_data(
    empty: str, kinds: tuple[Kind, ...], first: Begin, case: Case, interruptions: int
) -> None:
    """Whoever meets somebody who is adding to `data` may be told to come again, and nothing else."""
    with contextlib.closing(make_stage(empty, *kinds)) as stage:
        assert go_through(stage, case, interruptions, first, (LockTimeout,)) > 30


ANY = (UploadUnknown, RangeInvalid, DigestInvalid)
CROWDS = {
    "two writers and a commit": Case((A,), (Patch(4, B, ANY), Patch(4, C, ANY), Finish(4, A + B, B, ANY))),
    "two writers and a cancel": Case((A,), (Patch(4, B, ANY), Patch(4, C, ANY), Cancel(ANY))),
    "two writers and a purge": Case((A,), (Patch(4, B, ANY), Patch(4, C, ANY), Purge())),
    "a writer, a resumer and a commit": Case((), (Patch(0, A, ANY), Patch(4, B, ANY), Finish(4, A + B, B, ANY))),
    "a writer, a status and a commit": Case((A,), (Patch(4, B, ANY), Status(ANY), Finish(10, A + B, b"", ANY))),
    "one that breaks off, a writer and a status": Case(
        (A,), (Broken(4, B[:2], (*ANY, SizeInvalid)), Patch(4, B, ANY), Status(ANY))
    ),
    "one that breaks off, a writer and a commit": Case(
        (A,), (Broken(4, B[:2], (*ANY, SizeInvalid)), Patch(4, B, ANY), Finish(4, A + B, B, ANY))
    ),
    "two commits and a cancel": Case(
        (A, B), (Finish(10, A + B, b"", ANY), Finish(10, A + B, b"", ANY), Cancel(ANY))
    ),
    "two commits and a purge": Case((A,), (Finish(4, A + B, B, ANY), Finish(4, A + B, B, ANY), Purge())),
    "two commits of different ends": Case((A,), (Finish(4, A + B, B, ANY), Finish(4, A + C, C, ANY), Status(ANY))),
}


@pytest.mark.parametrize("deadly", [0.0, 0.02], ids=["stopped", "killed"])
@pytest.mark.parametrize("runs", [150, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CROWDS.values(), ids=CROWDS)
def test_three_operations_in_many_orders(
    stage: Stage[Node], root: str, case: Case, runs: int, deadly: float
) -> None:
    for seed in range(runs):
        clear(root)
        forget(stage)
        stage.run(begin(stage.node, case.held))
        stage.begin(case.operations)
        try:
            wander(stage, random.Random(seed), lambda: look(stage.root), deadly=deadly)
            judge(stage, case)
        except AssertionError as error:
            raise AssertionError(f"with seed {seed}") from error
        finally:
            stage.abandon()
