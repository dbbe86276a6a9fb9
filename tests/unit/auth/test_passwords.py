"""What may be a password, and what a line of an htpasswd file means (cluster/auth/passwords.py)."""

from __future__ import annotations

import subprocess

import pytest

from cluster.auth import passwords
from cluster.auth.passwords import PasswordRefused
from cluster.errors import ConfigError
from tests.support.tools import require

COST = passwords.LOWEST_COST
GOOD = [b"wonderland", b"with:colon", "pässwörd €".encode(), b"x" * 72, b" space ", b"\xe4\xff", b"$2y$10$"]
FILE = """# made by hand

alice:{alice}
bob:$apr1$4TRcyKpB$PDfz0mzyBZDpQ3ST0DwUy1
  carol:{carol}
"""


@pytest.mark.parametrize("password", GOOD)
def test_a_password_matches_its_own_hash_under_each_of_bcrypts_names(password: bytes) -> None:
    hashed = passwords.make(password, COST)
    for name in ("$2a$", "$2b$", "$2y$"):
        renamed = name + hashed[4:]
        assert passwords.matches(password, renamed)
        assert passwords.matches(password + b"!", renamed) is (len(password) == 72)
        assert not passwords.matches(password[:-1], renamed)


@pytest.mark.parametrize("password", GOOD[:3])
def test_apache_and_we_take_each_others_hashes(password: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    htpasswd, file = require("htpasswd"), tmp_path_factory.mktemp("apache") / "htpasswd"
    made = subprocess.run([htpasswd, "-nbBC", str(COST), "alice", password], capture_output=True, check=True).stdout
    assert passwords.matches(password, passwords.parse(made).hashes["alice"])
    file.write_text(f"alice:{passwords.make(password, COST)}\n")
    verified = subprocess.run([htpasswd, "-vb", file, "alice", password], capture_output=True, check=False)
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize("password", [b"x" * 73, b"a\0a", b"\0", b""])
def test_what_bcrypt_would_not_look_at_whole_is_refused_as_a_new_password(password: bytes) -> None:
    with pytest.raises(PasswordRefused):
        passwords.make(password, COST)


def test_a_nul_never_matches() -> None:
    """bcrypt itself takes `a` for `a, NUL, a`."""
    assert not passwords.matches(b"a\0a", passwords.make(b"a", COST))
    assert not passwords.matches(b"x" * 72 + b"\0", passwords.make(b"x" * 72, COST))


def test_of_a_long_password_the_beginning_counts_as_in_distribution() -> None:
    """Apache's htpasswd cuts it without a word, so there are such files."""
    made = subprocess.run(
        [require("htpasswd"), "-nbBC", str(COST), "alice", "x" * 80], capture_output=True, check=True
    ).stdout
    hashed = passwords.parse(made).hashes["alice"]
    for length, right in ((71, False), (72, True), (80, True), (500, True)):
        assert passwords.matches(b"x" * length, hashed) is right


@pytest.mark.parametrize("cost", [3, 18, -1])
def test_a_cost_that_nobody_can_mean_is_refused(cost: int) -> None:
    with pytest.raises(PasswordRefused, match=f"cost {cost}: wanted 4 to 17"):
        passwords.make(b"wonderland", cost)


@pytest.mark.parametrize(
    "hashed",
    [
        "$apr1$4TRcyKpB$PDfz0mzyBZDpQ3ST0DwUy1",  # MD5 of "wonderland"
        "{SHA}gPTw0LPzB4LJXM3HhX/1QzKpdRE=",
        "rOioh4.WfIl4E",
        "wonderland",
        "",
        "$2y$10$short",
        "$2x$04$" + "." * 53,
        "$2y$31$" + "." * 53,
        "$2y$04$" + "." * 53 + "\n",
        passwords.placeholder(COST),
    ],
)
def test_a_hash_that_is_none_of_bcrypts_matches_nothing(hashed: str) -> None:
    assert not passwords.matches(b"wonderland", hashed)
    assert not passwords.matches(b"", hashed)


def test_nobody_has_no_password() -> None:
    assert not passwords.matches(b"wonderland", None)


def test_comments_and_blank_lines_are_nobody_and_other_hashes_are_told() -> None:
    alice, carol = passwords.make(b"a", COST), passwords.make(b"c", COST)
    accounts = passwords.parse(FILE.format(alice=alice, carol=carol).replace("\n", "\r\n").encode())
    assert accounts.hashes == {"alice": alice, "bob": "$apr1$4TRcyKpB$PDfz0mzyBZDpQ3ST0DwUy1", "carol": carol}
    assert accounts.warnings == ["line 4: 'bob' cannot log in: the hash is not one of bcrypt"]
    assert accounts.costs == [COST, COST]


def test_an_account_without_a_hash_is_one_that_is_switched_off() -> None:
    accounts = passwords.parse(b"alice:x\nbob:\n")
    assert accounts.hashes["bob"] == ""
    assert accounts.warnings[1] == "line 2: 'bob' cannot log in: there is no hash"


def test_a_name_that_is_not_utf_8_is_read_as_latin_1() -> None:
    hashed = passwords.make(b"a", COST)
    accounts = passwords.parse(f"# \xe4\nm\xfcller:{hashed}\n".encode("latin-1"))
    assert accounts.hashes == {"m\xfcller": hashed}
    assert accounts.warnings == ["line 2: 'm\xfcller' is not UTF-8 text, and was read as Latin-1"]


def test_of_two_lines_for_a_user_the_last_one_counts() -> None:
    assert passwords.parse(b"alice:one\nalice:two").hashes == {"alice": "two"}


def test_an_empty_file_holds_nobody() -> None:
    accounts = passwords.parse(b"")
    assert (accounts.hashes, accounts.costs) == ({}, [passwords.COST])


@pytest.mark.parametrize("line", [b"alice", b":secret", b"\xff\xfe", b"<html>"])
def test_a_line_that_is_no_account_is_named_by_its_number_alone(line: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        passwords.parse(b"alice:x\n\n" + line + b"\nbob:y\n")
    (problem,) = caught.value.problems
    assert problem.startswith("line 3: ")
    assert line.decode("latin-1").strip(":") not in problem, "it may be a password"


@pytest.mark.parametrize(
    "user", ["", "a:b", "#a", " a", "a ", "a\nb", "a\0", "x" * 256, "\x1b[31m", "anonymous", "authenticated"]
)
def test_a_name_that_the_file_cannot_carry_is_refused(user: str) -> None:
    with pytest.raises(PasswordRefused):
        passwords.check_name(user)


@pytest.mark.parametrize("user", ["alice", "müller", "a b", "team/ci@example.com", "a#b"])
def test_a_name_that_it_can_carry_is_taken(user: str) -> None:
    assert passwords.check_name(user) == user
