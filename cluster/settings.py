"""The settings: one frozen model for each section of config.yml, after Distribution's schema 0.1 (v2.8 and v3).

What a single value may look like is in cluster/values.py. Reading files and environment variables, and what is told
about their mistakes, is in cluster/config.py and what it uses; what each setting means is in
deploy/config.example.yml.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from cluster.values import (
    PRIVATE,
    Addr,
    Algorithm,
    CheckInterval,
    CipherSuite,
    Count,
    Duration,
    Entries,
    HaproxyPath,
    Headers,
    HostName,
    Level,
    Lifetime,
    Networks,
    Options,
    Page,
    Path,
    Pattern,
    Period,
    Place,
    Platforms,
    Port,
    Positive,
    Prefix,
    Quotable,
    QuotablePath,
    RedisAddr,
    Resolver,
    Secret,
    SecretHeaders,
    Size,
    SocketPath,
    Threads,
    Timeout,
    Url,
    UserName,
)

DRIVERS = ("filesystem", "inmemory")
UNSERVED_DRIVERS = ("s3", "s3aws", "azure", "gcs", "swift", "oss")


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
    level: Level = "info"
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


class Token(Section):
    realm: Quotable = ""
    issuer: str = ""
    service: Quotable = ""
    rootcertbundle: str = ""
    jwks: str = ""
    signingalgorithms: list[Algorithm] = []
    autoredirect: bool = False
    autoredirectpath: QuotablePath = "/auth/token"


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


class Tls(Section):
    certificate: str = ""
    key: str = ""
    clientcas: list[str] = []
    # Not Go's require-any-client-cert: a certificate that nobody verifies says nothing.
    clientauth: Literal[
        "", "request-client-cert", "verify-client-cert-if-given", "require-and-verify-client-cert"
    ] = ""
    minimumtls: Literal["", "tls1.2", "tls1.3"] = ""
    ciphersuites: list[CipherSuite] = []
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
    prefix: Prefix = ""
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
    """What `state/build.py` does not read is there for Distribution alone: `config_rules.py` warns of it."""

    addrs: list[RedisAddr] = []
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
    platforms: Platforms = "all"
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


class Stickiness(Section):
    enabled: bool | None = None  # None: in tcp mode
    type: Literal["ip", "ipv6"] = "ip"
    size: Entries = "200k"
    expire: Annotated[Period, Field(le=24 * 24 * 3600)] = 30 * 60.0  # HAProxy counts milliseconds in an int32


class Dns(Section):
    name: HostName = ""
    port: Port = 5000
    count: Annotated[int, Field(ge=1, le=1000)] = 10
    resolver: Resolver = ""
    tls: bool = False


class HaproxyTls(Section):
    """TLS that HAProxy itself ends."""

    certificate: HaproxyPath = ""


class PeerTls(Section):
    """How nodes, commands and HAProxy know a node that speaks TLS."""

    ca: HaproxyPath = ""
    name: HostName = ""
    certificate: HaproxyPath = ""


class TokenServer(Section):
    """The cluster makes the tokens of auth.token itself."""

    htpasswd: str = ""
    keys: str = ""
    algorithm: Literal["ES256", "EdDSA", "RS256"] = "ES256"
    lifetime: Lifetime = 5 * 60.0
    refresh: Annotated[Duration, Field(le=365 * 24 * 3600)] = 30 * 24 * 3600.0


class Haproxy(Section):
    """What `registry-cluster haproxy` prints is made of this."""

    mode: Literal["tcp", "http"] = "tcp"
    bind: Place = ":5000"
    tls: HaproxyTls = HaproxyTls()
    proxies: Networks = ()  # in front of HAProxy
    balance: Literal["roundrobin", "leastconn"] = "roundrobin"
    stickiness: Stickiness = Stickiness()
    names: list[str] = []
    backup: list[str] = []
    dns: Dns = Dns()
    maxconn: Annotated[int, Field(ge=1, le=1_000_000)] = 8000
    socket: SocketPath = "/run/haproxy/registry.sock"
    user: UserName = ""


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
    trustedproxies: Networks | None = None  # None: private ones, but for what they say of their clients
    chunkminlength: Size = 0
    maxuploads: Positive = 256
    proxyprotocol: bool = False
    tokenserver: TokenServer | None = None
    tls: PeerTls = PeerTls()
    haproxy: Haproxy = Haproxy()

    @property
    def proxies(self) -> Networks:
        """Whose forwarded headers, and PROXY protocol, are believed."""
        return PRIVATE if self.trustedproxies is None else self.trustedproxies


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
