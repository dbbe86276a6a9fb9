"""Manifests: what is taken and refused, what is served, and what a delete leaves."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

from cluster.errors import (
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    PreconditionFailed,
    RegistryErrors,
)
from cluster.oci.digest import Digest
from cluster.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST, LIMIT, OCI_INDEX, OCI_MANIFEST
from cluster.oci.reference import RepositoryName, Tag
from cluster.registry.manifests import Rules
from cluster.registry.tags import Precondition
from cluster.storage import layout
from cluster.storage.memory import MemoryDriver
from tests.unit.registry.parts import NAME, Parts, index

pytestmark = pytest.mark.anyio

V1 = Tag("v1")


def image(config: Digest, *layers: Digest, **more: Any) -> bytes:
    def descriptor(digest: Digest) -> dict[str, Any]:
        return {"mediaType": "application/octet-stream", "digest": str(digest), "size": 2}

    fields = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(config)}
    return json.dumps(fields | {"layers": [descriptor(layer) for layer in layers]} | more).encode()


async def serves(parts: Parts, reference: Tag | Digest) -> bytes | None:
    try:
        found = await parts.manifests.open(NAME, reference)
    except ManifestUnknown:
        return None
    if found.reader is None:
        return found.content
    return b"".join([piece async for piece in found.reader.chunks(0, found.size)])


# Put and get


async def test_a_manifest_is_served_byte_for_byte_by_tag_and_by_digest(parts: Parts) -> None:
    content = b" \n" + index("odd spaces") + b"\n\n"
    digest = await parts.push(content, V1)
    for reference in (V1, digest):
        stored = await parts.manifests.open(NAME, reference)
        assert (stored.content, stored.digest, stored.media_type, stored.size) == (
            content,
            digest,
            OCI_INDEX,
            len(content),
        )
        assert await parts.manifests.head(NAME, reference) in (
            stored,
            type(stored)(digest, OCI_INDEX, len(content), None),
        )


async def test_a_manifest_lies_where_distribution_looks_for_it(parts: Parts) -> None:
    content = index("on storage")
    digest = await parts.push(content, V1)
    link = str(digest).encode()
    assert parts.memory.files == {
        f"blobs/sha256/{digest.encoded[:2]}/{digest.encoded}/data": content,
        f"repositories/{NAME}/_manifests/revisions/sha256/{digest.encoded}/link": link,
        f"repositories/{NAME}/_manifests/tags/v1/index/sha256/{digest.encoded}/link": link,
        f"repositories/{NAME}/_manifests/tags/v1/current/link": link,
    }


async def test_a_manifest_named_by_sha512_goes_by_both_names(parts: Parts) -> None:
    content = index("wide")
    wide = Digest.of(content, "sha512")
    await parts.manifests.put(NAME, wide, content, OCI_INDEX, tags=[V1])
    assert (
        await serves(parts, wide) == await serves(parts, Digest.of(content)) == await serves(parts, V1) == content
    )
    assert (await parts.manifests.open(NAME, V1)).digest == wide
    await parts.manifests.delete(NAME, wide)
    for reference in (wide, Digest.of(content), V1):
        assert await serves(parts, reference) is None


async def test_a_tag_set_by_sha512_is_one_that_distribution_understands(parts: Parts) -> None:
    """Its link holds the sha256; that it was named otherwise is noted beside it."""
    content = index("wide")
    wide, plain = Digest.of(content, "sha512"), Digest.of(content)
    await parts.manifests.put(NAME, wide, content, OCI_INDEX, tags=[V1])
    assert await parts.memory.read(layout.tag_link(NAME, V1)) == str(plain).encode()
    assert await parts.memory.read(layout.tag_index_link(NAME, V1, plain)) == str(plain).encode()
    await parts.push(content, V1)
    assert (await parts.manifests.open(NAME, V1)).digest == plain
    await parts.manifests.put(NAME, wide, content, OCI_INDEX, tags=[V1])
    assert (await parts.manifests.open(NAME, V1)).digest == wide
    other = await parts.write_as_distribution(index("moved by somebody else"), V1)
    assert (await parts.manifests.open(NAME, V1)).digest == other


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_a_delete_under_either_name_takes_tags_and_names_with_it(
    parts: Parts, algorithm: str, old: bool
) -> None:
    content = index("wide")
    wide = Digest.of(content, "sha512")
    await parts.manifests.put(NAME, wide, content, OCI_INDEX, tags=[V1])
    if old:  # as tags were written once
        await parts.memory.remove(layout.tag(NAME, V1))
        await parts.memory.write(layout.tag_link(NAME, V1), str(wide).encode())
        assert (await parts.manifests.open(NAME, V1)).digest == wide
    await parts.manifests.delete(NAME, Digest.of(content, algorithm))
    assert await parts.tags.page(NAME, "", 10) == ([], False)
    await parts.push(content, Tag("v2"), Precondition(none_match=frozenset("*")))
    await parts.push(content, Tag("v3"))
    assert await serves(parts, V1) is None
    assert await serves(parts, wide) is None


async def test_one_put_can_set_many_tags(parts: Parts) -> None:
    content = index("many")
    await parts.manifests.put(NAME, V1, content, OCI_INDEX, tags=[Tag(f"t{n}") for n in range(10)])
    assert (await parts.tags.page(NAME, "", 100))[0] == [*(f"t{n}" for n in range(10)), "v1"]


async def test_another_repository_does_not_have_it(parts: Parts) -> None:
    digest = await parts.push(index("here"), V1)
    for reference in (V1, digest):
        with pytest.raises(ManifestUnknown):
            await parts.manifests.open(RepositoryName("team/another"), reference)


@pytest.mark.parametrize("lost", ["blob", "revision_link"])
async def test_a_tag_whose_manifest_is_gone_is_unknown(parts: Parts, lost: str) -> None:
    digest = await parts.push(index("lost"), V1)
    await parts.memory.remove(layout.blob(digest) if lost == "blob" else layout.revision_link(NAME, digest))
    for reference in (V1, digest):
        for ask in (parts.manifests.open, parts.manifests.head):
            with pytest.raises(ManifestUnknown):
                await ask(NAME, reference)


# What is refused changes nothing


async def test_a_refused_manifest_changes_nothing(parts: Parts) -> None:
    await parts.push(index("there"), V1)
    before = dict(parts.memory.files)
    another = index("another")
    refusals: list[tuple[type[Exception], Tag | Digest, bytes, str, Precondition | None]] = [
        (DigestInvalid, Digest.of(b""), another, OCI_INDEX, None),
        (DigestInvalid, Digest.of(another[:-1], "sha512"), another, OCI_INDEX, None),
        (ManifestInvalid, V1, b"not JSON", OCI_INDEX, None),
        (ManifestInvalid, V1, another, DOCKER_LIST, None),
        (ManifestTooLarge, V1, another.ljust(LIMIT + 1), OCI_INDEX, None),
        (RegistryErrors, V1, index("children", [Digest.of(b"missing")]), OCI_INDEX, None),
        (RegistryErrors, V1, image(Digest.of(b"missing")), OCI_MANIFEST, None),
        (PreconditionFailed, V1, another, OCI_INDEX, Precondition(none_match=frozenset("*"))),
        (PreconditionFailed, V1, another, OCI_INDEX, Precondition(match=frozenset([str(Digest.of(another))]))),
    ]
    for error, reference, content, media_type, precondition in refusals:
        with pytest.raises(error):
            await parts.manifests.put(NAME, reference, content, media_type, precondition=precondition)
        assert parts.memory.files == before, error


async def test_a_manifest_may_have_four_mebibytes(parts: Parts) -> None:
    content = index("large").ljust(LIMIT)
    assert await serves(parts, await parts.push(content)) == content


async def test_every_missing_reference_is_named(parts: Parts) -> None:
    there, missing = await parts.add_blob(b"there"), [Digest.of(b"%d" % n) for n in range(3)]
    with pytest.raises(RegistryErrors) as refusal:
        await parts.manifests.put(NAME, V1, image(there, there, *missing), OCI_MANIFEST)
    assert all(isinstance(error, ManifestBlobUnknown) for error in refusal.value.errors)
    assert {error.detail for error in refusal.value.errors} == {str(digest) for digest in missing}


async def test_an_answer_names_no_more_than_can_be_held(parts: Parts) -> None:
    missing = [Digest.of(b"%d" % number) for number in range(3000)]
    with pytest.raises(RegistryErrors) as refusal:
        await parts.manifests.put(NAME, V1, image(*missing), OCI_MANIFEST)
    *named, last = refusal.value.errors
    assert [error.detail for error in named] == sorted(map(str, missing))[:1000]
    assert last.detail == "and more of this kind"


async def test_a_blob_of_another_repository_is_missing_here(parts: Parts) -> None:
    digest = await parts.add_blob(b"there")
    with pytest.raises(RegistryErrors):
        await parts.manifests.put(RepositoryName("team/another"), V1, image(digest), OCI_MANIFEST)


async def test_a_blob_whose_data_is_gone_is_missing(parts: Parts) -> None:
    digest = await parts.add_blob(b"there")
    await parts.memory.remove(layout.blob(digest))
    with pytest.raises(RegistryErrors):
        await parts.manifests.put(NAME, V1, image(digest), OCI_MANIFEST)


SPARSE = Rules(sparse=True)
UNCHECKED = Rules(disabled=True)
NO_PLATFORMS = Rules(platforms="none")
ARM_ONLY = Rules(platforms="list", platform_list=frozenset({("arm64", "linux")}))


@pytest.mark.parametrize(
    ("rules", "children", "layers"),
    [
        (Rules(), False, False),
        (SPARSE, True, True),
        (UNCHECKED, True, False),
        (NO_PLATFORMS, True, False),
        (ARM_ONLY, True, False),
    ],
)
async def test_the_rules_say_what_may_be_missing(parts: Parts, rules: Rules, children: bool, layers: bool) -> None:
    store = parts.manifest_store(rules)
    for content, media_type, may in (
        (index("children", [Digest.of(b"missing")]), OCI_INDEX, children),
        (image(Digest.of(b"missing")), OCI_MANIFEST, layers),
    ):
        try:
            await store.put(NAME, V1, content, media_type)
        except RegistryErrors:
            assert not may
        else:
            assert may


async def test_a_listed_platform_must_be_there(parts: Parts) -> None:
    def listing(architecture: str) -> bytes:
        child = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"missing")), "size": 2}
        child |= {"platform": {"architecture": architecture, "os": "linux"}}
        return index(architecture, manifests=[child])

    store = parts.manifest_store(ARM_ONLY)
    await store.put(NAME, V1, listing("amd64"), OCI_INDEX)
    with pytest.raises(RegistryErrors):
        await store.put(NAME, V1, listing("arm64"), OCI_INDEX)


async def test_a_subject_need_not_be_there(parts: Parts) -> None:
    content = index("referrer", subject=Digest.of(b"missing"))
    assert await serves(parts, await parts.push(content)) == content


async def test_a_manifest_list_gives_old_clients_the_child_of_their_platform(parts: Parts) -> None:
    config = await parts.add_blob(b"{}")
    child = image(config, mediaType=DOCKER_MANIFEST)
    digest, _ = await parts.manifests.put(NAME, Digest.of(child), child, DOCKER_MANIFEST)
    entry = {"mediaType": DOCKER_MANIFEST, "digest": str(digest), "size": len(child)}
    entry |= {"platform": {"architecture": "amd64", "os": "linux"}}
    content = json.dumps({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [entry]}).encode()
    await parts.manifests.put(NAME, V1, content, DOCKER_LIST)
    found = await parts.manifests.for_platform(NAME, V1, ("amd64", "linux"))
    assert (found.digest, found.content) == (digest, child)
    with pytest.raises(ManifestUnknown):
        await parts.manifests.for_platform(NAME, V1, ("arm64", "linux"))


class Overtaken(MemoryDriver):
    """A driver on which something happens just after a tag was read."""

    def __init__(self) -> None:
        super().__init__()
        self.overtake: list[Callable[[], Awaitable[object]]] = []

    async def read(self, path: str) -> bytes:
        found = await super().read(path)
        if path.endswith("/current/link") and self.overtake:
            await self.overtake.pop(0)()
        return found


@pytest.mark.parametrize("ask", ["open", "head"])
@pytest.mark.parametrize("times", [1, 2, 9])
async def test_a_tag_that_was_always_there_is_found_whatever_overtakes_its_reader(ask: str, times: int) -> None:
    driver = Overtaken()
    parts = Parts(driver)
    contents = [index(str(number)) for number in range(times + 1)]
    await parts.push(contents[0], V1)

    def move(old: bytes, new: bytes) -> Callable[[], Awaitable[object]]:
        async def moved() -> None:
            waiting, driver.overtake = driver.overtake, []
            await parts.push(new, V1)
            await parts.manifests.delete(NAME, Digest.of(old))
            driver.overtake = waiting

        return moved

    driver.overtake = [move(old, new) for old, new in pairwise(contents)]
    stored = await getattr(parts.manifests, ask)(NAME, V1)
    assert stored.digest == Digest.of(contents[-1])


async def test_a_list_that_is_replaced_while_its_child_is_looked_up_gives_the_new_child() -> None:
    driver = Overtaken()
    parts = Parts(driver)
    config = await parts.add_blob(b"{}")

    async def push(text: str) -> tuple[bytes, Digest]:
        child = image(config, mediaType=DOCKER_MANIFEST, annotations={"text": text})
        digest, _ = await parts.manifests.put(NAME, Digest.of(child), child, DOCKER_MANIFEST)
        entry = {"mediaType": DOCKER_MANIFEST, "digest": str(digest), "size": len(child)}
        entry |= {"platform": {"architecture": "amd64", "os": "linux"}}
        content = json.dumps({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [entry]}).encode()
        await parts.manifests.put(NAME, V1, content, DOCKER_LIST)
        return child, digest

    _, old = await push("old")

    async def replace() -> None:
        await push("new")
        await parts.manifests.delete(NAME, old)

    driver.overtake = [replace]
    stored = await parts.manifests.for_platform(NAME, V1, ("amd64", "linux"))
    assert stored.content is not None and b'"new"' in stored.content


# Conditions and more tags than one


async def test_a_condition_goes_with_the_tag_reference_which_is_written_first(parts: Parts) -> None:
    digest = await parts.push(index("old"), V1)
    fits = Precondition(match=frozenset([str(digest)]))
    new = index("new")
    await parts.manifests.put(NAME, V1, new, OCI_INDEX, [Tag("extra")], fits)
    assert await serves(parts, V1) == await serves(parts, Tag("extra")) == new
    before = dict(parts.memory.files)
    with pytest.raises(PreconditionFailed):
        await parts.manifests.put(NAME, V1, index("newer"), OCI_INDEX, [Tag("another")], fits)
    assert parts.memory.files == before


async def test_a_condition_beside_a_digest_goes_with_each_tag(parts: Parts) -> None:
    digest = await parts.push(index("old"), V1)
    new = index("new")
    before = dict(parts.memory.files)
    for condition in (Precondition(none_match=frozenset("*")), Precondition(match=frozenset(["sha256:other"]))):
        with pytest.raises(PreconditionFailed):
            await parts.manifests.put(NAME, Digest.of(new), new, OCI_INDEX, [Tag("free"), V1], condition)
        assert parts.memory.files == before
    fits = Precondition(match=frozenset([str(digest)]))
    await parts.manifests.put(NAME, Digest.of(new), new, OCI_INDEX, [V1], fits)
    assert await serves(parts, V1) == new
    await parts.manifests.put(NAME, Digest.of(new), new, OCI_INDEX, [], fits)  # content cannot change


# Deletes


async def test_a_delete_by_digest_takes_the_tags_that_point_there_and_no_others(parts: Parts) -> None:
    old, new = index("old"), index("new")
    for tag in ("a", "b", "moved"):
        await parts.push(old, Tag(tag))
    for tag in ("c", "moved"):
        await parts.push(new, Tag(tag))
    await parts.manifests.delete(NAME, Digest.of(old))
    assert (await parts.tags.page(NAME, "", 100))[0] == ["c", "moved"]
    assert await serves(parts, Digest.of(old)) is None
    assert await serves(parts, Tag("moved")) == new
    with pytest.raises(ManifestUnknown):
        await parts.manifests.delete(NAME, Digest.of(old))


async def test_a_delete_by_tag_leaves_the_manifest(parts: Parts) -> None:
    digest = await parts.push(index("kept"), V1)
    await parts.manifests.delete_tag(NAME, V1, None)
    assert await serves(parts, digest) is not None
    with pytest.raises(ManifestUnknown):
        await parts.manifests.delete_tag(NAME, V1, None)


async def test_a_deleted_manifest_can_be_pushed_again(parts: Parts) -> None:
    content = index("again")
    for _ in range(3):
        digest = await parts.push(content, V1)
        assert await serves(parts, V1) == content
        await parts.manifests.delete(NAME, digest)
        assert await serves(parts, V1) is None
