"""The configuration file: what is read, what is refused, what is shown; deploy/config.example.yml is complete."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.ciphers import CIPHERS
from cluster.config import check, find, load, parse, show
from cluster.errors import ConfigError
from cluster.settings import Config, Section
from cluster.values import duration, format_duration, size

EXAMPLE = Path(__file__).parents[2] / "deploy" / "config.example.yml"
BASE = "version: 0.1\nstorage: {filesystem: {}}\n"
SECRET = "hunter2-hunter2"


def problems(text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, environ or {})
    return caught.value.problems


def wrong_with(path: Path) -> list[str]:
    """What a check of a file finds."""
    with pytest.raises(ConfigError) as caught:
        check(path, {})
    return caught.value.problems


# -- Finding and reading


def test_the_argument_goes_before_the_variable_and_the_variable_before_the_usual_places(tmp_path: Path) -> None:
    usual = [tmp_path / "absent.yml", tmp_path / "v3.yml", tmp_path / "v2.yml"]
    for place in usual[1:]:
        place.write_text(BASE)
    environ = {"REGISTRY_CONFIGURATION_PATH": "/variable.yml"}
    assert find("given.yml", environ, usual) == Path("given.yml")
    assert find(None, environ, usual) == Path("/variable.yml")
    assert find(None, {"REGISTRY_CONFIGURATION_PATH": ""}, usual) == usual[1]
    assert find("-", environ, usual) == Path("/dev/stdin")


def test_a_file_that_is_nowhere_is_a_problem_that_names_the_places() -> None:
    with pytest.raises(ConfigError, match=r"REGISTRY_CONFIGURATION_PATH, /nowhere/a\.yml, /nowhere/b\.yml$"):
        find(None, {}, [Path("/nowhere/a.yml"), Path("/nowhere/b.yml")])


def test_a_file_that_cannot_be_read_is_one_readable_problem(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, reason in [
        (tmp_path / "none.yml", os.strerror(2)),
        (tmp_path, os.strerror(21)),
        (binary, "not UTF-8 text"),
    ]:
        assert wrong_with(path) == [f"{path}: cannot be read: {reason}"]
        with pytest.raises(ConfigError, match=re.escape(reason)):
            load(path, {})


def test_the_defaults_are_those_of_distribution() -> None:
    config = parse(BASE, {}).config
    assert (config.storage.driver, config.storage.filesystem.rootdirectory) == ("filesystem", "/var/lib/registry")
    assert config.storage.filesystem.maxthreads == 100
    purging = config.storage.maintenance.uploadpurging
    assert (purging.enabled, purging.age, purging.interval, purging.dryrun) == (True, 604800.0, 86400.0, False)
    assert (config.http.addr, config.http.net, config.http.host, config.http.relativeurls) == (
        ":5000",
        "tcp",
        None,
        None,
    )
    assert (config.http.draintimeout, config.http.debug.prometheus.path) == (30.0, "/metrics")
    assert (config.health.storagedriver.interval, config.health.storagedriver.threshold) == (10.0, 0)
    assert (config.catalog.maxentries, config.tags.maxtags, config.redis) == (1000, 1000, None)
    assert (config.cluster.workers, config.cluster.maxuploads, config.cluster.anonymousmount) == (None, 256, True)
    proxies = config.cluster.proxies
    for address, trusted in [
        ("127.0.0.1", 1),
        ("::1", 1),
        ("10.9.8.7", 1),
        ("fd00::1", 1),
        ("8.8.8.8", 0),
        ("2a00::1", 0),
    ]:
        assert any(ipaddress.ip_address(address) in network for network in proxies) == bool(trusted)


V2 = """
version: 0.1
log:
  fields: {service: registry, rank: 3}
loglevel: warn
storage:
  cache: {layerinfo: inmemory}
  filesystem: {rootdirectory: /var/lib/docker-registry, maxthreads: "3"}
  delete: {enabled: yes}
  maintenance:
    uploadpurging: {enabled: true}
    readonly:
http:
  addr: :5000
  secret: 0123
  headers: {X-Content-Type-Options: [nosniff]}
  prefix: /registry/
redis:
  addr: localhost:6379
  password: 007
  pool: {maxidle: 16, maxactive: 64, idletimeout: 300s}
health:
  storagedriver: {enabled: true, interval: 0, threshold: 3}
validation: {enabled: true}
"""

V3 = """
version: "0.1"
log: {level: debug, accesslog: {disabled: true}, formatter: json}
storage:
  filesystem: {rootdirectory: /data}
  tag: {concurrencylimit: 8}
  cache: {blobdescriptor: redis, blobdescriptorsize: 50}
http:
  addr: 127.0.0.1:5000
  host: https://registry.example.com/sub/
  relativeurls: false
  draintimeout: 1m
  debug: {addr: "[::1]:5001", prometheus: {enabled: true, path: /m}}
redis:
  addrs: [a:26379, b:26379]
  mastername: main
  readtimeout: -1
  dialtimeout: 250ms
  tls: {rootcas: [/ca.pem]}
validation:
  manifests:
    urls: {allow: ["^https://example\\\\.com/"]}
    indexes: {platforms: list, platformlist: [{architecture: amd64, os: linux}]}
