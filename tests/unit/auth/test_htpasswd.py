"""Basic authentication (cluster/auth/htpasswd.py): who is believed, and how often a password is checked."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.auth import passwords, policy
from cluster.auth.access import ALL, CATALOG, PULL, PUSH, REGISTRY, REPOSITORY, Access, Anyone, Question
from cluster.auth.attempts import LIMIT
from cluster.auth.files import Watched
from cluster.auth.htpasswd import Htpasswd, HtpasswdAuthenticator
from cluster.errors import ConfigError, Denied, TooManyRequests, Unauthorized, Unavailable
from cluster.state.shared import SharedState

pytestmark = pytest.mark.anyio

COST = passwords.LOWEST_COST
HERE = "192.0.2.1"
PULL_APP = Access(REPOSITORY, "team/app", PULL)
RULES = b"""
rules:
  - {users: [alice], repositories: [team/**], actions: [pull, push]}
  - {users: [alice], catalog: true}
  - {groups: [anonymous], repositories: [public/*], actions: [pull]}
"""


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Counting(Htpasswd):
    """Counts the passwords that are checked; with `hold` they wait until it is set."""

    checks = 0
    hold: asyncio.Event | None = None

    async def _check(self, *arguments: object) -> bool:
        self.checks += 1
        if self.hold is not None:
            await self.hold.wait()
        return await super()._check(*arguments)  # type: ignore[arg-type]


class File:
    """An htpasswd file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **users: str) -> None:
        lines = [f"{user}:{passwords.make(password.encode(), COST)}\n" for user, password in users.items()]
        other = self.path.with_name("other")
        other.write_text("".join(lines))
        os.utime(other, (time.time() - 5,) * 2)
        other.replace(self.path)


@pytest.fixture
def file(tmp_path: Path) -> File:
    file = File(tmp_path / "htpasswd")
    file.write(alice="wonder:land", bob="büilder")
    return file


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def accounts(file: File, clock: Clock) -> Counting:
    return Counting(str(file.path), SharedState(None), now=clock)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def question(authorization: str | None, *wanted: Access) -> Question:
    return Question(authorization, wanted, lambda: HERE, lambda: "http://registry.example")


# Passwords


async def test_the_right_password_is_believed_and_no_other(accounts: Counting) -> None:
    assert await accounts.verify("alice", b"wonder:land", HERE)
    assert await accounts.verify("bob", "büilder".encode(), HERE)
    for user, password in (("alice", b"wonder"), ("alice", "büilder".encode()), ("eve", b"wonder:land")):
        assert not await accounts.verify(user, password, HERE)


async def test_a_credential_is_checked_once_until_its_time_is_over(accounts: Counting, clock: Clock) -> None:
    for _ in range(20):
        assert await accounts.verify("alice", b"wonder:land", HERE)
    assert accounts.checks == 1
    clock.now += 300
    assert await accounts.verify("alice", b"wonder:land", HERE)
    assert accounts.checks == 2


async def test_callers_with_the_same_credential_share_one_check(accounts: Counting) -> None:
    accounts.hold = asyncio.Event()
    callers = [asyncio.create_task(accounts.verify("alice", b"wonder:land", HERE)) for _ in range(20)]
    await asyncio.sleep(0)
    accounts.hold.set()
    assert await asyncio.gather(*callers) == [True] * 20
    assert accounts.checks == 1


async def test_a_caller_who_leaves_takes_the_answer_from_nobody(accounts: Counting) -> None:
    accounts.hold = asyncio.Event()
    first = asyncio.create_task(accounts.verify("alice", b"wonder:land", HERE))
    second = asyncio.create_task(accounts.verify("alice", b"wonder:land", HERE))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    accounts.hold.set()
    assert await second
    assert accounts.checks == 1


async def test_nothing_of_a_credential_is_kept_that_could_be_read(accounts: Counting) -> None:
    await accounts.verify("alice", b"wonder:land", HERE)
    kept = repr(vars(accounts)) + repr(accounts._proved)
    assert "wonder" not in kept
    another = Counting(accounts._file._path, SharedState(None))
    await another.verify("alice", b"wonder:land", HERE)
    assert list(another._proved) != list(accounts._proved), "the digests have a key of their process"


async def test_so_many_wrong_passwords_from_one_place_and_no_more(accounts: Counting) -> None:
    for number in range(LIMIT):
        assert not await accounts.verify("alice", b"%d" % number, HERE)
    with pytest.raises(TooManyRequests):
        await accounts.verify("alice", b"wonder:land", HERE)
    assert accounts.checks == LIMIT
    assert await accounts.verify("alice", b"wonder:land", "192.0.2.2")
    assert await accounts.verify("alice", b"wonder:land", HERE), "it was proved meanwhile"


async def test_wrong_passwords_that_come_at_once_are_not_more(accounts: Counting) -> None:
    guesses = [accounts.verify("alice", b"%d" % number, HERE) for number in range(5 * LIMIT)]
    outcomes = await asyncio.gather(*guesses, return_exceptions=True)
    assert accounts.checks == LIMIT
    assert sum(isinstance(outcome, TooManyRequests) for outcome in outcomes) == 4 * LIMIT


async def test_when_too_many_wait_the_next_one_is_sent_away(accounts: Counting) -> None:
    accounts.hold = asyncio.Event()
    waiting = [asyncio.create_task(accounts.verify(f"user {n}", b"x", f"192.0.2.{n}")) for n in range(64)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable) as caught:
        await accounts.verify("alice", b"wonder:land", HERE)
    assert caught.value.headers["Retry-After"]
    accounts.hold.set()
    assert await asyncio.gather(*waiting) == [False] * 64
    assert await accounts.verify("alice", b"wonder:land", HERE)


async def test_whoever_guesses_leaves_room_for_those_who_log_in_elsewhere(accounts: Counting) -> None:
    accounts.hold = asyncio.Event()
    places = [f"2001:db8::{n}" for n in range(32)]  # of one network, as one who guesses has them
    waiting = [asyncio.create_task(accounts.verify(f"user {n}", b"x", place)) for n, place in enumerate(places)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await accounts.verify("one more", b"x", "2001:db8::ffff")
    login = asyncio.create_task(accounts.verify("alice", b"wonder:land", HERE))
    await asyncio.sleep(0)
    accounts.hold.set()
    assert await login
    assert await asyncio.gather(*waiting) == [False] * 32
    assert not await accounts.verify("one more", b"x", "2001:db8::ffff")


async def test_a_user_who_is_not_there_is_checked_against_the_costs_that_the_file_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "htpasswd"
    path.write_text(f"a:{passwords.placeholder(5)}\nb:{passwords.placeholder(6)}\nc:$apr1$x$y\n")
    accounts = Htpasswd(str(path), SharedState(None))
    used = {accounts._placeholder(f"user {number}") for number in range(100)}
    assert used == {passwords.placeholder(5), passwords.placeholder(6)}
    assert accounts._placeholder("user 1") == accounts._placeholder("user 1")
    assert caplog.messages == ["htpasswd, line 3: 'c' cannot log in: the hash is not one of bcrypt"]


# The file changes


async def test_a_new_user_a_new_password_and_a_removed_user_count_at_once(accounts: Counting, file: File) -> None:
    assert await accounts.verify("alice", b"wonder:land", HERE)
    assert await accounts.verify("bob", "büilder".encode(), HERE)
    file.write(alice="looking-glass", carol="x")
    await accounts.refresh()
    assert not await accounts.verify("alice", b"wonder:land", HERE)
    assert not await accounts.verify("bob", "büilder".encode(), HERE)
    assert await accounts.verify("alice", b"looking-glass", HERE)
    assert await accounts.verify("carol", b"x", HERE)
    assert accounts.hash_of("bob") is None


async def test_what_was_proved_against_an_old_hash_is_forgotten_and_the_rest_need_not_be_proved_again(
    accounts: Counting, file: File
) -> None:
    await accounts.verify("alice", b"wonder:land", HERE)
    await accounts.verify("bob", "büilder".encode(), HERE)
    lines = file.path.read_text().splitlines(keepends=True)
    file.write(alice="looking-glass")
    file.path.write_text(file.path.read_text() + lines[1])
    os.utime(file.path, (time.time() - 5,) * 2)
    await accounts.refresh()
    assert len(accounts._proved) == 1
    assert await accounts.verify("bob", "büilder".encode(), HERE)
    assert accounts.checks == 2


async def test_a_password_that_was_being_checked_while_it_was_changed_is_not_remembered(
    accounts: Counting, file: File
) -> None:
    accounts.hold = asyncio.Event()
    checking = asyncio.create_task(accounts.verify("alice", b"wonder:land", HERE))
    await asyncio.sleep(0)
    file.write(alice="looking-glass")
    await accounts.refresh()
    accounts.hold.set()
    await checking
    assert not await accounts.verify("alice", b"wonder:land", HERE)


async def test_a_malformed_file_stops_the_start_and_later_changes_nothing(
    accounts: Counting, file: File, caplog: pytest.LogCaptureFixture
) -> None:
    file.path.write_text("alice:x\nnonsense\n")
    os.utime(file.path, (time.time() - 5,) * 2)
    await accounts.refresh()
    assert await accounts.verify("alice", b"wonder:land", HERE)
    assert "line 2: wanted user:hash" in caplog.text
    with pytest.raises(ConfigError, match="line 2: wanted user:hash"):
        Htpasswd(str(file.path), SharedState(None))


# Requests


@pytest.fixture
def authenticator(accounts: Counting) -> HtpasswdAuthenticator:
    return HtpasswdAuthenticator('the "realm"', accounts)


@pytest.fixture
def ruled(accounts: Counting, tmp_path: Path) -> HtpasswdAuthenticator:
    path = tmp_path / "policy.yml"
    path.write_bytes(RULES)
    os.utime(path, (time.time() - 5,) * 2)
    return HtpasswdAuthenticator("realm", accounts, Watched(str(path), policy.parse))


async def test_whoever_is_believed_may_do_everything_without_a_policy(authenticator: HtpasswdAuthenticator) -> None:
    header = basic("alice", "wonder:land")
    for spelling in (header, header.replace("Basic", "bAsIc"), header.replace("Basic ", "Basic  ")):
        assert await authenticator.authenticate(question(spelling, PULL_APP)) == Anyone("alice")


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Basic",
        "Basic ",
        "Basic !!!",
        "Basic YWxpY2U",  # no padding
        "Basic " + base64.b64encode(b"alice").decode(),
        basic("", ""),
        basic("", "wonder:land"),
        "Basic " + base64.b64encode(b"\xff\xfe:wonder:land").decode(),
        "Basic \xe4\xf6\xfc",
        "Basic " + "A" * 100_000,
        basic("alice", "wonder:land\0"),
        basic("alice", "wonder:land" + "x" * 72),
        basic("alice\0", "wonder:land"),
        basic("alice", ""),
        basic("ALICE", "wonder:land"),
        basic("alice", "wonder:land").replace("Basic", "Bearer"),
        basic("alice", "wonder:land").removeprefix("Basic "),
    ],
)
async def test_nobody_else_is_and_is_told_how_to_come_back(
    authenticator: HtpasswdAuthenticator, authorization: str | None
) -> None:
    with pytest.raises(Unauthorized) as caught:
        await authenticator.authenticate(question(authorization, PULL_APP))
    assert caught.value.headers == {"WWW-Authenticate": 'Basic realm="the \\"realm\\""'}
    assert caught.value.detail == [{"Type": "repository", "Class": "", "Name": "team/app", "Action": "pull"}]


async def test_a_name_in_latin_1_is_the_same_in_the_file_and_in_a_request(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    path.write_bytes(f"m\xfcller:{passwords.make(b'a', COST)}\nswitched-off:\n".encode("latin-1"))
    authenticator = HtpasswdAuthenticator("realm", Htpasswd(str(path), SharedState(None)))
    for charset in ("latin-1", "utf-8"):
        header = "Basic " + base64.b64encode("m\xfcller:a".encode(charset)).decode()
        assert (await authenticator.authenticate(question(header, PULL_APP))).name == "m\xfcller"
    for password in ("", "a"):
        with pytest.raises(Unauthorized):
            await authenticator.authenticate(question(basic("switched-off", password), PULL_APP))


async def test_no_credential_gets_into_a_refusal_or_the_log(
    authenticator: HtpasswdAuthenticator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for password in ("tell nobody", "tell nobody" * 10):
        with pytest.raises(Unauthorized) as caught:
            await authenticator.authenticate(question(basic("secret-user", password)))
        assert caught.value.detail is None
        assert "nobody" not in f"{caught.value!r} {caught.value} {caplog.text}"
        assert "secret-user" not in f"{caught.value} {caplog.text}"


async def test_a_policy_denies_what_it_does_not_grant(ruled: HtpasswdAuthenticator) -> None:
    alice, bob = basic("alice", "wonder:land"), basic("bob", "büilder")
    caller = await ruled.authenticate(question(alice, PULL_APP, Access(REPOSITORY, "team/app", PUSH)))
    assert caller.name == "alice"
    assert not caller.may(Access(REPOSITORY, "other", PULL))
    assert (await ruled.authenticate(question(bob))).name == "bob"
    await ruled.authenticate(question(alice, Access(REGISTRY, CATALOG, ALL)))
    for header, access in (
        (bob, PULL_APP),
        (bob, Access(REGISTRY, CATALOG, ALL)),
        (alice, Access(REPOSITORY, "team/app", "delete")),
    ):
        with pytest.raises(Denied) as caught:
            await ruled.authenticate(question(header, access))
        assert caught.value.detail[0]["Action"] == access.action


async def test_without_an_account_only_what_is_granted_to_everybody(ruled: HtpasswdAuthenticator) -> None:
    for nobody in (None, basic("", "")):  # the second is how podman and skopeo put it
        caller = await ruled.authenticate(question(nobody, Access(REPOSITORY, "public/app", PULL)))
        assert caller.name == ""
        for wanted in (
            (),
            (PULL_APP,),
            (Access(REPOSITORY, "public/app", PUSH),),
            (Access(REGISTRY, CATALOG, ALL),),
        ):
            with pytest.raises(Unauthorized):
                await ruled.authenticate(question(nobody, *wanted))
    with pytest.raises(Unauthorized):  # a wrong password is not taken for none
        await ruled.authenticate(question(basic("alice", "x"), Access(REPOSITORY, "public/app", PULL)))


async def test_a_policy_is_read_again_when_it_changes(ruled: HtpasswdAuthenticator, tmp_path: Path) -> None:
    path = tmp_path / "policy.yml"
    path.write_bytes(b"rules: [{users: [bob], repositories: [team/**], actions: [pull]}]")
    os.utime(path, (time.time() - 5,) * 2)
    await ruled.refresh()
    assert (await ruled.authenticate(question(basic("bob", "büilder"), PULL_APP))).name == "bob"
    with pytest.raises(Denied):
        await ruled.authenticate(question(basic("alice", "wonder:land"), PULL_APP))


async def test_the_source_of_a_mount_is_not_asked_for(
    ruled: HtpasswdAuthenticator, accounts: Callable[..., object]
) -> None:
    mounting = Question(
        basic("alice", "wonder:land"),
        [PULL_APP],
        lambda: HERE,
        lambda: "http://registry.example",
        mounts=Access(REPOSITORY, "other", PULL),
    )
    assert (await ruled.authenticate(mounting)).name == "alice"
