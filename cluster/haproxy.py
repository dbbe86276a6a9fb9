"""HAProxy in front of the nodes: its configuration, made from ours, and what can be asked of a running one.

Owns haproxy/haproxy.cfg.j2 and the words of HAProxy's runtime socket. Starts no process and reads no file of the
user's. What a value may look like is in cluster/values.py; here is what no single value shows.
"""

from __future__ import annotations

import csv
import ipaddress
import json
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import jinja2

from cluster.errors import BadRequest, ConfigError, RegistryError, RequestTimeout, Unavailable, Unknown
from cluster.settings import Cluster, Haproxy
from cluster.values import is_host_name

BACKEND: Final = "nodes"
FALLBACK: Final = "unavailable"  # the server that answers when no node is up
_TEMPLATE = "haproxy.cfg.j2"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))
_PACKAGE = Path(__file__).parent


def names_of(settings: Cluster) -> dict[str, str]:
    """The nodes of the configuration with their names: the given ones, else node-1, node-2, ... ConfigError."""
    names = settings.haproxy.names or [f"node-{number}" for number in range(1, len(settings.nodes) + 1)]
    if len(names) != len(settings.nodes) or len(set(names)) != len(names):
        raise ConfigError(
            [f"cluster.haproxy.names: found {', '.join(names)}, wanted a name for each of cluster.nodes"]
        )
    return dict(zip(names, settings.nodes, strict=True))


def render(settings: Cluster, nodes: Mapping[str, str]) -> str:
    """HAProxy's configuration for these nodes, names to URLs. ConfigError where it could not work."""
    haproxy = settings.haproxy
    servers, problems = [], []
    for name, url in ({} if haproxy.dns.name else nodes).items():
        try:
            servers.append(_server(name, url))
        except ValueError as error:
            problems.append(str(error))
    problems += [*_broken_rules(haproxy, servers), *_broken_tls_rules(settings, servers)]
    if problems:
        raise ConfigError(problems)
    http = haproxy.mode == "http"
    tls = _is_tls(haproxy, servers)
    sticky = haproxy.stickiness.enabled
    return (
        _environment()
        .get_template(_TEMPLATE)
        .render(
            haproxy=haproxy,
            servers=servers,
            http=http,
            tls=tls,
            peer=settings.tls,
            proxy=settings.proxyprotocol,
            sticky=not http if sticky is None else sticky,
            resolver=haproxy.dns.name or haproxy.dns.resolver,
            bind=_bind(haproxy.bind),
            expire=_time(haproxy.stickiness.expire),
            errors=_errors(),
            # An abstract socket, which has no file, under a name that is nobody else's: HAProxy itself speaks HTTP
            # there, as it otherwise does not in tcp mode. A client that expects TLS would not understand it.
            fallback="" if http or tls else f"abns@{haproxy.socket}.503",
        )
    )


@dataclass(frozen=True)
class _Server:
    name: str
    address: str  # host:port, as HAProxy writes it
    tls: bool
    host: str  # its host name; empty where it has an address


def _server(name: str, url: str) -> _Server:
    """A node as HAProxy knows it. ValueError says what is wrong with it."""
    if not _NAME.fullmatch(name) or name == FALLBACK:
        raise ValueError(f"node {name!r}: wanted a name of letters, digits, '.', '_' and '-', not {FALLBACK!r}")
    wanted = ValueError(f"node {name}: found {url!r}, wanted a URL such as http://10.0.0.11:5000, without a path")
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
    except ValueError:
        raise wanted from None
    if url.rstrip("/") != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc or port == 0:
        raise wanted
    if parts.scheme not in ("http", "https"):
        raise wanted
    address = _address(host)
    if address is None and not is_host_name(host):
        raise wanted
    port = port or (443 if parts.scheme == "https" else 80)
    return _Server(name, f"{address or host}:{port}", parts.scheme == "https", "" if address else host)


def _address(host: str) -> str | None:
    """An IP address as it stands before a port; None for a host name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.is_unspecified or getattr(address, "scope_id", None):  # HAProxy gives the one a meaning of its own
        return None
    return f"[{address}]" if address.version == 6 else str(address)


def _broken_rules(haproxy: Haproxy, servers: list[_Server]) -> Iterator[str]:
    if not servers and not haproxy.dns.name:
        yield "cluster.nodes: empty, wanted the URLs of the nodes, or cluster.haproxy.dns.name"
    if len({server.address for server in servers}) < len(servers):
        yield "cluster.nodes: two nodes have the same address"
    if haproxy.mode == "tcp" and haproxy.proxies:
        yield "cluster.haproxy.mode: found tcp, wanted http: what cluster.haproxy.proxies tell is in headers"
    if haproxy.dns.name and haproxy.backup:
        yield "cluster.haproxy.backup: servers that come from DNS have no order"
        return
    names, backup = {server.name for server in servers}, set(haproxy.backup)
    if unknown := backup - names:
        yield f"cluster.haproxy.backup: found {', '.join(sorted(unknown))}, wanted names of nodes"
    if names and names <= backup:
        yield "cluster.haproxy.backup: found every node, wanted one at least that is active"


def _is_tls(haproxy: Haproxy, servers: list[_Server]) -> bool:
    """Whether the nodes speak TLS."""
    return haproxy.dns.tls or any(server.tls for server in servers)


def _broken_tls_rules(settings: Cluster, servers: list[_Server]) -> Iterator[str]:
    haproxy = settings.haproxy
    if len({server.tls for server in servers}) > 1:
        yield "cluster.nodes: found http and https, wanted one of them: clients meet any node"
    if haproxy.mode == "tcp" and haproxy.tls.certificate:
        yield "cluster.haproxy.mode: found tcp, wanted http: in tcp mode TLS passes through and cannot end here"
    if haproxy.mode == "http" and _is_tls(haproxy, servers):
        if not haproxy.tls.certificate:
            yield (
                "cluster.haproxy.mode: found http, wanted tcp, in which TLS of the nodes passes through unread, "
                "or cluster.haproxy.tls.certificate, with which it ends here"
            )
        if not settings.tls.ca:
            yield "cluster.tls.ca: missing, wanted the authority by which HAProxy tells a node from anybody else"


def _bind(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"[::]:{port} v4v6" if host == "[::]" else f"{host or '*'}:{port}"


def _time(seconds: float) -> str:
    """A duration in the largest of HAProxy's units that it is a whole number of."""
    milliseconds = max(round(seconds * 1000), 1)
    unit, size = next((unit, size) for unit, size in _UNITS if milliseconds % size == 0)
    return f"{milliseconds // size}{unit}"


