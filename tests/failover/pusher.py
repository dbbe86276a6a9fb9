"""Load: pushes that are tried again a fixed number of times, and crowds of clients.

Writes into a ledger what was acknowledged, what failed on the first try and with all retries, and what an upload
that was resumed must not have lost. Knows HTTP by its client only.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

from tests.failover.client import CONFIG, LAYER, MANIFEST, Client, Ledger, Refused, Unanswered, Upload, digest_of

T = TypeVar("T")

PAUSES = (0.5, 1.0, 2.0)  # seconds before a push is tried again: three times, as `skopeo --retry-times 3`


class Pusher:
    """Pushes images with a fixed number of retries, and writes down all that it is told."""

    def __init__(self, client: Client, ledger: Ledger, pauses: Sequence[float] = PAUSES) -> None:
        self._client = client
        self._ledger = ledger
        self._pauses = pauses

    def push_image(self, name: str, tag: str, layers: Sequence[bytes], chunk: int) -> bytes | None:
        """The manifest; None when the retries did not help."""
        config = json.dumps({"tag": tag, "layers": len(layers)}).encode()
        digests = [self.push_blob(name, data, chunk) for data in (config, *layers)]
        if None in digests:
            return None
        described = [
            {"mediaType": LAYER, "digest": digest, "size": len(data)}
            for digest, data in zip(digests, (config, *layers), strict=True)
        ]
        described[0]["mediaType"] = CONFIG
        content = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described[0], "layers": described[1:]}
        manifest = json.dumps(content).encode()
        if self._insist(lambda: self._put(name, tag, manifest), f"manifest of {name}:{tag}") is None:
            return None
        self._ledger.manifests.append((name, digest_of(manifest)))
        return manifest

    def push_blob(self, name: str, data: bytes, chunk: int) -> str | None:
        """Its digest; None when the retries did not help."""
        digest = digest_of(data)
        upload: list[Upload] = []  # at most one

        def attempt() -> bool:
            if upload and not upload[0].committing:
                self._resume(upload)
            if not upload:
                upload.append(self._client.begin(name))
            if not upload[0].committing:
                self._send(upload[0], data, chunk)
            # A commit whose answer was lost is asked for again as it was: that must be enough.
            self._client.commit(upload[0], digest).expect(201)
            return True

        if self._insist(attempt, f"blob {digest} of {name}") is None:
            return None
        self._ledger.blobs.append((name, digest))
        return digest

    def pull(self, name: str, digest: str) -> None:
        """Read a blob that was acknowledged, and look at every byte."""

        def attempt() -> bytes:
            return self._client.ask("GET", f"/v2/{name}/blobs/{digest}").expect(200).body

        if (data := self._insist(attempt, f"pull of {digest}")) is not None:
            self._ledger.pulled.append(digest)
            if digest_of(data) != digest:
                self._ledger.broken.append(f"wrong bytes: {digest} of {name}")

    def _send(self, upload: Upload, data: bytes, chunk: int) -> None:
        while upload.offset < len(data):
            before = upload.offset
            self._client.patch(upload, data[before : before + chunk]).expect(202)
            self._ledger.chunks.append(upload.offset - before)

    def _resume(self, upload: list[Upload]) -> None:
        """Ask where the session stands; without one, the upload begins anew."""
        acknowledged = upload[0].offset
        answer = self._client.status(upload[0])
        if answer.status == 404 and acknowledged == 0:
            upload.clear()
        elif answer.status != 204:
            self._ledger.broken.append(f"lost: a session with {acknowledged} acknowledged bytes: {answer}")
            upload.clear()
        elif upload[0].offset < acknowledged:
            self._ledger.broken.append(
                f"lost: {acknowledged} bytes were acknowledged, there are {upload[0].offset}"
            )

    def _put(self, name: str, tag: str, manifest: bytes) -> bool:
        self._client.write_tag(name, tag, manifest, self._ledger.tags).expect(201)
        return True

    def _insist(self, attempt: Callable[[], T], what: str) -> T | None:
        """The outcome of a step, tried again after each pause; None when it never came."""
        for pause in (*self._pauses, None):
            try:
                return attempt()
            except (Unanswered, Refused) as error:
                if pause is None:
                    self._ledger.failures.append(f"{what}: {error}")
                    return None
                if pause == self._pauses[0]:
                    self._ledger.first_failures.append((time.monotonic(), f"{what}: {error}"))
                time.sleep(pause)
        return None


class Crowd:
    """Threads that do the same thing again and again; leaving the block ends them, and shows what went wrong."""

    def __init__(self, count: int, step: Callable[[int, int], object]) -> None:
        """`step` gets the number of the thread and of the round."""
        self._step = step
        self._stopping = threading.Event()
        self._errors: list[BaseException] = []
        self.rounds: dict[int, int] = defaultdict(int)
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]

    def _run(self, number: int) -> None:
        try:
            while not self._stopping.is_set():
                self._step(number, self.rounds[number])
                self.rounds[number] += 1
        except BaseException as error:  # shown by the thread that runs the test
            self._errors.append(error)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
