"""Asking a node about itself: the one HTTP client of the start check, of `doctor`, and of commands for a cluster.

Owns how a node is reached and how much of its answer is read. Which nodes are asked, and what their answers mean,
is for doctor.py, operate.py and local.py to say; by what a node with TLS is known is in tls.py.
"""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from http.client import HTTPException
from urllib.parse import urlsplit

_LIMIT = 64 * 1024  # bytes of an answer that are read

# Whoever listens there may be no node, and speak something else.
UNANSWERED = (OSError, HTTPException, ValueError)


def ask(url: str, trust: ssl.SSLContext, *, timeout: float) -> tuple[int, bytes]:
    """Status and body of what answers, whatever the status is. One of UNANSWERED when nothing does.

    `timeout` is in seconds for each step, not for all of it: an answer may come a byte at a time.
    """
    if urlsplit(url).scheme not in ("http", "https"):  # of somebody's heartbeat, for one
        raise ValueError("no URL of a node")
    # Never by way of a proxy of the environment: it would answer in place of the node, or not find it.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
    )
    try:
        with opener.open(url, timeout=timeout) as answer:
            return answer.status, answer.read(_LIMIT)
    except urllib.error.HTTPError as error:  # a node whose storage fails says 503, and still who it is
        with error:
            return error.code, error.read(_LIMIT)