policy: {repository: {classes: [image]}}
auth: none
"""


def test_a_file_of_v2_8_is_understood_old_names_included() -> None:
    loaded = parse(V2, {})
    config = loaded.config
    assert loaded.warnings == [
        "loglevel: an old name of log.level",
        "storage.cache.layerinfo: an old name of storage.cache.blobdescriptor",
        "redis.pool.maxidle: without effect here: it is for the client library of Distribution",
        "redis.pool.idletimeout: without effect here: it is for the client library of Distribution",
        "validation.enabled: an old setting without effect, see validation.disabled",
    ]
    assert (config.log.level, config.log.fields) == ("warn", {"service": "registry", "rank": 3})
    assert (config.storage.cache.blobdescriptor, config.storage.delete.enabled) == ("inmemory", True)
    assert config.storage.filesystem.maxthreads == 25  # Distribution's minimum
    assert config.storage.maintenance.readonly.enabled is False
    assert (config.http.secret, config.http.prefix) == (
        "0123",
        "/registry",
    )  # unquoted, and still its four characters
    assert config.http.headers == {"X-Content-Type-Options": ["nosniff"]}
    assert config.redis is not None
    assert (config.redis.addrs, config.redis.password, config.redis.pool.idletimeout) == (
        ["localhost:6379"],
        "007",
        300.0,
    )
    assert (config.health.storagedriver.interval, config.health.storagedriver.threshold) == (10.0, 3)


def test_a_file_of_v3_is_understood_without_a_warning() -> None:
    loaded = parse(V3, {})
    config = loaded.config
    assert loaded.warnings == []
    assert (config.log.level, config.log.formatter, config.log.accesslog.disabled) == ("debug", "json", True)
    assert (config.storage.tag.concurrencylimit, config.http.draintimeout) == (8, 60.0)
    assert (config.http.host, config.http.relativeurls) == ("https://registry.example.com/sub/", False)
    assert (config.http.debug.addr, config.http.debug.prometheus.path) == ("[::1]:5001", "/m")
    assert config.redis is not None
    assert (config.redis.addrs, config.redis.readtimeout, config.redis.dialtimeout) == (
        ["a:26379", "b:26379"],
        -1.0,
        0.25,
    )
    assert config.validation.manifests.urls.allow == [r"^https://example\.com/"]
    assert [platform.os for platform in config.validation.manifests.indexes.platformlist] == ["linux"]


def test_the_section_of_ours_is_read() -> None:
    text = """
cluster:
  workers: 3
  secrets: [one, 2]
  nodes: ["http://10.0.0.1:5000"]
  trustedproxies: [192.0.2.7, 2001:db8::/32]
  chunkminlength: 5MiB
  mixed: true
  sparse: on
  anonymousmount: false
