"""A client that keeps a ledger: what was acknowledged to it, which requests failed, which promises were broken.

Speaks plain HTTP over kept connections, and sends each request to the next URL it knows. Tries nothing twice
(tests/failover/pusher.py does), starts and stops nothing.
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import select
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from cluster.drill.history import Operation, Outcome, Value, Wanted
from tests.support.history import History

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Unanswered(Exception):
    """The connection broke, or nothing came in time: what was asked for may have been done, or not."""


class Unasked(Unanswered):
    """Nobody listened: nothing was done."""


@dataclass(frozen=True)
class Answer:
    """What came back, from the URL that gave it."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    url: str

    @property
    def code(self) -> str:
        """The first error code in the spec's JSON; empty when there is none."""
        try:
            return str(json.loads(self.body)["errors"][0]["code"])
        except (ValueError, LookupError, TypeError):
            return ""

    @property
    def position(self) -> int:
        """How many bytes the answer says an upload has."""
        last = self.headers["Range"].partition("-")[2]
        return int(last) + 1 if last != "0" else 0

    def expect(self, status: int) -> Self:
        if self.status != status:
            raise Refused(self, status)
        return self

    def __str__(self) -> str:
        return f"{self.status} {self.body[:300]!r} from {self.url}"


class Refused(Exception):
    """An answer that is not the one that was wanted."""

    def __init__(self, answer: Answer, wanted: int) -> None:
        super().__init__(f"wanted {wanted}, got {answer}")
        self.answer = answer


@dataclass
class Upload:
    """A session, as far as it was acknowledged."""

    name: str
    location: str
    offset: int = 0
    committing: bool = False  # a commit was sent, so the session may have ended well


@dataclass
class Ledger:
    """What all clients of a test were told. Appending to its lists is safe from any thread."""

    blobs: list[tuple[str, str]] = field(default_factory=list)  # repository, digest
    manifests: list[tuple[str, str]] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)  # sizes
    tags: History = field(default_factory=History)
    pulled: list[str] = field(default_factory=list)
    first_failures: list[tuple[float, str]] = field(default_factory=list)  # when, what: tried again afterwards
    failures: list[str] = field(default_factory=list)  # with all retries
    broken: list[str] = field(default_factory=list)  # promises

    def acknowledged(self) -> int:
        """How many facts."""
        writes = [op for ops in self.tags.operations.values() for op in ops if op.writes]
        done = [op for op in writes if op.outcome is Outcome.DONE]
        return len(self.blobs) + len(self.manifests) + len(self.chunks) + len(done)

    def verify(self, urls: Sequence[str]) -> None:
        """Everything acknowledged is on every node with the right bytes, and every tag is one register."""
        for url in urls:
            with Client([url]) as client:
                for name, digest in self.blobs:
                    client.check(f"/v2/{name}/blobs/{digest}", digest, self)
                for name, digest in self.manifests:
                    client.check(f"/v2/{name}/manifests/{digest}", digest, self)
                for tag in list(self.tags.operations):
                    client.read_tag(*tag.split(":"), self.tags)
        assert self.broken == [], f"{len(self.broken)} broken promises: {self.broken[:5]}"
        self.tags.judge()


