"""Users of a registry, for locust: mostly machines that pull, some that push, resume, move tags, list and delete.

Every user keeps the same mix: 95 of 100 requests read, as in the published traces of large registries. When the
test stops, the judge asks for everything that was acknowledged (cluster/drill/verdict.py): the exit code is 1 when
something was not kept, 3 when only a task failed with all its tries. tests/load/README.md says how to run it.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import secrets
import signal
import time
from argparse import ArgumentParser, Namespace
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from glob import glob
from typing import Any

import gevent
from gevent.pool import Pool
from locust import FastHttpUser, events, task
from locust.env import Environment
from locust.runners import STATE_MISSING, MasterRunner, WorkerRunner
from locust.stats import RequestStats

from cluster.drill.client import addresses_of
from cluster.drill.facts import Facts, Register, load
from cluster.drill.history import Wanted
from cluster.drill.load import record_paths
from cluster.drill.meter import Kind
from cluster.drill.operations import image_manifest
from cluster.drill.tape import Tape
from cluster.drill.verdict import verify
from tests.load.client import Client, Failed, Request, Upload, digest_of
from tests.load.pool import UserPool

APPLICATIONS = 8  # repositories that images are pushed to
MOVING_TAGS = 4
BASE_LAYERS = 6  # which most images share
PARALLEL = 3  # layers that docker and containerd pull at once
CHUNK = 256 * 1024
KEPT = 500  # images that are pulled; older ones are only looked at in the end
FINISH = 60  # seconds for workers to stop their users
NOT_KEPT, TASKS_FAILED = 1, 3  # exit codes
TASK = "TASK"  # what locust's statistics show as the method

READS = {"pull_image": 12, "list_tags": 1}
WRITES = {"push_image": 4, "resume_upload": 2, "move_tag": 5, "delete_image": 1}
KINDS = {
    "pull_image": Kind.PULL,
    "list_tags": Kind.PULL,
    "push_image": Kind.PUSH,
    "resume_upload": Kind.CHUNKED,
    "move_tag": Kind.TAG,
    "delete_image": Kind.DELETE,
}
"""What drills call these tasks."""
WRITTEN_BY = {Kind.PULL: Kind.PUSH}
"""Whose facts an operation's are, if not its own: what is pulled was pushed, and is judged as one history."""

log = logging.getLogger("load")


@dataclass(frozen=True)
class Image:
    tag: Register
    digest: str


@dataclass
class Run:
    """What the users of one process share from the start of a test to its stop."""

    prefix: str
    facts: Mapping[Kind, Facts]
    read_percent: float
    tape: Tape | None = None  # for the drill that runs this
    images: deque[Image] = field(default_factory=lambda: deque(maxlen=KEPT))
    reads: int = 0
    writes: int = 0
    process: str = field(default_factory=lambda: secrets.token_hex(4))
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def close(self) -> None:
        for facts in set(self.facts.values()):
            facts.close()
        if self.tape is not None:
            self.tape.close()

    def new_tag(self) -> str:
        """A name that nobody else gives."""
        return f"v{self.process}-{next(self.numbers)}"

    def note(self, kind: Kind, request: Request) -> None:
        """A request of such a task has ended."""
        if request.method in ("GET", "HEAD"):
            self.reads += 1
        else:
            self.writes += 1
        if self.tape is not None:
            self.tape.request(kind, request.began, request.ended, request.failure)

    def note_task(self, kind: Kind, tries: int, failure: Failed | None) -> None:
        if self.tape is not None:
            self.tape.step(kind, tries, str(failure) if failure else None)

    def next_task(self) -> str:
        """A read when reads are short of their share, so the mix holds whatever the tasks cost."""
        wants_read = self.images and self.reads * 100 < self.read_percent * (self.reads + self.writes)
        tasks = READS if wants_read else WRITES if self.images else {"push_image": 1}
        return random.choices(list(tasks), list(tasks.values()))[0]

    def some_image(self) -> Image:
        """A few images are pulled most, and new ones more than old ones."""
        return self.images[-min(int(random.paretovariate(1)), len(self.images))]


