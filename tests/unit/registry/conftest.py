"""Fixtures of the service tests; what they are made of is in parts.py."""

from __future__ import annotations

import pytest

from tests.unit.registry.parts import Parts


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def parts() -> Parts:
    return Parts()
