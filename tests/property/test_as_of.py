"""As-of and explain over random logs: the past is the fold of the prefix, and parts add up to totals."""

from __future__ import annotations

import random

import pytest

from engine.actors.as_of import TimeIndex
from engine.actors.prefix_fold import PrefixFold, Wanted
from engine.actors.recovery import CONTROL_SECTION, PARTITION_SECTION, RULES_SECTION
from engine.actors.shard import encode_partition
from engine.core.adjustments import effective_value
from engine.core.explain import Explainer, Explanation
from engine.core.partitions import partition_of
from engine.core.times import DAY_US
from engine.errors import Refused
from engine.limits import PARTITIONS
from tests.helpers.event_log import Sent
from tests.helpers.past import (
    AGGREGATIONS,
    CUSTOMERS,
    FEBRUARY_US,
    JANUARY_US,
    METRICS,
    TENANTS,
    Past,
    customers,
    everything,
    fresh_fold,
)
from wal import snapshot
from wal.log import scan
from wal.snapshot import MemorySnapshots
from wal.snapshot_format import Section

LOG_ID = b"l" * 16
SEEDS = range(4)


def folded(fold: PrefixFold) -> PrefixFold:
    while fold.run_slice():
        pass
    return fold


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_as_of_any_position_is_a_fresh_fold_of_the_items_before_it(seed: int) -> None:
    print("seed", seed)
    past = Past(seed)
    past.grow(30)
    for end in range(1, past.log.head().next_sequence + 1):
        fresh = fresh_fold(past.log, end)
        assert everything(folded(PrefixFold(past.log, end)).state) == everything(fresh)
        tenant, customer = past.random.choice(list(customers()))
        partition = partition_of(tenant, customer)
        fold = PrefixFold(past.log, end, partitions=[partition], wanted=Wanted(tenant, customer))
        of = (tenant, customer)
        assert everything(folded(fold).state, of) == everything(fresh, of)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_snapshot_within_the_prefix_changes_nothing_and_a_later_one_is_not_used(
    seed: int,
) -> None:
    print("seed", seed)
    past, rng = Past(seed), random.Random(seed)
    snapshots = MemorySnapshots()
    past.grow(10)
    at = past.log.head().next_sequence
    sections = [
        Section(CONTROL_SECTION, at, past.registry.state()),
        Section(RULES_SECTION, at, past.state.rules.state()),
    ]
    for partition in range(PARTITIONS):
        if partition % 16 == 0:
            past.grow(rng.randint(0, 2))  # partitions are taken one after the other
        position = past.log.head().next_sequence
        data = encode_partition(past.state, partition)
        sections.append(Section(PARTITION_SECTION + partition, position, data))
    taken = past.log.head().next_sequence
    snapshot.write(snapshots, LOG_ID, past.log.head().epoch, at, sections)
    past.grow(10)
    for end in range(1, past.log.head().next_sequence + 1):
        for tenant, customer in customers():
            partition = partition_of(tenant, customer)
            fold = PrefixFold(
                past.log, end, partitions=[partition], wanted=Wanted(tenant, customer)
            )
            fold.start_from(snapshots, LOG_ID, past.log.head().epoch)
            assert (fold.position > 0) == (end >= taken)
            of = (tenant, customer)
            assert everything(folded(fold).state, of) == everything(fresh_fold(past.log, end), of)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_time_means_everything_before_the_first_record_received_later(seed: int) -> None:
    print("seed", seed)
    past = Past(seed)
    past.grow(40)
    records = list(scan(past.log, 0))
    end = past.log.head().next_sequence
    index = TimeIndex(past.log, page_bytes=past.random.choice((1, 500, 2000, 1 << 20)))
    times_us = {record.envelope.received_at_us + step for record in records for step in (-1, 0, 1)}
    for at_us in past.random.sample(sorted(times_us), len(times_us)):
        search = index.search(at_us, end)
        while search.run_slice():
            pass
        later = (r.sequence for r in records if r.envelope.received_at_us > at_us)
        assert search.found == next(later, end)


def test_a_clock_that_stepped_back_does_not_hide_the_first_later_record() -> None:
    past = Past(0)
    first = past.log.head().next_sequence
    start_us = past.now_us
    for minute in (10, 30, 20, 15, 12):
        past.now_us = start_us + minute
        past.append([Sent("acme", "calls", "anna", 1, None)])
    index = TimeIndex(past.log, page_bytes=1)
    for _ in range(2):  # the second time from what the first one learned
        for minute, found in ((40, first + 5), (25, first + 1), (12, first + 1), (9, first)):
            search = index.search(start_us + minute, past.log.head().next_sequence)
            while search.run_slice():
                pass
            assert search.found == found