class RegistryUser(FastHttpUser):
    """A client that does one thing after the other."""

    network_timeout = 30.0
    connection_timeout = 30.0
    concurrency = PARALLEL

    def wait_time(self) -> float:
        assert self.environment.parsed_options is not None
        return float(self.environment.parsed_options.pause)

    def on_start(self) -> None:
        self.shared: Run = runs[self.environment]
        self.clients = {
            kind: Client(
                self.client, self.shared.facts[WRITTEN_BY.get(kind, kind)], partial(self.shared.note, kind)
            )
            for kind in Kind
        }
        self.pullers = Pool(PARALLEL)
        agent = self.client.client
        addresses = [] if self.shared.tape is None else addresses_of(next(self.shared.numbers))
        self.pool = agent.clientpool = UserPool(agent.clientpool.client_args, addresses)

    def on_stop(self) -> None:
        self.pullers.kill()

    @task
    def next(self) -> None:
        """One task, with a line of its own in the statistics: what a person would see succeed or fail."""
        chosen, began, failure = self.shared.next_task(), time.perf_counter(), None
        self.registry = self.clients[KINDS[chosen]]
        self.registry.tries = 1
        try:
            getattr(self, chosen)()
        except Failed as error:
            failure = error
            log.warning("%s: %s", chosen, error)
        self.environment.events.request.fire(
            request_type=TASK,
            name=chosen.replace("_", " "),
            response_time=(time.perf_counter() - began) * 1000,
            response_length=0,
            exception=failure,
            context={},
        )
        self.shared.note_task(KINDS[chosen], self.registry.tries, failure)
        if self.shared.tape is not None:
            self.pool.close()  # every command of a stock client begins with a new connection

    def pull_image(self) -> None:
        """The tag's digest by HEAD, the manifest by that digest, then config and layers side by side."""
        image = self.shared.some_image()
        if random.random() < 0.5:  # docker; containerd asks this only when it is told to log in
            self.registry.insist("ping", self.registry.ping)
        digest = self.registry.insist("resolve", partial(self.registry.resolve, image.tag))
        if digest is None:
            raise Failed(f"{image.tag} is lost")  # the judge finds it in the record
        name = image.tag.name
        register = Register.manifest(name, digest)
        manifest = json.loads(self.registry.insist("pull", partial(self.registry.content, register)))
        blobs = [Register.blob(name, part["digest"]) for part in (manifest["config"], *manifest["layers"])]
        if failures := [failure for failure in self.pullers.map(self._pull_blob, blobs) if failure]:
            raise failures[0]

    def _pull_blob(self, register: Register) -> Failed | None:
        try:
            self.registry.insist("pull", partial(self.registry.content, register))
        except Failed as error:
            return error
        return None

    def list_tags(self) -> None:
        """Whatever was pushed before the question is in the answer."""
        image = self.shared.some_image()
        found = self.registry.insist("list tags", partial(self.registry.tags, image.tag.name))
        if image.tag.reference not in found:
            self.registry.facts.lost(f"{image.tag}: was pushed, and is not in the list of {len(found)} tags")

    def push_image(self) -> None:
        """Some layers are there already, some in another repository, and some are new."""
        application = random.randrange(APPLICATIONS)
        tag = Register.tag(f"{self.shared.prefix}/app-{application}", self.shared.new_tag())
        config = json.dumps({"os": "linux", "of": str(tag), "nonce": secrets.token_hex(8)}).encode()
        layers = [self._base_layer(), *(some_bytes() for _ in range(random.randint(1, 2)))]
        self._push(tag, config, layers, image_manifest(config, layers, str(tag)))

    def _base_layer(self) -> bytes:
        """One of a few, in the repository of base images; by its digest everybody has the same ones."""
        data = f"{self.shared.prefix} {random.randrange(BASE_LAYERS)} ".encode() * 4096
        self.registry.insist("push", partial(self.registry.push_blob, f"{self.shared.prefix}/base", data))
        return data

    def _push(self, tag: Register, config: bytes, layers: list[bytes], manifest: bytes) -> None:
        base = f"{self.shared.prefix}/base"
        self.registry.insist("ping", self.registry.ping)
        for data in (*layers, config):
            source = base if data is layers[0] else ""
            self.registry.insist("push", partial(self.registry.push_blob, tag.name, data, source))
        self.registry.insist("push manifest", partial(self.registry.push_manifest, tag, manifest))
        self.shared.images.append(Image(tag, digest_of(manifest)))

    def resume_upload(self) -> None:
        """A blob in chunks over a connection that breaks."""
        data, upload = random.randbytes(random.randint(2 * CHUNK, 6 * CHUNK)), Upload()
        name = f"{self.shared.prefix}/chunked"
        self.registry.insist("push chunks", partial(self.registry.push_in_chunks, name, data, CHUNK, upload))

    def move_tag(self) -> None:
        """One of a few tags that everybody moves: every other time only if nobody else has."""
        name = f"{self.shared.prefix}/moving"
        tag = Register.tag(name, f"stable-{random.randrange(MOVING_TAGS)}")
        config = b"{}"
        self.registry.insist("push", partial(self.registry.push_blob, name, config))
        expected: Wanted | str | None = Wanted.ANYTHING
        if random.random() < 0.5:
            expected = self.registry.insist("resolve", partial(self.registry.resolve, tag))
        manifest = image_manifest(config, [], secrets.token_hex(8))
        self.registry.insist("move tag", partial(self.registry.push_manifest, tag, manifest, expected))

    def delete_image(self) -> None:
        """A tag, its manifest and its blob, all of them nobody else's."""
        name, config = f"{self.shared.prefix}/short-lived", secrets.token_bytes(64)
        tag, manifest = Register.tag(name, self.shared.new_tag()), image_manifest(config, [], name)
        self.registry.insist("push", partial(self.registry.push_blob, name, config))
        self.registry.insist("push manifest", partial(self.registry.push_manifest, tag, manifest))
        for register in (
            tag,
            Register.manifest(name, digest_of(manifest)),
            Register.blob(name, digest_of(config)),
        ):
            self.registry.insist(f"delete {register.kind}", partial(self.registry.delete, register))


