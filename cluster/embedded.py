"""A Redis-protocol server in this process, for `registry-cluster up` where redis-server is not installed.

For trying things out: fakeredis' own server, one thread for each connection, nothing kept.
"""

from __future__ import annotations

import sys

from cluster.errors import ConfigError


def main() -> None:
    """Serve on 127.0.0.1 at the port given as the only argument, until a signal."""
    try:
        from fakeredis import TcpFakeServer  # noqa: PLC0415 - an extra: only this command needs it
    except ImportError as error:
        raise ConfigError(
            ["install redis-server, or this package with its extra: registry-cluster[embedded]"]
        ) from error
    TcpFakeServer(("127.0.0.1", int(sys.argv[1])), server_type="redis").serve_forever()


if __name__ == "__main__":
    main()
