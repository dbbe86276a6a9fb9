"""Is the node in this container ready? Exit code 0 when it is; what it says otherwise goes to the engine's log.

The standard library alone, and little of it: this runs every few seconds.
"""

import http.client
import os
import ssl
import sys
from urllib.parse import urlsplit

URL = urlsplit(os.environ.get("HEALTHCHECK_URL", "http://127.0.0.1:5000/readyz"))


def connection() -> http.client.HTTPConnection:
    """Whose certificate it is does not matter to who asks on the same machine."""
    host = URL.hostname or "127.0.0.1"
    if URL.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection(host, URL.port, timeout=4, context=context)
    return http.client.HTTPConnection(host, URL.port, timeout=4)


def main() -> str | None:
    """What is wrong; None when nothing is."""
    asked = connection()
    try:
        asked.request("GET", URL.path or "/readyz")
        answer = asked.getresponse()
        said = answer.read(200).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"{URL.geturl()}: {error}"
    return None if answer.status == 200 else f"{URL.geturl()}: {answer.status} {said}"


if __name__ == "__main__":
    sys.exit(main())
