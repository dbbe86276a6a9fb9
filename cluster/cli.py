"""The command line: one verb for each thing that an operator does. Parses, calls, prints; decides nothing."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster import __version__, config
from cluster.errors import ConfigError

Subparsers = argparse._SubParsersAction  # argparse has no public name for it


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code. 1: the configuration or storage cannot be used. 2: wrong arguments."""
    arguments = _parser().parse_args(argv)
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
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = verbs.add_parser("serve", help="run a node")
    serve.add_argument(
        "config", nargs="?", help="configuration file; default: where Distribution's images keep theirs"
    )
    serve.set_defaults(run=_serve)
    configure = verbs.add_parser("config", help="look at a configuration").add_subparsers(
        required=True, metavar="VERB"
    )
    check = configure.add_parser("check", help="say all that is wrong with a file; exit code 1 if anything is")
    check.add_argument("config", nargs="?")
    check.set_defaults(run=_check)
    show = configure.add_parser(
        "show", help="print what is in force, defaults and environment included, secrets hidden"
    )
    show.add_argument("config", nargs="?")
    show.set_defaults(run=_show)
    haproxy = verbs.add_parser("haproxy", help="print a configuration of HAProxy for the nodes")
    haproxy.add_argument("config", nargs="?")
    haproxy.set_defaults(run=_haproxy)
    doctor = verbs.add_parser("doctor", help="do the nodes agree on keys, storage, clocks and versions?")
    doctor.add_argument("config", nargs="?")
    doctor.set_defaults(run=_doctor)
    _add_local(verbs)
    return parser


def _add_local(verbs: Subparsers[argparse.ArgumentParser]) -> None:
    """The commands for a whole cluster on this machine."""
    up = verbs.add_parser("up", help="run nodes, Redis and HAProxy on this machine, until Ctrl-C")
    up.add_argument("--nodes", type=int, default=3, help="default: 3")
    up.add_argument("--port", type=int, default=5000, help="where clients go; default: 5000")
    up.add_argument("--config", help="a configuration that every node gets, with its own address and name put in")
    up.set_defaults(run=_up)
    status = verbs.add_parser("status", help="what a cluster of `up` is made of, and how it does")
    status.set_defaults(run=_status)
    drain = verbs.add_parser("drain", help="send no new client to a node of `up`")
    drain.add_argument("node")
    drain.add_argument("--undo", action="store_true", help="send clients to it again")
    drain.set_defaults(run=_drain)
    restart = verbs.add_parser("restart", help="restart the nodes of `up`, one after the other")
    restart.add_argument("--rolling", action="store_true", required=True)
    restart.set_defaults(run=_restart)
    for verb in (up, status, drain, restart):
        verb.add_argument("--data", default="data", help="the cluster's directory; default: ./data")


def _find(arguments: argparse.Namespace) -> Path:
    return config.find(arguments.config, os.environ)


def _serve(arguments: argparse.Namespace) -> int:
    from cluster.serve import serve  # noqa: PLC0415 - the other commands start faster without the server

    loaded = config.load(_find(arguments), os.environ)
    for warning in loaded.warnings:
        print(f"registry-cluster: warning: {warning}", file=sys.stderr)
    serve(loaded.config)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    path = _find(arguments)
    problems = config.check(path, os.environ)
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{path}: no problems")
    return 1 if problems else 0


def _show(arguments: argparse.Namespace) -> int:
    print(config.show(config.load(_find(arguments), os.environ).config), end="")
    return 0


def _haproxy(arguments: argparse.Namespace) -> int:
    from cluster import haproxy  # noqa: PLC0415 - the other commands start faster without the template engine

    settings = config.load(_find(arguments), os.environ).config.cluster
    print(haproxy.render(settings, haproxy.names_of(settings)), end="")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from cluster import doctor, serve  # noqa: PLC0415 - the other commands start faster without the server

    settings = config.load(_find(arguments), os.environ).config
    standing = serve.standing(settings, serve.key_ring(settings))
    findings = doctor.compare(*standing, settings.cluster.nodes, starting=False)
    for finding in findings:
        state = f"not reached: {finding.unreached}" if finding.node is None else "agrees"
        print(f"{finding.name}: {'disagrees' if finding.refusals else state}")
        for text in (*finding.refusals, *finding.warnings):
            print(f"  {text}")
    if not findings:
        print("no other node answers as one, or cluster.nodes names none")
    return 1 if any(finding.refusals for finding in findings) else 0


def _up(arguments: argparse.Namespace) -> int:
    import asyncio  # noqa: PLC0415 - only here

    from cluster import local  # noqa: PLC0415 - only here

    base = local.read_base(arguments.config) if arguments.config else None
    cluster = local.LocalCluster(nodes=arguments.nodes, port=arguments.port, directory=arguments.data, base=base)
    asyncio.run(cluster.run())
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from cluster import operate  # noqa: PLC0415 - only here

    print("\n".join(operate.status(arguments.data)))
    return 0


def _drain(arguments: argparse.Namespace) -> int:
    from cluster import operate  # noqa: PLC0415 - only here

    (operate.undrain if arguments.undo else operate.drain)(arguments.data, arguments.node)
    return 0


def _restart(arguments: argparse.Namespace) -> int:
    from cluster import operate  # noqa: PLC0415 - only here

    operate.restart_rolling(arguments.data)
    return 0
