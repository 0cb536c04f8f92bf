"""Quantities: what is accepted, what is refused and how it is told, the one text and the one log form."""

from __future__ import annotations

import time

import msgspec
import pytest

from engine.core.quantities import (
    EXT_QUANTITY,
    EXT_TOTAL,
    TOTAL_BYTES_MAX,
    QuantityError,
    format_micros,
    pack,
    pack_total,
    parse_json,
    to_json,
    unpack_ext,
)

Ext = msgspec.msgpack.Ext

ACCEPTED = [
    (b"0", 0),
    (b"-0", 0),
    (b"0.0", 0),
    (b"-0.000000", 0),
    (b"1", 1_000_000),
    (b"100", 100_000_000),
    (b"0.1", 100_000),
    (b"0.000001", 1),
    (b"-0.000001", -1),
    (b"-3", -3_000_000),
    (b"10.000000", 10_000_000),
    (b"1e3", 1_000_000_000),
    (b"1E+3", 1_000_000_000),
    (b"1.5e1", 15_000_000),
    (b"1000e-3", 1_000_000),
    (b"1e-6", 1),
    (b"0.0000000001e10", 1_000_000),
    (b"1e14", 10**20),
    (b"0.1e15", 10**20),
    (b"0e400", 0),
    (b"-0e99999999999999999999", 0),
    (b"999999999999999", 999_999_999_999_999_000_000),
    (b"999999999999999.999999", 999_999_999_999_999_999_999),
    (b"-999999999999999.999999", -999_999_999_999_999_999_999),
    (b'"0.3"', 300_000),
    (b'"100"', 100_000_000),
    (b'"-2.5"', -2_500_000),
    (b'"1e3"', 1_000_000_000),
    (b'"\\u0031.5"', 1_500_000),
]


@pytest.mark.parametrize(("raw", "micros"), ACCEPTED)
def test_a_decimal_is_read_exactly(raw: bytes, micros: int) -> None:
    assert parse_json(raw) == micros


NOT_NUMBERS = [
    b"", b"true", b"false", b"null", b"{}", b"[]", b"[1]", b"NaN", b"Infinity", b"-Infinity", b"-",
    b"+1", b".5", b"5.", b"-.5", b"1.e3", b"1e", b"1e+", b"00", b"01", b"-01", b"007.5", b"1_0", b"1_0.5",
    b" 1", b"1 ", b"1\n", b"1.5\n", b"0x10", b"1,5", b"1.2.3", b"--1", b"1e3.5", b"1f",
    b'"', b'""', b'" 1"', b'"1 "', b'"1', b'1"', b'"+1"', b'".5"', b'"5."', b'"NaN"', b'"nan"', b'"Infinity"',
    b'"inf"', b'"1_0"', b'"01"', b'"true"', b'"\\"1\\""', b'"1\\n"', b'"\\x31"', b'"\\ud800"', b'"\\"',
    '"\u0661"'.encode(), "\u0661".encode(), '"\uff11"'.encode(), '"\u00b2"'.encode(), '"\u22121"'.encode(),
    b'"\\u0661"', b"{" + b"1" * 100 + b"}", b"[" * 100_000, b"\xff",
]  # fmt: skip


@pytest.mark.parametrize("raw", NOT_NUMBERS, ids=lambda raw: repr(raw[:20]))
def test_what_is_no_number_is_refused_with_an_example_of_one(raw: bytes) -> None:
    with pytest.raises(QuantityError, match=r"must be a JSON number or a string .* such as 12\.5"):
        parse_json(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"1.0000000",
        b"0.0000001",
        b"0.0000000",
        b"10e-7",
        b"1e-7",
        b"0e-7",
        b"1e-400",
        b'"0.1234567"',
        b"1.5e-6",
    ],
)
def test_more_than_six_fractional_digits_as_written_are_refused_not_rounded(raw: bytes) -> None:
    with pytest.raises(QuantityError, match="more than 6 digits after the decimal point"):
        parse_json(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"1000000000000000",
        b"-1000000000000000",
        b"1e15",
        b"1e400",
        b"-1e400",
        b"1e999999999999999999999999999999",
        b"10000000000000000000000000.5",
        b'"1000000000000000.000000"',
        b"9" * 64,
    ],
)
def test_a_size_of_ten_to_the_fifteen_or_more_is_refused(raw: bytes) -> None:
    with pytest.raises(QuantityError, match="must be below 10\\^15"):
        parse_json(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"1" * 5_000,
        b"1." + b"0" * 5_000,
        b"1e" + b"0" * 5_000,
        b'"' + b"\\u0031" * 100 + b'"',
        b"-" + b"1" * 64,
    ],
    ids=lambda raw: repr(raw[:8]),
)
def test_a_long_text_is_refused_by_its_length(raw: bytes) -> None:
    with pytest.raises(QuantityError, match="longer than 64 characters"):
        parse_json(raw)


@pytest.mark.parametrize(
    "raw", [b"1e400000000", b"9" * (1 << 20), b"0." + b"1" * (1 << 20), b'"' + b"9" * (1 << 20)]
)
def test_a_hostile_number_costs_no_more_than_reading_it(raw: bytes) -> None:
    started = time.perf_counter()
    with pytest.raises(QuantityError):
        parse_json(raw)
    assert time.perf_counter() - started < 0.05


