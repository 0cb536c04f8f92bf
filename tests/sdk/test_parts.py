"""The SDK's pure parts: quantities against the server's own reader, events, answers, deliveries, options of pace."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.quantities import QuantityError, format_micros, parse_json
from engine.core.times import parse_instant
from stripemeter.answers import Answer, NoAnswer, outcome_of, retry_after_seconds
from stripemeter.delivery import Delivery, Pace, wait_seconds
from stripemeter.events import Outgoing, draft, wire_text
from stripemeter.quantities import decimal_text
from stripemeter.results import batch_result

PACE = Pace(0.1, 30.0, None, 4, 10_000)
NOW_US = 1_767_225_600_000_000


def half() -> float:
    return 0.5


def server_micros(text: str) -> int | None:
    """What the server makes of a text; None for a refusal."""
    try:
        micros = parse_json(json.dumps(text).encode())
    except QuantityError:
        return None
    return micros if micros >= 0 else None


def sdk_text(quantity: object) -> str | None:
    try:
        return decimal_text(quantity)
    except ValueError:
        return None


numbers_in_text = st.from_regex(
    r"[-+ ]?[0-9]{0,17}(\.[0-9]{0,8})?([eE][-+]?[0-9]{1,3})?", fullmatch=True
)


@given(numbers_in_text | st.text(max_size=10))
def test_a_text_is_taken_exactly_if_the_server_takes_it(text: str) -> None:
    found, wanted = sdk_text(text), server_micros(text)
    if wanted == 0 and text.startswith("-"):
        return  # the server takes minus nothing
    if found is not None and wanted is None:
        # Digits that an exponent moves out are counted by the server as written.
        assert "e" in text.lower()
        return
    assert (found is None) == (wanted is None), (text, found, wanted)
    if found is not None:
        assert server_micros(found) == wanted


@given(
    st.floats()
    | st.floats(min_value=0, max_value=1e16)
    | st.integers(0, 10**6).map(lambda n: n / 100)
)
def test_a_float_is_taken_by_its_shortest_text_or_refused(number: float) -> None:
    found = sdk_text(number)
    exact = Decimal(repr(number))
    fits = exact.is_finite() and 0 <= exact < 10**15 and exact == exact.quantize(Decimal("1e-6"))
    assert (found is not None) == fits
    if found is not None:
        assert Decimal(found) == exact
        assert server_micros(found) == int(exact.scaleb(6))


@given(
    st.decimals(allow_nan=True, allow_infinity=True, places=None) | st.decimals(0, 10**15, places=6)
)
def test_a_decimal_is_taken_by_its_value_or_refused(number: Decimal) -> None:
    found = sdk_text(number)
    if found is None:
        assert (
            not number.is_finite()
            or number < 0
            or number >= 10**15
            or (number != number.quantize(Decimal("1e-6")))
        )
    else:
        assert Decimal(found) == number
        micros = server_micros(found)
        assert micros is not None
        assert format_micros(micros) == format(Decimal(found).normalize(), "f") or micros == 0


@given(st.integers(-5, 10**16))
def test_an_integer_is_taken_in_its_bounds(number: int) -> None:
    assert sdk_text(number) == (str(number) if 0 <= number < 10**15 else None)


def test_integers_of_other_libraries_are_taken_and_bools_are_not() -> None:
    numpy = pytest.importorskip("numpy")
    assert decimal_text(numpy.int64(7)) == "7"
    assert decimal_text(numpy.float64(0.1)) == "0.1"
    for wrong in (True, None, b"1", [1], 1j):
        assert sdk_text(wrong) is None


@given(
    st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)),  # noqa: DTZ001 - the test adds the zone
    st.integers(-14 * 60, 14 * 60),
)
def test_an_instant_is_the_servers_to_the_microsecond(naive: datetime, minutes: int) -> None:
    aware = naive.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    event = json.loads(wire_text(draft("m", "c", 1, None, aware, None, "k", None), '"t"'))
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert parse_instant(event["ts"]) == (aware - epoch) // timedelta(microseconds=1)


@given(
    st.text(min_size=1, max_size=20),
    st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text(), max_size=3),
)
def test_the_text_of_an_event_is_ascii_json_that_says_what_was_given(
    name: str, meta: dict[str, Any]
) -> None:
    try:
        event = draft(name, name, "1.50", name, None, meta, name, NOW_US * 1000)
    except ValueError:
        assert any(0xD800 <= ord(letter) < 0xE000 for letter in name)
        return
    text = wire_text(event, '"tenant"')
    assert text.isascii()
    sent = json.loads(text)
    assert sent["metric"] == sent["customerRef"] == sent["resourceId"] == name
    assert sent["meta"] == meta
    assert sent["ts"] == "2026-01-01T00:00:00.000000Z"
    told = Outgoing(text).event()
    assert (told.quantity, told.idempotency_key, told.meta) == ("1.50", name, meta)


@pytest.mark.parametrize("meta", [{"a": float("nan")}, {"a": object()}, {"a": "x" * 70_000}])
def test_meta_that_is_no_json_is_refused_with_its_name(meta: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="meta"):
        draft("m", "c", 1, None, None, meta, "k", None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        ("1.5", 1.5),
        ("999999999", 3600.0),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2020 00:00:30 GMT", 0.0),
        ("soon", None),
        ("-1", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_retry_after_is_read_in_both_forms_and_bounded(text: str, seconds: float | None) -> None:
    assert retry_after_seconds({"retry-after": text}, NOW_US) == seconds


def test_waits_double_to_their_bound_with_half_of_them_drawn() -> None:
    assert [wait_seconds(PACE, n, None, lambda: 0.0) for n in (1, 2, 3, 50, 5000)] == [
        0.05,
        0.1,
        0.2,
        15.0,
        15.0,
    ]
    assert wait_seconds(PACE, 1, None, lambda: 0.999) < 0.1
    assert wait_seconds(PACE, 1, 9.0, half) >= 9.0


def test_any_answer_of_any_kind_settles_nothing_that_was_not_said(rng: random.Random) -> None:
    for _ in range(300):
        status = rng.choice([100, 200, 200, 201, 204, 301, 400, 404, 408, 413, 429, 500, 503, 599])
        body = rng.choice(
            [
                b"",
                b"{",
                b"[]",
                b"null",
                b'{"results": 3}',
                b'{"results": [{}]}',
                b"\xff",
                b"[" * 9999,
                b'{"results": [{"status": "what"}]}',
                b'{"detail": 7}',
                b'{"results": [1, 2]}',
            ]
        )
        outcome = type(outcome_of(Answer(status, {}, body), 1, NOW_US)).__name__
        if status == 200 or status >= 500 or status in (408, 429):
            assert outcome == "Again"
        else:
            assert outcome == ("Split" if status in (400, 413) else "Refused")


@pytest.mark.parametrize("status", [400, 413])
def test_a_batch_splits_to_the_event_that_spoils_it_and_keeps_the_order(status: int) -> None:
    batch = [Outgoing(f'"{number}"', number) for number in range(11)]
    delivery = Delivery(batch, PACE._replace(batch_events_max=100), half)
    sent: list[int] = []
    while (body := delivery.body()) is not None:
        events = [int(text) for text in json.loads(body)["events"]]
        if 6 in events:
            delivery.take(Answer(status, {}, b"{}"), NOW_US)
            continue
        sent += events
        results = {"results": [{"status": "accepted"}] * len(events)}
        delivery.take(Answer(200, {}, json.dumps(results).encode()), NOW_US)
    assert sent == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10]
    over = delivery.settlements()
    assert sorted(one.outgoing.row or 0 for one in over) == list(range(11))
    assert [one.outgoing.row for one in over if one.verdict.status == "refused"] == [6]
    assert delivery.unsettled() == []


def test_a_body_is_the_same_until_its_outcome_is_known() -> None:
    delivery = Delivery([Outgoing("1"), Outgoing("2")], PACE, half)
    first = delivery.body()
    for answer in (NoAnswer("reset"), Answer(503, {}, b""), Answer(200, {}, b"<html>")):
        assert delivery.take(answer, NOW_US) > 0
        assert delivery.body() == first
        assert delivery.settlements() == []
    assert delivery.retries == 3


def test_attempts_that_are_used_up_give_up_what_has_not_left_yet_too() -> None:
    pace = PACE._replace(attempts_max=2, batch_events_max=1)
    delivery = Delivery([Outgoing("1"), Outgoing("2"), Outgoing("3")], pace, half)
    results = json.dumps({"results": [{"status": "accepted"}]}).encode()
    delivery.take(Answer(200, {}, results), NOW_US)
    delivery.take(NoAnswer("reset"), NOW_US)
    assert delivery.take(NoAnswer("reset"), NOW_US) == 0
    assert delivery.body() is None
    over = delivery.settlements()
    assert [one.verdict.status for one in over] == ["accepted", "given up", "given up"]
    with pytest.raises(Exception, match="2 events") as raised:
        batch_result(over, ["a", "b", "c"])
    assert getattr(raised.value, "idempotency_keys", None) == ("b", "c")
