"""Every key in Redis, drawn once. Distribution's keys to the letter; ours begin with `registry-cluster:`.

    key                                 type    TTL      written by                  if it is lost
    blobs::<digest>                     hash    none     whoever commits or serves   Distribution asks storage
        digest, size, mediatype
    repository::<name>::blobs           set     none     the same                    the same
    repository::<name>::blobs::<digest> hash    none     the same                    the same
        mediatype
    registry-cluster:upload:<uuid>      string  a day    who published a segment     the digest state is read from
        <mac>.<json: offset, states>                                                 `hashstates`, or made again
    registry-cluster:{nodes}            set     a day    every node, each 5 s        back within 5 s; until then
        names                                                                        `status` shows too few
    registry-cluster:{nodes}:<name>     string  15 s     that node, each 5 s         the same
        <json: Node>
    registry-cluster:turn:<role>        string  given    who did the job             it is done once more
        <json: node, at>
    registry-cluster:failures:<mac>     string  given    who checked a password      guessing is slowed down for
        <number>                                                                     each worker by itself
    registry-cluster:epoch:<witness>    string  a day    each worker, each second    taken for a loss: removals of
        <number>                                                                     the last minute are sent again

Distribution gives its keys no TTL, and neither do we in its name: they stay until a delete, an eviction or a flush.
So a removal that never reached Redis leaves a Distribution node serving what was deleted; ours ask storage. Sharing
one Redis (and `db`) between two registries was never possible with Distribution's keys, and is not with ours.

Braces make a Redis Cluster keep keys on one server; Distribution's have none, so there steps are taken one by one.
"""

from __future__ import annotations

from cluster.oci.digest import Digest
from cluster.oci.reference import RepositoryName

UPLOAD_TTL = 24 * 3600  # seconds, as all of these
NODE_TTL = 15
NODES_TTL = 24 * 3600
EPOCH_TTL = 24 * 3600

NODES = "registry-cluster:{nodes}"


def blob(digest: Digest) -> str:
    return f"blobs::{digest}"


def repository_blobs(name: RepositoryName) -> str:
    return f"repository::{name}::blobs"


def repository_blob(name: RepositoryName, digest: Digest) -> str:
    return f"repository::{name}::blobs::{digest}"


def upload(uuid: str) -> str:
    return f"registry-cluster:upload:{uuid}"


def node(name: str) -> str:
    return f"{NODES}:{name}"


def turn(role: str) -> str:
    return f"registry-cluster:turn:{role}"


def failures(what: str) -> str:
    return f"registry-cluster:failures:{what}"


def epoch(witness: str) -> str:
    return f"registry-cluster:epoch:{witness}"
