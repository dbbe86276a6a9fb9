"""Basic authentication by an htpasswd file: who is believed, and what that costs.

A password is checked once, in a thread, and then remembered as a keyed digest for some minutes: what is remembered
holds for the very hash that it was checked against, so a changed or removed line ends it. What a line of the file
means is in passwords.py, how often somebody may be wrong in attempts.py, who may what in the policy.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cluster.auth import passwords
from cluster.auth.access import NOBODY, Access, Anyone, Caller, Policy, Question, read_basic, to_detail
from cluster.auth.attempts import Attempts, place_of
from cluster.auth.files import Watched
from cluster.auth.passwords import Accounts
from cluster.auth.policy import Rules
from cluster.errors import Denied, Unauthorized, Unavailable
from cluster.state.store import Failures

_THREADS = 2  # of a worker: a check holds a core, and no lock of Python's
_NICENESS = 5  # of these threads: whoever guesses passwords must not slow down those who are served
_WAITING = 64  # checks at a time; some seconds' work
_SHARE = 32  # of them for one place, so that whoever guesses there leaves room for those who log in elsewhere
_PATIENCE = 10.0  # seconds a request waits for its check
_PROVED_FOR = 300.0  # seconds
_PROVED = 10_000  # credentials that are remembered

_log = logging.getLogger(__name__)


class Htpasswd:
    """The accounts of a file, and who has proved lately to be one of them."""

    def __init__(self, path: str, failures: Failures, *, now: Callable[[], float] = time.monotonic) -> None:
        """Reads the file. ConfigError."""
        self._file = Watched(path, passwords.parse)
        self._attempts = Attempts(failures, now)
        self._now = now
        self._key = secrets.token_bytes(32)
        self._proved: OrderedDict[bytes, tuple[str, float]] = OrderedDict()  # the hash, and until when
        self._checking: dict[tuple[bytes, str | None], asyncio.Task[bool]] = {}
        self._busy: Counter[str] = Counter()  # how many of them each place has
        self._threads = ThreadPoolExecutor(_THREADS, "passwords", initializer=_step_back)
        self._warn(self._file.content)

    def hash_of(self, user: str) -> str | None:
        """What the file has for a user now; another one once the password was changed."""
        return self._file.content.hashes.get(user)

    async def refresh(self) -> None:
        """Take in a file that has changed."""
        if not await self._file.refresh():
            return
        current = set(self._file.content.hashes.values())
        for digest in [digest for digest, (hashed, _) in self._proved.items() if hashed not in current]:
            del self._proved[digest]
        self._warn(self._file.content)

    def has_proved(self, user: str, password: bytes) -> bool:
        """Whether this was found to be the user's password lately. Takes microseconds."""
        return self._is_proved(self._digest(user, password), user)

    async def verify(self, user: str, password: bytes, source: str) -> bool:
        """Whether this is the user's password. Takes the same time for users that there are and are not.

        TooManyRequests after too many wrong ones from this source, Unavailable when too many wait to be checked.
        """
        digest, hashed = self._digest(user, password), self.hash_of(user)
        if self._is_proved(digest, user):
            return True
        await self._attempts.admit(user, source)
        # Callers with the same credential share one check, which goes on when one of them leaves.
        check = self._checking.get((digest, hashed)) or self._begin(user, password, source, digest, hashed)
        await asyncio.wait({check}, timeout=_PATIENCE)
        if not check.done():
            raise Unavailable("passwords take too long to check now", headers={"Retry-After": "5"})
        return check.result()

    def _digest(self, user: str, password: bytes) -> bytes:
        return hashlib.blake2b(b"%d:%b%b" % (len(user), user.encode(), password), key=self._key).digest()

    def _is_proved(self, digest: bytes, user: str) -> bool:
        proof = self._proved.get(digest)
        return proof is not None and proof[0] == self.hash_of(user) and self._now() < proof[1]

    def _begin(
        self, user: str, password: bytes, source: str, digest: bytes, hashed: str | None
    ) -> asyncio.Task[bool]:
        place = place_of(source)
        if len(self._checking) >= _WAITING or self._busy[place] >= _SHARE:
            raise Unavailable("too many passwords are being checked", headers={"Retry-After": "2"})
        check = asyncio.create_task(self._check(user, password, source, digest, hashed))
        self._checking[digest, hashed] = check
        self._attempts.begin(user, source)
        self._busy[place] += 1

        def end(_: object) -> None:
            del self._checking[digest, hashed]
            self._attempts.end(user, source)
            self._busy -= Counter((place,))  # and forgets a place that has none

        check.add_done_callback(end)
        return check

    async def _check(self, user: str, password: bytes, source: str, digest: bytes, hashed: str | None) -> bool:
        loop = asyncio.get_running_loop()
        against = hashed if hashed is not None and passwords.is_usable(hashed) else self._placeholder(user)
        if not await loop.run_in_executor(self._threads, passwords.matches, password, against):
            await self._attempts.failed(user, source)
            return False
        self._proved[digest] = (against, self._now() + _PROVED_FOR)
        self._proved.move_to_end(digest)
        if len(self._proved) > _PROVED:
            self._proved.popitem(last=False)
        return True

    def _placeholder(self, user: str) -> str:
        """What somebody without a usable hash is checked against; the costs are spread as in the file."""
        costs = self._file.content.costs
        number = int.from_bytes(hashlib.blake2b(user.encode(), key=self._key, digest_size=8).digest(), "big")
        return passwords.placeholder(costs[number % len(costs)])

    @staticmethod
    def _warn(accounts: Accounts) -> None:
        for warning in accounts.warnings:
            _log.warning("htpasswd, %s", warning)


