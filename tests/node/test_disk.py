"""Storage that is full, read-only, missing or hung, under a running node. Needs root: each test mounts its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.node.nodes import brief
from tests.node.raw import Wire, head, push
from tests.support.images import INDEX, MIB, sha256
from tests.support.process import Node, Process, Registry, eventually, free_port
from tests.support.tools import require, require_root

ACCEPT = {"Accept": INDEX}
DEADLINE = 20  # seconds: the limit of 10 for storage, and what a busy machine adds


def mount(*arguments: str) -> None:
    subprocess.run([require("mount"), *arguments], check=True, timeout=20)


def unmount(path: Path) -> None:
    subprocess.run([require("umount"), "--lazy", str(path)], check=True, timeout=20)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    require_root("mounting a small file system")
    path = tmp_path / "room"
    path.mkdir()
    mount("-t", "tmpfs", "-o", "size=8m,mode=755", "none", str(path))
    try:
        yield path
    finally:
        unmount(path)


@pytest.fixture
def node(room: Path, tmp_path: Path) -> Iterator[Node]:
    """A node on it; it does not look at its storage by itself: that takes room while a test counts what is left."""
    with brief(Node(tmp_path / "node", {"health": {"storagedriver": {"interval": "1h"}}}, root=room)) as node:
        yield node


def ask(node: Registry, method: str, path: str, **more: Any) -> httpx.Response:
    return httpx.request(method, httpx.URL(node.url).join(path), timeout=60, trust_env=False, **more)


def begin(node: Registry, *chunks: bytes) -> str:
    location = ask(node, "POST", "/v2/app/blobs/uploads/").headers["Location"]
    for chunk in chunks:
        answer = ask(node, "PATCH", location, content=chunk)
        assert answer.status_code == 202
        location = answer.headers["Location"]
    return str(location)


def finish(node: Registry, location: str, content: bytes, last: bytes = b"") -> httpx.Response:
    return ask(node, "PUT", f"{location}&digest={sha256(content)}", content=last)


def index(text: str) -> bytes:
    return json.dumps(
        {"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "annotations": {"text": text}}
    ).encode()


def put(node: Registry, reference: str, content: bytes) -> httpx.Response:
    return ask(node, "PUT", f"/v2/app/manifests/{reference}", content=content, headers={"Content-Type": INDEX})


def serves(node: Registry, reference: str) -> bytes:
    answer = ask(node, "GET", f"/v2/app/manifests/{reference}", headers=ACCEPT)
    assert answer.status_code == 200, answer.text
    return answer.content


def fill(room: Path, *, leave: int = 0) -> Path:
    """Take all the room there is, but for so many bytes."""
    space = os.statvfs(room)
    filler = room / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_bsize - leave)
    assert os.statvfs(room).f_bavail * space.f_bsize == leave
    return filler


def refused_for_lack_of_room(answer: httpx.Response) -> bool:
    """Whether this is the spec's error, in words that help, with the time to come back."""
    assert answer.status_code == 503, answer.text
    (error,) = answer.json()["errors"]
    assert error["code"] == "UNAVAILABLE" and "full" in error["detail"]
    return int(answer.headers["Retry-After"]) > 0


# Full


def test_a_disk_that_fills_during_a_chunk_loses_nothing_that_was_acknowledged(node: Node, room: Path) -> None:
    first, second = os.urandom(MIB), os.urandom(20 * MIB)
    location = begin(node, first)
    used = os.statvfs(room).f_bavail
    assert refused_for_lack_of_room(ask(node, "PATCH", location, content=second))
    assert ask(node, "GET", location).headers["Range"] == f"0-{MIB - 1}"
    assert os.statvfs(room).f_bavail == used, "what did not fit is left behind"
    mount("-o", "remount,size=64m", str(room))
    location = ask(node, "PATCH", location, content=second).headers["Location"]
    assert finish(node, location, first + second).status_code == 201
    assert ask(node, "GET", f"/v2/app/blobs/{sha256(first + second)}").content == first + second


@pytest.mark.parametrize("held", [b"", b"an acknowledged chunk, "])
def test_a_disk_that_fills_during_a_commit_leaves_the_upload_to_be_finished(
    node: Node, room: Path, held: bytes
) -> None:
    last = os.urandom(20 * MIB)
    location = begin(node, *([held] if held else []))
    assert refused_for_lack_of_room(finish(node, location, held + last, last))
    assert ask(node, "HEAD", f"/v2/app/blobs/{sha256(held + last)}").status_code == 404
    mount("-o", "remount,size=64m", str(room))
    assert finish(node, location, held + last, last).status_code == 201
    assert ask(node, "GET", f"/v2/app/blobs/{sha256(held + last)}").content == held + last


