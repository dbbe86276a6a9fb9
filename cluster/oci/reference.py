"""The names that a URL may hold: repository names, tags, references, upload ids.

Parsed once at the edge; below it no function takes a raw string for any of these. OCI distribution-spec,
"Pulling manifests" (the grammars of <name> and <reference>).
"""

from __future__ import annotations

import re

from cluster.errors import NameInvalid, TagInvalid, UploadUnknown
from cluster.oci.digest import Digest

NAME_LIMIT = 255  # characters, as Distribution has it: names become file names
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class RepositoryName(str):
    """The scope of blobs, manifests and tags, such as `team/app`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> RepositoryName:
        """Read a name; NameInvalid when it is not one or longer than 255 characters."""
        if len(text) > NAME_LIMIT:
            raise NameInvalid(f"the name has {len(text)} characters: at most {NAME_LIMIT} are allowed")
        if _NAME.fullmatch(text) is None:
            raise NameInvalid(
                f"{text!r}: wanted lower-case components of a-z and 0-9, joined inside by '.', '_', '__' or '-' "
                "and separated by '/'"
            )
        return cls(text)


class Tag(str):
    """A movable name of a manifest, such as `latest`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Tag:
        """Read a tag; TagInvalid when it is not one."""
        if _TAG.fullmatch(text) is None:
            raise TagInvalid(f"{text[:140]!r}: wanted at most 128 of A-Z a-z 0-9 _ . - and no '.' or '-' in front")
        return cls(text)


Reference = Tag | Digest


def parse_reference(text: str) -> Reference:
    """A tag or a digest: what holds a colon can only be a digest."""
    return Digest.parse(text) if ":" in text else Tag.parse(text)


def is_uuid(text: str) -> bool:
    """Whether this names an upload session; every other name below `_uploads` is no session (rule U10)."""
    return _UUID.fullmatch(text) is not None


def parse_upload_id(text: str) -> str:
    """An upload id of a URL; no session can have another form, so UploadUnknown."""
    if not is_uuid(text):
        raise UploadUnknown(f"{text[:100]!r} is not an upload id")
    return text