def test_ten_times_a_tenth_is_one() -> None:
    assert sum(parse_json(b"0.1") for _ in range(10)) == parse_json(b"1")


def test_integers_beyond_two_to_the_53_are_exact() -> None:
    assert parse_json(b"9007199254740.993") == 9_007_199_254_740_993_000
    assert parse_json(b"900719925474099.000003") - parse_json(b"900719925474099.000002") == 1


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "0"),
        (100_000_000, "100"),
        (300_000, "0.3"),
        (-1, "-0.000001"),
        (-1_500_000, "-1.5"),
        (-2_000_000, "-2"),
        (10_000_000, "10"),
        (1_000_010, "1.00001"),
        (10**21 - 1, "999999999999999.999999"),
        (10**40, "1" + "0" * 34),
        (-(10**40) - 1, "-1" + "0" * 34 + ".000001"),
    ],
)
def test_text_is_plain_decimal_without_exponent_or_trailing_zeros(micros: int, text: str) -> None:
    assert format_micros(micros) == text
    assert msgspec.json.encode(to_json(micros, as_string=False)) == text.encode()
    assert msgspec.json.encode([to_json(micros, as_string=True)]) == f'["{text}"]'.encode()


GOLDEN = [
    (0, "00"),
    (-1, "ff"),
    (1_500_000, "ce0016e360"),
    (2**63 - 1, "cf7fffffffffffffff"),
    (-(2**63), "d38000000000000000"),
    (2**63, "d801" + "0000000000000000" + "8000000000000000"),
    (-(2**63) - 1, "d801" + "ffffffffffffffff" + "7fffffffffffffff"),
    (10**21 - 1, "d801" + "0000000000000036" + "35c9adc5de9fffff"),
    (-(10**21) + 1, "d801" + "ffffffffffffffc9" + "ca36523a21600001"),
]


@pytest.mark.parametrize(("micros", "encoded"), GOLDEN)
def test_the_log_form_of_a_quantity_has_its_golden_bytes(micros: int, encoded: str) -> None:
    assert msgspec.msgpack.encode(pack(micros)).hex() == encoded
    assert msgspec.msgpack.decode(bytes.fromhex(encoded), ext_hook=unpack_ext) == micros


@pytest.mark.parametrize(
    ("micros", "encoded"),
    [
        (2**63 - 1, "cf7fffffffffffffff"),
        (-(2**63), "d38000000000000000"),
        (2**63, "c70902" + "008000000000000000"),
        (-(2**63) - 1, "c70902" + "ff7fffffffffffffff"),
        (2**71 - 1, "c70902" + "7fffffffffffffffff"),
        (2**71, "c70a02" + "00800000000000000000"),
        (-(2**71), "c70902" + "800000000000000000"),
    ],
)
def test_the_snapshot_form_of_a_total_has_its_golden_bytes(micros: int, encoded: str) -> None:
    assert msgspec.msgpack.encode(pack_total(micros)).hex() == encoded
    assert msgspec.msgpack.decode(bytes.fromhex(encoded), ext_hook=unpack_ext) == micros


@pytest.mark.parametrize(
    ("code", "data"),
    [
        (0, bytes(16)),
        (3, (2**64).to_bytes(16, "big")),
        (-1, (2**64).to_bytes(16, "big")),
        (EXT_QUANTITY, b""),
        (EXT_QUANTITY, (2**64).to_bytes(9, "big")),
        (EXT_QUANTITY, (2**64).to_bytes(17, "big")),
        (EXT_QUANTITY, (2**63 - 1).to_bytes(16, "big")),
        (EXT_QUANTITY, (-(2**63)).to_bytes(16, "big", signed=True)),
        (EXT_QUANTITY, bytes(16)),
        (EXT_TOTAL, b""),
        (EXT_TOTAL, b"\x01"),
        (EXT_TOTAL, (2**63 - 1).to_bytes(9, "big")),
        (EXT_TOTAL, (-(2**63)).to_bytes(8, "big", signed=True)),
        (EXT_TOTAL, (2**64).to_bytes(10, "big")),
        (EXT_TOTAL, (-(2**64)).to_bytes(10, "big", signed=True)),
        (EXT_TOTAL, b"\x01" + bytes(TOTAL_BYTES_MAX)),
    ],
)
def test_every_form_that_is_not_the_canonical_one_is_refused(code: int, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"check|newer version"):
        unpack_ext(code, data)


def test_a_sum_does_not_pass_for_a_quantity_and_a_bug_does_not_pass_for_a_total() -> None:
    assert isinstance(pack(2**127 - 1), Ext)
    assert isinstance(pack(-(2**127)), Ext)
    for micros in (2**127, -(2**127) - 1):
        with pytest.raises(AssertionError):
            pack(micros)
    with pytest.raises(AssertionError):
        pack_total(1 << 511)
    with pytest.raises(AssertionError):
        format_micros(1 << 511)
