"""Segments and extents: the same however they are cut, exact however large, the same read back from bytes."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import numpy as np

from engine.core.extents import ChunkExtent, EventFilter, OpenExtent, cells_of, encode_chunk
from engine.core.segments import Batch, Segment, build, merge, with_names
from engine.core.summaries import (
    ALL_CUSTOMERS,
    NameFilter,
    customer_hash,
    decode_summary,
    metric_hash,
)
from engine.core.times import MINUTE_US

T0_US = 1_700_000_040_000_000


def batch(rng: Random, events: int, first_sequence: int, largest: int, *, spread_us: int) -> Batch:
    return Batch(
        rng.choice(("acme", "umbrella")),
        tuple(rng.choice(("a", "b", "c")) for _ in range(events)),
        tuple(f"cus-{rng.randrange(40)}" for _ in range(events)),
        tuple(rng.randrange(largest) for _ in range(events)),
        tuple(
            rng.choice((None, T0_US + rng.randrange(-spread_us, spread_us))) for _ in range(events)
        ),
        bytes(rng.randrange(5) for _ in range(events)),
        first_sequence,
        T0_US + first_sequence,
    )


def batches(rng: Random, count: int, largest: int, *, spread_us: int) -> list[Batch]:
    made, sequence = [], 100
    for _ in range(count):
        events = rng.choice((1, 3, 700))
        made.append(batch(rng, events, sequence, largest, spread_us=spread_us))
        sequence += events + rng.randrange(3)
    return made


def end_of(one: Batch) -> int:
    return one.first_sequence + len(one.metrics)


def check_same(one: Segment, other: Segment) -> None:
    assert one.scopes == other.scopes
    for left, right in zip(
        (*one.series, *one.events, *one.cells),
        (*other.series, *other.events, *other.cells),
        strict=True,
    ):
        assert left.tolist() == right.tolist()
    assert one.summary[:3] == other.summary[:3]
    assert one.summary.sources == other.summary.sources


def test_a_merge_of_segments_equals_one_of_all_their_events(seed: int) -> None:
    rng = Random(seed)
    for largest, spread_us in ((100, 10**8), (10**21, 10**9), (1 << 62, 10**14), (10**6, 10**17)):
        given = batches(rng, 30, largest, spread_us=spread_us)
        whole = build(given, 0, end_of(given[-1]))
        cuts = sorted({0, *(rng.randrange(30) for _ in range(4)), 30})
        parts = []
        position = 0
        for first, end in pairwise(cuts):
            parts.append(build(given[first:end], position, end_of(given[end - 1])))
            position = end_of(given[end - 1])
        check_same(merge(parts), whole)
        check_same(merge([merge(parts[:2]), *parts[2:]]), whole)


def test_a_chunk_read_back_equals_its_segment(seed: int) -> None:
    rng = Random(seed)
    for largest in (1000, 10**21):
        given = batches(rng, 40, largest, spread_us=10**10)
        segment = with_names(build(given, 7, end_of(given[-1])))
        values = encode_chunk(segment)
        summary = decode_summary(values[0])
        chunk = ChunkExtent(summary, lambda first, count, v=values: v[first : first + count])
        opened = OpenExtent(segment)
        assert summary.names is not None
        assert summary.blocks == -(-summary.event_count // 4096)
        scopes, table = chunk.series()
        assert scopes == segment.scopes
        for left, right in zip(table, segment.series, strict=True):
            assert left.tolist() == right.tolist()
        for block in range(summary.blocks):
            for left, right in zip(chunk.events(block), opened.events(block), strict=True):
                assert left.tolist() == right.tolist()
            assert summary.first_key(block) == (
                opened.events(block).ts_us[0],
                opened.events(block).sequence[0],
            )
        total = len(segment.cells.minute)
        for first, last in ((0, total), (0, 1), (total - 1, total), (total // 3, total // 2)):
            for left, right in zip(
                chunk.cells(first, last), opened.cells(first, last), strict=True
            ):
                assert left.tolist() == right.tolist()


def test_a_sum_over_64_bits_is_exact_although_no_quantity_is() -> None:
    quantities = ((1 << 62) + 1, (1 << 62) + 3, (1 << 62) + 5)
    one = Batch("acme", ("a",) * 3, ("ann",) * 3, quantities, (T0_US,) * 3, bytes(3), 1, 0)
    for segment in (build([one], 0, 4), merge([build([one], 0, 4), build([one], 4, 8)])):
        times = len(segment.events.ts_us) // 3
        for customer in (ALL_CUSTOMERS, customer_hash("acme", "ann")):
            cells = cells_of(OpenExtent(segment), ("acme", "a"), customer)
            assert cells is not None
            assert cells.sum.tolist() == [times * sum(quantities)]
            assert cells.max.tolist() == [quantities[-1]]
            assert cells.last.tolist() == [quantities[-1]]
            assert cells.events.tolist() == [3 * times]


def test_last_goes_by_event_time_then_by_the_order_of_the_log() -> None:
    def one(first_sequence: int, *events: tuple[int, int]) -> Segment:
        micros, offsets = zip(*events, strict=True)
        count = len(events)
        times = [T0_US + offset for offset in offsets]
        made = Batch(
            "acme", ("a",) * count, ("ann",) * count, micros, times, bytes(count), first_sequence, 0
        )
        return build([made], first_sequence, first_sequence + count)

    segment = merge([one(1, (1, 5), (2, 9), (3, 9), (4, 8)), one(5, (5, 9), (6, 2))])
    cells = cells_of(OpenExtent(segment), ("acme", "a"), ALL_CUSTOMERS)
    assert cells is not None
    assert cells.last.tolist() == [5]
    assert cells.last_ts_us.tolist() == [T0_US + 9]


def test_times_before_1970_have_their_own_minutes() -> None:
    times = (-1, -MINUTE_US, -MINUTE_US - 1, 0)
    one = Batch("acme", ("a",) * 4, ("ann",) * 4, (1, 2, 3, 4), times, bytes(4), 0, 0)
    cells = cells_of(OpenExtent(build([one], 0, 4)), ("acme", "a"), ALL_CUSTOMERS)
    assert cells is not None
    assert cells.minute.tolist() == [-2, -1, 0]
    assert cells.sum.tolist() == [3, 3, 4]


def test_series_of_like_names_in_two_tenants_are_apart() -> None:
    given = [
        Batch("acme", ("a",), ("ann",), (1,), (T0_US,), bytes(1), 0, 0),
        Batch("umbrella", ("a",), ("ann",), (2,), (T0_US,), bytes(1), 1, 0),
    ]
    extent = OpenExtent(build(given, 0, 2))
    for tenant, expected in (("acme", [1]), ("umbrella", [2])):
        for customer in (ALL_CUSTOMERS, customer_hash(tenant, "ann")):
            cells = cells_of(extent, (tenant, "a"), customer)
            assert cells is not None
            assert cells.sum.tolist() == expected
    assert cells_of(extent, ("acme", "a"), customer_hash("umbrella", "ann")) is None
    assert cells_of(extent, ("acme", "b"), ALL_CUSTOMERS) is None


def test_a_name_filter_never_denies_what_it_holds_and_seldom_affirms_what_not(seed: int) -> None:
    rng = Random(seed)
    for count in (0, 1, 100, 5000):
        held = [customer_hash("acme", f"cus-{rng.random()}") for _ in range(count)]
        names = NameFilter.of(np.array([name.low for name in held], np.uint64))
        assert all(map(names.may_hold, held))
        assert len(names.bits) <= 8192
        others = [metric_hash("acme", f"other-{rng.random()}") for _ in range(2000)]
        assert sum(map(names.may_hold, others)) < 400


def test_a_summary_says_no_only_when_nothing_matches(seed: int) -> None:
    rng = Random(seed)
    given = batches(rng, 5, 10, spread_us=10**9)
    segment = with_names(build(given, 0, end_of(given[-1])))
    scopes, table = OpenExtent(segment).series()
    for _ in range(300):
        start_us = T0_US + rng.randrange(-(10**9), 10**9)
        wanted = EventFilter(
            rng.choice(("acme", "umbrella", "other")),
            rng.choice((None, "a", "d")),
            rng.choice((None, "cus-1", "cus-41")),
            rng.choice((None, 1, 6)),
            start_us,
            start_us + rng.randrange(10**8),
        )
        series = wanted.series(scopes, table)
        matches = 0 if series is None else len(wanted.rows(segment.events, series))
        assert wanted.may_match(segment.summary) or not matches