"""
    ours = parse(BASE + text, {}).config.cluster
    assert (ours.workers, ours.secrets, ours.nodes) == (3, ["one", "2"], ["http://10.0.0.1:5000"])
    assert [str(network) for network in ours.proxies] == ["192.0.2.7/32", "2001:db8::/32"]
    assert (ours.chunkminlength, ours.mixed, ours.sparse, ours.anonymousmount) == (
        5 * 1024 * 1024,
        True,
        True,
        False,
    )


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("log: {level: INFO}", "log.level", "info"),
        ("loglevel: Debug", "log.level", "debug"),
        ("validation: {manifests: {indexes: {platforms: List}}}", "validation.manifests.indexes.platforms", "list"),
        ("http: {prefix: foo}", "http.prefix", "/foo"),
        ("http: {prefix: foo/bar/}", "http.prefix", "/foo/bar"),
        ("http: {prefix: /}", "http.prefix", ""),
        ("http: {prefix: ''}", "http.prefix", ""),
    ],
)
def test_what_distribution_takes_in_more_than_one_spelling(text: str, path: str, value: str) -> None:
    assert attrgetter(path)(parse(BASE + text, {}).config) == value


def test_a_configuration_cannot_be_changed() -> None:
    config = parse(BASE, {}).config
    with pytest.raises(ValueError, match="frozen"):
        config.http.addr = ":1"


# -- Problems


WRONG = [
    ("storage: {filesystem: {}}", "version: missing, wanted 0.1"),
    ("version: 0.2\nstorage: {filesystem: {}}", 'version: found "0.2", wanted "0.1"'),
    ("version: 0.1", "storage: no driver, wanted filesystem or inmemory"),
    ("version: 0.1\nstorage: {delete: {enabled: true}}", "storage: no driver, wanted filesystem or inmemory"),
    (
        "version: 0.1\nstorage: {filesystem: {}, inmemory: }",
        "storage: found filesystem, inmemory, wanted one driver",
    ),
    (
        "version: 0.1\nstorage: {s3: {}}",
        "storage.s3: this driver is not supported yet, wanted filesystem or inmemory",
    ),
    ("version: 0.1\nstorage: [filesystem]", "storage: found a list, wanted a section"),
    ("version: 0.1\nstorage: {filesystem: /data}", 'storage.filesystem: found "/data", wanted a section'),
    (BASE + "log: {level: loud}", 'log.level: found "loud", wanted "error", "warn", "info" or "debug"'),
    (BASE + "loglevel: loud", 'log.level (loglevel): found "loud", wanted "error", "warn", "info" or "debug"'),
    (BASE + "http: {net: udp}", 'http.net: found "udp", wanted "tcp" or "unix"'),
    (BASE + "http: {addr: 5000}", 'http.addr: found "5000", wanted host:port, such as :5000'),
    (BASE + "http: {addr: ':65536'}", 'http.addr: found ":65536", wanted host:port, such as :5000'),
    (
        BASE + "http: {debug: {addr: x}}",
        'http.debug.addr: found "x", wanted host:port, such as :5001 or 127.0.0.1:5001',
    ),
    (
        BASE + "http: {host: example.com}",
        'http.host: found "example.com", wanted a URL such as https://registry.example.com',
    ),
    (BASE + "http: {prefix: 'x?y'}", 'http.prefix: found "/x?y", wanted a path that begins with a slash'),
    (BASE + "http: {headers: {X: z}}", 'http.headers.X: found "z", wanted a list'),
    (BASE + "http: {headers: {X Y: [z]}}", 'http.headers."X Y": found "X Y", wanted a header name'),
    (
        BASE + 'http: {headers: {X: ["a\\nb"]}}',
        'http.headers.X[0]: found "a\\nb", wanted a header value: one line of Latin-1 text',
    ),
    (BASE + "http: {relativeurls: 1}", "http.relativeurls: found 1, wanted true or false"),
    (BASE + 'http: {relativeurls: "true"}', 'http.relativeurls: found "true", wanted true or false'),
    (BASE + "catalog: {maxentries: many}", 'catalog.maxentries: found "many", wanted a whole number'),
    (BASE + "tags: {maxtags: -1}", "tags.maxtags: found -1, wanted 0 or more"),
    (BASE + "cluster: {workers: 0}", "cluster.workers: found 0, wanted 1 or more"),
    (BASE + "cluster: {workers: true}", "cluster.workers: found true, wanted a whole number"),
    (
        BASE + "cluster: {nodes: [a]}",
        'cluster.nodes[0]: found "a", wanted a URL such as https://registry.example.com',
    ),
    (BASE + "cluster: {trustedproxies: 10.0.0.0/8}", 'cluster.trustedproxies: found "10.0.0.0/8", wanted a list'),
    (
        BASE + "cluster: {trustedproxies: [10.0.0.0/8, x]}",
        'cluster.trustedproxies[1]: found "x", wanted an address or a network such as 10.0.0.0/8 or fd00::/8',
    ),
    (
        BASE + "cluster: {chunkminlength: 5 apples}",
        'cluster.chunkminlength: found "5 apples", wanted a size in bytes, or one such as 64KiB, 5MiB or 5MB',
    ),
    *(
        (
            BASE + f"redis: {{addrs: ['{text}']}}",
            f'redis.addrs[0]: found "{text}", wanted host:port, such as '
            "10.0.0.20:6379; password, db and tls are settings of their own",
        )
        for text in ("redis://redis:6379", "redis:port", "redis:99999", "user@redis:6379", "[::1:6379", "::1")
    ),
    (
        BASE + "http: {addr: :5000}",
        "config.yml, line 3: not YAML: expected the node content, but found ':'; quote it if it is text",
    ),
    (BASE + "redis: {addr: [a]}", "redis.addrs[0] (redis.addr): found a list, wanted text"),
    (BASE + "storage: {filesystem: {}}", "config.yml, line 3: storage is written twice"),
    (BASE + "http: {addr: ':1', addr: ':2'}", "config.yml, line 3: addr is written twice"),
    ("- 1", "config.yml: found a list, wanted a section with version, storage, http ..."),
    ("", "config.yml: found nothing, wanted a section with version, storage, http ..."),
    ("a: b: c", "config.yml, line 1: not YAML: mapping values are not allowed here"),
    ("a: [1", "config.yml, line 1: not YAML: expected ',' or ']', but got '<stream end>'"),
    (
        "a:\n\tb: 1",
        "config.yml, line 2: not YAML: found character '\\t' that cannot start any token; indent with spaces",
    ),
    ("a: *secret", "config.yml, line 1: not YAML: found undefined alias <hidden>; quote it if it is text"),
    ("a: 1\n---\nb: 2", "config.yml, line 2: not YAML: but found another document"),
    ("[" * 100_000, "config.yml: nested too deeply"),
    ("a: &a [*a]\nlog: {fields: {a: *a}}", "config.yml: nested too deeply"),
    ('a: "\\ud800"', "config.yml: not YAML: a character or a number that cannot be read"),
    (
        BASE + "cluster: {nodes: ['http://a', 'http://b']}",
        "http.secret: missing, wanted one secret that all of cluster.nodes share",
    ),
    (
        "version: 0.1\nstorage: inmemory\ncluster: {workers: 2}",
        "cluster.workers: found 2, wanted 1: inmemory storage lives in one process",
    ),
    (
        "version: 0.1\nstorage: inmemory\nhttp: {secret: s}\ncluster: {nodes: ['http://a', 'http://b']}",
        "cluster.nodes: found 2 nodes, wanted 1: inmemory storage lives in one process",
    ),
]


@pytest.mark.parametrize(("text", "line"), WRONG, ids=[line[:60] for _, line in WRONG])
def test_a_mistake_is_one_line_with_the_key_the_value_and_what_was_wanted(text: str, line: str) -> None:
    assert problems(text) == [line]


@pytest.mark.parametrize("pattern", [r"^https?://([^/]+\.)*example\.com/", "[[:alpha:]]", r"\pL\z", r"\Q.\E"])
def test_patterns_are_gos(pattern: str) -> None:
    text = yaml.safe_dump({"validation": {"manifests": {"urls": {"deny": [pattern]}}}})
    assert parse(BASE + text, {}).config.validation.manifests.urls.deny == [pattern]


@pytest.mark.parametrize("pattern", ["(", "a{1001}", "(?=a)", r"(a)\1"])
def test_a_pattern_that_go_would_not_take_is_a_problem(pattern: str) -> None:
    text = yaml.safe_dump({"validation": {"manifests": {"urls": {"deny": [pattern]}}}})
    (line,) = problems(BASE + text)
    assert line.startswith("validation.manifests.urls.deny[0]: found ")
    assert "wanted a regular expression" in line


def test_all_problems_are_told_at_once() -> None:
    text = """
