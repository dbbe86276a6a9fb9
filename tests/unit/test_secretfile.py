"""The key ring in a file: made once, rotated in three steps that cannot be taken twice, told by no error."""

import itertools
import os
import stat
import threading
from pathlib import Path

import pytest

from cluster import cli, secretfile, serve
from cluster.config import parse
from cluster.errors import ConfigError

SECRET = "a secret that nobody may read"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "below" / "secret")


def refusal(path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        secretfile.keys(path)
    return "\n".join(caught.value.problems)


def test_it_is_drawn_once_and_only_its_owner_reads_it(path: str) -> None:
    assert secretfile.init(path)
    drawn = secretfile.keys(path)
    assert not secretfile.init(path)
    assert secretfile.keys(path) == drawn
    assert len(drawn) == 1
    assert len(drawn[0]) >= 64
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert os.listdir(os.path.dirname(path)) == ["secret"]


def test_of_many_who_draw_at_once_one_wins(path: str) -> None:
    made: list[bool] = []
    barrier = threading.Barrier(8)

    def draw() -> None:
        barrier.wait()
        made.append(secretfile.init(path))

    threads = [threading.Thread(target=draw) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 7 + [True]
    assert os.listdir(os.path.dirname(path)) == ["secret"]


def test_a_rotation_never_signs_with_what_was_not_accepted_before(path: str) -> None:
    secretfile.init(path)
    rings = [secretfile.keys(path)]
    for step in (secretfile.add, secretfile.promote, secretfile.drop):
        step(path)
        rings.append(secretfile.keys(path))
    old, new = rings[0][0], rings[-1][0]
    assert old != new
    assert rings == [[old], [old, new], [new, old], [new]]
    for before, after in itertools.pairwise(rings):  # nodes of two neighbouring steps serve together
        assert before[0] in after
        assert after[0] in before


def test_no_step_of_a_rotation_is_taken_twice(path: str) -> None:
    secretfile.init(path)
    for step in (secretfile.add, secretfile.promote, secretfile.drop):
        step(path)
        ring = secretfile.keys(path)
        with pytest.raises(ConfigError, match="wanted"):
            step(path)
        assert secretfile.keys(path) == ring


def test_a_step_leaves_mode_and_owner_as_they_are(path: str) -> None:
    secretfile.init(path)
    os.chmod(path, 0o640)
    if os.geteuid() == 0:
        os.chown(path, 4321, 4321)
    before = os.stat(path)
    secretfile.add(path)
    after = os.stat(path)
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_a_file_that_is_not_there_says_how_it_is_made(path: str) -> None:
    assert refusal(path) == (
        f"{path}: cannot be read: No such file or directory: make it with `registry-cluster secret init {path}`"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"next {SECRET}",
        f"sign {SECRET}\nsign {SECRET} too",
        "sign short",
        f"sing {SECRET}",
        SECRET,
        "sign",
        f"sign {SECRET}\n\xff".encode("latin-1"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_without_what_is_in_it(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    said = refusal(str(path))
    assert str(path) in said
    assert "nobody" not in said


def test_a_node_signs_with_what_the_file_says(path: str) -> None:
    secretfile.init(path)
    secretfile.add(path)
    text = f"version: 0.1\nstorage: inmemory\ncluster: {{secretfile: {path}, secrets: [{SECRET}]}}"
    assert serve.key_ring(parse(text, {}).config, draw=True) == [*secretfile.keys(path), SECRET.encode()]


def test_a_secret_has_one_place() -> None:
    text = f"version: 0.1\nstorage: inmemory\nhttp: {{secret: {SECRET}}}\ncluster: {{secretfile: /secret}}"
    with pytest.raises(ConfigError) as caught:
        parse(text, {})
    assert caught.value.problems == ["cluster.secretfile: written beside http.secret, wanted one of the two"]


def test_several_nodes_may_share_it() -> None:
    nodes = "nodes: ['http://a.example:1', 'http://b.example:1']"
    assert parse(f"version: 0.1\nstorage: filesystem\ncluster: {{secretfile: /secret, {nodes}}}", {}).warnings == []


def test_the_command_line_prints_no_secret(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    codes = [cli.main(["secret", step, path]) for step in ("init", "init", "add", "add", "promote", "drop", "drop")]
    assert codes == [0, 0, 0, 1, 0, 0, 1]
    printed = "".join(capsys.readouterr())
    assert "is left as it is" in printed
    assert secretfile.keys(path)[0].decode() not in printed
