"""Events by column are events one by one: the same answers, the same log, the same totals.

Two servers get the same requests. One takes every request event by event, as all did before there was another way; the
other takes the large ones by column. What they answer and what their logs hold is compared byte by byte.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import msgspec
import pytest

from engine.core import row_columns
from engine.core.events import EventLimits, SentEvent, accept
from engine.core.events_in_bulk import EventTaker, Said
from engine.core.times import format_instant
from gateway import ingest
from gateway.auth import ANONYMOUS
from gateway.ingest import Ingest, IngestResponse
from gateway.ingest_decoding import BodyLimits, Unreadable, _brackets, read_events
from gateway.ingest_headers import IngestHeaders
from gateway.problems import Problem
from tests.helpers.served import START_US, served

SEEDS = range(16)
JSON = "application/json"
NASTY: dict[str, list[Any]] = {
    "tenantId": ["u", "x" * 255, "x" * 256, "", 5],
    "metric": ["", "x" * 100, "x" * 101, "m n", "\u00e9", None],
    "customerRef": ["", 'a"b', "a\\b", "a\nb", "c\0d", "x" * 255, "x" * 256, "\U0001f600", 7],
    "resourceId": ["r", "x" * 255, "x" * 256, "r\0", None],
    "quantity": [0, -1, 1.5, "1.50", "+1", " 5", "abc", "", "\uff11", "1e3", True, None, [1], {"a": 1}, "9" * 16,
                 msgspec.Raw(b"0.1234567"), msgspec.Raw(b"1E-3"), msgspec.Raw(b"-0"), msgspec.Raw(b"[1,\n2]"),
                 msgspec.Raw(b'"\\u0031"'), msgspec.Raw(b'{"a":\n{"b":1}}'), msgspec.Raw(b"1" + b"0" * 15),
                 msgspec.Raw(b"  7\n"), msgspec.Raw(b"0." + b"0" * 62)],
    "ts": [None, "", "now", "2026-01-31T09:59:00.5+00:00", "2026-01-31t09:59:00z", "2016-12-31T23:59:60Z",
           "2026-01-31T09:59:00", "2030-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00",
           "2026-01-31T09:59:00.123456789Z", "2026-01-31T09:59:00.1234Z"],
    "idempotencyKey": [None, "", "k", "auto:0", "x" * 255, "x" * 256, 'q"uote', "back\\", 'a","b', "\u20ac", "k\0",
                       "tab\t", "\x7f", 'k",', ',"k'],
    "source": ["sdk", "http", "import", "other", "SDK", None],
    "meta": [None, {}, {"b": 2, "a": 1.5}, 5, [], {"a": "x" * 5000}, {"a": {"b": {"c": [1, 2, {"d": None}]}}},
             msgspec.Raw(b' {"a": 1.50, "a": 2}'), msgspec.Raw(b'{"a":' * 70 + b"1" + b"}" * 70)],
    "more": [1, {"deep": [[]]}],
}  # fmt: skip

decode_answer = msgspec.json.Decoder(IngestResponse).decode


def made_up(at: random.Random, number: int, run: str, given: dict[str, float]) -> dict[str, Any]:
    """An event as most are; `given`: how often each field is there that need not be."""
    event: dict[str, Any] = {
        "metric": f"m{at.randrange(3)}",
        "customerRef": f"c{at.randrange(8)}",
        "quantity": at.choice([at.randrange(200), at.randrange(200), "0.25", msgspec.Raw(b"1.50")]),
    }
    form = format_instant(START_US - at.randrange(10**7))
    late = format_instant(START_US - 10**13)
    free: dict[str, Any] = {
        "tenantId": "t",
        "ts": late if at.random() < 0.01 else form,
        "idempotencyKey": f"{run}-{number}",
        "resourceId": at.choice(["r1", "r2"]),
        "source": at.choice(["sdk", "etl"]),
        "meta": {"a": at.randrange(3)},
    }
    return event | {name: value for name, value in free.items() if at.random() < given[name]}


def batch_of(at: random.Random, run: str, sent: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A request's events, and more for `sent`: odd ones in a few requests, some of before, some twice."""
    given = {
        "tenantId": at.choice([1.0, 1.0, 1.0, 0.0, 0.9]),
        "ts": at.choice([1.0] * 8 + [0.0, 0.5]),
        "idempotencyKey": at.choice([1.0] * 6 + [0.0, 0.5]),
        "resourceId": at.choice([0.0, 0.0, 0.5]),
        "source": at.choice([0.0, 0.0, 0.5]),
        "meta": at.choice([0.0, 0.0, 0.5]),
    }
    count = at.choice([1, 2, 15, 16, 17, 40, 300])
    odd = at.choice([0.0, 0.0, 0.0, 1 / count, 0.2])
    again = at.choice([0.0, 0.0, 0.0, 0.02, 0.5])
    tenants = at.choice([["t"], ["t"], ["t", "u", "w"]])
    events, before = [], []
    for number in range(count):
        event = made_up(at, number, run, given)
        if "tenantId" in event:
            event["tenantId"] = at.choice(tenants)
        if sent and at.random() < again:
            event = at.choice(sent) | ({"quantity": 77} if at.random() < 0.2 else {})
        before.append(event)
        if at.random() < odd:
            event = dict(event)
            name = at.choice(list(NASTY))
            event[name] = at.choice(NASTY[name])
            if event[name] is None:
                del event[name]
        events.append(event)
    sent += before
    return events


