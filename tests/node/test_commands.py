"""The command line as an operator meets it: exit codes, and messages that say what to do."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster import __version__
from tests.node.nodes import brief
from tests.support.process import Config, Node, free_port, merge


def run(*arguments: str, given: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("REGISTRY_", "WEB_"))}
    return subprocess.run(
        [sys.executable, "-m", "cluster", *arguments],
        input=given,
        capture_output=True,
        text=True,
        env=clean | variables,
        timeout=60,
        check=False,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration file that is right; its storage directory is there."""
    (tmp_path / "data").mkdir()
    return write(tmp_path, {})


def write(directory: Path, over: Config) -> Path:
    base = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": {"addr": f"127.0.0.1:{free_port()}", "secret": "top-secret"},
    }
    path = directory / "config.yml"
    path.write_text(yaml.safe_dump(merge(base, over)), encoding="utf-8")
    return path


def test_the_version_is_one_line() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"registry-cluster {__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["serv"], ["config", "chek"]])
def test_wrong_arguments_are_exit_code_2_and_show_the_usage(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: registry-cluster")


def test_without_a_word_the_help_is_shown() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == run("--help").stdout


VERBS = [
    *(["serve"], ["config", "check"], ["config", "show"], ["haproxy"], ["doctor"], ["certs"]),
    *(["secret", step] for step in ("init", "add", "promote", "drop")),
    *(["user", step] for step in ("add", "remove", "list", "verify")),
    *(["tokenkey", step] for step in ("list", "rotate", "retire", "jwks")),
    *(["policy", step] for step in ("check", "explain")),
    *(["up"], ["status"], ["drain"], ["restart"], ["drill"], ["drill", "list"], ["drill", "run"]),
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_says_what_it_does_and_where_it_looks(verb: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "2000")  # a line for each argument
    done = run(*verb, "--help")
    assert done.returncode == 0, done.stderr
    head, _, rest = done.stdout.partition("\n\n")
    assert head.startswith(f"usage: registry-cluster {' '.join(verb)}")
    assert not rest.startswith(("positional", "options")), "a description comes first"
    lines = re.sub(r"\n {10,}", "   ", rest).splitlines()  # a long option has its help below it
    for line in lines:
        assert not re.fullmatch(r"  \S+( \S+)?", line) or line == "  VERB", f"no help: {line}"
        if line.split()[:1] in (["CONFIG"], ["--config"]) and verb != ["up"]:
            assert "$REGISTRY_CONFIGURATION_PATH, else /etc/distribution/config.yml, else /etc/docker/reg" in line
    assert "--places" not in done.stdout


def test_a_right_file_is_said_to_be_right(config: Path) -> None:
    done = run("config", "check", str(config))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{config}: no problems\n", "")


def test_a_check_warns_of_what_a_node_would_warn_of(config: Path) -> None:
    done = run("config", "check", str(config), REGISTRY_HTTP_ADR=":1")
    assert (done.returncode, done.stdout) == (0, f"{config}: no problems\n")
    assert "warning: Ignoring unrecognized environment variable REGISTRY_HTTP_ADR" in done.stderr


def test_a_check_warns_of_files_that_are_on_another_machine(tmp_path: Path) -> None:
    accounts = {"auth": {"htpasswd": {"realm": "r", "path": "/none"}}}  # a node makes this one
    path = write(tmp_path, {**accounts, "cluster": {"policy": "/none.yml"}})
    (tmp_path / "data").mkdir()
    done = run("config", "check", str(path))
    assert (done.returncode, done.stdout) == (0, f"{path}: no problems\n")
    warning = "cluster.policy: /none.yml: cannot be read here: No such file or directory"
    assert done.stderr == f"registry-cluster: warning: {warning}\n"


@pytest.mark.parametrize(("group", "warned"), [("anonymous", True), ("authenticated", False)])
def test_a_check_warns_of_what_docker_cannot_do_without_a_login(tmp_path: Path, group: str, warned: bool) -> None:
    rules = tmp_path / "policy.yml"
    rules.write_text(f"rules: [{{groups: [{group}], repositories: [public/*], actions: [pull]}}]")
    accounts = {"auth": {"htpasswd": {"realm": "r", "path": "/none"}}}
    path = write(tmp_path, {**accounts, "cluster": {"policy": str(rules)}})
    (tmp_path / "data").mkdir()
    done = run("config", "check", str(path))
    assert (done.returncode, done.stdout) == (0, f"{path}: no problems\n")
    assert ("warning: cluster.policy: docker cannot use" in done.stderr) is warned, done.stderr


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_a_check_reads_its_standard_input_once(config: Path, name: str) -> None:
    done = run("config", "check", name, given=config.read_text(encoding="utf-8"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "/dev/stdin: no problems\n", "")


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    wrong = {"http": {"adr": ":5000", "draintimeout": "soon"}, "log": {"level": "loud"}}
    done = run("config", "check", str(write(tmp_path, wrong)))
    assert done.returncode == 1
    for words in (["http.adr", "addr"], ["http.draintimeout", "soon"], ["log.level", "loud", "debug"]):
        assert any(all(word in line for word in words) for line in done.stdout.splitlines()), (words, done.stdout)


def test_what_is_in_force_is_shown_without_its_secrets(tmp_path: Path) -> None:
    secrets = {"http": {"secret": "secret-one"}, "cluster": {"secrets": ["secret-two"]}}
    redis = {"addrs": ["127.0.0.1:1"], "password": "secret-three"}
    path = write(tmp_path, {**secrets, "redis": redis})
    done = run(
        "config", "show", str(path), REGISTRY_STORAGE_DELETE_ENABLED="true", REGISTRY_REDIS_PASSWORD="secret-four"
    )
    assert done.returncode == 0, done.stderr
    assert "secret-" not in done.stdout + done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["storage"]["delete"]["enabled"] is True
    assert shown["http"]["secret"] == "<hidden>"
    assert shown["http"]["draintimeout"] == "30s"


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"http": {"draintimeout": "soon"}}, ["http.draintimeout", "soon"]),
        ({"http": {"debug": {"addr": "nowhere"}}}, ["http.debug.addr", "nowhere"]),
        ({"auth": {"silly": {"realm": "a", "service": "b"}}}, ["auth"]),
        ({"storage": {"s3": {"bucket": "a"}}}, ["storage"]),
        ({"storage": {"filesystem": {"rootdirectory": "/does/not/exist"}}}, ["rootdirectory", "/does/not/exist"]),
        ({"storage": {"filesystem": {"rootdirectory": "/dev/null"}}}, ["rootdirectory", "/dev/null"]),
        ({"auth": {"htpasswd": {"realm": "r", "path": "/proc"}}}, ["auth.htpasswd.path: /proc: ", "a directory"]),
        ({"cluster": {"secretfile": "/proc/none"}, "http": {"secret": None}}, ["cluster.secretfile: /proc/none: "]),
        ({"storage": {"filesystem": {"rootdirectory": "/proc"}}}, ["rootdirectory", "/proc", "writable"]),
    ],
)
def test_a_node_that_cannot_serve_says_why_and_ends_with_1(tmp_path: Path, over: Config, words: list[str]) -> None:
    (tmp_path / "data").mkdir()
    done = run("serve", str(write(tmp_path, over)))
    assert done.returncode == 1, done.stderr
    assert any(all(word in line for word in words) for line in done.stderr.splitlines()), done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for verb in (["serve"], ["config", "check"], ["config", "show"]):
        done = run(*verb, str(tmp_path / "none.yml"))
        assert done.returncode == 1
        assert str(tmp_path / "none.yml") in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_a_read_only_node_does_not_begin_a_registry_and_says_so(config: Path) -> None:
    done = run("serve", str(config), REGISTRY_STORAGE_MAINTENANCE_READONLY_ENABLED="true")
    assert done.returncode == 1
    assert "readonly it must hold a registry" in done.stderr
    assert list((config.parent / "data").iterdir()) == []


