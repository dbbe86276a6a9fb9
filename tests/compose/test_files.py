"""compose.yml, the image and the units as files: what can be said of them without running an engine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import cli, config, haproxy, settings, values
from tests.support.process import Node
from tests.support.tools import PROJECT, require

DEPLOY = Path(PROJECT, "deploy")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
RUNBOOK = (DEPLOY / "README.md").read_text(encoding="utf-8")
EXACT = re.compile(r"[a-z/-]+:\d+\.\d+\.\d+(-[a-z0-9.-]+)?")
PROGRAMS = ["docker-compose", pytest.param("compose", marks=pytest.mark.slow)]


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **env}, cwd=PROJECT, timeout=60, check=False
    )


def seconds(text: str) -> float:
    return values.duration(text)


@pytest.fixture(scope="module", params=PROGRAMS)
def project(request: pytest.FixtureRequest) -> dict[str, Any]:
    """compose.yml as a compose understands it, with everything filled in."""
    done = run(require(request.param), "--profile", "load", "config")
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = yaml.safe_load(done.stdout)
    return found


@pytest.fixture(scope="module")
def services(project: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = project["services"]
    return found


def test_there_are_three_nodes_on_one_volume(project: dict[str, Any], services: dict[str, dict[str, Any]]) -> None:
    deployed = services["node"].get("deploy") or {}
    assert services["node"].get("scale", deployed.get("replicas")) == 3
    assert set(project["volumes"]) == {"data", "facts"}
    users = {name for name, service in services.items() if "/var/lib/registry" in str(service.get("volumes"))}
    assert users == {"node", "secret"}


def test_every_service_is_locked_and_bounded(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["user"].split(":")[0]) > 0, name
        assert service["logging"]["driver"] == "json-file", name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name
        if name != "secret":  # it ends by itself
            assert service["restart"] == "unless-stopped", name
            assert all(limit in service for limit in ("mem_limit", "cpus", "pids_limit")), name


def test_images_of_others_are_named_exactly(services: dict[str, dict[str, Any]]) -> None:
    others = [service["image"] for service in services.values() if "build" not in service]
    others += re.findall(r"^ARG BASE_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert len(others) == 2
    assert [name for name in others if not EXACT.fullmatch(name)] == []


def test_nothing_is_published_beyond_this_machine_unasked(
    services: dict[str, dict[str, Any]],
) -> None:
    published = {name: str(service["ports"]) for name, service in services.items() if service.get("ports")}
    assert set(published) == {"balancer", "locust-master"}
    assert all("127.0.0.1" in ports for ports in published.values())


def test_requests_under_way_end_before_their_container_does(services: dict[str, dict[str, Any]]) -> None:
    node = config.load(DEPLOY / "compose/config.yml", {}).config
    assert seconds(services["node"]["stop_grace_period"]) > node.http.draintimeout


def test_the_node_starts_without_redis(services: dict[str, dict[str, Any]]) -> None:
    assert services["node"]["depends_on"]["redis"]["condition"] == "service_started"
    assert services["node"]["depends_on"]["secret"]["condition"] == "service_completed_successfully"


@pytest.mark.parametrize("name", ["compose/config.yml", "image/config.yml"])
def test_the_configurations_have_no_problem(name: str) -> None:
    config.check(DEPLOY / name, {})
    assert config.load(DEPLOY / name, {}).warnings == []


def test_haproxy_takes_the_configuration_of_the_cluster_without_a_warning(tmp_path: Path) -> None:
    cluster = config.load(DEPLOY / "compose/config.yml", {}).config.cluster
    file = tmp_path / "haproxy.cfg"
    file.write_text(haproxy.render(cluster, {}), encoding="utf-8")
    done = run(require("haproxy"), "-c", "-q", "-f", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_image_is_built_of_what_is_sent_to_the_engine_and_needs_no_buildkit() -> None:
    allowed = [line[1:] for line in Path(PROJECT, ".dockerignore").read_text().split() if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    for source in [source.rstrip("/") for sources in copied for source in sources.split()]:
        assert Path(PROJECT, source).exists(), source
        assert any(source == place or source.startswith(f"{place}/") for place in allowed), source
    assert not re.search(r"^(# syntax|RUN --|COPY --(?!from)|.*<<EOF)", DOCKERFILE, re.MULTILINE)
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE))
    assert bases <= {"${BASE_IMAGE}", *re.findall(r" AS (\S+)$", DOCKERFILE, re.MULTILINE)}


@pytest.mark.parametrize("script", sorted(DEPLOY.glob("*/*.sh")), ids=lambda path: path.name)
def test_scripts_are_sound_and_executable(script: Path) -> None:
    done = run("sh", "-n", str(script))
    assert (done.returncode, done.stderr) == (0, "")
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize(
    ("given", "runs"),
    [
        (["serve"], "registry-cluster serve"),
        (["/etc/docker/registry/config.yml"], "registry-cluster serve /etc/docker/registry/config.yml"),
        (["serve", "/etc/distribution/config.yml"], "registry-cluster serve /etc/distribution/config.yml"),
        (["registry", "serve", "/c.yml"], "registry serve /c.yml"),
        (["registry-cluster", "doctor"], "registry-cluster doctor"),
        (["--version"], "registry-cluster --version"),
        (["htpasswd", "-Bbn", "user", "word"], "htpasswd -Bbn user word"),
        ([], "registry-cluster"),
    ],
)
def test_the_image_takes_what_distributions_images_take(tmp_path: Path, given: list[str], runs: str) -> None:
    for name in ("registry", "registry-cluster", "htpasswd"):
        stub = tmp_path / name
        stub.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        stub.chmod(0o755)
    done = run("sh", str(DEPLOY / "image/entrypoint.sh"), *given, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (done.stdout.strip(), done.stderr) == (runs, "")


def test_the_health_check_tells_a_node_that_is_ready_from_one_that_is_not(tmp_path: Path) -> None:
    check = (sys.executable, "-I", str(DEPLOY / "image/healthcheck.py"))
    with Node(tmp_path) as node:
        healthy = run(*check, HEALTHCHECK_URL=f"{node.url}/readyz")
        elsewhere = run(*check, HEALTHCHECK_URL=f"{node.url}/v2/not/here")
    gone = run(*check, HEALTHCHECK_URL=f"{node.url}/readyz")
    assert (healthy.returncode, healthy.stderr) == (0, "")
    assert (elsewhere.returncode, gone.returncode) == (1, 1)
    assert f"{node.url}/readyz: " in gone.stderr


@pytest.mark.parametrize("unit", sorted(DEPLOY.glob("systemd/*.service")), ids=lambda unit: unit.name)
def test_systemd_takes_the_unit(tmp_path: Path, unit: Path) -> None:
    """With the programs of this machine: systemd looks whether they are there."""
    text = unit.read_text(encoding="utf-8")
    text = text.replace("/opt/registry-cluster/bin/registry-cluster", f"{sys.prefix}/bin/registry-cluster")
    copy = tmp_path / unit.name
    copy.write_text(text.replace("/usr/sbin/haproxy", require("haproxy")), encoding="utf-8")
    done = run(require("systemd-analyze"), "verify", "--man=no", str(copy), SYSTEMD_LOG_LEVEL="warning")
    assert (done.returncode, done.stderr) == (0, "")


def settings_of(unit: str) -> dict[str, str]:
    text = (DEPLOY / f"systemd/{unit}.service").read_text(encoding="utf-8")
    return dict(line.split("=", 1) for line in text.splitlines() if re.match("[A-Z][A-Za-z]+=", line))


@pytest.mark.parametrize("unit", ["registry-cluster", "registry-cluster-balancer"])
def test_a_unit_may_read_the_configuration_that_the_runbook_installs(unit: str) -> None:
    """As root, with numbers in place of the names, which need not be known on this machine."""
    if os.geteuid() != 0:
        pytest.skip("to become another user takes root")
    ids = {"registry": "64101", "haproxy": "64102"}
    (install,) = re.findall(r"^    install -m 0640 -g (\w+) deploy/config.example.yml", RUNBOOK, re.MULTILINE)
    found = settings_of(unit)
    groups = [ids[name] for name in (found["Group"], *found.get("SupplementaryGroups", "").split())]
    who = [f"--reuid={ids[found['User']]}", f"--regid={groups[0]}", f"--groups={','.join(groups)}"]
    with tempfile.NamedTemporaryFile() as file:
        os.chown(file.name, 0, int(ids[install]))
        os.chmod(file.name, 0o640)
        done = run(require("setpriv"), *who, "cat", file.name)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_node_that_systemd_stops_has_time_to_drain_and_dies_as_one() -> None:
    found = settings_of("registry-cluster")
    assert found["KillMode"] == "mixed"
    assert int(found["TimeoutStopSec"]) > settings.Http().draintimeout
    assert found["Restart"] == "always"


def commands() -> list[list[str]]:
    """What the runbook has people type after the command's name, or after the service that runs it."""
    lines = re.findall(r"^    .*(?:registry-cluster|run --rm secret) ([a-z].*)$", RUNBOOK, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines if "registry-cluster" not in line]


def test_the_runbooks_commands_exist() -> None:
    assert len(commands()) > 8
    for words in commands():
        cli._parser().parse_args(words)  # exits where it does not understand


def test_the_runbooks_files_exist() -> None:
    named = set(re.findall(r"\b(deploy/[a-z0-9_./-]+[a-z])", RUNBOOK))
    assert named
    assert [name for name in sorted(named) if not Path(PROJECT, name).exists()] == []
