"""Nodes that speak TLS, with certificates of `registry-cluster certs`; clients that trust them, and load of such.

Makes no certificate itself.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import threading
from collections.abc import Mapping
from typing import Any

import httpx

from cluster import certificates
from tests.support.process import Config, Node, eventually, merge


def make_certificates(directory: str | os.PathLike[str], *addresses: str) -> str:
    """An authority, and a certificate for 127.0.0.1 and these addresses; the directory."""
    path = os.fspath(directory)
    certificates.create(path, certificates.subject([], ["127.0.0.1", *addresses]))
    return path


def trusting(directory: str, **settings: Any) -> ssl.SSLContext:
    """What a client has that trusts the authority of a directory alone."""
    context = ssl.create_default_context(cafile=f"{directory}/{certificates.CA}")
    for name, value in settings.items():
        setattr(context, name, value)
    return context


class TlsNode(Node):
    """A node with the certificate of a directory."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        certs: str,
        config: Config | None = None,
        *,
        tls: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        self.certs = certs
        pair = {"certificate": f"{certs}/{certificates.SERVER}", "key": f"{certs}/{certificates.SERVER_KEY}"}
        super().__init__(directory, merge({"http": {"tls": {**pair, **(tls or {})}}}, config or {}), **more)

    @property
    def url(self) -> str:
        return f"https://{self.host}"

    def _answers(self) -> bool:
        """Whether it is ready; a node that wants to know its clients first has answered by saying so."""
        try:
            with httpx.Client(verify=trusting(self.certs), timeout=2, trust_env=False) as client:
                return client.get(self.url + self.probe).status_code == 200
        except httpx.ReadError as error:
            return "certificate required" in str(error).lower().replace("_", " ")
        except httpx.TransportError:
            return False


def push(http: httpx.Client, data: bytes, name: str = "team/app") -> str:
    """A blob in pieces of no announced size; its digest."""
    location = http.post(f"/v2/{name}/blobs/uploads/").headers["Location"]
    pieces = (data[start : start + 100_000] for start in range(0, len(data), 100_000))
    answer = http.patch(location, content=pieces)
    assert answer.status_code == 202, answer.text
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    done = http.put(httpx.URL(answer.headers["Location"]).copy_merge_params({"digest": digest}))
    assert done.status_code == 201, done.text
    return digest


class Load:
    """Clients that push and pull without a pause, half of them on new connections each time; nothing is retried."""

    def __init__(self, url: str, certs: str, clients: int = 4, auth: tuple[str, str] | None = None) -> None:
        self.good = 0
        self.failed: list[str] = []
        self._url = url
        self._certs = certs
        self._auth = auth
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._loop, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.until_good(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def until_good(self, more: int) -> None:
        wanted = self.good + more
        eventually(lambda: self.good >= wanted, 30, f"{more} good answers; failed: {self.failed[:3]}")

    def _loop(self, number: int) -> None:
        headers = {"Connection": "close"} if number % 2 else {}
        with httpx.Client(
            base_url=self._url,
            verify=trusting(self._certs),
            auth=self._auth,
            headers=headers,
            trust_env=False,
            timeout=20,
        ) as client:
            while not self._over.is_set():
                data = os.urandom(3000)
                try:
                    assert client.get(f"/v2/team/app/blobs/{push(client, data)}").content == data
                    self.good += 1
                except (httpx.HTTPError, AssertionError, KeyError) as error:
                    self.failed.append(repr(error))
