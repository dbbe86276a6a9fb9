"""HAProxy's configuration: golden files, accepted by a real HAProxy without a warning; what is refused.

`GOLDEN=write .venv/bin/python -m pytest tests/unit/test_haproxy.py` writes tests/golden/haproxy/*.cfg anew: read
the difference before you commit it.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, reject
from hypothesis import settings as examples
from hypothesis import strategies as st

from cluster.cli import main
from cluster.config import parse
from cluster.errors import ConfigError
from cluster.haproxy import BalancerError, Runtime, names_of, render
from cluster.settings import Cluster, Dns, Haproxy
from tests.support.process import Process, eventually, free_port
from tests.support.tls import make_certificates
from tests.support.tools import PROJECT, require

GOLDEN = Path(PROJECT, "tests", "golden", "haproxy")
THREE = ["http://10.0.0.11:5000", "http://10.0.0.12:5000", "http://10.0.0.13:5000"]
PEMS = "/etc/haproxy/certs"
ENDS = {"certificate": f"{PEMS}/haproxy.pem"}
VARIANTS: dict[str, dict[str, Any]] = {
    "tcp": {"nodes": THREE},
    "tcp-roundrobin": {"nodes": THREE, "haproxy": {"stickiness": {"enabled": False}}},
    "tcp-ipv6": {
        "nodes": ["http://[fd00::11]:5000", "http://[fd00::12]"],
        "haproxy": {
            "bind": "[::]:5000",
            "stickiness": {"type": "ipv6", "size": "1m", "expire": "90m"},
            "names": ["left", "right"],
            "maxconn": 2000,
            "socket": "/run/registry/haproxy.sock",
            "user": "haproxy",
        },
    },
    "standby": {"nodes": THREE, "haproxy": {"backup": ["node-2", "node-3"], "bind": "192.0.2.1:443"}},
    "tls": {"nodes": ["https://10.0.0.11", "https://10.0.0.12:8443"], "haproxy": {"bind": ":443"}},
    "tls-mutual": {"nodes": ["https://10.0.0.11"], "tls": {"certificate": f"{PEMS}/haproxy.pem"}},
    "tls-ends": {"nodes": THREE, "haproxy": {"mode": "http", "bind": ":443", "tls": ENDS}},
    "tls-again": {
        "nodes": ["https://10.0.0.11:5000", "https://registry-b.example.com:5000"],
        "tls": {"ca": f"{PEMS}/ca.crt"},
        "haproxy": {"mode": "http", "bind": "[::]:443", "tls": ENDS, "dns": {"resolver": "10.0.0.53:53"}},
    },
    "tls-again-named": {
        "nodes": ["https://10.0.0.11:5000", "https://registry-b.example.com:5000"],
        "tls": {"ca": f"{PEMS}/ca.crt", "name": "registry.example", "certificate": f"{PEMS}/haproxy.pem"},
        "haproxy": {"mode": "http", "tls": ENDS, "dns": {"resolver": "10.0.0.53:53"}},
    },
    "tls-again-dns": {
        "tls": {"ca": f"{PEMS}/ca.crt"},
        "haproxy": {"mode": "http", "tls": ENDS, "dns": {"name": "nodes.registry.svc.cluster.local", "tls": True}},
    },
    "http": {"nodes": THREE, "haproxy": {"mode": "http", "balance": "leastconn"}},
    "http-behind": {"nodes": THREE, "haproxy": {"mode": "http", "proxies": ["192.0.2.7", "2001:db8::/32"]}},
    "http-sticky": {"nodes": THREE, "haproxy": {"mode": "http", "stickiness": {"enabled": True}}},
    "proxy": {"nodes": THREE, "proxyprotocol": True},
    "proxy-http": {"nodes": THREE, "proxyprotocol": True, "haproxy": {"mode": "http"}},
    "compose": {"haproxy": {"dns": {"name": "node", "count": 5, "resolver": "127.0.0.11:53"}}},
    "kubernetes": {"haproxy": {"mode": "http", "dns": {"name": "nodes.registry.svc.cluster.local", "port": 80}}},
    "names": {
        "nodes": ["http://registry-a.example.com:5000", "http://registry-b.example.com:5000", THREE[0]],
        "haproxy": {"dns": {"resolver": "10.0.0.53:53"}},
    },
}


def settings_of(cluster: dict[str, Any]) -> Cluster:
    """What a file with this section says."""
    text = {"version": 0.1, "storage": {"filesystem": {}}, "http": {"secret": "a secret"}, "cluster": cluster}
    return parse(yaml.safe_dump(text), {}).config.cluster


def rendered(cluster: dict[str, Any]) -> str:
    settings = settings_of(cluster)
    return render(settings, names_of(settings))


def checked(text: str) -> str:
    """What a real HAProxy has to say about a configuration."""
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
        file.write(text)
        file.flush()
        done = subprocess.run(
            [require("haproxy"), "-c", "-f", file.name], check=False, capture_output=True, text=True
        )
    return f"{done.returncode} {done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with what the variants name, which HAProxy reads when it checks."""
    return make_certificates(tmp_path_factory.mktemp("pems"))


