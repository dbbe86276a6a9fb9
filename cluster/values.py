"""The values of settings: durations, sizes, addresses, paths, names, as types that check what they are given.

Owns what one value may look like, whichever setting it is for, and the words for one that may not. Durations are
seconds, sizes are bytes. Which settings there are is in cluster/settings.py.
"""

from __future__ import annotations

import ipaddress
import re
from decimal import Decimal
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from cluster import patterns
from cluster.ciphers import ALWAYS_ON, CIPHERS

_UNITS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_LONGEST = 2**63 - 1  # Go counts nanoseconds in an int64
_SIZE = re.compile(r"([0-9]{1,18})\s*(?:([kmgt])(i?)b?|b)?", re.IGNORECASE)
_REDIS_PORT = 6379
SOCKET_PATH_LIMIT = 95  # characters: HAProxy binds `<path>.<pid>.tmp` first, and the system takes 107 (unix(7))
_ADDR = re.compile(r"(\[[0-9A-Fa-f:.]+(%\w+)?\]|[^\[\]:/\s]*):([0-9]{1,5})")


# What the validators below raise is the end of a sentence: "found ..., wanted <this>".


def _matching(pattern: str, wanted: str) -> AfterValidator:
    """Takes the texts that a pattern matches as a whole, and asks for `wanted` in place of others."""
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError(wanted)
        return value

    return AfterValidator(check)


def duration(value: object) -> float:
    """Seconds of a Go duration string; a bare number counts nanoseconds, as it does for Distribution."""
    wanted = ValueError("a duration with its unit, such as 10s, 1h30m or 500ms (a bare number counts nanoseconds)")
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 < value < 10**6 or not 0 <= value <= _LONGEST:  # below a millisecond the unit was forgotten
            raise wanted
        return value / 10**9
    if value == "0":
        return 0.0
    if not isinstance(value, str) or not re.fullmatch(f"(?:{_DURATION_PART.pattern})+", value):
        raise wanted
    total = sum((Decimal(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(value)), Decimal(0))
    if total > _LONGEST:
        raise wanted
    return int(total) / 10**9


def format_duration(seconds: float) -> str:
    """The Go duration string that `duration` reads as these seconds."""
    minutes, nanoseconds = divmod(round(seconds * 10**9), _UNITS["m"])
    hours, minutes = divmod(minutes, 60)
    rest = f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09}".rstrip("0").rstrip(".")
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else "", f"{rest}s" if nanoseconds else ""]
    return "".join(parts) or "0s"


def size(value: object) -> int:
    """Bytes of a number or of a text such as 5MiB."""
    match = _SIZE.fullmatch(str(value).strip())
    if match is None or isinstance(value, bool):
        raise ValueError("a size in bytes, or one such as 64KiB, 5MiB or 5MB")
    number, unit, binary = match.groups()
    power = " kmgt".index(unit.lower()) if unit else 0
    return int(number) * int((1024 if binary else 1000) ** power)


