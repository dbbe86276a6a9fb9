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
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["htpasswd"]:  # its flags are Apache's
        from cluster import users  # noqa: PLC0415 - only here

        return users.run_htpasswd(words[1:])
    if words[:1] == ["drill"]:  # its arguments come from the table of faults
        from cluster.drill import command  # noqa: PLC0415 - only here

        return command.main(words[1:])
    arguments = _parser().parse_args(words)
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
    doctor = verbs.add_parser("doctor", help="do the nodes agree on keys, storage, Redis, clocks and versions?")
    doctor.add_argument("config", nargs="?")
    doctor.set_defaults(run=_doctor)
    _add_certs(verbs)
    _add_secret(verbs)
    _add_user(verbs)
    _add_authority(verbs)
    _add_local(verbs)
    verbs.add_parser("drill", help="break a cluster under load, and report what was lost: nothing")
    return parser


def _add_certs(verbs: Subparsers[argparse.ArgumentParser]) -> None:
    """Certificates of a private authority."""
    certs = verbs.add_parser("certs", help="make a private authority and a certificate, or renew the certificate")
    certs.add_argument("verb", nargs="?", choices=["renew"], help="a new certificate from the same authority")
    certs.add_argument("directory", help="where the files are")
    certs.add_argument("--name", action="append", default=[], help="a host name of the registry; may be repeated")
    certs.add_argument("--ip", action="append", default=[], help="an address of the registry; may be repeated")
    certs.add_argument("--port", type=int, default=443, help="that clients use, for what is printed; default: 443")
    certs.add_argument("--force", action="store_true", help="replace an authority that is there")
    certs.set_defaults(run=_certs)


def _add_secret(verbs: Subparsers[argparse.ArgumentParser]) -> None:
    """The steps in the life of the secret that the nodes share."""
    steps = {
        "init": "draw the secret, unless the file is there",
        "add": "rotate, 1 of 3: draw the next one; then restart the nodes",
        "promote": "rotate, 2 of 3: sign with the next one; then restart the nodes",
        "drop": "rotate, 3 of 3: forget the past one; then restart the nodes",
    }
    secret = verbs.add_parser("secret", help="make and rotate the file of cluster.secretfile").add_subparsers(
        required=True, metavar="STEP"
    )
    for step, text in steps.items():
        verb = secret.add_parser(step, help=text)
        verb.add_argument("file")
        verb.set_defaults(run=_secret, step=step)


def _add_user(verbs: Subparsers[argparse.ArgumentParser]) -> None:
    """Accounts."""
    user = verbs.add_parser("user", help="who may log in: the file of auth.htpasswd").add_subparsers(
        required=True, metavar="VERB"
    )
    steps = {
        "add": "add a user, or change a password; asks for it without showing it",
        "remove": "remove a user",
        "list": "print the users",
        "verify": "exit code 0 if a password is right",
    }
    for step, text in steps.items():
        verb = user.add_parser(step, help=text)
        verb.set_defaults(run=_user, step=step)
        verb.add_argument("--file", help="an htpasswd file; default: the one of the configuration")
        verb.add_argument("--config", help="default: where Distribution's images keep theirs")
        if step != "list":
            verb.add_argument("user")
        if step in ("add", "verify"):
            verb.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
        if step == "add":
            verb.add_argument("--cost", type=int, default=10, help="of bcrypt; default: 10")
    verbs.add_parser("htpasswd", help="Apache's htpasswd, as far as guides use it: htpasswd -Bbn USER PASSWORD")


