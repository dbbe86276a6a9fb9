"""What one client says to a registry, in the order of real ones, and what it writes down of the answers.

Every request goes through locust's session, so it is in the statistics. A step that does not succeed is tried again
as often as a stock client does it. Chooses nothing: locustfile.py does.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

from locust.contrib.fasthttp import FastHttpSession, LocustBadStatusCode

from cluster.drill.facts import Facts, Register
from cluster.drill.history import Operation, Outcome, Value, Wanted
from cluster.drill.operations import MANIFEST

T = TypeVar("T")

PAUSES = (1.0, 2.0, 4.0)  # seconds before a step is tried again: three times, as `skopeo --retry-times 3`
ROUNDS = 50  # requests that one resumable upload may take before it counts as stuck


class NotDone(Exception):
    """A try that did not help; the next one may."""


class Unanswered(NotDone):
    """The connection broke, or nothing came in time: what was asked for may have been done, or not."""


class Refused(NotDone):
    """An answer that is not one of those that were wanted."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(what)
        self.status = status


class Failed(Exception):
    """A step did not succeed with all its tries, or a promise was broken: a person would see an error."""


@dataclass(frozen=True)
class Request:
    """One that has ended. Times are of the monotonic clock."""

    method: str
    began: float
    ended: float
    failure: str | None


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Upload:
    """A session, as far as it was acknowledged."""

    location: str = ""
    offset: int = 0
    broken_off: bool = False  # the one connection that is to break in it has
    committing: bool = False  # a commit was sent, so the session may have ended well


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Client:
    """One client's requests and steps."""

    def __init__(self, session: FastHttpSession, facts: Facts, told: Callable[[Request], None]) -> None:
        """`told` is told every request when it has ended."""
        self._session = session
        self.facts = facts
        self._told = told
        self.tries = 1
        """The most that any step took since somebody set this to 1."""

    def ask(
        self,
        method: str,
        target: str,
        name: str,
        wanted: Sequence[int] = (200,),
        data: bytes | None = None,
        **headers: str,
    ) -> Answer:
        """One request; `name` is its line in the statistics, an underscore in a header's name a hyphen."""
        what, began, failure = f"{method} {target[:120]}", time.monotonic(), None
        try:
            return self._exchange(what, method, target, name, wanted, data, headers)
        except NotDone as error:
            failure = str(error)
            raise
        finally:
            self._told(Request(method, began, time.monotonic(), failure))

    def _exchange(
        self,
        what: str,
        method: str,
        target: str,
        name: str,
        wanted: Sequence[int],
        data: bytes | None,
        headers: Mapping[str, str],
    ) -> Answer:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        with self._session.request(
            method,
            target,
            name=name,
            data=data,  # type: ignore[arg-type]
            headers={"Accept-Encoding": "identity", **named},
            catch_response=True,
        ) as response:
            status, error = response.status_code, response.request_meta["exception"]
            if not status or (error is not None and not isinstance(error, LocustBadStatusCode)):
                response.failure(error or "no answer")
                raise Unanswered(f"{what}: {error!r}")
            body = response.content or b""
            if status not in wanted:
                response.failure(f"{status} {_code(body)}")
                raise Refused(f"{what}: {status} {body[:300]!r}", status)
            response.success()
            return Answer(status, response.headers or {}, body)

    def insist(self, what: str, attempt: Callable[[], T]) -> T:
        """What `attempt` returns, tried again after each pause. Failed."""
        for number, pause in enumerate((*PAUSES, None), 1):
            self.tries = max(self.tries, number)
            try:
                return attempt()
            except NotDone as error:
                if pause is None:
                    raise Failed(f"{what}: {error}") from error
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    # ------------------------------------------------------------------------------------------------ reads

    def ping(self) -> None:
        """What docker says before anything else."""
        self.ask("GET", "/v2/", "GET /v2/")

    def resolve(self, tag: Register) -> Value:
        """The digest that a tag points to."""
        with self.facts.record(tag, Operation("read")) as read:
            answer = self.ask("HEAD", tag.path, "HEAD tag", (200, 404), Accept=MANIFEST)
            read.end(Outcome.DONE, answer.headers["Docker-Content-Digest"] if answer.status == 200 else None)
            return read.saw

    def content(self, register: Register) -> bytes:
        """A blob or a manifest that was acknowledged and that nobody deletes; every byte is looked at."""
        name = f"GET {register.kind}"
        answer = self.ask("GET", register.path, name, (200, 404), Accept=MANIFEST)
        if answer.status == 404:
            self.facts.lost(f"{register}: was pushed, and a pull was told {answer.body[:200]!r}")
            raise Failed(f"{register} is lost")
        if len(answer.body) < int(answer.headers.get("Content-Length", 0)):
            raise Unanswered(f"{register}: the connection broke after {len(answer.body)} bytes")
        if digest_of(answer.body) != register.reference:
            self.facts.wrong(f"{register}: a pull got {len(answer.body)} bytes of {digest_of(answer.body)}")
            raise Failed(f"{register} has wrong bytes")
        return answer.body

    def exists(self, register: Register) -> bool:
        with self.facts.record(register, Operation("read")) as read:
            answer = self.ask("HEAD", register.path, f"HEAD {register.kind}", (200, 404), Accept=MANIFEST)
            read.end(Outcome.DONE, register.reference if answer.status == 200 else None)
            return answer.status == 200

    def tags(self, name: str) -> list[str]:
        """All tags of a repository, page by page."""
        found: list[str] = []
        target = f"/v2/{name}/tags/list?n=50"
        while target:
            answer = self.ask("GET", target, "GET tags")
            found += json.loads(answer.body)["tags"]
            link = answer.headers.get("Link", "")
            target = link.partition("<")[2].partition(">")[0]
        return found

    # ----------------------------------------------------------------------------------------------- writes

    def push_blob(self, name: str, data: bytes, mount_from: str = "") -> None:
        """As docker does it: ask whether it is there, mount it, or send it in one PATCH, and ask again."""
        register = Register.blob(name, digest_of(data))
        if self.exists(register) or (mount_from and self._mount(register, mount_from)):
            return
        location = self.ask("POST", f"/v2/{name}/blobs/uploads/", "POST upload", (202,)).headers["Location"]
        sent = self.ask("PATCH", location, "PATCH upload", (202,), data, Content_Type="application/octet-stream")
        self._commit(register, sent.headers["Location"])
        self.exists(register)

    def _mount(self, register: Register, source: str) -> bool:
        target = f"/v2/{register.name}/blobs/uploads/?mount={register.reference}&from={source}"
        with self.facts.record(register, Operation("put", register.reference)) as put:
            answer = self.ask("POST", target, "POST mount", (201, 202))
            put.end(Outcome.DONE if answer.status == 201 else Outcome.UNASKED)
        return answer.status == 201

    def _commit(self, register: Register, location: str) -> None:
        target = f"{location}{'&' if '?' in location else '?'}digest={register.reference}"
        put = Operation("put", register.reference)
        self._write(register, put, lambda: self.ask("PUT", target, "PUT upload", (201,), b""))

    def push_in_chunks(self, name: str, data: bytes, chunk: int, upload: Upload) -> None:
        """As a client that resumes: the connection breaks once in mid-chunk; `upload` lives from try to try."""
        register = Register.blob(name, digest_of(data))
        if upload.location and not upload.committing:
            self._find_offset(register, upload)
        if not upload.location:
            begun = self.ask("POST", f"/v2/{name}/blobs/uploads/", "POST upload", (202,))
            upload.location, upload.offset = begun.headers["Location"], 0
        for _ in range(ROUNDS):
            if upload.offset >= len(data) or upload.committing:
                # A commit whose answer was lost is asked for again as it was: that must be enough.
                upload.committing = True
                self._commit(register, upload.location)
                return
            if upload.offset and not upload.broken_off:
                upload.broken_off = True
                self._break_off(upload, data[upload.offset : upload.offset + chunk])
                self._find_offset(register, upload)
            self._send_chunk(register, upload, data[upload.offset : upload.offset + chunk])
        raise Failed(f"{register}: at {upload.offset} of {len(data)} bytes after {ROUNDS} requests")

    def _send_chunk(self, register: Register, upload: Upload, data: bytes) -> None:
        span = f"{upload.offset}-{upload.offset + len(data) - 1}"
        answer = self.ask(
            "PATCH",
            upload.location,
            "PATCH chunk",
            (202, 416),
            data,
            Content_Range=span,
            Content_Type="application/octet-stream",
        )
        if answer.status == 416:  # the bytes of the broken connection arrived meanwhile
            self._find_offset(register, upload)
        else:
            upload.location, upload.offset = answer.headers["Location"], _position(answer)

    def _find_offset(self, register: Register, upload: Upload) -> None:
        """Ask where the session stands; nothing that was acknowledged may be missing."""
        answer = self.ask("GET", upload.location, "GET upload", (204, 404))
        position = _position(answer) if answer.status == 204 else 0
        if position < upload.offset:
            self.facts.lost(f"{register}: an upload had {upload.offset} acknowledged bytes, and has {position}")
            raise Failed(f"acknowledged bytes of {register} are lost")
        if answer.status == 404:
            upload.location = ""
        else:
            upload.location, upload.offset = answer.headers["Location"], position

    def _break_off(self, upload: Upload, data: bytes) -> None:
        """Send half of a chunk, and hang up."""
        address = urlsplit(urljoin(str(self._session.base_url), upload.location))
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        connection = kind(address.hostname or "", address.port, timeout=10)
        try:
            connection.putrequest("PATCH", f"{address.path}?{address.query}")
            connection.putheader("Content-Type", "application/octet-stream")
            connection.putheader("Content-Length", str(len(data)))
            connection.putheader("Content-Range", f"{upload.offset}-{upload.offset + len(data) - 1}")
            connection.endheaders(data[: len(data) // 2])
        except OSError:
            pass  # broken off earlier than we meant to
        finally:
            connection.close()

    def push_manifest(self, tag: Register, manifest: bytes, expected: Value | Wanted = Wanted.ANYTHING) -> bool:
        """Whether the tag points to it now; not, when `expected` is not what it pointed to."""
        content = Register.manifest(tag.name, digest_of(manifest))
        conditions = {} if isinstance(expected, Wanted) else {"If_Match": f'"{expected}"'}
        if expected is None:
            conditions = {"If_None_Match": "*"}
        put = Operation("put", content.reference, expected)
        with self.facts.record(content, Operation("put", content.reference)) as stored:
            answer = self._write(
                tag,
                put,
                lambda: self.ask(
                    "PUT", tag.path, "PUT manifest", (201, 412), manifest, Content_Type=MANIFEST, **conditions
                ),
            )
            if answer.status == 201:
                stored.end(Outcome.DONE)
        return answer.status == 201

    def delete(self, register: Register) -> None:
        """Gone, whether by us or before us (a repeated delete whose first answer was lost)."""
        self._write(
            register,
            Operation("delete"),
            lambda: self.ask("DELETE", register.path, f"DELETE {register.kind}", (202, 404)),
        )

    def _write(self, register: Register, operation: Operation, send: Callable[[], Answer]) -> Answer:
        """Send a write, and put down what the answer tells of it; without a clear one it may have taken place."""
        with self.facts.record(register, operation):
            try:
                answer = send()
            except Refused as error:
                if 400 <= error.status < 500:
                    operation.end(Outcome.UNASKED)
                raise
            if answer.status == 404:
                operation.end(Outcome.REFUSED, None)
            elif answer.status == 412:
                operation.end(Outcome.REFUSED, json.loads(answer.body)["errors"][0]["detail"]["current"])
            else:
                operation.end(Outcome.DONE)
            return answer


def _position(answer: Answer) -> int:
    """How many bytes the answer says an upload has."""
    last = answer.headers["Range"].partition("-")[2]
    return int(last) + 1 if last != "0" else 0


def _code(body: bytes) -> str:
    """The first error code in the spec's JSON; empty when there is none."""
    try:
        return str(json.loads(body)["errors"][0]["code"])
    except (ValueError, LookupError, TypeError):
        return ""
