"""A small protocol client: pushes blobs, manifests and tags, streams a large blob up, discards one coming in.

It owns the wire where content is set up or one transfer is timed; load.py owns many requests at once.
"""

import hashlib
import http.client
import json
import os
import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

Address = tuple[str, int]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
# What Go's HTTP client, and so most stock clients, send as one chunk.
CHUNK = 32 * 1024


class ProtocolError(Exception):
    """The registry answered something that makes the figures meaningless."""


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def request_head(address: Address, method: str, path: str, *headers: str) -> bytes:
    """A request without a body, as it goes over the wire."""
    host = f"{address[0]}:{address[1]}"
    usual = (f"{method} {path} HTTP/1.1", f"Host: {host}", "User-Agent: bench", f"Accept: {MANIFEST}")
    lines = (*usual, *headers, "", "")
    return "\r\n".join(lines).encode()


class Payload:
    """Random bytes of a given size, framed once as a chunked body so that sending costs the sender little."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.framed = bytearray()
        for offset in range(0, size, CHUNK):
            length = min(CHUNK, size - offset)
            self.framed += b"%x\r\n" % length + os.urandom(length) + b"\r\n"
        self.framed += b"0\r\n\r\n"
        self.digest = ""
        self.renew()

    def renew(self) -> None:
        """Become a blob that nobody has seen, by changing a few bytes of the first chunk."""
        start = self.framed.index(b"\r\n") + 2
        self.framed[start : start + 16] = os.urandom(16)
        self.digest = self._digest()

    def _digest(self) -> str:
        sha, view, at, left = hashlib.sha256(), memoryview(self.framed), 0, self.size
        while left:
            length = min(CHUNK, left)
            at += len(b"%x\r\n" % length)
            sha.update(view[at : at + length])
            at += length + 2
            left -= length
        return "sha256:" + sha.hexdigest()


class Client:
    """One kept-alive connection to a registry."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.http = http.client.HTTPConnection(*address, timeout=300)

    def close(self) -> None:
        self.http.close()

    def ask(
        self, method: str, path: str, want: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[http.client.HTTPMessage, bytes]:
        """Send one request; the headers and the body of the answer, whose status must be `want`."""
        self.http.request(method, path, body=body or None, headers={"Accept": MANIFEST, **(headers or {})})
        return self.answer(method, path, want)

    def push_blob(self, name: str, data: bytes) -> str:
        digest = digest_of(data)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(data))}
        self.ask("PUT", finish(self.start(name), digest), 201, data, headers)
        return digest

    def push_manifest(self, name: str, reference: str, manifest: bytes) -> None:
        path = f"/v2/{name}/manifests/{reference}"
        self.ask("PUT", path, 201, manifest, {"Content-Type": MANIFEST})

    def start(self, name: str) -> str:
        """Open an upload session and return its location."""
        headers, _ = self.ask("POST", f"/v2/{name}/blobs/uploads/", 202, headers={"Content-Length": "0"})
        return location(headers)

    def open_chunked(self, path: str) -> socket.socket:
        """Send the head of a chunked PATCH; the caller writes the body to the socket."""
        self.http.putrequest("PATCH", path)
        self.http.putheader("Content-Type", "application/octet-stream")
        self.http.putheader("Transfer-Encoding", "chunked")
        self.http.endheaders()
        sock: socket.socket = self.http.sock
        return sock

    def push_stream(self, name: str, payload: Payload) -> float:
        """POST, one chunked PATCH, PUT, as stock clients push; the seconds of all three together."""
        began = time.perf_counter()
        path = self.start(name)
        self.open_chunked(path).sendall(payload.framed)
        headers, _ = self.answer("PATCH", path, 202)
        self.ask("PUT", finish(location(headers), payload.digest), 201, headers={"Content-Length": "0"})
        return time.perf_counter() - began

    def answer(self, method: str, path: str, want: int) -> tuple[http.client.HTTPMessage, bytes]:
        """The headers and the body of the answer, whose status must be `want`."""
        response = self.http.getresponse()
        body = response.read()
        if response.status != want:
            raise ProtocolError(f"{method} {path}: {response.status}, wanted {want}: {body[:300]!r}")
        return response.headers, body


def location(headers: http.client.HTTPMessage) -> str:
    """The `Location` as something to send in a request line; it may be absolute or relative."""
    parts = urlsplit(headers["Location"])
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def finish(path: str, digest: str) -> str:
    return f"{path}{'&' if '?' in path else '?'}digest={digest}"


def image(config: str, layers: Mapping[str, int], config_size: int) -> bytes:
    """An OCI image manifest over blobs that are there already."""

    def descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
        return {"mediaType": kind, "digest": digest, "size": size}

    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, config, config_size),
            "layers": [descriptor(LAYER, digest, size) for digest, size in layers.items()],
        }
    ).encode()


def fetch_discarding(address: Address, path: str, size: int) -> float:
    """GET a large body and throw it away inside the kernel; the seconds from connecting to the last byte."""
    buffer = bytearray(64 * 1024)
    began = time.perf_counter()
    with socket.create_connection(address, timeout=300) as sock:
        sock.sendall(request_head(address, "GET", path))
        head = b""
        while (end := head.find(b"\r\n\r\n")) < 0:
            head += sock.recv(4096) or _cut(path)
        if not head.startswith(b"HTTP/1.1 200"):
            raise ProtocolError(f"GET {path}: {head[:200]!r}")
        left = size - (len(head) - end - 4)
        while left:
            # MSG_TRUNC drops the bytes uncopied, so that the reader is never what is measured.
            left -= sock.recv_into(buffer, min(left, len(buffer)), socket.MSG_TRUNC) or _cut(path)
    return time.perf_counter() - began


def _cut(path: str) -> Any:
    raise ProtocolError(f"GET {path}: the answer was cut short")
