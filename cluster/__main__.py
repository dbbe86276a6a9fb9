"""Where a command begins: the console scripts, and `python -m cluster`.

Owns what Ctrl-C does. The rest is imported where that is seen to: half of a short command's time goes into imports.
"""

import sys
from collections.abc import Sequence

_INTERRUPTED = 130  # as of a shell: 128 and the number of SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """`registry-cluster`; its exit code."""
    try:
        from cluster import cli  # noqa: PLC0415 - as said above

        return cli.main(argv)
    except KeyboardInterrupt:
        return _INTERRUPTED


def htpasswd() -> int:
    """`htpasswd -Bbn USER PASSWORD`, as guides have it."""
    return main(["htpasswd", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
