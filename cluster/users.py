"""`registry-cluster user` and `htpasswd`: accounts at the command line.

Owns where a password comes from (a prompt without echo, standard input) and the flags of Apache's htpasswd that
guides use. The file is written by auth/accounts.py, passwords are hashed by auth/passwords.py.
"""

from __future__ import annotations

import getopt
import getpass
import sys
from collections.abc import Sequence

from cluster.auth import accounts, passwords
from cluster.auth.passwords import PasswordRefused
from cluster.errors import ConfigError
from cluster.settings import Config

_LONGEST = 4096  # bytes of standard input
_USAGE = """\
usage: htpasswd [-cD] [-bi] [-B] [-C cost] FILE USER [PASSWORD]
       htpasswd -n [-bi] [-B] [-C cost] USER [PASSWORD]
       htpasswd -v [-bi] FILE USER [PASSWORD]
  -n  print the line        -b  the password is the last argument   -B  bcrypt; always
  -c  begin a new file      -i  read it from standard input         -C  cost of bcrypt, 4 to 17; default 10
  -D  remove the user       -v  check the password"""
_OTHER_HASHES = {"-m": "MD5", "-2": "SHA-256", "-5": "SHA-512", "-d": "crypt", "-s": "SHA-1", "-p": "plain text"}


def file_of(config: Config) -> str:
    """The file of accounts. ConfigError."""
    if config.auth.htpasswd is not None:
        return config.auth.htpasswd.path
    if config.cluster.tokenserver is not None:
        return config.cluster.tokenserver.htpasswd
    raise ConfigError(["the configuration has no auth.htpasswd or cluster.tokenserver: pass the file with --file"])


def add(path: str, user: str, *, cost: int, from_stdin: bool) -> str:
    """Add a user, or give one another password; what was done. ConfigError."""
    try:
        hashed = passwords.make(_new_password(passwords.check_name(user), from_stdin), cost)
    except PasswordRefused as refused:
        raise ConfigError([str(refused)]) from None
    return f"{user}: {'password changed' if accounts.put(path, user, hashed) else 'added'}"


def remove(path: str, user: str) -> str:
    """Remove a user; what was done. ConfigError."""
    if not accounts.remove(path, user):
        raise ConfigError([f"{path}: there is no user {user!r}"])
    return f"{user}: removed"


def describe(path: str) -> list[str]:
    """A line for each user. ConfigError."""
    found = accounts.read(path).hashes
    width = max(map(len, found), default=0)
    return [f"{user:{width}}  {_kind(hashed)}" for user, hashed in sorted(found.items())]


def verify(path: str, user: str, *, from_stdin: bool) -> bool:
    """Whether a password is right. ConfigError."""
    hashed = accounts.read(path).hashes.get(user)
    if hashed is None:
        raise ConfigError([f"{path}: there is no user {user!r}"])
    return passwords.matches(_password(from_stdin), hashed)


def run_htpasswd(arguments: Sequence[str]) -> int:
    """Do what Apache's program does with these arguments; its exit code. 2: wrong arguments, 3: wrong password."""
    try:
        options, rest = getopt.getopt(list(arguments), "bBcC:Dinvm25dsph", ["help"])
        flags = dict(options)
        if "-h" in flags or "--help" in flags:
            print(_USAGE)
            return 0
        for flag in flags.keys() & _OTHER_HASHES:
            raise getopt.GetoptError(f"{flag}: {_OTHER_HASHES[flag]} would match nothing here: bcrypt (-B) does")
        return _run(flags, rest)
    except getopt.GetoptError as error:
        print(f"htpasswd: {error}\n{_USAGE}", file=sys.stderr)
        return 2
    except (ConfigError, PasswordRefused) as error:
        print(f"htpasswd: {error}", file=sys.stderr)
        return 1


def _run(flags: dict[str, str], rest: list[str]) -> int:
    wanted = (0 if "-n" in flags else 1) + 1 + (1 if "-b" in flags and "-D" not in flags else 0)
    if len(rest) != wanted:
        raise getopt.GetoptError(f"found {len(rest)} arguments behind the flags, wanted {wanted}")
    path, user = ("", rest[0]) if "-n" in flags else (rest[0], rest[1])
    passwords.check_name(user)
    if "-D" in flags:
        print(remove(path, user), file=sys.stderr)
        return 0
    if "-v" in flags:
        given = rest[-1].encode() if "-b" in flags else _password("-i" in flags)
        right = passwords.matches(given, accounts.read(path).hashes.get(user))
        print(f"password for user {user} {'correct' if right else 'is wrong'}", file=sys.stderr)
        return 0 if right else 3
    cost = flags.get("-C", str(passwords.COST))
    if not cost.isdecimal():
        raise getopt.GetoptError(f"-C: found {cost!r}, wanted a number")
    given = rest[-1].encode() if "-b" in flags else _new_password(user, "-i" in flags)
    hashed = passwords.make(given, int(cost))
    if "-n" in flags:
        print(f"{user}:{hashed}\n")
        return 0
    if "-c" in flags:
        accounts.clear(path)
    changed = accounts.put(path, user, hashed)
    print(f"{'updating' if changed else 'adding'} password for user {user}", file=sys.stderr)
    return 0


def _new_password(user: str, from_stdin: bool) -> bytes:
    """A password, asked for twice by a prompt."""
    given = _password(from_stdin, f"New password for {user}: ")
    if not from_stdin and given != _password(False, "Once more: "):
        raise ConfigError(["the two passwords differ: nothing was changed"])
    return given


def _password(from_stdin: bool, prompt: str = "Password: ") -> bytes:
    """A password, without the end of its line."""
    if from_stdin:
        given = sys.stdin.buffer.read(_LONGEST)
        return given.removesuffix(b"\n").removesuffix(b"\r")
    if not sys.stdin.isatty():
        raise ConfigError(["no terminal to ask for the password at: give it on standard input (--password-stdin)"])
    return getpass.getpass(prompt).encode()


def _kind(hashed: str) -> str:
    if passwords.is_usable(hashed):
        return f"bcrypt, cost {int(hashed[4:6])}"
    return "cannot log in: the hash is not one of bcrypt"