VALID = "0 Configuration file is valid\n"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_configuration_is_the_golden_one(variant: str) -> None:
    path = GOLDEN / f"{variant}.cfg"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(rendered(VARIANTS[variant]), encoding="utf-8")
    assert rendered(VARIANTS[variant]) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_real_haproxy_accepts_the_configuration_without_a_warning(variant: str, pems: str) -> None:
    assert checked(rendered(VARIANTS[variant]).replace(PEMS, pems)) == VALID


def test_there_is_no_golden_file_without_a_variant() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(VARIANTS)


def test_the_command_prints_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yml"
    document = {"version": 0.1, "storage": {"filesystem": {}}, "http": {"secret": "x"}, "cluster": VARIANTS["tcp"]}
    path.write_text(yaml.safe_dump(document))
    assert main(["haproxy", str(path)]) == 0
    assert capsys.readouterr().out == (GOLDEN / "tcp.cfg").read_text()


def test_the_wheel_carries_the_template(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    config = tmp_path / "config.yml"
    config.write_text('version: "0.1"\nstorage: {filesystem: {}}\ncluster: {nodes: ["http://10.0.0.1:5000"]}\n')
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "haproxy", str(config)],
        check=False,
        cwd=tmp_path / "site",
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "server node-1 10.0.0.1:5000\n" in done.stdout


# -- What is refused


