"""Digests, and hashers whose half-way state can be put aside and taken up by another process.

Owns the digest grammar, the supported algorithms, and Go's binary form of a SHA-2 state (what Distribution
keeps in `hashstates/`). Does not know where states are kept, nor which bytes are hashed.
OCI image-spec, "Digests"; OCI distribution-spec, "Definitions".
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import re
import struct
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.errors import DigestInvalid

CANONICAL = "sha256"
# Hexadecimal characters of each algorithm we store. Upper case is not allowed: one content, one name.
ALGORITHMS = {"sha256": 64, "sha512": 128}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


@dataclass(frozen=True, slots=True)
class Digest:
    """A content address, `algorithm:encoded`. Made by `parse` or `of` only, so it is always well formed."""

    algorithm: str
    encoded: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read a digest; DigestInvalid for anything but a supported algorithm with its lower-case hex."""
        if _DIGEST.fullmatch(text) is None:
            wanted = " or ".join(f"{name}:<{size} lower-case hex>" for name, size in ALGORITHMS.items())
            raise DigestInvalid(f"{text[:200]!r} is not a digest: wanted {wanted}", message="invalid digest")
        algorithm, _, encoded = text.partition(":")
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, content: bytes, algorithm: str = CANONICAL) -> Digest:
        """The digest of these bytes."""
        return cls(algorithm, hashlib.new(algorithm, content).hexdigest())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"


def parse_algorithm(text: str) -> str:
    """The value of `digest-algorithm` (OCI end-4c): one that we store, else DigestInvalid."""
    if text not in ALGORITHMS:
        raise DigestInvalid(
            f"{text[:40]!r}: wanted one of {', '.join(ALGORITHMS)}", message="unsupported digest algorithm"
        )
    return text


class Hasher(Protocol):
    """A digest in the making."""

    def update(self, data: bytes | memoryview, /) -> Any:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """The encoded digest of what came so far; the hasher can go on."""

    def state(self) -> bytes | None:
        """What came so far in Go's binary form, or None where the platform cannot tell."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """How one algorithm's state looks in libcrypto's context and in Go's binary form."""

    magic: bytes
    word: str  # struct code of one state word
    block: int  # bytes of the pending block
    prefix: str  # of libcrypto's functions


_SHAPES = {
    "sha256": _Shape(b"sha\x03", "I", 64, "SHA256"),
    "sha512": _Shape(b"sha\x07", "Q", 128, "SHA512"),
}


def _load_libcrypto() -> ctypes.CDLL | None:
    name = ctypes.util.find_library("crypto")
    try:
        return ctypes.CDLL(name) if name else None
    except OSError:
        return None


_libcrypto = _load_libcrypto()


class _ResumableHasher:
    """SHA-2 on libcrypto's own context, which hashlib hides: eight words, a bit count, a pending block.

    libcrypto lays SHA256_CTX out as h[8], Nl, Nh, data[64], num, md_len and SHA512_CTX as h[8], Nl, Nh, p[128],
    num, md_len; words are in machine order. `available` compares the outcome with hashlib before it is trusted.
    """

    def __init__(self, algorithm: str) -> None:
        shape = self._shape = _SHAPES[algorithm]
        word = struct.calcsize(shape.word)
        self._context = ctypes.create_string_buffer(8 * word + 2 * word + shape.block + 8)
        self._update = getattr(_libcrypto, f"{shape.prefix}_Update")
        self._final = getattr(_libcrypto, f"{shape.prefix}_Final")
        self._size = ALGORITHMS[algorithm] // 2
        getattr(_libcrypto, f"{shape.prefix}_Init")(self._context)

    def update(self, data: bytes | memoryview, /) -> None:
        """Take in more bytes. A view must be one of memory that may be written."""
        if data:
            start = data if isinstance(data, bytes) else ctypes.byref(ctypes.c_char.from_buffer(data))
            # ctypes lets go of the interpreter lock for the call, so hashing runs beside the event loop.
            self._update(self._context, start, ctypes.c_size_t(len(data)))

    def hexdigest(self) -> str:
        copy = ctypes.create_string_buffer(self._context.raw, len(self._context))
        out = ctypes.create_string_buffer(self._size)
        self._final(out, copy)
        return out.raw.hex()

    def _fields(self) -> str:
        return f"=8{self._shape.word}2{self._shape.word}{self._shape.block}sII"

    def state(self) -> bytes | None:
        shape = self._shape
        *rest, pending, used, _ = struct.unpack(self._fields(), self._context.raw)
        words, (low, high) = rest[:8], rest[8:]
        bits = low | high << (8 * struct.calcsize(shape.word))
        block = pending[:used].ljust(shape.block, b"\0")
        return shape.magic + struct.pack(f">8{shape.word}{shape.block}sQ", *words, block, bits // 8)

    def restore(self, state: bytes) -> bool:
        """Take up a state in Go's form; False when it is not one of this algorithm."""
        shape = self._shape
        form = f">8{shape.word}{shape.block}sQ"
        if not state.startswith(shape.magic) or len(state) != len(shape.magic) + struct.calcsize(form):
            return False
        *words, pending, length = struct.unpack(form, state[len(shape.magic) :])
        width = 8 * struct.calcsize(shape.word)
        bits = length * 8
        low, high = bits & ((1 << width) - 1), bits >> width
        packed = struct.pack(self._fields(), *words, low, high, pending, length % shape.block, self._size)
        ctypes.memmove(self._context, packed, len(packed))
        return True


class _PlainHasher:
    """hashlib, where libcrypto's context cannot be had: right, but a state must be made by reading again."""

    def __init__(self, algorithm: str) -> None:
        self._hash = hashlib.new(algorithm)
        self.update = self._hash.update
        self.hexdigest = self._hash.hexdigest

    def state(self) -> bytes | None:
        return None


def _resumable(algorithm: str) -> bool:
    """Whether libcrypto's context behaves here as we think: half-way, saved, restored, compared with hashlib."""
    if _libcrypto is None or not hasattr(_libcrypto, f"{_SHAPES[algorithm].prefix}_Init"):
        return False
    sample = bytes(range(256)) * 3
    for cut in (0, 1, 64, 127, 300):
        first, second = _ResumableHasher(algorithm), _ResumableHasher(algorithm)
        first.update(sample[:cut])
        state = first.state()
        if state is None or not second.restore(state):
            return False
        second.update(sample[cut:])
        if second.hexdigest() != hashlib.new(algorithm, sample).hexdigest():
            return False
    return True


RESUMABLE = frozenset(name for name in ALGORITHMS if _resumable(name))


def new_hasher(algorithm: str) -> Hasher:
    """A hasher at byte 0."""
    return _ResumableHasher(algorithm) if algorithm in RESUMABLE else _PlainHasher(algorithm)


def restore_hasher(algorithm: str, state: bytes, offset: int) -> Hasher | None:
    """A hasher that goes on at `offset`, or None when `state` is not a state of exactly that many bytes."""
    if algorithm not in RESUMABLE or state[-8:] != struct.pack(">Q", offset):
        return None
    hasher = _ResumableHasher(algorithm)
    return hasher if hasher.restore(state) else None
