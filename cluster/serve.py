"""`registry-cluster serve`: one gunicorn arbiter with its workers. The only place that knows gunicorn's settings.

Killing a node means killing the arbiter's process group: a worker that loses its arbiter notices within a second
and then stops gracefully.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
import time
from functools import partial
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from cluster import addresses, joining, logs, secretfile
from cluster.api.edge import Patience
from cluster.app import Application, build, data_directory, port_of
from cluster.auth.build import build_authenticator, build_token_server, prepare_files
from cluster.config_files import naming
from cluster.errors import ConfigError, StorageError
from cluster.identity import Identity
from cluster.settings import Config
from cluster.state.shared import SharedState
from cluster.storage import layout
from cluster.storage.disk import Disk
from cluster.storage.filesystem import FilesystemDriver
from cluster.storage.threads import Threads
from cluster.tally import Tally
from cluster.tls import ServedCertificate, is_served

_DISCONNECT_GRACE = 60  # seconds for storing what came before a client left
_HEADER_LIMIT = 20 * 1024  # bytes of a header; a token of the longest kind fits (auth/tokens.py)
_STOOD_STILL = 5.0  # seconds between two looks at the workers, of which there is one a second
_LINE_LIMIT = 8190  # bytes of a request line: names, tokens and ten tags fit; also gunicorn's largest

_log = logging.getLogger(__name__)


class PatientArbiter(Arbiter):  # type: ignore[misc]
    """An arbiter that knows when it stood still itself: a paused machine, or a SIGSTOP to the whole node.

    Its workers have given no sign of life for as long, and would be killed on waking, with all that they serve.
    """

    def __init__(self, app: BaseApplication) -> None:
        super().__init__(app)
        self._looked = time.monotonic()  # at the workers
        self._spared = self._looked  # until when they have time to give a sign

    def murder_workers(self) -> None:
        now = time.monotonic()
        if now - self._looked > _STOOD_STILL:
            self._spared = now + self.timeout
        self._looked = now
        if now >= self._spared:
            super().murder_workers()


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn, set up from the configuration in place of a file of its own."""

    def __init__(
        self,
        config: Config,
        keys: list[bytes],
        identity: Identity,
        patience: Patience,
        served: ServedCertificate | None,
        options: dict[str, Any],
    ) -> None:
        self._config = config
        self._keys = keys
        self._identity = identity
        self.patience = patience  # for the worker, which finds this object as its `app`
        self.served = served  # for the worker as well; None: it speaks no TLS
        self._options = options
        self._application: Application | None = None
        self._tally = Tally()
        self._company = joining.Company(config, keys, identity)
        super().__init__()

    def run(self) -> None:
        """Serve until a signal. SystemExit at the end."""
        PatientArbiter(self).run()

    def load_config(self) -> None:
        for key, value in self._options.items():
            self.cfg.set(key, value)
        self.cfg.set("pre_fork", lambda _, worker: self._tally.admit(worker.age))
        self.cfg.set("child_exit", self._forget)

    def load(self) -> Any:
        """Called in each worker, after the fork: threads and the event loop belong to it."""
        make = partial(build, self._config, self._keys, identity=self._identity, tally=self._tally)
        if self._config.http.debug.prometheus.enabled:
            from cluster.metrics import Metrics  # noqa: PLC0415 - it reads its directory when imported

            metrics = Metrics()
            make = partial(make, observers=[metrics], tell_in_flight=metrics.in_flight.set)
        self._application = make()
        self._company.watch()
        return self._application.edge

    def is_plain(self, sock: Any) -> bool:
        """Whether a listening socket of gunicorn's is the one of the debug port, which speaks no TLS."""
        port = port_of(self._config.http.debug.addr)
        return port is not None and isinstance(sock.cfg_addr, tuple) and sock.cfg_addr[1] == port

    def _forget(self, _: Any, worker: Any) -> None:
        """In the arbiter: a worker has ended, however that came."""
        self._tally.dismiss(worker.age)
        if self._config.http.debug.prometheus.enabled:
            from cluster.metrics import forget_worker  # noqa: PLC0415 - it reads its directory when imported

            forget_worker(worker.pid)

    def on_drain(self) -> None:
        """The worker was told to stop."""
        if self._application is not None:
            self._application.health.draining = True


