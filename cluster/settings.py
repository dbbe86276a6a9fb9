"""The settings: one frozen model for each section of config.yml, after Distribution's schema 0.1 (v2.8 and v3).

Durations are seconds, sizes are bytes. Reading files and environment variables, and what is told about their
mistakes, is in cluster/config.py and its config_*.py; what each setting means is in deploy/config.example.yml.
"""

from __future__ import annotations

import ipaddress
import re
import warnings
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from cluster.ciphers import ALWAYS_ON, CIPHERS

DRIVERS = ("filesystem", "inmemory")
UNSERVED_DRIVERS = ("s3", "s3aws", "azure", "gcs", "swift", "oss")

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
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_ADDR = re.compile(r"(\[[0-9A-Fa-f:.]+(%\w+)?\]|[^\[\]:/\s]*):([0-9]{1,5})")


# What the validators below raise is the end of a sentence: "found ..., wanted <this>".


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


def _socket_path(value: str) -> str:
    # The system's limit is 107; HAProxy binds it under a longer name first.
    if not re.fullmatch(r"/[A-Za-z0-9._/-]{1,96}", value):
        raise ValueError("a path from the root on, of at most 97 letters, digits, '.', '_', '-' and '/'")
    return value


def _path(value: str) -> str:
    if value and not re.fullmatch(r"/[^?#\s]*", value):
        raise ValueError("a path that begins with a slash")
    return value