def test_without_room_for_the_copy_several_chunks_stay_chunks(node: Node, room: Path) -> None:
    chunks = [os.urandom(2 * MIB), os.urandom(2 * MIB)]
    location = begin(node, *chunks)
    filler = fill(room, leave=MIB)
    assert refused_for_lack_of_room(finish(node, location, b"".join(chunks)))
    assert ask(node, "GET", location).headers["Range"] == f"0-{4 * MIB - 1}"
    filler.unlink()
    mount("-o", "remount,size=64m", str(room))
    assert finish(node, location, b"".join(chunks)).status_code == 201


def test_a_whole_blob_is_committed_as_soon_as_there_is_room_for_its_link(node: Node, room: Path) -> None:
    content = os.urandom(MIB)
    location = begin(node, content)
    filler = fill(room)
    assert refused_for_lack_of_room(finish(node, location, content))
    filler.unlink()
    assert finish(node, location, content).status_code == 201
    assert ask(node, "GET", f"/v2/app/blobs/{sha256(content)}").content == content


def test_a_full_disk_serves_refuses_to_write_and_can_be_emptied(node: Node, room: Path) -> None:
    old, new = index("old"), index("new")
    assert put(node, "v1", old).status_code == 201
    filler = fill(room)
    for reference in ("v1", "v2", sha256(new)):
        assert refused_for_lack_of_room(put(node, reference, new))
    assert refused_for_lack_of_room(ask(node, "POST", "/v2/app/blobs/uploads/"))
    assert serves(node, "v1") == serves(node, sha256(old)) == old
    assert ask(node, "GET", "/v2/app/tags/list").json()["tags"] == ["v1"]
    assert ask(node, "DELETE", f"/v2/app/manifests/{sha256(old)}").status_code == 202
    filler.unlink()
    assert put(node, "v1", new).status_code == 201
    assert serves(node, "v1") == new


@pytest.mark.parametrize("kibibytes", range(0, 40, 4))
def test_wherever_a_tag_write_runs_out_of_room_the_tag_is_the_old_one_or_the_new_one(
    node: Node, room: Path, kibibytes: int
) -> None:
    old, new = index("old"), index("new" * 2000)
    assert put(node, "v1", old).status_code == 201
    filler = fill(room, leave=kibibytes * 1024)
    answer = put(node, "v1", new)
    if answer.status_code == 201:
        assert serves(node, "v1") == new
    else:
        assert refused_for_lack_of_room(answer)
        assert serves(node, "v1") == old
    filler.unlink()
    assert put(node, "v1", new).status_code == 201
    assert serves(node, "v1") == new


# Read-only, or not there


def serve(tmp_path: Path, root: Path, **maintenance: Any) -> subprocess.CompletedProcess[str]:
    """What `serve` says when it does not come up."""
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(root)}, "maintenance": maintenance},
        "http": {"addr": f"127.0.0.1:{free_port()}", "secret": "secret"},
    }
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "cluster", "serve", str(tmp_path / "config.yml")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}
    return subprocess.run(command, capture_output=True, text=True, env=clean, timeout=60, check=False)


def says_why(done: subprocess.CompletedProcess[str], root: Path) -> bool:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return "storage.filesystem.rootdirectory" in done.stderr and str(root) in done.stderr


