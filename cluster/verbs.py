"""What each verb of the command line does: takes its arguments, calls, prints, and returns the exit code.

Decides nothing: every answer is made in the module that a verb imports. Which arguments there are is in cli.py.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path

from cluster import config
from cluster.config_files import naming
from cluster.errors import ConfigError


def _find(arguments: argparse.Namespace) -> Path:
    return config.find(arguments.config, os.environ)


def run_serve(arguments: argparse.Namespace) -> int:
    from cluster.serve import serve  # noqa: PLC0415 - the other commands start faster without the server

    loaded = config.load(_find(arguments), os.environ)
    _warn(loaded)
    serve(loaded.config)
    return 0


def _warn(loaded: config.Loaded) -> None:
    warnings = loaded.warnings
    if loaded.config.cluster.policy:
        from cluster import authority  # noqa: PLC0415 - the other commands start faster without cryptography

        warnings = warnings + authority.warnings(loaded.config)
    for warning in warnings:
        print(f"registry-cluster: warning: {warning}", file=sys.stderr)


def run_check(arguments: argparse.Namespace) -> int:
    path = _find(arguments)
    try:
        loaded = config.check(path, os.environ)
    except ConfigError as error:
        print("\n".join(error.problems))
        return 1
    _warn(loaded)
    print(f"{path}: no problems")
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    print(config.show(config.load(_find(arguments), os.environ).config), end="")
    return 0


def run_haproxy(arguments: argparse.Namespace) -> int:
    from cluster import haproxy  # noqa: PLC0415 - the other commands start faster without the template engine

    settings = config.load(_find(arguments), os.environ).config.cluster
    print(haproxy.render(settings, haproxy.names_of(settings)), end="")
    return 0


def run_doctor(arguments: argparse.Namespace) -> int:
    from cluster import doctor, serve  # noqa: PLC0415 - the other commands start faster without the server

    settings = config.load(_find(arguments), os.environ).config
    with naming(settings):
        lines, agree = doctor.examine(settings, serve.key_ring(settings, draw=False))
    print("\n".join(lines))
    return 0 if agree else 1


def run_certs(arguments: argparse.Namespace) -> int:
    from cluster import certificates, trust  # noqa: PLC0415 - the other commands start faster without cryptography

    directory = os.path.abspath(arguments.directory)
    if arguments.verb == "renew":
        if arguments.name or arguments.ip or arguments.force:
            raise ConfigError(["certs renew keeps names, addresses and authority: wanted no --name, --ip, --force"])
        certificates.renew(directory)
    elif arguments.directory == "renew":  # what argparse makes of `certs renew` alone
        raise ConfigError(
            ["certs renew: wanted the directory too (./renew, to make certificates in one of that name)"]
        )
    else:
        what = certificates.subject(arguments.name, arguments.ip)
        certificates.create(directory, what, force=arguments.force)
    what, end = certificates.look(directory)
    print(f"a certificate for {', '.join(what.hosts)}, until {end:%Y-%m-%d}")
    if arguments.verb is None:
        print("\n".join(trust.instructions(directory, what.hosts, arguments.port)))
    return 0


def run_secret(arguments: argparse.Namespace) -> int:
    from cluster import secretfile  # noqa: PLC0415 - only here

    steps = {
        "init": secretfile.init,
        "add": secretfile.add,
        "promote": secretfile.promote,
        "drop": secretfile.drop,
    }
    done = {
        "init": "a secret was drawn",
        "add": "the next secret was drawn: restart the nodes, one after the other, so that all accept it",
        "promote": "the next secret signs: restart the nodes, one after the other",
        "drop": "the past secret is forgotten: restart the nodes, one after the other",
    }
    is_done = steps[arguments.step](arguments.file) is not False
    print(f"{arguments.file}: {done[arguments.step] if is_done else 'is there, and is left as it is'}")
    return 0


def run_user(arguments: argparse.Namespace) -> int:
    from cluster import users  # noqa: PLC0415 - only here

    if arguments.file:
        return _user(arguments, arguments.file)
    settings = config.load(_find(arguments), os.environ).config
    with naming(settings):
        return _user(arguments, users.file_of(settings))


def _user(arguments: argparse.Namespace, path: str) -> int:
    from cluster import users  # noqa: PLC0415 - as above

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


def run_tokenkey(arguments: argparse.Namespace) -> int:
    from cluster import authority  # noqa: PLC0415 - the other commands start faster without cryptography

    settings = config.load(_find(arguments), os.environ).config
    steps = {"list": authority.list_keys, "rotate": authority.rotate_keys, "jwks": authority.print_key_set}
    with naming(settings):
        if arguments.step == "retire":
            lines = authority.retire_key(settings, arguments.key, force=arguments.force)
        else:
            lines = steps[arguments.step](settings)
    print("\n".join(lines))
    return 0


def run_policy_check(arguments: argparse.Namespace) -> int:
    from cluster import authority  # noqa: PLC0415 - as above

    authority.read_policy(arguments.file)
    print(f"{arguments.file}: no problems")
    return 0


def run_policy_explain(arguments: argparse.Namespace) -> int:
    from cluster import authority  # noqa: PLC0415 - as above

    if arguments.file:
        rules = authority.read_policy(arguments.file)
    else:
        settings = config.load(_find(arguments), os.environ).config
        with naming(settings):
            rules = authority.policy_of(settings)
    print("\n".join(authority.explain(rules, arguments.user, arguments.repository)))
    return 0


def run_up(arguments: argparse.Namespace) -> int:
    import asyncio  # noqa: PLC0415 - only here

    from cluster import blueprint, local, places, protect  # noqa: PLC0415 - only here

    cluster = local.LocalCluster(
        nodes=arguments.nodes,
        port=arguments.port,
        protection=protect.Protection(os.path.abspath(arguments.data), arguments.tls, arguments.auth),
        base=blueprint.read_base(arguments.config) if arguments.config else None,
        places=places.read(arguments.places) if arguments.places else None,
        program=program(sys.argv[0]),
    )
    asyncio.run(cluster.run())
    return 0


def program(started: str) -> str:
    """This program as a person types it, by the path that it was started by."""
    if os.path.basename(started) == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m cluster"
    found = shutil.which(os.path.basename(started))
    is_found = found is not None and os.path.realpath(found) == os.path.realpath(started)
    return os.path.basename(started) if is_found else shlex.quote(started)


def run_status(arguments: argparse.Namespace) -> int:
    from cluster import operate  # noqa: PLC0415 - only here

    if arguments.socket:
        print("\n".join(operate.seen_by(arguments.socket)))
        return 0
    lines, is_well = operate.status(arguments.data)
    print("\n".join(lines))
    return 0 if is_well else 1


def run_drain(arguments: argparse.Namespace) -> int:
    from cluster import haproxy, operate  # noqa: PLC0415 - only here

    for node in arguments.nodes:
        if arguments.socket:
            runtime = haproxy.Runtime(arguments.socket)
            (runtime.ready if arguments.undo else runtime.drain)(node)
        else:
            (operate.undrain if arguments.undo else operate.drain)(arguments.data, node)
        print(f"{node}: {'gets clients again' if arguments.undo else 'gets no new client, until `drain --undo`'}")
    return 0


def run_restart(arguments: argparse.Namespace) -> int:
    from cluster import operate  # noqa: PLC0415 - only here

    operate.restart_rolling(arguments.data)
    return 0
