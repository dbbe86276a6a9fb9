"""Storage that fails and bugs of our own: still the specification's JSON, and nothing told that helps nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import falcon
import pytest

from cluster.errors import StorageError
from cluster.storage.driver import LockTimeout, StorageFull, StorageTimeout
from cluster.storage.memory import MemoryDriver, MemoryReader, MemoryUploads
from tests.api.conftest import UNKNOWN, Api, Storage, encode, errors, index, refusal, sha

SECRET_PLACE = "/srv/registry/docker/registry/v2/blobs"


class BreakableDriver(MemoryDriver):
    """Memory whose every call fails once there is an error to fail with."""

    error: Exception | None = None

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    async def probe(self) -> None:
        self._check()

    async def read(self, path: str) -> bytes:
        self._check()
        return await super().read(path)

    async def write(self, path: str, content: bytes) -> None:
        self._check()
        await super().write(path, content)

    async def stamp(self, path: str) -> int:
        self._check()
        return await super().stamp(path)

    async def remove(self, path: str) -> None:
        self._check()
        await super().remove(path)

    @asynccontextmanager
    async def lock(self, path: str, timeout: float) -> AsyncIterator[None]:
        self._check()
        async with super().lock(path, timeout):
            yield


class LockedDriver(MemoryDriver):
    """Memory whose locks are held by somebody who does not let go."""

    @asynccontextmanager
    async def lock(self, path: str, timeout: float) -> AsyncIterator[None]:
        raise LockTimeout(f"{path} was locked by another writer for {timeout:g} s")
        yield


class BrokenReader(MemoryReader):
    """A blob whose bytes can be read up to some place."""

    def __init__(self, content: bytes, good: int) -> None:
        super().__init__(content)
        self.closed = False
        self._good = good

    async def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        for offset in range(start, stop, 2):
            if offset >= self._good:
                raise StorageError(f"Input/output error: {SECRET_PLACE}")
            yield b"xx"

    def close(self) -> None:
        self.closed = True


class BadSectors(MemoryDriver):
    """Memory whose blobs can be opened, and not read to their end."""

    good = 0
    reader: BrokenReader | None = None

    async def open(self, path: str) -> MemoryReader:
        self.reader = BrokenReader(await self.read(path), self.good)
        return self.reader


def api_on(driver: MemoryDriver) -> Api:
    return Storage(driver, MemoryUploads(driver), lambda: dict(driver.files)).api()


@pytest.fixture
def driver() -> BreakableDriver:
    return BreakableDriver()


@pytest.fixture
def filled(driver: BreakableDriver) -> Api:
    """One image, `v1` in `a`, on storage that does not fail yet."""
    api = api_on(driver)
    api.push_image("a", "v1")
    return api


REQUESTS = [
    ("GET", "/v2/_catalog", b""),
    ("GET", "/v2/a/tags/list", b""),
    ("GET", "/v2/a/manifests/v1", b""),
    ("GET", f"/v2/a/manifests/{UNKNOWN}", b""),
    ("GET", f"/v2/a/blobs/{sha(b'layer')}", b""),
    ("GET", f"/v2/a/referrers/{UNKNOWN}", b""),
    ("POST", "/v2/a/blobs/uploads/", b""),
    ("POST", f"/v2/a/blobs/uploads/?digest={sha(b'new')}", b"new"),
    ("POST", f"/v2/b/blobs/uploads/?mount={sha(b'layer')}&from=a", b""),
    ("PUT", "/v2/a/manifests/v2", encode(index())),
    ("DELETE", "/v2/a/manifests/v1", b""),
    ("DELETE", f"/v2/a/blobs/{sha(b'layer')}", b""),
]
requests = pytest.mark.parametrize(("method", "path", "body"), REQUESTS)


@requests
@pytest.mark.parametrize(
    ("error", "word"), [(StorageError, "error"), (StorageFull, "full"), (StorageTimeout, "does not answer")]
)
def test_storage_that_fails_is_503_with_a_time_to_come_again(
    filled: Api, driver: BreakableDriver, method: str, path: str, body: bytes, error: type[StorageError], word: str
) -> None:
    driver.error = error(f"Input/output error: {SECRET_PLACE}")
    answer = filled.simulate_request(method, path, body=body)
    assert refusal(answer) == (503, "UNAVAILABLE")
    assert int(answer.headers["Retry-After"]) > 0
    assert word in errors(answer)[0]["detail"]
    assert SECRET_PLACE not in answer.text
    driver.error = None
    assert filled.get("/v2/a/manifests/v1").status_code == 200, "works again when storage does"


@requests
def test_a_bug_is_500_in_the_form_of_the_specification_and_tells_nothing_of_itself(
    filled: Api, driver: BreakableDriver, method: str, path: str, body: bytes
) -> None:
    driver.error = RuntimeError(f"a bug that knows of {SECRET_PLACE}")
    answer = filled.simulate_request(method, path, body=body)
    assert refusal(answer) == (500, "UNKNOWN")
    assert SECRET_PLACE not in answer.text
    assert "Traceback" not in answer.text
    assert filled.get("/v2/").status_code == 200


@pytest.mark.parametrize("error", [StorageError("Input/output error"), RuntimeError("a bug")])
def test_the_log_says_which_request_has_failed(
    filled: Api, driver: BreakableDriver, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    driver.error = error
    answer = filled.get("/v2/a/manifests/v1")
    (line,) = (record.getMessage() for record in caplog.records if record.name == "cluster.api.errors")
    assert f"GET /v2/a/manifests/v1, request {answer.headers['X-Request-Id']}" in line


def test_a_tag_that_somebody_holds_is_503_for_writers_and_served_to_readers() -> None:
    """Rule T2: safety before progress, and only for this tag."""
    api = api_on(LockedDriver())
    image = api.push_image("a")
    api.write("repositories/a/_manifests/tags/v1/current/link", sha(image).encode())
    put = api.put_manifest("a", "v1", image)
    deleted = api.delete("/v2/a/manifests/v1")
    for answer in (put, deleted):
        assert refusal(answer) == (503, "UNAVAILABLE")
        assert int(answer.headers["Retry-After"]) > 0
        assert "v1" in errors(answer)[0]["detail"]
    assert api.get("/v2/a/manifests/v1").content == image


@pytest.mark.parametrize("span", [None, "bytes=1-3", "bytes=0-1,3-4"])
def test_a_blob_whose_first_bytes_cannot_be_read_is_503(span: str | None) -> None:
    driver = BadSectors()
    api = api_on(driver)
    api.push("a", b"content")
    answer = api.get(f"/v2/a/blobs/{sha(b'content')}", headers={"Range": span} if span else {})
    assert refusal(answer) == (503, "UNAVAILABLE")
    assert int(answer.headers["Retry-After"]) > 0
    assert not {"cache-control", "etag", "content-range", "docker-content-digest"} & set(answer.headers)
    assert SECRET_PLACE not in answer.text
    assert driver.reader is not None and driver.reader.closed


def test_a_blob_that_breaks_off_later_ends_short_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    driver = BadSectors()
    driver.good = 4
    api = api_on(driver)
    api.push("a", b"content")
    answer = api.get(f"/v2/a/blobs/{sha(b'content')}")
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"xxxx", "7")
    (line,) = (record.getMessage() for record in caplog.records if record.name == "cluster.api.edge")
    assert "cut short after 4 bytes" in line and SECRET_PLACE in line and sha(b"content") in line
    assert driver.reader is not None and driver.reader.closed


@pytest.mark.parametrize("error", [StorageError("x"), StorageTimeout("x")])
def test_a_node_whose_storage_fails_is_alive_says_so_and_is_taken_out_after_a_while(
    filled: Api, driver: BreakableDriver, error: StorageError
) -> None:
    def probe() -> None:
        falcon.async_to_sync(filled.application.health.probe)

    assert filled.get("/healthz").json["status"] == "ok"
    driver.error = error
    for ready in (True, True, False):
        probe()
        report = filled.get("/healthz")
        assert (report.status_code, report.json["ready"]) == (503, ready)
        assert filled.get("/readyz").status_code == (200 if ready else 503)
        assert filled.get("/livez").status_code == 200
    driver.error = None
    probe()
    assert filled.get("/healthz").json["status"] == "ok"
    assert filled.get("/readyz").status_code == 200
