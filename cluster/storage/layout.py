"""Every path on storage, drawn once. Distribution's layout to the byte; what is ours begins with `_`.

Below `<rootdirectory>/docker/registry/v2/`:

    blobs/<alg>/<first 2 hex>/<hex>/data                       the bytes of blobs and manifests
    repositories/<name>/
        _layers/<alg>/<hex>/link                               the blob is in this repository
        _manifests/revisions/<alg>/<hex>/link                  the manifest is in this repository
        _manifests/tags/<tag>/current/link                     what the tag points to
        _manifests/tags/<tag>/index/<alg>/<hex>/link           every digest the tag has pointed to
        _manifests/_names/<tag>/<hex of a sha256>              ours: the sha512 by which the tag was pointed there
        _manifests/_locks/<tag>                                ours: who may write the tag (rule T1); never removed
        _referrers/<alg>/<hex of the subject>/sha256-<hex>     ours: descriptor of one referrer, as JSON
        _referrers/_seen                                       ours: which revisions were looked at for a subject
        _uploads/<uuid>/startedat                              when the upload began
        _uploads/<uuid>/data                                   its bytes, where Distribution took them
        _uploads/<uuid>/_seg/...                               ours: its bytes, where we took them (sessions.py)
        _uploads/<uuid>/hashstates/<alg>/<offset>              the digest so far
        _uploads/<uuid>/_states/<alg>/<offset>                 ours: the same where there is `data`
        _uploads/_gone.<uuid>.<16 hex>                         ours: a session that was set aside (rule U9)
    _cluster/secret                                            ours: the secret that a single node drew for itself
    _cluster/nodes/<name>                                      ours: the mark of a node (cluster/identity.py)
    _cluster/tmp/                                              ours: files on their way to their place
    _cluster/locks/<role>                                      ours: who purges

A `link` holds a digest, 71 bytes for sha256, without a newline. What lies under sha512 is a link to its sha256.
What is ours can be removed while no node runs, as it is rebuilt or costs a retry at most, with two exceptions:
`_uploads/<uuid>/_seg` holds chunks that were acknowledged, and without `_cluster/secret` no open upload goes on.
"""

from __future__ import annotations

import re

from cluster.oci.digest import ALGORITHMS, Digest
from cluster.oci.reference import RepositoryName, Tag

ROOT = "docker/registry/v2"  # below the configured root directory
REPOSITORIES = "repositories"
SECRET = "_cluster/secret"  # noqa: S105 - a path
TEMPORARY = "_cluster/tmp"
PURGER_LOCK = "_cluster/locks/purger"
NODES = "_cluster/nodes"
MANIFESTS_DIRECTORY = "_manifests"
UPLOADS_DIRECTORY = "_uploads"
LAYERS_DIRECTORY = "_layers"  # what a repository has once a blob came in, long before its first manifest

_GONE = "_gone."

# Directories that no registry removes once they are there: their own entry need be made durable only once. A name's
# components may be any words but begin with no `_`, so the first that does ends the name.
_ALGORITHM = "(?:sha256|sha512)"
_OF_MANIFESTS = rf"tags|_locks|_names|revisions(?:/{_ALGORITHM})?"
_OF_REPOSITORY = rf"_uploads|_referrers|_layers(?:/{_ALGORITHM})?|_manifests(?:/(?:{_OF_MANIFESTS}))?"
_PERMANENT = re.compile(
    r"_cluster(?:/(?:tmp|locks|nodes))?"
    rf"|blobs(?:/{_ALGORITHM}(?:/[0-9a-f]{{2}})?)?"
    rf"|repositories(?:(?:/[a-z0-9][^/]*)+(?:/(?:{_OF_REPOSITORY}))?)?"
)


def is_permanent(directory: str) -> bool:
    """Whether a directory stays for ever once it was made."""
    return _PERMANENT.fullmatch(directory) is not None


def is_final(path: str) -> bool:
    """Whether a file never changes once it is there: the data of blobs and manifests (rule B1)."""
    return path.startswith("blobs/")


