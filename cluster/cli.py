"""The command line: one verb for each thing that an operator does. Parses, calls, prints; decides nothing."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster import __version__, config
from cluster.errors import ConfigError


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
    return parser


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
