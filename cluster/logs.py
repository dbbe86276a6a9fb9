"""Logs: what the program has to say (stderr), and one line for each request (stdout), as text or as JSON.

No secret gets here: upload tokens are cut out of URLs, and headers that carry credentials are never read.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus

from cluster.api.edge import Record
from cluster.errors import RegistryError
from cluster.outlet import Outlet

_LEVELS = {"error": logging.ERROR, "warn": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
_FLUSH = 0.1  # seconds a line may wait for others
_BUFFER = 64 * 1024  # bytes that wait for others at most
_LONGEST = 2048  # bytes that a line holds of a path, a query or a header
_HIDDEN = ("_state", "password", "refresh_token", "access_token", "token")
_UNPRINTABLE = re.compile(r'[^\x20-\x7e]|["\\]')


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, msg, and the fields of `log.fields`."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self._fields = dict(fields)

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
            "logger": record.name,
            "pid": record.process,
            **self._fields,
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """`time=... level=... msg=...`, as Distribution has it."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self._fields = "".join(f" {key}={value}" for key, value in fields.items())

    def format(self, record: logging.LogRecord) -> str:
        when, level = _rfc3339(record.created), record.levelname.lower()
        text = f"time={when} level={level} msg={json.dumps(record.getMessage())}{self._fields}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def set_up(level: str, formatter: str, fields: Mapping[str, Any]) -> None:
    """Send the program's log to stderr in the form of `log.formatter`."""
    handler = logging.StreamHandler(Outlet(2, "stderr"))
    handler.setFormatter(TextFormatter(fields) if formatter == "text" else JsonFormatter(fields))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])


class AccessLog:
    """One line for each request. Lines go out together, at the latest after a tenth of a second.

    A probe that was told that all is well gets one only where `probes` says so: each balancer asks once a second.
    """

    def __init__(self, formatter: str, fields: Mapping[str, Any], outlet: Outlet, *, probes: bool = False) -> None:
        self._fields = dict(fields)
        self._probes = probes
        self._format = self._text if formatter == "text" else self._json
        self._outlet = outlet
        self._lines: list[bytes] = []
        self._size = 0

    def __call__(self, record: Record) -> None:
        if record.status == 200 and record.scope.get("registry.handler") == "health" and not self._probes:
            return
        line = self._format(record).encode()
        if not self._lines:
            asyncio.get_running_loop().call_later(_FLUSH, self.flush)
        self._lines.append(line)
        self._size += len(line)
        if self._size > _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Let go of what waits for others."""
        lines, self._lines, self._size = self._lines, [], 0
        self._outlet.put(lines)

    def _text(self, record: Record) -> str:
        """Apache's combined form, then the seconds taken and the request id."""
        client, user = _client(record.scope) or "-", _user(record.scope)
        referer, agent = _referer(record.headers.get(b"referer")), _quoted(record.headers.get(b"user-agent"))
        return (
            f'{client} - {user} [{_clf_time()}] "{record.scope["method"]} {_target(record.scope)} '
            f'HTTP/{record.scope["http_version"]}" {record.status} {record.sent} "{referer}" "{agent}" '
            f"{record.seconds:.6f} {record.request_id}\n"
        )

    def _json(self, record: Record) -> str:
        entry = {
            "time": _rfc3339(time.time()),
            "level": "info",
            "msg": "response completed",
            "http.request.id": record.request_id,
            "http.request.method": record.scope["method"],
            "http.request.uri": _target(record.scope),
            "http.request.remoteaddr": _client(record.scope),
            "http.request.useragent": _cut(record.headers.get(b"user-agent", b"")),
            "http.request.read": record.received,
            "http.response.status": record.status,
            "http.response.written": record.sent,
            "http.response.duration": round(record.seconds, 6),
            **self._fields,
        }
        if user := record.scope.get("registry.user"):  # who was believed; what was sent is nobody's business
            entry["auth.user.name"] = user
        if (error := record.scope.get("registry.error")) is not None:
            entry |= _reason(error)
        return json.dumps(entry, default=str) + "\n"


def _client(scope: Mapping[str, Any]) -> str:
    """Whose request it was, as a trusted proxy tells it; who held the connection where nobody was asked."""
    told: str | None = scope.get("registry.client")
    return told if told is not None else (scope.get("client") or ("",))[0] or ""


def _reason(error: RegistryError) -> dict[str, str]:
    """Why a request was refused, as Distribution has it: what the client was told, which holds no secret."""
    reason = {"err.code": error.code.lower().replace("_", " "), "err.message": _cut_text(error.message)}
    if (detail := error.detail) is not None:
        reason["err.detail"] = _cut_text(detail if isinstance(detail, str) else json.dumps(detail, default=str))
    return reason


def _target(scope: Mapping[str, Any]) -> str:
    """The request's path and query, without what would let a reader of the log go on with somebody's upload."""
    path = scope.get("raw_path") or b""
    return _without_secrets(_quoted(path.partition(b"?")[0]), _quoted(scope.get("query_string")))


def _referer(value: bytes | None) -> str:
    """The page that led here; Go's client, when it is redirected, tells the URL that it asked, with its query."""
    page, _, query = _quoted(value).partition("?")
    return _without_secrets(page, query)


def _without_secrets(target: str, query: str) -> str:
    return f"{target}?{'&'.join(map(_hide, query.split('&')))}" if query else target


def _user(scope: Mapping[str, Any]) -> str:
    """Who was believed, as one word."""
    name: str = scope.get("registry.user") or "-"
    return _quoted(name.encode()).replace(" ", "\\x20")


def _hide(parameter: str) -> str:
    """A parameter of a query, without what lets its bearer do something, however its name was spelt."""
    name, equals, _ = parameter.partition("=")
    return f"{name}=<hidden>" if equals and unquote_plus(name).lower() in _HIDDEN else parameter


def _quoted(value: bytes | None) -> str:
    text = _cut(value or b"")
    return text if not _UNPRINTABLE.search(text) else _UNPRINTABLE.sub(lambda char: f"\\x{ord(char[0]):02x}", text)


def _cut(value: bytes) -> str:
    """What a client sent, as far as it is logged: the rest would cost all other requests their time."""
    return value.decode("latin-1") if len(value) <= _LONGEST else f"{value[:_LONGEST].decode('latin-1')}..."


def _cut_text(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


_last_second = 0
_last_time = ""


def _clf_time() -> str:
    """Now in the form of Apache's logs; formatted once a second."""
    global _last_second, _last_time  # noqa: PLW0603 - a cache of one line, rebuilt from the clock
    second = int(time.time())
    if second != _last_second:
        _last_second = second
        _last_time = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(second))
    return _last_time


def _rfc3339(seconds: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03d}Z"
