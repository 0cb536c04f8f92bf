"""Half of a surrogate pair: the event that holds it is refused, whatever surrounds the escape, and no other."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.events import Refusal, SentEvent
from gateway.ingest_decoding import CLOUD_EVENT_BATCH, BodyLimits, Unreadable, read_events
from gateway.surrogates import REFUSED, values_of

LIMITS = BodyLimits(1 << 20, 1000, 32)
GOOD = '{"metric":"m","customerRef":"c","quantity":1.50,"idempotencyKey":"good"}'


def read(*events: str) -> Sequence[SentEvent | Refusal]:
    return read_events(
        f'{{"events":[{",".join(events)}]}}'.encode(), "application/json", LIMITS
    ).events


@pytest.mark.parametrize(
    "half", ["\\ud83d", "\\uDE00", "\\ud83d\\ud83d\\ude00", "x\\\\\\ud83dx", "\\ud83d\\u0041"]
)
@pytest.mark.parametrize("field", ["meta", "customerRef", "idempotencyKey"])
def test_an_event_with_half_a_pair_is_refused_and_its_neighbours_are_read(
    half: str, field: str
) -> None:
    event = {"metric": "m", "customerRef": "c", "quantity": 1, "idempotencyKey": "k", field: "HERE"}
    text = json.dumps(event).replace("HERE", half)
    if field == "meta":
        text = text.replace(f'"{half}"', f'{{"a":"{half}"}}')
    first, bad, last = read(GOOD, text, GOOD)
    assert bad == Refusal(None if field == "idempotencyKey" else "k", REFUSED)
    for good in (first, last):
        assert isinstance(good, SentEvent)
        assert (bytes(good.quantity), good.idempotency_key) == (b"1.50", "good")


@pytest.mark.parametrize(
    "whole", ["\\ud83d\\ude00", "\\\\ud83d", "\\\\\\\\ud83d", "\\uD83D\\uDE00\\ud83d\\ude00"]
)
def test_a_whole_pair_and_an_escaped_backslash_are_texts_like_others(whole: str) -> None:
    (event,) = read(GOOD.replace('"c"', f'"{whole}"'))
    assert isinstance(event, SentEvent)
    assert event.customer_ref == json.loads(f'"{whole}"')


def test_another_fault_beside_a_half_is_still_the_bodys() -> None:
    with pytest.raises(Unreadable):
        read(GOOD, GOOD.replace('"c"', '"\\ud83d"'), "{")
    with pytest.raises(Unreadable):
        read(GOOD.replace('"c"', '"\\u12"'))


def test_a_mark_is_one_that_the_body_does_not_spell() -> None:
    spelt = GOOD.replace('"c"', '"\\ue000\\ue001"')
    one, bad, same = read(spelt, GOOD.replace('"c"', '"\\ud800"'), spelt)
    assert isinstance(one, SentEvent)
    assert isinstance(same, SentEvent)
    assert one.customer_ref == "\ue000\ue001"
    assert isinstance(bad, Refusal)
    every = GOOD.replace(
        '"c"', '"' + "".join(f"\\u{code:04x}" for code in range(0xE000, 0xE100)) + '"'
    )
    with pytest.raises(Unreadable):
        read(every, GOOD.replace('"c"', '"\\ud800"'))


def test_cloud_events_with_a_half_are_refused_alone() -> None:
    good = '{"specversion":"1.0","id":"1","source":"s","type":"m","subject":"c"}'
    body = (
        f"[{good},{good.replace(chr(34) + 'c' + chr(34), chr(34) + chr(92) + 'ud800' + chr(34))}]"
    )
    first, bad = read_events(body.encode(), CLOUD_EVENT_BATCH, LIMITS).events
    assert isinstance(first, SentEvent)
    assert bad == Refusal(None, REFUSED)


@given(st.lists(st.text(st.characters(codec=None), max_size=6), min_size=1, max_size=5))
def test_exactly_the_texts_that_hold_a_half_are_found(texts: list[str]) -> None:
    halves = [not text.isascii() and _is_half(text) for text in texts]
    body = json.dumps(texts).encode()
    decode = msgspec.json.Decoder(list[msgspec.Raw]).decode
    found = values_of(body, decode)
    if not any(halves):
        assert found is None
        return
    assert found is not None
    assert [value.has_half for value in found] == halves
    for text, value in zip(texts, found, strict=True):
        assert value.has_half or json.loads(value.data) == text


def _is_half(text: str) -> bool:
    try:
        # Python spells a pair of halves that stand side by side like the character they make together.
        json.loads(json.dumps(text)).encode()
    except UnicodeEncodeError:
        return True
    return False
