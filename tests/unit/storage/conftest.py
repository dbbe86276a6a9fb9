"""Fixtures of the storage tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.storage.threads import Threads


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(4, 10)
    yield threads
    threads.close()
