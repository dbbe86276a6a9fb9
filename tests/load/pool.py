"""The connections of one user, for locust: each request is sent once, from an address that a drill may choose.

A balancer that is sticky by address would send all users of one machine to one node, so those of a drill come from
many addresses of 127.0.0.0/8. Knows nothing of what is sent.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import gevent.socket
from geventhttpclient.client import HTTPClient, HTTPClientPool


class UserPool(HTTPClientPool):
    """As any pool, with the `settings` of one; each time that it was closed it goes on from the next address."""

    def __init__(self, settings: dict[str, Any], addresses: Sequence[str] = ()) -> None:
        super().__init__(**settings)
        self._addresses = itertools.cycle(addresses)

    def get_client(self, url: Any) -> HTTPClient:
        is_new = not self.clients
        client = super().get_client(url)
        if is_new:
            connections = client._connection_pool
            # What a client tries again by itself nobody writes down: a conditional PUT would be refused for what it
            # has done itself. This number is used for nothing but that, and there is no setting.
            connections.size = -1
            if address := next(self._addresses, None):
                connections._create_tcp_socket = lambda *kind: _bound(address, *kind)
        return client


def _bound(address: str, *kind: int) -> gevent.socket.socket:
    sock = gevent.socket.socket(*kind)
    sock.bind((address, 0))
    return sock
