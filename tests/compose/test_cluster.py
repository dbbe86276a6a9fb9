"""compose.yml, really run: what it locks, and what is lost when containers die, hang, leave and come. Nothing is.

Begins with an empty engine; `make test-compose` runs it, CI does not. The tests of one cluster follow one another,
and leave it whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.compose.cluster import Compose, is_ready, seconds_until
from tests.compose.load import EngineLoad, working
from tests.failover.client import Client, Ledger, digest_of
from tests.failover.pusher import Crowd
from tests.support.process import eventually
from tests.support.tools import PROJECT, note

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SECRET = "/var/lib/registry/secret"


@pytest.fixture(scope="module")
def ledger(cluster: Compose) -> Ledger:
    """What this cluster acknowledged in all tests."""
    return Ledger()


@pytest.fixture
def whole(cluster: Compose, ledger: Ledger) -> Iterator[None]:
    """Afterwards every node is back, and has everything that was ever acknowledged."""
    yield
    cluster.wait_until_ready()
    # What `report` has counted is what clients met themselves; here all of it is asked for.
    for url in cluster.node_urls():
        with Client([url], address="", timeout=60) as client:
            for name, digest in ledger.blobs:
                client.check(f"/v2/{name}/blobs/{digest}", digest, ledger)
            for name, digest in ledger.manifests:
                client.check(f"/v2/{name}/manifests/{digest}", digest, ledger)
    ledger.verify([cluster.endpoint])
    assert ledger.failures == []


def goes_on(ledger: Ledger) -> None:
    """Return when images are pushed again, and blobs pulled."""
    images, pulls = len(ledger.manifests), len(ledger.pulled)
    eventually(lambda: len(ledger.manifests) >= images + 3, 120, "pushing goes on")
    eventually(lambda: len(ledger.pulled) >= pulls + 3, 120, "pulling goes on")


def report(cluster: Compose, what: str, ledger: Ledger, since: int, seconds: float | None = None) -> None:
    took = f"first good answer after {seconds:.1f} s; " if seconds is not None else ""
    note(
        f"compose ({cluster.program}): {what}: {took}{ledger.acknowledged()} facts acknowledged so far, "
        f"{len(ledger.broken)} found broken; {len(ledger.first_failures) - since} steps failed on the first try, "
        f"{len(ledger.failures)} after the retries"
    )


def test_it_comes_up_with_three_nodes_behind_one_address(cluster: Compose) -> None:
    assert len(cluster.containers("node")) == 3
    assert [server[2] for server in cluster.servers()] == ["UP"] * 3
    assert httpx.get(f"{cluster.endpoint}/v2/", trust_env=False).status_code == 200
    assert cluster.containers("locust-master") == []


def test_the_secret_is_in_one_file_and_nobody_else_can_see_it(cluster: Compose) -> None:
    node, *others = cluster.containers("node")
    assert cluster.inside(node, "stat", "-c", "%a %u:%g", SECRET).strip() == "600 10001:10001"
    (secret,) = [line[5:] for line in cluster.inside(node, "cat", SECRET).splitlines() if line.startswith("sign ")]
    assert all(secret in cluster.inside(other, "cat", SECRET) for other in others)
    everybody = cluster.engine.docker("ps", "--all", "--quiet").split()
    seen = [cluster.engine.docker("inspect", *everybody), cluster("config"), cluster("logs", "--no-color")]
    assert all(secret not in text for text in seen)


def test_every_container_is_locked_and_bounded(cluster: Compose) -> None:
    services = ["node", "balancer", "redis"]
    for found in cluster.inspect(*(name for service in services for name in cluster.containers(service))):
        host, name = found["HostConfig"], found["Name"].lstrip("/")
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert host["SecurityOpt"] == ["no-new-privileges:true"], name
        assert host["Memory"] > 0, name
        assert host["NanoCpus"] > 0, name
        assert host["PidsLimit"] > 0, name
        assert host["RestartPolicy"]["Name"] == "unless-stopped", name
        assert host["LogConfig"]["Config"]["max-size"], name
        assert found["Config"]["User"].split(":")[0] not in ("", "0", "root"), name
        eventually(partial(cluster.is_healthy, name), 60, f"{name} is healthy")
    assert all(
        line.startswith("{") for line in cluster.engine.docker("logs", cluster.containers("node")[0]).splitlines()
    )


def test_the_engine_pushes_and_pulls(cluster: Compose, tmp_path: Path) -> None:
    EngineLoad(cluster.engine, cluster.host, os.fspath(tmp_path)).step(0, 1)


@pytest.mark.usefixtures("whole")
def test_a_node_that_crashes_is_started_again_and_nothing_is_lost(
    cluster: Compose, ledger: Ledger, tmp_path: Path
) -> None:
    since, engine = len(ledger.first_failures), EngineLoad(cluster.engine, cluster.host, os.fspath(tmp_path))
    with working(cluster.endpoint, ledger, 1), Crowd(1, engine.step):
        goes_on(ledger)
        for node in cluster.containers("node"):
            (before,) = cluster.inspect(node)
            cluster.engine.crash(node)
            seconds = seconds_until(lambda: is_ready(cluster.endpoint), "somebody answers")
            goes_on(ledger)
            (after,) = cluster.inspect(node)
            assert after["RestartCount"] == before["RestartCount"] + 1
            cluster.wait_until_ready(3)
        pushed = engine.images
        eventually(lambda: engine.images > pushed, 120, "the engine goes on")
    report(cluster, "each node crashed once", ledger, since, seconds)
    note(
        f"compose ({cluster.program}): meanwhile {engine.images} images pushed and pulled by the engine; "
        f"{len(engine.first_failures)} of its commands failed on the first try, "
        f"{len(engine.failures)} after the retries"
    )


@pytest.mark.usefixtures("whole")
def test_a_node_that_hangs_costs_the_others_nothing(cluster: Compose, ledger: Ledger) -> None:
    since, node = len(ledger.first_failures), cluster.containers("node")[0]
    with working(cluster.endpoint, ledger, 2):
        goes_on(ledger)
        with cluster.paused(node):
            eventually(lambda: [s[2] for s in cluster.servers()].count("UP") == 2, 60, "the balancer has noticed")
            goes_on(ledger)
        goes_on(ledger)
    report(cluster, "one node paused", ledger, since)


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("network", ["front", "back"])
def test_a_node_that_is_cut_off_is_taken_back(cluster: Compose, ledger: Ledger, network: str) -> None:
    since, node = len(ledger.first_failures), cluster.containers("node")[1]
    with working(cluster.endpoint, ledger, 3 if network == "front" else 4):
        goes_on(ledger)
        with cluster.disconnected(node, network):
            if network == "front":
                eventually(lambda: [s[2] for s in cluster.servers()].count("UP") == 2, 60, "it is noticed")
            goes_on(ledger)
        cluster.wait_until_ready(3)
        goes_on(ledger)
    report(cluster, f"one node cut off from {network}", ledger, since)


@pytest.mark.usefixtures("whole")
def test_without_redis_all_goes_on(cluster: Compose, ledger: Ledger) -> None:
    since, (redis,) = len(ledger.first_failures), cluster.containers("redis")
    with working(cluster.endpoint, ledger, 5):
        goes_on(ledger)
        cluster.engine.docker("stop", "--time", "0", redis)
        goes_on(ledger)
        cluster.engine.docker("start", redis)
        goes_on(ledger)
    assert len(ledger.first_failures) == since
    report(cluster, "Redis stopped and started empty", ledger, since)


@pytest.mark.usefixtures("whole")
def test_nodes_come_and_go_under_load_and_no_request_fails(cluster: Compose, ledger: Ledger) -> None:
    since = len(ledger.first_failures)
    with working(cluster.endpoint, ledger, 6):
        goes_on(ledger)
        cluster.change_nodes("scale", "5")
        assert len(cluster.containers("node")) == 5
        goes_on(ledger)
        cluster.change_nodes("scale", "3")
        goes_on(ledger)
    assert len(cluster.containers("node")) == 3
    assert ledger.first_failures[since:] == []
    report(cluster, "3 to 5 to 3 nodes, one after the other", ledger, since)


@pytest.mark.usefixtures("whole")
def test_composes_own_scaling_under_load_loses_nothing(cluster: Compose, ledger: Ledger) -> None:
    since = len(ledger.first_failures)
    with working(cluster.endpoint, ledger, 8):
        goes_on(ledger)
        for nodes in (5, 3):
            cluster("up", "--detach", "--no-build", "--no-recreate", "--scale", f"node={nodes}")
            cluster.wait_until_ready(nodes)
            goes_on(ledger)
    report(cluster, "3 to 5 to 3 nodes, by compose alone", ledger, since)


@pytest.mark.usefixtures("whole")
def test_the_secret_is_rotated_under_load_and_no_request_fails(cluster: Compose, ledger: Ledger) -> None:
    since, data = len(ledger.first_failures), [b"before the rotation, ", b"after it"]
    with Client([cluster.endpoint], timeout=60) as client, working(cluster.endpoint, ledger, 7):
        upload = client.begin("team/rotated")
        client.patch(upload, data[0]).expect(202)
        for step in ("add", "promote"):
            cluster("run", "--rm", "secret", "secret", step, SECRET)
            cluster.change_nodes("replace")
            goes_on(ledger)
        client.patch(upload, data[1]).expect(202)
        client.commit(upload, digest_of(b"".join(data))).expect(201)
        ledger.blobs.append(("team/rotated", digest_of(b"".join(data))))
    assert ledger.first_failures[since:] == []
    report(cluster, "secret rotated, nodes replaced twice", ledger, since)


@pytest.mark.usefixtures("whole")
def test_locust_loads_it_while_a_node_crashes_and_finds_everything_kept(
    cluster: Compose,
) -> None:
    cluster("--profile", "load", "up", "--detach", "--no-build", "--no-recreate")
    with httpx.Client(base_url=f"http://127.0.0.1:{cluster.locust_port}", trust_env=False, timeout=120) as page:

        def stats() -> dict[str, Any]:
            try:
                found: dict[str, Any] = page.get("/stats/requests").json()
            except httpx.TransportError:
                return {"workers": [], "stats": [{"num_requests": 0}]}
            return found

        def requests() -> int:
            return int(stats()["stats"][-1]["num_requests"])

        eventually(lambda: len(stats()["workers"]) == 2, 120, "both workers are there")
        page.post(
            "/swarm", data={"user_count": 8, "spawn_rate": 8, "host": "http://balancer:5000"}
        ).raise_for_status()
        eventually(lambda: requests() > 500, 120, "the users work")
        cluster.engine.crash(cluster.containers("node")[0])
        before = requests()
        eventually(lambda: requests() > before + 500, 120, "they go on")
        page.post("/stop").raise_for_status()
    (master,) = cluster.containers("locust-master")
    look = ("sh", "-c", "cat /facts/*.verdict 2>/dev/null || true")
    verdict = eventually(lambda: cluster.inside(master, *look).strip(), 120, "locust has judged")
    note(f"compose ({cluster.program}): locust, one node crashed: {' / '.join(verdict.splitlines())}")
    assert "0 failed with all tries" in verdict
    assert "0 lost, 0 wrong bytes, 0 came back, 0 not linearizable, 0 not verified" in verdict
    cluster("--profile", "load", "rm", "--stop", "--force", "locust-worker", "locust-master")


@pytest.mark.usefixtures("whole")
def test_what_is_on_the_volume_outlives_the_containers(cluster: Compose, ledger: Ledger) -> None:
    data = [b"before the night, ", b"after it"]
    with Client([cluster.endpoint], timeout=60) as client:
        upload = client.begin("team/kept")
        client.patch(upload, data[0]).expect(202)
        began = time.monotonic()
        cluster.down()
        note(f"compose ({cluster.program}): down with an idle client took {time.monotonic() - began:.0f} s")
        cluster.up()
        client.patch(upload, data[1]).expect(202)
        client.commit(upload, digest_of(b"".join(data))).expect(201)
    ledger.blobs.append(("team/kept", digest_of(b"".join(data))))


@pytest.mark.usefixtures("whole")
def test_a_copy_of_the_volume_restores_it(cluster: Compose, tmp_path: Path) -> None:
    text = Path(PROJECT, "deploy/README.md").read_text(encoding="utf-8")
    section = text.partition("## Back up and restore\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("    docker compose ")]
    assert len(lines) == 4
    for line in lines:
        cluster.follow(line.replace("backup.tar", f"{tmp_path}/backup.tar"))
    cluster.wait_until_ready(3)
