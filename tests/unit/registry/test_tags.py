"""Tags as registers: moves, conditions, deletes, lists (rules T1 to T5)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import combinations_with_replacement

import pytest

from cluster.errors import NameUnknown, PreconditionFailed, Unavailable
from cluster.oci.digest import Digest
from cluster.oci.reference import RepositoryName, Tag
from cluster.registry import tags as tags_module
from cluster.registry.tags import Pointer, Precondition, TagStore
from cluster.storage import layout
from cluster.storage.driver import LockTimeout
from cluster.storage.memory import MemoryDriver
from tests.unit.registry.parts import NAME, Parts, index

pytestmark = pytest.mark.anyio

V1 = Tag("v1")
ONE, TWO = Digest.of(b"one"), Digest.of(b"two")


async def nothing() -> None:
    pass


async def put(parts: Parts, tag: str, digest: Digest, precondition: Precondition | None = None) -> None:
    await parts.tags.put(NAME, Tag(tag), Pointer(digest, digest), nothing, precondition)


async def test_a_tag_points_to_what_was_put_last(parts: Parts) -> None:
    assert await parts.points_to(V1) is None
    for digest in (ONE, TWO, ONE, ONE):
        await put(parts, "v1", digest)
        assert await parts.points_to(V1) == digest


async def test_a_tag_is_written_as_distribution_writes_it(parts: Parts) -> None:
    await put(parts, "v1", ONE)
    await put(parts, "v1", TWO)
    directory = f"repositories/{NAME}/_manifests/tags/v1"
    assert parts.memory.files == {
        f"{directory}/current/link": str(TWO).encode(),
        f"{directory}/index/sha256/{ONE.encoded}/link": str(ONE).encode(),
        f"{directory}/index/sha256/{TWO.encoded}/link": str(TWO).encode(),
    }


@pytest.mark.parametrize("link", [b"", b"sha256:", b"garbage", str(ONE).encode() + b"\n", b"\xff" * 71])
async def test_a_broken_link_is_no_tag(parts: Parts, link: bytes) -> None:
    await parts.memory.write(layout.tag_link(NAME, V1), link)
    assert await parts.points_to(V1) is None
    await put(parts, "v1", ONE)
    assert await parts.points_to(V1) == ONE


def matching(*digests: Digest | str) -> Precondition:
    return Precondition(match=frozenset(map(str, digests)))


def unless(*digests: Digest | str) -> Precondition:
    return Precondition(none_match=frozenset(map(str, digests)))


CONDITIONS = [
    # what the tag points to, the condition, whether a write may take place
    (None, matching(ONE), False),
    (None, matching("*"), False),
    (None, unless("*"), True),
    (None, unless(ONE), True),
    (ONE, matching(ONE), True),
    (ONE, matching(TWO, ONE), True),
    (ONE, matching("*"), True),
    (ONE, matching(TWO), False),
    (ONE, matching(), False),
    (ONE, unless("*"), False),
    (ONE, unless(ONE), False),
    (ONE, unless(TWO), True),
    (ONE, Precondition(frozenset({str(ONE)}), frozenset({str(ONE)})), False),
]


@pytest.mark.parametrize("call", ["put", "delete"])
@pytest.mark.parametrize(("current", "condition", "may"), CONDITIONS)
async def test_a_conditional_write_takes_place_only_where_it_may(
    parts: Parts, current: Digest | None, condition: Precondition, may: bool, call: str
) -> None:
    if current is not None:
        await put(parts, "v1", current)
    write = put(parts, "v1", TWO, condition) if call == "put" else parts.tags.delete(NAME, V1, condition)
    if may:
        await write
        assert await parts.points_to(V1) == (TWO if call == "put" else None)
    else:
        with pytest.raises(PreconditionFailed) as refusal:
            await write
        assert refusal.value.detail["current"] == (current and str(current))
        assert await parts.points_to(V1) == current


async def test_of_many_who_create_a_tag_one_succeeds(parts: Parts) -> None:
    digests = [Digest.of(b"%d" % number) for number in range(10)]
    nodes = [Parts(parts.memory) for _ in digests]
    outcomes = await asyncio.gather(
        *(put(node, "v1", digest, unless("*")) for node, digest in zip(nodes, digests, strict=True)),
        return_exceptions=True,
    )
    winners = [digest for digest, outcome in zip(digests, outcomes, strict=True) if outcome is None]
    assert [await parts.points_to(V1)] == winners


async def test_a_counter_in_a_tag_loses_no_step(parts: Parts) -> None:
    steps = [Digest.of(b"%d" % number) for number in range(31)]
    await put(parts, "v1", steps[0])

    async def count(node: Parts, times: int) -> None:
        while times:
            current = await node.points_to(V1)
            assert current is not None
            await asyncio.sleep(0)
            try:
                await put(node, "v1", steps[steps.index(current) + 1], matching(current))
            except PreconditionFailed:
                continue
            times -= 1

    await asyncio.gather(*(count(Parts(parts.memory), 10) for _ in range(3)))
    assert await parts.points_to(V1) == steps[30]


# Two names of one manifest

WIDE = Pointer(Digest.of(b"one", "sha512"), ONE)


class Recording(MemoryDriver):
    """Keeps what was on storage after each change."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[dict[str, bytes]] = [{}]

    async def write(self, path: str, content: bytes) -> None:
        await super().write(path, content)
        self.states.append(dict(self.files))

    async def remove(self, path: str) -> None:
        await super().remove(path)
        self.states.append(dict(self.files))


