"""One data directory for Distribution and for us: each serves what the other one wrote, to the byte."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST
from tests.node.nodes import brief
from tests.support.images import CONFIG, INDEX, LAYER, MANIFEST, Descriptor, sha256
from tests.support.process import Distribution2, Distribution3, Node, Registry

KINDS = [pytest.param(Distribution2, id="2.8"), pytest.param(Distribution3, id="3.1")]
ACCEPT = {"Accept": f"{MANIFEST}, {INDEX}"}
V2 = "docker/registry/v2"


@dataclass
class Client:
    """Plain requests to one registry, and a memory of what must be there."""

    url: str
    manifests: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """By repository and reference."""
    blobs: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def ask(self, method: str, path: str, status: int, **more: Any) -> httpx.Response:
        answer = httpx.request(method, httpx.URL(self.url).join(path), timeout=30, trust_env=False, **more)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer

    def begin(self, name: str, *chunks: bytes) -> str:
        """A session with these chunks; where it goes on."""
        location = self.ask("POST", f"/v2/{name}/blobs/uploads/", 202).headers["Location"]
        for chunk in chunks:
            location = self.ask("PATCH", location, 202, content=chunk).headers["Location"]
        return location

    def finish(self, name: str, location: str, content: bytes, last: bytes = b"") -> None:
        self.ask("PUT", location, 201, params={**_query(location), "digest": sha256(content)}, content=last)
        self.blobs.setdefault(name, {})[sha256(content)] = content

    def blob(self, name: str, content: bytes, media_type: str = LAYER) -> Descriptor:
        self.finish(name, self.begin(name, content), content)
        return {"mediaType": media_type, "digest": sha256(content), "size": len(content)}

    def mount(self, name: str, source: str, digest: str) -> None:
        self.ask("POST", f"/v2/{name}/blobs/uploads/", 201, params={"mount": digest, "from": source})
        self.blobs.setdefault(name, {})[digest] = self.blobs[source][digest]

    def put(self, name: str, reference: str, fields: dict[str, Any]) -> Descriptor:
        content = json.dumps({"schemaVersion": 2, **fields}, indent=3).encode()
        media_type = fields["mediaType"]
        path = f"/v2/{name}/manifests/{reference or sha256(content)}"
        self.ask("PUT", path, 201, content=content, headers={"Content-Type": media_type})
        known = self.manifests.setdefault(name, {})
        known[sha256(content)] = content
        if reference:
            known[reference] = content
        return {"mediaType": media_type, "digest": sha256(content), "size": len(content)}

    def image(self, name: str, reference: str, text: str, **more: Any) -> Descriptor:
        config = self.blob(name, json.dumps({"text": text}).encode(), CONFIG)
        layers = [self.blob(name, f"{text}, layer {number}".encode() * 1000) for number in range(2)]
        return self.put(name, reference, {"mediaType": MANIFEST, "config": config, "layers": layers, **more})

    def referrer(self, name: str, subject: Descriptor, text: str) -> str:
        kind = {"artifactType": "application/vnd.example.note", "subject": subject}
        return str(self.image(name, "", text, **kind)["digest"])

    def check(self, url: str) -> None:
        """Everything is served at this URL, to the byte."""
        other = Client(url)
        for name, manifests in self.manifests.items():
            for reference, content in manifests.items():
                answer = other.ask("GET", f"/v2/{name}/manifests/{reference}", 200, headers=ACCEPT)
                assert answer.content == content
                assert answer.headers["Docker-Content-Digest"] == sha256(content)
                assert answer.headers["Content-Type"] == json.loads(content)["mediaType"]
            tags = [reference for reference in manifests if ":" not in reference]
            assert sorted(other.ask("GET", f"/v2/{name}/tags/list", 200).json()["tags"]) == sorted(tags)
        for name, blobs in self.blobs.items():
            for digest, content in blobs.items():
                assert other.ask("GET", f"/v2/{name}/blobs/{digest}", 200).content == content
        assert other.ask("GET", "/v2/_catalog", 200).json()["repositories"] == sorted(self.manifests)


def _query(location: str) -> dict[str, str]:
    return dict(httpx.URL(location).params)


def fill(client: Client) -> Descriptor:
    """Tags, an old revision, a multi-arch index, a shared layer and a referrer; the image of `v1`."""
    client.image("team/app", "latest", "before")
    first = client.image("team/app", "v1", "the first image")
    client.image("team/app", "latest", "after")
    children = [
        client.image("team/app", "", machine) | {"platform": {"os": "linux", "architecture": machine}}
        for machine in ("amd64", "arm64")
    ]
    client.put("team/app", "multi", {"mediaType": INDEX, "manifests": children})
    shared = next(iter(client.blobs["team/app"]))
    client.mount("another/deeper/one", "team/app", shared)
    client.blob("another/deeper/one", b"")
    size = len(client.blobs["team/app"][shared])
    layer = {"mediaType": LAYER, "digest": shared, "size": size}
    fields = {"mediaType": MANIFEST, "config": layer | {"mediaType": CONFIG}, "layers": [layer]}
    client.put("another/deeper/one", "v1", fields)
    client.referrer("team/app", first, "a note on the first image")
    return first


@pytest.fixture(params=KINDS)
def theirs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    with brief(request.param(tmp_path / "theirs", root=tmp_path / "data")) as registry:
        yield registry


@pytest.fixture
def ours(theirs: Registry, tmp_path: Path) -> Iterator[Registry]:
    """A node on the same directory, beside a Distribution that runs."""
    with brief(Node(tmp_path / "ours", root=theirs.root)) as node:
        yield node


def referrers(url: str, subject: Descriptor) -> set[str]:
    answer = Client(url).ask("GET", f"/v2/team/app/referrers/{subject['digest']}", 200)
    return {descriptor["digest"] for descriptor in answer.json()["manifests"]}


# What they wrote


def test_a_directory_of_distribution_is_served_as_it_is(theirs: Registry, tmp_path: Path) -> None:
    client = Client(theirs.url)
    fill(client)
    client.check(theirs.url)
    theirs.stop()
    with brief(Node(tmp_path / "ours", root=theirs.root)) as node:
        client.check(node.url)
        before = tree(theirs.root)
        client.check(node.url)
        assert tree(theirs.root) == before, "reading changed something"


def test_a_manifest_that_distribution_took_is_served_however_it_was_written(
    theirs: Registry, ours: Registry
) -> None:
    """It reads JSON as Go does: names in any case, twice, bytes that are no UTF-8, numbers of any length."""
    client = Client(theirs.url)
    child = client.image("team/app", "", "a child", mediaType=DOCKER_MANIFEST)
    image = next(iter(client.manifests["team/app"].values())).replace(DOCKER_MANIFEST.encode(), MANIFEST.encode())
    entry = {"digest": child["digest"], "platform": {"os": "linux", "architecture": "amd64"}}
    versions = b'"schemaVersion": 2, "schemaVersion": 2, '
    listed = b"{%s" % versions + json.dumps({"mediaType": DOCKER_LIST, "manifests": [entry]}).encode()[1:]
    manifests = {
        "bytes": (image.replace(b'"schemaVersion"', b'"x": "caf\xe9", "schemaVersion"', 1), MANIFEST),
        "number": (image.replace(b'"schemaVersion"', b'"x": ' + b"9" * 5000 + b', "schemaVersion"', 1), MANIFEST),
        "case": (image.replace(b'"mediaType"', b'"MediaType"', 1).replace(b'"config"', b'"Config"'), MANIFEST),
        "list": (listed, DOCKER_LIST),
    }
    for tag, (content, media_type) in manifests.items():
        url = f"/v2/team/app/manifests/{tag}"
        client.ask("PUT", url, 201, content=content, headers={"Content-Type": media_type})
        for registry in (theirs, ours):
            answer = Client(registry.url).ask("GET", url, 200, headers={"Accept": f"{MANIFEST}, {DOCKER_LIST}"})
            assert (answer.content, answer.headers["Content-Type"]) == (content, media_type)
    for registry in (theirs, ours):
        accept = {"Accept": DOCKER_MANIFEST}
        answer = Client(registry.url).ask("GET", "/v2/team/app/manifests/list", 200, headers=accept)
        assert answer.headers["Docker-Content-Digest"] == child["digest"]


def test_referrers_that_were_pushed_to_distribution_are_listed_early_and_late(
    theirs: Registry, ours: Registry
) -> None:
    client = Client(theirs.url)
    first = fill(client)
    early = {
        str(digest) for digest in client.manifests["team/app"] if b"subject" in client.manifests["team/app"][digest]
    }
    assert len(early) == 1
    assert referrers(ours.url, first) == early
    late = client.referrer("team/app", first, "a late note")
    assert referrers(ours.url, first) == early | {late}
    Client(theirs.url).ask("DELETE", f"/v2/team/app/manifests/{late}", 202)
    assert referrers(ours.url, first) == early


def test_a_tag_that_distribution_moves_or_deletes_is_moved_or_gone_here_at_once(
    theirs: Registry, ours: Registry
) -> None:
    client = Client(theirs.url)
    client.image("team/app", "v1", "the old one")
    client.check(ours.url)
    digest = client.image("team/app", "v1", "the new one")["digest"]
    client.check(ours.url)
    client.ask("DELETE", f"/v2/team/app/manifests/{digest}", 202)
    for reference in ("v1", digest):
        Client(ours.url).ask("GET", f"/v2/team/app/manifests/{reference}", 404, headers=ACCEPT)
    assert Client(ours.url).ask("GET", "/v2/team/app/tags/list", 200).json()["tags"] == []


def test_an_upload_that_was_begun_on_distribution_is_finished_here(theirs: Registry, ours: Registry) -> None:
    for there, here, last in itertools.product((0, 1, 2), (0, 1), (b"", b"the last chunk")):
        chunks = [f"{there} {here}, chunk {number}, ".encode() * 5000 for number in range(there + here)]
        location = httpx.URL(Client(theirs.url).begin("team/app", *chunks[:there])).raw_path.decode()
        client = Client(ours.url)
        for chunk in chunks[there:]:
            location = client.ask("PATCH", location, 202, content=chunk).headers["Location"]
        content = b"".join(chunks) + last
        client.finish("team/app", location, content, last)
        for url in (ours.url, theirs.url):
            assert Client(url).ask("GET", f"/v2/team/app/blobs/{sha256(content)}", 200).content == content
    assert os.listdir(f"{ours.root}/{V2}/repositories/team/app/_uploads") == []


def test_the_position_of_an_upload_on_distribution_is_known_here(theirs: Registry, ours: Registry) -> None:
    location = httpx.URL(Client(theirs.url).begin("team/app", b"12345")).raw_path.decode()
    assert Client(ours.url).ask("GET", location, 204).headers["Range"] == "0-4"
    Client(ours.url).ask("DELETE", location, 204)
    Client(ours.url).ask("GET", location, 404)


# What we wrote


def test_what_we_wrote_is_served_by_distribution(theirs: Registry, ours: Registry) -> None:
    client = Client(ours.url)
    fill(client)
    client.check(ours.url)
    client.check(theirs.url)
    client.ask("DELETE", "/v2/team/app/manifests/v1", 202)
    del client.manifests["team/app"]["v1"]
    client.check(theirs.url)


def test_chunks_and_sha512_end_up_where_distribution_finds_them(theirs: Registry, ours: Registry) -> None:
    content = b"chunk one, chunk two"
    client = Client(ours.url)
    client.finish("team/app", client.begin("team/app", content[:9], content[9:]), content)
    wide = f"sha512:{hashlib.sha512(content).hexdigest()}"
    location = client.begin("team/wide", content)
    client.ask("PUT", location, 201, params={**_query(location), "digest": wide})
    for digest in (sha256(content), wide):
        assert Client(theirs.url).ask("GET", f"/v2/team/wide/blobs/{digest}", 200).content == content


def tree(root: str | os.PathLike[str]) -> dict[str, bytes]:
    """Every file below the registry's directory, but for what is ours alone."""
    found: dict[str, bytes] = {}
    top = os.path.join(root, V2)
    for directory, names, files in os.walk(top):
        names[:] = [name for name in names if name not in ("_cluster", "_locks", "_referrers")]
        for name in files:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, top)] = Path(path).read_bytes()
    return found


