"""The command line: one verb for each thing that an operator does, its arguments, and the help that it gives.

Owns the words alone; what they do is in verbs.py. Nothing is imported here that a help text does not need.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from cluster import __version__, config, verbs
from cluster.errors import ConfigError

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # argparse has no public name for it
Run = Callable[[argparse.Namespace], int]

_PLACES = ", else ".join(["$REGISTRY_CONFIGURATION_PATH", *map(str, config.PLACES)])
_MOST_NODES = 100
_LAST_PORT = 65535


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code.

    1: the configuration or storage cannot be used. 2: wrong arguments. Ctrl-C is the caller's, __main__.py.
    """
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        print(end="", flush=True)  # what is still in the buffer may find nobody who reads it
    except BrokenPipeError:
        # Whoever read the output (`| head -1`) has left. Python writes the rest of it at its end: to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _run(words: Sequence[str]) -> int:
    if words[:1] == ["htpasswd"]:  # its flags are Apache's
        from cluster import users  # noqa: PLC0415 - only here

        return users.run_htpasswd(words[1:])
    if words[:1] == ["drill"]:  # its arguments come from the table of faults
        from cluster.drill import command  # noqa: PLC0415 - only here

        return command.main(words[1:])
    parser = _parser()
    if not words:
        parser.print_help(sys.stderr)
        return 2
    arguments = parser.parse_args(words)
    try:
        code: int = arguments.run(arguments)
    except ConfigError as error:
        for problem in error.problems:
            print(f"registry-cluster: {problem}", file=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="registry-cluster", description="An OCI and Docker registry served by several identical nodes."
    )
    parser.add_argument("--version", action="version", version=f"registry-cluster {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_config(_add(commands, "serve", verbs.run_serve, "run a node"))
    _add_configuration(commands)
    _add_config(_add(commands, "haproxy", verbs.run_haproxy, "print a configuration of HAProxy for the nodes"))
    doctor = _add(
        commands,
        "doctor",
        verbs.run_doctor,
        "do the nodes agree on keys, storage, Redis, clocks and versions?",
        "Asks the nodes that the configuration of one of them knows, and changes nothing. That of a node of `up` "
        "is data/run/node-1.yml. Exit code 1 if a node disagrees.",
    )
    _add_config(doctor)
    _add_certs(commands)
    _add_secret(commands)
    _add_user(commands)
    _add_tokenkey(commands)
    _add_policy(commands)
    _add_local(commands)
    commands.add_parser("drill", help="break a cluster under load, and report whether anything was lost")
    return parser


# -- How verbs are added


def _add(commands: Verbs, name: str, run: Run, text: str, more: str = "") -> argparse.ArgumentParser:
    """A verb; its own help says what the list of verbs says, and more."""
    parser = commands.add_parser(name, help=text, description=_sentence(text, more))
    parser.set_defaults(run=run)
    return parser


def _add_group(commands: Verbs, name: str, text: str, metavar: str = "VERB") -> Verbs:
    """A verb that has verbs of its own."""
    parser = commands.add_parser(name, help=text, description=_sentence(text))
    return parser.add_subparsers(required=True, metavar=metavar)


def _add_steps(commands: Verbs, run: Run, steps: Mapping[str, str]) -> dict[str, argparse.ArgumentParser]:
    """Verbs that one function does, which is told by `step` which of them it is."""
    parsers = {step: _add(commands, step, run, text) for step, text in steps.items()}
    for step, parser in parsers.items():
        parser.set_defaults(step=step)
    return parsers


def _add_config(parser: argparse.ArgumentParser, *, option: bool = False) -> None:
    """The configuration, as the only argument of a verb or as an option of it."""
    if option:
        parser.add_argument("--config", metavar="FILE", help=f"configuration; default: {_PLACES}")
    else:
        parser.add_argument("config", nargs="?", metavar="CONFIG", help=f"configuration file; default: {_PLACES}")


def _sentence(text: str, more: str = "") -> str:
    end = "" if text.endswith("?") else "."
    return f"{text[0].upper()}{text[1:]}{end} {more}".strip()


def _place(text: str) -> str:
    if not text:  # a variable of a script that is not set: not the directory in which it happens to run
        raise argparse.ArgumentTypeError("found nothing, wanted a path")
    return text


def _nodes(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) <= _MOST_NODES):
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a number of nodes from 1 to {_MOST_NODES}")
    return int(text)


def _port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) <= _LAST_PORT):
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a port from 1 to {_LAST_PORT}")
    return int(text)


# -- The verbs


def _add_configuration(commands: Verbs) -> None:
    configure = _add_group(commands, "config", "look at a configuration")
    check = "say all that is wrong with a file; exit code 1 if anything is"
    more = "Of files that it names and that cannot be read here it only warns. - is standard input."
    _add_config(_add(configure, "check", verbs.run_check, check, more))
    show = "print what is in force, defaults and environment included, secrets hidden"
    _add_config(_add(configure, "show", verbs.run_show, show))


def _add_certs(commands: Verbs) -> None:
    """Certificates of a private authority."""
    text = "make a private authority and a certificate, or renew the certificate"
    certs = _add(commands, "certs", verbs.run_certs, text)
    certs.add_argument("verb", nargs="?", choices=["renew"], help="a new certificate from the same authority")
    certs.add_argument("directory", help="where the files are")
    certs.add_argument("--name", action="append", default=[], help="a host name of the registry; may be repeated")
    certs.add_argument("--ip", action="append", default=[], help="an address of the registry; may be repeated")
    certs.add_argument(
        "--port", type=_port, default=443, help="that clients use, for what is printed; default: 443"
    )
    certs.add_argument("--force", action="store_true", help="replace an authority that is there")