class Client:
    """One person's requests, one after the other; as a context manager its connections are closed."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout: float = 20,
        start: int = 0,
        redispatch: bool = False,
        address: str = "127.0.0.1",
    ) -> None:
        """The first request goes to the URL at `start`, each later one to the next.

        `redispatch`: where nobody listens, the next one is asked at once, as a balancer does. `address`: whom a
        balancer sees.
        """
        self._source = (address, 0)
        self._attempts = len(urls) if redispatch else 1
        self._urls = itertools.cycle([*urls[start % len(urls) :], *urls[: start % len(urls)]])
        self._timeout = timeout
        self._connections: dict[str, http.client.HTTPConnection] = {}

    def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request to the next URL, an underscore in a header's name being a hyphen. Unanswered."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            named.setdefault("Content-Type", "application/octet-stream")
        for _ in range(self._attempts - 1):
            try:
                return self._ask(next(self._urls), method, target, body, named)
            except Unasked:
                pass
        return self._ask(next(self._urls), method, target, body, named)

    def _ask(self, url: str, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = self._connection(url)
        try:
            connection.request(method, target, body, headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.msg, answer.read(), url)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            what = f"{method} {target[:120]} to {url}: {error!r}"
            raise (Unasked(what) if isinstance(error, ConnectionRefusedError) else Unanswered(what)) from error

    def _connection(self, url: str) -> http.client.HTTPConnection:
        if url not in self._connections:
            address = urlsplit(url)
            assert address.hostname is not None
            self._connections[url] = http.client.HTTPConnection(
                address.hostname, address.port, timeout=self._timeout, source_address=self._source
            )
        connection = self._connections[url]
        # As every client does: what the server has closed meanwhile is not used again.
        if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
            connection.close()
        return connection

    def begin(self, name: str) -> Upload:
        return Upload(name, self.ask("POST", f"/v2/{name}/blobs/uploads/").expect(202).headers["Location"])

    def patch(self, upload: Upload, data: bytes) -> Answer:
        """Send a chunk; the upload stands where the answer says."""
        span = f"{upload.offset}-{upload.offset + len(data) - 1}"
        answer = self.ask("PATCH", upload.location, data, Content_Range=span)
        if answer.status == 202:
            upload.location, upload.offset = answer.headers["Location"], answer.position
        return answer

    def commit(self, upload: Upload, digest: str, data: bytes | None = None) -> Answer:
        upload.committing = True
        return self.ask("PUT", f"{upload.location}&digest={digest}", data)

    def status(self, upload: Upload) -> Answer:
        """Where the session stands; the upload goes on from there."""
        answer = self.ask("GET", upload.location)
        if answer.status == 204:
            upload.location, upload.offset = answer.headers["Location"], answer.position
        return answer

    def push(self, name: str, data: bytes, chunk: int | None = None) -> str:
        """A blob in chunks, without a second try."""
        upload, step = self.begin(name), chunk or max(len(data), 1)
        for start in range(0, len(data), step):
            self.patch(upload, data[start : start + step]).expect(202)
        digest = digest_of(data)
        self.commit(upload, digest).expect(201)
        return digest

    def pull(self, name: str, digest: str) -> bytes:
        return self.ask("GET", f"/v2/{name}/blobs/{digest}").expect(200).body

    def put_manifest(self, name: str, reference: str, manifest: bytes, **headers: str) -> Answer:
        return self.ask("PUT", f"/v2/{name}/manifests/{reference}", manifest, Content_Type=MANIFEST, **headers)

    def check(self, target: str, digest: str, ledger: Ledger) -> None:
        """See that these bytes are served; what is not goes into the ledger."""
        answer = self.ask("GET", target, Accept=MANIFEST)
        if answer.status != 200:
            ledger.broken.append(f"lost: {target}: {answer}")
        elif digest_of(answer.body) != digest:
            ledger.broken.append(f"wrong bytes: {target} from {answer.url}: {len(answer.body)} of them")

    def read_tag(self, name: str, tag: str, history: History) -> Value:
        with history.record(f"{name}:{tag}", Operation("read")) as operation:
            answer = self.ask("GET", f"/v2/{name}/manifests/{tag}", Accept=MANIFEST)
            operation.note = answer.url
            if answer.status == 404:
                operation.end(Outcome.DONE, None)
            elif answer.status == 200:
                operation.end(Outcome.DONE, digest_of(answer.body))
            return operation.saw

    def write_tag(
        self,
        name: str,
        tag: str,
        manifest: bytes | None,
        history: History,
        expected: Value | Wanted = Wanted.ANYTHING,
    ) -> Answer:
        """Point a tag to a manifest, or (None) delete it; `expected` makes it a compare-and-swap."""
        conditions = {} if expected is Wanted.ANYTHING else {"If_Match": f'"{expected}"'}
        if expected is None:
            conditions = {"If_None_Match": "*"}
        kind, value = ("delete", None) if manifest is None else ("put", digest_of(manifest))
        with history.record(f"{name}:{tag}", Operation(kind, value, expected)) as operation:
            try:
                if manifest is None:
                    answer = self.ask("DELETE", f"/v2/{name}/manifests/{tag}", **conditions)
                else:
                    answer = self.put_manifest(name, tag, manifest, **conditions)
            except Unasked:
                operation.end(Outcome.UNASKED)
                raise
            operation.note = answer.url
            _end(operation, answer)
            return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self._connections:
            self._connections.popitem()[1].close()


def _end(operation: Operation, answer: Answer) -> None:
    """What an answer to a write of a tag tells of it. Any other status leaves open whether it took place."""
    if answer.status in (201, 202):
        operation.end(Outcome.DONE)
    elif answer.status == 404 and operation.kind == "delete":
        operation.end(Outcome.REFUSED, None)
    elif answer.status == 412:
        operation.end(Outcome.REFUSED, json.loads(answer.body)["errors"][0]["detail"]["current"])
