"""Digests: what is one, and digest states in Go's form, compared with hashlib at random cuts."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DigestInvalid
from cluster.oci.digest import (
    ALGORITHMS,
    RESUMABLE,
    Digest,
    new_hasher,
    parse_algorithm,
    restore_hasher,
)

HEX = "0123456789abcdef"
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
BLOCK = {"sha256": 64, "sha512": 128}
STATE_SIZE = {"sha256": 108, "sha512": 204}

algorithms = st.sampled_from(sorted(ALGORITHMS))
digests = st.one_of(
    *(st.from_regex(f"{name}:[{HEX}]{{{size}}}", fullmatch=True) for name, size in ALGORITHMS.items())
)


@given(digests)
def test_a_digest_reads_back_as_it_was_written(text: str) -> None:
    digest = Digest.parse(text)
    assert str(digest) == text
    assert digest == Digest(*text.split(":"))


@given(st.binary(max_size=300), algorithms)
def test_the_digest_of_bytes_is_what_hashlib_says(content: bytes, algorithm: str) -> None:
    assert str(Digest.of(content, algorithm)) == f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256",
        "sha256:",
        f"sha256:{EMPTY[:-1]}",
        f"sha256:{EMPTY}0",
        f"sha256:{EMPTY.upper()}",
        f"SHA256:{EMPTY}",
        f"sha512:{EMPTY}",
        f"sha384:{EMPTY * 2}"[: 7 + 96],
        f"md5:{EMPTY[:32]}",
        f"sha256+b64:{EMPTY}",
        f"sha256:{EMPTY[:-1]}g",
        f"sha256:{EMPTY}\n",
        f" sha256:{EMPTY}",
        f"sha256: {EMPTY[1:]}",
        f"sha256:{EMPTY[:-2]}..",
        "sha256:../../../../etc/passwd",
        f"sha256:{EMPTY[:-5]}/data",
        f"sha256:{EMPTY[:-1]}\0",
        f"sha256:{EMPTY[:-1]}\u0661",  # a digit, but not an ASCII one
        f"sha256:{EMPTY}:{EMPTY}",
        "\ud800",
        "sha256:" + "0" * 100_000,
    ],
)
def test_what_is_not_exactly_a_digest_is_refused_with_a_short_reason(text: str) -> None:
    with pytest.raises(DigestInvalid) as caught:
        Digest.parse(text)
    assert len(str(caught.value.detail)) < 2000


@given(digests, st.integers(0, 200), st.characters())
def test_one_strange_character_anywhere_is_enough_to_refuse_a_digest(text: str, place: int, strange: str) -> None:
    place %= len(text) + 1
    altered = text[:place] + strange + text[place:]
    with pytest.raises(DigestInvalid):
        Digest.parse(altered)


@given(st.text(max_size=100))
def test_parsing_any_text_gives_a_digest_or_its_refusal(text: str) -> None:
    try:
        digest = Digest.parse(text)
    except DigestInvalid:
        return
    assert str(digest) == text


@pytest.mark.parametrize("text", ["", "sha1", "SHA256", "sha384", "sha256 ", "sha256\0"])
def test_an_algorithm_that_is_not_stored_is_refused(text: str) -> None:
    with pytest.raises(DigestInvalid):
        parse_algorithm(text)


def test_the_algorithms_that_are_stored_are_those_of_the_specification() -> None:
    assert [parse_algorithm(name) for name in ("sha256", "sha512")] == ["sha256", "sha512"]


def test_digest_states_can_be_had_wherever_these_tests_run() -> None:
    assert set(ALGORITHMS) == RESUMABLE, "without libcrypto every chunked push would be read back"


@given(algorithms, st.binary(max_size=700), st.integers(0, 700), st.integers(0, 700))
def test_a_hasher_taken_up_from_its_state_ends_as_if_it_had_never_stopped(
    algorithm: str, content: bytes, first: int, second: int
) -> None:
    cuts = sorted((min(first, len(content)), min(second, len(content))))
    hasher = new_hasher(algorithm)
    hasher.update(content[: cuts[0]])
    for start, stop in ((cuts[0], cuts[1]), (cuts[1], len(content))):
        state = hasher.state()
        assert state is not None
        assert len(state) == STATE_SIZE[algorithm]
        restored = restore_hasher(algorithm, state, start)
        assert restored is not None
        restored.update(content[start:stop])
        hasher = restored
    assert hasher.hexdigest() == hashlib.new(algorithm, content).hexdigest()


@given(algorithms, st.lists(st.binary(max_size=200), max_size=8))
def test_asking_a_hasher_for_its_digest_does_not_change_it(algorithm: str, pieces: list[bytes]) -> None:
    hasher, plain = new_hasher(algorithm), hashlib.new(algorithm)
    for piece in pieces:
        hasher.update(piece)
        plain.update(piece)
        assert hasher.hexdigest() == plain.hexdigest()


def test_a_state_is_laid_out_as_go_lays_it_out() -> None:
    """The first words are in the standard (FIPS 180-4, 5.3.3); three bytes later only the block differs."""
    words = "6a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19"
    hasher = new_hasher("sha256")
    assert hasher.state() == b"sha\x03" + bytes.fromhex(words) + bytes(64) + bytes(8)
    hasher.update(b"abc")
    assert hasher.state() == b"sha\x03" + bytes.fromhex(words) + b"abc".ljust(64, b"\0") + struct.pack(">Q", 3)


def test_a_sha512_state_is_laid_out_as_go_lays_it_out() -> None:
    words = (
        "6a09e667f3bcc908bb67ae8584caa73b3c6ef372fe94f82ba54ff53a5f1d36f1"
        "510e527fade682d19b05688c2b3e6c1f1f83d9abfb41bd6b5be0cd19137e2179"
    )
    hasher = new_hasher("sha512")
    hasher.update(b"abc")
    assert hasher.state() == b"sha\x07" + bytes.fromhex(words) + b"abc".ljust(128, b"\0") + struct.pack(">Q", 3)


def test_a_state_of_more_bytes_than_a_32_bit_length_can_count_goes_on_rightly() -> None:
    """A blob of more than 512 MiB: its length in bits fills the second word of libcrypto's counter."""
    for algorithm in ALGORITHMS:
        hasher = new_hasher(algorithm)
        hasher.update(b"x")
        state = hasher.state()
        assert state is not None
        size = 5 * 2**30 + 1
        forged = state[:-8] + struct.pack(">Q", size)
        restored = restore_hasher(algorithm, forged, size)
        assert restored is not None
        assert restored.state() == forged


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_state_that_is_not_exactly_of_this_algorithm_and_offset_is_not_taken_up(algorithm: str) -> None:
    content = b"y" * 1000
    hasher = new_hasher(algorithm)
    hasher.update(content)
    state = hasher.state()
    assert state is not None
    assert restore_hasher(algorithm, state, 1000) is not None
    other = "sha512" if algorithm == "sha256" else "sha256"
    assert restore_hasher(other, state, 1000) is None
    assert restore_hasher(algorithm, state, 999) is None
    for broken in (b"", state[:-1], state[1:], state + b"\0", b"\0" + state, b"xxx\x03" + state[4:]):
        assert restore_hasher(algorithm, broken, 1000) is None
    short_but_with_the_right_end = b"sha\x03" + struct.pack(">Q", 1000)
    assert restore_hasher(algorithm, short_but_with_the_right_end, 1000) is None


