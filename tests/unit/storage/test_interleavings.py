"""Two and three operations on one upload session, on several nodes, in every order of their calls to storage.

Rules U1 to U9. What must hold (J1 to J5) is in `judge` and `look`; a writer that is stopped is one whose turn does
not come, one that is killed makes no call any more.
"""

from __future__ import annotations

import glob
import hashlib
import math
import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cluster.errors import DigestInvalid, RangeInvalid, RegistryError, UploadUnknown
from cluster.oci.digest import Digest
from cluster.oci.ranges import format_chunk_range
from cluster.oci.reference import RepositoryName
from cluster.oci.upload import UploadState
from cluster.registry.blobs import BlobStore
from cluster.registry.catalog import Catalog
from cluster.registry.uploads import Body, UploadService
from cluster.storage import layout
from cluster.storage.disk import Disk
from cluster.storage.driver import NotFound
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.segments import SegmentUploads
from tests.support.schedules import InPlace, Killed, Stage, explore, wander

NAME = RepositoryName("team/app")
UUID = "0b1c2d3e-1111-4222-8333-444455556666"
SESSION = layout.upload(NAME, UUID)
FAR = 1e12  # a time at which everything is old


class Node:
    """The services of one node."""

    def __init__(self, root: str, disk: Disk) -> None:
        threads = InPlace()
        driver = FilesystemDriver(root, threads, disk)
        self.segments = SegmentUploads(root, driver, threads, disk)
        self.blobs = BlobStore(driver, Catalog(driver))
        self.driver = driver
        self.service = UploadService(self.segments, self.blobs, new_id=lambda: UUID)


Operation = Callable[[Node], Coroutine[Any, Any, Any]]


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


Any_ = Patch | Finish | Cancel | Status | Purge
A, B, C = b"aaaa", b"bbbbbb", b"cc"
GONE = (UploadUnknown,)
MOVED = (RangeInvalid,)


@dataclass(frozen=True)
class Case:
    held: tuple[bytes, ...]
    """What was acknowledged before."""
    operations: tuple[Any_, ...]


@pytest.fixture(scope="module")
def root() -> Iterator[str]:
    """A directory in memory, where there is one: what is synced is not the question here."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="interleavings-") as directory:
        yield directory


@pytest.fixture(scope="module")
def stage(root: str) -> Iterator[Stage[Node]]:
    stage: Stage[Node] = Stage(root, lambda disk: Node(root, disk), 3)
    try:
        for actor in stage.actors:  # every directory that stays is there, and every node knows it
            stage.run(begin(actor.node, (A, B)))
            stage.run(Finish(10, A + B)(actor.node))
        yield stage
    finally:
        stage.close()


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


def look(root: str) -> None:
    """J1: whatever is linked as a blob holds exactly the bytes of its digest."""
    for path in glob.glob(f"{root}/blobs/sha256/*/*/data"):
        with open(path, "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == path.split("/")[-2]


def judge(stage: Stage[Node], case: Case) -> None:
    """What must hold when all operations have ended."""
    outcomes = [actor.outcome for actor in stage.actors[: len(case.operations)]]
    for operation, outcome, actor in zip(case.operations, outcomes, stage.actors, strict=False):
        assert not isinstance(outcome, Exception) or isinstance(outcome, (*operation.refusals, Killed)), outcome
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
    for outcome in outcomes:
        if isinstance(outcome, RangeInvalid):
            assert outcome.headers["Range"] == format_chunk_range(extent), "the true Range"


def _worked(outcome: Any) -> bool:
    return not isinstance(outcome, Exception) and outcome is not False


async def _judge_commit(node: Node, finish: Finish) -> None:
    found = await node.blobs.stat(NAME, Digest.of(finish.content))  # J2
    assert await node.driver.read(layout.blob(found.canonical)) == finish.content
    assert await finish(node) == found  # J4


CASES = {
    "two chunks for one offset": Case((A,), (Patch(4, B, MOVED), Patch(4, C, MOVED))),
    "the same chunk twice": Case((), (Patch(0, A, MOVED), Patch(0, A, MOVED))),
    "a chunk and a status": Case((A,), (Patch(4, B, MOVED), Status())),
    "a chunk and a cancel": Case((A,), (Patch(4, B, GONE), Cancel())),
    "a chunk and a purge": Case((A,), (Patch(4, B, GONE), Purge())),
    "a chunk and a commit without it": Case(
        (A,), (Patch(4, B, (*MOVED, *GONE)), Finish(4, A, refusals=(DigestInvalid, RangeInvalid)))
    ),
    "a chunk and a commit of it": Case((A,), (Patch(4, B, (*MOVED, *GONE)), Finish(4, A + B, last=B))),
    "a commit and a commit": Case((A,), (Finish(4, A), Finish(4, A))),
    "two commits of two segments": Case((A, B), (Finish(10, A + B), Finish(10, A + B))),
    "two commits with a last chunk": Case((A,), (Finish(4, A + B, last=B), Finish(4, A + B, last=B))),
    "a commit and a cancel": Case((A,), (Finish(4, A, refusals=GONE), Cancel(GONE))),
    "a commit of two segments and a purge": Case((A, B), (Finish(10, A + B, refusals=GONE), Purge())),
    "a status and a cancel": Case((A,), (Status(GONE), Cancel())),
    "two cancels": Case((A,), (Cancel(GONE), Cancel(GONE))),
}


@pytest.mark.parametrize("interruptions", [2, pytest.param(math.inf, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_two_operations_in_every_order(stage: Stage[Node], root: str, case: Case, interruptions: float) -> None:
    def start() -> None:
        clear(root)
        stage.run(begin(stage.node, case.held))
        stage.begin(case.operations)

    def check() -> None:
        look(root)
        if not stage.ready():
            judge(stage, case)

    assert explore(stage, start, check, interruptions) > 50
