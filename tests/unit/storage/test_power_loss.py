"""The power goes after every single step of an operation: what was acknowledged is there, and all else is whole.

Promise P2, over the real services on a disk that forgets what was not synced (tests/support/disks.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from cluster.errors import BlobUnknown, DigestInvalid, ManifestUnknown, RegistryError, StorageError, UploadUnknown
from cluster.oci.digest import Digest
from cluster.oci.manifest import OCI_INDEX, OCI_MANIFEST
from cluster.oci.reference import Reference, RepositoryName, Tag
from cluster.oci.upload import UploadState
from cluster.registry.blobs import BlobStore
from cluster.registry.catalog import Catalog
from cluster.registry.manifests import ManifestStore
from cluster.registry.referrers import Referrers
from cluster.registry.tags import TagStore
from cluster.registry.uploads import Body, UploadService
from cluster.storage import layout
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.mixed import MixedUploads
from cluster.storage.segments import SegmentUploads
from tests.support.disks import ROOT, ForgetfulDisk, PowerLoss
from tests.support.schedules import InPlace

NAME = RepositoryName("team/app")
UUID, ANOTHER = "0b1c2d3e-1111-4222-8333-444455556666", "0b1c2d3e-7777-4888-8999-444455556666"
TAG = Tag("v1")
CHUNKS = (b"the first chunk, ", b"the second one, ", b"and the last")
CHANCES = 3  # variants of what survives, besides the strict one


def manifest(text: str, subject: Digest | None = None) -> bytes:
    """An index of nothing, with something of its own."""
    fields: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    if subject is not None:
        fields["subject"] = {"mediaType": OCI_INDEX, "digest": str(subject), "size": 2}
    return json.dumps(fields | {"annotations": {"text": text}}).encode()


OLD, NEW = manifest("old"), manifest("new")
REFERRER = manifest("referrer", Digest.of(OLD))


Kind = type[SegmentUploads | MixedUploads]


class Machine:
    """One node on a disk. After a loss of power there is another one, on what is left."""

    def __init__(self, disk: ForgetfulDisk, kind: Kind = SegmentUploads) -> None:
        self.disk = disk
        threads = InPlace()
        self.driver = FilesystemDriver(ROOT, threads, disk)
        uploads = kind(ROOT, self.driver, threads, disk)
        self.blobs = BlobStore(self.driver, Catalog(self.driver))
        self.next_id = UUID
        self.uploads = UploadService(uploads, self.blobs, new_id=lambda: self.next_id)
        self.tags = TagStore(self.driver)
        self.referrers = Referrers(self.driver)
        self.manifests = ManifestStore(self.driver, self.blobs, self.tags, self.referrers)

    async def push(self, content: bytes, reference: Reference | None = None) -> None:
        await self.manifests.put(NAME, reference or Digest.of(content), content, OCI_INDEX)

    async def manifest(self, reference: Reference) -> bytes | None:
        try:
            return (await self.manifests.open(NAME, reference)).content
        except ManifestUnknown:
            return None

    async def blob(self, digest: Digest) -> bytes | None:
        try:
            content = await self.blobs.stat(NAME, digest)
        except BlobUnknown:
            return None
        return await self.driver.read(layout.blob(content.canonical))

    async def begin(self, *chunks: bytes) -> UploadState:
        state = await self.uploads.start(NAME)
        for chunk in chunks:
            state = await self.uploads.append(state, body(chunk))
        return state

    async def position(self, state: UploadState) -> UploadState | None:
        try:
            return await self.uploads.status(state)
        except UploadUnknown:
            return None

    async def complete(self, position: UploadState | None, acknowledged: int, whole: bytes) -> None:
        """Go on as a client would that was told this position, until the blob is there."""
        self.next_id = ANOTHER
        digest = Digest.of(whole)
        if position is None:  # a POST alone promises nothing
            assert not acknowledged
            position = await self.begin()
        assert acknowledged <= position.offset <= len(whole)
        try:
            await self.uploads.finish(position, digest, body(whole[position.offset :]))
        except DigestInvalid:
            # Rule U4 takes over what a dead writer left. A loss of power may have torn that: then the digest tells.
            assert position.offset > acknowledged
            await self.uploads.finish(await self.begin(), digest, body(whole))
        assert await self.blob(digest) == whole


def body(data: bytes = b"") -> Body:
    async def pieces() -> AsyncIterator[bytes]:
        yield data

    return Body(pieces(), len(data))


def run(disk: ForgetfulDisk, scenario: Callable[[Machine], Awaitable[None]], kind: Kind = SegmentUploads) -> None:
    """Do something as a node that was just started on this disk."""

    async def main() -> None:
        await scenario(Machine(disk, kind))

    asyncio.run(main())


Step = Callable[[Machine], Awaitable[None]]


@dataclass
class Scenario:
    """`do` is interrupted everywhere; `check` looks at what is left, told whether `do` was acknowledged."""

    do: Step
    check: Callable[[Machine, bool], Awaitable[None]]
    before: Step = field(default=lambda machine: asyncio.sleep(0))
    needs: frozenset[str] = frozenset({"files", "directories"})
    """What must really be synced during `do`."""
    kind: Kind = SegmentUploads

    def cut_everywhere(self, lies: frozenset[str] = frozenset()) -> int:
        """The number of steps at which the power was cut."""
        steps = 0
        while True:
            disk = ForgetfulDisk()
            run(disk, self.before, self.kind)
            disk.lies, disk.steps_left = lies, steps
            try:
                run(disk, self.do, self.kind)
                acknowledged = True
            except PowerLoss:
                acknowledged = False
            self._look(disk, acknowledged, steps)
            if acknowledged:
                return steps
            steps += 1

    def _look(self, disk: ForgetfulDisk, acknowledged: bool, steps: int) -> None:
        for chance in [None, *(random.Random(f"{steps} {seed}") for seed in range(CHANCES))]:
            run(disk.crash(chance), lambda machine: self.check(machine, acknowledged), self.kind)


# Manifests and tags


async def check_first_tag(machine: Machine, acknowledged: bool) -> None:
    found = await machine.manifest(TAG)
    assert found == NEW or (found is None and not acknowledged)
    await machine.push(NEW, TAG)
    assert await machine.manifest(TAG) == NEW


first_tag = Scenario(do=lambda machine: machine.push(NEW, TAG), check=check_first_tag)


async def check_move(machine: Machine, acknowledged: bool) -> None:
    found = await machine.manifest(TAG)
    assert found == NEW or (found == OLD and not acknowledged)
    assert await machine.manifest(Digest.of(OLD)) == OLD
    await machine.push(OLD, TAG)
    assert await machine.manifest(TAG) == OLD


move = Scenario(
    before=lambda machine: machine.push(OLD, TAG), do=lambda machine: machine.push(NEW, TAG), check=check_move
)


async def check_untag(machine: Machine, acknowledged: bool) -> None:
    found = await machine.manifest(TAG)
    assert found is None or (found == OLD and not acknowledged)
    assert (await machine.tags.page(NAME, "", 100))[0] == ([] if found is None else [TAG])
    assert await machine.manifest(Digest.of(OLD)) == OLD
    await machine.push(NEW, TAG)
    assert await machine.manifest(TAG) == NEW


untag = Scenario(
    before=lambda machine: machine.push(OLD, TAG),
    do=lambda machine: machine.manifests.delete_tag(NAME, TAG, None),
    check=check_untag,
    needs=frozenset({"directories"}),
)


async def check_delete(machine: Machine, acknowledged: bool) -> None:
    by_tag, by_digest = await machine.manifest(TAG), await machine.manifest(Digest.of(OLD))
    assert by_tag in (None, OLD) and by_digest in (None, OLD)
    assert by_tag is None or by_digest is not None
    assert not acknowledged or (by_tag, by_digest) == (None, None)
    await machine.push(OLD, TAG)
    assert await machine.manifest(TAG) == OLD


delete = Scenario(
    before=lambda machine: machine.push(OLD, TAG),
    do=lambda machine: machine.manifests.delete(NAME, Digest.of(OLD)),
    check=check_delete,
    needs=frozenset({"directories"}),
)


async def check_referrer(machine: Machine, acknowledged: bool) -> None:
    found, _ = await machine.referrers.page(NAME, Digest.of(OLD), None, "", 10)
    there = await machine.manifest(Digest.of(REFERRER))
    assert [json.loads(entry)["digest"] for entry in found] == ([str(Digest.of(REFERRER))] if there else [])
    assert there == REFERRER or not acknowledged


referrer = Scenario(
    before=lambda machine: machine.push(OLD),
    do=lambda machine: machine.push(REFERRER),
    check=check_referrer,
)


# Uploads

WHOLE = b"".join(CHUNKS)


def commit(*chunks: bytes, last: bytes = b"") -> Scenario:
    """A commit of these acknowledged chunks, with a last one in the PUT."""
    whole = b"".join(chunks) + last
    digest, state = Digest.of(whole), UploadState(NAME, UUID, len(whole) - len(last), "")

    async def do(machine: Machine) -> None:
        await machine.uploads.finish(state, digest, body(last))

    async def check(machine: Machine, acknowledged: bool) -> None:
        assert await machine.blob(digest) in ((whole,) if acknowledged else (None, whole))
        if await machine.blob(digest) is None:
            await machine.complete(await machine.position(state), state.offset, whole)
        else:
            await machine.uploads.finish(state, digest, body(last))
        assert await machine.blob(digest) == whole

    async def before(machine: Machine) -> None:
        await machine.begin(*chunks)

    return Scenario(do, check, before)


def patch(*before: bytes) -> Scenario:
    """One more chunk after those, the first one together with the POST."""
    held = b"".join(before)
    state = UploadState(NAME, UUID, len(held), "")

    async def prepare(machine: Machine) -> None:
        if before:
            await machine.begin(*before)

    async def do(machine: Machine) -> None:
        if not before:
            await machine.begin()
        await machine.uploads.append(state, body(CHUNKS[-1]))

    async def check(machine: Machine, acknowledged: bool) -> None:
        whole = held + CHUNKS[-1]
        await machine.complete(await machine.position(state), len(whole if acknowledged else held), whole)

    return Scenario(do, check, prepare)


def cancelled() -> Scenario:
    state = UploadState(NAME, UUID, len(WHOLE), "")

    async def before(machine: Machine) -> None:
        await machine.begin(*CHUNKS)

    async def check(machine: Machine, acknowledged: bool) -> None:
        position = await machine.position(state)
        assert position is None or (position == state and not acknowledged)
        await machine.complete(position, 0 if position is None else len(WHOLE), WHOLE)

    return Scenario(lambda machine: machine.uploads.cancel(state), check, before, frozenset({"directories"}))


def handed_over(*, in_a_new_repository: bool = False) -> Scenario:
    """A chunk behind the bytes that Distribution took, and did not sync."""
    base = b"what Distribution took"
    state = UploadState(NAME, UUID, len(base), "")

    async def before(machine: Machine) -> None:
        session = f"{ROOT}/{layout.upload(NAME, UUID)}"
        if not in_a_new_repository:
            machine.driver.directories.ensure(session.rpartition("/")[0])
        make_directories(machine.disk, session)
        for name, content in (("startedat", b"2024-01-02T03:04:05Z"), ("data", base)):
            fd = machine.disk.create(f"{session}/{name}")
            machine.disk.write(fd, content)
            machine.disk.close(fd)

    async def do(machine: Machine) -> None:
        await machine.uploads.append(state, body(CHUNKS[0]))

    async def check(machine: Machine, acknowledged: bool) -> None:
        whole = base + CHUNKS[0]
        if acknowledged:
            await machine.complete(await machine.position(state), len(whole), whole)

    return Scenario(do, check, before)


def make_directories(disk: ForgetfulDisk, path: str) -> None:
    """As Distribution makes them: nothing is synced."""
    if path != ROOT:
        make_directories(disk, path.rpartition("/")[0])
        with contextlib.suppress(FileExistsError):
            disk.mkdir(path)


SCENARIOS = {
    "the first PUT of a manifest by tag": first_tag,
    "a tag that moves": move,
    "a tag that is deleted": untag,
    "a manifest that is deleted with its tag": delete,
    "a manifest with a subject": referrer,
    "a commit of nothing": commit(),
    "a commit of one segment": commit(WHOLE),
    "a commit of several segments": commit(*CHUNKS),
    "a commit with its last chunk": commit(*CHUNKS[:2], last=CHUNKS[2]),
    "a monolithic commit": commit(last=WHOLE),
    "the first chunk of a session": patch(),
    "a later chunk": patch(*CHUNKS[:2]),
    "a session that is cancelled": cancelled(),
    "a session that Distribution began": handed_over(),
    "a session that Distribution began in a new repository": handed_over(in_a_new_repository=True),
}
SCENARIOS |= {
    f"{name}, beside Distribution": replace(scenario, kind=MixedUploads)
    for name, scenario in SCENARIOS.items()
    if "chunk" in name or "commit of" in name or "Distribution" in name
}
# It adds to a file that is there: no directory changes that anything stands on.
SCENARIOS["a later chunk, beside Distribution"].needs = frozenset({"files"})


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_what_was_acknowledged_survives_and_everything_works_again(scenario: Scenario) -> None:
    assert scenario.cut_everywhere() > 3


@pytest.mark.parametrize("lie", ["files", "directories"])
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_a_disk_that_only_pretends_to_sync_is_found_out(scenario: Scenario, lie: str) -> None:
    if lie in scenario.needs:
        with pytest.raises((AssertionError, RegistryError, StorageError)):
            scenario.cut_everywhere(frozenset({lie}))
    else:
        scenario.cut_everywhere(frozenset({lie}))


# What stands on something that somebody else left half done


def image(config: Digest) -> bytes:
    descriptor = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(config), "size": 2}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor, "layers": []}).encode()


async def push_blob(machine: Machine, content: bytes, uuid: str) -> None:
    machine.next_id = uuid
    await machine.uploads.finish(await machine.begin(), Digest.of(content), body(content))


def left_behind(steps: int) -> ForgetfulDisk | None:
    """The disk of a node that died after so many steps of pushing a blob; None: it was done before."""
    disk = ForgetfulDisk()
    run(disk, lambda machine: push_blob(machine, b"another blob", ANOTHER))
    disk.steps_left = steps
    try:
        run(disk, lambda machine: push_blob(machine, b"{}", UUID))
    except PowerLoss:
        disk.survive()
        return disk
    return None


def test_a_manifest_does_not_lose_a_blob_whose_writer_died_before_it_was_durable() -> None:
    config, seen = Digest.of(b"{}"), 0
    for steps in itertools.count():
        disk = left_behind(steps)
        if disk is None:
            break
        pushed: list[bytes] = []

        async def push(machine: Machine, pushed: list[bytes] = pushed) -> None:
            if await machine.blob(config) is not None:
                await machine.manifests.put(NAME, TAG, image(config), OCI_MANIFEST)
                pushed.append(image(config))

        async def check(machine: Machine) -> None:
            assert (await machine.manifest(TAG), await machine.blob(config)) == (image(config), b"{}")

        run(disk, push)
        if pushed:
            seen += 1
            run(disk.crash(), check)
    assert seen > 1


def test_a_repeated_commit_does_not_promise_what_is_not_durable() -> None:
    seen = 0
    for steps in itertools.count():
        disk = left_behind(steps)
        if disk is None:
            break
        acknowledged: list[object] = []

        async def commit(machine: Machine, acknowledged: list[object] = acknowledged) -> None:
            with contextlib.suppress(UploadUnknown, DigestInvalid):  # as when the session is gone
                state = UploadState(NAME, ANOTHER, 0, "")
                acknowledged.append(await machine.uploads.finish(state, Digest.of(b"{}"), body()))

        async def check(machine: Machine) -> None:
            assert await machine.blob(Digest.of(b"{}")) == b"{}"

        run(disk, commit)
        if acknowledged:
            seen += 1
            run(disk.crash(), check)
    assert seen > 1