def _add_authority(verbs: Subparsers[argparse.ArgumentParser]) -> None:
    """Signing keys and the policy."""
    tokenkey = verbs.add_parser("tokenkey", help="the keys that sign tokens (cluster.tokenserver)").add_subparsers(
        required=True, metavar="VERB"
    )
    steps = {
        "list": "print the keys, and what each does",
        "rotate": "add a key, which signs once all nodes have seen it, and remove those that are no longer needed",
        "retire": "remove a key before its time",
        "jwks": "print the public keys, for other registries that are to believe our tokens",
    }
    for step, text in steps.items():
        verb = tokenkey.add_parser(step, help=text)
        verb.set_defaults(run=_tokenkey, step=step)
        verb.add_argument("--config", help="default: where Distribution's images keep theirs")
        if step == "retire":
            verb.add_argument("key", help="its id, as list prints it")
            verb.add_argument("--force", action="store_true", help="although tokens that it signed may be alive")
    policy = verbs.add_parser("policy", help="who may do what (cluster.policy)").add_subparsers(
        required=True, metavar="VERB"
    )
    check = policy.add_parser("check", help="say all that is wrong with a file; exit code 1 if anything is")
    check.add_argument("file")
    check.set_defaults(run=_policy_check)
    explain = policy.add_parser("explain", help="say what a user may do with a repository, and by which rules")
    explain.add_argument("user", help="an account, or anonymous: whoever has none")
    explain.add_argument("repository")
    explain.add_argument("--file", help="a policy; default: the one of the configuration")
    explain.add_argument("--config", help="default: where Distribution's images keep theirs")
    explain.set_defaults(run=_policy_explain)


def _add_local(verbs: Subparsers[argparse.ArgumentParser]) -> None:
    """The commands for a whole cluster on this machine."""
    up = verbs.add_parser("up", help="run nodes, Redis and HAProxy on this machine, until Ctrl-C")
    up.add_argument("--nodes", type=int, default=3, help="default: 3")
    up.add_argument("--port", type=int, default=5000, help="where clients go; default: 5000")
    up.add_argument("--config", help="a configuration that every node gets, with its own address and name put in")
    up.add_argument("--tls", action="store_true", help="with certificates of an authority of its own")
    up.add_argument(
        "--auth",
        nargs="?",
        const="htpasswd",
        default="",
        choices=["htpasswd", "token"],
        help="with an account: by password, or by tokens that the cluster issues; default: htpasswd",
    )
    up.add_argument("--places", metavar="FILE", help="where each part runs (JSON), as drills prepare it")
    up.set_defaults(run=_up)
    status = verbs.add_parser("status", help="show the processes of a local cluster, and whether each is healthy")
    status.set_defaults(run=_status)
    drain = verbs.add_parser("drain", help="send no new client to a node of `up`")
    drain.add_argument("nodes", nargs="+", metavar="NODE", help="its name; with --socket, its address too")
    drain.add_argument("--undo", action="store_true", help="send clients to it again")
    drain.set_defaults(run=_drain)
    restart = verbs.add_parser("restart", help="restart the nodes of `up`, one after the other")
    restart.add_argument("--rolling", action="store_true", required=True)
    restart.set_defaults(run=_restart)
    for verb in (status, drain):
        verb.add_argument("--socket", help="ask the HAProxy with this stats socket, wherever its nodes run")
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
    from cluster import doctor, serve, tls  # noqa: PLC0415 - the other commands start faster without the server

    settings = config.load(_find(arguments), os.environ).config
    keys = serve.key_ring(settings)
    trust = tls.client_context(settings.cluster.tls)
    heartbeats = doctor.listen(settings.redis, keys)
    if heartbeats is not None:
        print(f"redis: {f'not reached: {heartbeats.trouble}' if heartbeats.trouble else 'answers'}")
    standing = serve.standing(settings, keys)
    findings = doctor.compare(*standing, settings.cluster.nodes, trust, heartbeats, starting=False)
    for finding in findings:
        state = f"not reached: {finding.unreached}" if finding.node is None else "agrees"
        print(f"{finding.name}: {'disagrees' if finding.refusals else state}")
        for text in (*finding.refusals, *finding.warnings):
            print(f"  {text}")
    if not findings:
        print("no other node is known: cluster.nodes names none, and no heartbeat of one is in Redis")
    return 1 if any(finding.refusals for finding in findings) else 0


