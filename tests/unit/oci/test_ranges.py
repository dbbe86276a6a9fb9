"""`Range` of a download and `Content-Range` of a chunk: tables, and properties that hold for every text."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.errors import RangeInvalid
from cluster.oci.ranges import format_chunk_range, parse_chunk_range, parse_range

sizes = st.integers(0, 5000)
offsets = st.integers(0, 6000)


@pytest.mark.parametrize(
    ("header", "spans"),
    [
        ("bytes=0-0", [(0, 1)]),
        ("bytes=0-2047", [(0, 2048)]),
        ("bytes=500-1499", [(500, 1500)]),
        ("bytes=500-", [(500, 2048)]),
        ("bytes=-500", [(1548, 2048)]),
        ("bytes=-9999", [(0, 2048)]),
        ("bytes=2000-5000", [(2000, 2048)]),
        ("bytes=2047-2047", [(2047, 2048)]),
        ("BYTES=0-1", [(0, 2)]),
        ("bytes =0-1", [(0, 2)]),
        ("bytes= 0-1", [(0, 2)]),
        ("bytes=0-1,4-5", [(0, 2), (4, 6)]),
        ("bytes=0-1 , 4-5", [(0, 2), (4, 6)]),
        ("bytes=0-1,,4-5,", [(0, 2), (4, 6)]),
        ("bytes=4-5,0-1", [(4, 6), (0, 2)]),
        ("bytes=0-1,9000-9001", [(0, 2)]),
        ("bytes=0-1,-1", [(0, 2), (2047, 2048)]),
        ("bytes=00-01", [(0, 2)]),
        # A unit that is not known, or no unit, is as if the header were not there (RFC 9110, 14.2).
        ("bits=0-1", None),
        ("0-1", None),
        ("", None),
        ("items", None),
        # More together than there is: the whole is cheaper.
        ("bytes=0-,0-", None),
        ("bytes=" + ",".join(["0-0"] * 33), None),
    ],
)
def test_a_range_of_a_2048_byte_blob_names_these_spans(header: str, spans: list[tuple[int, int]] | None) -> None:
    assert parse_range(header, 2048) == spans


@pytest.mark.parametrize(
    "header",
    [
        "bytes=2048-",
        "bytes=5000-10000",
        "bytes=500-0",
        "bytes=-0",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=a-b",
        "bytes=1",
        "bytes=1-2-3",
        "bytes=--1",
        "bytes=-1-",
        "bytes=+1-2",
        "bytes=0x1-0x2",
        "bytes=1.0-2",
        "bytes=0-1,x",
        "bytes=\u0661-\u0662",
        "bytes=\u00b2-",
        "bytes=" + "9" * 19 + "-" + "9" * 20,
        "bytes=" + "9" * 5000 + "-",
    ],
)
def test_a_range_that_is_malformed_or_overlaps_nothing_is_416_with_the_size(header: str) -> None:
    with pytest.raises(RangeInvalid) as caught:
        parse_range(header, 2048)
    assert caught.value.headers["Content-Range"] == "bytes */2048"
    assert len(str(caught.value.detail)) < 1000


@given(sizes, st.lists(st.tuples(offsets, offsets), min_size=1, max_size=5))
def test_spans_are_what_slicing_would_give(size: int, pairs: list[tuple[int, int]]) -> None:
    content = range(size)
    pairs = [(min(pair), max(pair)) for pair in pairs]
    expected = [content[first : last + 1] for first, last in pairs]
    overlapping = [part for part in expected if len(part)]
    header = "bytes=" + ",".join(f"{first}-{last}" for first, last in pairs)
    if not size:
        assert parse_range(header, size) is None
        return
    if not overlapping:
        with pytest.raises(RangeInvalid):
            parse_range(header, size)
        return
    spans = parse_range(header, size)
    if sum(map(len, overlapping)) > size:
        assert spans is None
    else:
        assert spans is not None
        assert [content[start:stop] for start, stop in spans] == overlapping


@given(sizes, offsets)
def test_a_suffix_is_the_end_of_the_content(size: int, count: int) -> None:
    if size == 0:
        assert parse_range(f"bytes=-{count}", size) is None
    elif count == 0:
        with pytest.raises(RangeInvalid):
            parse_range(f"bytes=-{count}", size)
    else:
        assert parse_range(f"bytes=-{count}", size) == [(max(size - count, 0), size)]


@given(st.text("bytes=0123456789-, \u0663\0", max_size=60), sizes)
@example("bytes=" + "0-0," * 2000, 10)
def test_no_text_gives_a_span_outside_of_the_content(header: str, size: int) -> None:
    try:
        spans = parse_range(header, size)
    except RangeInvalid:
        return
    for start, stop in spans or []:
        assert 0 <= start < stop <= size


@given(st.integers(0, 10**18), st.integers(1, 10**18))
def test_a_chunk_range_counts_both_of_its_ends(start: int, length: int) -> None:
    assert parse_chunk_range(f"{start}-{start + length - 1}") == (start, start + length)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "-",
        "0",
        "0-",
        "-1",
        "-1-5",
        "5-4",
        "1-0",
        "0--1",
        "0-1-2",
        "bytes 0-1/2",
        "bytes 0-1/*",
        "bytes=0-1",
        " 0-1",
        "0-1 ",
        "0 - 1",
        "+0-1",
        "0x0-0x1",
        "0-1\n",
        "a-b",
        "\u0660-\u0661",
        "\u00b9-\u00b2",
        "0-" + "9" * 20,
        "0" * 20 + "-1",
        "9" * 100_000 + "-" + "9" * 100_000,
    ],
)
def test_a_chunk_range_of_another_form_is_refused_with_a_short_reason(header: str) -> None:
    with pytest.raises(RangeInvalid) as caught:
        parse_chunk_range(header)
    assert len(str(caught.value.detail)) < 1000


@given(st.text("0123456789-bytes /*\u0661", max_size=50))
def test_any_text_is_a_chunk_range_of_at_least_one_byte_or_refused(header: str) -> None:
    try:
        start, stop = parse_chunk_range(header)
    except RangeInvalid:
        return
    assert 0 <= start < stop <= 10**19


@pytest.mark.parametrize(("size", "text"), [(0, "0-0"), (1, "0-0"), (2, "0-1"), (2048, "0-2047")])
def test_a_session_tells_the_last_byte_that_it_holds(size: int, text: str) -> None:
    assert format_chunk_range(size) == text


@given(st.integers(1, 10**18))
def test_what_a_session_tells_reads_back_as_what_it_holds(size: int) -> None:
    assert parse_chunk_range(format_chunk_range(size)) == (0, size)