def _network(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(str(value), strict=False)
    except ValueError:
        raise ValueError("an address or a network such as 10.0.0.0/8 or fd00::/8") from None


def _url(value: str) -> str:
    wanted = ValueError("a URL such as https://registry.example.com")
    try:
        parts = urlsplit(value)
        complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise wanted from None
    if not complete or re.search(r"\s", value):
        raise wanted
    return value


def redis_address(value: str) -> tuple[str, int]:
    """Host and port of a Redis server, each of which may be left out. ValueError."""
    try:
        parts = urlsplit(f"//{value}")
        if "/" not in value and "@" not in value:
            return parts.hostname or "localhost", parts.port or _REDIS_PORT
    except ValueError:
        pass
    raise ValueError("host:port, such as 10.0.0.20:6379; password, db and tls are settings of their own")


def _redis_addr(value: str) -> str:
    redis_address(value)
    return value


def is_addr(value: str) -> bool:
    """Whether this is a place to listen at, in Go's form."""
    match = _ADDR.fullmatch(value)
    return match is not None and int(match.group(3)) < 2**16


def _addr(value: str) -> str:
    if value and not is_addr(value):
        raise ValueError("host:port, such as :5001 or 127.0.0.1:5001")
    return value


def is_host_name(value: str) -> bool:
    """Whether this is a name that DNS can know: no address, not in any of the forms that libc takes for one."""
    labels = value.split(".")
    return (
        0 < len(value) < 254
        and all(re.fullmatch(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)", label) for label in labels)
        and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", labels[-1]) is not None
    )


def _host_name(value: str) -> str:
    if value and not is_host_name(value):
        raise ValueError("a host name, such as nodes.registry.svc.cluster.local")
    return value


def _place(value: str) -> str:
    """An address and a port that another program is told: no names, for who knows how it would read them."""
    host, _, port = value.rpartition(":")
    try:
        if not is_addr(value) or int(port) == 0 or "%" in host:
            raise ValueError
        if host:
            ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise ValueError("an address and a port, such as :5000, 10.0.0.1:5000 or [::]:5000") from None
    return value


def _pattern(value: str) -> str:
    try:
        patterns.Pattern(value)
    except ValueError as error:
        raise ValueError(f"a regular expression of Go's ({error})") from None
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _prefix(value: object) -> object:
    return f"/{value.lstrip('/')}" if isinstance(value, str) and value else value


def _cipher_suite(value: str) -> str:
    if value not in CIPHERS and value not in ALWAYS_ON:
        raise ValueError("a name of Go's crypto/tls, such as TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")
    return value


def _lifetime(seconds: float) -> float:
    if not 60 <= seconds <= 24 * 3600:  # clients take a token for one of a minute where they are not told better
        raise ValueError("a duration from 1m to 24h")
    return seconds


def _threads(value: object) -> int:
    """Distribution takes a text here too, and raises what is below its minimum to it."""
    if isinstance(value, bool) or not re.fullmatch("[0-9]{1,9}", str(value)):
        raise ValueError("a whole number")
    return max(25, int(str(value)))


def _timeout(value: object) -> float:
    """As the Redis clients of Distribution: -1 and -2 stand for no limit."""
    return -1.0 if value in (-1, -2) and not isinstance(value, bool) else duration(value)


_go_duration = PlainSerializer(format_duration, when_used="json")
Duration = Annotated[float, BeforeValidator(duration), _go_duration]
Period = Annotated[Duration, Field(gt=0)]
CheckInterval = Annotated[Duration, AfterValidator(lambda seconds: seconds or 10.0)]  # 0 stands for the default
Timeout = Annotated[
    float,
    BeforeValidator(_timeout),
    PlainSerializer(lambda s: -1 if s < 0 else format_duration(s), when_used="json"),
]
Size = Annotated[int, BeforeValidator(size)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Page = Annotated[int, Field(ge=0), AfterValidator(lambda entries: entries or 1000)]  # 0 stands for the default
Threads = Annotated[int, BeforeValidator(_threads)]
Url = Annotated[str, AfterValidator(_url)]
Addr = Annotated[str, AfterValidator(_addr)]
RedisAddr = Annotated[str, AfterValidator(_redis_addr)]
Path = Annotated[str, _matching(r"(/[^?#\s]*)?", "a path that begins with a slash")]
HostName = Annotated[str, AfterValidator(_host_name)]
Place = Annotated[str, AfterValidator(_place)]
Resolver = Annotated[str, AfterValidator(lambda value: value and _place(value))]
SocketPath = Annotated[
    str,
    _matching(
        rf"/[A-Za-z0-9._/-]{{1,{SOCKET_PATH_LIMIT - 1}}}",
        f"a path from the root on, of at most {SOCKET_PATH_LIMIT} letters, digits, '.', '_', '-' and '/'",
    ),
]
HaproxyPath = Annotated[
    str,
    _matching(r"(/[A-Za-z0-9._/-]{1,250})?", "a path from the root on, of letters, digits, '.', '_', '-' and '/'"),
]
Port = Annotated[int, Field(ge=1, le=65535)]
Pattern = Annotated[str, AfterValidator(_pattern)]
# Distribution takes these in any case.
Level = Annotated[Literal["error", "warn", "info", "debug"], BeforeValidator(_lower)]
Platforms = Annotated[Literal["all", "none", "list"], BeforeValidator(_lower)]
# With a slash at its beginning and none at its end, however it was written.
Prefix = Annotated[Path, BeforeValidator(_prefix), AfterValidator(lambda path: path.rstrip("/"))]
CipherSuite = Annotated[str, AfterValidator(_cipher_suite)]
Lifetime = Annotated[Duration, AfterValidator(_lifetime)]
Entries = Annotated[str, _matching("[1-9][0-9]{0,3}[km]?", "a number of entries, such as 200k")]
UserName = Annotated[str, _matching("([a-z_][a-z0-9_-]{0,31})?", "the name of a user")]
_quotable = _matching(r"[ !#-\[\]-~]*", "a line of ASCII text without quotes and backslashes")
Quotable = Annotated[str, _quotable]  # stands between quotes in a header
QuotablePath = Annotated[Path, _quotable]
HeaderName = Annotated[str, _matching("[!#$%&'*+.^_`|~0-9A-Za-z-]+", "a header name")]
HeaderValue = Annotated[str, _matching(r"[\t\x20-\x7e\x80-\xff]*", "a header value: one line of Latin-1 text")]
Headers = dict[HeaderName, list[HeaderValue]]
Algorithm = Literal[
    "EdDSA", "ES256", "ES384", "ES512", "HS256", "HS384", "HS512",
    "PS256", "PS384", "PS512", "RS256", "RS384", "RS512",
]  # fmt: skip
Secret = Annotated[str, Field(repr=False)]
SecretHeaders = Annotated[Headers, Field(repr=False)]
Options = dict[str, Any]
Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, BeforeValidator(_network)]
Networks = Annotated[
    tuple[Network, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
]
PRIVATE = tuple(
    map(_network, ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7"))
)
