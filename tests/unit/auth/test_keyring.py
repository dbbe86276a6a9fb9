"""The signing keys (cluster/auth/keyring.py): made once, seen before they sign, kept as long as they are needed."""

from __future__ import annotations

import multiprocessing
import os
import stat
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from cluster.auth import keyring, keys
from cluster.auth.keyring import ACTIVATION, WatchedRing
from cluster.auth.tokens import open_token, sign_token
from cluster.errors import ConfigError
from tests.support.tokens import claims, ec_key
from tests.support.tools import require_root

LIFETIME = 3600.0
# Some time after the first key was published, which counts as "always".
NOW = 1_800_000_000.0


@pytest.fixture
def directory(tmp_path: Path) -> str:
    path = str(tmp_path / "keys")
    keyring.provide(path, "ES256")
    return path


def _provide(path: str, barrier: Barrier) -> None:
    barrier.wait(30)
    keyring.provide(path, "ES256")
    keyring.read(path)


def test_of_many_nodes_that_start_at_once_one_makes_the_first_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    for attempt in range(2):
        path, barrier = str(tmp_path / str(attempt)), context.Barrier(3)
        nodes = [context.Process(target=_provide, args=(path, barrier)) for _ in range(3)]
        for node in nodes:
            node.start()
        for node in nodes:
            node.join(60)
        assert [node.exitcode for node in nodes] == [0] * 3
        assert os.listdir(path) == ["0000000000.pem"]


def test_the_files_are_for_their_owner_alone(directory: str) -> None:
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(f"{directory}/0000000000.pem").st_mode) == 0o600


def test_a_key_that_root_makes_belongs_to_whoever_owns_the_directory(directory: str) -> None:
    require_root("giving a directory away")
    os.chown(directory, 1234, 1235)
    keyring.rotate(directory, "ES256", LIFETIME, NOW)
    status = os.stat(f"{directory}/{int(NOW)}.pem")
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 1235, 0o600)


def test_the_first_key_signs_at_once(directory: str) -> None:
    ring = keyring.read(directory)
    assert ring.signer(NOW) is ring.keys[0]


def test_a_new_key_verifies_at_once_and_signs_when_all_nodes_have_seen_it(directory: str) -> None:
    old = keyring.read(directory).keys[0]
    new, removed = keyring.rotate(directory, "EdDSA", LIFETIME, NOW)
    ring = keyring.read(directory)
    assert (new.algorithm, removed) == ("EdDSA", [])
    assert ring.signer(NOW + ACTIVATION - 1).kid == old.kid
    assert ring.signer(NOW + ACTIVATION).kid == new.kid
    for key in (old, new):
        assert open_token(sign_token(claims(), key), ring.trust(), keys.ASYMMETRIC)["sub"] == "anna"


def test_an_old_key_goes_with_the_rotation_after_its_last_token_has_expired(directory: str) -> None:
    first = keyring.read(directory).keys[0]
    keyring.rotate(directory, "ES256", LIFETIME, NOW)
    _, removed = keyring.rotate(directory, "ES256", LIFETIME, NOW + ACTIVATION + LIFETIME)
    assert removed == []
    _, removed = keyring.rotate(directory, "ES256", LIFETIME, NOW + ACTIVATION + LIFETIME + 1)
    assert [key.kid for key in removed] == [first.kid]
    assert len(keyring.read(directory).keys) == 3


def test_two_rotations_at_the_same_moment_make_one_key(directory: str) -> None:
    keyring.rotate(directory, "ES256", LIFETIME, NOW)
    with pytest.raises(ConfigError, match="says 2027-01-15T08:00:00Z: rotate again from 2027-01-15T08:00:01Z on"):
        keyring.rotate(directory, "ES256", LIFETIME, NOW)
    assert len(keyring.read(directory).keys) == 2


def test_a_key_that_may_have_signed_something_alive_is_retired_by_force_only(directory: str) -> None:
    first = keyring.read(directory).keys[0]
    with pytest.raises(ConfigError, match="the only key"):
        keyring.retire(directory, first.kid, LIFETIME, NOW, force=True)
    new, _ = keyring.rotate(directory, "ES256", LIFETIME, NOW)
    with pytest.raises(ConfigError, match="may be alive until 2027-01-15T09:02:00Z"):
        keyring.retire(directory, first.kid, LIFETIME, NOW + 1, force=False)
    with pytest.raises(ConfigError, match="may be alive as long as it is the newest"):
        keyring.retire(directory, new.kid, LIFETIME, NOW + 1, force=False)
    with pytest.raises(ConfigError, match=f"no key has the id 'x'; wanted one of {first.kid}, {new.kid}"):
        keyring.retire(directory, "x", LIFETIME, NOW, force=False)
    keyring.retire(directory, first.kid, LIFETIME, NOW + 1, force=True)
    assert keyring.read(directory).signer(NOW + 1).kid == new.kid


