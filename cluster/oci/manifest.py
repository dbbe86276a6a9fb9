"""Manifests: the grammar of image manifests, indexes and their Docker kin, and what one refers to.

Owns what can be said of a manifest from its bytes alone; whether what it names is there is decided in
registry/manifests.py. OCI image-spec, "Image Manifest", "Image Index", "Descriptor".
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cluster.errors import DigestInvalid, ManifestInvalid
from cluster.oci.digest import Digest

LIMIT = 4 * 1024 * 1024  # bytes, what every registry takes (OCI "Pushing Manifests")

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"  # of 1.1's release candidates; still pushed
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"

BLOB_MEDIA_TYPE = "application/octet-stream"  # of bytes of which nothing more is known

INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
IMAGES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
MEDIA_TYPES = INDEXES | IMAGES | {OCI_ARTIFACT}
# Layers that a client may fetch from elsewhere, and so need not push (image-spec, "Non-Distributable Layers").
NON_DISTRIBUTABLE = frozenset(
    {
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    }
)
_MAX_SIZE = 2**63 - 1
_MAX_NUMBER = 40  # characters: no number of a manifest is longer
_FIELDS = {
    name.lower(): name
    for name in (
        *("schemaVersion", "mediaType", "artifactType", "subject", "annotations"),
        *("config", "layers", "manifests", "blobs", "digest", "size", "urls", "platform", "architecture", "os"),
    )
}

Annotations = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Platform:
    """For whom a manifest of an index is meant."""

    architecture: str
    os: str


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to content: image-spec, "OCI Content Descriptors"."""

    media_type: str
    digest: Digest
    size: int  # bytes
    urls: tuple[str, ...] = ()
    platform: Platform | None = None
    artifact_type: str | None = None
    annotations: Annotations | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON of a referrers list."""
        fields: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.artifact_type is not None:
            fields["artifactType"] = self.artifact_type
        if self.annotations is not None:
            fields["annotations"] = dict(self.annotations)
        return fields


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a manifest's bytes say."""

    media_type: str
    blobs: tuple[Descriptor, ...] = ()  # config first, then layers
    children: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    artifact_type: str | None = None
    annotations: Annotations | None = None
    config_media_type: str | None = None

    def descriptor(self, digest: Digest, size: int) -> Descriptor:
        """How a referrers list names this manifest (OCI "Listing Referrers")."""
        artifact_type = self.artifact_type or self.config_media_type
        return Descriptor(self.media_type, digest, size, artifact_type=artifact_type, annotations=self.annotations)


def plain_media_type(content_type: str | None) -> str:
    """The media type of a Content-Type header, without its parameters, in lower case (RFC 9110 section 8.3.1)."""
    return (content_type or "").partition(";")[0].strip().lower()


def parse_manifest(content: bytes, content_type: str | None = None) -> Manifest:
    """Read a manifest; ManifestInvalid when it breaks a rule of its media type.

    `content_type` is what the client said it pushes: it must agree with the bytes. Without one (a manifest on
    storage) the bytes speak for themselves: an OCI manifest need not hold its own `mediaType`.
    """
    fields = _struct(_load(content), "manifest")
    media_type = _media_type(fields, plain_media_type(content_type))
    if type(fields.get("schemaVersion", 2)) is not int or fields.get("schemaVersion", 2) != 2:
        raise ManifestInvalid(f"schemaVersion {str(fields['schemaVersion'])[:40]}: wanted 2")
    if "schemaVersion" not in fields and media_type != OCI_ARTIFACT:
        raise ManifestInvalid("schemaVersion is missing: wanted 2")
    subject = None
    if media_type not in (DOCKER_MANIFEST, DOCKER_LIST) and fields.get("subject") is not None:
        subject = _descriptor(fields["subject"], "subject")
    manifest = Manifest(
        media_type,
        subject=subject,
        artifact_type=_text(fields, "artifactType", "manifest") or None,
        annotations=_annotations(fields, "manifest"),
    )
    if media_type in INDEXES:
        _refuse(fields, ("config", "layers"), media_type)
        return replace(manifest, children=_descriptors(fields, "manifests"))
    if media_type == OCI_ARTIFACT:
        return replace(manifest, blobs=_descriptors(fields, "blobs", required=False))
    _refuse(fields, ("manifests",), media_type)
    config = _descriptor(fields.get("config"), "config")
    blobs = (config, *_descriptors(fields, "layers"))
    return replace(manifest, blobs=blobs, config_media_type=config.media_type)