class Slow(MemoryDriver):
    """Between two looks of its reader, storage goes on from one of these states to the next."""

    def __init__(self, states: Sequence[dict[str, bytes]]) -> None:
        super().__init__()
        self._states = states
        self.at = -1
        """Which of the states was looked at last."""

    async def read(self, path: str) -> bytes:
        self.at = min(self.at + 1, len(self._states) - 1)
        self.files = self._states[self.at]
        return await super().read(path)


async def test_a_reader_sees_what_the_tag_was_at_one_moment_by_whichever_name() -> None:
    """Or somebody who reads later could see less: that is what makes a tag one register (promise P3)."""
    driver, two, plain = Recording(), Pointer(TWO, TWO), Pointer(ONE, ONE)
    store = TagStore(driver)
    moments: list[dict[str, bytes]] = []
    for manifest in (
        two,
        WIDE,
        two,
        plain,
        WIDE,
        plain,
        two,
        WIDE,
        None,
        WIDE,
        None,
        WIDE,
        two,
        None,
        plain,
        two,
        WIDE,
    ):
        if manifest is None:
            await store.delete(NAME, V1)
        else:
            await store.put(NAME, V1, manifest, nothing)
    paths = [layout.tag_link(NAME, V1), layout.tag_name(NAME, V1, ONE)]
    for state in driver.states:
        told = {path: state[path] for path in paths if path in state}
        if told not in moments[-1:]:
            moments.append(told)
    held = [await TagStore(Slow([moment])).read(NAME, V1) for moment in moments]
    assert {None, two, plain, WIDE} == set(held) and len(moments) > 20
    for times in combinations_with_replacement(range(len(moments)), 4):
        reader = Slow([moments[time] for time in times])
        seen = await TagStore(reader).read(NAME, V1)
        assert seen in held[times[0] : times[reader.at] + 1], [moments[time] for time in times]


async def test_a_name_by_sha512_gives_way_to_one_by_sha256_and_comes_back(parts: Parts) -> None:
    for manifest in (WIDE, Pointer(ONE, ONE), WIDE, Pointer(TWO, TWO), Pointer(ONE, ONE)):
        await parts.tags.put(NAME, V1, manifest, nothing)
        assert await parts.tags.read(NAME, V1) == manifest


# Deletes


async def test_a_deleted_tag_leaves_nothing_but_its_lock(parts: Parts) -> None:
    await put(parts, "v1", ONE)
    await put(parts, "v2", TWO)
    assert await parts.tags.delete(NAME, V1)
    assert not await parts.tags.delete(NAME, V1)
    assert await parts.points_to(V1) is None
    assert await parts.memory.names(layout.tags(NAME)) == ["v2"]


async def test_what_a_delete_left_that_was_cut_off_goes_with_the_next_one(parts: Parts) -> None:
    for tag in ("v1", "v2"):
        await put(parts, tag, ONE)
    await parts.memory.remove(layout.tag_link(NAME, V1))  # and there the node died
    assert not await parts.tags.delete(NAME, V1)
    assert await parts.memory.names(layout.tags(NAME)) == ["v2"]


async def test_asking_for_a_tag_that_is_not_there_leaves_nothing(parts: Parts) -> None:
    assert not await parts.tags.delete(NAME, V1)
    assert parts.memory.files == {}


async def test_a_delete_can_depend_on_what_the_tag_points_to(parts: Parts) -> None:
    await put(parts, "v1", ONE)

    async def points_to_two(digest: Digest) -> bool:
        return digest == TWO

    assert not await parts.tags.delete(NAME, V1, only_if=points_to_two)
    await put(parts, "v1", TWO)
    assert await parts.tags.delete(NAME, V1, only_if=points_to_two)


