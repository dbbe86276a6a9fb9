"""Behind a real nginx with TLS and a password, as many people have their registry."""

import base64
import json
import os
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.conformance.clients import Copier, Crane, Skopeo
from tests.node.nodes import brief, connections, no_trouble
from tests.node.raw import digest_of
from tests.support.images import INDEX, Descriptor, Layout, contents
from tests.support.process import Node, Process, free_port, listening
from tests.support.tools import require

USER, PASSWORD = "ann", "a password that nginx asks for"
MIB = 1 << 20

MAIN = """
daemon off;
error_log {directory}/error.log;
pid {directory}/nginx.pid;
{user}
events {{ }}
http {{
    access_log off;
    ssl_certificate {directory}/certificate.pem;
    ssl_certificate_key {directory}/key.pem;
    client_max_body_size 0;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    auth_basic "registry";
    auth_basic_user_file {directory}/passwords;
    proxy_read_timeout 60s;
    {servers}
}}
"""
SERVER = "server {{ listen 127.0.0.1:{port} ssl; {locations} }}\n"
UPSTREAM = "upstream {name} {{ server {address}; keepalive 8; }}\n"
STREAM = (
    "proxy_http_version 1.1; proxy_request_buffering off; proxy_buffering off;"
    'proxy_set_header Connection "";'  # or nginx closes the connection to the node after each request
)
X_FORWARDED = (
    "proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Host $http_host;"
    "proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-For $remote_addr;"
)
FORWARDED = (
    "proxy_set_header Host inner.test;"
    'proxy_set_header Forwarded "for=$remote_addr;proto=https;host=\\"$http_host\\"";'
)


@dataclass(frozen=True)
class Front:
    """One way to stand in front of a node, and how the URLs must begin that come back through it."""

    node: str
    settings: str
    location: str
    paths: tuple[tuple[str, str], ...] = (("/v2/", "/v2/"),)  # what clients ask for, and where it goes


FRONTS = {
    "streaming": Front("relative", STREAM + X_FORWARDED, "/v2/"),
    "buffering": Front("relative", "proxy_set_header Host $http_host;", "/v2/"),
    "absolute": Front("absolute", STREAM + X_FORWARDED, "https://{host}/v2/"),
    "forwarded": Front("absolute", STREAM + FORWARDED, "https://{host}/v2/"),
    "below a path": Front(
        "prefix",
        STREAM + X_FORWARDED,
        "https://{host}/below/v2/",
        (("/below/", "/below/"), ("/v2/", "/below/v2/")),
    ),
}
NODES: dict[str, dict[str, object]] = {
    "relative": {},
    "absolute": {"relativeurls": False},
    "prefix": {"relativeurls": False, "prefix": "/below/"},
}


class Nginx(Process):
    """nginx with everything of its own in one directory: a server at a port of its own for every front."""

    def __init__(self, directory: Path, nodes: dict[str, Node]) -> None:
        self.directory = directory
        self.ports = {name: free_port() for name in FRONTS}
        self._make_certificate()
        (directory / "passwords").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")
        servers = "".join(UPSTREAM.format(name=name, address=node.host) for name, node in nodes.items())
        servers += "".join(self._server(name, front) for name, front in FRONTS.items())
        # Workers of nginx would drop root's rights, and could not look into our directory.
        user = "user root;" if os.geteuid() == 0 else ""
        (directory / "nginx.conf").write_text(MAIN.format(directory=directory, user=user, servers=servers))
        command = [require("nginx"), "-p", str(directory), "-e", f"{directory}/error.log"]
        ready = lambda: all(map(listening, self.ports.values()))  # noqa: E731
        super().__init__([*command, "-c", f"{directory}/nginx.conf"], log=f"{directory}/log", ready=ready)

    def host(self, front: str) -> str:
        return f"127.0.0.1:{self.ports[front]}"

    @property
    def certificate(self) -> str:
        return f"{self.directory}/certificate.pem"

    def _server(self, name: str, front: Front) -> str:
        locations = "".join(
            f"location {outside} {{ proxy_pass http://{front.node}{inside}; {front.settings} }}"
            for outside, inside in front.paths
        )
        return SERVER.format(port=self.ports[name], locations=locations)

    def _make_certificate(self) -> None:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem"]
        name = ["-subj", "/CN=registry.test", "-addext", "subjectAltName=IP:127.0.0.1"]
        command = [require("openssl"), "req", "-x509", *key, *name, "-days", "2", "-out", "certificate.pem"]
        subprocess.run(command, cwd=self.directory, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Node]]:
    made = {name: Node(tmp_path_factory.mktemp(name), {"http": http}) for name, http in NODES.items()}
    with brief(made["relative"]), brief(made["absolute"]), brief(made["prefix"]):
        yield made
    for node in made.values():
        assert no_trouble(node.log())
        assert PASSWORD not in node.log() and credentials() not in node.log()


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory, nodes: dict[str, Node]) -> Iterator[Nginx]:
    with Nginx(tmp_path_factory.mktemp("nginx"), nodes) as nginx:
        yield nginx


