"""What the nodes of `up` are told, and what is found to be wrong with it (cluster/blueprint.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import config
from cluster.blueprint import Blueprint, read_base
from cluster.errors import ConfigError
from cluster.protect import Protection

NODES = {"node-1": "http://127.0.0.1:5001", "node-2": "http://127.0.0.1:5002"}


def drawn(base: dict[str, Any], *, socket: str | None = "/run/haproxy.sock", **environ: str) -> Blueprint:
    return Blueprint(
        base=base,
        nodes=NODES,
        root="/data/registry",
        secret="drawn",
        redis="127.0.0.1:5003",
        front="127.0.0.1:5000",
        endpoint="http://127.0.0.1:5000",
        socket=socket,
        protection=Protection("/data"),
        places={},
        environ=environ,
    )


@pytest.mark.parametrize("base", [{}, {"version": "0.1", "storage": "filesystem", "http": None}])
def test_each_node_gets_what_makes_it_this_node(base: dict[str, Any]) -> None:
    blueprint = drawn(base)
    assert blueprint.check() == []
    told = yaml.safe_load(blueprint.text("node-2"))
    assert told["storage"]["filesystem"] == {"rootdirectory": "/data/registry"}
    assert told["http"] == {"addr": "127.0.0.1:5002", "secret": "drawn"}
    assert told["cluster"]["nodes"] == list(NODES.values())
    assert "server node-2 127.0.0.1:5002" in blueprint.balancer()
    assert yaml.safe_load(drawn(base, socket=None).text("node-1"))["cluster"]["sharedaddr"] == "127.0.0.1:5000"


@pytest.mark.parametrize("storage", ["inmemory", {"inmemory": {}}, {"inmemory": None, "delete": {"enabled": True}}])
def test_a_driver_that_nodes_cannot_share_is_refused(storage: object) -> None:
    with pytest.raises(ConfigError, match="storage: found inmemory, wanted filesystem"):
        drawn({"version": "0.1", "storage": storage}).check()


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"http": "5000"}, "http"),
        ({"cluster": ["a"]}, "cluster"),
        ({"cluster": {"haproxy": 1}}, "cluster.haproxy"),
        ({"storage": [1]}, "storage"),
    ],
)
def test_what_is_no_section_is_named(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: found .*, wanted a section"):
        drawn({"version": "0.1", **wrong}).check()


def test_all_problems_are_said_and_each_once() -> None:
    wrong = {"version": "0.1", "http": {"draintimeout": "soon"}, "log": {"level": "loud"}}
    with pytest.raises(ConfigError) as caught:
        drawn(wrong, REGISTRY_HTTP_HTTP2_DISABLED="maybe").check()
    assert len(caught.value.problems) == 3
    assert sum("http.draintimeout" in problem for problem in caught.value.problems) == 1


def test_what_haproxy_could_not_do_is_said_before_it_is_started() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.haproxy\.backup: found node-9"):
        drawn({"version": "0.1", "cluster": {"haproxy": {"backup": ["node-9"]}}}).check()


def test_an_unknown_key_is_a_warning_that_comes_once() -> None:
    assert len(drawn({"version": "0.1", "http": {"adr": ":5000"}}).check()) == 1


@pytest.mark.parametrize("content", [b"- a list", b"a: [", b"\xff\xfe\xff", None])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "base.yml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        read_base(str(path))


def test_what_could_be_a_number_reaches_the_nodes_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "base.yml"
    path.write_text("version: 0.1\nhttp: {secret: 0123, http2: {disabled: yes}}\nredis: {password: '0x1F'}\n")
    loaded = config.parse(drawn(read_base(str(path))).text("node-1"), {}).config
    assert (loaded.http.secret, loaded.http.http2.disabled) == ("0123", True)


def test_a_key_that_is_written_twice_is_told(tmp_path: Path) -> None:
    path = tmp_path / "base.yml"
    path.write_text("version: 0.1\nhttp: {secret: a, secret: b}\n")
    with pytest.raises(ConfigError, match=r"secret.* is written twice"):
        read_base(str(path))
