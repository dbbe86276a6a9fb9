"""The `redis:` section (cluster/state/build.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import config
from cluster.errors import ConfigError
from cluster.settings import Redis
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