version: 7
storage: {filesystem: {}, azure: {}}
http: {addr: 5000, net: udp, headers: {A: b, C: d}}
auth: {htpaswd: {path: x}, token: {realm: [1]}}
cluster: {nodes: ["http://a", "http://b"]}
log: {hooks: [{type: [1]}, {type: [2]}]}
"""
    told = [line.split(":")[0] for line in problems(text)]
    assert sorted(told) == sorted(
        [
            "version", "storage", "storage.azure", "http.addr", "http.net", "http.headers.A", "http.headers.C",
            "auth.htpaswd", "auth.token.realm", "auth.token.issuer", "auth.token.service", "auth.token",
            "http.secret", "log.hooks[0].type", "log.hooks[1].type",
        ]
    )  # fmt: skip


REFUSED = [
    ("auth.silly", "auth: {silly: }"),
    ("proxy.remoteurl", "proxy: {remoteurl: 'https://registry-1.docker.io'}"),
    ("middleware.storage", "middleware: {storage: [{name: redirect, options: {baseurl: 'https://x'}}]}"),
    ("middleware.registry", "middleware: {registry: [{name: x, disabled: true}, {name: y}]}"),
]


@pytest.mark.parametrize(("key", "text"), REFUSED)
def test_a_lock_that_is_not_supported_yet_stops_the_start(key: str, text: str) -> None:
    assert problems(BASE + text) == [
        f"{key}: not supported yet, and ignoring it would change who may do what, or where data goes"
    ]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "auth: htpasswd",
            [
                "auth.htpasswd.realm: missing, wanted a line of ASCII text",
                "auth.htpasswd.path: missing, wanted the path of the file of accounts",
            ],
        ),
        (
            'auth: {htpasswd: {realm: "two\\nlines", path: p}}',
            ['auth.htpasswd.realm: found "two\\nlines", wanted a line of ASCII text'],
        ),
        (
            "cluster: {policy: p}",
            ["cluster.policy: wanted auth.htpasswd or cluster.tokenserver too: nobody is asked who they are"],
        ),
        (
            "auth: {token: {realm: x, issuer: i, service: s, jwks: j}}\ncluster: {policy: p}",
            [
                "cluster.policy: wanted auth.htpasswd or cluster.tokenserver too: somebody else's tokens say who "
                "may what",
                'auth.token.realm: found "x", wanted a URL, or auth.token.autoredirect',
            ],
        ),
        (
            "auth: {token: {realm: 'https://a', issuer: i, service: s}}",
            ["auth.token: no keys to know tokens by: wanted rootcertbundle, jwks, or cluster.tokenserver"],
        ),
        (
            "auth: {token: {autoredirect: true, issuer: i, service: s, jwks: j, signingalgorithms: [none]}}",
            [
                'auth.token.signingalgorithms[0]: found "none", wanted "EdDSA", "ES256", "ES384", "ES512", '
                '"HS256", "HS384", "HS512", "PS256", "PS384", "PS512", "RS256", "RS384" or "RS512"'
            ],
        ),
        (
            "auth: {token: {autoredirect: true, issuer: i, service: 'a\"b', jwks: j}}",
            [
                'auth.token.service: found "a\\"b", wanted a line of ASCII text without quotes and backslashes',
            ],
        ),
        (
            "cluster: {tokenserver: {htpasswd: h, lifetime: 1s}}",
            [
                'cluster.tokenserver.lifetime: found "1s", wanted a duration from 1m to 24h',
                "cluster.tokenserver: wanted auth.token too: nobody is asked for the tokens that it makes",
                "cluster.tokenserver.keys: missing, wanted a path that all nodes share",
            ],
        ),
    ],
)
def test_accounts_and_rules_that_would_protect_nothing_stop_the_start(text: str, lines: list[str]) -> None:
    assert problems(BASE + text) == lines


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("auth: {htpaswd: {}}", "auth.htpaswd: unknown key, did you mean auth.htpasswd?"),
        ("auth: {ldap: {}}", "auth.ldap: unknown key"),
        ("atuh: {htpasswd: {}}", "atuh: unknown key, did you mean auth?"),
        ("cluster: {polcy: p}", "cluster.polcy: unknown key, did you mean cluster.policy?"),
        ("http: {tls: {certifcate: x}}", "http.tls.certifcate: unknown key, did you mean http.tls.certificate?"),
        ("http: {tsl: {certificate: x}}", "http.tsl: unknown key, did you mean http.tls?"),
        ("proxi: {remoteurl: x}", "proxi: unknown key, did you mean proxy?"),
    ],
)
def test_a_lock_that_is_misspelt_does_not_leave_the_registry_open(text: str, line: str) -> None:
    assert problems(BASE + text) == [line]


@pytest.mark.parametrize(
    "text",
    [
        "auth:",
        "auth: {}",
        "auth: none",
        "auth: {none: {}}",
        "http: {tls: {certificate: ''}}",
        "proxy: {remoteurl: '', ttl: 1h}",
        "middleware: {storage: [{name: cloudfront, disabled: true}]}",
        "notifications: {endpoints: [{name: x, disabled: true}]}",
        "http: {http2: {disabled: true}, h2c: {enabled: false}}",
        "http: {net: unix, addr: /run/registry.sock}",
        "redis: {addr: 'redis:6379'}",
        "redis: {addr: 'redis:6379', readonly: false, maxidleconns: 0, poolsize: 8, pool: {maxactive: 8}}",
        "storage: &s {filesystem: {}}",
    ],
)
def test_what_is_switched_off_is_neither_refused_nor_warned_about(text: str) -> None:
    base = "version: 0.1\n" if text.startswith("storage") else BASE
    assert parse(base + text, {}).warnings == []


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("notifications.endpoints", "notifications: {endpoints: [{name: a, url: 'http://x', timeout: 500ms}]}"),
        ("log.hooks", "log: {hooks: [{type: mail, options: {smtp: {addr: a}}}]}"),
        ("log.reportcaller", "log: {reportcaller: true}"),
        ("health.file", "health: {file: [{file: /x, interval: 1s}]}"),
        ("health.http", "health: {http: [{uri: 'http://x', headers: {A: [b]}}]}"),
        ("health.tcp", "health: {tcp: [{addr: 'x:1', timeout: 3s}]}"),
        ("http.http2", "http: {http2: {disabled: false}}"),
        ("http.h2c", "http: {h2c: {enabled: true}}"),
        ("compatibility.schema1", "compatibility: {schema1: {enabled: true}}"),
        ("reporting", "reporting: {newrelic: {licensekey: x}}"),
    ],
)
def test_a_known_key_without_effect_is_a_warning(key: str, text: str) -> None:
    assert parse(BASE + text, {}).warnings == [f"{key}: not supported yet, without effect"]


def test_a_redis_cache_without_redis_is_a_warning() -> None:
    text = "version: 0.1\nstorage: {filesystem: {}, cache: {blobdescriptor: redis}}\nredis: {password: x}"
    assert parse(text, {}).warnings == ["storage.cache.blobdescriptor: redis, but no redis section has an address"]


def test_the_new_spelling_of_an_address_goes_before_the_old_one() -> None:
    loaded = parse(BASE + "redis: {addr: old, addrs: [new]}", {})
    assert loaded.config.redis is not None
    assert loaded.config.redis.addrs == ["new"]
    assert loaded.warnings == ["redis.addr: ignored, redis.addrs is written too"]


def test_an_unknown_key_warns_when_loading_and_fails_a_check(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(BASE + 'http: {adr: x}\nlog: {acceslog: {disabled: true}}\n7: x\nzzz: {y: 1}\n? "a\\nb"\n: 1\n')
    lines = [
        "http.adr: unknown key, did you mean http.addr?",
        "log.acceslog: unknown key, did you mean log.accesslog?",
        "7: unknown key",
        "zzz: unknown key",
        '"a\\nb": unknown key',
    ]
    assert load(path, {}).warnings == lines
    assert wrong_with(path) == lines


@pytest.mark.parametrize("written", ['"true"', "'yes'", "1", "[true]", "sure"])
def test_what_is_no_truth_value_allows_no_deletes_as_in_distribution(tmp_path: Path, written: str) -> None:
    path = tmp_path / "config.yml"
    path.write_text(f"version: 0.1\nstorage: {{filesystem: {{}}, delete: {{enabled: {written}}}}}\n")
    loaded = load(path, {})
    assert loaded.config.storage.delete.enabled is False
    assert loaded.warnings == wrong_with(path)
    (line,) = loaded.warnings
    assert line.startswith("storage.delete.enabled: found ")
    assert line.endswith(", which allows no deletes, as in Distribution: wanted true or false, without quotes")
    loaded = load(path, {"REGISTRY_STORAGE_DELETE_ENABLED": "true"})
    assert (loaded.config.storage.delete.enabled, loaded.warnings) == (True, [])


@pytest.mark.parametrize("word", ["y", "Y", "yes", "on", "True"])
def test_the_truth_values_are_those_of_gos_yaml(word: str) -> None:
    assert parse(BASE + f"http: {{relativeurls: {word}, secret: {word}}}\n", {}).config.http.relativeurls is True
    assert parse(BASE + f"http: {{relativeurls: {word}, secret: {word}}}\n", {}).config.http.secret == word
    assert problems(BASE + f'http: {{relativeurls: "{word}"}}\n') == [
        f'http.relativeurls: found "{word}", wanted true or false'
    ]


def test_a_check_of_a_good_file_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}}}}}\n")
    assert check(path, {}).warnings == []


# -- Durations and sizes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10.0), ("1h30m", 5400.0), ("500ms", 0.5), ("168h", 604800.0), ("1.5h", 5400.0), ("0", 0.0),
        ("0s", 0.0), (".5s", 0.5), ("1us", 1e-6), ("1µs", 1e-6), ("7ns", 7e-9), (0, 0.0), (10**9, 1.0),
    ],
)  # fmt: skip
def test_a_duration_is_what_go_reads(text: object, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "10",
        "s",
        "10 s",
        "-1s",
        "1d",
        "1h-1m",
        "1e3s",
        ".s",
        10,
        -1,
        True,
        1.5,
        None,
        [],
        "9999999999h",
        2**63,
        "\u0661s",
    ],
)
def test_what_go_does_not_read_or_what_lost_its_unit_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="a duration with its unit"):
        duration(value)


@given(st.integers(min_value=0, max_value=2**51))
def test_a_duration_round_trips(nanoseconds: int) -> None:
    assert duration(f"{nanoseconds}ns") == nanoseconds / 10**9
    assert duration(format_duration(nanoseconds / 10**9)) == nanoseconds / 10**9


@given(st.text("0123456789.hmsnuµ-+ ", max_size=12) | st.text(max_size=5))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        seconds = duration(text)
    except ValueError:
        return
    assert duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0), (5242880, 5242880), ("5242880", 5242880), ("5MiB", 5242880), ("5 mib", 5242880), ("5MB", 5000000),
     ("64k", 64000), ("64KiB", 65536), ("1g", 10**9), ("1TiB", 2**40), ("7b", 7)],
)  # fmt: skip
def test_a_size_is_bytes(value: object, expected: int) -> None:
    assert size(value) == expected


@pytest.mark.parametrize(
    "value", ["", "MiB", "-1", -1, "1.5MiB", 1.5, True, None, [], "5ib", "5PiB", "5MiB "[:-1] + "x"]
)
def test_what_is_no_size_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="a size in bytes"):
        size(value)


# -- Secrets


SECRETS = f"""
version: 0.1
storage: {{filesystem: {{}}}}
log: {{hooks: [{{type: mail, options: {{smtp: {{username: mailer, password: {SECRET}}}}}}}]}}
http: {{secret: {SECRET}, headers: {{X-Shown: [shown]}}}}
notifications:
  endpoints: [{{name: a, url: "https://u:{SECRET}@example.com/", headers: {{Authorization: [{SECRET}]}}}}]