@pytest.mark.parametrize("count", ["0", "two"])
def test_a_number_of_workers_that_is_none_is_refused(config: Path, count: str) -> None:
    done = run("serve", str(config), WEB_CONCURRENCY=count)
    assert done.returncode == 1
    assert "WEB_CONCURRENCY" in done.stderr and count in done.stderr


ADDRESSES: dict[str, tuple[Config, str]] = {
    "taken": ({"addr": "{taken}"}, "http.addr: {taken}: address already in use: stop what listens there"),
    "taken everywhere": ({"addr": ":{port}"}, "http.addr: [::]:{port}: address already in use: stop what listens"),
    "not of this machine": ({"addr": "192.0.2.1:5000"}, "http.addr: 192.0.2.1:5000: cannot assign requested"),
    "debug": ({"debug": {"addr": "{taken}"}}, "http.debug.addr: {taken}: address already in use: stop what"),
    "no directory": ({"net": "unix", "addr": "/none/s"}, "http.addr: /none/s: no such file or directory: wanted a"),
    "no socket": ({"net": "unix", "addr": "/dev/null"}, "http.addr: /dev/null: something that is no socket"),
    "too long": ({"net": "unix", "addr": f"/tmp/{'a' * 120}"}, "aaa: af_unix path too long: wanted a path"),
}


@pytest.mark.parametrize("case", ADDRESSES)
def test_an_address_that_cannot_be_had_is_named_with_its_setting_before_anything_is_made(
    tmp_path: Path, case: str
) -> None:
    (tmp_path / "data").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        text = json.dumps(ADDRESSES[case]).replace("{taken}", f"127.0.0.1:{port}").replace("{port}", str(port))
        over, words = json.loads(text)
        done = run("serve", str(write(tmp_path, {"http": over})))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert words in line
    assert "gunicorn" not in done.stderr  # it would try for five seconds
    assert list((tmp_path / "data").iterdir()) == []


def test_a_node_warns_of_an_unknown_key_and_of_a_secret_that_it_draws_and_serves(tmp_path: Path) -> None:
    with brief(Node(tmp_path, {"http": {"adr": ":5000", "secret": None}})) as node:
        lines = node.log().splitlines()
        assert any("warning" in line and "http.adr" in line and "addr" in line for line in lines)
        assert any("warning" in line and "http.secret" in line for line in lines)


def test_storage_in_memory_has_one_worker_whatever_is_asked_for(tmp_path: Path) -> None:
    memory: Config = {"storage": {"inmemory": {}, "filesystem": None}}
    with brief(Node(tmp_path, memory, env={"WEB_CONCURRENCY": "3"})) as node:
        assert len(node.children()) == 1