def _errors() -> dict[int, str]:
    """The answers that are HAProxy's own. None holds a single quote, the only character that would end the text."""
    nobody = Unavailable("no node can answer now: try again later")
    refusals: dict[int, RegistryError] = {502: nobody, 503: nobody, 504: nobody}
    refusals = {error.status: error for error in (BadRequest(), RequestTimeout(), Unknown())} | refusals
    return {status: json.dumps({"errors": [refusal.to_dict()]}) for status, refusal in refusals.items()}


def _environment() -> jinja2.Environment:
    # In a wheel the template lies in the package, in a checkout where people look for it. It makes no HTML, and
    # every value that reaches it has passed a pattern that leaves nothing to escape.
    places = [_PACKAGE, _PACKAGE.parent / "haproxy"]
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(places),
        autoescape=False,  # noqa: S701
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )


class BalancerError(ConfigError):
    """HAProxy could not be asked, or refused."""

    def __init__(self, problem: str) -> None:
        super().__init__([problem])


@dataclass(frozen=True)
class Server:
    """A node as a running HAProxy sees it."""

    name: str
    id: int  # what a stick-table remembers it by
    address: str
    status: str  # UP, DOWN, DRAIN, MAINT, "no check", or on its way between two: "UP 1/3"
    sessions: int  # connections under way in tcp mode, requests in http mode


class Runtime:
    """A running HAProxy, through its stats socket. Every method raises BalancerError."""

    def __init__(self, socket_path: str, timeout: float = 5.0) -> None:
        self._path = socket_path
        self._timeout = timeout  # seconds for one command

    def servers(self) -> list[Server]:
        """The nodes, in the order of the configuration."""
        lines = self._ask(f"show stat {BACKEND} 4 -1").removeprefix("# ").splitlines()
        try:
            return [
                Server(row["svname"], int(row["sid"]), row["addr"], row["status"], int(row["scur"]))
                for row in csv.DictReader(lines)
                if row["svname"] != FALLBACK
            ]
        except (KeyError, ValueError, TypeError) as error:
            raise BalancerError(f"{self._path}: cannot read what HAProxy says of its servers: {error}") from error

    def sessions(self, name: str) -> int:
        """How many sessions of a node are under way; in tcp mode, idle connections of clients count too."""
        return self._find(name).sessions

    def drain(self, name: str) -> None:
        """Give a node no new work; what it has under way goes on, also when it then stops gracefully.

        Its health no longer counts: a node that stops refuses checks, and marking it down would cut its transfers.
        """
        server = self._find(name)
        self._do(f"disable health {BACKEND}/{server.name}")
        self._do(f"set server {BACKEND}/{server.name} state drain")
        # A stick-table would go on sending its clients there.
        if self._is_sticky():
            self._do(f"clear table {BACKEND} data.server_id eq {server.id}")

    def ready(self, name: str) -> None:
        """Give a node work again. It gets some at once: call this when the node says that it is ready."""
        server = self._find(name)
        self._do(f"set server {BACKEND}/{server.name} state ready")
        self._do(f"enable health {BACKEND}/{server.name}")

    def _find(self, name: str) -> Server:
        """By its name, or by its address: names of nodes that DNS tells are HAProxy's own."""
        servers = self.servers()
        for server in servers:
            if name in (server.name, server.address, server.address.rpartition(":")[0]):
                return server
        known = ", ".join(server.name for server in servers)
        raise BalancerError(f"{self._path}: no node {name!r} in HAProxy's configuration, there are: {known}")

    def _is_sticky(self) -> bool:
        return f"# table: {BACKEND}," in self._ask("show table")

    def _do(self, command: str) -> None:
        """Send a command that says nothing when it worked."""
        if answer := self._ask(command):
            raise BalancerError(f"{self._path}: {command}: {answer}")

    def _ask(self, command: str) -> str:
        deadline = time.monotonic() + self._timeout
        answer = b""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(self._timeout)
                connection.connect(self._path)
                connection.sendall(f"{command}\n".encode())
                while piece := connection.recv(65536):
                    answer += piece
                    connection.settimeout(max(deadline - time.monotonic(), 0.001))
        except TimeoutError:
            raise BalancerError(f"{self._path}: HAProxy did not answer within {self._timeout:g} s") from None
        except OSError as error:
            raise BalancerError(f"{self._path}: HAProxy cannot be asked: {error.strerror or error}") from error
        return answer.decode("utf-8", "replace").strip()
