"""The catalog: path order, and cursors that need not be names."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.oci.reference import RepositoryName
from cluster.registry.catalog import Catalog
from cluster.storage.memory import MemoryDriver

pytestmark = pytest.mark.anyio

COMPONENTS = st.sampled_from(["a", "a-b", "a.b", "a0", "aa", "b", "0", "z", "a_b", "b--c"])
NAMES = st.lists(COMPONENTS, min_size=1, max_size=4).map("/".join)


async def storage(names: set[str], others: set[str] = frozenset()) -> MemoryDriver:  # type: ignore[assignment]
    driver = MemoryDriver()
    for name in names:
        await driver.write(f"repositories/{name}/_manifests/revisions/sha256/00/link", b"link")
    for name in others:
        await driver.write(f"repositories/{name}/_uploads/00/startedat", b"time")
    return driver


def in_order(names: set[str], last: str) -> list[str]:
    """The model: `/` comes before every other character."""

    def key(name: str) -> list[str]:
        return name.split("/")

    return sorted((name for name in names if not last or key(name) > key(last)), key=key)


@given(
    names=st.sets(NAMES, max_size=12),
    others=st.sets(NAMES, max_size=5),
    last=st.one_of(st.just(""), NAMES, st.text("ab/-.", max_size=5)),
    limit=st.integers(1, 13),
)
def test_a_page_is_what_the_model_says(names: set[str], others: set[str], last: str, limit: int) -> None:
    async def main() -> tuple[list[RepositoryName], bool]:
        return await Catalog(await storage(names, others)).page(last, limit)

    expected = in_order(names, last)
    assert asyncio.run(main()) == (expected[:limit], len(expected) > limit)


@given(names=st.sets(NAMES, max_size=12), limit=st.integers(1, 5))
def test_pages_make_up_the_whole_catalog(names: set[str], limit: int) -> None:
    async def main() -> list[str]:
        catalog = Catalog(await storage(names))
        found: list[str] = []
        more = True
        while more:
            page, more = await catalog.page(found[-1] if found else "", limit)
            found += page
        return found

    assert asyncio.run(main()) == in_order(names, "")


async def test_storage_without_repositories_has_an_empty_catalog() -> None:
    assert await Catalog(MemoryDriver()).page("", 10) == ([], False)


async def test_names_that_cannot_be_asked_for_and_stray_files_are_passed_over() -> None:
    driver = await storage({"good", "Upper", "host:5000/image", "double..dot"})
    await driver.write("repositories/stray-file", b"content")
    assert await Catalog(driver).page("", 10) == (["good"], False)


async def test_a_repository_is_known_by_the_mark_that_is_asked_for() -> None:
    catalog = Catalog(await storage({"pushed"}, {"begun"}))
    assert [name async for name in catalog.walk()] == ["pushed"]
    assert [name async for name in catalog.walk(mark="_uploads")] == ["begun"]
