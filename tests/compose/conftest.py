"""An engine that begins empty, the images built in it, and the cluster that each kind of compose makes of them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator

import pytest
import yaml

from tests.compose.cluster import Compose, composes
from tests.compose.engine import Engine
from tests.support.tools import PROJECT, require, require_root


def images_of_others() -> list[str]:
    """What the files are built on, by the names that they use."""
    with open(f"{PROJECT}/compose.yml", encoding="utf-8") as file:
        services = yaml.safe_load(file)["services"].values()
    with open(f"{PROJECT}/deploy/Dockerfile", encoding="utf-8") as file:
        bases = re.findall("^ARG BASE_IMAGE=(.+)$", file.read(), re.MULTILINE)
    return [*bases, *(service["image"] for service in services if "build" not in service)]


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    require_root("an engine of its own")
    with tempfile.TemporaryDirectory(prefix="docker-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        engine = Engine(directory).start()
        try:
            assert engine.docker("images", "--quiet") == ""
            for image in images_of_others():
                engine.stand_in(image)
            engine.build("node", "registry-cluster:dev")
            engine.build("balancer", "registry-cluster-balancer:dev")
            engine.build("load", "registry-cluster-load:dev")
            yield engine
        finally:
            engine.close()


@pytest.fixture(scope="module", params=composes())
def cluster(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Compose]:
    """`up` from nothing, with three nodes; nothing is left afterwards."""
    compose = Compose(engine, require(request.param), "fire")
    try:
        compose.up()
        yield compose
    finally:
        compose("--profile", "load", "down", "--volumes", "--timeout", "5")