@given(algorithms, st.binary(max_size=250), st.integers(0, 2**64 - 1))
def test_any_bytes_are_a_state_or_none_and_never_an_error(algorithm: str, state: bytes, offset: int) -> None:
    restore_hasher(algorithm, state, offset)


FORMS = {"sha256": (b"sha\x03", 8 * 4 + 64), "sha512": (b"sha\x07", 8 * 8 + 128)}  # Go's: words, pending block


@given(algorithms, st.data(), st.integers(0, 2**61 - 5))
def test_whatever_words_a_state_has_it_is_taken_up_and_goes_on(
    algorithm: str, data: st.DataObject, offset: int
) -> None:
    magic, size = FORMS[algorithm]
    inner = data.draw(st.binary(min_size=size, max_size=size))
    hasher = restore_hasher(algorithm, magic + inner + struct.pack(">Q", offset), offset)
    assert hasher is not None
    before = hasher.hexdigest()
    assert len(before) == ALGORITHMS[algorithm]
    hasher.update(b"more")
    assert hasher.hexdigest() != before
    state = hasher.state()
    assert state is not None
    assert state[-8:] == struct.pack(">Q", offset + 4)


@given(algorithms, st.binary(max_size=700))
def test_a_view_of_a_buffer_is_hashed_as_its_bytes_are(algorithm: str, content: bytes) -> None:
    hasher = new_hasher(algorithm)
    hasher.update(memoryview(bytearray(b"before" + content + b"behind"))[6:-6])
    assert hasher.hexdigest() == hashlib.new(algorithm, content).hexdigest()