@pytest.fixture(params=FRONTS)
def front(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(nginx: Nginx, front: str) -> Iterator[httpx.Client]:
    trust = ssl.create_default_context(cafile=nginx.certificate)
    base = f"https://{nginx.host(front)}"
    with httpx.Client(base_url=base, auth=(USER, PASSWORD), verify=trust, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Descriptor]:
    layout = Layout(tmp_path_factory.mktemp("image"))
    layers = [layout.big_layer(24), layout.layer({"etc/motd": b"welcome"}), layout.zero_layer()]
    return layout, layout.tag("v1", layout.image(layers))


def credentials() -> str:
    return base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def known_to(client: Copier, nginx: Nginx) -> None:
    """Let a client find the password and the certificate where it looks for them."""
    auths = {"auths": {nginx.host(front): {"auth": credentials()} for front in FRONTS}}
    for directory, file in (("containers", "auth.json"), (".docker", "config.json")):
        os.makedirs(os.path.join(client.home, directory), exist_ok=True)
        Path(client.home, directory, file).write_text(json.dumps(auths))
    client.env["SSL_CERT_FILE"] = nginx.certificate


@pytest.mark.parametrize("kind", [Skopeo, Crane])
def test_an_image_goes_in_and_comes_out_unchanged(
    nginx: Nginx, front: str, layout: tuple[Layout, Descriptor], tmp_path: Path, kind: type[Copier]
) -> None:
    client = kind(tmp_path, nginx.host(front))
    known_to(client, nginx)
    made, image = layout
    reference = f"{nginx.host(front)}/proxied/{kind.__name__.lower()}:v1"
    client.push(f"{made.path}:v1", reference)
    pulled = tmp_path / "pulled"
    client.pull(reference, f"{pulled}:v1")
    assert contents(pulled, image["digest"]) == contents(made.path, image["digest"])


def test_urls_lead_back_through_the_proxy(nginx: Nginx, front: str, client: httpx.Client) -> None:
    begins = FRONTS[front].location.format(host=nginx.host(front))
    answer = client.post("/v2/urls/blobs/uploads/")
    assert answer.headers["Location"].startswith(f"{begins}urls/blobs/uploads/")
    data = os.urandom(3 * MIB)
    answer = client.patch(answer.headers["Location"], content=iter([data[:MIB], data[MIB:]]))
    assert (answer.status_code, answer.headers["Range"]) == (202, f"0-{3 * MIB - 1}")
    digest = digest_of(data)
    answer = client.put(answer.headers["Location"] + f"&digest={digest}")
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"{begins}urls/blobs/{digest}"
    assert client.get(answer.headers["Location"]).content == data
    part = client.get(answer.headers["Location"], headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, data[5:10])


def test_the_next_page_of_a_list_is_found_through_the_proxy(nginx: Nginx, front: str, client: httpx.Client) -> None:
    manifest = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
    for tag in ("a", "b", "c"):
        target = f"/v2/paged/manifests/{tag}"
        answer = client.put(target, content=json.dumps(manifest), headers={"Content-Type": INDEX})
        assert answer.status_code == 201, answer.text
    seen, url = [], "/v2/paged/tags/list?n=1"
    while url:
        answer = client.get(url)
        seen += answer.json()["tags"]
        url = answer.links.get("next", {}).get("url", "")
        assert not url or url.startswith(FRONTS[front].paths[0][0]), url
    assert seen == ["a", "b", "c"]


def test_a_refusal_of_a_large_body_is_heard_through_the_proxy(
    nginx: Nginx, front: str, client: httpx.Client, tmp_path: Path
) -> None:
    location = client.base_url.join(client.post("/v2/refused/blobs/uploads/").headers["Location"])
    body = tmp_path / "body"
    with body.open("wb") as file:
        file.truncate(64 * MIB)
    shown = ["--silent", "--show-error", "--output", os.devnull, "--write-out", "%{http_code} %header{range}"]
    login = ["--user", f"{USER}:{PASSWORD}", "--cacert", nginx.certificate]
    headers = ["--header", "Content-Range: 7-67108870", "--header", "Expect:"]
    command = [require("curl"), *shown, *login, *headers, "--request", "PATCH", "--upload-file", str(body)]
    done = subprocess.run([*command, str(location)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "416 0-0"), done.stderr


def test_a_client_that_waits_for_100_continue_is_served(client: httpx.Client) -> None:
    location = client.post("/v2/expect/blobs/uploads/").headers["Location"]
    answer = client.patch(location, content=b"hello", headers={"Expect": "100-continue"})
    assert (answer.status_code, answer.headers["Range"]) == (202, "0-4")


def test_idle_connections_of_the_proxy_do_not_hold_the_stop_of_a_node(tmp_path: Path) -> None:
    nodes = {name: Node(tmp_path / name, {"http": http}) for name, http in NODES.items()}
    with brief(nodes["relative"]), Nginx(tmp_path, nodes) as nginx:
        url = f"https://{nginx.host('streaming')}/v2/"
        answers = [httpx.get(url, auth=(USER, PASSWORD), verify=False, trust_env=False) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert connections(nodes["relative"].port) > 0
        started = time.monotonic()
        assert nodes["relative"].stop(within=25) == 0
        assert time.monotonic() - started < 20  # the drain timeout is 30 s
