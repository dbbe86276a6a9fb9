"""The node that the tests of a file talk to."""

from collections.abc import Iterator

import pytest

from tests.node.nodes import Impatient, brief, unharmed
from tests.support.process import Node


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with brief(Node(tmp_path_factory.mktemp("node"))) as node:
        yield node


@pytest.fixture(scope="module")
def started_impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with brief(Impatient(tmp_path_factory.mktemp("impatient"))) as node:
        yield node


@pytest.fixture
def node(started: Node) -> Iterator[Node]:
    """A running node; afterwards it must serve as before, and have answered nothing with a 5xx."""
    yield from unharmed(started)


@pytest.fixture
def impatient(started_impatient: Node) -> Iterator[Node]:
    """The same of a node with short limits."""
    yield from unharmed(started_impatient)