def parse_stored(content: bytes) -> Manifest:
    """What a manifest on storage says of itself, its subject and its children; of its blobs nothing.

    Distribution took it, perhaps, which asks for less than `parse_manifest`: a key may be there twice (the last one
    counts) and in any case, descriptors may be incomplete. ManifestInvalid when it is none that can be served.
    """
    fields = _load_stored(content)
    media_type = _stored_media_type(fields)
    subject = None
    if media_type not in (DOCKER_MANIFEST, DOCKER_LIST):
        subject = _stored_descriptor(fields.get("subject"))
    children = fields.get("manifests") if media_type in INDEXES else None
    config = _by_lower_case(fields.get("config")) if media_type in IMAGES else {}
    annotations = fields.get("annotations")
    if isinstance(annotations, dict):
        annotations = {key: text for key, text in annotations.items() if isinstance(text, str)}
    return Manifest(
        media_type,
        children=tuple(filter(None, map(_stored_descriptor, children if isinstance(children, list) else ()))),
        subject=subject,
        artifact_type=_string(fields.get("artifacttype")),
        annotations=annotations if isinstance(annotations, dict) else None,
        config_media_type=_string(config.get("mediatype")),
    )


def _by_lower_case(value: Any) -> dict[str, Any]:
    """The fields of an object as Go finds them, whatever the case of their names."""
    return {_folded(key): field for key, field in value.items()} if isinstance(value, dict) else {}


def _folded(name: str) -> str:
    """A field's name without its case, as encoding/json of Go compares names: the long s is an s to it, too."""
    return name.lower().replace("\u017f", "s")


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _stored_descriptor(value: Any) -> Descriptor | None:
    """A subject or a child, as long as there is a digest to find it by."""
    fields = _by_lower_case(value)
    platform = _by_lower_case(fields.get("platform"))
    try:
        digest = Digest.parse(_string(fields.get("digest")) or "")
    except DigestInvalid:
        return None
    machine = Platform(_string(platform.get("architecture")) or "", _string(platform.get("os")) or "")
    return Descriptor(_string(fields.get("mediatype")) or "", digest, 0, platform=machine)


def stored_media_type(content: bytes) -> str:
    """What bytes on storage are, whatever else is wrong with them: another registry may have taken them.

    ManifestInvalid when they are nothing that can be named.
    """
    return _stored_media_type(_load_stored(content))


def _load_stored(content: bytes) -> dict[str, Any]:
    """The fields of a manifest as Go reads them, by lower-case names: bytes that are no UTF-8 and numbers of any
    length are taken, and the case of a name does not matter."""
    try:
        value = json.loads(content.decode("utf-8", "replace"), parse_int=float)
    except (ValueError, RecursionError):
        raise ManifestInvalid("not JSON") from None
    return _by_lower_case(_object(value, "manifest"))


def _stored_media_type(fields: Mapping[str, Any]) -> str:
    media_type = _text(fields, "mediatype", "manifest")
    if not media_type and {"config", "manifests"} & set(fields):
        is_index = fields.get("manifests") is not None or "config" not in fields
        return OCI_INDEX if is_index else OCI_MANIFEST
    if media_type not in MEDIA_TYPES:
        raise ManifestInvalid(f"the media type {media_type[:200]!r} is not known")
    return media_type


def _load(content: bytes) -> Any:
    """Strict JSON: UTF-8 without lone surrogates, no key twice, no NaN, nothing absurdly deep or long."""
    try:
        text = content.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_number,
        )
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ManifestInvalid("the JSON is nested too deeply") from None
    except ValueError as error:
        raise ManifestInvalid(f"not acceptable JSON: {str(error)[:200]}") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:100]!r} is there twice")
    return fields


