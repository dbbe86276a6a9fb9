"""The composition root: the only place where concrete classes meet.

`create_app` takes ready parts (tests give it memory); `build` makes them from the configuration.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import falcon.asgi

from cluster.api import errors, routes
from cluster.api.access import AccessControl
from cluster.api.base import BaseResource, RootResource
from cluster.api.blobs import BlobResource
from cluster.api.edge import Edge, Header, Observer
from cluster.api.errors import Request, Response
from cluster.api.guard import Guard
from cluster.api.health import DebugHealthResource, HealthResource, LiveResource, ReadyResource
from cluster.api.lists import CatalogResource, ReferrersResource, TagsResource
from cluster.api.manifests import ManifestResource
from cluster.api.token import TokenResource
from cluster.api.uploads import UploadResource, UploadsResource, UploadUrls
from cluster.api.urls import ClientAddress, Urls
from cluster.auth.access import Authenticator
from cluster.auth.build import Closed, ClosedTokenServer, build_authenticator, build_token_server, token_paths
from cluster.auth.grants import TokenServer
from cluster.background import Background, Task
from cluster.errors import ConfigError
from cluster.identity import Identity, has_mark, identify
from cluster.logs import AccessLog
from cluster.outlet import Outlet
from cluster.patterns import Pattern
from cluster.registry.blobs import BlobStore
from cluster.registry.catalog import Catalog
from cluster.registry.health import Check, Health
from cluster.registry.manifests import ManifestStore, Rules
from cluster.registry.purger import Purger, Schedule
from cluster.registry.referrers import Referrers
from cluster.registry.tags import TagStore
from cluster.registry.uploads import UploadService
from cluster.settings import Config, StorageCheck
from cluster.state.build import build_state
from cluster.state.shared import SharedState
from cluster.state.store import Node
from cluster.storage import layout
from cluster.storage.driver import Driver, StorageReplaced, Uploads
from cluster.storage.filesystem import CHUNK, FilesystemDriver
from cluster.storage.memory import MemoryDriver, MemoryUploads
from cluster.storage.mixed import MixedUploads
from cluster.storage.segments import SegmentUploads
from cluster.storage.threads import Threads
from cluster.tally import Tally
from cluster.tls import is_served

STORAGE_LIMIT = 10.0  # seconds for one small call
_HEARTBEAT = 5.0  # seconds
_REFRESH = 1.0  # seconds between two looks at the files of accounts and keys
_TLS_CHUNK = 64 * 1024  # bytes of a blob: TLS keeps about four times that for a client that does not read
# Where health.storagedriver is off. A node whose storage hangs is unready after 20 s at most: before a client has
# used up three tries of STORAGE_LIMIT each.
_PROBING = StorageCheck.model_construct(interval=5.0, threshold=3)
_PROBE_PATIENCE = 2.0  # seconds that a probe has at least: a busy disk may take as long to sync
_API_VERSION: Header = (b"docker-distribution-api-version", b"registry/2.0")

App = falcon.asgi.App[Request, Response]
T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """What an application is made of, besides the configuration."""

    driver: Driver
    uploads: Uploads
    secrets: Sequence[bytes]  # sign with the first, accept any
    observers: Sequence[Observer] = ()  # of every request; the access log is one more
    access_log: AccessLog | None = None
    tell_in_flight: Callable[[int], object] | None = None  # hears how many requests are under way
    identity: Identity | None = None
    state: SharedState = field(default_factory=lambda: SharedState(None))
    authenticator: Authenticator | None = None  # None: everybody may do everything
    token_server: TokenServer | None = None  # None: tokens come from somebody else, or are not asked for
    tally: Tally = field(default_factory=Tally)  # uploads under way, of all workers


@dataclass(frozen=True)
class Application:
    """What serves, and what the worker that runs it has to know of it."""

    edge: Edge
    health: Health


def create_app(config: Config, parts: Parts) -> Application:
    """Wire the services and the resources."""
    driver = parts.driver
    guard = Guard(
        read_only=config.storage.maintenance.readonly.enabled,
        delete=config.storage.delete.enabled,
        uploads=config.cluster.maxuploads,
        tell=parts.tally.tell,
    )
    urls = Urls(
        host=config.http.host,
        prefix=config.http.prefix,
        relative=config.http.relativeurls,
        trusted_proxies=config.cluster.proxies,
        tell_clients=config.cluster.trustedproxies is not None,
    )
    upload_urls = UploadUrls(urls, parts.secrets)
    catalog, tags = Catalog(driver), TagStore(driver)
    referrers = Referrers(driver, writable=not config.storage.maintenance.readonly.enabled)
    identity = parts.identity or identify(config, parts.secrets)
    blobs = BlobStore(driver, catalog, parts.state if _shares_descriptors(config) else None)
    uploads = UploadService(parts.uploads, blobs, hints=parts.state)
    manifests = ManifestStore(driver, blobs, tags, referrers, _rules(config))
    health = _health(config, parts, identity)

    router = routes.Router(config.http.prefix)
    router.add(routes.ROOT, RootResource())
    router.add(routes.BASE, BaseResource())
    router.add(routes.CATALOG, CatalogResource(catalog, urls, config.catalog.maxentries))
    router.add(routes.TAGS, TagsResource(tags, urls, config.tags.maxtags))
    begin = UploadsResource(
        uploads,
        blobs,
        guard,
        upload_urls,
        anonymous_mount=config.cluster.anonymousmount,
        chunk_min_length=config.cluster.chunkminlength,
    )
    router.add(routes.UPLOADS, begin)
    router.add(routes.UPLOAD, UploadResource(uploads, guard, upload_urls))
    router.add(routes.BLOB, BlobResource(blobs, guard))
    router.add(routes.MANIFEST, ManifestResource(manifests, guard, urls))
    router.add(routes.REFERRERS, ReferrersResource(referrers, urls))
    if parts.token_server is not None:
        tokens = TokenResource(parts.token_server, urls, config.auth.token.service if config.auth.token else "")
        for path in token_paths(config):
            router.add(routes.Route(path, "token"), tokens)
    _add_health(router, health)

    purger = _purger(config, parts, identity, catalog)
    middleware: list[object] = [_background(config, health, purger, parts, identity), ClientAddress(urls)]
    if parts.authenticator is not None:
        # Somebody else's token server is asked by https, as Distribution has it; ours is wherever we are.
        scheme = None if parts.token_server is not None else "https"
        middleware.append(AccessControl(parts.authenticator, urls, upload_urls.began, realm_scheme=scheme))
    app = _falcon(router, middleware)
    debug_app = _falcon(_debug_router(config, health)) if config.http.debug.addr else None
    edge = Edge(
        app,
        headers=[_API_VERSION, *_configured_headers(config)],
        observers=[*parts.observers, *([parts.access_log] if parts.access_log else [])],
        tell_in_flight=parts.tell_in_flight,
        debug_app=debug_app,
        debug_port=port_of(config.http.debug.addr) if debug_app is not None else None,
    )
    return Application(edge, health)


def build(
    config: Config,
    secrets: Sequence[bytes],
    *,
    identity: Identity | None = None,
    observers: Sequence[Observer] = (),
    tell_in_flight: Callable[[int], object] | None = None,
    tally: Tally | None = None,
) -> Application:
    """An application on the storage that the configuration names. Call it in the process that will serve."""
    driver, uploads = storage(config, identity)
    state = build_state(config.redis, secrets)
    return create_app(
        config,
        Parts(
            driver,
            uploads,
            secrets,
            observers,
            access_log=_access_log(config),
            tell_in_flight=tell_in_flight,
            identity=identity,
            state=state,
            authenticator=_or_closed(partial(build_authenticator, config, state), Closed),
            token_server=_or_closed(partial(build_token_server, config, state), ClosedTokenServer),
            tally=tally or Tally(),
        ),
    )


def _access_log(config: Config) -> AccessLog | None:
    if config.log.accesslog.disabled:
        return None
    probes = config.log.level == "debug"
    return AccessLog(config.log.formatter, config.log.fields, Outlet(1, "stdout"), probes=probes)


def _or_closed(
    make: Callable[[], T | None], closed: Callable[[Callable[[], T | None], ConfigError], T]
) -> T | None:
    try:
        return make()
    except ConfigError as trouble:
        return closed(make, trouble)


def storage(config: Config, identity: Identity | None = None) -> tuple[Driver, Uploads]:
    """The driver that the configuration names; its probe looks for the mark of this node, if it has left one."""
    if config.storage.driver == "inmemory":
        memory = MemoryDriver()
        return memory, MemoryUploads(memory)
    settings = config.storage.filesystem
    root = data_directory(config)
    threads = Threads(settings.maxthreads, STORAGE_LIMIT)
    writable = not config.storage.maintenance.readonly.enabled
    driver = FilesystemDriver(
        root,
        threads,
        writable=writable,
        chunk=_TLS_CHUNK if is_served(config) else CHUNK,
        recognise=partial(_recognise, root, identity) if identity and identity.mark else lambda: None,
    )
    uploads = MixedUploads if config.cluster.mixed else SegmentUploads
    return driver, uploads(root, driver, threads)


def _recognise(root: str, me: Identity) -> None:
    """StorageReplaced where a mount went away: the directory below it answers, and no other node sees it."""
    if not has_mark(root, me.name, me.mark, me.started):
        place = f"{root}/{layout.NODES}"
        raise StorageReplaced(f"the mark of this node is not in {place}: is what is mounted there what was?")


def data_directory(config: Config) -> str:
    """Where the file system driver keeps everything."""
    return f"{config.storage.filesystem.rootdirectory.rstrip('/')}/{layout.ROOT}"


def port_of(address: str) -> int | None:
    """The port of `host:port` or `:port`."""
    port = address.rpartition(":")[2]
    return int(port) if port.isdecimal() else None


def _falcon(router: routes.Router, middleware: Sequence[object] = ()) -> App:
    # Falcon's annotations know its own router class only; the contract is `find` (falcon docs, "Custom Routers").
    app: App = falcon.asgi.App(router=router, middleware=list(middleware))  # type: ignore[call-overload]
    app.req_options.auto_parse_qs_csv = False
    app.req_options.keep_blank_qs_values = True
    errors.install(app)
    return app


def _add_health(router: routes.Router, health: Health) -> None:
    router.add(routes.LIVE, LiveResource())
    router.add(routes.READY, ReadyResource(health))
    router.add(routes.HEALTH, HealthResource(health))


def _debug_router(config: Config, health: Health) -> routes.Router:
    router = routes.Router()
    _add_health(router, health)
    router.add(routes.Route("/debug/health", "debug"), DebugHealthResource(health))
    if config.http.debug.prometheus.enabled:
        from cluster.metrics import MetricsResource  # noqa: PLC0415 - only where its directory has been set up

        router.add(routes.Route(config.http.debug.prometheus.path, "debug"), MetricsResource())
    return router


def _rules(config: Config) -> Rules:
    validation = config.validation
    indexes = validation.manifests.indexes
    return Rules(
        disabled=validation.disabled,
        sparse=config.cluster.sparse,
        urls_allow=tuple(Pattern(pattern) for pattern in validation.manifests.urls.allow),
        urls_deny=tuple(Pattern(pattern) for pattern in validation.manifests.urls.deny),
        platforms=indexes.platforms,
        platform_list=frozenset((platform.architecture, platform.os) for platform in indexes.platformlist),
        classes=frozenset(config.policy.repository.classes),
    )


def _shares_descriptors(config: Config) -> bool:
    """Whether Distribution nodes may look at the descriptors in Redis."""
    return config.redis is not None and (config.cluster.mixed or config.storage.cache.blobdescriptor == "redis")


def _probing(config: Config) -> StorageCheck:
    wanted = config.health.storagedriver
    return wanted if wanted.enabled else _PROBING


def _health(config: Config, parts: Parts, identity: Identity) -> Health:
    probing = _probing(config)
    check = Check(
        f"storagedriver_{config.storage.driver}",
        threshold=probing.threshold,
        patience=min(max(probing.interval, _PROBE_PATIENCE), STORAGE_LIMIT),
    )

    def shared() -> str:
        if config.redis is None:
            return "not configured"
        return "failing" if parts.state.trouble else "ok"  # the log says why: anybody may ask, and it has addresses

    return Health(
        parts.driver,
        check,
        node=identity.to_dict,
        uploading=parts.tally.total,
        shared=shared,
    )


def _purger(config: Config, parts: Parts, identity: Identity, catalog: Catalog) -> Purger:
    settings = config.storage.maintenance.uploadpurging
    schedule = Schedule(settings.age, settings.interval, settings.dryrun)
    return Purger(parts.driver, parts.uploads, catalog, schedule, turns=parts.state, node=identity.name)


def _background(config: Config, health: Health, purger: Purger, parts: Parts, identity: Identity) -> Background:
    purging = config.storage.maintenance.uploadpurging
    tasks = [Task("storage probe", health.probe, _probing(config).interval, 0, steady=True)]
    if purging.enabled and not config.storage.maintenance.readonly.enabled:
        tasks.append(Task("upload purge", purger.run, purging.interval, min(purging.interval, 3600)))
    if config.redis is not None:
        tasks.append(Task("shared state", parts.state.run, 1, 0))
        tasks.append(Task("heartbeat", lambda: parts.state.beat(_node(config, identity)), _HEARTBEAT, 0))
    if parts.authenticator is not None:
        tasks.append(Task("accounts and keys", parts.authenticator.refresh, _REFRESH, _REFRESH))
    if parts.token_server is not None:
        tasks.append(Task("accounts and keys of tokens", parts.token_server.refresh, _REFRESH, _REFRESH))
    return Background(tasks, parts.access_log.flush if parts.access_log else lambda: None)


def _node(config: Config, identity: Identity) -> Node:
    """What this node tells the others of itself, now."""
    return Node(
        name=identity.name,
        url=_url(config),
        version=identity.version,
        pid=os.getpgrp(),
        started=identity.started,
        clock=time.time(),
        signs=identity.signs,
        accepts=identity.accepts,
        storage=identity.mark,
    )


def _url(config: Config) -> str:
    """Where the others may find this node: by its host's name, when it listens at every address."""
    if config.http.net == "unix":
        return ""
    host, _, port = config.http.addr.rpartition(":")
    if host in ("", "0.0.0.0", "[::]"):  # noqa: S104 - it is compared, and nothing listens there
        host = socket.gethostname()
    return f"{'https' if is_served(config) else 'http'}://{host}:{port}"


def _configured_headers(config: Config) -> list[Header]:
    return [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, values in config.http.headers.items()
        for value in values
    ]