def _certs(arguments: argparse.Namespace) -> int:
    from cluster import certificates, trust  # noqa: PLC0415 - the other commands start faster without cryptography

    directory = os.path.abspath(arguments.directory)
    if arguments.verb == "renew":
        if arguments.name or arguments.ip or arguments.force:
            raise ConfigError(["certs renew keeps names, addresses and authority: wanted no --name, --ip, --force"])
        certificates.renew(directory)
    else:
        what = certificates.subject(arguments.name, arguments.ip)
        certificates.create(directory, what, force=arguments.force)
    what, end = certificates.look(directory)
    print(f"a certificate for {', '.join(what.hosts)}, until {end:%Y-%m-%d}")
    if arguments.verb is None:
        print("\n".join(trust.instructions(directory, what.hosts, arguments.port)))
    return 0


def _secret(arguments: argparse.Namespace) -> int:
    from cluster import secretfile  # noqa: PLC0415 - only here

    steps = {
        "init": secretfile.init,
        "add": secretfile.add,
        "promote": secretfile.promote,
        "drop": secretfile.drop,
    }
    if steps[arguments.step](arguments.file) is False:
        print(f"{arguments.file}: is there, and is left as it is")
    return 0


def _user(arguments: argparse.Namespace) -> int:
    from cluster import users  # noqa: PLC0415 - only here

    path = arguments.file or users.file_of(config.load(_find(arguments), os.environ).config)
    from_stdin = getattr(arguments, "password_stdin", False)
    if arguments.step == "add":
        print(users.add(path, arguments.user, cost=arguments.cost, from_stdin=from_stdin))
    elif arguments.step == "remove":
        print(users.remove(path, arguments.user))
    elif arguments.step == "list":
        print("\n".join(users.describe(path)))
    elif not users.verify(path, arguments.user, from_stdin=from_stdin):
        print(f"{arguments.user}: the password is wrong")
        return 1
    else:
        print(f"{arguments.user}: the password is right")
    return 0


def _tokenkey(arguments: argparse.Namespace) -> int:
    from cluster import authority  # noqa: PLC0415 - the other commands start faster without cryptography

    settings = config.load(_find(arguments), os.environ).config
    if arguments.step == "retire":
        lines = authority.retire_key(settings, arguments.key, force=arguments.force)
    else:
        steps = {"list": authority.list_keys, "rotate": authority.rotate_keys, "jwks": authority.print_key_set}
        lines = steps[arguments.step](settings)
    print("\n".join(lines))
    return 0


def _policy_check(arguments: argparse.Namespace) -> int:
    from cluster import authority  # noqa: PLC0415 - as above

    authority.read_policy(arguments.file)
    print(f"{arguments.file}: no problems")
    return 0


def _policy_explain(arguments: argparse.Namespace) -> int:
    from cluster import authority  # noqa: PLC0415 - as above

    if arguments.file:
        rules = authority.read_policy(arguments.file)
    else:
        rules = authority.policy_of(config.load(_find(arguments), os.environ).config)
    print("\n".join(authority.explain(rules, arguments.user, arguments.repository)))
    return 0


def _up(arguments: argparse.Namespace) -> int:
    import asyncio  # noqa: PLC0415 - only here

    from cluster import local, places, protect  # noqa: PLC0415 - only here

    base = local.read_base(arguments.config) if arguments.config else None
    prepared = places.read(arguments.places) if arguments.places else None
    protection = protect.Protection(os.path.abspath(arguments.data), arguments.tls, arguments.auth)
    cluster = local.LocalCluster(
        nodes=arguments.nodes, port=arguments.port, protection=protection, base=base, places=prepared
    )
    asyncio.run(cluster.run())
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from cluster import operate  # noqa: PLC0415 - only here

    lines = operate.seen_by(arguments.socket) if arguments.socket else operate.status(arguments.data)
    print("\n".join(lines))
    return 0


def _drain(arguments: argparse.Namespace) -> int:
    from cluster import haproxy, operate  # noqa: PLC0415 - only here

    for node in arguments.nodes:
        if arguments.socket:
            runtime = haproxy.Runtime(arguments.socket)
            (runtime.ready if arguments.undo else runtime.drain)(node)
        else:
            (operate.undrain if arguments.undo else operate.drain)(arguments.data, node)
    return 0


def _restart(arguments: argparse.Namespace) -> int:
    from cluster import operate  # noqa: PLC0415 - only here

    operate.restart_rolling(arguments.data)
    return 0
