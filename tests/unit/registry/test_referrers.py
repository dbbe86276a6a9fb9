"""Referrers: what has a given subject, whoever pushed it and whenever."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.oci.digest import Digest
from cluster.oci.manifest import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST
from cluster.oci.reference import RepositoryName
from cluster.registry.referrers import PAGE, Referrers
from cluster.storage import layout
from cluster.storage.driver import StorageFull
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.memory import MemoryDriver
from cluster.storage.threads import Threads
from tests.unit.registry.parts import NAME, Parts, index

pytestmark = pytest.mark.anyio

SUBJECT = Digest.of(index("subject"))


def referrer(text: str, artifact_type: str | None = None, subject: Digest = SUBJECT) -> bytes:
    more = {"artifactType": artifact_type} if artifact_type else {}
    return index(text, subject=subject, **more)


async def listed(parts: Parts, artifact_type: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """All pages."""
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page, cursor = await parts.referrers.page(NAME, SUBJECT, artifact_type, cursor, limit)
        assert len(page) <= limit
        found += map(json.loads, page)
    return found


async def digests(parts: Parts, artifact_type: str | None = None) -> set[str]:
    return {descriptor["digest"] for descriptor in await listed(parts, artifact_type)}


async def test_a_descriptor_tells_what_the_manifest_says_of_itself(parts: Parts) -> None:
    content = referrer("signature", "application/vnd.example.signature")
    digest = await parts.push(content)
    assert await listed(parts) == [
        {
            "mediaType": OCI_INDEX,
            "digest": str(digest),
            "size": len(content),
            "artifactType": "application/vnd.example.signature",
            "annotations": {"text": "signature"},
        }
    ]


async def test_a_subject_without_referrers_has_an_empty_list(parts: Parts) -> None:
    assert await listed(parts) == []
    await parts.push(index("subject"))
    await parts.push(referrer("of another", subject=Digest.of(b"another")))
    assert await listed(parts) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
async def test_pages_make_up_the_whole_list_and_the_filtered_one(parts: Parts, limit: int) -> None:
    pushed = {str(await parts.push(referrer(str(n), f"type/{n % 2}"))) for n in range(7)}
    whole = await listed(parts, limit=limit)
    assert {descriptor["digest"] for descriptor in whole} == pushed and len(whole) == 7
    assert len(await listed(parts, "type/0", limit)) == 4
    assert await listed(parts, "type/2", limit) == []


async def test_a_deleted_referrer_leaves_the_list_and_comes_back_with_a_push(parts: Parts) -> None:
    content = referrer("comes and goes")
    for _ in range(2):
        digest = await parts.push(content)
        assert await digests(parts) == {str(digest)}
        await parts.manifests.delete(NAME, digest)
        assert await digests(parts) == set()


async def test_the_list_outlives_its_subject(parts: Parts) -> None:
    await parts.push(index("subject"))
    digest = await parts.push(referrer("left"))
    await parts.manifests.delete(NAME, SUBJECT)
    assert await digests(parts) == {str(digest)}


async def test_what_somebody_else_wrote_is_listed_early_and_late(parts: Parts) -> None:
    early = await parts.write_as_distribution(referrer("early"))
    assert await digests(parts) == {str(early)}
    ours = await parts.push(referrer("ours"))
    late = await parts.write_as_distribution(referrer("late"))
    assert await digests(parts) == {str(early), str(ours), str(late)}
    assert await digests(Parts(parts.memory)) == {str(early), str(ours), str(late)}


async def test_what_has_no_subject_to_show_is_passed_over(parts: Parts) -> None:
    for content in (b"", b"not JSON", b'{"schemaVersion": 1}', b"[" * 10_000, index("no subject")):
        await parts.write_as_distribution(content)
    docker = json.loads(referrer("docker")) | {"mediaType": DOCKER_LIST}
    await parts.write_as_distribution(json.dumps(docker).encode())
    digest = await parts.write_as_distribution(referrer("the one"))
    assert await digests(parts) == {str(digest)}


@pytest.mark.parametrize("lost", ["the whole index", "one entry", "a broken entry"])
async def test_a_lost_index_is_made_again(parts: Parts, lost: str) -> None:
    pushed = {str(await parts.push(referrer(str(n)))) for n in range(3)}
    await listed(parts)
    if lost == "the whole index":
        await parts.memory.remove(f"repositories/{NAME}/_referrers")
        assert await digests(Parts(parts.memory)) == pushed
        return
    entry = layout.referrer(NAME, SUBJECT, Digest.of(referrer("0")))
    if lost == "one entry":
        await parts.memory.remove(entry)
    else:
        await parts.memory.write(entry, b"{ broken")
    assert len(await digests(parts)) == 2
    await parts.push(referrer("0"))
    assert await digests(parts) == pushed


async def test_an_unchanged_repository_is_not_looked_at_again(parts: Parts) -> None:
    for number in range(3):
        await parts.write_as_distribution(referrer(str(number)))
    assert len(await listed(parts)) == 3
    for path in [path for path in parts.memory.files if path.startswith("blobs/")]:
        parts.memory.files[path] = b"nobody reads this any more"
    assert len(await listed(parts)) == 3


async def test_a_manifest_named_by_sha512_is_listed_by_that_name_once(parts: Parts) -> None:
    content = referrer("wide")
    wide = Digest.of(content, "sha512")
    await parts.manifests.put(NAME, wide, content, OCI_INDEX)
    assert await digests(parts) == {str(wide)}
    assert await digests(Parts(parts.memory)) == {str(wide)}
    await parts.memory.remove(f"repositories/{NAME}/_referrers")
    assert await digests(Parts(parts.memory)) == {str(wide)}


async def test_repositories_do_not_share_referrers(parts: Parts) -> None:
    await parts.push(referrer("here"))
    page, _ = await parts.referrers.page(RepositoryName("team/another"), SUBJECT, None, "", 10)
    assert page == []


LENIENT: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "a layer without a type": lambda value: value | {"layers": [{"digest": str(SUBJECT), "size": 2}]},
    "a config without a size": lambda value: value | {"config": {"mediaType": "a/b", "digest": str(SUBJECT)}},
    "a subject that is a digest alone": lambda value: value | {"subject": {"digest": str(SUBJECT)}},
    "a capital": lambda value: {key.title() if key == "subject" else key: value[key] for key in value},
    "annotations that are no texts": lambda value: value | {"annotations": {"a": 1, "text": "kept"}},
}


@pytest.mark.parametrize("how", LENIENT)
async def test_what_distribution_takes_is_listed(parts: Parts, how: str) -> None:
    value = json.loads(referrer("lenient"))
    del value["manifests"]
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(SUBJECT), "size": 2}
    value |= {"mediaType": OCI_MANIFEST, "config": empty, "layers": []}
    digest = await parts.write_as_distribution(json.dumps(LENIENT[how](value)).encode())
    (descriptor,) = await listed(parts)
    assert descriptor["digest"] == str(digest)
    assert set(descriptor["annotations"]) == {"text"}


async def test_of_a_key_that_is_there_twice_the_last_counts(parts: Parts) -> None:
    content = referrer("first", subject=Digest.of(b"another"))
    subject = json.dumps({"mediaType": OCI_INDEX, "digest": str(SUBJECT), "size": 2}).encode()
    digest = await parts.write_as_distribution(content[:-1] + b', "subject": ' + subject + b"}")
    assert await digests(parts) == {str(digest)}


async def test_what_was_deleted_by_sha512_and_pushed_by_somebody_else_is_listed(parts: Parts) -> None:
    content = referrer("wide")
    wide = Digest.of(content, "sha512")
    for node in (parts, Parts(parts.memory)):
        await node.manifests.put(NAME, wide, content, OCI_INDEX)
        assert await digests(node) == {str(wide)}
        await node.manifests.delete(NAME, wide)
        assert await digests(node) == set()
        plain = await parts.write_as_distribution(content)
        for other in (parts, Parts(parts.memory)):
            assert await digests(other) == {str(plain)}


async def test_a_page_ends_before_it_is_too_large_for_clients(parts: Parts) -> None:
    text = "é" * 400_000  # 800 kB, and three times that where it is escaped
    pushed = {str(await parts.push(referrer(f"{number}{text}"))) for number in range(9)}
    found: list[bytes] = []
    cursor: str | None = ""
    while cursor is not None:
        page, cursor = await parts.referrers.page(NAME, SUBJECT, None, cursor, 1000)
        assert page and sum(map(len, page)) <= PAGE
        assert len(page) == 4 or cursor is None
        found += page
    assert {json.loads(descriptor)["digest"] for descriptor in found} == pushed and len(found) == 9


async def test_what_is_larger_than_a_page_is_a_page(parts: Parts) -> None:
    for number in range(2):
        await parts.push(referrer(f"{number}".ljust(PAGE + 1)))
    first, cursor = await parts.referrers.page(NAME, SUBJECT, None, "", 1000)
    second, end = await parts.referrers.page(NAME, SUBJECT, None, cursor or "", 1000)
    assert (len(first), len(second), end) == (1, 1, None)


class Unwritable(MemoryDriver):
    """A driver that takes no writes when told so, and counts those that were tried."""

    def __init__(self) -> None:
        super().__init__()
        self.is_full = False
        self.tried = 0

    async def write(self, path: str, content: bytes) -> None:
        if self.is_full:
            self.tried += 1
            raise StorageFull(path)
        await super().write(path, content)


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_list_needs_no_room_on_storage(read_only: bool) -> None:
    driver = Unwritable()
    parts = Parts(driver)
    parts.referrers = Referrers(driver, writable=not read_only)
    pushed = {str(await parts.write_as_distribution(referrer(str(n), f"type/{n % 2}"))) for n in range(7)}
    ours = await Parts(driver).push(referrer("ours"))
    driver.is_full = True
    for limit in (1, 3, 100):
        found = [descriptor["digest"] for descriptor in await listed(parts, limit=limit)]
        assert set(found) == pushed | {str(ours)} and len(found) == 8
    assert len(await listed(parts, "type/0")) == 4
    assert driver.tried == (0 if read_only else 1), "each attempt may take ten seconds"
    driver.is_full = False
    assert await digests(Parts(driver)) == pushed | {str(ours)}


async def test_a_push_costs_a_look_at_what_was_pushed(parts: Parts) -> None:
    """Of a repository that is known, neither what was seen is read again nor written again."""
    for number in range(100):
        await parts.write_as_distribution(referrer(str(number)))
    assert len(await listed(parts)) == 100
    before = parts.memory.files[layout.seen(NAME)]
    for path in [path for path in parts.memory.files if path.startswith("blobs/")]:
        parts.memory.files[path] = b"nobody reads this any more"
    await Parts(parts.memory).push(referrer("of another node"))
    await parts.push(referrer("ours"))
    assert len(await listed(parts, limit=200)) == 102
    assert parts.memory.files[layout.seen(NAME)] is before


# On a file system, where a stamp tells of one directory alone


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(2, 10)
    yield threads
    threads.close()


def write_file(root: Path, path: str, content: bytes) -> None:
    os.makedirs((root / path).parent, exist_ok=True)
    (root / path).write_bytes(content)


@pytest.mark.parametrize("deleted_before", [False, True])
async def test_a_link_that_comes_after_its_directory_is_noticed(
    tmp_path: Path, threads: Threads, deleted_before: bool
) -> None:
    """As Distribution writes: the data, a directory, and the link in it; and again after it deleted the link."""
    referrers = Referrers(FilesystemDriver(str(tmp_path), threads))
    content = referrer("half-way")
    digest = Digest.of(content)
    link = layout.revision_link(NAME, digest)
    write_file(tmp_path, layout.blob(digest), content)
    if deleted_before:
        write_file(tmp_path, link, str(digest).encode())
        (tmp_path / link).unlink()
    else:
        os.makedirs((tmp_path / link).parent)
    assert await referrers.page(NAME, SUBJECT, None, "", 10) == ([], None)
    write_file(tmp_path, link, str(digest).encode())
    page, _ = await referrers.page(NAME, SUBJECT, None, "", 10)
    assert [json.loads(descriptor)["digest"] for descriptor in page] == [str(digest)]


async def test_what_comes_within_one_tick_of_storages_clock_is_noticed(tmp_path: Path, threads: Threads) -> None:
    """Before Linux 6.13 that clock moves each few milliseconds, and two names may come with one stamp."""
    now, tick = 0.0, time.time() + 3600  # no listing is kept of a directory that has just changed
    referrers = Referrers(FilesystemDriver(str(tmp_path), threads), now=lambda: now)
    pushed = []
    for text in ("first", "of the same tick"):
        content = referrer(text)
        pushed.append(str(digest := Digest.of(content)))
        write_file(tmp_path, layout.blob(digest), content)
        write_file(tmp_path, layout.revision_link(NAME, digest), str(digest).encode())
        os.utime(tmp_path / layout.revisions(NAME, "sha256"), (tick, tick))
        await referrers.page(NAME, SUBJECT, None, "", 10)
    now = 3.0
    page, _ = await referrers.page(NAME, SUBJECT, None, "", 10)
    assert {json.loads(descriptor)["digest"] for descriptor in page} == set(pushed)


class NoRoom(Exception):
    pass


async def test_a_page_tells_what_it_holds_while_it_grows_and_ends_where_there_is_no_room(parts: Parts) -> None:
    for number in range(20):
        await parts.push(referrer(f"{number}" + "x" * 300_000))
    told: list[int] = []
    page, _ = await parts.referrers.page(NAME, SUBJECT, None, "", 5, told.append)
    assert told == sorted(told) and len(told) >= 3
    assert told[0] < 700_000 and sum(map(len, page)) <= told[-1]

    reads = 0

    def refuse(size: int) -> None:
        nonlocal reads
        reads += 1
        if size > 1_000_000:
            raise NoRoom

    with pytest.raises(NoRoom):
        await parts.referrers.page(NAME, SUBJECT, None, "", 20, refuse)
    assert reads < 6, "what there is no room for is not read"