redis: {{addrs: ["h:6379"], password: {SECRET}, sentinelpassword: {SECRET}, username: user}}
proxy: {{username: user, password: {SECRET}}}
health: {{http: [{{uri: "https://{SECRET}@example.com", headers: {{X-Key: [{SECRET}]}}}}]}}
reporting: {{bugsnag: {{apikey: {SECRET}}}, newrelic: {{licensekey: {SECRET}}}}}
middleware:
  storage: [{{name: x, disabled: true, options: {{secretkey: {SECRET}, credentials: {{a: {SECRET}}}}}}}]
cluster: {{secrets: [{SECRET}, {SECRET}]}}
"""


def test_the_configuration_is_shown_without_its_secrets() -> None:
    loaded = parse(SECRETS, {})
    shown = show(loaded.config)
    assert SECRET not in shown
    assert SECRET not in "\n".join(loaded.warnings)
    data = yaml.safe_load(shown)
    assert data["http"]["secret"] == "<hidden>"
    assert data["http"]["headers"] == {"X-Shown": ["shown"]}
    assert data["cluster"]["secrets"] == ["<hidden>", "<hidden>"]
    assert data["redis"]["username"] == "user"
    assert data["notifications"]["endpoints"][0]["headers"] == {"Authorization": ["<hidden>"]}
    assert data["log"]["hooks"][0]["options"]["smtp"] == {"username": "mailer", "password": "<hidden>"}
    assert data["middleware"]["storage"][0]["options"] == {
        "secretkey": "<hidden>",
        "credentials": {"a": "<hidden>"},
    }


def test_where_a_file_with_secrets_is_may_be_shown() -> None:
    text = """