@pytest.mark.parametrize(
    ("cluster", "problem"),
    [
        ({}, "cluster.nodes: empty"),
        ({"nodes": [THREE[0], f"{THREE[0]}/"]}, "cluster.nodes: two nodes have the same address"),
        ({"nodes": ["http://10.0.0.1", "https://10.0.0.2"]}, "found http and https"),
        ({"nodes": ["https://10.0.0.1"], "haproxy": {"mode": "http"}}, "found http, wanted tcp"),
        ({"haproxy": {"mode": "http", "dns": {"name": "n", "tls": True}}}, "found http, wanted tcp"),
        ({"nodes": THREE, "haproxy": {"tls": ENDS}}, "cluster.haproxy.mode: found tcp, wanted http"),
        ({"nodes": THREE, "haproxy": {"proxies": ["192.0.2.7"]}}, "cluster.haproxy.mode: found tcp, wanted http"),
        ({"nodes": ["https://10.0.0.1"], "haproxy": {"mode": "http", "tls": ENDS}}, "cluster.tls.ca: missing"),
        ({"haproxy": {"tls": {"certificate": "registry.pem"}}}, "wanted a path from the root on"),
        ({"tls": {"ca": "/ca.pem with a space"}}, "wanted a path from the root on"),
        ({"tls": {"name": "registry example"}}, "cluster.tls.name: found"),
        ({"haproxy": {"backup": ["node-1"], "dns": {"name": "n"}}}, "servers that come from DNS have no order"),
        ({"nodes": THREE, "haproxy": {"backup": ["node-4"]}}, "found node-4, wanted names of nodes"),
        ({"nodes": THREE[:1], "haproxy": {"backup": ["node-1"]}}, "found every node"),
        ({"nodes": THREE, "haproxy": {"names": ["a", "b"]}}, "wanted a name for each of cluster.nodes"),
        ({"nodes": THREE, "haproxy": {"names": ["a", "b", "a"]}}, "wanted a name for each of cluster.nodes"),
        ({"nodes": THREE, "haproxy": {"names": ["a", "b", "unavailable"]}}, "node 'unavailable': wanted a name"),
        ({"nodes": THREE, "haproxy": {"names": ["a", "b", "c d"]}}, "node 'c d': wanted a name"),
        ({"nodes": ["http://10.0.0.1:5000/registry"]}, "wanted a URL such as http://10.0.0.11:5000"),
        ({"nodes": ["http://me@10.0.0.1:5000"]}, "wanted a URL such as http://10.0.0.11:5000"),
        ({"nodes": ["http://0.0.0.0:5000"]}, "wanted a URL such as http://10.0.0.11:5000"),
        ({"nodes": ["http://1.2.3:5000"]}, "wanted a URL such as http://10.0.0.11:5000"),
        ({"nodes": ["http://[fe80::1%25eth0]:5000"]}, "wanted a URL such as http://10.0.0.11:5000"),
        ({"nodes": ["http://a#b:5000"]}, "wanted a URL such as http://10.0.0.11:5000"),
        ({"haproxy": {"bind": "5000"}}, 'cluster.haproxy.bind: found "5000", wanted an address and a port'),
        ({"haproxy": {"bind": ":0"}}, "wanted an address and a port"),
        ({"haproxy": {"bind": "host name:5000"}}, "wanted an address and a port"),
        ({"haproxy": {"stickiness": {"size": "200 k"}}}, "wanted a number of entries"),
        ({"haproxy": {"stickiness": {"expire": "600h"}}}, "cluster.haproxy.stickiness.expire"),
        ({"haproxy": {"socket": "run/haproxy.sock"}}, "wanted a path from the root on"),
        ({"haproxy": {"socket": "/" + "x" * 95}}, "wanted a path from the root on"),
        ({"haproxy": {"user": "a b"}}, "wanted the name of a user"),
        ({"haproxy": {"dns": {"name": "-"}}}, "wanted a host name"),
        ({"haproxy": {"dns": {"resolver": "dns:53"}}}, "wanted an address and a port"),
    ],
)
def test_what_could_not_work_is_refused(cluster: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rendered(cluster)
    assert problem in str(caught.value)


# Text that looks like what is wanted, with what could end a word, a line or a quotation mixed in.
nasty = st.text(st.sampled_from("aZ09.-_:/@[]% \t\n\r#\"'\\${}*,;\0é") | st.characters(), max_size=20)
hosts = st.from_regex(r"[a-z0-9._-]{1,20}", fullmatch=True) | st.ip_addresses(v=4).map(str) | nasty
ports = st.integers(-1, 70_000).map(lambda port: f":{port}") | st.just("") | nasty
urls = st.builds(
    lambda scheme, host, port, path: f"{scheme}://{host}{port}{path}",
    st.sampled_from(["http", "http", "https", "abns", ""]),
    hosts | st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    ports,
    st.sampled_from(["", "", "/", "/x", "?", "#"]) | nasty,
)
nodes = st.dictionaries(st.from_regex(r"[a-z0-9.-]{1,70}", fullmatch=True) | nasty, urls | nasty, max_size=3)
RESOLVED = Cluster(haproxy=Haproxy(dns=Dns(resolver="127.0.0.1:53")))  # names are looked up later, not by `-c`
SERVER = re.compile(
    r"    server [\w.-]+ ([\w.-]+|\[[0-9a-f:.]+\]):[0-9]+( resolvers dns init-addr none)?", re.ASCII
)


@given(nodes)
@examples(max_examples=400, deadline=None)
def test_a_node_is_one_line_or_refused(some: dict[str, str]) -> None:
    try:
        text = render(RESOLVED, some)
    except ConfigError:
        return
    lines = [line for line in text.splitlines() if line.startswith("    server ") and " unavailable " not in line]
    assert len(lines) == len(some)
    assert all(SERVER.fullmatch(line) for line in lines), lines
    tls = any(url.startswith("https") for url in some.values())
    other = render(RESOLVED, {"x": "https://10.0.0.1" if tls else "http://10.0.0.1"})
    rest = [line for line in text.splitlines() if line not in lines]
    assert rest == [line for line in other.splitlines() if not line.startswith("    server x ")]


@given(st.dictionaries(st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True), urls, min_size=1, max_size=3))
@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_what_is_rendered_for_any_nodes_is_accepted_by_a_real_haproxy(some: dict[str, str]) -> None:
    good = {}
    for name, url in some.items():
        try:
            render(RESOLVED, {name: url})
            good[name] = url
        except ConfigError:
            pass
    assume(good)
    try:
        text = render(RESOLVED, good)
    except ConfigError:  # two that do not go together
        reject()
    assert checked(text) == VALID


text_settings = st.sampled_from(
    [
        "bind",
        "socket",
        "user",
        "stickiness.size",
        "stickiness.expire",
        "dns.name",
        "dns.resolver",
        "names",
        "maxconn",
    ]
)
values = st.one_of(
    nasty,
    hosts,
    st.builds(lambda host, port: f"{host}{port}", hosts, ports),
    st.from_regex(r"/[a-z/._-]{0,110}", fullmatch=True),
    st.from_regex(r"[0-9]{1,5}[kmgshd]?", fullmatch=True),
)


