"""The record of facts: what several writers put down is read back, and what a killed one left open stays open."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.drill.facts import Facts, Record, Register, load
from cluster.drill.history import Operation, Outcome, Wanted

NAME = "team/app"
DIGEST = "sha256:" + "a" * 64
TAG = Register.tag(NAME, "v1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "facts.jsonl"


def only(record: Record, register: Register = TAG) -> Operation:
    (operation,) = record.operations[register]
    return operation


def test_an_operation_comes_back_as_it_was_recorded(path: Path) -> None:
    with Facts(path) as facts, facts.record(TAG, Operation("put", DIGEST, None, note="node-1")) as sent:
        sent.end(Outcome.REFUSED, "sha256:other")
    read = only(load(path))
    assert vars(read) == vars(sent)
    assert read.began <= read.ended < math.inf


@pytest.mark.parametrize("expected", [Wanted.ANYTHING, None, DIGEST])
def test_every_condition_comes_back(path: Path, expected: str | Wanted | None) -> None:
    with Facts(path) as facts, facts.record(TAG, Operation("delete", expected=expected)) as operation:
        operation.end(Outcome.DONE)
    assert only(load(path)).expected == expected


def test_content_that_was_acknowledged_is_a_put_that_is_done(path: Path) -> None:
    with Facts(path) as facts:
        facts.blob(NAME, DIGEST)
        facts.manifest(NAME, DIGEST)
    record = load(path)
    assert list(record.operations) == [Register.blob(NAME, DIGEST), Register.manifest(NAME, DIGEST)]
    assert only(record, Register.blob(NAME, DIGEST)).value == DIGEST
    assert record.acknowledged() == 2


def test_an_operation_is_on_disk_before_it_is_sent(path: Path) -> None:
    with Facts(path) as facts, facts.record(TAG, Operation("put", DIGEST)):
        assert (only(load(path)).outcome, only(load(path)).ended) == (Outcome.UNKNOWN, math.inf)


def test_an_operation_whose_answer_never_came_stays_open(path: Path) -> None:
    with Facts(path) as facts, pytest.raises(OSError), facts.record(TAG, Operation("put", DIGEST)):
        raise OSError("the connection broke")
    assert only(load(path)).outcome is Outcome.UNKNOWN
    assert load(path).acknowledged() == 0


def test_what_clients_saw_broken_comes_back(path: Path) -> None:
    with Facts(path) as facts:
        facts.lost("4096 bytes of an upload")
        facts.wrong("a layer")
    record = load(path)
    assert (record.lost, record.wrong) == (["4096 bytes of an upload"], ["a layer"])


WRITER = """
import sys
from cluster.drill.facts import Facts, Register
from cluster.drill.history import Operation, Outcome

with Facts(sys.argv[1]) as facts:
    for number in range(300):
        with facts.record(Register.tag("team/app", "v1"), Operation("put", sys.argv[2] * 1000)) as operation:
            operation.end(Outcome.DONE)
"""


def test_processes_and_threads_write_one_file(path: Path) -> None:
    children = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "abc"]
    with Facts(path) as facts:

        def write() -> None:
            for _ in range(300):
                facts.blob(NAME, DIGEST)

        threads = [threading.Thread(target=write) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [child.wait(60) for child in children] == [0, 0, 0]
    record = load(path)
    assert record.unusable == []
    assert record.acknowledged() == 6 * 300


def test_several_files_are_one_record(tmp_path: Path) -> None:
    for name in "ab":
        with Facts(tmp_path / name) as facts:
            facts.blob(NAME, DIGEST)
    assert load(tmp_path / "a", tmp_path / "b").acknowledged() == 2


def test_a_writer_that_was_killed_in_a_line_spoils_nothing(path: Path) -> None:
    with Facts(path) as facts:
        facts.blob(NAME, DIGEST)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        record = load(path)
        assert (record.unusable, record.acknowledged()) == ([], 0)


@pytest.mark.parametrize(
    "line", ["{", "7", '{"id": "no-such", "outcome": "done"}', '{"register": ["pot", "a", "b"]}']
)
def test_a_line_that_is_no_fact_makes_the_record_unusable(path: Path, line: str) -> None:
    path.write_text(line + "\n")
    (problem,) = load(path).unusable
    assert f"{path}, line 1 is not a fact" in problem


def test_clocks_that_cannot_be_compared_make_the_record_unusable(path: Path) -> None:
    with Facts(path) as facts, facts.record(TAG, Operation("put", DIGEST)) as operation:
        operation.end(Outcome.DONE)
    begun = json.loads(path.read_text().splitlines()[0])
    with open(path, "a", encoding="utf-8") as file:
        print(json.dumps({**begun, "id": "other", "clock": "other"}), file=file)
    assert load(path).unusable == ["tag team/app:v1 was used from machines whose clocks cannot be compared"]
