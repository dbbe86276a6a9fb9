"""What clients do under a fault: push, chunked push, pull, tag move, delete; each with a stock client's retries.

Every acknowledgement goes into the record of facts, every request and step into the meter. Which client does what,
and when, is decided in load.py.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.drill.client import Answer, Client, NotDone, Unasked, digest_of
from cluster.drill.facts import Facts, Register
from cluster.drill.history import Operation, Outcome, Value
from cluster.drill.meter import Kind, Meter

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
PAUSES = (1.0, 2.0, 4.0)
"""Seconds before a step is tried again: three times, as `skopeo --retry-times 3` does."""
SHARED = 6
"""Layers that many images have, so that a push finds some of them there."""
TAGS = 3
TAG_AGE = 15.0
"""Seconds after which other tags are moved: a history that is judged as a whole should not be endless."""
CHUNK = 24 * 1024


@dataclass
class Desk:
    """All that one client works with."""

    name: str  # repository
    number: int
    client: Client
    facts: Facts
    meter: Meter
    chance: random.Random
    pauses: tuple[float, ...] = PAUSES

    def insist(self, attempt: Callable[[], object]) -> bool:
        """A step, tried again after each pause. What helps or not is counted."""
        for tries, pause in enumerate((*self.pauses, None), 1):
            try:
                attempt()
            except NotDone as error:
                if pause is None:
                    self.meter.step(tries, str(error))
                    return False
                time.sleep(pause)
            else:
                self.meter.step(tries, None)
                return True
        raise AssertionError("the last try returns")

    def blob_url(self, digest: str) -> str:
        return f"/v2/{self.name}/blobs/{digest}"

    def manifest_url(self, reference: str) -> str:
        return f"/v2/{self.name}/manifests/{reference}"

    def upload(self, data: bytes) -> str:
        """A blob that may be there: HEAD, POST, PATCH, PUT, as docker does it. Its digest."""
        digest = digest_of(data)
        register = Register.blob(self.name, digest)
        with self.facts.record(register, Operation("read")) as look:
            is_there = self.client.ask("HEAD", register.path, wanted=(200, 404)).status == 200
            look.end(Outcome.DONE, digest if is_there else None)
        if not is_there:
            self.put_blob(register, data)
        return digest

    def put_blob(self, register: Register, data: bytes) -> None:
        with self.facts.record(register, Operation("put", register.reference)) as operation:
            self.send(data, register.reference)
            operation.end(Outcome.DONE)

    def send(self, data: bytes, digest: str) -> None:
        location = self.begin()
        answer = self.client.ask("PATCH", location, data, wanted=(202,))
        self.client.ask("PUT", f"{answer.headers['Location']}&digest={digest}", b"", wanted=(201,))

    def begin(self) -> str:
        """The location of a new upload."""
        return self.client.ask("POST", f"/v2/{self.name}/blobs/uploads/", wanted=(202,)).headers["Location"]

    def write(self, register: Register, operation: Operation, ask: Callable[[], Answer]) -> Answer:
        """A write that others may contradict; how it ended is written down as far as the answer tells."""
        with self.facts.record(register, operation):
            try:
                answer = ask()
            except Unasked:
                operation.end(Outcome.UNASKED)
                raise
            if answer.status == 412:
                operation.end(Outcome.REFUSED, answer.current)
            elif answer.status == 404:
                operation.end(Outcome.REFUSED, None)
            else:
                operation.end(Outcome.DONE)
            return answer

    def read(self, register: Register) -> Value:
        """What a register holds: the digest of the bytes that are served."""
        with self.facts.record(register, Operation("read")) as operation:
            answer = self.client.ask("GET", register.path, headers={"Accept": MANIFEST}, wanted=(200, 404))
            held = digest_of(answer.body) if answer.status == 200 else None
            operation.end(Outcome.DONE, held)
            return held

    def put_manifest(self, reference: str, content: bytes, **headers: str) -> Answer:
        headers = {name.replace("_", "-"): value for name, value in headers.items()} | {"Content-Type": MANIFEST}
        return self.client.ask("PUT", self.manifest_url(reference), content, headers, wanted=(201, 412))


def image_manifest(config: bytes, layers: Sequence[bytes], note: str = "") -> bytes:
    """The manifest of these; no other note has the same."""

    def described(media_type: str, data: bytes) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    content = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": described(CONFIG, config),
        "layers": [described(LAYER, layer) for layer in layers],
        "annotations": {"note": note},
    }
    return json.dumps(content).encode()


def shared_layer(number: int) -> bytes:
    return random.Random(number).randbytes(10_000 + 9_000 * number)  # noqa: S311 - content, not a secret


def push(desk: Desk, count: int) -> None:
    """An image under a tag of its own; one of its layers is often there."""
    layers = [desk.chance.randbytes(desk.chance.randint(1, 40_000)), shared_layer(desk.chance.randrange(SHARED))]
    config = json.dumps({"by": desk.number, "count": count, "n": desk.chance.random()}).encode()
    manifest, tag = image_manifest(config, layers), f"v{desk.number}-{count}"

    def attempt() -> None:
        for data in (*layers, config):
            desk.upload(data)
        operation = Operation("put", digest_of(manifest))
        desk.write(Register.tag(desk.name, tag), operation, lambda: desk.put_manifest(tag, manifest))
        desk.facts.manifest(desk.name, digest_of(manifest))

    desk.insist(attempt)


class ChunkedPush:
    """One blob in chunks; each request comes from another address, so perhaps to another node."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._data = desk.chance.randbytes(desk.chance.randint(CHUNK, 6 * CHUNK))
        self._digest = digest_of(self._data)
        self._location = ""
        self._offset = 0
        self._committing = False  # a commit was sent, so the session may have ended well

    def attempt(self) -> None:
        if self._location and not self._committing:
            self._resume()
        if not self._location:
            self._location = self._desk.begin()
        while self._offset < len(self._data):
            self._send_chunk()
        # A commit whose answer was lost is asked for again as it was: that must be enough.
        self._committing = True
        self._desk.client.move()
        self._desk.client.ask("PUT", f"{self._location}&digest={self._digest}", b"", wanted=(201,))
        self._desk.facts.blob(self._desk.name, self._digest)

    def _send_chunk(self) -> None:
        self._desk.client.move()
        chunk = self._data[self._offset : self._offset + CHUNK]
        span = {"Content-Range": f"{self._offset}-{self._offset + len(chunk) - 1}"}
        self._stands(self._desk.client.ask("PATCH", self._location, chunk, span, wanted=(202,)))

    def _resume(self) -> None:
        """Ask where the session stands; without one, the upload begins anew."""
        self._desk.client.move()
        acknowledged = self._offset
        answer = self._desk.client.ask("GET", self._location, wanted=(204, 404))
        if answer.status == 204 and answer.position >= acknowledged:
            self._stands(answer)
            return
        if acknowledged:
            there = answer.position if answer.status == 204 else "no session"
            self._desk.facts.lost(f"{acknowledged} bytes of {self._location[:80]} were acknowledged; now: {there}")
        self._location, self._offset = "", 0

    def _stands(self, answer: Answer) -> None:
        self._location, self._offset = answer.headers["Location"], answer.position