auth: {htpasswd: {realm: basic-realm, path: /srv/htpasswd}}
cluster: {secretfile: /srv/secret}
"""
    data = yaml.safe_load(show(parse(BASE + text, {}).config))
    assert data["auth"]["htpasswd"] == {"realm": "basic-realm", "path": "/srv/htpasswd"}
    assert data["cluster"]["secretfile"] == "/srv/secret"
    assert problems(BASE + "auth: {htpasswd: {realm: r, path: [1]}}")[0] == (
        "auth.htpasswd.path: found a list, wanted text"
    )
    assert problems(BASE + 'auth: {htpasswd: {realm: "two\\nlines", path: p}}') == [
        'auth.htpasswd.realm: found "two\\nlines", wanted a line of ASCII text'
    ]


def test_what_is_shown_in_place_of_secrets_is_not_taken_for_them() -> None:
    """Every node that is given it would have the same, and everybody would know it."""
    why = "found <hidden>, which `config show` prints in place of a secret: wanted the secret"
    text = f"http: {{secret: {SECRET}}}\nredis: {{addrs: ['h:1'], password: {SECRET}}}\n"
    shown = show(parse(BASE + text + f"cluster: {{secrets: [{SECRET}]}}", {}).config)
    assert problems(shown) == [f"{key}: {why}" for key in ("http.secret", "redis.password", "cluster.secrets[0]")]
    assert problems(BASE, {"REGISTRY_HTTP_SECRET": "<hidden>"}) == [f"http.secret (REGISTRY_HTTP_SECRET): {why}"]
    assert problems(BASE + "http: {host: 'https://<hidden>@registry'}") == [f"http.host: {why}"]


def test_the_representation_of_a_configuration_holds_no_secret_of_ours() -> None:
    config = parse(BASE + f"http: {{secret: {SECRET}}}\ncluster: {{secrets: [{SECRET}]}}", {}).config
    assert config.http.secret == SECRET
    assert SECRET not in repr(config)


@pytest.mark.parametrize(
    "text",
    [
        f"http: {{secret: [{SECRET}]}}",
        f"http: {{secret: {{a: {SECRET}}}}}",
        f"http: {{secret: *{SECRET}}}",
        f"http: {{secret: !{SECRET}}}",
        f"http: {{secret: !a!{SECRET}}}",
        f"http:\n  secret: {SECRET}: {SECRET}",
        f"http: {{secret: @{SECRET}}}",
        f"http: {{secret: '{SECRET}}}",
        f"cluster: {{secrets: {SECRET}}}",
        f"redis: {{passwrod: {SECRET}, password: [{SECRET}]}}",
        f"redis: {{addrs: 'redis://:{SECRET}@h'}}",
        f"redis: {{addrs: ['redis://:{SECRET}@h:6379/0', ':{SECRET}@h:6379', 'u:{SECRET}@h']}}",
        f"redis: {{addr: 'redis://u:{SECRET}@h'}}",
        f"notifications: {{endpoints: [{{headers: {{Authorization: {SECRET}}}}}]}}",
        f"notifications: {{endpoints: [{{headers: {{Authorization: ['{SECRET} \\\\ ☃']}}}}]}}",
        f"http: {{host: 'ftp://u:{SECRET}@h'}}",
        f"proxy: {{remoteurl: 'https://u:{SECRET}@h'}}",
    ],
)
def test_a_problem_holds_no_secret(text: str) -> None:
    assert SECRET not in "\n".join(problems(BASE + text))


# -- What is shown


@pytest.mark.parametrize("text", [BASE, "version: 0.1\nstorage: inmemory", V2, V3])
def test_what_is_shown_can_be_read_back(text: str) -> None:
    config = parse(text, {}).config
    again = parse(show(config).replace("<hidden>", "put in again"), {}).config
    assert show(again) == show(config)
    assert again.storage == config.storage
    assert again.cluster == config.cluster


def test_private_networks_that_nobody_wrote_down_are_not_written_down_by_showing_them() -> None:
    """Whoever is written down is believed who its clients are."""
    assert "trustedproxies" not in yaml.safe_load(show(parse(BASE, {}).config))["cluster"]
    for text in (BASE + "cluster: {trustedproxies: [10.0.0.0/8]}", BASE + "cluster: {trustedproxies: []}"):
        config = parse(text, {}).config
        assert parse(show(config), {}).config.cluster.trustedproxies == config.cluster.trustedproxies


def test_what_is_shown_has_one_driver_and_durations_with_their_unit() -> None:
    data = yaml.safe_load(show(parse("version: 0.1\nstorage: inmemory", {}).config))
    assert data["storage"]["inmemory"] == {}
    assert "filesystem" not in data["storage"]
    assert data["storage"]["maintenance"]["uploadpurging"]["age"] == "168h"


# -- Anything at all


def _keys(model: type[Section]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        for inner in _models(field.annotation):
            yield from _keys(inner)


def _models(annotation: Any) -> list[type[Section]]:
    """The sections in an annotation: itself, or what a list or an Optional of it holds."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