def serve(config: Config, patience: Patience = Patience()) -> None:  # noqa: B008 - a frozen value
    """Run until a signal. Raises ConfigError when storage or the secret cannot be used; SystemExit at the end."""
    logs.set_up(config.log.level, config.log.formatter, config.log.fields)
    with naming(config):
        served = ServedCertificate(config.http.tls) if config.http.tls and is_served(config) else None
        addresses.check(config)
        check_storage(config)
        check_authentication(config)
        keys = key_ring(config, draw=True)
        identity = joining.join(config, keys)
    _set_up_metrics(config)
    Server(config, keys, identity, patience, served, _options(config, patience)).run()


def _options(config: Config, patience: Patience) -> dict[str, Any]:
    options: dict[str, Any] = {
        "bind": list(addresses.addresses(config).values()),
        "workers": _workers(config),
        "worker_class": "cluster.worker.RegistryWorker",
        "keepalive": patience.idle,
        "timeout": patience.worker,
        "graceful_timeout": max(int(config.http.draintimeout), 1),
        "asgi_disconnect_grace_period": _DISCONNECT_GRACE,
        "limit_request_line": _LINE_LIMIT,
        "limit_request_fields": 100,
        "limit_request_field_size": _HEADER_LIMIT,
        "proc_name": "registry-cluster",
        "loglevel": {"warn": "warning"}.get(config.log.level, config.log.level),
        "logger_class": "cluster.serve.GunicornLog",
        "backlog": 2048,
        "control_socket_disable": True,
        "forwarded_allow_ips": "",
        "http_parser": "fast",
    }
    if config.cluster.proxyprotocol:
        # Only the parser written in Python knows it; a client that does not speak it is served as well.
        options.update(http_parser="python", proxy_protocol="auto", proxy_allow_ips=_proxies(config))
    if config.cluster.sharedaddr:
        options["reuse_port"] = True
    return options


def _proxies(config: Config) -> str:
    """Who may speak the PROXY protocol: the trusted proxies, also as a socket for both IPs sees them."""
    networks = [str(network) for network in config.cluster.proxies]
    mapped = [
        f"::ffff:{network.network_address}/{network.prefixlen + 96}"
        for network in config.cluster.proxies
        if network.version == 4
    ]
    return ",".join([*networks, *mapped])


def _workers(config: Config) -> int:
    """WEB_CONCURRENCY, else `cluster.workers`, else one for each core that this process may use."""
    if config.storage.driver == "inmemory":
        return 1
    text = os.environ.get("WEB_CONCURRENCY", "")
    if text and not (text.isdecimal() and int(text)):
        raise ConfigError([f"WEB_CONCURRENCY: {text!r}: wanted a number of workers, 1 or more"])
    return int(text or 0) or config.cluster.workers or len(os.sched_getaffinity(0))


def check_storage(config: Config) -> None:
    """Refuse to start on storage that cannot be used. ConfigError."""
    if config.storage.driver != "filesystem":
        return
    root = config.storage.filesystem.rootdirectory
    read_only = config.storage.maintenance.readonly.enabled
    if not os.path.isdir(root):
        raise ConfigError(
            [f"storage.filesystem.rootdirectory: {root!r} is not a directory: create it or correct the path"]
        )
    try:
        if not read_only:
            os.makedirs(data_directory(config), exist_ok=True)
        driver = FilesystemDriver(data_directory(config), Threads(1, 1), writable=not read_only)
        driver.check()
        if not read_only:
            _check_abilities(driver, root)
    except (OSError, StorageError) as error:
        hint = "make it writable for this user, or set storage.maintenance.readonly"
        if read_only:
            hint = "with storage.maintenance.readonly it must hold a registry already"
        raise ConfigError(
            [f"storage.filesystem.rootdirectory: {root!r} cannot be used: {error}: {hint}"]
        ) from error


