"""URLs that answers hold: relative by default, absolute where the configuration or a trusted proxy says how.

Precedence for an absolute one: `http.host`, then `Forwarded` (RFC 7239), then `X-Forwarded-Proto` and
`X-Forwarded-Host`, then the request itself. Forwarded headers count only from `cluster.trustedproxies`, and for the
address of a client only where somebody wrote down who these are.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from urllib.parse import quote, urlsplit

import falcon.asgi

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")
_HOP = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::\d{1,5})?|([0-9.]{7,15})(?::\d{1,5})?|([0-9A-Fa-f:.]{2,45})")


class Urls:
    """Builds the `Location` and `Link` of answers."""

    def __init__(
        self,
        *,
        host: str | None,
        prefix: str,
        relative: bool | None,
        trusted_proxies: Sequence[Network],
        tell_clients: bool,
    ) -> None:
        """`tell_clients`: the trusted proxies are believed whose request it is, too."""
        self.prefix = prefix
        self._host = None
        if host is not None:
            parts = urlsplit(host)
            # As in Distribution: the path of http.host counts only when it ends with a slash.
            path = parts.path.rstrip("/") if parts.path.endswith("/") else ""
            self._host = f"{parts.scheme}://{parts.netloc}{path or prefix}"
        self._relative = host is None and relative is not False
        self._trusted = tuple(trusted_proxies)
        self._tell_clients = tell_clients

    def location(self, req: falcon.asgi.Request, path: str, **query: str) -> str:
        """The URL of a path that begins with /v2/."""
        text = "&".join(f"{key}={quote(value, safe='')}" for key, value in query.items())
        target = f"{path}?{text}" if text else path
        if self._relative:
            return f"{self.prefix}{target}"
        return f"{self._host or self.origin(req) + self.prefix}{target}"

    def client(self, req: falcon.asgi.Request) -> str:
        """The client's address, for limits and the log: the last one told that is not a trusted proxy's."""
        address = _peer(req)
        # Private ranges are trusted by default, and clients are there too: each could be a new one with each guess
        # of a password, or somebody else.
        if not self._tell_clients or not self._is_trusted(address):
            return address
        told = {self._told(address, hops) for hops in _hops(req)}
        # Most proxies write one of the two headers, and pass the other on as the client sent it. Which one is
        # whose is not known here: only what both say is believed, or a client could call itself anything.
        return told.pop() if len(told) == 1 else address

    def _told(self, address: str, hops: Sequence[str]) -> str:
        """Who spoke to the first of the proxies in a row, as far as they can be believed; `address` is the last."""
        for hop in reversed(hops):
            if (told := _address(hop)) is None:
                return address
            address = told
            if not self._is_trusted(address):
                return address
        return address

    def origin(self, req: falcon.asgi.Request, usual: str | None = None) -> str:
        """Scheme and host under which the client knows us; empty when what it sent is no host.

        `usual` is the scheme where no proxy tells one, in place of the one that was seen.
        """
        usual = usual or req.scheme
        scheme, host = usual, req.get_header("Host") or req.netloc
        if self._is_trusted(_peer(req)):
            if (forwarded := req.get_header("Forwarded")) is not None:
                fields = _fields(_first(forwarded))
                scheme, host = fields.get("proto", scheme), fields.get("host", host)
            else:
                scheme = _first(req.get_header("X-Forwarded-Proto")) or scheme
                host = _first(req.get_header("X-Forwarded-Host")) or host
        scheme = scheme.lower()  # RFC 3986 section 3.1
        if scheme not in ("http", "https"):
            scheme = usual
        return f"{scheme}://{host}" if _HOST.fullmatch(host) else ""

    def _is_trusted(self, address: str) -> bool:
        try:
            peer = ipaddress.ip_address(address)
        except ValueError:
            return not address  # a unix socket: whoever may open it is trusted
        # On a socket for both families an IPv4 peer has an address of the form ::ffff:192.0.2.1.
        peer = getattr(peer, "ipv4_mapped", None) or peer
        return any(peer in network for network in self._trusted)


class ClientAddress:
    """A Falcon middleware that has the log show the client whom the limits count."""

    def __init__(self, urls: Urls) -> None:
        self._urls = urls

    async def process_request(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        req.scope["registry.client"] = self._urls.client(req)


def next_link(path: str, **query: str | int) -> str:
    """A `Link` header to the next page; always relative, keys in order (OCI "Listing Tags")."""
    text = "&".join(f"{key}={quote(str(value), safe='')}" for key, value in sorted(query.items()))
    return f'<{path}?{text}>; rel="next"'


def _peer(req: falcon.asgi.Request) -> str:
    """Who holds the connection; empty for a unix socket. Falcon would read the forwarded headers first."""
    return (req.scope.get("client") or ("",))[0] or ""


def _first(header: str | None) -> str:
    return (header or "").partition(",")[0].strip()


def _fields(element: str) -> dict[str, str]:
    """The pairs of one element of a `Forwarded` header."""
    pairs = (pair.partition("=") for pair in element.split(";"))
    return {key.strip().lower(): value.strip().strip('"') for key, _, value in pairs}


def _hops(req: falcon.asgi.Request) -> Iterator[list[str]]:
    """What each header that is there says of the addresses on the way."""
    if (header := req.get_header("Forwarded")) is not None:
        yield [_fields(element).get("for", "") for element in header.split(",")]
    if (header := req.get_header("X-Forwarded-For")) is not None:
        yield header.split(",")


def _address(text: str) -> str | None:
    """The address that a proxy tells, without its port; None when it tells none."""
    match = _HOP.fullmatch(text.strip())
    try:
        return str(ipaddress.ip_address(next(filter(None, match.groups())))) if match else None
    except ValueError:
        return None
