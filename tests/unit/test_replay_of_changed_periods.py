"""A replay of late events whose period begins within another counter's: their mapping goes by the calendar from then on."""

from __future__ import annotations

import pytest

from engine.core.configured import Change, Customer, CustomerChange, Mapping, MappingChange
from engine.core.partitions import partition_of
from engine.core.push_uses import uses_of
from engine.core.replay import ReplayRequest, plan
from engine.core.times import DAY_US
from tests.helpers.event_log import Sent
from tests.helpers.parity import certificate_of, verified
from tests.helpers.past import BY, FEBRUARY_US, JANUARY_US, Past
from tests.property.test_as_of import explained

SERIES = ("acme", "calls", "anna")
ANCHOR_US = JANUARY_US + 19 * DAY_US


def by(period: str, change: Change) -> MappingChange:
    mapping = Mapping(id="acme-calls", tenant_id="acme", metric="calls", period=period)
    return MappingChange(mapping=mapping, change=change)


def used(past: Past) -> int:
    """What counts, in all periods."""
    partition = partition_of("acme", "anna")
    return sum(one.micros for one in uses_of(past.state, past.state.rules, partition, SERIES))


@pytest.mark.parametrize("times", [1, 2])
def test_a_late_event_is_counted_once_by_a_replay_and_an_approval_after_it(times: int) -> None:
    past = Past(1)
    past.control(by("subscription", BY))
    customer = Customer(tenant_id="acme", customer_ref="anna", billing_anchor_us=ANCHOR_US)
    past.control(CustomerChange(customer=customer, change=BY))
    past.now_us = FEBRUARY_US - DAY_US
    past.append([Sent(*SERIES, 5, past.now_us)])
    past.control(by("calendar", Change(actor="tester", effective_from_us=FEBRUARY_US)))
    past.now_us = FEBRUARY_US + 8 * DAY_US
    past.append([Sent(*SERIES, 7, past.now_us)])
    past.append([Sent(*SERIES, 100, FEBRUARY_US + DAY_US)])
    assert used(past) == 12, "one is late, and waits"
    for _ in range(times):
        past.replay("acme")
    assert used(past) == 112
    request = ReplayRequest("acme", None, None, None, None, None)
    assert not plan([past.state], request).counters, "nothing is left to be folded"
    past.approve_all()
    assert used(past) == 112
    past.now_us += DAY_US
    past.append([Sent(*SERIES, 1, past.now_us)])
    for month in ("2026-01", "2026-02"):
        assert verified(certificate_of(past.log, "acme", month), past.log) == []
    end = past.log.head().next_sequence
    totals = [
        explained(past, end, SERIES, start_us).total_micros
        for start_us in (JANUARY_US + 19 * DAY_US, FEBRUARY_US)
    ]
    assert totals == [12, 101]