_leaf = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
    | st.sampled_from(["10s", "-1", ":5000", "all", "redis", "0.1", "http://a", "[key]"])
)  # fmt: skip
_tree = st.recursive(
    _leaf,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(sorted(set(_keys(Config)))) | st.text(max_size=3) | _leaf, inner, max_size=5
        )
    ),
    max_leaves=20,
)
_sections = st.fixed_dictionaries(
    {"version": st.just(0.1), "storage": st.just("inmemory") | _tree},
    optional={name: _tree for name in Config.model_fields if name not in ("version", "storage")},
)


def _loads_or_tells(text: str) -> None:
    try:
        loaded = parse(text, {})
    except ConfigError as error:
        assert error.problems
        lines = error.problems
    else:
        assert loaded.config.storage.driver in ("filesystem", "inmemory")
        yaml.safe_load(show(loaded.config))
        lines = loaded.warnings
    assert all(line and "\n" not in line for line in lines)


@given(_sections)
def test_any_tree_of_settings_is_read_or_told_what_is_wrong(tree: dict[str, Any]) -> None:
    _loads_or_tells(yaml.safe_dump(tree))


@given(st.text() | st.text("{}[]&*!|>'\"%@`#,:?-=<~0x.: \n\tab", max_size=40))
def test_any_text_is_read_or_told_what_is_wrong(text: str) -> None:
    _loads_or_tells(text)
    _loads_or_tells(BASE + text)


@pytest.mark.parametrize(
    "text",
    [
        "!!int ''", "!!bool maybe", "!!float x", "!!timestamp x", "!!binary '@'", "!!set {a}", "0b_", "=",
        "1" * 5000, '"\\U00110000"', "{? [1] : 2}", "<<: 1", "{<<: *x}", "!!python/object/apply:os.system [x]",
        "2001-99-99", "\x00", "1e999999", ".nan", "&a {<<: *a}", "190:20:30", "0o17",
    ],
)  # fmt: skip
def test_odd_yaml_is_read_or_told_what_is_wrong(text: str) -> None:
    _loads_or_tells(BASE + "log: {fields: {a: " + text + "}}")
    _loads_or_tells(BASE + "catalog: {maxentries: " + text + "}")
    _loads_or_tells(text)


