"""The ports of shared state, and their treaty. Adapters: commands.py on redis.py, and memory.py.

The services see a store through breaker.py only, which never fails and never waits long.

What holds for every method:
- Nothing here is ever the truth, and nothing is excluded by it: both live on storage (promise P4). All of it may be
  gone, be of an hour ago, or differ between two nodes, at any moment, without a word.
- A read answers None (or leaves out) what is not known. That never means that a thing does not exist.
- It may fail with StateError, and with nothing else; then it is not known whether it took place.
- It may be called again, by anyone: a write that took place twice is the same as one that took place once (but for
  `count_failure`).
- It has no limit of its own on the time it takes: whoever calls it sets one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.errors import StateError
from cluster.oci.digest import Digest
from cluster.oci.manifest import Descriptor
from cluster.oci.reference import RepositoryName


class WrongServer(StateError):
    """Who answered is not the one to ask, or no longer: it must be looked up again."""


class Refused(StateError):
    """The server answers, but says no to this command: others may well be answered."""


@dataclass(frozen=True, slots=True)
class UploadHint:
    """The digests of an upload half-way. Right for ever, since no published byte changes."""

    offset: int  # bytes that the states have seen
    states: Mapping[str, bytes]  # by algorithm


@dataclass(frozen=True, slots=True)
class Node:
    """What a node says of itself."""

    name: str
    url: str
    version: str
    pid: int  # the leader of its process group
    started: float  # seconds since the epoch, as the next
    clock: float  # what its clock said when it said this
    signs: str  # fingerprint of the key that signs its uploads
    accepts: tuple[str, ...]  # fingerprints of all keys that it takes
    storage: str  # the mark that this start of it left on its storage (identity.py)


@dataclass(frozen=True, slots=True)
class Turn:
    """Who did a job last."""

    node: str
    at: float  # seconds since the epoch, on that node's clock


class Descriptors(Protocol):
    """Type and size of blobs, shared with Distribution nodes. Never asked whether a blob is present (rule B3)."""

    async def remember(self, name: RepositoryName, digest: Digest, descriptor: Descriptor) -> None:
        """A repository got this content; `digest` is how the client calls it."""

    async def forget(self, name: RepositoryName, digests: Sequence[Digest]) -> None:
        """Content left a repository; `digests` are all its names there. One step, except in a Redis Cluster."""


class Announcements(Protocol):
    """What is told of blobs that come and go, to Distribution nodes: in the background, by `Descriptors`."""

    async def remember(
        self,
        name: RepositoryName,
        digest: Digest,
        descriptor: Descriptor,
        is_there: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """A repository got this content. Afterwards `is_there` is asked, and what has gone meanwhile is forgotten.

        Otherwise it could be written after another node had deleted it, and nothing would ever take it away.
        """

    async def forget(self, name: RepositoryName, digests: Sequence[Digest]) -> None:
        """Content left a repository; `digests` are all its names there."""


class UploadHints(Protocol):
    """Digests half-way, so that no node has to read an upload again to finish it (rule U5)."""

    async def save_hint(self, uuid: str, hint: UploadHint) -> None:
        """Replace what is known. Called after the segment that it ends with was published, never before."""

    async def load_hint(self, uuid: str) -> UploadHint | None:
        """What was saved last; of an earlier offset too."""

    async def drop_hint(self, uuid: str) -> None:
        """The upload has ended."""


class Nodes(Protocol):
    """Who is there."""

    async def beat(self, node: Node) -> None:
        """A node is alive; it is forgotten `keys.NODE_TTL` seconds after the last call."""

    async def nodes(self) -> list[Node]:
        """Those that were alive lately, by name."""


class Turns(Protocol):
    """Who did a job lately, so that not every node does it too. To be used under the job's lock on storage."""

    async def last_turn(self, role: str) -> Turn | None:
        """The last time the job was done, if that was within the `seconds` it was recorded for."""

    async def record_turn(self, role: str, turn: Turn, seconds: float) -> None:
        """The job was done, and need not be done again for that long."""


class Failures(Protocol):
    """How often something went wrong lately; the one thing here that taking place twice changes."""

    async def count_failure(self, what: str, seconds: float) -> None:
        """Once more. They are forgotten together, that long after the first one."""

    async def failures(self, what: str) -> int:
        """How often since then."""


class Epoch(Protocol):
    """Tells whether the store still has what was written last."""

    async def advance(self, witness: str, number: int) -> int:
        """Write a number, and return the one that was there before (0 for none).

        A witness that counts up, and gets back less than it wrote last, has seen a flush or an older copy.
        """


class Store(Descriptors, UploadHints, Nodes, Turns, Failures, Epoch, Protocol):
    """All of it, on one back end."""

    async def close(self) -> None:
        """Let go of every connection; calls under way fail."""
