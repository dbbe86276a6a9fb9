"""Uploads go on at any node: after a kill, beside a stopped writer, against a second commit and a cancel."""

from __future__ import annotations

import glob
import hashlib
import http.client
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.failover.client import Answer, Client, Unanswered, Upload, digest_of
from tests.failover.cluster import REPOSITORIES, Cluster, Member
from tests.support.process import SECRET, Node, eventually
from tests.support.tools import note

MIB = 1 << 20
NAME = "team/uploads"


class SlowPatch:
    """A PATCH whose body is held back in the middle; leaving the block gives it up."""

    def __init__(self, node: Member, upload: Upload, size: int) -> None:
        address = urlsplit(node.url)
        self.url = node.url
        self.connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        self.connection.putrequest("PATCH", upload.location)
        self.connection.putheader("Content-Type", "application/octet-stream")
        self.connection.putheader("Content-Length", str(size))
        self.connection.endheaders()

    def send(self, data: bytes) -> None:
        self.connection.send(data)

    def answer(self) -> Answer:
        answer = self.connection.getresponse()
        return Answer(answer.status, answer.msg, answer.read(), self.url)

    def __enter__(self) -> SlowPatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def stored(cluster: Cluster, upload: Upload) -> int:
    """How many bytes the PATCH under way has written: the size of its private file."""
    files = glob.glob(f"{cluster.data}/{REPOSITORIES}/{NAME}/_uploads/{uuid_of(upload)}/_seg/*.*")
    return max((os.path.getsize(file) for file in files), default=0)


def uuid_of(upload: Upload) -> str:
    return upload.location.partition("?")[0].rpartition("/")[2]