# -- TLS

PAIR = "certificate: /c, key: /k"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "http: {tls: {letsencrypt: {hosts: [a]}}}",
            "http.tls.letsencrypt: not supported: have another program keep",
        ),
        ("http: {tls: {certificate: /c}}", "http.tls.key: missing, wanted a path"),
        ("http: {tls: {key: /k}}", "http.tls.certificate: missing, wanted a path"),
        (
            f"http: {{tls: {{{PAIR}, clientauth: verify-client-cert-if-given}}}}",
            "http.tls.clientauth: wanted http.tls.",
        ),
        (f"http: {{tls: {{{PAIR}, clientauth: perhaps}}}}", 'http.tls.clientauth: found "perhaps", wanted'),
        (f"http: {{tls: {{{PAIR}, minimumtls: tls1.1}}}}", 'http.tls.minimumtls: found "tls1.1", wanted'),
        (
            f"http: {{tls: {{{PAIR}, ciphersuites: [AES128]}}}}",
            'http.tls.ciphersuites[0]: found "AES128", wanted a name',
        ),
        (
            f"http: {{tls: {{{PAIR}}}, secret: s}}\ncluster: {{nodes: ['https://a', 'http://b']}}",
            "cluster.nodes: found http://b, wanted https: the nodes have http.tls",
        ),
    ],
)
def test_tls_that_would_not_protect_as_it_says_stops_the_start(text: str, line: str) -> None:
    (told,) = problems(BASE + text)
    assert told.startswith(line)


def test_tls_alone_with_client_certificates_protects_nothing() -> None:
    told = problems(BASE + "http: {tls: {clientcas: [/ca]}}")
    assert [line.partition(",")[0] for line in told] == ["http.tls.certificate: missing", "http.tls.key: missing"]


def test_every_name_of_a_cipher_suite_is_known_to_openssl() -> None:
    names = list(CIPHERS)
    assert parse(BASE + f"http: {{tls: {{{PAIR}, ciphersuites: [{', '.join(names)}]}}}}", {}).warnings == []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name, spelled in CIPHERS.items():
        if "3DES" not in name:  # OpenSSL is mostly built without it
            context.set_ciphers(f"{spelled}:@SECLEVEL=0")


# -- The example


def _switched_on(text: str) -> str:
    """The example with every setting that is commented out taken in."""
    return re.sub(r"^( *)#(?=[^ \n])", r"\1", text, flags=re.MULTILINE)


def _missing(model: type[Section], data: Any, path: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if not isinstance(data, dict) or name not in data:
            yield f"{path}{name}"
            continue
        for inner in _models(field.annotation):
            item = data[name][0] if isinstance(data[name], list) and data[name] else data[name]
            if item != []:
                yield from _missing(inner, item, f"{path}{name}.")


def test_the_example_names_every_setting() -> None:
    assert list(_missing(Config, yaml.safe_load(_switched_on(EXAMPLE.read_text())), "")) == []


def test_the_example_names_no_setting_that_does_not_exist(tmp_path: Path) -> None:
    everything = tmp_path / "config.yml"
    everything.write_text(_switched_on(EXAMPLE.read_text()))
    told = wrong_with(everything)
    assert [line for line in told if "unknown key" in line or "twice" in line or "found" in line] == [
        "storage: found filesystem, inmemory, s3, s3aws, azure, gcs, swift, oss, wanted one driver",
        "auth: found htpasswd, token, silly, wanted one of them",
    ]


def test_the_example_loads_without_a_warning_and_holds_the_defaults() -> None:
    loaded = load(EXAMPLE, {})
    assert loaded.warnings == []
    assert loaded.config == parse(BASE, {}).config
    assert loaded.config.cluster.trustedproxies is None, "written down, it makes every private address a proxy"


def test_what_the_example_leaves_out_is_shown_with_its_default_where_it_has_one() -> None:
    shown = yaml.safe_load(_switched_on(EXAMPLE.read_text()))
    told: list[str] = []

    def same(value: Any, default: Any) -> bool:
        if isinstance(default, str) and re.fullmatch(r"(\d+[hms])+", default):
            return duration(value) == duration(default)
        return str(value) == str(default)

    def compare(model: type[Section], data: dict[str, Any], path: str) -> None:
        defaults = yaml.safe_load(yaml.safe_dump(model().model_dump(mode="json")))
        for name, field in model.model_fields.items():
            inner = _models(field.annotation)
            if inner:
                item = data[name][0] if isinstance(data[name], list) and data[name] else data[name]
                if isinstance(item, dict):
                    compare(inner[0], item, f"{path}{name}.")
            elif defaults[name] not in ("", None, [], {}) and not same(data[name], defaults[name]):
                told.append(f"{path}{name}: {data[name]}, default {defaults[name]}")

    compare(Config, shown, "")
    assert told == []


def test_every_setting_of_the_example_says_what_it_means() -> None:
    settings = [line for line in EXAMPLE.read_text().splitlines() if re.match(r" *#?(- )?[\w]+: *\S", line)]
    assert len(settings) > 150
    assert [line for line in settings if not re.search(r"\S  # \S", line)] == []
