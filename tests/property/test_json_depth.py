"""Depth of JSON against a reader of one byte at a time, on JSON, on token soup and on any bytes."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.json_depth import deeper_than


def measured(body: bytes) -> tuple[int, bool]:
    """(greatest depth up to the first backslash outside of a string, whether there is none), byte by byte."""
    depth = deepest = 0
    inside = escaped = False
    for byte in body:
        if escaped:
            escaped = False
        elif inside:
            escaped = byte == ord("\\")
            inside = byte != ord('"')
        elif byte == ord('"'):
            inside = True
        elif byte == ord("\\"):
            return deepest, False
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest, True


texts = st.text('[]{}"\\a\u00fc\n', max_size=6)
documents = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=40,
)


def depth_of(document: object) -> int:
    if isinstance(document, list):
        return 1 + max(map(depth_of, document), default=0)
    if isinstance(document, dict):
        return 1 + max(map(depth_of, document.values()), default=0)
    return 0


@settings(max_examples=100)
@given(documents, st.booleans(), st.sampled_from([0, 40, 400]))
def test_the_depth_of_a_document_is_found_exactly(
    document: object, ascii_only: bool, neighbours: int
) -> None:
    whole = [document] + [[] for _ in range(neighbours)]
    body = json.dumps(whole, ensure_ascii=ascii_only).encode()
    depth = depth_of(whole)
    assert measured(body) == (depth, True), "the reference itself"
    assert not deeper_than(body, depth)
    if depth > 1:
        assert deeper_than(body, depth - 1)


soups = st.lists(
    st.sampled_from(
        [b"[", b"]", b"{", b"}", b'"', b'"', b"\\", b'\\"', b"\\\\", b"a", b",", b"\xc3\xbc"]
    ),
    max_size=400,
).map(b"".join)


@settings(max_examples=100)
@given(soups | st.binary(max_size=200), st.integers(1, 12))
def test_any_bytes_are_measured_right_up_to_their_first_error(body: bytes, depth_max: int) -> None:
    depth, whole = measured(body)
    if whole:
        assert deeper_than(body, depth_max) == (depth > depth_max)
    elif depth > depth_max:
        assert deeper_than(body, depth_max)


@settings(max_examples=100)
@given(
    st.lists(
        st.sampled_from([b"[", b"{", b'"', b'"]"', b'"\\""', b'"a"', b"]", b","]), max_size=400
    ).map(b"".join)
)
def test_soup_without_stray_backslashes_is_measured_exactly(body: bytes) -> None:
    depth, whole = measured(body)
    if whole:
        assert not deeper_than(body, max(depth, 1))
        if depth > 1:
            assert deeper_than(body, depth - 1)