LINK = re.compile(r"sha256:[0-9a-f]{64}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_requests_leave_the_same_files(kind: type[Registry], tmp_path: Path) -> None:
    trees = []
    for registry in (kind(tmp_path / "theirs"), Node(tmp_path / "ours")):
        with brief(registry):
            fill(Client(registry.url))
            trees.append(tree(registry.root))
    theirs, ours = trees
    assert ours == theirs
    links = {path: content.decode() for path, content in ours.items() if path.endswith("/link")}
    assert len(links) > 20
    for path, content in links.items():
        assert LINK.fullmatch(content)
        assert f"/{content[7:]}/" in path or path.endswith("/current/link")
    data = {path: content for path, content in ours.items() if path.endswith("/data")}
    assert len(links) + len(data) == len(ours)
    for path, content in data.items():
        encoded = hashlib.sha256(content).hexdigest()
        assert path == f"blobs/sha256/{encoded[:2]}/{encoded}/data"


def test_a_session_lies_where_distribution_keeps_it(tmp_path: Path) -> None:
    with brief(Node(tmp_path / "ours")) as node:
        location = Client(node.url).begin("team/app", b"12345")
        uuid = httpx.URL(location).path.rpartition("/")[2]
        session = Path(node.root, V2, "repositories/team/app/_uploads", uuid)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", (session / "startedat").read_text())
        state = (session / "hashstates/sha256/5").read_bytes()
        assert (len(state), state[:4], state[-8:]) == (108, b"sha\x03", (5).to_bytes(8, "big"))


# Garbage collection


def collect(registry: Registry, *options: str) -> str:
    """Distribution's own garbage collection, with nobody serving."""
    command = [*registry.program(), "garbage-collect", *options, registry.config_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("untagged", [False, True])
def test_garbage_collection_of_distribution_leaves_what_is_tagged(
    theirs: Registry, tmp_path: Path, untagged: bool
) -> None:
    theirs.stop()
    with brief(Node(tmp_path / "ours", root=theirs.root)) as node:
        client = Client(node.url)
        fill(client)
        loose = client.blob("team/app", b"in no manifest")["digest"]
        if untagged and isinstance(theirs, Distribution2):
            # Its `-m` sweeps the children of an index that have no tag of their own: so it is, with any registry.
            children = json.loads(client.manifests["team/app"]["multi"])["manifests"]
            for number, child in enumerate(children):
                fields = json.loads(client.manifests["team/app"][child["digest"]])
                client.put(
                    "team/app", f"child-{number}", {key: fields[key] for key in fields if key != "schemaVersion"}
                )
    output = collect(theirs, *(["-m"] if untagged else []))
    assert loose in output
    with brief(Node(tmp_path / "after", root=theirs.root)) as node:
        kept = Client(node.url)
        kept.ask("HEAD", f"/v2/team/app/blobs/{loose}", 404)
        for name, manifests in client.manifests.items():
            tags = {reference: manifests[reference] for reference in manifests if ":" not in reference}
            for content in [*tags.values(), *([] if untagged else manifests.values())]:
                check_image(kept, name, content)
            for tag, content in tags.items():
                assert kept.ask("GET", f"/v2/{name}/manifests/{tag}", 200, headers=ACCEPT).content == content
            kept.manifests[name] = tags
        again = Client(node.url, {name: dict(manifests) for name, manifests in kept.manifests.items()})
        fill(again)
        again.check(node.url)


def test_garbage_collection_of_distribution_keeps_what_is_tagged_by_sha512(
    theirs: Registry, tmp_path: Path
) -> None:
    theirs.stop()
    with brief(Node(tmp_path / "ours", root=theirs.root)) as node:
        client = Client(node.url)
        config = client.blob("team/wide", b"{}", CONFIG)
        content = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []}).encode()
        wide = "sha512:" + hashlib.sha512(content).hexdigest()
        url, headers = f"/v2/team/wide/manifests/{wide}", {"Content-Type": MANIFEST}
        client.ask("PUT", url, 201, params={"tag": "t"}, content=content, headers=headers)
    collect(theirs, "-m")
    with brief(Node(tmp_path / "after", root=theirs.root)) as node:
        for reference in ("t", wide):
            answer = Client(node.url).ask("GET", f"/v2/team/wide/manifests/{reference}", 200)
            assert (answer.content, answer.headers["Docker-Content-Digest"]) == (content, wide)
        Client(node.url).ask("GET", f"/v2/team/wide/blobs/{config['digest']}", 200)


def check_image(client: Client, name: str, content: bytes) -> None:
    """A manifest and all it refers to are there."""
    fields = json.loads(content)
    client.ask("GET", f"/v2/{name}/manifests/{sha256(content)}", 200, headers=ACCEPT)
    for child in fields.get("manifests", []):
        client.ask("GET", f"/v2/{name}/manifests/{child['digest']}", 200, headers=ACCEPT)
    for blob in [*fields.get("layers", []), *([fields["config"]] if "config" in fields else [])]:
        assert sha256(client.ask("GET", f"/v2/{name}/blobs/{blob['digest']}", 200).content) == blob["digest"]