def some_bytes() -> bytes:
    """A new layer: mostly tens of kilobytes, now and then some megabytes."""
    return random.randbytes(min(int(random.lognormvariate(11, 1.2)), 4 * 1024 * 1024))


# ---------------------------------------------------------------------------------------- the course of a test

runs: dict[Environment, Run] = {}
"""The test that goes on; locust has one environment in each process."""


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--facts", default="reports/load/facts", help="Directory that all processes write what they were told to"
    )
    parser.add_argument("--read-percent", type=float, default=95, help="How many of 100 requests read")
    parser.add_argument(
        "--nodes", default="", help="URLs, with commas between them, that are asked for every fact; default: --host"
    )
    parser.add_argument(
        "--cluster-data", default="", help="Directory of `registry-cluster up`: loads it, and asks its nodes"
    )
    parser.add_argument("--pause", type=float, default=0, help="Seconds between two tasks of a user")
    parser.add_argument(
        "--drill", default="", help="For `registry-cluster drill`: what its files begin with; it judges them itself"
    )


@events.init.add_listener
def stop_when_interrupted(**_: Any) -> None:
    """Ctrl-C ends the test from outside of its users.

    Python would raise it in whatever user is at work; gevent hands it on to locust, and again for each greenlet
    that waited for that one: the second one breaks off what the first one began, the verdict among it.
    """
    gevent.signal_handler(signal.SIGINT, _interrupt)


def _interrupt() -> None:
    raise KeyboardInterrupt


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    options, runner = environment.parsed_options, environment.runner
    if options is not None and options.cluster_data and not environment.host:
        environment.host = local_cluster(options)["endpoint"]
    if isinstance(runner, WorkerRunner):
        runner.register_message("finish", finish)
    elif isinstance(runner, MasterRunner):
        runner.register_message("finished", lambda environment, msg: finished.add(msg.node_id))


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    assert options is not None
    if options.drill:
        runs[environment] = drilled(options)
        return
    os.makedirs(options.facts, exist_ok=True)
    if not isinstance(environment.runner, WorkerRunner):
        options.run_id = secrets.token_hex(4)  # locust hands the options on to its workers
        environment.process_exit_code = NOT_KEPT  # until the verdict is there
    if not isinstance(environment.runner, MasterRunner):
        facts = Facts(f"{options.facts}/{options.run_id}-{secrets.token_hex(4)}.jsonl")
        # Machines do not share repositories, because their clocks cannot be compared.
        prefix = f"load/{options.run_id}-{facts.clock}"
        runs[environment] = Run(prefix, dict.fromkeys(Kind, facts), options.read_percent)