def explained(past: Past, end: int, series: tuple[str, str, str], day_us: int) -> Explanation:
    explainer = Explainer(series, day_us)
    tenant, metric, customer = series
    fold = PrefixFold(
        past.log,
        end,
        partitions=[partition_of(tenant, customer)],
        wanted=Wanted(tenant, customer, metric, day_us),
        observer=explainer,
    )
    folded(fold)
    return explainer.explanation(past.now_us)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_the_parts_of_an_explanation_add_up_to_the_total_to_the_last_digit(seed: int) -> None:
    print("seed", seed)
    past = Past(seed)
    past.grow(60)
    end = past.log.head().next_sequence
    events = {logged.sequence: logged for logged in past.events.logged}
    for prefix in (end, past.random.randrange(8, end)):
        state = fresh_fold(past.log, prefix)
        for tenant in TENANTS:
            for customer in CUSTOMERS:
                for metric in METRICS:
                    for start_us in (JANUARY_US, FEBRUARY_US):
                        series = (tenant, metric, customer)
                        check(explained(past, prefix, series, start_us), state, events, series)


def check(found: Explanation, state, events, series) -> None:  # type: ignore[no-untyped-def]
    tenant, metric, customer = series
    partition = partition_of(tenant, customer)
    counter = state.counters[partition].get(series)
    while counter is not None and counter.start_us > found.start_us:
        counter = counter.older
    if counter is not None and counter.start_us != found.start_us:
        counter = None
    adjustments = state.adjustments[partition].of_counter((*series, found.start_us))
    assert found.aggregation == AGGREGATIONS[metric]
    assert found.total_micros == effective_value(counter, adjustments, found.aggregation)
    assert {p.adjustment.id for p in (*found.late, *found.adjustments)} == {
        a.id for a in adjustments
    }
    if found.aggregation == "sum":
        amounts = [p.sum_micros for p in (*found.days, *found.replays)]
        amounts += [p.amount_micros for p in found.late]
        amounts += [p.amount_micros for p in found.adjustments]
        assert sum(amounts) + found.rest.amount_micros == found.total_micros
    # Every event of the period is in exactly one part, and the days are those of the events themselves.
    mine = [
        e
        for e in events.values()
        if (e.sent.tenant, e.sent.metric, e.sent.customer) == series
        and found.start_us <= e.ts_us < found.end_us
    ]
    for day in found.days:
        positions = [e.sequence for e in mine if e.ts_us // DAY_US * DAY_US == day.day_us]
        assert {day.first_position, day.last_position} <= set(positions)
        assert day.events <= len(positions)
    winner = found.decided_by
    if winner is not None and winner.via != "adjustment":
        event = events[winner.position]
        assert (event.sent.micros, event.ts_us) == (winner.micros, winner.ts_us)
        assert winner.micros == found.total_micros


@pytest.mark.slow
def test_every_event_of_a_period_is_in_exactly_one_part() -> None:
    for seed in range(6):
        past = Past(seed)
        past.grow(80)
        end = past.log.head().next_sequence
        for tenant, customer in customers():
            for metric in METRICS:
                for start_us in (JANUARY_US, FEBRUARY_US):
                    found = explained(past, end, (tenant, metric, customer), start_us)
                    told = sum(p.events for p in (*found.days, *found.replays, *found.late))
                    accepted = [
                        e
                        for e in past.events.logged
                        if (e.sent.tenant, e.sent.metric, e.sent.customer)
                        == (tenant, metric, customer)
                        and found.start_us <= e.ts_us < found.end_us
                    ]
                    assert told == len(accepted), (seed, tenant, customer, metric)


def test_what_a_replay_folds_is_after_a_value_only_if_it_was_sent_after_it() -> None:
    past = Past(0)
    series = ("acme", "seats", "anna")

    def send(micros: int, ts_us: int) -> None:
        past.append([Sent("acme", "seats", "anna", micros, ts_us)])

    send(10, past.now_us)
    send(99, past.now_us - 4 * DAY_US)  # late, before the value
    past.create(series, JANUARY_US, 20)
    send(50, past.now_us - 3 * DAY_US)  # late, after it
    past.replay("acme")
    past.approve_all()
    found = explained(past, past.log.head().next_sequence, series, JANUARY_US)
    assert found.total_micros == 50
    assert found.decided_by is not None
    assert (found.decided_by.via, found.decided_by.micros) == ("replay", 50)
    assert [part.events for part in found.replays] == [2]


def test_a_day_on_which_no_period_begins_is_refused_and_the_right_one_is_named() -> None:
    past = Past(1)
    with pytest.raises(Refused, match="begins on 2026-01-01"):
        explained(past, 3, ("acme", "calls", "anna"), JANUARY_US + DAY_US)
