"""Where a node listens: the addresses of its configuration, and whether they can be had on this machine.

Owns which setting each of them comes from. gunicorn opens the sockets: it tries one that is taken for five seconds,
and knows no settings, so they are tried here before it starts.
"""

from __future__ import annotations

import errno
import os
import socket
import stat

from gunicorn.util import is_ipv6, parse_address

from cluster.app import port_of
from cluster.errors import ConfigError
from cluster.settings import Config

_HINTS = {
    errno.EADDRINUSE: "stop what listens there, or choose another address",
    errno.EADDRNOTAVAIL: "wanted an address of this machine; :5000 is each of them",
    errno.EACCES: "this user may not listen there; ports below 1024 take root or CAP_NET_BIND_SERVICE",
}


def addresses(config: Config) -> dict[str, str]:
    """The address of each setting that has one, in gunicorn's form. ConfigError."""
    http, shared = config.http, config.cluster.sharedaddr
    found = {"http.addr": f"unix:{http.addr}" if http.net == "unix" else _bind(http.addr)}
    if shared:
        found["cluster.sharedaddr"] = _bind(shared)
    if http.debug.addr:
        if port_of(http.debug.addr) in (None, port_of(http.addr)):
            raise ConfigError(
                [f"http.debug.addr: {http.debug.addr!r}: wanted host:port, another port than http.addr"]
            )
        found["http.debug.addr"] = _bind(http.debug.addr)
    return found


def check(config: Config) -> None:
    """ConfigError for an address that cannot be listened at."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        return  # the sockets come from systemd
    problems = []
    for setting, address in addresses(config).items():
        try:
            _try(parse_address(address), shared=bool(config.cluster.sharedaddr))
        except OSError as error:
            hint = _HINTS.get(error.errno or 0, "wanted host:port, such as :5000 or 127.0.0.1:5000")
            if address.startswith("unix:"):
                hint = "wanted a path at which this user may make a socket"
            reason = (error.strerror or str(error)).lower()
            problems.append(f"{setting}: {address.removeprefix('unix:')}: {reason}: {hint}")
    if problems:
        raise ConfigError(problems)


def _try(place: tuple[str, int] | str, *, shared: bool) -> None:
    """Open a socket as gunicorn will, and close it. OSError."""
    if isinstance(place, str):
        _try_path(place)
        return
    with socket.socket(socket.AF_INET6 if is_ipv6(place[0]) else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(place)


def _try_path(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "something that is no socket is there")
    except FileNotFoundError:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(path)
        os.unlink(path)


def _bind(address: str) -> str:
    """Go's `:5000` means every address, IPv6 too where there is any."""
    host, _, port = address.rpartition(":")
    return address if host else f"[::]:{port}" if os.path.exists("/proc/net/if_inet6") else f"0.0.0.0:{port}"