def _add_secret(commands: Verbs) -> None:
    """The steps in the life of the secret that the nodes share."""
    secret = _add_group(commands, "secret", "make and rotate the file of cluster.secretfile", "STEP")
    steps = {
        "init": "draw the secret, unless the file is there",
        "add": "rotate, 1 of 3: draw the next one; then restart the nodes",
        "promote": "rotate, 2 of 3: sign with the next one; then restart the nodes",
        "drop": "rotate, 3 of 3: forget the past one; then restart the nodes",
    }
    for step in _add_steps(secret, verbs.run_secret, steps).values():
        step.add_argument("file", metavar="FILE", help="the file of cluster.secretfile")


def _add_user(commands: Verbs) -> None:
    """Accounts."""
    steps = {
        "add": "add a user, or change a password; asks for it without showing it",
        "remove": "remove a user",
        "list": "print the users",
        "verify": "exit code 0 if a password is right",
    }
    user = _add_group(commands, "user", "who may log in: the file of auth.htpasswd")
    for step, parser in _add_steps(user, verbs.run_user, steps).items():
        parser.add_argument("--file", help="an htpasswd file; default: the one of the configuration")
        _add_config(parser, option=True)
        if step != "list":
            parser.add_argument("user", metavar="USER", help="the name of the account")
        if step in ("add", "verify"):
            parser.add_argument(
                "--password-stdin", action="store_true", help="read the password from standard input"
            )
        if step == "add":
            parser.add_argument("--cost", type=int, default=10, help="of bcrypt, from 4 to 17; default: 10")
    commands.add_parser("htpasswd", help="Apache's htpasswd, as far as guides use it: htpasswd -Bbn USER PASSWORD")


def _add_tokenkey(commands: Verbs) -> None:
    """Signing keys."""
    steps = {
        "list": "print the keys, and what each does",
        "rotate": "add a key, which signs once all nodes have seen it, and remove those that are no longer needed",
        "retire": "remove a key before its time",
        "jwks": "print the public keys, for other registries that are to believe our tokens",
    }
    tokenkey = _add_group(commands, "tokenkey", "the keys that sign tokens (cluster.tokenserver)")
    for step, parser in _add_steps(tokenkey, verbs.run_tokenkey, steps).items():
        _add_config(parser, option=True)
        if step == "retire":
            parser.add_argument("key", metavar="KEY", help="its id, as list prints it")
            parser.add_argument("--force", action="store_true", help="even if tokens signed by it are still valid")


def _add_policy(commands: Verbs) -> None:
    """Who may do what."""
    policy = _add_group(commands, "policy", "who may do what (cluster.policy)")
    text = "say all that is wrong with a file; exit code 1 if anything is"
    check = _add(policy, "check", verbs.run_policy_check, text)
    check.add_argument("file", metavar="FILE", help="the file of cluster.policy")
    text = "say what a user may do with a repository, and by which rules"
    explain = _add(policy, "explain", verbs.run_policy_explain, text)
    explain.add_argument("user", metavar="USER", help="an account, or anonymous: whoever has none")
    explain.add_argument("repository", metavar="REPOSITORY", help="its name, such as team/app")
    explain.add_argument("--file", help="a policy; default: the one of the configuration")
    _add_config(explain, option=True)


def _add_local(commands: Verbs) -> None:
    """The commands for a whole cluster on this machine."""
    text = "run a cluster on this machine, until Ctrl-C: nodes, Redis and HAProxy"
    up = _add(commands, "up", verbs.run_up, text, "Use a second terminal for everything else.")
    up.add_argument("--nodes", type=_nodes, default=3, help=f"from 1 to {_MOST_NODES}; default: 3")
    up.add_argument("--port", type=_port, default=5000, help="where clients go; default: 5000")
    up.add_argument(
        "--config",
        metavar="FILE",
        help="a configuration that every node gets, with its own address and name put in; default: none",
    )
    up.add_argument("--tls", action="store_true", help="with certificates of an authority of its own")
    up.add_argument(
        "--auth",
        nargs="?",
        const="htpasswd",
        default="",
        choices=["htpasswd", "token"],
        help="with an account: by password, or by tokens that the cluster issues; default: htpasswd",
    )
    up.add_argument("--places", help=argparse.SUPPRESS)  # where each part runs (JSON), as drills prepare it
    text = "show the processes of a cluster on this machine (of `up`) and their health; exit code 1: a node is down"
    status = _add(commands, "status", verbs.run_status, text)
    drain = _add(
        commands, "drain", verbs.run_drain, "send no new client to a node of a cluster on this machine (of `up`)"
    )
    drain.add_argument("nodes", nargs="+", metavar="NODE", help="its name; with --socket, its address too")
    drain.add_argument("--undo", action="store_true", help="send clients to it again")
    text = "restart the nodes of a cluster on this machine (of `up`)"
    restart = _add(commands, "restart", verbs.run_restart, text)
    restart.add_argument(
        "--rolling",
        action="store_true",
        required=True,
        help="one after the other, each drained first: the only mode",
    )
    for verb in (status, drain):
        verb.add_argument("--socket", help="ask the HAProxy with this stats socket, wherever its nodes run")
    for verb in (up, status, drain, restart):
        verb.add_argument(
            "--data", type=_place, metavar="DIR", default="data", help="the cluster's directory; default: ./data"
        )
