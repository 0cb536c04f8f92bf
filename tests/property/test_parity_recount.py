"""Certificates of random pasts: the engine's fold and the witness's recount agree to the last digit, and find it if not.

Every kind of record that changes a total: late events, adjustments, replays, closings, changes of lateness, of
periods and of anchors, imports. What they agree on, two programs agree on.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from engine.core.configured import Change, Customer, CustomerChange, Mapping, MappingChange
from engine.core.partitions import partition_of
from engine.core.periods import next_boundary
from engine.core.records import PeriodClosing
from engine.core.times import DAY_US, HOUR_US
from tests.helpers.event_log import Sent
from tests.helpers.parity import certificate_of, resigned, verified
from tests.helpers.past import (
    AGGREGATIONS,
    CUSTOMERS,
    FEBRUARY_US,
    JANUARY_US,
    METRICS,
    TENANTS,
    Past,
)

MONTHS = ("2026-01", "2026-02")


def change_periods(past: Past) -> None:
    """A metric's periods or lateness, or a customer's anchor, change as the API changes them: at the next boundary."""
    rng, rules = past.random, past.state.rules
    tenant, metric, ref = rng.choice(TENANTS), rng.choice(METRICS), rng.choice(CUSTOMERS)
    if rng.random() < 0.5:
        is_active = rng.random() < 0.9
        mapping = Mapping(
            id=f"{tenant}-{metric}",
            tenant_id=tenant,
            metric=metric,
            aggregation=AGGREGATIONS[metric],
            period=rng.choice(("calendar", "day", "subscription")),
            lateness_us=rng.choice((None, None, 0, DAY_US)),
            active=is_active,
        )
        schedule = rules.schedule(tenant, metric, "")
        since_us = next_boundary(schedule, past.now_us)
        if metric not in past.state.metrics.get(tenant, ()):
            since_us = None
        change = Change(actor="t", effective_from_us=since_us)
        past.control(MappingChange(mapping=mapping, change=change))
        return
    anchor_us = rng.choice((None, past.now_us - rng.randint(0, 70) * DAY_US - rng.randint(0, 9**9)))
    customer = Customer(tenant_id=tenant, customer_ref=ref, billing_anchor_us=anchor_us)
    counters = past.state.counters[partition_of(tenant, ref)]
    ends_us = [
        next_boundary(rules.schedule(tenant, one, ref), past.now_us)
        for one in METRICS
        if (tenant, one, ref) in counters
        and any(part.kind == "subscription" for part in rules.schedule(tenant, one, ref))
    ]
    change = Change(actor="t", effective_from_us=max(ends_us, default=None))
    past.control(CustomerChange(customer=customer, change=change))


def close_january(past: Past) -> None:
    """January is over and closed; what still comes of it is late, whatever the watermark says."""
    past.now_us = max(past.now_us, FEBRUARY_US + 2 * DAY_US)
    past.control(PeriodClosing(start_us=JANUARY_US, end_us=FEBRUARY_US, lateness_us=2 * DAY_US))
    for tenant in TENANTS:
        for metric in METRICS:
            ts_us = FEBRUARY_US - past.random.randint(1, 3) * HOUR_US
            past.append([Sent(tenant, metric, "ben", 3_000_000, ts_us)])


def grown(seed: int, *, with_periods: bool) -> Past:
    past = Past(seed)
    rounds = past.random.randint(3, 12)
    closes_at = past.random.randrange(rounds) if past.random.random() < 0.6 else None
    for number in range(rounds):
        past.grow(8)
        if number == closes_at:
            close_january(past)
        if with_periods and past.random.random() < 0.3:
            change_periods(past)
    return past


@pytest.mark.parametrize("seed", range(40))
def test_the_recount_agrees_with_every_number_of_a_certificate(seed: int) -> None:
    print("seed", seed)
    past = grown(seed, with_periods=False)
    chains = 0
    for tenant in TENANTS:
        for month in MONTHS:
            found = certificate_of(past.log, tenant, month)
            chains += len(found["chains"])
            assert verified(found, past.log) == []
    assert chains, "there is something to agree on"


@pytest.mark.parametrize("seed", range(100, 130))
def test_periods_and_anchors_that_change_are_recounted_alike(seed: int) -> None:
    print("seed", seed)
    past = grown(seed, with_periods=True)
    for tenant in TENANTS:
        for month in MONTHS:
            assert verified(certificate_of(past.log, tenant, month), past.log) == []


@pytest.mark.parametrize("seed", range(200, 220))
def test_an_older_certificate_still_holds_when_the_log_has_grown(seed: int) -> None:
    print("seed", seed)
    past = grown(seed, with_periods=False)
    ends = [r.next_sequence for r in past.log.read(0, bytes_max=1 << 30)]
    rng = random.Random(seed)
    end = rng.choice(ends[len(ends) // 2 :])
    for tenant in TENANTS:
        assert verified(certificate_of(past.log, tenant, MONTHS[0], end=end), past.log) == []


NUMBERS: tuple[tuple[str, ...], ...] = (
    ("events", "count"),
    ("events", "sum"),
    ("events", "late"),
    ("counter", "max"),
    ("counter", "last"),
    ("adjustments", "pending"),
    ("adjustments", "approved"),
    ("total",),
    ("notPushed",),
)


@pytest.mark.parametrize("seed", range(300, 320))
def test_a_number_that_was_forged_and_signed_anew_is_found_in_the_log(seed: int) -> None:
    """Whoever has the key can sign what he likes: only the recount finds it, and names the very field."""
    print("seed", seed)
    rng = random.Random(seed)
    past = grown(seed, with_periods=False)
    document = certificate_of(past.log, "acme", MONTHS[0])
    index = rng.randrange(len(document["chains"]))
    path = rng.choice(NUMBERS)
    holder: Any = document["chains"][index]
    for name in path[:-1]:
        holder = holder[name]
    old = holder[path[-1]]
    holder[path[-1]] = old + 1 if isinstance(old, int) else "12345.678"
    found = verified(resigned(document), past.log)
    where = f"chains[{index}].{'.'.join(path)}"
    assert any(p.where == where and "the log says" in p.what for p in found), found


def test_a_chain_that_was_left_out_is_missed() -> None:
    past = grown(7, with_periods=False)
    document = certificate_of(past.log, "acme", MONTHS[0])
    gone = document["chains"].pop()
    document["summary"]["chains"] -= 1
    document["summary"][gone["verdict"]] -= 1
    found = verified(resigned(document), past.log)
    assert any(p.where == "chains" and gone["metric"] in p.what for p in found), found


def test_a_certificate_of_another_log_is_refused() -> None:
    one, other = grown(8, with_periods=False), grown(9, with_periods=False)
    found = verified(certificate_of(one.log, "acme", MONTHS[0]), other.log)
    assert [p.where for p in found] == ["log.headHash"]
