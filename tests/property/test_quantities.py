"""Quantities against independent readers: fractions, the standard library's JSON grammar, msgpack round trips."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from fractions import Fraction

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.quantities import (
    QuantityError,
    format_micros,
    pack,
    pack_total,
    parse_json,
    unpack_ext,
)

LIMIT = 10**21
# Around every edge: int64, 2^53, the limit, the one between whole and fraction.
EDGES = [0, 10**6, 10**15, 2**53, 2**53 * 10**6, 2**63, 2**64, 10**20, LIMIT, 2**71, 2**127, 10**40]
micros_near_edges = st.builds(
    lambda edge, offset, sign: sign * (edge + offset),
    st.sampled_from(EDGES),
    st.integers(-10, 10),
    st.sampled_from([1, -1]),
)
quantities = (micros_near_edges | st.integers(-LIMIT, LIMIT)).filter(
    lambda micros: abs(micros) < LIMIT
)
totals = micros_near_edges | st.integers(-(2**200), 2**200)

digits = st.text("0123456789", min_size=1, max_size=18) | st.sampled_from(
    ["0", "9" * 15, "1" + "0" * 15]
)
number_texts = st.builds(
    lambda sign, whole, fraction, exponent: sign + (whole.lstrip("0") or "0") + fraction + exponent,
    st.sampled_from(["", "-"]),
    digits,
    st.just("") | st.text("01239", min_size=1, max_size=8).map(lambda text: "." + text),
    st.just("")
    | st.builds(
        "{}{}{}".format, st.sampled_from("eE"), st.sampled_from(["", "+", "-"]), st.integers(0, 30)
    ),
)


def expected(text: str) -> int | None:
    """The micros of a text in JSON's grammar, or None where the contract refuses it; by fractions alone."""
    mantissa, _, exponent = text.lower().partition("e")
    written = len(mantissa.partition(".")[2]) - int(exponent or 0)
    value = Fraction(text)
    if written > 6 or abs(value) >= 10**15:
        return None
    micros = value * 10**6
    assert micros.denominator == 1
    return int(micros)


def parsed(raw: bytes) -> int | None:
    try:
        return parse_json(raw)
    except QuantityError:
        return None


@settings(max_examples=200)
@given(number_texts)
def test_a_number_and_the_same_number_in_a_string_mean_what_fractions_say(text: str) -> None:
    assert parsed(text.encode()) == expected(text)
    assert parsed(f'"{text}"'.encode()) == expected(text)


@settings(max_examples=200)
@given(quantities)
def test_text_and_micros_round_trip(micros: int) -> None:
    text = format_micros(micros)
    assert parse_json(text.encode()) == micros
    assert parse_json(f'"{text}"'.encode()) == micros
    assert Decimal(text) == Decimal(micros).scaleb(-6)


@settings(max_examples=200)
@given(totals)
def test_the_text_of_a_total_is_exact_and_plain(micros: int) -> None:
    text = format_micros(micros)
    assert Fraction(text) == Fraction(micros, 10**6)
    assert re.fullmatch(r"-?(0|[1-9]\d*)(\.\d{0,5}[1-9])?", text)


def refuse_constant(name: str) -> None:
    raise ValueError(name)


def json_number(text: str) -> str | None:
    """The text, if it is a JSON number and nothing else, as the standard library's reader sees it."""
    try:
        value = json.loads(text, parse_int=str, parse_float=str, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return None
    return text if value == text and not text.startswith('"') else None


@settings(max_examples=200)
@given(
    st.text('0123456789+-.eE"_ \\un\n\t\u0663aNI', max_size=12)
    | number_texts.map(lambda text: f'"{text} "')
)
def test_what_is_accepted_is_json_and_what_is_refused_breaks_a_stated_rule(text: str) -> None:
    number = json_number(text)
    if number is None and text[:1] == '"':
        try:
            inner = json.loads(text)
        except ValueError:
            inner = ""
        number = json_number(inner)
    assert parsed(text.encode()) == (None if number is None else expected(number))


@settings(max_examples=200)
@given(st.lists(quantities, max_size=20))
def test_sums_of_what_was_read_are_exact(values: list[int]) -> None:
    assert sum(parse_json(format_micros(value).encode()) for value in values) == sum(values)


@settings(max_examples=200)
@given(micros_near_edges | st.integers(-(2**127), 2**127 - 1))
def test_the_log_form_of_a_quantity_round_trips(micros: int) -> None:
    if -(2**127) <= micros < 2**127:
        encoded = msgspec.msgpack.encode(pack(micros))
        assert msgspec.msgpack.decode(encoded, ext_hook=unpack_ext) == micros


@settings(max_examples=200)
@given(totals)
def test_the_snapshot_form_of_a_total_round_trips(micros: int) -> None:
    encoded = msgspec.msgpack.encode(pack_total(micros))
    assert msgspec.msgpack.decode(encoded, ext_hook=unpack_ext) == micros


@settings(max_examples=200)
@given(st.sampled_from([1, 2]), st.binary(max_size=70) | st.binary(min_size=16, max_size=16))
def test_an_extension_is_either_refused_or_written_back_as_the_same_bytes(
    code: int, data: bytes
) -> None:
    try:
        micros = unpack_ext(code, data)
    except ValueError:
        return
    packed = pack(micros) if code == 1 else pack_total(micros)
    assert packed == msgspec.msgpack.Ext(code, data)