def at_once(*calls: Callable[[], Answer]) -> list[Answer]:
    """The answers to requests that are sent at the same moment."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Answer]) -> Answer:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def served_by_all(each: list[Client], digest: str, data: bytes) -> bool:
    return all(client.pull(NAME, digest) == data for client in each)


def test_each_request_of_an_upload_may_go_to_another_node(
    cluster: Cluster, client: Client, each: list[Client]
) -> None:
    data = os.urandom(3 * MIB)
    upload = client.begin(NAME)
    answers = [client.patch(upload, data[: 2 * MIB]), client.patch(upload, data[2 * MIB :])]
    answers += [client.status(upload), client.commit(upload, digest_of(data))]
    assert [answer.status for answer in answers] == [202, 202, 204, 201]
    urls = cluster.urls
    assert [answer.url for answer in answers] == [urls[1], urls[2], urls[0], urls[1]]
    assert answers[2].position == len(data)
    assert served_by_all(each, digest_of(data), data)


def test_when_a_node_is_killed_in_the_middle_of_a_patch_another_goes_on_from_what_it_had_written(
    cluster: Cluster, each: list[Client]
) -> None:
    data = os.urandom(8 * MIB)
    victim = cluster.nodes[0]
    upload = each[0].begin(NAME)
    with SlowPatch(victim, upload, len(data)) as patch:
        patch.send(data[: 5 * MIB])
        written = eventually(lambda: (n := stored(cluster, upload)) >= 4 * MIB and n, 20, "4 MiB are on storage")
        assert each[1].status(upload).position == 0  # its writer lives: what it has written is its own
        victim.kill()
    killed = time.monotonic()
    there = each[1].status(upload).expect(204).position
    assert written <= there <= 5 * MIB
    assert each[2].status(upload).position == there
    each[2].patch(upload, data[there:]).expect(202)
    each[1].commit(upload, digest_of(data)).expect(201)
    seconds = time.monotonic() - killed
    note(f"killed in mid-PATCH: {there} of {5 * MIB} bytes sent were taken over; committed {seconds:.2f} s after")
    assert seconds < 10  # the session was never locked: nothing had to time out
    victim.wait_until_back()
    with Client([victim.url]) as back:
        assert back.pull(NAME, digest_of(data)) == data


def test_a_client_that_repeats_a_chunk_after_a_kill_is_told_what_is_there(
    cluster: Cluster, each: list[Client]
) -> None:
    """A repeated chunk is 416 with the true Range and a Location to go on from, and the session lives."""
    data = os.urandom(2 * MIB)
    upload = each[1].begin(NAME)
    with SlowPatch(cluster.nodes[1], upload, len(data)) as patch:
        patch.send(data[:MIB])
        eventually(lambda: stored(cluster, upload) >= MIB // 2, 20, "half of what was sent is on storage")
        cluster.nodes[1].kill()
        there = stored(cluster, upload)
    refusal = each[2].patch(upload, data)
    assert (refusal.status, refusal.code, refusal.position) == (416, "RANGE_INVALID", there)
    upload.location, upload.offset = refusal.headers["Location"], refusal.position
    each[0].patch(upload, data[there:]).expect(202)
    each[2].commit(upload, digest_of(data)).expect(201)


@pytest.mark.parametrize("committed", [True, False], ids=["after the commit", "after the chunk"])
def test_a_stopped_writer_that_wakes_after_another_has_written_changes_nothing(
    cluster: Cluster, each: list[Client], committed: bool
) -> None:
    mine, theirs = os.urandom(3 * MIB), os.urandom(3 * MIB)
    sleeper = cluster.nodes[0]
    upload = each[0].begin(NAME)
    with SlowPatch(sleeper, upload, len(mine)) as patch:
        patch.send(mine[:MIB])
        eventually(lambda: stored(cluster, upload) >= MIB // 2, 20, "the first writer is in the middle")
        with sleeper.paused():
            assert each[1].status(upload).position == 0
            each[1].patch(upload, theirs).expect(202)
            if committed:
                each[2].commit(upload, digest_of(theirs)).expect(201)
                before = os.stat(cluster.blob_file(digest_of(theirs)))
        patch.send(mine[MIB:])
        answer = patch.answer()
    if committed:
        assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN")
        after = os.stat(cluster.blob_file(digest_of(theirs)))
        assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, len(theirs), before.st_mtime_ns)
    else:
        assert (answer.status, answer.code, answer.position) == (416, "RANGE_INVALID", len(theirs))
        each[0].commit(upload, digest_of(theirs)).expect(201)
    assert served_by_all(each, digest_of(theirs), theirs)
    assert [client.ask("HEAD", f"/v2/{NAME}/blobs/{digest_of(mine)}").status for client in each] == [404] * 3


def test_a_commit_is_answered_alike_however_often_and_wherever_it_is_asked(each: list[Client]) -> None:
    data = os.urandom(MIB)
    upload = each[0].begin(NAME)
    each[1].patch(upload, data).expect(202)
    assert [client.commit(upload, digest_of(data)).status for client in (*each, *each)] == [201] * 6
    # Another digest was never in this session, and the session is over.
    assert each[0].commit(upload, digest_of(b"something else")).status == 404


def test_a_commit_whose_node_was_killed_before_its_answer_came_is_201_on_another(
    cluster: Cluster, each: list[Client]
) -> None:
    """The kill comes at a random moment of the commit, several times; the answer may also have been in time."""
    lost = 0
    for attempt in range(4):
        victim = cluster.nodes[attempt % 3]
        cluster.wait_until_whole()
        data = os.urandom(4 * MIB) + bytes([attempt])
        with Client([victim.url]) as doomed:
            upload = doomed.begin(NAME)
            for start in range(0, len(data), MIB):
                doomed.patch(upload, data[start : start + MIB]).expect(202)
            timer = threading.Timer(attempt * 0.015, victim.kill)
            timer.start()
            try:
                doomed.commit(upload, digest_of(data)).expect(201)
            except Unanswered:
                lost += 1
            timer.join()
        other = each[(attempt + 1) % 3]
        other.commit(upload, digest_of(data)).expect(201)
        assert other.pull(NAME, digest_of(data)) == data
    note(f"4 nodes killed during a commit: {lost} answers lost, 4 repeated commits 201")


def test_two_commits_of_one_session_at_once_both_succeed(each: list[Client]) -> None:
    for _ in range(15):
        data = os.urandom(64 * 1024)
        upload = each[0].begin(NAME)
        each[1].patch(upload, data[:1000]).expect(202)
        each[2].patch(upload, data[1000:]).expect(202)
        digest = digest_of(data)
        answers = at_once(*(partial(client.commit, upload, digest) for client in each))
        assert [answer.status for answer in answers] == [201] * 3, [str(answer) for answer in answers]
        assert served_by_all(each, digest, data)


def test_two_sessions_with_the_same_bytes_committed_at_once_both_succeed(each: list[Client]) -> None:
    for _ in range(10):
        data = os.urandom(64 * 1024)
        uploads = [client.begin(NAME) for client in each]
        for client, upload in zip(each, uploads, strict=True):
            client.patch(upload, data).expect(202)
        digest = digest_of(data)
        commits = [partial(client.commit, upload, digest) for client, upload in zip(each, uploads, strict=True)]
        answers = at_once(*commits)
        assert [answer.status for answer in answers] == [201] * 3, [str(answer) for answer in answers]
        assert served_by_all(each, digest, data)


def cancel(client: Client, upload: Upload, after: float) -> Answer:
    time.sleep(after)
    return client.ask("DELETE", upload.location)


def test_a_commit_against_a_cancel_ends_in_one_of_the_two(each: list[Client]) -> None:
    outcomes = []
    for attempt in range(20):
        data = os.urandom(64 * 1024)
        upload = each[0].begin(NAME)
        each[1].patch(upload, data[:999]).expect(202)
        each[1].patch(upload, data[999:]).expect(202)
        digest = digest_of(data)

        commit, cancelled = at_once(
            partial(each[0].commit, upload, digest), partial(cancel, each[1], upload, attempt % 5 * 0.002)
        )
        present = [client.ask("HEAD", f"/v2/{NAME}/blobs/{digest}").status for client in each]
        assert cancelled.status in (204, 404), cancelled
        if commit.status == 201:
            assert served_by_all(each, digest, data)
        else:
            assert (commit.status, commit.code, cancelled.status) == (404, "BLOB_UPLOAD_UNKNOWN", 204), commit
            assert present == [404] * 3
        assert [client.ask("GET", upload.location).status for client in each] == [404] * 3
        outcomes.append(commit.status)
    note(f"commit against cancel, 20 times: {outcomes.count(201)} committed, {outcomes.count(404)} cancelled")


def numbers(pid: int, file: str) -> dict[str, int]:
    """What the kernel says of a process in one of its files in /proc."""
    lines = Path(f"/proc/{pid}/{file}").read_text(encoding="ascii").splitlines()
    fields = [line.split() for line in lines]
    return {field[0].rstrip(":"): int(field[1]) for field in fields if len(field) > 1 and field[1].isdecimal()}


def passed_through(cluster: Cluster) -> int:
    """Bytes that the workers of all nodes have read from files, copies inside the kernel included."""
    return sum(numbers(pid, "io")["rchar"] for node in cluster.nodes for pid in node.workers())


def read_by_commit(cluster: Cluster, each: list[Client], size: int, known: str) -> float:
    """MiB read by the commit of so many MiB that three nodes have taken; `known`: who has its digest states."""
    upload, whole, chunk = each[0].begin(NAME), [], os.urandom(4 * MIB)
    for number in range(size // 4):
        whole.append(number.to_bytes(8, "big") + chunk[8:])
        each[number % 3].patch(upload, whole[-1]).expect(202)
    digest = digest_of(b"".join(whole))
    if known != "storage and Redis":
        for file in cluster.upload_files(NAME):
            if f"{uuid_of(upload)}/hashstates" in file:
                os.unlink(file)
    with cluster.redis_paused() if known == "nobody" else nullcontext():
        before = passed_through(cluster)
        each[1].commit(upload, digest).expect(201)
        return (passed_through(cluster) - before) / MIB


@pytest.mark.parametrize("size", [48, pytest.param(1024, marks=pytest.mark.slow)])
def test_a_commit_does_not_read_again_what_three_nodes_have_taken(
    cluster: Cluster, each: list[Client], size: int
) -> None:
    """The kernel counts a copy that it makes itself, once; reading again, to hash, would come on top of it.

    What is read where nobody knows the digest states shows that the counter can tell.
    """
    read = {known: read_by_commit(cluster, each, size, known) for known in ("storage and Redis", "Redis", "nobody")}
    for _ in range(2):  # on a machine that is busy Redis may be too late, and a hint is a hint
        if read["Redis"] >= size + 9:
            read["Redis"] = read_by_commit(cluster, each, size, "Redis")
    seen = ", ".join(f"{mebibytes:.0f} MiB where {known} knew its digest" for known, mebibytes in read.items())
    note(f"commit of {size} MiB written over three nodes, the copy included: read {seen}")
    assert read["storage and Redis"] < size + 1
    assert read["Redis"] < size + 9  # the newest hint may still be on its way
    assert read["nobody"] > size * 1.9


@pytest.mark.parametrize("size", [96, pytest.param(1024, marks=pytest.mark.slow)])
def test_a_commit_of_several_segments_is_a_copy_that_the_kernel_makes(
    cluster: Cluster, each: list[Client], size: int
) -> None:
    """So few calls read so much that one of them moved more than the process had room for."""
    upload, piece, whole = each[0].begin(NAME), os.urandom(size * MIB // 3), hashlib.sha256()
    for client in each:
        client.patch(upload, piece).expect(202)
        whole.update(piece)
    (worker,) = cluster.nodes[1].workers()
    before = numbers(worker, "io")
    Path(f"/proc/{worker}/clear_refs").write_text("5")  # VmHWM, the most it ever had, is now what it has
    held = numbers(worker, "status")["VmHWM"]
    each[1].commit(upload, f"sha256:{whole.hexdigest()}").expect(201)
    grown = (numbers(worker, "status")["VmHWM"] - held) * 1024
    after = numbers(worker, "io")
    read, calls = after["rchar"] - before["rchar"], after["syscr"] - before["syscr"]
    note(
        f"commit of {size} MiB in 3 segments: {read / MIB:.0f} MiB by {calls} calls, memory +{grown / MIB:.1f} MiB"
    )
    assert read >= 3 * len(piece)
    assert read / calls > max(MIB, grown)  # no buffer of a worker is as large as the first


def test_a_push_of_one_patch_is_neither_copied_nor_read_again(cluster: Cluster, each: list[Client]) -> None:
    data = os.urandom(32 * MIB)
    upload = each[0].begin(NAME)
    each[1].patch(upload, data).expect(202)
    (segment,) = (file for file in cluster.upload_files(NAME) if f"{uuid_of(upload)}/_seg" in file)
    inode, before = os.stat(segment).st_ino, passed_through(cluster)
    each[2].commit(upload, digest_of(data)).expect(201)
    assert passed_through(cluster) - before < MIB
    assert os.stat(cluster.blob_file(digest_of(data))).st_ino == inode


class Ring:
    """Three nodes with key rings of their own, on one storage."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.nodes = [Node(directory / f"node-{n}", root=directory / "data") for n in range(3)]
        urls = [node.url for node in self.nodes]
        for number, node in enumerate(self.nodes):
            node.config["cluster"].update(name=f"node-{number}", nodes=urls)
            stack.enter_context(node)
        self.clients = [Client([url]) for url in urls]
        for client in self.clients:
            stack.callback(client.close)

    def roll(self, ring: list[str]) -> Iterator[int]:
        """Give the nodes these secrets, one node after the other; the number of each while it is away."""
        for number, node in enumerate(self.nodes):
            node.kill()
            yield number
            node.config["http"]["secret"] = ring[0]
            node.config["cluster"]["secrets"] = ring[1:]
            node.start()
            self.clients[number].close()  # the connections of its former life


def test_the_secret_is_rotated_while_uploads_go_on(tmp_path: Path) -> None:
    """Add the new one everywhere, swap, drop the old one: no step refuses an upload that was begun before it."""
    old, new = SECRET, "the secret that comes after it"
    with ExitStack() as stack:
        ring = Ring(tmp_path, stack)
        through = ring.clients[0].begin(NAME)  # one upload lives through all of it
        sent = b""
        for step in ([old, new], [new, old], [new]):
            begun = ring.clients[1].begin(NAME)  # and one through each step, untouched until that is done
            ring.clients[2].patch(begun, b"begun before " + str(step).encode()).expect(202)
            for away in ring.roll(step):
                for number in {0, 1, 2} - {away}:
                    piece = f"{step} {away} {number}\n".encode()
                    ring.clients[number].patch(through, piece).expect(202)
                    sent += piece
            digest = digest_of(b"begun before " + str(step).encode())
            ring.clients[0].commit(begun, digest).expect(201)
        ring.clients[0].commit(through, digest_of(sent)).expect(201)
        assert all(client.pull(NAME, digest_of(sent)) == sent for client in ring.clients)