def test_a_key_is_retired_without_force_once_nothing_needs_it(directory: str) -> None:
    first = keyring.read(directory).keys[0]
    keyring.rotate(directory, "ES256", LIFETIME, NOW)
    keyring.retire(directory, first.kid, LIFETIME, NOW + ACTIVATION + LIFETIME + 1, force=False)
    assert len(keyring.read(directory).keys) == 1


def test_the_list_says_what_each_key_does(directory: str) -> None:
    first = keyring.read(directory).keys[0]
    second, _ = keyring.rotate(directory, "ES256", LIFETIME, NOW)
    third, _ = keyring.rotate(directory, "RS256", LIFETIME, NOW + LIFETIME)
    ring = keyring.read(directory)
    assert keyring.describe(ring, LIFETIME, NOW + LIFETIME) == [
        f"{first.kid} ES256 verifies, needed until 2027-01-15T09:02:00Z",
        f"{second.kid} ES256 signs",
        f"{third.kid} RS256 verifies, signs from 2027-01-15T09:02:00Z",
    ]
    assert "the next rotation removes it" in keyring.describe(ring, LIFETIME, NOW + 3 * LIFETIME)[0]


def test_the_key_set_holds_the_public_halves(directory: str) -> None:
    ring = keyring.read(directory)
    (found,) = keyring.key_set(ring)["keys"]  # type: ignore[misc]
    assert found == {**keys.public_jwk(ring.keys[0].public), "kid": ring.keys[0].kid, "alg": "ES256", "use": "sig"}


@pytest.mark.parametrize(
    ("name", "content", "mode", "problem"),
    [
        ("0000000001.pem", b"junk", 0o600, "not a private key in PEM, without a password"),
        ("0000000001.pem", b"", 0o600, "not a private key in PEM, without a password"),
        ("0000000001.pem", None, 0o604, "everybody on this machine may read or change it: chmod 600"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    directory: str, name: str, content: bytes | None, mode: int, problem: str
) -> None:
    path = Path(directory, name)
    path.write_bytes(Path(directory, "0000000000.pem").read_bytes() if content is None else content)
    path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        keyring.read(directory)
    assert str(caught.value) == f"{path}: {problem}"


def test_a_key_with_a_password_is_refused(directory: str) -> None:
    path = Path(directory, "0000000001.pem")
    path.write_bytes(
        ec_key().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="without a password"):
        keyring.read(directory)


def test_other_files_are_left_alone(directory: str) -> None:
    for name in (".half-written", "README", "1.pem", "0000000001.pem.bak"):
        Path(directory, name).write_text("junk")
    assert len(keyring.read(directory).keys) == 1


def test_a_directory_without_keys_or_without_itself_is_no_key_ring(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found 0 signing keys, wanted 1 to 64"):
        keyring.read(str(tmp_path))
    with pytest.raises(ConfigError, match="No such file"):
        keyring.read(str(tmp_path / "none"))


def test_no_private_key_shows_itself(directory: str) -> None:
    ring = keyring.read(directory)
    assert "private" not in repr(ring).lower()


@pytest.mark.anyio
async def test_a_directory_is_read_again_when_it_changes_and_the_last_good_one_stays(directory: str) -> None:
    watched = WatchedRing(directory)
    assert not await watched.refresh()
    new, _ = keyring.rotate(directory, "ES256", LIFETIME, time.time())
    assert await watched.refresh()
    assert [key.kid for key in watched.content.keys][1:] == [new.kid]
    broken = Path(directory, "9000000000.pem")
    broken.write_text("junk")
    broken.chmod(0o600)
    assert not await watched.refresh()
    assert len(watched.content.keys) == 2
    broken.unlink()
    os.rename(directory, f"{directory}-away")
    assert not await watched.refresh()
    assert len(watched.content.keys) == 2
    os.rename(f"{directory}-away", directory)
    keyring.retire(directory, new.kid, LIFETIME, time.time(), force=True)
    assert await watched.refresh()
    assert len(watched.content.keys) == 1
