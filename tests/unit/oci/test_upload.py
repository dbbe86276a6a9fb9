"""The `_state` token, Distribution's to the byte, and the rule for where a chunk may start."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.errors import RangeInvalid, RegistryError, SizeInvalid, UploadInvalid
from cluster.oci.upload import UploadState, check_chunk, differs, sign, verify, wrong_offset

NAME, UUID = "a/b", "0b1c2d3e-1111-4222-8333-444455556666"
SECRET = b"secret"
STATE = UploadState(NAME, UUID, 5, "2024-01-02T03:04:05Z")
DISTRIBUTIONS = (
    "DVsvSlWWKEDiwszhZlRFXTWkursTVaBE6bhyPHseoBl7Ik5hbWUiOiJhL2IiLCJVVUlEIjoiMGIxYzJkM2UtMTExMS00MjIyLTgzMzMtNDQ0"
    "NDU1NTU2NjY2IiwiT2Zmc2V0Ijo1LCJTdGFydGVkQXQiOiIyMDI0LTAxLTAyVDAzOjA0OjA1WiJ9"
)

states = st.builds(
    UploadState,
    st.just(NAME),
    st.just(UUID),
    st.integers(0, 2**63 - 1),
    st.text(max_size=40).filter(lambda text: text.isprintable()),
    st.sampled_from(["sha256", "sha512"]),
)


def signed(content: bytes | Mapping[str, object], secret: bytes = SECRET) -> str:
    """A token over anything, with a right signature."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(hmac.new(secret, text, hashlib.sha256).digest() + text).decode()


def test_a_token_is_distributions_to_the_byte() -> None:
    assert sign(STATE, SECRET) == DISTRIBUTIONS
    assert verify(DISTRIBUTIONS, [SECRET], NAME, UUID) == STATE


@given(states, st.binary(min_size=1, max_size=64))
def test_a_token_says_what_was_signed(state: UploadState, secret: bytes) -> None:
    assert verify(sign(state, secret), [secret], NAME, UUID) == state


@given(states)
def test_any_secret_of_the_ring_is_accepted_and_no_other(state: UploadState) -> None:
    ring = [b"new", b"old"]
    for secret in ring:
        assert verify(sign(state, secret), ring, NAME, UUID) == state
    for outsider in (b"", b"ne", b"new ", b"another"):
        with pytest.raises(UploadInvalid):
            verify(sign(state, outsider), ring, NAME, UUID)


@given(states, st.data())
def test_a_token_with_one_byte_changed_or_cut_off_is_refused(state: UploadState, data: st.DataObject) -> None:
    raw = bytearray(base64.urlsafe_b64decode(sign(state, SECRET)))
    place = data.draw(st.integers(0, len(raw) - 1))
    cut = base64.urlsafe_b64encode(raw[:place]).decode()
    raw[place] ^= data.draw(st.integers(1, 255))
    for token in (cut, base64.urlsafe_b64encode(raw).decode()):
        with pytest.raises(UploadInvalid):
            verify(token, [SECRET], NAME, UUID)


@given(st.text(max_size=200))
@example("")
@example("====")
@example("\u0661" * 40)
@example("\ud800")
@example("A" * 1_000_000)
@example(DISTRIBUTIONS[:-1])
@example(DISTRIBUTIONS + "\n")
@example(" " + DISTRIBUTIONS)
@example(DISTRIBUTIONS.replace("D", "%44", 1))
def test_what_nobody_signed_is_refused_whatever_it_is(token: str) -> None:
    with pytest.raises(UploadInvalid):
        verify(token, [SECRET], NAME, UUID)


def test_a_token_of_another_repository_or_another_upload_is_refused() -> None:
    for name, uuid in (("a/c", UUID), ("a", UUID), (NAME, UUID[:-1] + "7"), ("", "")):
        with pytest.raises(UploadInvalid):
            verify(DISTRIBUTIONS, [SECRET], name, uuid)


