"""The load generator for request rates: epoll over connections that ask again as soon as they are answered.

Our own, because wrk waits for the body of an answer to HEAD. It owns counting and timing, not content.
"""

import select
import socket
import time
from dataclasses import dataclass

from tests.bench.client import Address, ProtocolError, request_head

OK = b"HTTP/1.1 200"
BUFFER = 64 * 1024


@dataclass(frozen=True)
class Rate:
    """What one round of one request gave."""

    answers: int
    per_second: float
    p50_ms: float
    p99_ms: float


def whole(data: bytes, method: str) -> bool:
    """Whether `data` is one complete answer of 200; anything but 200 raises."""
    if len(data) >= len(OK) and not data.startswith(OK):
        raise ProtocolError(f"the registry answered {data[:200]!r}")
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    if method == "HEAD":
        return len(data) == end + 4
    head = data[:end].lower()
    if b"transfer-encoding: chunked" in head:
        return data.endswith(b"0\r\n\r\n")
    length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
    return len(data) == end + 4 + int(length)


def request_rate(
    address: Address, method: str, path: str, seconds: float, *headers: str, connections: int = 32
) -> Rate:
    """Ask one thing over all connections for `seconds`, each asking again as soon as it is answered."""
    request = request_head(address, method, path, *headers)
    sockets = [socket.create_connection(address, timeout=30) for _ in range(connections)]
    try:
        return _summary(_drive(sockets, request, method, seconds), seconds)
    finally:
        for sock in sockets:
            sock.close()


def _drive(sockets: list[socket.socket], request: bytes, method: str, seconds: float) -> list[float]:
    """The latency of every answer that came in time; nothing is left in flight afterwards."""
    by_fd = {sock.fileno(): sock for sock in sockets}
    latencies: list[float] = []
    asked: dict[int, float] = {}
    partial: dict[int, bytes] = {}
    usual = -1
    clock = time.perf_counter
    with select.epoll() as poller:
        deadline = clock() + seconds
        for fd, sock in by_fd.items():
            poller.register(fd, select.EPOLLIN)
            asked[fd] = clock()
            sock.send(request)
        while asked:
            ready = poller.poll(30)
            if not ready:
                raise ProtocolError(f"no answer within 30 s to {request[:80]!r}")
            for fd, _ in ready:
                data = partial.pop(fd, b"") + (by_fd[fd].recv(BUFFER) or _hung_up(request))
                # An answer as long as the last one is complete: parsing each would make us the bottleneck.
                if not (len(data) == usual and data.startswith(OK)) and not whole(data, method):
                    partial[fd] = data
                    continue
                usual = len(data)
                now = clock()
                if now >= deadline:
                    del asked[fd]
                    continue
                latencies.append(now - asked[fd])
                asked[fd] = now
                by_fd[fd].send(request)
    return latencies


def _hung_up(request: bytes) -> bytes:
    raise ProtocolError(f"the registry closed a kept-alive connection after {request[:80]!r}")


def _summary(latencies: list[float], seconds: float) -> Rate:
    if len(latencies) < 2:
        raise ProtocolError(f"only {len(latencies)} answers in {seconds} s")
    ordered = sorted(latencies)
    last = len(ordered) - 1
    return Rate(
        answers=len(ordered),
        per_second=len(ordered) / seconds,
        p50_ms=ordered[last // 2] * 1000,
        p99_ms=ordered[last * 99 // 100] * 1000,
    )