def _check_abilities(driver: FilesystemDriver, root: str) -> None:
    try:
        driver.check_abilities()
    except (OSError, StorageError) as error:
        raise ConfigError(
            [
                f"storage.filesystem.rootdirectory: the file system of {root!r} cannot make a hard link, or cannot "
                f"lock a file: {error}: wanted one that can (deploy/README.md has a list), or "
                "storage.maintenance.readonly"
            ]
        ) from error


def check_authentication(config: Config) -> None:
    """Refuse to start with accounts or keys that cannot be used, and make what a first start makes. ConfigError."""
    prepare_files(config)
    build_authenticator(config, SharedState(None))
    build_token_server(config, SharedState(None))


def key_ring(config: Config, *, draw: bool) -> list[bytes]:
    """`http.secret`, or what is in `cluster.secretfile`, and `cluster.secrets`: sign with the first, accept any.

    A single node without a secret draws one and keeps it beside its data, so that uploads outlive a restart. Who
    only looks does not `draw`: a file of another user is one that the node could not read. ConfigError.
    """
    ring = [secret.encode() for secret in (config.http.secret, *config.cluster.secrets) if secret]
    if config.cluster.secretfile:
        return secretfile.keys(config.cluster.secretfile) + ring
    if ring:
        return ring
    is_kept = config.storage.driver == "filesystem" and not config.storage.maintenance.readonly.enabled
    path = f"{data_directory(config)}/{layout.SECRET}"
    if not draw:
        return [_drawn_secret(path if is_kept else None)]
    _log.warning(
        "http.secret is empty: generating one for this node; with several nodes, set the same http.secret on all"
    )
    return [_kept_secret(path) if is_kept else secretfile.draw().encode()]


def _drawn_secret(path: str | None) -> bytes:
    """The secret that a node has drawn and kept; None: it keeps none. ConfigError."""
    wanted = "wanted one that all nodes share"
    if path is None:
        raise ConfigError([f"http.secret is empty, and this node keeps what it draws to itself: {wanted}"])
    try:
        return _read_secret(path)
    except FileNotFoundError:
        raise ConfigError([f"http.secret is empty, and this node has not drawn one yet: {wanted}"]) from None
    except OSError as error:
        problem = f"http.secret is empty, and {path}, where this node keeps one, cannot be read: {error.strerror}"
        raise ConfigError([f"{problem}: look as the user who runs the node"]) from None


def _kept_secret(path: str) -> bytes:
    """The secret in a file of mode 0600; drawn, durably, by whoever comes first. ConfigError."""
    try:
        return _read_secret(path)
    except FileNotFoundError:
        pass
    try:
        secretfile.create(path, secretfile.draw().encode())
    except FileExistsError:
        pass
    return _read_secret(path)


def _read_secret(path: str) -> bytes:
    """FileNotFoundError; ConfigError for a file that somebody has emptied: anybody can sign with an empty key."""
    if not (secret := Disk().read(path)):
        raise ConfigError([f"http.secret is empty, and so is {path}, where this node keeps one: remove that file"])
    return secret


def _set_up_metrics(config: Config) -> None:
    """The directory in which the workers share their numbers."""
    if config.http.debug.prometheus.enabled:
        directory = tempfile.mkdtemp(prefix="registry-cluster-metrics-")
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        owner = os.getpid()
        atexit.register(lambda: shutil.rmtree(directory, ignore_errors=True) if os.getpid() == owner else None)


class GunicornLog:
    """gunicorn's log, in our form. It asks for these methods; requests are logged elsewhere (cluster/logs.py)."""

    access_log_enabled = False

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self.error_log = logging.getLogger("gunicorn")
        self.access_log = logging.getLogger("gunicorn.access")
        log = self.error_log
        self.critical, self.error, self.warning = log.critical, log.error, log.warning
        self.info, self.debug, self.exception, self.log = log.info, log.debug, log.exception, log.log

    def setup(self, cfg: Any) -> None:
        """SIGHUP: nothing to set up again."""
        self.cfg = cfg

    def access(self, *_: object) -> None:
        """Not here."""

    def reopen_files(self) -> None:
        """There are none: the log goes to stderr."""

    def close_on_exec(self) -> None:
        """There are no files to close."""