async def test_the_tags_of_a_digest_are_found(parts: Parts) -> None:
    for tag, digest in (("a", ONE), ("b", TWO), ("c", ONE), ("d", TWO)):
        await put(parts, tag, digest)
    await put(parts, "d", ONE)
    assert await parts.tags.pointing_to(NAME, {ONE}) == ["a", "c", "d"]
    assert await parts.tags.pointing_to(NAME, {TWO, Digest.of(b"")}) == ["b"]
    assert await parts.tags.pointing_to(RepositoryName("another"), {ONE}) == []


# Locks (T2)


class Held(MemoryDriver):
    """A driver on which somebody holds every lock for ever."""

    def lock(self, path: str, timeout: float) -> object:  # type: ignore[override]
        assert timeout == tags_module.LOCK_TIMEOUT
        raise LockTimeout(f"{path} was locked")


async def test_a_tag_that_somebody_holds_can_be_read_and_is_unavailable_to_writers() -> None:
    driver = Held()
    await driver.write(layout.tag_link(NAME, V1), str(ONE).encode())
    tags = TagStore(driver)
    assert await tags.read(NAME, V1) == Pointer(ONE, ONE)
    for write in (tags.put(NAME, V1, Pointer(TWO, TWO), nothing), tags.delete(NAME, V1)):
        with pytest.raises(Unavailable) as refusal:
            await write
        assert int(refusal.value.headers["Retry-After"]) > 0
    assert await tags.read(NAME, V1) == Pointer(ONE, ONE)


async def test_a_writer_that_holds_one_tag_does_not_hinder_another(parts: Parts) -> None:
    async with parts.driver.lock(layout.tag_lock(NAME, V1), 1):
        await put(parts, "v2", ONE)
    assert await parts.points_to(Tag("v2")) == ONE


# Lists

TAGS = ["1.10", "1.9", "A", "Z", "_", "a", "a-b", "a.b", "ab", "b"]


@pytest.mark.parametrize("limit", [1, 2, 3, 9, 10, 11, 5000])
async def test_pages_of_tags_make_up_the_whole_list_in_byte_order(parts: Parts, limit: int) -> None:
    for tag in reversed(TAGS):
        await put(parts, tag, ONE)
    found: list[str] = []
    more = True
    while more:
        page, more = await parts.tags.page(NAME, found[-1] if found else "", limit)
        assert len(page) == limit or not more
        found += page
    assert found == TAGS


@pytest.mark.parametrize("size", [1, 3, 10, 11])
async def test_batches_come_from_one_listing_and_hold_no_more_than_asked_for(parts: Parts, size: int) -> None:
    for tag in TAGS:
        await put(parts, tag, ONE)
    for last in ("", "Z", "a", "zz"):
        for _ in range(2):  # the second time, nobody looks at the links again
            found = []
            async for tags in parts.tags.batches(NAME, last, size):
                assert 0 < len(tags) <= size
                found += tags
                await put(parts, "zzz", ONE)  # too late for this list
            assert found == [tag for tag in TAGS if tag > last]
            await parts.tags.delete(NAME, Tag("zzz"))


async def test_a_tag_on_its_way_in_or_out_is_not_listed(parts: Parts) -> None:
    for tag in ("a", "b", "c"):
        await put(parts, tag, ONE)
    await parts.memory.write(layout.tag_index_link(NAME, Tag("ab"), ONE), b"only an index")
    await parts.memory.write(layout.tag_link(NAME, Tag("bc")), b"")
    assert await parts.tags.page(NAME, "", 100) == (["a", "b", "c"], False)
    assert await parts.tags.page(NAME, "a", 1) == (["b"], True)
    assert await parts.tags.page(NAME, "b", 1) == (["c"], False)


async def test_a_repository_without_tags_has_an_empty_list_and_none_has_no_list(parts: Parts) -> None:
    with pytest.raises(NameUnknown):
        await parts.tags.page(NAME, "", 100)
    await parts.push(index("untagged"))
    assert await parts.tags.page(NAME, "", 100) == ([], False)
    assert await parts.tags.page(NAME, "z", 1) == ([], False)


async def test_a_list_follows_every_change(parts: Parts) -> None:
    for _ in range(3):
        await put(parts, "a", ONE)
        await put(parts, "b", ONE)
        assert (await parts.tags.page(NAME, "", 100))[0] == ["a", "b"]
        await parts.tags.delete(NAME, Tag("a"))
        assert (await parts.tags.page(NAME, "", 100))[0] == ["b"]
