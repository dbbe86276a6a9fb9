"""What no single value shows: settings that need each other, exclude each other, or are not served.

Owns what stops a start and what is only warned of: a setting that is not served stops it where it decides who may
do what, or where bytes go. Each rule yields the name of a setting, and what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any

from cluster.config_words import Origins, shown
from cluster.settings import DRIVERS, Config
from cluster.values import is_addr


def _on(items: Sequence[Any] | None) -> bool:
    """Whether a list has entries that are not switched off."""
    return any(not getattr(item, "disabled", False) for item in items or ())


_REFUSED: tuple[tuple[str, Callable[[Config], object]], ...] = (
    ("auth.silly", lambda c: c.auth.silly is not None),
    ("proxy.remoteurl", lambda c: c.proxy and c.proxy.remoteurl),
    ("middleware.registry", lambda c: c.middleware and _on(c.middleware.registry)),
    ("middleware.repository", lambda c: c.middleware and _on(c.middleware.repository)),
    ("middleware.storage", lambda c: c.middleware and _on(c.middleware.storage)),
)
_WITHOUT_EFFECT: tuple[tuple[str, Callable[[Config], object]], ...] = (
    ("log.hooks", lambda c: _on(c.log.hooks)),
    ("log.reportcaller", lambda c: c.log.reportcaller),
    ("http.http2", lambda c: c.http.http2 and not c.http.http2.disabled),
    ("http.h2c", lambda c: c.http.h2c and c.http.h2c.enabled),
    ("notifications.endpoints", lambda c: c.notifications and _on(c.notifications.endpoints)),
    ("health.file", lambda c: c.health.file),
    ("health.http", lambda c: c.health.http),
    ("health.tcp", lambda c: c.health.tcp),
    ("compatibility.schema1", lambda c: c.compatibility and c.compatibility.schema1.enabled),
    ("reporting", lambda c: c.reporting),
)
# Distribution's client library has them; ours keeps a few connections, and a call that fails is not repeated.
REDIS_WITHOUT_EFFECT = (
    "protocol",
    "contexttimeoutenabled",
    "maxretries",
    "minretrybackoff",
    "maxretrybackoff",
    "poolfifo",
    "pooltimeout",
    "minidleconns",
    "maxidleconns",
    "maxactiveconns",
    "connmaxidletime",
    "connmaxlifetime",
    "pool.maxidle",
    "pool.idletimeout",
    "maxredirects",
    "readonly",
    "routebylatency",
    "routerandomly",
    "disableidentity",
    "identitysuffix",
    "unstableresp3",
)


def broken_rules(config: Config, drivers: list[str], origins: Origins) -> Iterator[tuple[str, str]]:
    """What no single value shows: a setting, and what is wrong with it."""
    yield from _broken_storage_rules(config, drivers, origins)
    for name, written in _REFUSED:
        if written(config):
            yield name, "not supported yet, and ignoring it would change who may do what, or where data goes"
    if config.http.net == "tcp" and not is_addr(config.http.addr):
        yield "http.addr", f"found {shown((), config.http.addr)}, wanted host:port, such as :5000"
    if config.cluster.secretfile and config.http.secret:
        yield "cluster.secretfile", "written beside http.secret, wanted one of the two"
    if len(config.cluster.nodes) > 1 and not config.http.secret and not config.cluster.secretfile:
        yield "http.secret", "missing, wanted one secret that all of cluster.nodes share"
    yield from _broken_auth_rules(config)
    yield from _broken_tls_rules(config)


def _broken_auth_rules(config: Config) -> Iterator[tuple[str, str]]:
    kinds = [name for name in ("htpasswd", "token", "silly") if getattr(config.auth, name) is not None]
    if len(kinds) > 1:
        yield "auth", f"found {', '.join(kinds)}, wanted one of them"
    if (htpasswd := config.auth.htpasswd) is not None:
        if not (htpasswd.realm and htpasswd.realm.isascii() and htpasswd.realm.isprintable()):
            found = f"found {shown((), htpasswd.realm)}" if htpasswd.realm else "missing"
            yield "auth.htpasswd.realm", f"{found}, wanted a line of ASCII text"
        if not htpasswd.path:
            yield "auth.htpasswd.path", "missing, wanted the path of the file of accounts"
    elif config.cluster.policy and config.cluster.tokenserver is None:
        why = "somebody else's tokens say who may what" if config.auth.token else "nobody is asked who they are"
        yield "cluster.policy", f"wanted auth.htpasswd or cluster.tokenserver too: {why}"
    yield from _broken_token_rules(config)


def _broken_token_rules(config: Config) -> Iterator[tuple[str, str]]:
    token, server = config.auth.token, config.cluster.tokenserver
    if server is not None:
        if token is None:
            yield "cluster.tokenserver", "wanted auth.token too: nobody is asked for the tokens that it makes"
        for name in ("htpasswd", "keys"):
            if not getattr(server, name):
                yield f"cluster.tokenserver.{name}", "missing, wanted a path that all nodes share"
    if token is None:
        return
    for name in ("issuer", "service"):
        if not getattr(token, name):
            yield f"auth.token.{name}", "missing: every token has to name it"
    if not token.autoredirect and not re.match("https?://[^/]", token.realm):
        yield "auth.token.realm", f"found {shown((), token.realm)}, wanted a URL, or auth.token.autoredirect"
    if server is None and not (token.rootcertbundle or token.jwks):
        yield "auth.token", "no keys to know tokens by: wanted rootcertbundle, jwks, or cluster.tokenserver"


def _broken_tls_rules(config: Config) -> Iterator[tuple[str, str]]:
    tls = config.http.tls
    if tls is None or not tls.model_dump(exclude_defaults=True):
        return
    if tls.letsencrypt.model_dump(exclude_defaults=True):
        yield (
            "http.tls.letsencrypt",
            "not supported: have another program keep http.tls.certificate and http.tls.key, which are read again "
            "when they change",
        )
        return
    for name in ("certificate", "key"):
        if not getattr(tls, name):  # Distribution would listen without TLS
            yield f"http.tls.{name}", "missing, wanted a path: the other settings of http.tls protect nothing alone"
    if tls.clientauth and not tls.clientcas:
        yield "http.tls.clientauth", "wanted http.tls.clientcas too: there is nobody to verify certificates by"
    if tls.certificate and (plain := [url for url in config.cluster.nodes if url.startswith("http:")]):
        yield "cluster.nodes", f"found {', '.join(plain)}, wanted https: the nodes have http.tls"


def _broken_storage_rules(config: Config, drivers: list[str], origins: Origins) -> Iterator[tuple[str, str]]:
    if not drivers:
        yield "storage", f"no driver, wanted {' or '.join(DRIVERS)}"
    if len(drivers) > 1:
        written = {path[1]: origin for path, origin in origins.items() if path[0] == "storage" and path[1:]}
        found = ", ".join(f"{name} ({written[name]})" if name in written else name for name in drivers)
        by_variable = [name for name in drivers if name in written]
        how = f"; set REGISTRY_STORAGE={by_variable[-1]} too, to replace the file's" if by_variable else ""
        yield "storage", f"found {found}, wanted one driver{how}"
    for name in drivers:
        if name not in DRIVERS:
            yield f"storage.{name}", f"this driver is not supported yet, wanted {' or '.join(DRIVERS)}"
    if drivers == ["inmemory"]:
        alone = "inmemory storage lives in one process"
        if (config.cluster.workers or 1) > 1:
            yield "cluster.workers", f"found {config.cluster.workers}, wanted 1: {alone}"
        if len(config.cluster.nodes) > 1:
            yield "cluster.nodes", f"found {len(config.cluster.nodes)} nodes, wanted 1: {alone}"


def without_effect(config: Config) -> Iterator[tuple[str, str]]:
    for name, written in _WITHOUT_EFFECT:
        if written(config):
            yield name, "not supported yet, without effect"
    for name in REDIS_WITHOUT_EFFECT if config.redis else ():
        if attrgetter(name)(config.redis):
            yield f"redis.{name}", "without effect here: it is for the client library of Distribution"
    if config.validation.enabled is not None:
        yield "validation.enabled", "an old setting without effect, see validation.disabled"
    if config.storage.cache.blobdescriptor == "redis" and config.redis is None:
        yield "storage.cache.blobdescriptor", "redis, but no redis section has an address"