def chunked_push(desk: Desk, _count: int) -> None:
    desk.insist(ChunkedPush(desk).attempt)


def pull(desk: Desk, _count: int) -> None:
    """The image that was there before: manifest by tag, config, layers; every byte is looked at."""

    def attempt() -> None:
        answer = desk.client.ask("GET", desk.manifest_url("seed"), headers={"Accept": MANIFEST}, wanted=(200, 404))
        if answer.status == 404:
            desk.facts.lost(f"{desk.name}:seed is not there")
            return
        content = json.loads(answer.body)
        for described in (content["config"], *content["layers"]):
            take(described["digest"])

    def take(digest: str) -> None:
        answer = desk.client.ask("GET", desk.blob_url(digest), wanted=(200, 404))
        if answer.status == 404:
            desk.facts.lost(f"{desk.name}@{digest} is not there")
        elif digest_of(answer.body) != digest:
            desk.facts.wrong(f"{desk.name}@{digest}: {len(answer.body)} bytes that do not have this digest")

    desk.insist(attempt)


def move_tag(desk: Desk, count: int) -> None:
    """Compare-and-swap: read a tag that others move too, and point it elsewhere if it still holds that."""
    age = int(time.monotonic() / TAG_AGE)
    register = Register.tag(desk.name, f"t{age}-{desk.chance.randrange(TAGS)}")
    manifest = image_manifest(b"{}", [shared_layer(0)], f"{desk.number}-{count}")

    def attempt() -> None:
        held = desk.read(register)
        condition = {"If_None_Match": "*"} if held is None else {"If_Match": f'"{held}"'}
        operation = Operation("put", digest_of(manifest), held)
        desk.write(register, operation, lambda: desk.put_manifest(register.reference, manifest, **condition))

    desk.insist(attempt)


class Deletion:
    """A manifest and its blob are pushed, deleted, and asked for. A try goes on where the last one stopped."""

    def __init__(self, desk: Desk, count: int) -> None:
        self._desk = desk
        self._config = json.dumps({"by": desk.number, "delete": count, "n": desk.chance.random()}).encode()
        self._manifest = image_manifest(self._config, [])
        self._blob = Register.blob(desk.name, digest_of(self._config))
        self._whole = Register.manifest(desk.name, digest_of(self._manifest))
        self._steps = [self._push_blob, self._push_manifest, self._delete_manifest, self._delete_blob, self._look]

    def attempt(self) -> None:
        while self._steps:
            self._steps[0]()
            del self._steps[0]

    def _push_blob(self) -> None:
        self._desk.put_blob(self._blob, self._config)

    def _push_manifest(self) -> None:
        digest = self._whole.reference
        self._desk.write(
            self._whole, Operation("put", digest), lambda: self._desk.put_manifest(digest, self._manifest)
        )

    def _delete_manifest(self) -> None:
        self._delete(self._whole)

    def _delete_blob(self) -> None:
        self._delete(self._blob)

    def _delete(self, register: Register) -> None:
        self._desk.write(
            register,
            Operation("delete"),
            lambda: self._desk.client.ask("DELETE", register.path, wanted=(202, 404)),
        )

    def _look(self) -> None:
        self._desk.client.move()
        self._desk.read(self._whole)


def delete(desk: Desk, count: int) -> None:
    desk.insist(Deletion(desk, count).attempt)


STEPS: dict[Kind, Callable[[Desk, int], None]] = {
    Kind.PUSH: push,
    Kind.CHUNKED: chunked_push,
    Kind.PULL: pull,
    Kind.TAG: move_tag,
    Kind.DELETE: delete,
}


def seed(desk: Desk, kind: Kind) -> None:
    """What has to be there before the load begins. NotDone."""
    if kind is Kind.PULL:
        config, layers = b'{"seed": true}', [shared_layer(0), shared_layer(SHARED - 1), shared_layer(64)]
        for data in (config, *layers):
            desk.upload(data)
        manifest = image_manifest(config, layers)
        operation = Operation("put", digest_of(manifest))
        desk.write(Register.tag(desk.name, "seed"), operation, lambda: desk.put_manifest("seed", manifest))
    elif kind is Kind.TAG:
        for data in (b"{}", shared_layer(0)):
            desk.upload(data)
