"""One client of a registry, as plain HTTP: sends, times every request, and says what an answer means.

Knows no retries and no images (operations.py does). Its connections come from addresses of 127.0.0.0/8 that it
chooses, because a balancer that is sticky by address would send all clients of one machine to one node.
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import select
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cluster.drill.meter import Meter

TIMEOUT = 30.0
"""Seconds without a byte after which a client gives up. Longer than a node waits for its storage."""
ADDRESSES = 12
"""Addresses that one client comes from, one after the other."""


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def position(self) -> int:
        """How many bytes of an upload it says there are."""
        last = self.headers["Range"].partition("-")[2]
        return int(last) + 1 if last != "0" else 0

    @property
    def current(self) -> str | None:
        """What a tag holds, as the refusal of a compare-and-swap tells."""
        found: Any = json.loads(self.body)["errors"][0]["detail"]["current"]
        return None if found is None else str(found)


class NotDone(Exception):
    """A try that did not help; the next one may."""


class Unanswered(NotDone):
    """The connection broke, or nothing came in time: what was asked for may have been done, or not."""


class Unasked(Unanswered):
    """Nobody listened: nothing was done."""


class Refused(NotDone):
    """An answer that is not one of those that were wanted."""

    def __init__(self, what: str, answer: Answer) -> None:
        super().__init__(f"{what}: {answer.status} {answer.body[:200]!r}")
        self.answer = answer


def addresses_of(number: int) -> list[str]:
    """Addresses of this machine that are no other client's, up to 250 clients."""
    return [f"127.1.{number % 250}.{n + 1}" for n in range(ADDRESSES)]


class Client:
    """One person's requests, one after the other. Not for two threads."""

    def __init__(self, endpoint: str, number: int, meter: Meter, timeout: float = TIMEOUT) -> None:
        address = urlsplit(endpoint)
        self._host, self._port = address.hostname or "", address.port
        self._sources = itertools.cycle(addresses_of(number))
        self._connection: http.client.HTTPConnection | None = None
        self._timeout = timeout
        self._meter = meter

    def move(self) -> None:
        """Go on from another address, over another connection: perhaps to another node."""
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def ask(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        wanted: Collection[int],
    ) -> Answer:
        """One request. Unanswered, or Refused when the status is none that is wanted: both count as failed."""
        what, began = f"{method} {target[:100]}", time.monotonic()
        failure: str | None = what
        try:
            answer = self._exchange(method, target, body, dict(headers or {}))
            if answer.status not in wanted:
                raise Refused(what, answer)
            failure = None
            return answer
        except (OSError, http.client.HTTPException) as error:
            self.close()
            failure = f"{what}: {error!r}"
            raise (Unasked if isinstance(error, ConnectionRefusedError) else Unanswered)(failure) from error
        except Refused as error:
            failure = str(error)
            raise
        finally:
            self._meter.request(began, time.monotonic(), failure)

    def _exchange(self, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = self._connected()
        if body is not None:
            headers.setdefault("Content-Type", "application/octet-stream")
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())

    def _connected(self) -> http.client.HTTPConnection:
        connection = self._connection
        # As every client does: what the server has closed meanwhile is not used again.
        if connection is not None and connection.sock and select.select([connection.sock], [], [], 0)[0]:
            connection.close()
        if connection is None:
            source = (next(self._sources), 0)
            connection = http.client.HTTPConnection(
                self._host, self._port, timeout=self._timeout, source_address=source
            )
            self._connection = connection
        return connection
