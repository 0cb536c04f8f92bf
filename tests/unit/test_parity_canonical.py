"""Canonical JSON, seals and signatures of certificates: one meaning, one sequence of bytes, or a refusal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.witness.canonical import (
    Signer,
    Unreadable,
    canonical,
    is_signed,
    parse,
    seals_of,
    sections,
)

SIGNER = Signer(bytes(range(32)))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=5))
def test_what_is_written_is_read_back_the_same_and_written_the_same(
    document: dict[str, object],
) -> None:
    try:
        data = canonical(document)
    except UnicodeEncodeError:
        return  # half of a surrogate pair is no text
    assert parse(data) == document
    assert canonical(parse(data)) == data


def test_names_are_sorted_and_nothing_is_escaped_that_need_not_be() -> None:
    document = {"b": [1, None, True], "a": {"z": 'é\n"/\u007f\u2028', "k": -5}}
    wanted = '{"a":{"k":-5,"z":"é\\n\\"/\u007f\u2028"},"b":[1,null,true]}'
    assert canonical(document) == wanted.encode()


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":2}',
        '{"a":1.0}',
        '{"a":1e3}',
        '{"a":-0}',
        '{"a":NaN}',
        '{"a":Infinity}',
        '{"a":9007199254740992}',
        '{"a":' + "9" * 5000 + "}",
        '{"a":"\\ud800"}',
        "[1]",
        "",
        "{",
        '{"a":' * 100_000 + "1" + "}" * 100_000,
    ],
)
def test_what_two_readers_could_read_differently_is_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        parse(text.encode())


def test_what_is_not_utf8_is_refused() -> None:
    with pytest.raises(Unreadable, match="UTF-8"):
        parse(b'{"a":"\xff"}')


def test_every_part_of_a_document_is_in_exactly_one_section() -> None:
    document = {
        "scope": {"x": 1},
        "chains": [{"a": 1, "b": {"c": 2}, "d": [3]}, 7],
        "targets": [],
        "seals": {"no": "no"},
        "signature": "no",
    }
    assert dict(sections(document)) == {
        "scope": {"x": 1},
        "chains": 2,
        "chains[0]": {"a": 1},
        "chains[0].b": {"c": 2},
        "chains[0].d": [3],
        "chains[1]": 7,
        "targets": 0,
    }
    assert seals_of(document).keys() == dict(sections(document)).keys()


def test_equal_sections_at_other_places_have_other_seals() -> None:
    seals = seals_of({"chains": [{"a": 1}, {"a": 1}]})
    assert seals["chains[0]"] != seals["chains[1]"]


def test_a_signature_is_of_one_purpose_one_key_and_one_document() -> None:
    signed = SIGNER.signed("one", {"a": 1})
    assert is_signed("one", signed)
    assert not is_signed("other", signed)
    assert not is_signed("one", signed | {"a": 2})
    other = Signer(bytes(32)).signed("one", {"a": 1})
    assert not is_signed("one", signed | {"publicKey": other["publicKey"]})
    assert not is_signed("one", signed | {"signature": signed["signature"].upper()})
    for broken in ({}, {"signature": 5}, {"signature": "zz"}, {"publicKey": "00"}):
        assert not is_signed("one", {"a": 1} | broken)


def test_a_signer_does_not_show_its_key() -> None:
    assert bytes(range(32)).hex() not in repr(SIGNER)
    assert SIGNER.public_key in repr(SIGNER)