class HtpasswdAuthenticator:
    """Asks for a user and a password; the policy, where there is one, says what the user may do."""

    def __init__(self, realm: str, accounts: Htpasswd, policy: Watched[Rules] | None = None) -> None:
        quoted = realm.replace("\\", "\\\\").replace('"', '\\"')
        self._challenge = {"WWW-Authenticate": f'Basic realm="{quoted}"'}
        self._accounts = accounts
        self._policy = policy

    async def authenticate(self, question: Question) -> Caller:
        """See the port. The source of a mount is not asked for: no other credential would help."""
        caller = await self._caller(question)
        denied = [access for access in question.wanted if not caller.may(access)]
        if denied:
            raise Denied(to_detail(denied)) if caller.name else self._unauthorized(question)
        return caller

    async def refresh(self) -> None:
        """See the port."""
        await self._accounts.refresh()
        if self._policy is not None:
            await self._policy.refresh()

    async def _caller(self, question: Question) -> Caller:
        credential = read_basic(question.authorization)
        if credential == NOBODY:
            # `/v2/` itself is always refused: by its challenge clients learn that there is somebody to log in to.
            if self._policy is None or not question.wanted:
                raise self._unauthorized(question)
            return Member("", self._policy.content)
        if credential is None:
            raise self._unauthorized(question)
        known = self._accounts.has_proved(*credential)
        if not known and not await self._accounts.verify(*credential, question.source()):
            raise self._unauthorized(question)
        return Anyone(credential[0]) if self._policy is None else Member(credential[0], self._policy.content)

    def _unauthorized(self, question: Question) -> Unauthorized:
        return Unauthorized(to_detail(question.wanted), headers=self._challenge)


class Member:
    """A caller whom a policy restricts; without a name, one that has no account."""

    __slots__ = ("_policy", "name")

    def __init__(self, name: str, policy: Policy) -> None:
        self.name = name
        self._policy = policy

    def may(self, access: Access) -> bool:
        return self._policy.permits(self.name, access)


def _step_back() -> None:
    """Let the threads of a pool come after the others of this machine."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
    except OSError:
        pass
