"""The `redis:` section (cluster/state/build.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import config
from cluster.config_rules import REDIS_WITHOUT_EFFECT
from cluster.errors import ConfigError
from cluster.settings import Redis, Section
from cluster.state.build import build_state, servers
from cluster.state.redis import Login, Servers, Tls
from tests.support.redis import Certificates

SECRETS = [b"secret"]


def section(tmp_path: Path, text: str) -> Redis:
    """As it is in a configuration file."""
    path = tmp_path / "config.yml"
    path.write_text(f"version: 0.1\nstorage: inmemory\nhttp: {{addr: ':5000'}}\nredis:\n{text}")
    found = config.load(path, {}).config.redis
    assert found is not None
    return found


def test_the_spelling_of_v3(tmp_path: Path) -> None:
    assert servers(
        section(
            tmp_path,
            """
  addrs: ["redis-1:6379", "[fd00::1]:6380", ":6381", "redis-2"]
  mastername: main
  username: registry
  password: one
  sentinelusername: watcher
  sentinelpassword: two
  db: 3
  clientname: node-1
  dialtimeout: 2s
  readtimeout: 700ms
  writetimeout: 900ms
  poolsize: 6
""",
        )
    ) == Servers(
        addresses=(("redis-1", 6379), ("fd00::1", 6380), ("localhost", 6381), ("redis-2", 6379)),
        master="main",
        login=Login("registry", "one"),
        sentinel_login=Login("watcher", "two"),
        db=3,
        client_name="node-1",
        dial_timeout=2.0,
        answer_timeout=0.9,
        connections=6,
    )


def test_the_spelling_of_v2_8(tmp_path: Path) -> None:
    text = "  addr: redis:6379\n  password: one\n  db: 1\n  dialtimeout: 10ms\n  readtimeout: 10ms\n"
    found = servers(section(tmp_path, text + "  pool: {maxidle: 16, maxactive: 8}\n"))
    assert found.addresses == (("redis", 6379),)
    assert (found.login, found.db, found.connections) == (Login(None, "one"), 1, 8)
    assert found.dial_timeout == 0.5, "what is asked in the background has the time that TLS needs"


class Read:
    """A section that notes which of its settings somebody reads."""

    def __init__(self, section: Section, names: set[str], path: str = "") -> None:
        self._section, self._names, self._path = section, names, path

    def __getattr__(self, name: str) -> Any:
        value, path = getattr(self._section, name), f"{self._path}{name}"
        if isinstance(value, Section):
            return Read(value, self._names, f"{path}.")
        self._names.add(path)
        return value


def names(model: type[Section], path: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from names(inner, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def test_every_setting_is_read_or_warned_of() -> None:
    read: set[str] = set()
    section: Any = Read(Redis(addrs=["redis:6379"], readtimeout="1s"), read)
    servers(section)
    everything = set(names(Redis)) - {"addr"}  # which is another name of addrs
    assert read | set(REDIS_WITHOUT_EFFECT) == everything
    assert read & set(REDIS_WITHOUT_EFFECT) == set()


@pytest.mark.parametrize(
    "text", ["maxretries: -1", "protocol: 3", "routerandomly: true", "identitysuffix: x", "pool: {maxidle: 16}"]
)
def test_a_setting_without_effect_is_a_warning(text: str) -> None:
    (line,) = config.parse(f"version: 0.1\nstorage: inmemory\nredis: {{addrs: ['h:1'], {text}}}", {}).warnings
    assert line.startswith("redis.") and "without effect" in line


def test_a_worker_has_few_connections_whatever_the_pool_size() -> None:
    assert servers(Redis(addrs=["redis:6379"])).connections == 4
    assert servers(Redis(addrs=["redis:6379"], poolsize=200)).connections == 16


def test_no_limit_is_a_limit_all_the_same() -> None:
    found = servers(Redis(addrs=["redis:6379"], dialtimeout=-1, readtimeout="0"))
    assert (found.dial_timeout, found.answer_timeout) == (1.0, 1.0)


def test_tls_is_on_when_a_file_is_named(tmp_path: Path) -> None:
    files = Certificates(tmp_path)
    tls = {"certificate": files.client, "key": files.client_key, "rootcas": [files.authority]}
    found = servers(Redis.model_validate({"addrs": ["redis:6379"], "tls": tls}))
    assert found.tls == Tls(files.client, files.client_key, (files.authority,))
    assert servers(Redis(addrs=["redis:6379"])).tls is None


def test_files_that_cannot_be_read_are_an_error_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("no certificate")
    for path in (tmp_path / "missing.pem", tmp_path / "none.pem"):
        section = Redis.model_validate({"addrs": ["redis:6379"], "tls": {"rootcas": [str(path)]}})
        with pytest.raises(ConfigError, match=r"redis\.tls"):
            build_state(section, SECRETS)


def test_without_a_section_nothing_is_shared() -> None:
    state = build_state(None, SECRETS)
    assert not state.is_up
    assert state.trouble == ""