def _integer(text: str) -> int:
    if len(text) > _MAX_NUMBER:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:_MAX_NUMBER]} is not a number that JSON knows")
    return value


def _media_type(fields: Mapping[str, Any], declared: str) -> str:
    inner = _text(fields, "mediaType", "manifest")
    if declared and inner and declared != inner:
        raise ManifestInvalid(f"mediaType is {inner[:200]}, the request's Content-Type {declared[:200]}")
    if not declared and not inner:
        # Old OCI manifests leave their type out; the shape tells it.
        return OCI_INDEX if "manifests" in fields else OCI_MANIFEST
    media_type = inner or declared
    if media_type not in MEDIA_TYPES:
        known = ", ".join(sorted(MEDIA_TYPES))
        raise ManifestInvalid(f"the media type {media_type[:200]!r} is not one of {known}")
    if not inner and media_type not in (OCI_MANIFEST, OCI_INDEX):
        raise ManifestInvalid(f"mediaType is missing: wanted {media_type}")
    return media_type


def _refuse(fields: Mapping[str, Any], keys: tuple[str, ...], media_type: str) -> None:
    """Content that two readers could take for two things (CVE-2021-41190) is neither."""
    found = [key for key in keys if key in fields]
    if found:
        raise ManifestInvalid(f"a {media_type} must not have {' or '.join(found)}")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ManifestInvalid(f"{where}: wanted an object")
    return value


def _struct(value: Any, where: str) -> dict[str, Any]:
    """An object whose fields are ours to read.

    One that is known but for its case is refused: we would not see it, and Go, or we when it is read from storage,
    would.
    """
    fields = _object(value, where)
    for key in fields:
        known = _FIELDS.get(_folded(key), key)
        if key != known:
            raise ManifestInvalid(f"{where}.{key[:100]}: wanted {known}")
    return fields


def _text(fields: Mapping[str, Any], key: str, where: str) -> str:
    value = fields.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ManifestInvalid(f"{where}.{key}: wanted a string")
    return value


def _annotations(fields: Mapping[str, Any], where: str) -> Annotations | None:
    value = fields.get("annotations")
    if value is None:
        return None
    if not all(isinstance(text, str) for text in _object(value, f"{where}.annotations").values()):
        raise ManifestInvalid(f"{where}.annotations: wanted strings")
    return dict(value)


def _descriptors(fields: Mapping[str, Any], key: str, *, required: bool = True) -> tuple[Descriptor, ...]:
    value = fields.get(key)
    if value is None and (key in fields or not required):  # null is how Go writes a list that was never made
        return ()
    if not isinstance(value, list):
        raise ManifestInvalid(f"{key}: wanted a list of descriptors")
    return tuple(_descriptor(item, f"{key}[{number}]") for number, item in enumerate(value))


def _descriptor(value: Any, where: str) -> Descriptor:
    fields = _struct(value, where)
    size = fields.get("size")
    if type(size) is not int or not 0 <= size <= _MAX_SIZE:
        raise ManifestInvalid(f"{where}.size: wanted a number of bytes")
    try:
        digest = Digest.parse(_text(fields, "digest", where))
    except DigestInvalid as error:
        raise ManifestInvalid(f"{where}.digest: {error.detail}") from None
    urls = fields.get("urls") or []
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise ManifestInvalid(f"{where}.urls: wanted a list of strings")
    media_type = _text(fields, "mediaType", where)
    if not media_type:
        raise ManifestInvalid(f"{where}.mediaType is missing")
    return Descriptor(media_type, digest, size, tuple(urls), _platform(fields, where))


def _platform(fields: Mapping[str, Any], where: str) -> Platform | None:
    if fields.get("platform") is None:
        return None
    platform = _struct(fields["platform"], f"{where}.platform")
    return Platform(_text(platform, "architecture", where), _text(platform, "os", where))
