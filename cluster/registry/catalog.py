"""The list of repositories, in path order: a repository is a directory that has `_manifests`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cluster.errors import NameInvalid
from cluster.oci.reference import RepositoryName
from cluster.storage import layout
from cluster.storage.driver import Driver, NotFound


class Catalog:
    """Walks the tree of repositories."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def page(self, last: str, limit: int) -> tuple[list[RepositoryName], bool]:
        """At most `limit` names behind `last` (which need not exist), and whether there are more."""
        names: list[RepositoryName] = []
        async for name in self.walk(last):
            if len(names) == limit:
                return names, True
            names.append(name)
        return names, False

    async def walk(self, last: str = "", mark: str = layout.MANIFESTS_DIRECTORY) -> AsyncIterator[RepositoryName]:
        """All names behind `last` whose directory holds `mark`.

        `/` sorts before every other character, as Distribution's cursors have it.
        """
        async for path, marks in self.directories(last):
            if mark in marks:
                try:
                    name = RepositoryName.parse(path)
                except NameInvalid:  # Distribution takes some that OCI does not; they cannot be asked for here
                    continue
                yield name

    async def directories(self, last: str = "") -> AsyncIterator[tuple[str, list[str]]]:
        """Every directory of the tree behind `last`, with the names of the registry's own directories in it."""
        # Parent, then its children: an explicit stack of (path, cursor), because names nest as deep as they like.
        stack = [("", last.split("/") if last else [])]
        while stack:
            path, cursor = stack.pop()
            try:
                found = await self._driver.names(f"{layout.REPOSITORIES}/{path}".rstrip("/"))
            except NotFound:
                continue
            if path and not cursor:
                yield path, [name for name in found if name.startswith("_")]
            first = cursor[0] if cursor and cursor[0] else ""
            children = [name for name in found if name >= first and not name.startswith("_")]
            for child in reversed(children):
                inner = f"{path}/{child}" if path else child
                if child != first:
                    stack.append((inner, []))
                else:
                    # `last` itself is left out, what lies below it is not: an empty cursor component says so.
                    stack.append((inner, cursor[1:] or [""]))
