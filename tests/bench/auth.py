"""What it costs to be asked who one is: nodes of ours with htpasswd and with tokens beside one that asks nobody.

Run `python -m tests.bench.auth --help`. The nodes share one core and take turns, round by round; the figures are
ratios of medians to the node without authentication, of answers in a second and of processor time.
"""

import argparse
import base64
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from cluster.auth import passwords
from tests.bench.client import Client, digest_of, image
from tests.bench.contestants import USUAL, two_cores
from tests.bench.load import request_rate
from tests.bench.report import Row
from tests.support.process import Config, Node, merge
from tests.support.tools import require

NAME = "bench/app"
TARGET = 0.7  # of the rate without authentication, for GET /v2/
OPEN = "none"


@dataclass(frozen=True)
class Way:
    """One way to say who one is: what a node has to know, and what a client sends."""

    name: str
    config: Config
    headers: tuple[str, ...] = ()


@dataclass
class Seat:
    """A running node."""

    way: Way
    node: Node

    def cpu_seconds(self) -> float:
        """Processor time of its worker so far, over all its threads."""
        (worker,) = self.node.children()
        with open(f"/proc/{worker}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ways(directory: str, cost: int) -> list[Way]:
    """Nobody, a user of an htpasswd file, and the bearer of a token that a key set verifies."""
    file = os.path.join(directory, "htpasswd")
    with open(file, "w", encoding="utf-8") as accounts:
        accounts.write(f"alice:{passwords.make(b'wonderland', cost)}\n")
    basic = base64.b64encode(b"alice:wonderland").decode()
    key = ec.generate_private_key(ec.SECP256R1())
    keys = os.path.join(directory, "jwks.json")
    with open(keys, "w", encoding="utf-8") as key_set:
        json.dump({"keys": [ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": "one"}]}, key_set)
    claims = {
        "iss": "issuer",
        "aud": "service",
        "sub": "alice",
        "exp": int(time.time()) + 24 * 3600,
        "access": [{"type": "repository", "name": NAME, "actions": ["pull", "push"]}],
    }
    token = jwt.encode(claims, key, "ES256", headers={"kid": "one"})
    section = {"realm": "https://127.0.0.1/token", "issuer": "issuer", "service": "service", "jwks": keys}
    return [
        Way(OPEN, {}),
        Way(
            f"htpasswd, cost {cost}",
            {"auth": {"htpasswd": {"realm": "bench", "path": file}}},
            (f"Authorization: Basic {basic}",),
        ),
        Way("token", {"auth": {"token": section}}, (f"Authorization: Bearer {token}",)),
    ]


@contextlib.contextmanager
def seated(scratch: str, cost: int, core: int) -> Iterator[list[Seat]]:
    """All nodes running on one storage, pinned to one core; all stopped afterwards, whatever happens."""
    root = os.path.join(scratch, "data")
    with contextlib.ExitStack() as stack:
        seats = []
        for number, way in enumerate(ways(scratch, cost)):
            config = merge(USUAL, way.config)
            node = Node(os.path.join(scratch, str(number)), config, root=root, env={"WEB_CONCURRENCY": "1"})
            node.command = [require("taskset"), "-c", str(core), *node.command]
            seats.append(Seat(way, stack.enter_context(node)))
        yield seats


def fill(seat: Seat) -> str:
    """Push an image with the open node; the path of its manifest."""
    client = Client(("127.0.0.1", seat.node.port))
    config, layer = b"{}", os.urandom(4096)
    for blob in (config, layer):
        client.push_blob(NAME, blob)
    client.push_manifest(NAME, "v1", image(digest_of(config), {digest_of(layer): len(layer)}, len(config)))
    client.close()
    return f"/v2/{NAME}/manifests/v1"


def measure(seats: list[Seat], rounds: int, seconds: float) -> Iterator[Row]:
    manifest = fill(seats[0])
    for name, path in (("GET /v2/", "/v2/"), ("manifest by tag", manifest)):
        row = Row(name, "/s")
        for number in range(rounds):
            for seat in seats:
                address, headers = ("127.0.0.1", seat.node.port), seat.way.headers
                if number == 0:
                    request_rate(address, "GET", path, 0.5, *headers)
                before = seat.cpu_seconds()
                rate = request_rate(address, "GET", path, seconds, *headers)
                row.add(seat.way.name, rate.per_second, (seat.cpu_seconds() - before) / rate.answers)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.auth", description="What authentication costs.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2, help="length of a round")
    parser.add_argument("--cost", type=int, default=10, help="of bcrypt")
    given = parser.parse_args()
    core, load_core = two_cores()
    os.sched_setaffinity(0, {load_core})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that nothing is left behind
    missed = False
    with (
        tempfile.TemporaryDirectory(prefix="bench-auth-") as scratch,
        seated(scratch, given.cost, core) as seats,
    ):
        for row in measure(seats, given.rounds, given.seconds):
            for seat in seats[1:]:
                name = seat.way.name
                pairs, ratio = row.paired(name, OPEN), row.ratio(name, OPEN)
                print(
                    f"{row.name}, {name}: {ratio:.2f} of the rate without ({min(pairs):.2f} to {max(pairs):.2f}), "
                    f"{row.thrift(name, OPEN):.2f} by processor time"
                )
                missed |= row.name == "GET /v2/" and ratio < TARGET
    if missed:
        sys.exit(f"less than {TARGET} of the rate without authentication")


if __name__ == "__main__":
    main()