def _pattern(value: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a pattern that Python reads otherwise than Go must not pass
            re.compile(value)
    except (re.error, Warning, OverflowError, RecursionError) as error:
        raise ValueError(f"a regular expression ({error})") from None
    return value


def _header_name(value: str) -> str:
    if not _HEADER_NAME.fullmatch(value):
        raise ValueError("a header name")
    return value


def _header_value(value: str) -> str:
    if not _HEADER_VALUE.fullmatch(value):
        raise ValueError("a header value: one line of Latin-1 text")
    return value


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
Path = Annotated[str, AfterValidator(_path)]
HostName = Annotated[str, AfterValidator(_host_name)]
Place = Annotated[str, AfterValidator(_place)]
SocketPath = Annotated[str, AfterValidator(_socket_path)]
Port = Annotated[int, Field(ge=1, le=65535)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Headers = dict[Annotated[str, AfterValidator(_header_name)], list[Annotated[str, AfterValidator(_header_value)]]]
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


class Section(BaseModel):
    """A level of the file. Unknown keys are not seen here: config_schema.py reports them before."""

    model_config = ConfigDict(frozen=True, strict=True)
    go_names: ClassVar[Mapping[str, str]] = {}
    """Keys whose name in environment variables is not the key in upper case."""
    named: ClassVar[bool] = False
    """Whether a bare text `x` stands for `{x: {}}`."""


class AccessLog(Section):
    disabled: bool = False


class LogHook(Section):
    go_names = {"options": "MAILOPTIONS"}
    disabled: bool = False
    type: str = ""
    levels: list[str] = []
    options: Options = {}


class Log(Section):
    level: Literal["error", "warn", "info", "debug"] = "info"
    formatter: Literal["text", "json", "logstash"] = "text"
    fields: Options = {}
    accesslog: AccessLog = AccessLog()
    hooks: list[LogHook] = []
    reportcaller: bool = False


class Filesystem(Section):
    rootdirectory: str = "/var/lib/registry"
    maxthreads: Threads = 100


class UploadPurging(Section):
    enabled: bool = True
    age: Duration = 168 * 3600.0
    interval: Period = 24 * 3600.0
    dryrun: bool = False


class ReadOnly(Section):
    enabled: bool = False


class Maintenance(Section):
    uploadpurging: UploadPurging = UploadPurging()
    readonly: ReadOnly = ReadOnly()


class Cache(Section):
    blobdescriptor: Literal["", "inmemory", "redis"] = ""
    blobdescriptorsize: Count = 10000
    layerinfo: str | None = None  # the old name of blobdescriptor


class Delete(Section):
    enabled: bool = False


class Redirect(Section):
    disable: bool = False


class TagLookup(Section):
    concurrencylimit: Count = 0


class Storage(Section):
    named = True
    filesystem: Filesystem = Filesystem()
    inmemory: Options = {}
    s3: Options | None = None
    s3aws: Options | None = None
    azure: Options | None = None
    gcs: Options | None = None
    swift: Options | None = None
    oss: Options | None = None
    maintenance: Maintenance = Maintenance()
    cache: Cache = Cache()
    delete: Delete = Delete()
    redirect: Redirect = Redirect()
    tag: TagLookup = TagLookup()

    @property
    def driver(self) -> str:
        """The driver that was written down: parsing takes care that it is one, and served."""
        return "inmemory" if "inmemory" in self.model_fields_set else "filesystem"


class Htpasswd(Section):
    realm: str = ""
    path: str = ""


class Silly(Section):
    realm: str = ""
    service: str = ""


Algorithm = Literal[
    "EdDSA", "ES256", "ES384", "ES512", "HS256", "HS384", "HS512",
    "PS256", "PS384", "PS512", "RS256", "RS384", "RS512",
]  # fmt: skip


def _quotable(value: str) -> str:
    if not re.fullmatch(r"[ !#-\[\]-~]*", value):
        raise ValueError("a line of ASCII text without quotes and backslashes")
    return value


Quotable = Annotated[str, AfterValidator(_quotable)]  # stands between quotes in a header


class Token(Section):
    realm: Quotable = ""
    issuer: str = ""
    service: Quotable = ""
    rootcertbundle: str = ""
    jwks: str = ""
    signingalgorithms: list[Algorithm] = []
    autoredirect: bool = False
    autoredirectpath: Annotated[Path, AfterValidator(_quotable)] = "/auth/token"


class Auth(Section):
    named = True
    none: Options | None = None
    htpasswd: Htpasswd | None = None
    token: Token | None = None
    silly: Silly | None = None


class MiddlewareItem(Section):
    name: str = ""
    disabled: bool = False
    options: Options = {}


class Middleware(Section):
    registry: list[MiddlewareItem] = []
    repository: list[MiddlewareItem] = []
    storage: list[MiddlewareItem] = []


class LetsEncrypt(Section):
    cachefile: str = ""
    email: str = ""
    hosts: list[str] = []
    directoryurl: str = ""


def _cipher_suite(value: str) -> str:
    if value not in CIPHERS and value not in ALWAYS_ON:
        raise ValueError("a name of Go's crypto/tls, such as TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")
    return value


class Tls(Section):
    certificate: str = ""
    key: str = ""
    clientcas: list[str] = []
    # Not Go's require-any-client-cert: a certificate that nobody verifies says nothing.
    clientauth: Literal[
        "", "request-client-cert", "verify-client-cert-if-given", "require-and-verify-client-cert"
    ] = ""
    minimumtls: Literal["", "tls1.2", "tls1.3"] = ""
    ciphersuites: list[Annotated[str, AfterValidator(_cipher_suite)]] = []
    letsencrypt: LetsEncrypt = LetsEncrypt()


class Prometheus(Section):
    enabled: bool = False
    path: Path = "/metrics"


class Debug(Section):
    addr: Addr = ""
    prometheus: Prometheus = Prometheus()


class Http2(Section):
    disabled: bool = False


class H2c(Section):
    enabled: bool = False


class Http(Section):
    addr: str = ":5000"
    net: Literal["tcp", "unix"] = "tcp"
    host: Annotated[Url | None, BeforeValidator(lambda value: value or None)] = None
    # Without a slash at its end, however it was written.
    prefix: Annotated[Path, AfterValidator(lambda path: path.rstrip("/"))] = ""
    secret: Secret = ""
    relativeurls: bool | None = None
    draintimeout: Duration = 30.0
    headers: Headers = {}
    debug: Debug = Debug()
    tls: Tls | None = None
    http2: Http2 | None = None
    h2c: H2c | None = None


class Ignore(Section):
    mediatypes: list[str] = []
    actions: list[str] = []


class Endpoint(Section):
    name: str = ""
    disabled: bool = False
    url: str = ""
    headers: SecretHeaders = {}
    timeout: Duration = 1.0
    threshold: Count = 10
    backoff: Duration = 1.0
    ignoredmediatypes: list[str] = []
    ignore: Ignore = Ignore()


class Events(Section):
    includereferences: bool = False


class Notifications(Section):
    go_names = {"events": "EVENTCONFIG"}
    events: Events = Events()
    endpoints: list[Endpoint] = []


class Pool(Section):
    maxidle: Count | None = None
    maxactive: Count | None = None
    idletimeout: Timeout | None = None


class RedisTls(Section):
    certificate: str = ""
    key: str = ""
    rootcas: list[str] = []


class Redis(Section):
    """None stands for the default of the client library."""

    addrs: list[str] = []
    addr: str | None = None  # v2.8's name; parsing turns it into addrs
    mastername: str = ""
    username: str = ""
    password: Secret = ""
    sentinelusername: str = ""
    sentinelpassword: Secret = ""
    db: Count = 0
    protocol: Literal[2, 3] | None = None
    clientname: str = ""
    tls: RedisTls = RedisTls()
    dialtimeout: Timeout | None = None
    readtimeout: Timeout | None = None
    writetimeout: Timeout | None = None
    contexttimeoutenabled: bool | None = None
    maxretries: Annotated[int, Field(ge=-1)] | None = None
    minretrybackoff: Timeout | None = None
    maxretrybackoff: Timeout | None = None
    poolfifo: bool | None = None
    poolsize: Count | None = None
    pooltimeout: Timeout | None = None
    minidleconns: Count | None = None
    maxidleconns: Count | None = None
    maxactiveconns: Count | None = None
    connmaxidletime: Timeout | None = None
    connmaxlifetime: Timeout | None = None
    pool: Pool = Pool()
    maxredirects: Annotated[int, Field(ge=-1)] | None = None
    readonly: bool | None = None
    routebylatency: bool | None = None
    routerandomly: bool | None = None
    disableidentity: bool | None = None
    identitysuffix: str = ""
    unstableresp3: bool | None = None


class StorageCheck(Section):
    enabled: bool = False
    interval: CheckInterval = 10.0
    threshold: Count = 0


class FileCheck(Section):
    file: str = ""
    interval: CheckInterval = 10.0
    threshold: Count = 0


class HttpCheck(Section):
    uri: str = ""
    headers: SecretHeaders = {}
    statuscode: Count = 200
    timeout: Duration = 0.0
    interval: CheckInterval = 10.0
    threshold: Count = 0


class TcpCheck(Section):
    addr: str = ""
    timeout: Duration = 0.0
    interval: CheckInterval = 10.0
    threshold: Count = 0


class Health(Section):
    go_names = {"file": "FILECHECKERS", "http": "HTTPCHECKERS", "tcp": "TCPCHECKERS"}
    storagedriver: StorageCheck = StorageCheck()
    file: list[FileCheck] = []
    http: list[HttpCheck] = []
    tcp: list[TcpCheck] = []


class Exec(Section):
    command: str = ""
    lifetime: Duration | None = None


class Proxy(Section):
    remoteurl: str = ""
    username: str = ""
    password: Secret = ""
    exec: Exec | None = None
    ttl: Duration = 168 * 3600.0
    cachewritetimeout: Duration = 300.0


class Schema1(Section):
    go_names = {"signingkeyfile": "TRUSTKEY"}
    enabled: bool = False
    signingkeyfile: str = ""


class Compatibility(Section):
    schema1: Schema1 = Schema1()


class Urls(Section):
    allow: list[Pattern] = []
    deny: list[Pattern] = []


class Platform(Section):
    architecture: str = ""
    os: str = ""


class Indexes(Section):
    platforms: Literal["all", "none", "list"] = "all"
    platformlist: list[Platform] = []


class Manifests(Section):
    urls: Urls = Urls()
    indexes: Indexes = Indexes()


class Validation(Section):
    enabled: bool | None = None  # Distribution ignores it too
    disabled: bool = False
    manifests: Manifests = Manifests()


class RepositoryPolicy(Section):
    classes: list[str] = []


class Policy(Section):
    repository: RepositoryPolicy = RepositoryPolicy()


class Catalog(Section):
    maxentries: Page = 1000


class Tags(Section):
    maxtags: Page = 1000


def _entries(value: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,3}[km]?", value):
        raise ValueError("a number of entries, such as 200k")
    return value


def _user(value: str) -> str:
    if value and not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", value):
        raise ValueError("the name of a user")
    return value


class Stickiness(Section):
    enabled: bool | None = None  # None: in tcp mode
    type: Literal["ip", "ipv6"] = "ip"
    size: Annotated[str, AfterValidator(_entries)] = "200k"
    expire: Annotated[Period, Field(le=24 * 24 * 3600)] = 30 * 60.0  # HAProxy counts milliseconds in an int32


class Dns(Section):
    name: HostName = ""
    port: Port = 5000
    count: Annotated[int, Field(ge=1, le=1000)] = 10
    resolver: Annotated[str, AfterValidator(lambda value: value and _place(value))] = ""
    tls: bool = False


def _haproxy_path(value: str) -> str:
    if value and not re.fullmatch(r"/[A-Za-z0-9._/-]{1,250}", value):
        raise ValueError("a path from the root on, of letters, digits, '.', '_', '-' and '/'")
    return value


HaproxyPath = Annotated[str, AfterValidator(_haproxy_path)]


class HaproxyTls(Section):
    """TLS that HAProxy itself ends."""

    certificate: HaproxyPath = ""


class PeerTls(Section):
    """How nodes, commands and HAProxy know a node that speaks TLS."""

    ca: HaproxyPath = ""
    name: HostName = ""
    certificate: HaproxyPath = ""


def _lifetime(seconds: float) -> float:
    if not 60 <= seconds <= 24 * 3600:  # clients take a token for one of a minute where they are not told better
        raise ValueError("a duration from 1m to 24h")
    return seconds


class TokenServer(Section):
    """The cluster makes the tokens of auth.token itself."""

    htpasswd: str = ""
    keys: str = ""
    algorithm: Literal["ES256", "EdDSA", "RS256"] = "ES256"
    lifetime: Annotated[Duration, AfterValidator(_lifetime)] = 5 * 60.0
    refresh: Annotated[Duration, Field(le=365 * 24 * 3600)] = 30 * 24 * 3600.0


class Haproxy(Section):
    """What `registry-cluster haproxy` prints is made of this."""

    mode: Literal["tcp", "http"] = "tcp"
    bind: Place = ":5000"
    tls: HaproxyTls = HaproxyTls()
    balance: Literal["roundrobin", "leastconn"] = "roundrobin"
    stickiness: Stickiness = Stickiness()
    names: list[str] = []
    backup: list[str] = []
    dns: Dns = Dns()
    maxconn: Annotated[int, Field(ge=1, le=1_000_000)] = 8000
    socket: SocketPath = "/run/haproxy/registry.sock"
    user: Annotated[str, AfterValidator(_user)] = ""


class Cluster(Section):
    """What Distribution does not have."""

    name: str = ""  # of this node; host name and port when not written
    workers: Positive | None = None
    nodes: list[Url] = []
    sharedaddr: Addr = ""  # a second address, on which all nodes of a machine listen together (SO_REUSEPORT)
    secrets: Annotated[list[str], Field(repr=False)] = []
    secretfile: str = ""  # in place of http.secret (cluster/secretfile.py)
    mixed: bool = False
    sparse: bool = False
    anonymousmount: bool = True
    policy: str = ""  # a file: who may do what (auth/policy.py)
    trustedproxies: Networks = PRIVATE
    chunkminlength: Size = 0
    maxuploads: Positive = 256
    proxyprotocol: bool = False
    tokenserver: TokenServer | None = None
    tls: PeerTls = PeerTls()
    haproxy: Haproxy = Haproxy()


class Config(Section):
    version: Literal["0.1"] = "0.1"
    log: Log = Log()
    loglevel: str | None = None  # the old name of log.level
    storage: Storage = Storage()
    auth: Auth = Auth()
    middleware: Middleware | None = None
    http: Http = Http()
    notifications: Notifications | None = None
    redis: Annotated[Redis | None, AfterValidator(lambda redis: redis if redis and redis.addrs else None)] = None
    health: Health = Health()
    proxy: Proxy | None = None
    compatibility: Compatibility | None = None
    reporting: Options | None = None
    validation: Validation = Validation()
    policy: Policy = Policy()
    catalog: Catalog = Catalog()
    tags: Tags = Tags()
    cluster: Cluster = Cluster()