@given(text_settings, values)
@examples(max_examples=60, deadline=None)
def test_whatever_a_setting_holds_the_file_is_accepted_or_the_setting_refused(name: str, value: str) -> None:
    inner: Any = [value] if name == "names" else value
    for key in reversed(name.split(".")):
        inner = {key: inner}
    try:
        text = rendered({"nodes": THREE[:1], "haproxy": inner})
    except ConfigError:
        return
    if name == "user" and value:
        # Whether there is such a user is the machine's business.
        text = text.replace(f"    user {value}\n    group {value}\n", "    user root\n    group root\n")
    assert checked(text) == VALID


# -- The runtime socket


@pytest.fixture
def short() -> Iterator[str]:
    """A directory whose name leaves room for that of a socket."""
    directory = tempfile.mkdtemp(prefix="hap-")
    yield directory
    shutil.rmtree(directory)


class Ready(BaseHTTPRequestHandler):
    """A node, as far as HAProxy's checks see one."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def ready_at(hosts: Sequence[str], port: int) -> Iterator[None]:
    with ExitStack() as stack:
        for host in hosts:
            server = stack.enter_context(ThreadingHTTPServer((host, port), Ready))
            threading.Thread(target=server.serve_forever, args=(0.05,)).start()
            stack.callback(server.shutdown)
        yield


@pytest.fixture
def three_nodes() -> Iterator[int]:
    """The port at which the nodes of a test are ready; one that is down is not drained, but down."""
    port = free_port()
    with ready_at([f"127.0.0.1{number}" for number in (1, 2, 3)], port):
        yield port


@pytest.mark.parametrize("sticky", [True, False])
def test_a_running_haproxy_is_told_to_drain_a_node_and_to_use_it_again(
    short: str, three_nodes: int, sticky: bool
) -> None:
    urls = [f"http://127.0.0.1{number}:{three_nodes}" for number in (1, 2, 3)]
    haproxy = {
        "bind": f"127.0.0.1:{free_port()}",
        "socket": f"{short}/s",
        "stickiness": {"enabled": sticky},
    }
    Path(short, "cfg").write_text(rendered({"nodes": urls, "haproxy": haproxy}))
    with Process([require("haproxy"), "-W", "-f", f"{short}/cfg"], log=f"{short}/log"):
        runtime = Runtime(f"{short}/s")
        eventually(lambda: Path(short, "s").exists(), 10, "the socket is there")
        assert [(server.name, server.address) for server in runtime.servers()] == [
            (f"node-{number}", f"127.0.0.1{number}:{three_nodes}") for number in (1, 2, 3)
        ]
        runtime.drain("node-2")
        runtime.drain("node-2")
        assert [server.status[:5] for server in runtime.servers() if server.name == "node-2"] == ["DRAIN"]
        runtime.ready("node-2")
        assert "DRAIN" not in {server.status for server in runtime.servers()}
        assert runtime.sessions("node-2") == 0
        with pytest.raises(BalancerError, match=r"no node 'node-9' .* there are: node-1, node-2, node-3"):
            runtime.drain("node-9")
    with pytest.raises(BalancerError, match=r"HAProxy cannot be asked: (Connection refused|No such file)"):
        runtime.servers()


def test_an_haproxy_that_does_not_answer_is_given_up_in_time(short: str) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{short}/s")
        silent.listen()
        started = time.monotonic()
        with pytest.raises(BalancerError, match=r"did not answer within 0\.2 s"):
            Runtime(f"{short}/s", timeout=0.2).servers()
        assert time.monotonic() - started < 20


def test_one_that_trickles_is_given_up_in_time_too(short: str) -> None:
    with socket.socket(socket.AF_UNIX) as slow:
        slow.bind(f"{short}/s")
        slow.listen()
        over = threading.Event()

        def trickle() -> None:
            with slow.accept()[0] as connection:
                while not over.wait(0.05):
                    try:
                        connection.send(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            with pytest.raises(BalancerError, match="did not answer within"):
                Runtime(f"{short}/s", timeout=0.3).servers()
        finally:
            over.set()
            thread.join()


def test_an_answer_that_is_not_haproxys_is_an_error(short: str) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{short}/s")
        other.listen()

        def answer() -> None:
            with other.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\nnodes,x\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(BalancerError, match="cannot read what HAProxy says"):
            Runtime(f"{short}/s").servers()
        thread.join()
