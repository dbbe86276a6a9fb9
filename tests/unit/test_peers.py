"""How a node is asked (cluster/peers.py): itself and nobody else, and whoever has its port by now is survived."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from cluster.local import is_ready
from cluster.peers import UNANSWERED, ask

TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
READY = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready"
FAILING = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno"
_ASK = "import sys; from cluster import local; import ssl; print(local.is_ready(sys.argv[1], ssl.SSLContext()))"


@contextmanager
def saying(answer: bytes) -> Iterator[str]:
    """Somebody who says this to whoever comes first; the URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)

        def say() -> None:
            with suppress(TimeoutError):  # nobody came, which the test finds out
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        thread = threading.Thread(target=say)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def test_what_a_node_says_is_heard_whatever_its_status_is() -> None:
    for answer, heard in ((READY, (200, b"ready")), (FAILING, (503, b"no"))):
        with saying(answer) as url:
            assert ask(url, TRUST, timeout=10) == heard


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"", FAILING])
def test_what_is_no_node_is_not_ready(answer: bytes) -> None:
    with saying(answer) as url:
        assert not is_ready(url, TRUST)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/", "127.0.0.1:5000", "http://[", ""])
def test_what_is_no_url_of_a_node_is_not_asked(url: str) -> None:
    with pytest.raises(UNANSWERED):
        ask(url, TRUST, timeout=10)


def test_a_proxy_of_the_environment_is_not_asked_for_a_node() -> None:
    """It would answer in its place, or not know it: `up` would wait in vain, and nodes that disagree start."""
    with saying(READY) as url:
        environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
        command = [sys.executable, "-c", _ASK, url]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True)
    assert done.stdout == b"True\n"