def requests_of(seed: int) -> list[list[tuple[bytes, Any, IngestHeaders]]]:
    """Turns, each of some requests that are begun before any of them is answered."""
    at = random.Random(seed)
    sent: list[dict[str, Any]] = []
    turns = []
    for turn in range(8):
        requests = []
        for number in range(at.randrange(1, 5)):
            events = batch_of(at, f"{turn}-{number}", sent)
            identity = ANONYMOUS._replace(tenant=at.choice([None, None, "t"]))
            key = at.choice([None, None, "h", "x" * 254])
            tenant = at.choice([None, None, "t"]) if identity.tenant is None else None
            headers = IngestHeaders(JSON, None, key, tenant, f"req_{turn}_{number}")
            requests.append((msgspec.json.encode({"events": events}), identity, headers))
        turns.append(requests)
    return turns


def odd_requests() -> Iterator[list[tuple[bytes, Any, IngestHeaders]]]:
    """One odd value in each, the others plain."""
    at = random.Random(1)
    given = dict.fromkeys(("tenantId", "ts", "idempotencyKey"), 1.0)
    given |= dict.fromkeys(("resourceId", "source", "meta"), 0.5)
    for name, values in NASTY.items():
        for which, value in enumerate(values):
            events = [made_up(at, number, f"{name}-{which}", given) for number in range(20)]
            events[11][name] = value
            headers = IngestHeaders(JSON, None, None, None, f"req_{name}_{which}")
            yield [(msgspec.json.encode({"events": events}), ANONYMOUS, headers)]