def blob(digest: Digest) -> str:
    """The bytes themselves; the digest must be a sha256."""
    return f"blobs/{digest.algorithm}/{digest.encoded[:2]}/{digest.encoded}/data"


def layer_link(name: RepositoryName, digest: Digest) -> str:
    return f"repositories/{name}/_layers/{digest.algorithm}/{digest.encoded}/link"


def revision_link(name: RepositoryName, digest: Digest) -> str:
    return f"repositories/{name}/_manifests/revisions/{digest.algorithm}/{digest.encoded}/link"


def revisions(name: RepositoryName, algorithm: str) -> str:
    return f"repositories/{name}/_manifests/revisions/{algorithm}"


def manifests(name: RepositoryName) -> str:
    return f"repositories/{name}/{MANIFESTS_DIRECTORY}"


def tags(name: RepositoryName) -> str:
    return f"repositories/{name}/_manifests/tags"


def tag(name: RepositoryName, tag: Tag) -> str:
    return f"repositories/{name}/_manifests/tags/{tag}"


def tag_link(name: RepositoryName, tag: Tag) -> str:
    return f"repositories/{name}/_manifests/tags/{tag}/current/link"


def tag_index_link(name: RepositoryName, tag: Tag, digest: Digest) -> str:
    return f"repositories/{name}/_manifests/tags/{tag}/index/{digest.algorithm}/{digest.encoded}/link"


def tag_name(name: RepositoryName, tag: Tag, canonical: Digest) -> str:
    """How the tag's writer named the manifest that is this sha256; missing where no writer named it by sha512.

    One file for each manifest, so that it is there before the tag moves, and says nothing any more once the tag
    points to something else. Never removed, also not with its tag: who finds none knows that there was none.
    """
    return f"repositories/{name}/_manifests/_names/{tag}/{canonical.encoded}"


def tag_lock(name: RepositoryName, tag: Tag) -> str:
    return f"repositories/{name}/_manifests/_locks/{tag}"


def uploads(name: str) -> str:
    """Of a repository, also of one whose name only Distribution takes."""
    return f"repositories/{name}/{UPLOADS_DIRECTORY}"


def upload(name: RepositoryName, uuid: str) -> str:
    return f"{uploads(name)}/{uuid}"


def set_aside(session: str, mark: str) -> str:
    """Where a session goes that ends: beside the others, under a name that is no UUID (rules U9, U10)."""
    parent, _, uuid = session.rpartition("/")
    return f"{parent}/{_GONE}{uuid}.{mark}"


def is_set_aside(session: str) -> bool:
    """Whether that is where a session went."""
    return session.rpartition("/")[2].startswith(_GONE)


def upload_started_at(session: str) -> str:
    """`session` is what `upload` returned, here and below."""
    return f"{session}/startedat"


def upload_data(session: str) -> str:
    return f"{session}/data"


SHARED_STATES, OWN_STATES = "hashstates", "_states"
"""The folders of a session's digest states: what Distribution reads and writes, and what nobody but us does."""


def upload_states(session: str, algorithm: str, folder: str = SHARED_STATES) -> str:
    return f"{session}/{folder}/{algorithm}"


def referrers(name: RepositoryName, subject: Digest) -> str:
    return f"repositories/{name}/_referrers/{subject.algorithm}/{subject.encoded}"


def referrer(name: RepositoryName, subject: Digest, digest: Digest) -> str:
    return f"{referrers(name, subject)}/{file_name(digest)}"


def seen(name: RepositoryName) -> str:
    """The hex of one sha256 a line. Two writers may lose each other's lines: then these are looked at again."""
    return f"repositories/{name}/_referrers/_seen"


def file_name(digest: Digest) -> str:
    """A digest as one path component."""
    return f"{digest.algorithm}-{digest.encoded}"


def digest_of(file_name: str) -> Digest | None:
    """The digest that `file_name` was made from, or None for a name that is none."""
    algorithm, _, encoded = file_name.partition("-")
    if len(encoded) != ALGORITHMS.get(algorithm) or set(encoded) - set("0123456789abcdef"):
        return None
    return Digest(algorithm, encoded)
