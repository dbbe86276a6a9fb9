"""`registry-cluster drill`: lists faults, runs them, says where the report is, and by its exit code what held.

Gives the machine's means (namespaces) to the run; the run itself is in run.py.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
from collections.abc import Sequence

from cluster.drill import report, swarm
from cluster.drill.cluster import Cluster
from cluster.drill.faults import FAULTS, Fault
from cluster.drill.meter import Kind
from cluster.drill.run import QUICK, Plan, choose, fits_target, run, thorough
from cluster.drill.surroundings import KINDS, UNSHARED, Apart, Setting, enter, unshare
from cluster.errors import ConfigError
from cluster.supervisor import say

HELD, BROKEN, MISSING, INTERRUPTED = 0, 1, 3, 130
"""Exit codes: every promise held; one was broken; not everything could be run here; somebody stopped it."""
_LOAD = {True: 10, False: 32}  # clients, in a quick run and in a thorough one


def main(words: Sequence[str]) -> int:
    """Run what these words say; the exit code."""
    arguments = _parser().parse_args(words)
    # As Ctrl-C: what was started is stopped, what was broken is healed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code: int = arguments.run(arguments, words)
    except ConfigError as error:
        for problem in error.problems:
            say(problem)
        return BROKEN
    except KeyboardInterrupt:
        say("stopped before the end: there is no report")
        return INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="registry-cluster drill",
        description="Break a cluster under load and report whether anything was lost.",
    )
    steps = parser.add_subparsers(required=True, metavar="VERB")
    listing = steps.add_parser(
        "list",
        help="print the faults, what they need, and what clients may feel",
        description="Print the faults, what they need, and what clients may feel.",
    )
    listing.set_defaults(run=_list)
    running = steps.add_parser(
        "run",
        help="break a cluster under load and report whether anything was lost",
        description="Break a cluster under load and report whether anything was lost. Exit code 1: a promise was "
        "broken; 3: some drills could not be run here.",
    )
    running.add_argument("names", nargs="+", metavar="NAME", help="faults, as list prints them, or: all")
    running.add_argument("--nodes", type=_positive, default=3, help="of the clusters that it starts; default: 3")
    running.add_argument("--load", type=_clients, help="clients; default: 32, with --quick 10")
    pace = running.add_mutually_exclusive_group()
    pace.add_argument(
        "--minutes", type=_positive_number, default=2.0, help="under load, for each fault; default: 2"
    )
    pace.add_argument("--quick", action="store_true", help="strike once and briefly: all faults in 5 minutes")
    running.add_argument(
        "--locustfile", metavar="FILE", help="load it by the users of this file, such as tests/load/locustfile.py"
    )
    running.add_argument("--report", default="reports/drill", help="a directory; default: reports/drill")
    running.add_argument("--target", metavar="DIR", help="do it to the cluster that `up` runs in this directory")
    running.add_argument(
        "--allow-missing",
        action="store_true",
        help="exit code 0 although this machine cannot do all that was asked",
    )
    running.add_argument(UNSHARED, action="store_true", help=argparse.SUPPRESS)
    running.set_defaults(run=_run)
    return parser


def _list(_: argparse.Namespace, __: Sequence[str]) -> int:
    for fault in FAULTS:
        print(f"{fault.name:<16} {fault.text}")
        print(f"{'':<16} clients: {fault.promise}{_refused(fault)}")
        print(f"{'':<16} needs: {_needs(fault)}")
    return 0


def _refused(fault: Fault) -> str:
    if not fault.refused:
        return ""
    return f"; while it lasts, refused may be: {', '.join(sorted(fault.refused))}"


def _needs(fault: Fault) -> str:
    kind = KINDS[fault.setting]
    words = [", ".join(kind.programs)]
    if fits_target(fault):
        words.append("can be done to any cluster of `up` (--target)")
    if fault.setting is Setting.APART:
        words.append("network and mount namespaces (root, or user namespaces), /dev/fuse")
    if missing := kind.missing():
        words.append(f"NOT HERE: {'; '.join(missing)}")
    return "; ".join(words)


def _run(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    faults = choose(arguments.names, arguments.target)
    if arguments.locustfile is not None:
        swarm.check(arguments.locustfile)
    apart = any(fault.setting is Setting.APART for fault in faults)
    if apart and not arguments.unshared and not Apart.missing():
        unshare(words)
    if arguments.unshared:
        enter()
    nodes = arguments.nodes
    if arguments.target is not None:
        target = Cluster(arguments.target)
        target.see_open()
        nodes = len(target.nodes)
    plan = Plan(
        faults=faults,
        nodes=nodes,
        load=arguments.load or _LOAD[arguments.quick],
        pace=QUICK if arguments.quick else thorough(arguments.minutes),
        directory=os.path.abspath(arguments.report),
        command=shlex.join(["registry-cluster", "drill", *(word for word in words if word != UNSHARED)]),
        target=arguments.target,
        locustfile=arguments.locustfile,
    )
    matrix = run(plan)
    for path in report.write(matrix, plan.directory):
        say(f"written: {path}")
    for row in matrix.missing:
        say(f"NOT RUN: {row.fault.name}: {'; '.join(row.missing)}")
    if not matrix.holds:
        # A drill that could not be judged is no proof of either.
        failed = [row for row in matrix.rows if row.state == "broken"]
        if broken := [row.fault.name for row in failed if not row.problem]:
            say(f"promises were BROKEN: {', '.join(broken)}")
        if unknown := [row.fault.name for row in failed if row.problem]:
            say(f"could not be judged: {', '.join(unknown)}")
        return BROKEN
    if matrix.missing and not arguments.allow_missing:
        return MISSING
    ran = len(matrix.rows) - len(matrix.missing)
    say(f"{ran} of {len(matrix.rows)} drills were run; every promise held")
    return HELD


def _positive(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) <= 100):
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a number from 1 to 100")
    return int(text)


def _clients(text: str) -> int:
    if not (text.isdecimal() and len(Kind) <= int(text) <= 500):
        raise argparse.ArgumentTypeError(
            f"found {text!r}, wanted a number from {len(Kind)} (one for each operation) to 500"
        )
    return int(text)


def _positive_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1440:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a number of minutes")
    return number