async def story(turns: Iterable[list[tuple[bytes, Any, IngestHeaders]]]) -> dict[str, Any]:
    """All that can be seen of a server after these requests."""
    answers: list[Any] = []
    async with served() as server:
        gateway = server.gateway
        way_in = Ingest(gateway)
        for requests in turns:
            begun = [way_in.begin(*request) for request in requests]
            for one in begun:
                if not isinstance(one, bytes | Problem):
                    for group in one.groups:
                        await group.done.wait()
                    one = way_in.finish(one)  # noqa: PLW2901 - what became of it
                if isinstance(one, bytes):
                    # However an answer is put together, it is an encoded answer.
                    assert msgspec.json.encode(decode_answer(one)) == one
                answers.append(one if isinstance(one, bytes) else (one.status, one.detail))
        records = [
            (record.envelope.received_at_us, [part.data for part in record.parts])
            for record in gateway.meter.log.read(0, bytes_max=1 << 26)
        ]
        counters = {
            series: (counter.sum, counter.max, counter.last, counter.count, counter.watermark_us)
            for shard in gateway.meter.shards
            for table in shard.state.counters.values()
            for series, counter in table.items()
        }
        metrics = [
            line
            for line in gateway.metrics.exposition().decode().splitlines()
            if line.startswith(("events_ingested_total", "events_duplicate_total", "late_events"))
        ]
    return {"answers": answers, "records": records, "counters": counters, "metrics": metrics}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Events that the quick way sent back, and those it took."""
    taken = [0, 0]
    take = EventTaker.take

    def counting(self: EventTaker, events: Any, *rest: Any) -> Any:
        found = take(self, events, *rest)
        taken[found is not None] += len(events)
        return found

    monkeypatch.setattr(EventTaker, "take", counting)
    return taken


async def assert_alike(
    requests: Callable[[], Iterable[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ingest, "_BULK_EVENTS_MIN", 1 << 30)
        long = await story(requests())
    quick = await story(requests())
    for name, expected in long.items():
        assert quick[name] == expected, name


async def test_requests_by_column_are_requests_event_by_event(
    taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in SEEDS:
        print(f"seed {seed}")
        await assert_alike(partial(requests_of, seed), monkeypatch)
    # A test of the quick way in which nothing goes it would show nothing; nor one in which nothing is sent back.
    assert taken[True] > sum(taken) // 4, taken
    assert taken[False] > 0, taken


async def test_one_odd_event_in_a_request_is_answered_as_event_by_event(
    taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    await assert_alike(odd_requests, monkeypatch)
    assert min(taken) > 0, taken


@pytest.mark.parametrize("opened", ["[", '{"a":'])
def test_a_large_body_that_nests_deep_is_refused_like_a_small_one(opened: str) -> None:
    closed = "]" if opened == "[" else "}"
    for padding in (0, 10_000):
        for depth in (60, 61, 62):
            meta = '{"a":' + opened * (depth - 1) + "1" + closed * (depth - 1) + "}"
            event = f'{{"metric":"m","customerRef":"{"c" * 9}","quantity":1,"meta":{meta}}}'
            body = f'{{"events":[{event}]{" " * padding}}}'.encode()
            limits = BodyLimits(1 << 20, 1000, 64)
            if depth + 3 > 64:
                with pytest.raises(Unreadable, match="nests deeper"):
                    read_events(body, JSON, limits)
            else:
                assert len(read_events(body, JSON, limits).events) == 1


def test_brackets_are_counted_wherever_pieces_of_the_body_begin() -> None:
    at = random.Random(5)
    for size in (8_191, 8_192, 32_767, 32_768, 32_769, 65_536, 100_003, 1_000, 40_000):
        body = bytes(at.choices(b'{}[];{"a\x5b\x7b\xfb\xdb', k=size))
        assert _brackets(body) == body.count(b"{") + body.count(b"["), size


def test_one_odd_event_among_plain_ones_is_what_it_is_alone() -> None:
    taker = EventTaker()
    limits = EventLimits(4096)
    plain = dict.fromkeys(("tenantId", "ts", "idempotencyKey", "resourceId", "source"), 1.0)
    tried = quick = 0
    for name, values in NASTY.items():
        for value in values:
            at = random.Random(1)
            events = [made_up(at, number, "k", plain | {"meta": 1.0}) for number in range(40)]
            events[21][name] = value
            try:
                sent = [msgspec.json.decode(msgspec.json.encode(e), type=SentEvent) for e in events]
            except msgspec.MsgspecError:
                continue
            tried += 1
            rows = taker.take(sent, Said(None, "t", None, 0), START_US, limits)
            if rows is None:
                continue
            quick += 1
            for tenant, of in rows.items():
                for index, row in zip(of.indexes, zip(*of.columns, strict=True), strict=True):
                    assert row == accept(sent[index], tenant, None, START_US, limits), (name, value)
                    assert tenant == (sent[index].tenant_id or "t")
            assert sorted(index for of in rows.values() for index in of.indexes) == [*range(40)]
    assert tried > quick > 20, (tried, quick)


@pytest.mark.parametrize("count", [1, 3])
def test_the_key_of_a_request_is_the_one_that_each_event_gets_one_by_one(count: int) -> None:
    events = [
        SentEvent(metric="m", customer_ref="c", quantity=msgspec.Raw(b"1")) for _ in range(count)
    ]
    taken = EventTaker().take(events, Said("t", "t", "h", 0), START_US, EventLimits(4096))
    assert taken is not None
    keys = ["h"] if count == 1 else ["h:0", "h:1", "h:2"]
    rows = list(zip(*taken["t"].columns, strict=True))
    assert rows == [
        accept(event, "t", key, START_US, EventLimits(4096))
        for event, key in zip(events, keys, strict=True)
    ]


def test_what_is_remembered_of_requests_stays_within_its_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_columns, "CUSTOMERS_REMEMBERED_MAX", 50)
    monkeypatch.setattr(row_columns, "TEXTS_REMEMBERED_MAX", 50)
    taker = EventTaker()
    known = taker._remembered
    for start in range(0, 1000, 20):
        # The last one of each is refused: what came before it is remembered all the same.
        events = [
            SentEvent(
                metric=f"m{n}",
                customer_ref=f"c{n}",
                quantity=msgspec.Raw(b"%d" % n if n % 20 < 19 else b"-1"),
                tenant_id=f"t{n % 7}",
                idempotency_key="k",
            )
            for n in range(start, start + 20)
        ]
        taker.take(events, Said(None, None, None, 0), START_US, EventLimits(4096))
        held = [sum(map(len, known.tenants.values())), len(known.metrics), len(known.quantities)]
        assert max(held) <= 50, held
        assert known.tenants.held == held[0] + len(known.tenants)