def test_a_node_does_not_start_on_a_directory_that_is_missing(tmp_path: Path) -> None:
    assert says_why(serve(tmp_path, tmp_path / "missing"), tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_a_node_does_not_start_on_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content", encoding="utf-8")
    assert says_why(serve(tmp_path, tmp_path / "file"), tmp_path / "file")


@pytest.mark.parametrize("used_before", [False, True])
def test_a_node_does_not_start_on_read_only_storage(tmp_path: Path, room: Path, used_before: bool) -> None:
    if used_before:
        (room / "docker/registry/v2").mkdir(parents=True)
    mount("-o", "remount,ro", str(room))
    done = serve(tmp_path, room)
    assert says_why(done, room)
    assert "storage.maintenance.readonly" in done.stderr


def test_a_node_does_not_start_on_full_storage(tmp_path: Path, room: Path) -> None:
    fill(room)
    assert says_why(serve(tmp_path, room), room)


def test_a_read_only_node_serves_read_only_storage(tmp_path: Path, room: Path) -> None:
    with brief(Node(tmp_path / "writer", root=room)) as node:
        assert put(node, "v1", index("there")).status_code == 201
    eventually(lambda: remounted_read_only(room), 20, "nothing is open for writing any more")
    config = {"storage": {"maintenance": {"readonly": {"enabled": True}}}}
    with brief(Node(tmp_path / "reader", config, root=room)) as node:
        assert serves(node, "v1") == index("there")
        assert put(node, "v1", index("new")).status_code == 405
        assert ask(node, "GET", "/readyz").status_code == 200


def remounted_read_only(room: Path) -> bool:
    command = [require("mount"), "-o", "remount,ro", str(room)]
    return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0


def test_storage_that_turns_read_only_is_served_until_it_can_be_written_again(node: Node, room: Path) -> None:
    assert put(node, "v1", index("old")).status_code == 201
    eventually(lambda: remounted_read_only(room), 20, "nothing is open for writing")
    for answer in (put(node, "v1", index("new")), ask(node, "POST", "/v2/app/blobs/uploads/")):
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (503, "UNAVAILABLE")
        assert str(room) not in answer.text, "paths are nobody's business"
    assert serves(node, "v1") == index("old")
    mount("-o", "remount,rw", str(room))
    assert put(node, "v1", index("new")).status_code == 201


# Hung


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[tuple[Process, Path]]:
    """A file system that another process serves, which can be stopped."""
    require_root("mounting a file system that can hang")
    lower, upper, work, path = (tmp_path / name for name in ("lower", "upper", "work", "mount"))
    for directory in (lower, upper, work, path):
        directory.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    command = [require("fuse-overlayfs"), "-f", "-o", options, str(path)]
    server = Process(command, log=str(tmp_path / "server.log"), ready=lambda: os.path.ismount(path))
    with server:
        try:
            yield server, path
        finally:
            server.resume()
            unmount(path)


def timed(call: Callable[[], httpx.Response]) -> tuple[httpx.Response, float]:
    started = time.monotonic()
    return call(), time.monotonic() - started


def test_storage_that_hangs_stops_neither_the_node_nor_its_clients(
    hanging: tuple[Process, Path], tmp_path: Path
) -> None:
    server, path = hanging
    with Node(tmp_path / "node", root=path) as node:
        content, blob = index("there"), os.urandom(MIB)
        assert put(node, "v1", content).status_code == 201
        assert finish(node, begin(node, blob), blob).status_code == 201
        session = begin(node, b"a chunk")
        server.pause()
        try:
            calls: dict[str, Callable[[], httpx.Response]] = {
                "manifest by tag": lambda: ask(node, "GET", "/v2/app/manifests/v1", headers=ACCEPT),
                "manifest by digest": lambda: ask(node, "HEAD", f"/v2/app/manifests/{sha256(content)}"),
                "blob": lambda: ask(node, "GET", f"/v2/app/blobs/{sha256(blob)}"),
                "tags": lambda: ask(node, "GET", "/v2/app/tags/list"),
                "catalog": lambda: ask(node, "GET", "/v2/_catalog"),
                "referrers": lambda: ask(node, "GET", f"/v2/app/referrers/{sha256(content)}"),
                "manifest put": lambda: put(node, "v2", content),
                "manifest delete": lambda: ask(node, "DELETE", f"/v2/app/manifests/{sha256(content)}"),
                "upload start": lambda: ask(node, "POST", "/v2/app/blobs/uploads/"),
                "upload status": lambda: ask(node, "GET", session),
                "upload chunk": lambda: ask(node, "PATCH", session, content=b"another"),
                "upload finish": lambda: finish(node, session, b"a chunk"),
                "upload cancel": lambda: ask(node, "DELETE", session),
            }
            with ThreadPoolExecutor(len(calls)) as clients:
                answers = {name: clients.submit(timed, call) for name, call in calls.items()}
                for _ in range(20):
                    for probe in ("/livez", "/v2/"):
                        answer, seconds = timed(lambda probe=probe: ask(node, "GET", probe))  # type: ignore[misc]
                        assert answer.status_code == 200 and seconds < 5, probe
                for name, future in answers.items():
                    answer, seconds = future.result()
                    assert answer.status_code == 503, f"{name}: {answer.status_code}"
                    assert seconds < DEADLINE, f"{name} took {seconds} s"
                    assert int(answer.headers["Retry-After"]) > 0
        finally:
            server.resume()
        eventually(lambda: ask(node, "GET", "/v2/app/tags/list").status_code == 200, 20, "storage is used again")
        assert ask(node, "GET", f"/v2/app/blobs/{sha256(blob)}").content == blob
        assert put(node, "v3", content).status_code == 201
        assert serves(node, "v3") == content


def test_a_download_whose_file_breaks_off_is_cut_and_the_log_says_so(tmp_path: Path) -> None:
    with brief(Node(tmp_path)) as node:
        digest = push(node.port, "cut", [os.urandom(MIB)] * 32)
        data = f"{node.root}/docker/registry/v2/blobs/sha256/{digest[7:9]}/{digest[7:]}/data"
        with Wire(node.port, receive_buffer=64 * 1024) as wire:
            wire.send(head("GET", f"/v2/cut/blobs/{digest}"))
            status, headers = wire.answer_head()
            assert (status, headers["content-length"]) == (200, str(32 * MIB))
            os.truncate(data, MIB)
            assert len(wire.rest()) < 32 * MIB
        eventually(lambda: "the answer was cut short after" in node.log(), 10, "the log says so")
        assert "Traceback" not in node.log()
        os.unlink(data)
        os.mkdir(data)
        with Wire(node.port) as wire:
            answer = wire.ask("GET", f"/v2/cut/blobs/{digest}")
            assert (answer.status, answer.error()) == (503, "UNAVAILABLE")
            assert wire.ask("GET", "/v2/").status == 200
