"""The application as an HTTP client sees it, without a server: on memory and on the file system driver.

Owns the client, the requests that many tests begin with, and small manifests. No rule of the registry is here.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import falcon
import falcon.testing
import pytest
import yaml
from falcon.testing import Result

from cluster import config
from cluster.api.edge import Edge, Receive, Send
from cluster.app import Application, Parts, create_app
from cluster.auth.access import Authenticator
from cluster.identity import Identity, identify
from cluster.settings import Config
from cluster.storage.driver import Driver, Uploads
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.memory import MemoryDriver, MemoryUploads
from cluster.storage.segments import SegmentUploads
from cluster.storage.threads import Threads

Json = dict[str, Any]
MakeApi = Callable[..., "Api"]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
SECRET = b"the secret of these tests"
UNKNOWN = "sha256:" + "0" * 64


def sha(content: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def descriptor(content: bytes, media_type: str = LAYER, algorithm: str = "sha256", **more: object) -> Json:
    return {"mediaType": media_type, "digest": sha(content, algorithm), "size": len(content), **more}


def encode(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()


def extend(url: str, **query: str) -> str:
    """A URL with more in its query, as a client appends to a Location."""
    return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}" if query else url


class Api(falcon.testing.TestClient):
    """A client of one application, and what lies on its storage."""

    def __init__(self, application: Application, driver: Driver, snapshot: Callable[[], dict[str, bytes]]) -> None:
        super().__init__(_without_background(application.edge))
        self.application = application
        self._driver = driver
        self.snapshot = snapshot
        """Every file on storage, by its path below the registry's directory."""

    def write(self, path: str, content: bytes) -> None:
        """Put a file on storage, as another registry would."""
        falcon.async_to_sync(self._driver.write, path, content)

    def remove(self, path: str) -> None:
        """Remove a file or a directory from storage, as an administrator might."""
        falcon.async_to_sync(self._driver.remove, path)

    def start(self, name: str, **query: str) -> str:
        """The Location of a new upload session."""
        begun = self.post(extend(f"/v2/{name}/blobs/uploads/", **query))
        assert begun.status_code == 202, begun.text
        return str(begun.headers["Location"])

    def append(self, location: str, content: bytes, start: int | None = None) -> str:
        """The Location after a chunk was taken; `start` is told in a Content-Range."""
        headers = {} if start is None else {"Content-Range": f"{start}-{start + len(content) - 1}"}
        sent = self.patch(location, body=content, headers=headers)
        assert sent.status_code == 202, sent.text
        return str(sent.headers["Location"])

    def finish(self, location: str, digest: str, content: bytes = b"", **headers: str) -> Result:
        return self.put(extend(location, digest=digest), body=content, headers=headers)

    def push(self, name: str, content: bytes, algorithm: str = "sha256") -> str:
        """Push a blob in one request; its digest."""
        digest = sha(content, algorithm)
        pushed = self.post(extend(f"/v2/{name}/blobs/uploads/", digest=digest), body=content)
        assert pushed.status_code == 201, pushed.text
        return digest

    def stream(
        self, method: str, url: str, pieces: Sequence[bytes], *, breaks: bool = False, **headers: str
    ) -> Result:
        """Send a body in pieces, without a Content-Length unless it is given; it may break off at its end."""
        path, _, query = url.partition("?")
        how = {} if "Content-Length" in headers else {"Transfer-Encoding": "chunked"}
        scope = _as_a_server_has_it(falcon.testing.create_scope(path, query, method, {**how, **headers}))
        events: list[Json] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        last: Json = {"type": "http.request", "body": b"", "more_body": False}
        if breaks:
            last = {"type": "http.disconnect"}
        receive = iter([*events, last])

        async def next_event() -> Json:
            return next(receive)

        collector = falcon.testing.ASGIResponseEventCollector()
        falcon.async_to_sync(self.application.edge, scope, next_event, collector.collect)
        return Result(collector.body_chunks, falcon.code_to_http_status(collector.status), collector.headers)

    def put_manifest(
        self, name: str, reference: str, value: Json | bytes, media_type: str | None = None, **headers: str
    ) -> Result:
        """PUT a manifest with the type that it says it has."""
        content = value if isinstance(value, bytes) else encode(value)
        if media_type is None:
            media_type = MANIFEST if isinstance(value, bytes) else value.get("mediaType", MANIFEST)
        return self.put(
            f"/v2/{name}/manifests/{reference}", body=content, headers={"Content-Type": media_type, **headers}
        )

    def push_image(self, name: str, reference: str | None = None, **more: object) -> bytes:
        """Push an image of one config and one layer, by its digest if no tag is given; the manifest's bytes."""
        value = self.image(name, **more)
        content = encode(value)
        answer = self.put_manifest(name, reference or sha(content), value)
        assert answer.status_code == 201, answer.text
        return content

    def image(self, name: str, **more: object) -> Json:
        """An image manifest whose blobs have been pushed."""
        for content in (b"{}", b"layer"):
            self.push(name, content)
        layers = [descriptor(b"layer")]
        image = {"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(b"{}", CONFIG), "layers": layers}
        return {**image, **more}


def _as_a_server_has_it(scope: Json) -> Json:
    """Falcon's test scopes hold iterators, which can be read once; a server's hold lists."""
    once = {key: list(scope[key]) for key in ("client", "server") if key in scope}
    return {**scope, **once, "headers": [tuple(header) for header in scope["headers"]]}


def _without_background(edge: Edge) -> Callable[..., Awaitable[None]]:
    """The application without its tasks beside requests: the probe of storage would write while a test looks."""

    async def app(scope: Json, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await edge(_as_a_server_has_it(scope), receive, send)
            return
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})

    return app


