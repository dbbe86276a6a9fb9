"""`If-Match` and `If-None-Match` (RFC 9110 section 13): entity tags are digests in quotes."""

from __future__ import annotations

import falcon.asgi

from cluster.oci.digest import Digest
from cluster.registry.tags import Precondition


def etag(digest: Digest) -> str:
    """The entity tag of content."""
    return f'"{digest}"'


def _tags(header: str | None, *, weak: bool = True) -> frozenset[str] | None:
    """What a header lists; unquoted digests are taken too, as Distribution takes them."""
    if header is None:
        return None
    parts = (part.strip() for part in header.split(","))
    # A weak tag never matches where bytes have to be the same (RFC 9110 section 13.1.1).
    return frozenset(part.removeprefix("W/").strip('"') for part in parts if weak or not part.startswith("W/"))


def is_not_modified(req: falcon.asgi.Request, digest: Digest) -> bool:
    """Whether the client already has this content (304)."""
    known = _tags(req.get_header("If-None-Match"))
    return known is not None and not known.isdisjoint({str(digest), "*"})


def check_match(req: falcon.asgi.Request, digest: Digest) -> None:
    """PreconditionFailed where a client wants to read something else (RFC 9110 section 13.1.1)."""
    wanted = req.get_header("If-Match")
    if wanted is not None:
        Precondition(match=_tags(wanted, weak=False)).check(digest)


def precondition(req: falcon.asgi.Request) -> Precondition | None:
    """What a write asks of the tag's current value; None when it asks nothing."""
    match, none_match = _tags(req.get_header("If-Match"), weak=False), _tags(req.get_header("If-None-Match"))
    return None if match is None and none_match is None else Precondition(match, none_match)
