"""Sessions in the one file that Distribution knows (`cluster.mixed`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.mixed import MixedUploads
from cluster.storage.threads import Threads

pytestmark = pytest.mark.anyio

SESSION = "repositories/team/app/_uploads/0b1c2d3e-1111-4222-8333-444455556666"
STARTED = "2024-01-02T03:04:05Z"


@pytest.fixture
def mixed(tmp_path: Path, threads: Threads) -> MixedUploads:
    return MixedUploads(str(tmp_path), FilesystemDriver(str(tmp_path), threads), threads)


async def test_a_state_is_where_distribution_finds_it_and_is_not_taken_from_there(
    tmp_path: Path, mixed: MixedUploads
) -> None:
    await mixed.create(SESSION, STARTED)
    await mixed.save_state(SESSION, "sha256", 8, b"ours")
    shared = tmp_path / SESSION / "hashstates" / "sha256" / "8"
    assert shared.read_bytes() == b"ours"
    shared.write_bytes(b"of other bytes")
    assert await mixed.load_state(SESSION, "sha256", 8) == (8, b"ours")
