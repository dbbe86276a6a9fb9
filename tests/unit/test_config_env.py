"""REGISTRY_* variables: what they override, in which order, and what is told about those that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import Loaded, parse
from cluster.errors import ConfigError
from cluster.settings import Config

BASE = "version: 0.1\nstorage: {filesystem: {rootdirectory: /data}}\n"


def at(config: Config, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = (
            value[int(name)]
            if name.isdecimal()
            else value[name]
            if isinstance(value, dict)
            else getattr(value, name)
        )
    return value


def read(variables: dict[str, str], text: str = BASE) -> Loaded:
    return parse(text, variables)


def problems(variables: dict[str, str], text: str = BASE) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, variables)
    return caught.value.problems


@pytest.mark.parametrize(
    ("variable", "value", "path", "expected"),
    [
        ("STORAGE_DELETE_ENABLED", "true", "storage.delete.enabled", True),
        ("STORAGE_FILESYSTEM_ROOTDIRECTORY", "/x", "storage.filesystem.rootdirectory", "/x"),
        ("STORAGE_FILESYSTEM_MAXTHREADS", "50", "storage.filesystem.maxthreads", 50),
        ("STORAGE_CACHE_BLOBDESCRIPTOR", "inmemory", "storage.cache.blobdescriptor", "inmemory"),
        ("STORAGE_REDIRECT_DISABLE", "true", "storage.redirect.disable", True),
        ("STORAGE_TAG_CONCURRENCYLIMIT", "4", "storage.tag.concurrencylimit", 4),
        ("STORAGE_MAINTENANCE_UPLOADPURGING_ENABLED", "false", "storage.maintenance.uploadpurging.enabled", False),
        ("STORAGE_MAINTENANCE_UPLOADPURGING_AGE", "1h", "storage.maintenance.uploadpurging.age", 3600.0),
        ("STORAGE_MAINTENANCE_READONLY_ENABLED", "true", "storage.maintenance.readonly.enabled", True),
        ("STORAGE_MAINTENANCE_READONLY", "{enabled: true}", "storage.maintenance.readonly.enabled", True),
        ("STORAGE_MAINTENANCE", "{readonly: {enabled: true}}", "storage.maintenance.readonly.enabled", True),
        ("HTTP_ADDR", ":5001", "http.addr", ":5001"),
        ("HTTP_ADDR", "0.0.0.0:5000", "http.addr", "0.0.0.0:5000"),
        ("HTTP_RELATIVEURLS", "true", "http.relativeurls", True),
        ("HTTP_SECRET", "0123", "http.secret", "0123"),
        ("HTTP_SECRET", "1e5", "http.secret", "1e5"),
        ("HTTP_SECRET", "true", "http.secret", "true"),
        ("HTTP_SECRET", "'a: b'", "http.secret", "a: b"),
        ("HTTP_SECRET", "2001-02-03", "http.secret", "2001-02-03"),
        ("HTTP_SECRET", "=", "http.secret", "="),
        ("HTTP_SECRET", "<<", "http.secret", "<<"),
        ("HTTP_DRAINTIMEOUT", "5s", "http.draintimeout", 5.0),
        ("HTTP_DEBUG_PROMETHEUS_ENABLED", "true", "http.debug.prometheus.enabled", True),
        ("HTTP_HEADERS", "{X-All: [a, b]}", "http.headers", {"X-All": ["a", "b"]}),
        ("HTTP_HEADERS_X-Foo", "[bar]", "http.headers", {"X-Foo": ["bar"]}),
        ("LOG_LEVEL", "debug", "log.level", "debug"),
        ("LOG_FIELDS_SERVICE", "7", "log.fields", {"service": 7}),
        ("LOG_FIELDS_A_B", "x", "log.fields", {"a": {"b": "x"}}),
        ("LOG_ACCESSLOG_DISABLED", "true", "log.accesslog.disabled", True),
        ("CATALOG_MAXENTRIES", "5", "catalog.maxentries", 5),
        ("TAGS_MAXTAGS", "5", "tags.maxtags", 5),
        ("REDIS_ADDR", "redis:6379", "redis.addrs", ["redis:6379"]),
        ("REDIS_ADDRS", "[a:1, b:1]", "redis.addrs", ["a:1", "b:1"]),
        ("REDIS_ADDRS_0", "a:1", "redis.addrs", ["a:1"]),
        ("HEALTH_STORAGEDRIVER_ENABLED", "true", "health.storagedriver.enabled", True),
        ("HEALTH_FILECHECKERS", "[{file: /x}]", "health.file.0.file", "/x"),
        ("HEALTH_HTTPCHECKERS_0_URI", "http://x", "health.http.0.uri", "http://x"),
        ("HEALTH_TCPCHECKERS_0_ADDR", "a:1", "health.tcp.0.addr", "a:1"),
        ("NOTIFICATIONS_EVENTCONFIG_INCLUDEREFERENCES", "true", "notifications.events.includereferences", True),
        ("NOTIFICATIONS_ENDPOINTS_0_NAME", "a", "notifications.endpoints.0.name", "a"),
        ("NOTIFICATIONS_ENDPOINTS", "[{name: a}]", "notifications.endpoints.0.name", "a"),
        ("LOG_HOOKS_0_MAILOPTIONS_SMTP_ADDR", "m:25", "log.hooks.0.options", {"smtp": {"addr": "m:25"}}),
        ("COMPATIBILITY_SCHEMA1_TRUSTKEY", "/k", "compatibility.schema1.signingkeyfile", "/k"),
        ("VALIDATION_MANIFESTS_URLS_ALLOW", "['^https:']", "validation.manifests.urls.allow", ["^https:"]),
        ("VALIDATION_MANIFESTS_INDEXES_PLATFORMS", "none", "validation.manifests.indexes.platforms", "none"),
        ("VALIDATION_MANIFESTS_INDEXES", "{platforms: list}", "validation.manifests.indexes.platforms", "list"),
        ("POLICY_REPOSITORY_CLASSES", "[image]", "policy.repository.classes", ["image"]),
        ("CLUSTER_WORKERS", "3", "cluster.workers", 3),
        ("CLUSTER_SECRETS", "[a, 007]", "cluster.secrets", ["a", "007"]),
        ("CLUSTER_CHUNKMINLENGTH", "5MiB", "cluster.chunkminlength", 5 * 2**20),
        ("CLUSTER_NODES_0", "http://10.0.0.1:5000", "cluster.nodes", ["http://10.0.0.1:5000"]),
        ("CLUSTER_SPARSE", "true", "cluster.sparse", True),
    ],
)  # fmt: skip
def test_a_variable_sets_what_it_names(variable: str, value: str, path: str, expected: object) -> None:
    loaded = read({f"REGISTRY_{variable}": value})
    assert at(loaded.config, path) == expected
    assert not [line for line in loaded.warnings if "unrecognized" in line]


SERVICE = {
    "SERVICE_HOST": "10.0.0.1",
    "SERVICE_PORT": "80",
    "SERVICE_PORT_HTTP_WEB": "80",
    "PORT": "tcp://10.0.0.1:80",
    "PORT_80_TCP": "tcp://10.0.0.1:80",
    "PORT_80_TCP_PROTO": "tcp",
    "PORT_80_TCP_PORT": "80",
    "PORT_80_TCP_ADDR": "10.0.0.1",
    "PORT_53_UDP": "udp://[fd00::1]:53",
    "PORT_53_UDP_ADDR": "fd00::1",
}


@pytest.mark.parametrize("service", ["", "PROXY_", "REDIS_", "HTTP_TLS_", "AUTH_", "STORAGE_S3_", "LOG_FIELDS_"])
@pytest.mark.parametrize(("name", "value"), SERVICE.items())
def test_what_kubernetes_tells_every_pod_of_a_service_is_no_setting(service: str, name: str, value: str) -> None:
    """It does so for each Service of the namespace: one with the name registry-proxy must stop no registry."""
    variable = f"REGISTRY_{service}{name}"
    loaded = read({variable: value})
    assert loaded.config == read({}).config
    assert loaded.warnings == [f"Ignoring {variable}: Kubernetes sets it for a Service"]


def test_a_setting_whose_variable_looks_alike_is_one() -> None:
    config = read({"REGISTRY_CLUSTER_HAPROXY_DNS_PORT": "5300", "REGISTRY_LOG_FIELDS_SERVICE_HOST": "a"}).config
    assert config.cluster.haproxy.dns.port == 5300
    assert config.log.fields == {"service": {"host": "a"}}
    (line,) = problems({"REGISTRY_PROXY_PORT": "80"})
    assert "no such setting" in line


def test_a_variable_goes_before_the_file_and_leaves_its_neighbours_alone() -> None:
    text = BASE + "http: {addr: ':1', headers: {x-foo: [file], Y: [kept]}, secret: s}"
    config = read({"REGISTRY_HTTP_ADDR": ":2", "REGISTRY_HTTP_HEADERS_X-Foo": "[variable]"}, text).config
    assert (config.http.addr, config.http.secret) == (":2", "s")
    assert config.http.headers == {"x-foo": ["variable"], "Y": ["kept"]}


def test_a_whole_section_replaces_that_of_the_file_before_its_parts_are_laid_over_it() -> None:
    text = BASE + "http: {addr: ':1', prefix: /old/}"
    variables = {"REGISTRY_HTTP_SECRET": "s", "REGISTRY_HTTP": "{addr: ':2'}"}
    config = read(variables, text).config
    assert (config.http.addr, config.http.prefix, config.http.secret) == (":2", "", "s")


def test_the_order_of_the_environment_does_not_matter() -> None:
    pairs = [("REGISTRY_STORAGE", "filesystem"), ("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", "/x")]
    assert read(dict(pairs)).config == read(dict(reversed(pairs))).config


def test_an_empty_variable_gives_the_default_back() -> None:
    assert read({"REGISTRY_HTTP_ADDR": ""}, BASE + "http: {addr: ':1'}").config.http.addr == ":5000"


@pytest.mark.parametrize(
    "text", ["version: 0.1", BASE, "version: 0.1\nstorage: {s3: {bucket: b}, delete: {enabled: true}}"]
)
def test_storage_as_a_name_replaces_the_driver_of_the_file(text: str) -> None:
    config = read({"REGISTRY_STORAGE": "inmemory"}, text).config
    assert (config.storage.driver, config.storage.delete.enabled) == ("inmemory", False)


def test_the_short_form_of_storage_in_the_file_can_be_added_to() -> None:
    config = read({"REGISTRY_STORAGE_DELETE_ENABLED": "true"}, "version: 0.1\nstorage: inmemory").config
    assert (config.storage.driver, config.storage.delete.enabled) == ("inmemory", True)


@pytest.mark.parametrize(
    ("variable", "driver"), [("S3_BUCKET", "s3"), ("INMEMORY", "inmemory"), ("AZURE", "azure")]
)
def test_a_second_driver_is_a_problem_that_says_how_to_replace_the_first(variable: str, driver: str) -> None:
    lines = problems({f"REGISTRY_STORAGE_{variable}": "{}"})
    assert (
        f"storage: found filesystem, {driver} (REGISTRY_STORAGE_{variable}), wanted one driver; "
        f"set REGISTRY_STORAGE={driver} too, to replace the file's"
    ) in [line.replace(f"{driver}, filesystem", f"filesystem, {driver}") for line in lines]


def test_lists_are_changed_and_continued_by_index() -> None:
    text = BASE + "notifications: {endpoints: [{name: a, url: 'http://a'}]}"
    variables = {
        "REGISTRY_NOTIFICATIONS_ENDPOINTS_0_URL": "http://b",
        "REGISTRY_NOTIFICATIONS_ENDPOINTS_1_NAME": "c",
        "REGISTRY_NOTIFICATIONS_ENDPOINTS_1_TIMEOUT": "2s",
    }
    notifications = read(variables, text).config.notifications
    assert notifications is not None
    assert [(e.name, e.url, e.timeout) for e in notifications.endpoints] == [("a", "http://b", 1.0), ("c", "", 2.0)]


def test_an_index_that_leaves_a_gap_is_a_problem() -> None:
    assert problems({"REGISTRY_NOTIFICATIONS_ENDPOINTS_1_NAME": "x"}) == [
        "REGISTRY_NOTIFICATIONS_ENDPOINTS_1_NAME: the next index of this list is 0, not 1"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "PORT", "SERVICE_HOST", "HTTP_ADR", "HTTP_ADDR_X", "HTTP_", "", "http_addr", "HEALTH_FILE",
        "NOTIFICATIONS_EVENTS_INCLUDEREFERENCES", "STORAGE_FILESYSTEM_ROOT", "NOTIFICATIONS_ENDPOINTS_X_NAME",
        "NOTIFICATIONS_ENDPOINTS_-1_NAME", "HTTP_HEADERS_X_Y_Z", "CLUSTER_WORKER",
    ],
)  # fmt: skip
def test_a_name_that_is_not_a_setting_is_ignored_with_a_warning(name: str) -> None:
    loaded = read({f"REGISTRY_{name}": "[not even: yaml"})
    assert loaded.warnings == [f"Ignoring unrecognized environment variable REGISTRY_{name}"]
    assert loaded.config == parse(BASE, {}).config


def test_a_misspelt_lock_does_not_leave_the_registry_open() -> None:
    assert problems({"REGISTRY_AUTH_HTPASWD_PATH": "/x", "REGISTRY_HTTP_TLS_CERT": "/y"}) == [
        "REGISTRY_AUTH_HTPASWD_PATH: no such setting, and what it should protect may be open",
        "REGISTRY_HTTP_TLS_CERT: no such setting, and what it should protect may be open",
    ]


@pytest.mark.parametrize(
    ("variables", "key"),
    [
        ({"REGISTRY_AUTH_SILLY_REALM": "r"}, "auth.silly"),
        ({"REGISTRY_PROXY_REMOTEURL": "https://x"}, "proxy.remoteurl (REGISTRY_PROXY_REMOTEURL)"),
        ({"REGISTRY_MIDDLEWARE_STORAGE": "[{name: redirect}]"}, "middleware.storage (REGISTRY_MIDDLEWARE_STORAGE)"),
    ],
)
def test_a_lock_that_is_not_supported_yet_stops_the_start(variables: dict[str, str], key: str) -> None:
    (line,) = problems(variables)
    assert line.startswith(f"{key}")
    assert line.endswith(": not supported yet, and ignoring it would change who may do what, or where data goes")


@pytest.mark.parametrize(
    "name", ["REGISTRY_VERSION", "REGISTRY_CONFIGURATION_PATH", "REGISTRYX", "WEB_CONCURRENCY", "PATH"]
)
def test_what_is_no_override_is_not_spoken_of(name: str) -> None:
    loaded = read({name: "0.9"})
    assert (loaded.warnings, loaded.config) == ([], parse(BASE, {}).config)


def test_a_problem_names_the_variable_that_it_came_by() -> None:
    assert problems(
        {"REGISTRY_LOG_LEVEL": "loud", "REGISTRY_HTTP": "{net: udp, ad: x}", "REGISTRY_HTTP_ADDR": "x"}
    ) == [
        'log.level (REGISTRY_LOG_LEVEL): found "loud", wanted "error", "warn", "info" or "debug"',
        'http.net (REGISTRY_HTTP): found "udp", wanted "tcp" or "unix"',
        'http.addr (REGISTRY_HTTP_ADDR): found "x", wanted host:port, such as :5000',
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_SECRET", "[hunter22]"),
        ("HTTP_SECRET", "*hunter22"),
        ("HTTP_SECRET", "@hunter22"),
        ("HTTP_SECRET", "hunter22: hunter22"),
        ("HTTP", "[hunter22]"),
        ("CLUSTER_SECRETS", "hunter22"),
        ("REDIS_PASSWORD", "{hunter22: x"),
        ("NOTIFICATIONS_ENDPOINTS_0_HEADERS_AUTHORIZATION", "Bearer hunter22"),
        ("AUTH_TOKENN_SECRET", "hunter22"),
    ],
)
def test_a_problem_with_a_variable_holds_no_secret(name: str, value: str) -> None:
    lines = problems({f"REGISTRY_{name}": value})
    assert f"REGISTRY_{name}" in lines[0]
    assert "hunter22" not in "\n".join(lines)


_names = st.sampled_from(
    [
        "HTTP", "HEADERS", "X-A", "STORAGE", "FILESYSTEM", "LOG", "FIELDS", "HOOKS", "MAILOPTIONS", "0", "1", "",
        "NOTIFICATIONS", "ENDPOINTS", "AUTH", "REDIS", "ADDR", "ADDRS", "CLUSTER", "NODES", "TRUSTEDPROXIES",
        "SECRET",
    ]
)  # fmt: skip
_values = st.sampled_from(
    ["", "1", "[a]", "{a: b}", "{a: {b: [c]}}", "[", "*x", "text", "[[]]", "null", "10s", "\ud800"]
)


@given(
    st.dictionaries(st.lists(_names, min_size=1, max_size=5).map("_".join), _values, max_size=4),
    st.sampled_from([BASE, "version: 0.1", "", BASE + "http: 5\nlog: [a]\nredis: x", BASE + "log: {fields: [a]}"]),
)
def test_any_environment_is_read_or_told_what_is_wrong(variables: dict[str, str], text: str) -> None:
    try:
        lines = read({f"REGISTRY_{name}": value for name, value in variables.items()}, text).warnings
    except ConfigError as error:
        lines = error.problems
        assert lines
    assert all(line and "\n" not in line for line in lines)
