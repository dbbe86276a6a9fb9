"""The files that a configuration names (cluster/config_files.py)."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from cluster.config import check, parse
from cluster.config_files import naming
from cluster.errors import ConfigError
from tests.support.process import merge

TOKEN = {"realm": "https://a/token", "issuer": "i", "service": "s"}
NAMED: dict[str, Any] = {  # by a setting that wants a file which somebody has to bring
    "http.tls.certificate": {"http": {"tls": {"certificate": "{file}", "key": "/dev/null"}}},
    "http.tls.key": {"http": {"tls": {"certificate": "/dev/null", "key": "{file}"}}},
    "http.tls.clientcas[1]": {
        "http": {"tls": {"certificate": "/dev/null", "key": "/dev/null", "clientcas": ["/dev/null", "{file}"]}}
    },
    "auth.token.rootcertbundle": {"auth": {"token": {**TOKEN, "rootcertbundle": "{file}"}}},
    "auth.token.jwks": {"auth": {"token": {**TOKEN, "jwks": "{file}"}}},
    "redis.tls.certificate": {"redis": {"addrs": ["127.0.0.1:1"], "tls": {"certificate": "{file}"}}},
    "redis.tls.key": {"redis": {"addrs": ["127.0.0.1:1"], "tls": {"key": "{file}"}}},
    "redis.tls.rootcas[0]": {"redis": {"addrs": ["127.0.0.1:1"], "tls": {"rootcas": ["{file}"]}}},
    "cluster.secretfile": {"cluster": {"secretfile": "{file}"}},
    "cluster.policy": {"auth": {"htpasswd": {"realm": "r", "path": "/none"}}, "cluster": {"policy": "{file}"}},
    "cluster.tls.ca": {"cluster": {"tls": {"ca": "{file}"}}},
    "cluster.tls.certificate": {"cluster": {"tls": {"certificate": "{file}"}}},
}


def text(directory: Path, over: dict[str, Any], file: str = "") -> str:
    base = {"version": "0.1", "storage": {"filesystem": {"rootdirectory": str(directory)}}}
    return json.dumps(merge(base, over)).replace("{file}", file)


def warnings(directory: Path, over: dict[str, Any], file: str = "") -> list[str]:
    (directory / "config.yml").write_text(text(directory, over, file))
    return check(directory / "config.yml", {}).warnings


@pytest.mark.parametrize("setting", NAMED)
def test_a_check_warns_of_a_file_that_is_missing_and_names_its_setting(tmp_path: Path, setting: str) -> None:
    missing = f"{tmp_path}/none.pem"
    told = warnings(tmp_path, NAMED[setting], missing)
    assert told == [f"{setting}: {missing}: cannot be read here: No such file or directory"]
    assert warnings(tmp_path, NAMED[setting], str(tmp_path)) == [
        f"{setting}: {tmp_path}: cannot be read here: Is a directory"
    ]
    assert warnings(tmp_path, NAMED[setting], "/dev/null") == []


def test_a_check_waits_for_nobody_who_would_write_into_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert warnings(tmp_path, NAMED["cluster.policy"], str(tmp_path / "fifo")) == []


def test_what_a_node_makes_may_be_missing_and_must_be_of_its_kind(tmp_path: Path) -> None:
    def issuing(accounts: str, keys: str) -> dict[str, Any]:
        return {"auth": {"token": TOKEN}, "cluster": {"tokenserver": {"htpasswd": accounts, "keys": keys}}}

    assert warnings(tmp_path, issuing(f"{tmp_path}/htpasswd", f"{tmp_path}/keys")) == []
    assert warnings(tmp_path, issuing(str(tmp_path), f"{tmp_path}/config.yml")) == [
        f"cluster.tokenserver.htpasswd: {tmp_path}: cannot be read here: Is a directory",
        f"cluster.tokenserver.keys: {tmp_path}/config.yml: cannot be read here: Not a directory",
    ]
    assert warnings(tmp_path, {"auth": {"htpasswd": {"realm": "r", "path": str(tmp_path)}}}) == [
        f"auth.htpasswd.path: {tmp_path}: cannot be read here: Is a directory"
    ]


def test_the_directory_of_storage_has_to_be_there(tmp_path: Path) -> None:
    root = f"{tmp_path}/none"
    assert warnings(tmp_path, {"storage": {"filesystem": {"rootdirectory": root}}}) == [
        f"storage.filesystem.rootdirectory: {root}: cannot be read here: No such file or directory"
    ]
    assert warnings(tmp_path, {"storage": {"filesystem": None, "inmemory": {}}}) == []


def test_what_is_said_of_a_path_is_said_of_the_setting_that_names_it(tmp_path: Path) -> None:
    over = {"cluster": {"secretfile": f"{tmp_path}/secret", "policy": "/p"}, "auth": {"htpasswd": {"realm": "r"}}}
    over = merge(over, {"auth": {"htpasswd": {"path": f"{tmp_path}/secret-accounts"}}})
    settings = parse(text(tmp_path, over), {}).config
    told = {
        f"{tmp_path}/secret, line 1: wanted more": "cluster.secretfile: ",
        f"{tmp_path}/secret-accounts: line 3: wanted less": "auth.htpasswd.path: ",
        "/p: wanted nothing": "cluster.policy: ",
        "/plenty: of nobody": "",
        "http.addr: named already": "",
    }
    with pytest.raises(ConfigError) as caught, naming(settings):
        raise ConfigError(list(told))
    assert caught.value.problems == [name + problem for problem, name in told.items()]
    assert not re.search("rootdirectory", str(caught.value))
