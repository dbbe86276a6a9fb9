"""Where the certificate of a private authority belongs: in our configuration, and with docker, podman, containerd.

Owns these words alone, and writes no file: they are other programs' directories, often on other machines.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterator, Sequence

from cluster.certificates import BUNDLE, CA, CA_KEY, SERVER, SERVER_KEY

_HTTPS = 443


def instructions(directory: str, hosts: Sequence[str], port: int) -> Iterator[str]:
    """What to do with the files of a directory, line by line, for a registry that clients know by these hosts."""
    authority = f"{directory}/{CA}"
    yield from (
        "",
        "In config.yml, for nodes that speak TLS:",
        f"  http: {{tls: {{certificate: {directory}/{SERVER}, key: {directory}/{SERVER_KEY}}}}}",
        f"  cluster: {{tls: {{ca: {authority}}}}}",
        "or for HAProxy in mode http, which then ends TLS:",
        f"  cluster: {{haproxy: {{mode: http, tls: {{certificate: {directory}/{BUNDLE}}}}}}}",
        "",
        f"Renew it with `registry-cluster certs renew {shlex.quote(directory)}`;",
        "nodes serve it at once, HAProxy when it is reloaded.",
        f"Whoever has {CA_KEY} can pass for your registry: keep it away from the nodes.",
        "",
        "On every client, as root, with a copy of ca.crt (nothing has to be restarted):",
    )
    source = shlex.quote(authority)
    places = [reference_host(host, port) for host in hosts]
    for program, holder in (("docker", "docker"), ("podman, skopeo, buildah", "containers")):
        yield f"  # {program}"
        yield from (f"  install -D -m 644 {source} /etc/{holder}/certs.d/{place}/ca.crt" for place in places)
    yield '  # containerd, with config_path = "/etc/containerd/certs.d" (ctr: --hosts-dir /etc/containerd/certs.d)'
    for place in places:
        home = f"/etc/containerd/certs.d/{place}"
        yield f"  install -D -m 644 {source} {home}/ca.crt"
        yield f"  tee {home}/hosts.toml <<'END'"
        yield from hosts_toml(place, f"{home}/ca.crt").splitlines()
        yield "END"
    yield "  # everything that asks the system: crane, oras, regctl, helm, curl (Debian, Ubuntu)"
    system = f"/usr/local/share/ca-certificates/{hosts[0].replace(':', '-')}.crt"
    yield f"  install -D -m 644 {source} {system} && update-ca-certificates"


def hosts_toml(place: str, authority: str) -> str:
    """containerd's hosts.toml for a registry at `host:port`."""
    return f'server = "https://{place}"\n\n[host."https://{place}"]\n  ca = "{authority}"\n'


def reference_host(host: str, port: int) -> str:
    """What stands before the repository in a reference; clients name their directories after it."""
    try:
        bare = f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        bare = host
    return bare if port == _HTTPS else f"{bare}:{port}"
