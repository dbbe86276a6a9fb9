"""The memory check: one worker of ours under many slow readers and slow writers, its memory sampled every second.

Run `python -m tests.bench.memory --help`. Exits 1 when the peak is over the limit, when memory still grows in the
last third, or when a client was cut off or starved (then the figures would say nothing).
"""

import argparse
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.bench.client import Address, Client, Payload, ProtocolError, request_head
from tests.support.process import Node

KIB, MIB = 1024, 1024 * 1024
NAME = "bench/memory"
RATE = 64 * KIB
TICKS = 10
SLICE = RATE // TICKS
LIMIT = 100 * MIB
# What an allocator may take in one step; a leak of 5 KiB a second and client passes it within seconds.
GROWTH = 1 * MIB


@dataclass(frozen=True)
class Sample:
    """The memory of a process in bytes: all resident pages, and its share where pages are shared."""

    rss: int
    pss: int

    @classmethod
    def of(cls, pid: int) -> "Sample":
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line and line.rstrip().endswith("kB"))
        return cls(*(int(fields[key].split()[0]) * KIB for key in ("Rss", "Pss")))


class SlowReader:
    """Asks for a blob and takes it in sips, through a receive buffer too small to hide its slowness."""

    def __init__(self, address: Address, path: str) -> None:
        self.moved = 0
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * KIB)
        self._sock.settimeout(30)
        self._sock.connect(address)
        self._sock.sendall(request_head(address, "GET", path))
        head = self._sock.recv(SLICE)
        if not head.startswith(b"HTTP/1.1 200"):
            raise ProtocolError(f"a reader got {head[:200]!r}")
        self._sock.setblocking(False)

    def tick(self) -> None:
        try:
            data = self._sock.recv(SLICE)
        except BlockingIOError:
            return
        if not data:
            raise ProtocolError(f"a reader was cut off after {self.moved} bytes")
        self.moved += len(data)

    def close(self) -> None:
        self._sock.close()


class SlowWriter:
    """Sends a chunked PATCH in sips; the request stays open until `finish`."""

    def __init__(self, address: Address) -> None:
        self.moved = 0
        self._client = Client(address)
        self._sock = self._client.open_chunked(self._client.start(NAME))
        self._sock.setblocking(False)
        self._chunk = b"%x\r\n" % SLICE + os.urandom(SLICE) + b"\r\n"
        self._left = b""

    def tick(self) -> None:
        self._left = self._left or self._chunk
        try:
            sent = self._sock.send(self._left)
        except BlockingIOError:
            return
        self._left = self._left[sent:]
        self.moved += sent

    def finish(self) -> None:
        """End the body: the registry must still be there to take it."""
        self._sock.settimeout(60)
        self._sock.sendall(self._left + b"0\r\n\r\n")
        self._client.answer("PATCH", "of a slow writer", 202)

    def close(self) -> None:
        self._client.close()


Slow = SlowReader | SlowWriter


def run(node: Node, blob: str, given: argparse.Namespace) -> list[Sample]:
    """The samples of the worker, one for each second, while all clients are at it."""
    address = ("127.0.0.1", node.port)
    (worker,) = node.children()
    readers = [SlowReader(address, f"/v2/{NAME}/blobs/{blob}") for _ in range(given.readers)]
    writers = [SlowWriter(address) for _ in range(given.writers)]
    clients: list[Slow] = [*readers, *writers]
    try:
        samples = list(sampled(worker, clients, given.seconds))
        for writer in writers:
            writer.finish()
    finally:
        for client in clients:
            client.close()
    for kind, crowd in (("reader", readers), ("writer", writers)):
        slowest = min((client.moved for client in crowd), default=given.seconds * RATE)
        print(f"slowest {kind}: {slowest / given.seconds / KIB:.0f} KiB/s")
        if slowest < given.seconds * RATE / 2:
            raise SystemExit(f"a {kind} moved only {slowest} bytes: starved, the figures say nothing")
    return samples


def sampled(worker: int, clients: Sequence[Slow], seconds: int) -> Iterator[Sample]:
    began = time.monotonic()
    for tick in range(1, seconds * TICKS + 1):
        for client in clients:
            client.tick()
        time.sleep(max(0.0, began + tick / TICKS - time.monotonic()))
        if tick % TICKS == 0:
            sample = Sample.of(worker)
            print(f"{tick // TICKS:4d} s  rss {sample.rss / MIB:6.1f} MiB  pss {sample.pss / MIB:6.1f} MiB")
            yield sample


def high_water(pid: int) -> int:
    """The most that was ever resident, between two samples too."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        (line,) = (line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * KIB


def growth(values: list[int]) -> float:
    """How much the later half of the last third lies above its earlier half."""
    last = values[-max(2, len(values) // 3) :]
    middle = len(last) // 2
    return statistics.median(last[middle:]) - statistics.median(last[:middle])


def verdict(baseline: Sample, samples: list[Sample], peak: int) -> list[str]:
    """Print the figures; what is wrong with them."""
    grown = growth([sample.rss for sample in samples])
    share = max(sample.pss for sample in samples)
    print(f"baseline {baseline.rss / MIB:.1f} MiB rss, {baseline.pss / MIB:.1f} MiB pss")
    print(f"peak     {peak / MIB:.1f} MiB rss, {share / MIB:.1f} MiB pss")
    print(f"delta    {(peak - baseline.rss) / MIB:.1f} MiB rss; last third {grown / MIB:+.2f} MiB")
    problems = []
    if peak > LIMIT:
        problems.append(f"the peak is over {LIMIT // MIB} MiB")
    if grown > GROWTH:
        problems.append("memory still grows in the last third")
    return problems


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.memory", description="A worker's memory with slow clients."
    )
    parser.add_argument("--readers", type=int, default=50)
    parser.add_argument("--writers", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the blob that is read")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that nothing is left behind
    with tempfile.TemporaryDirectory(prefix="memory-") as scratch:
        node = Node(scratch, {"log": {"level": "warn"}}, env={"WEB_CONCURRENCY": "1"})
        with node:
            (worker,) = node.children()
            baseline = Sample.of(worker)
            payload = Payload(given.size * MIB)
            client = Client(("127.0.0.1", node.port))
            took = client.push_stream(NAME, payload)
            client.close()
            resident = Sample.of(worker).rss / MIB
            print(f"after a push of {given.size} MiB in {took:.1f} s: rss {resident:.1f} MiB")
            blob = payload.digest
            del payload
            samples = run(node, blob, given)
            problems = verdict(baseline, samples, high_water(worker))
    if problems:
        sys.exit("; ".join(problems))


if __name__ == "__main__":
    main()
