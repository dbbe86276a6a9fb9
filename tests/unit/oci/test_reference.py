"""Repository names, tags, references and upload ids: the grammars of the distribution-spec, nothing wider."""

from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.errors import DigestInvalid, NameInvalid, TagInvalid, UploadUnknown
from cluster.oci.digest import Digest
from cluster.oci.reference import (
    RepositoryName,
    Tag,
    is_uuid,
    parse_reference,
    parse_upload_id,
)

# Written a second time, from the text of the specification, so that the two can disagree.
NAME = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*", re.ASCII)
TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)
HEX = "0" * 64

words = st.text("abz019", min_size=1, max_size=4)
separators = st.sampled_from([".", "_", "__", "-", "--", "---", "/", "/"])
names = st.tuples(words, st.lists(st.tuples(separators, words).map("".join), max_size=8).map("".join)).map("".join)
tags = st.tuples(st.text("abzAZ09_", min_size=1, max_size=1), st.text("abzAZ09_.-", max_size=127)).map("".join)
near_names = st.text("abz019./_-A~ \0", max_size=24)
near_tags = st.text("abzAZ09._-/:+ \0\n", max_size=130)


@given(names)
def test_every_name_of_the_grammar_is_taken_as_it_is(text: str) -> None:
    assert NAME.fullmatch(text)
    name = RepositoryName.parse(text)
    assert name == text
    assert isinstance(name, RepositoryName)


@given(near_names)
@example("a___b")
@example("a__b")
@example("a---b")
@example("a..b")
@example("a._b")
@example("a\n")
def test_a_name_is_taken_exactly_when_the_grammar_has_it(text: str) -> None:
    if NAME.fullmatch(text):
        assert RepositoryName.parse(text) == text
    else:
        with pytest.raises(NameInvalid):
            RepositoryName.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        "A",
        "library/Ubuntu",
        "..",
        "../a",
        "a/../b",
        "a/./b",
        ".a",
        "a.",
        "-a",
        "a-",
        "_a",
        "a/_layers",
        "_manifests",
        "a_",
        "a b",
        "a\\b",
        "a%2Fb",
        "a\0b",
        "a\tb",
        "localhost:5000/a",
        "ä",
        "a/\u0661",
        "ａ",  # noqa: RUF001 - the full-width letter is the point
        "\ud800",
    ],
)
def test_names_that_would_leave_their_place_or_look_like_another_are_refused(text: str) -> None:
    with pytest.raises(NameInvalid):
        RepositoryName.parse(text)


def test_a_name_may_have_255_characters_and_no_more() -> None:
    assert RepositoryName.parse("a" * 255)
    assert RepositoryName.parse("a/" * 127 + "a") == "a/" * 127 + "a"
    for text in ("a" * 256, "a/" * 128 + "a", "a" * 1_000_000):
        with pytest.raises(NameInvalid) as caught:
            RepositoryName.parse(text)
        assert str(len(text)) in str(caught.value.detail)


def test_a_long_run_of_separators_is_refused_at_once() -> None:
    """Repeated groups in the grammar must not make the matcher try every way to divide the text."""
    for text in ("a" + "-" * 250 + "!", "a_" * 127 + "!", "a-" * 127, "a/" * 127 + "-"):
        with pytest.raises(NameInvalid):
            RepositoryName.parse(text)


@given(tags)
def test_every_tag_of_the_grammar_is_taken_as_it_is(text: str) -> None:
    assert TAG.fullmatch(text)
    assert Tag.parse(text) == text


@given(near_tags)
@example("a" * 128)
@example("a" * 129)
@example(".")
@example("..")
@example("-")
@example("a\n")
def test_a_tag_is_taken_exactly_when_the_grammar_has_it(text: str) -> None:
    if TAG.fullmatch(text):
        assert Tag.parse(text) == text
    else:
        with pytest.raises(TagInvalid) as caught:
            Tag.parse(text)
        assert len(str(caught.value.detail)) < 1000


def test_a_reference_is_a_digest_as_soon_as_it_holds_a_colon() -> None:
    assert parse_reference(f"sha256:{HEX}") == Digest("sha256", HEX)
    assert parse_reference("v1.0") == Tag("v1.0")
    assert parse_reference("sha256") == Tag("sha256")
    for text in ("sha256:zz", "sha256:", "a:b", "md5:" + "0" * 32, "sha256:baddigeststring", ":"):
        with pytest.raises(DigestInvalid):
            parse_reference(text)
    with pytest.raises(TagInvalid):
        parse_reference("")


@given(st.uuids())
def test_an_upload_id_is_a_uuid_in_its_usual_form(number: uuid.UUID) -> None:
    text = str(number)
    assert is_uuid(text)
    assert parse_upload_id(text) == text
    for other in (text.upper().replace("-", "_"), text[:-1], text + "0", f"{{{text}}}", number.hex, text + "\n"):
        assert not is_uuid(other)


@given(st.text(max_size=60))
@example("..")
@example("_gone.0b1c2d3e-1111-4222-8333-444455556666.0011223344556677")
@example("0b1c2d3e-1111-4222-8333-44445555666g")
@example("0B1C2D3E-1111-4222-8333-444455556666")
def test_an_upload_id_of_another_form_is_an_upload_that_nobody_began(text: str) -> None:
    if not is_uuid(text):
        with pytest.raises(UploadUnknown):
            parse_upload_id(text)