@pytest.mark.parametrize(
    ("fields", "offset"),
    [
        ({"StartedAt": "x", "Offset": 7, "UUID": UUID, "Name": NAME}, 7),
        ({"name": NAME, "uuid": UUID, "offset": 7, "startedat": "x"}, 7),
        ({"Name": NAME, "UUID": UUID}, 0),
        ({"Name": NAME, "UUID": UUID, "Offset": 7, "Something": {"else": [1]}}, 7),
    ],
)
def test_a_token_may_be_written_as_go_would_read_it(fields: dict[str, object], offset: int) -> None:
    assert verify(signed(fields), [SECRET], NAME, UUID).offset == offset


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"5",
        b'"text"',
        b"[]",
        b"{}",
        b"{",
        b"\xff\xfe",
        b'{"Name": "a/b"}',
        {"Name": NAME, "UUID": UUID, "Offset": -1},
        {"Name": NAME, "UUID": UUID, "Offset": 1.5},
        {"Name": NAME, "UUID": UUID, "Offset": True},
        {"Name": NAME, "UUID": UUID, "Offset": "5"},
        {"Name": NAME, "UUID": UUID, "Offset": None},
        {"Name": NAME, "UUID": UUID, "StartedAt": 5},
        {"Name": [NAME], "UUID": UUID},
        {"Name": NAME, "UUID": None},
        {"Name": NAME, "UUID": UUID, "Algorithm": "md5"},
        {"Name": NAME, "UUID": UUID, "Algorithm": ["sha256"]},
        {"Name": NAME, "UUID": UUID, "Algorithm": {}},
        b"[" * 2500,  # as deep as a token may be long
    ],
)
def test_a_signed_text_that_is_no_state_is_refused(content: bytes | dict[str, object]) -> None:
    with pytest.raises(UploadInvalid):
        verify(signed(content), [SECRET], NAME, UUID)


def test_the_algorithm_is_written_only_where_it_is_not_the_usual_one() -> None:
    """So that Distribution, which knows no such field, sees its own token in the usual case."""
    plain = base64.urlsafe_b64decode(sign(STATE, SECRET))[32:]
    assert list(json.loads(plain)) == ["Name", "UUID", "Offset", "StartedAt"]
    other = UploadState(NAME, UUID, 5, "", "sha512")
    assert json.loads(base64.urlsafe_b64decode(sign(other, SECRET))[32:])["Algorithm"] == "sha512"
    assert verify(sign(other, SECRET), [SECRET], NAME, UUID).algorithm == "sha512"


@pytest.mark.parametrize(
    ("token_offset", "extent", "content_range", "content_length"),
    [
        (0, 0, None, None),
        (0, 0, None, 10),
        (0, 0, "0-9", 10),
        (0, 0, "0-9", None),
        (10, 10, "10-19", 10),
        (10, 10, None, 5),
    ],
)
def test_a_chunk_that_starts_where_the_session_ends_is_taken(
    token_offset: int, extent: int, content_range: str | None, content_length: int | None
) -> None:
    state = STATE.at(token_offset)
    assert check_chunk(state, extent, content_range, content_length) is None


@pytest.mark.parametrize(
    ("token_offset", "extent", "content_range", "content_length", "error"),
    [
        (0, 10, None, 5, RangeInvalid),  # a repeated chunk
        (10, 0, None, 5, RangeInvalid),  # what was acknowledged is not there
        (0, 0, "10-19", 10, RangeInvalid),  # ahead
        (10, 10, "0-9", 10, RangeInvalid),  # wrapped to the start
        (10, 10, "5-14", 10, RangeInvalid),
        (10, 10, "11-20", 10, RangeInvalid),
        (0, 10, "10-19", 10, RangeInvalid),  # a right range, an old Location
        (10, 10, "bytes 10-19/*", 10, RangeInvalid),
        (10, 10, "19-10", 10, RangeInvalid),
        (10, 10, "", 10, RangeInvalid),
        (10, 10, "20-29", 5, RangeInvalid),  # wrong twice: where to go on is what helps
        (10, 10, "10-19", 9, SizeInvalid),
        (10, 10, "10-19", 0, SizeInvalid),
    ],
)
def test_a_chunk_that_starts_elsewhere_is_refused_with_what_is_true(
    token_offset: int,
    extent: int,
    content_range: str | None,
    content_length: int | None,
    error: type[RegistryError],
) -> None:
    with pytest.raises(error) as caught:
        check_chunk(STATE.at(token_offset), extent, content_range, content_length)
    if error is RangeInvalid:
        assert caught.value.headers["Range"] == f"0-{max(extent - 1, 0)}"


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_chunk_is_taken_only_where_token_range_and_storage_agree(
    token_offset: int, extent: int, start: int, length: int
) -> None:
    header = f"{start}-{start + length - 1}"
    if token_offset == extent == start:
        check_chunk(STATE.at(token_offset), extent, header, length)
    else:
        with pytest.raises(RangeInvalid):
            check_chunk(STATE.at(token_offset), extent, header, length)


def test_the_true_range_goes_with_the_refusal() -> None:
    assert wrong_offset(0, "why").headers == {"Range": "0-0"}
    assert wrong_offset(4096, "why").headers == {"Range": "0-4095"}


@pytest.mark.parametrize(("content_range", "size"), [(None, 0), (None, 7), ("0-0", 1), ("5-9", 5)])
def test_a_body_of_the_size_that_was_said(content_range: str | None, size: int) -> None:
    assert differs(content_range, size) is None


@pytest.mark.parametrize("size", [0, 4, 6])
def test_a_body_of_another_size_than_its_content_range(size: int) -> None:
    assert differs("5-9", size) == f"the body has {size} bytes, Content-Range is 5-9"