def index(*manifests: Json, media_type: str = INDEX, **more: object) -> Json:
    return {"schemaVersion": 2, "mediaType": media_type, "manifests": list(manifests), **more}


def errors(answer: Result) -> list[Json]:
    """The entries of an error answer, which must be in the form of the specification."""
    assert answer.headers["Content-Type"] == "application/json", answer.content[:500]
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    body = json.loads(answer.content)
    assert list(body) == ["errors"]
    assert body["errors"]
    for entry in body["errors"]:
        assert set(entry) <= {"code", "message", "detail"}
        assert entry["code"].isupper()
        assert entry["message"]
    return list(body["errors"])


def refusal(answer: Result) -> tuple[int, str]:
    """Status and first code of an error answer."""
    return answer.status_code, errors(answer)[0]["code"]


def quoted(digest: str) -> str:
    return quote(digest, safe="")


def _files(root: str) -> dict[str, bytes]:
    found = {}
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, root)] = file.read()
    return found


def _merge(base: Json, over: Mapping[str, Any]) -> Json:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


@functools.cache
def _settings(text: str) -> Config:
    """The same object for the same text: most tests have the same."""
    return config.parse(text, {}).config


@functools.cache
def _identity() -> Identity:
    """The same for every test: a fingerprint is slow to make, on purpose."""
    return identify(Config(), [SECRET])


@pytest.fixture(params=["memory", "filesystem"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@dataclass(frozen=True)
class Storage:
    """The two ports of storage, and every file that lies there, by its path below the registry's directory."""

    driver: Driver
    uploads: Uploads
    snapshot: Callable[[], dict[str, bytes]]

    def api(self, *, authenticator: Authenticator | None = None, **sections: Any) -> Api:
        """A client of an application on this storage whose configuration has these sections."""
        base = {"version": 0.1, "storage": {"inmemory": {}, "delete": {"enabled": True}}}
        settings = _settings(yaml.safe_dump(_merge(base, sections)))
        parts = Parts(self.driver, self.uploads, [SECRET], identity=_identity(), authenticator=authenticator)
        return Api(create_app(settings, parts), self.driver, self.snapshot)


@contextmanager
def empty_storage(backend: str) -> Iterator[Storage]:
    """Storage of this kind that holds nothing."""
    if backend == "memory":
        memory = MemoryDriver()
        yield Storage(memory, MemoryUploads(memory), lambda: dict(memory.files))
        return
    threads = Threads(8, 10.0)
    # What is synced here need not survive anything: in memory it costs nothing.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as root:
        files = FilesystemDriver(root, threads)
        yield Storage(files, SegmentUploads(root, files, threads), lambda: _files(root))
        threads.close()


@pytest.fixture
def make_api(backend: str) -> Iterator[MakeApi]:
    """Makes clients of applications whose configuration has these sections; they share their storage."""
    with empty_storage(backend) as storage:
        yield storage.api


@pytest.fixture
def api(make_api: MakeApi) -> Api:
    """A client of an application with deletes enabled and nothing else changed."""
    return make_api()