def drilled(options: Namespace) -> Run:
    """A run of one process, whose facts lie where cluster/drill/swarm.py looks for them."""
    directory, name = os.path.split(options.drill)
    facts = {kind: Facts(path) for kind, path in record_paths(directory, name).items()}
    return Run(f"load/{name}", facts, options.read_percent, Tape(f"{options.drill}.tape"))


@events.test_stop.add_listener
def end(environment: Environment, **_: Any) -> None:
    if environment in runs:
        runs.pop(environment).close()
    assert environment.parsed_options is not None
    if environment.parsed_options.drill:
        return
    if isinstance(environment.runner, MasterRunner):
        judge(environment, stop_workers(environment.runner))
    elif not isinstance(environment.runner, WorkerRunner):
        judge(environment, 1)


@events.quitting.add_listener
def stop_first(environment: Environment, **_: Any) -> None:
    """Interrupted, locust asks for the exit code before it stops its users."""
    if environment.runner is not None and not isinstance(environment.runner, WorkerRunner):
        environment.runner.stop()


finished: set[str] = set()
"""The workers that said so."""


def finish(environment: Environment, **_: Any) -> None:
    """On a worker: no user is left, and the record is closed, before the master judges."""
    runner = environment.runner
    assert isinstance(runner, WorkerRunner)
    runner.stop()
    runner.send_message("finished")


def stop_workers(runner: MasterRunner) -> int:
    """How many there were; each has stopped its users, or had its time."""
    finished.clear()
    working = {client.id for client in runner.clients.all if client.state != STATE_MISSING}
    runner.send_message("finish")
    deadline = time.monotonic() + FINISH
    while working - finished and time.monotonic() < deadline:
        time.sleep(0.1)
    for worker in working - finished:
        log.error("%s did not stop in %d s; what it still does is not in the record", worker, FINISH)
    return len(working)


def judge(environment: Environment, processes: int) -> None:
    """Ask for everything, say it, and set the exit code."""
    options = environment.parsed_options
    assert options is not None
    paths = glob(f"{options.facts}/{options.run_id}-*.jsonl")
    record = load(*paths)
    verdict = verify(record, nodes_to_ask(environment, options))
    if len(paths) < processes:
        verdict.unverified.append(f"{processes} processes made load, and there are {len(paths)} records of it")
    if not verdict.acknowledged:
        verdict.unverified.append("nothing was acknowledged")
    text, failed_tasks = f"{counts(environment.stats)}\n{verdict}", failures(environment.stats, of_tasks=True)
    log.log(logging.INFO if verdict.holds else logging.ERROR, "%s", text)
    with open(f"{options.facts}/{options.run_id}.verdict", "w", encoding="utf-8") as file:
        file.write(text + "\n")
    environment.process_exit_code = NOT_KEPT if not verdict.holds else TASKS_FAILED if failed_tasks else 0


def counts(stats: RequestStats) -> str:
    methods = Counter[str]()
    for entry in stats.entries.values():
        methods[entry.method] += entry.num_requests
    tasks = methods.pop(TASK, 0)
    requests = max(methods.total(), 1)
    return (
        f"{requests} requests, {(methods['GET'] + methods['HEAD']) * 100 / requests:.1f} % reads, "
        f"{failures(stats, of_tasks=False)} failed at first; "
        f"{tasks} tasks, {failures(stats, of_tasks=True)} failed with all tries"
    )


def failures(stats: RequestStats, *, of_tasks: bool) -> int:
    return sum(entry.num_failures for entry in stats.entries.values() if (entry.method == TASK) is of_tasks)


def nodes_to_ask(environment: Environment, options: Namespace) -> list[str]:
    if options.cluster_data:
        return [node["url"] for node in local_cluster(options)["nodes"]]
    return options.nodes.split(",") if options.nodes else [str(environment.host)]


def local_cluster(options: Namespace) -> dict[str, Any]:
    """What `registry-cluster up` says of itself."""
    path = f"{options.cluster_data}/cluster.json"
    try:
        with open(path, encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        raise SystemExit(f"there is no {path}: no cluster runs there; start one by `registry-cluster up`") from None
    return found
