"""The benchmark: registries side by side on one core, round by round in turn, compared as ratios of medians.

Run `python -m tests.bench.bench --help`. It owns what is asked and in which order; who takes part is data
(contestants.py), how load is made is load.py, what the figures say is report.py.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.bench.client import Address, Client, Payload, digest_of, fetch_discarding, image
from tests.bench.contestants import CONTESTANTS, two_cores
from tests.bench.load import request_rate
from tests.bench.report import Report, Row, conditions
from tests.support.process import Registry
from tests.support.tools import find

MIB = 1024 * 1024
NAME = "bench/app"
TAGS = [f"v{number}" for number in range(100)]


class Content:
    """What every registry is filled with: the same bytes, so that the same paths are asked everywhere."""

    def __init__(self, big_size: int) -> None:
        self.config = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
        self.layers = [os.urandom(size) for size in (4096, 8192, 16384)]
        self.manifest = image(
            digest_of(self.config), {digest_of(layer): len(layer) for layer in self.layers}, len(self.config)
        )
        self.big = Payload(big_size)
        self.small_path = f"/v2/{NAME}/blobs/{digest_of(self.layers[0])}"
        self.big_path = f"/v2/{NAME}/blobs/{self.big.digest}"
        self.by_tag = f"/v2/{NAME}/manifests/{TAGS[50]}"
        self.by_digest = f"/v2/{NAME}/manifests/{digest_of(self.manifest)}"
        self.tags = f"/v2/{NAME}/tags/list"

    def push(self, client: Client) -> None:
        for blob in (self.config, *self.layers):
            client.push_blob(NAME, blob)
        for tag in TAGS:
            client.push_manifest(NAME, tag, self.manifest)
        client.push_stream(NAME, self.big)

    def check(self, client: Client) -> None:
        """Compare what comes back with what was pushed: a wrong answer may be a fast one."""
        for path in (self.by_tag, self.by_digest):
            assert client.ask("GET", path, 200)[1] == self.manifest, path
        assert client.ask("GET", self.small_path, 200)[1] == self.layers[0], self.small_path
        listed = client.ask("GET", self.tags, 200)[1].decode()
        assert all(f'"{tag}"' in listed for tag in TAGS), listed
        assert f"/v2/{NAME}/blobs/{digest_of(client.ask('GET', self.big_path, 200)[1])}" == self.big_path


@dataclass
class Seat:
    """One running registry, and how many requests its access log must tell of."""

    name: str
    registry: Registry
    client: Client
    asked: int = 0

    @property
    def address(self) -> Address:
        return "127.0.0.1", self.registry.port

    def cpu_seconds(self) -> float:
        """Processor time of the leader and its workers so far."""
        ticks = 0
        for pid in (self.registry.pid, *self.registry.children()):
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Plan:
    """How many rounds, and how long one of requests is."""

    rounds: int
    transfers: int
    seconds: float
    warm_up: float = 0.5

    @property
    def text(self) -> str:
        return (
            f"{self.rounds} rounds of {self.seconds:g} s, {self.transfers} of a transfer, in turn; 32 connections"
        )


def rates(seats: Sequence[Seat], content: Content, plan: Plan) -> Iterator[Row]:
    for name, method, path in (
        ("GET /v2/", "GET", "/v2/"),
        ("manifest by tag", "GET", content.by_tag),
        ("manifest by digest", "GET", content.by_digest),
        ("blob of 4 KiB", "GET", content.small_path),
        ("blob HEAD", "HEAD", content.small_path),
        ("list of 100 tags", "GET", content.tags),
    ):
        row = Row(name, "/s")
        for number in range(plan.rounds):
            for seat in seats:
                if number == 0:
                    seat.asked += request_rate(seat.address, method, path, plan.warm_up).answers
                before = seat.cpu_seconds()
                rate = request_rate(seat.address, method, path, plan.seconds)
                seat.asked += rate.answers
                row.add(seat.name, rate.per_second, (seat.cpu_seconds() - before) / rate.answers)
                row.latencies.setdefault(seat.name, []).append((rate.p50_ms, rate.p99_ms))
        yield row


def transfers(seats: Sequence[Seat], content: Content, plan: Plan) -> Iterator[Row]:
    mebibytes = content.big.size / MIB
    fetched = content.big_path

    def pull(seat: Seat) -> float:
        return fetch_discarding(seat.address, fetched, content.big.size)

    def push(seat: Seat) -> float:
        content.big.renew()
        seat.client.close()  # idle for longer than a registry keeps a connection; opened again by itself
        os.sync()  # nobody pays for what another has left to be written
        seconds = seat.client.push_stream(NAME, content.big)
        remove_blob(seat, content.big.digest)
        return seconds

    actions: tuple[tuple[str, Callable[[Seat], float]], ...] = (("pull", pull), ("push", push))
    for name, action in actions:
        row = Row(f"{name} of {mebibytes:.0f} MiB", "MiB/s")
        for number in range(plan.transfers):
            for seat in seats:
                if number == 0:
                    action(seat)
                before = seat.cpu_seconds()
                seconds = action(seat)
                row.add(seat.name, mebibytes / seconds, seat.cpu_seconds() - before)
        yield row


def remove_blob(seat: Seat, digest: str) -> None:
    """Delete a blob and the bytes that a registry keeps until its next garbage collection."""
    seat.client.ask("DELETE", f"/v2/{NAME}/blobs/{digest}", 202)
    encoded = digest.partition(":")[2]
    for folder, folders, files in os.walk(seat.registry.root):
        if encoded in folders:
            folders.remove(encoded)
            shutil.rmtree(os.path.join(folder, encoded))
        if encoded in files:
            os.unlink(os.path.join(folder, encoded))


@contextlib.contextmanager
def seated(names: Sequence[str], programs: dict[str, str], scratch: str, core: int) -> Iterator[list[Seat]]:
    """All registries running, each with a directory of its own; all stopped afterwards, whatever happens."""
    with contextlib.ExitStack() as stack:
        seats = []
        for number, name in enumerate(names):
            directory = os.path.join(scratch, str(number))
            registry = CONTESTANTS[name].on_core(core, directory, programs.get(name, ""))
            stack.enter_context(registry)
            label = name if names.count(name) == 1 else f"{name} {'ABCDEFGH'[number]}"
            seat = Seat(label, registry, Client(("127.0.0.1", registry.port)))
            stack.callback(seat.client.close)
            seats.append(seat)
        yield seats


def measure(seats: Sequence[Seat], plan: Plan, big_size: int) -> list[Row]:
    content = Content(big_size)
    for seat in seats:
        content.push(seat.client)
        content.check(seat.client)
    rows = []
    for measures in (rates, transfers):
        for row in measures(seats, content, plan):
            rows.append(row)
            print(f"{row.name}: done", file=sys.stderr)
    return rows


def version(registry: Registry) -> str:
    """What its program says when asked for its version."""
    asked = subprocess.run([*registry.command[:-2], "--version"], capture_output=True, text=True, check=False)
    said = asked.stdout or asked.stderr
    return " ".join(word for word in said.split() if not os.path.isabs(word))


def check_logs(seats: Sequence[Seat]) -> None:
    """A registry that did not log what it answered had less to do than the others."""
    for seat in seats:
        with open(seat.registry.log_path, "rb") as log:
            lines = sum(1 for _ in log)
        if lines < seat.asked:
            raise SystemExit(f"{seat.name} logged {lines} lines for {seat.asked} requests")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench", description="Registries side by side.")
    parser.add_argument("--out", help="write bench.md and bench.json into this directory")
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each request and each transfer")
    parser.add_argument("--seconds", type=float, default=3, help="length of a round of requests")
    parser.add_argument("--size", type=int, default=512, help="MiB of a transfer")
    parser.add_argument("--scratch", help="where the registries keep their data (default: the system's)")
    parser.add_argument(
        "--seats",
        nargs="+",
        choices=list(CONTESTANTS),
        default=["registry-cluster", "distribution", *(["zot"] if find("zot") else [])],
        help="who is measured; the first is compared with the others, and the same one twice shows the noise; zot "
        "has a seat where it is installed",
    )
    parser.add_argument(
        "--with",
        dest="programs",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="use this program for NAME, and give NAME a seat if it has none",
    )
    return parser.parse_args()


def main() -> None:
    given = arguments()
    programs = dict(item.split("=", 1) for item in given.programs)
    names = [*given.seats, *(name for name in programs if name not in given.seats)]
    plan = Plan(1, 1, 1.0, 0.2) if given.quick else Plan(given.rounds, given.rounds, given.seconds)
    core, load_core = two_cores()
    os.sched_setaffinity(0, {load_core})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that nothing is left behind
    with tempfile.TemporaryDirectory(prefix="bench-", dir=given.scratch) as scratch:
        with seated(names, programs, scratch, core) as seats:
            rows = measure(seats, plan, given.size * MIB)
            versions = {seat.name: version(seat.registry) for seat in seats}
        check_logs(seats)
        report = Report(
            list(versions), rows, versions | conditions(scratch, (core, load_core)) | {"plan": plan.text}
        )
    print(report.markdown())
    if given.out:
        report.write(given.out)


if __name__ == "__main__":
    main()
