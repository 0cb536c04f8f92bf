"""What a customer has used, from a state: of the running meter, or of one folded for a question about the past.

It must not know where the state comes from.
"""

from __future__ import annotations

from engine.core.partitions import partition_of
from engine.core.registry import Registry
from engine.core.shard_state import MetricUsage, ShardState
from engine.core.times import DAY_US


def usage_at(
    registry: Registry,
    state: ShardState,
    tenant: str,
    customer_ref: str,
    at_us: int,
) -> list[MetricUsage]:
    """A customer's use of every metric it used or that is mapped, in the periods that hold `at_us`, by name."""
    partition = partition_of(tenant, customer_ref)
    mapped = set(registry.mapped_metrics(tenant))
    counters, adjusted = state.counters[partition], state.adjustments[partition].is_adjusted
    seen = {
        # Most customers use few of the metrics that others do: those have neither, and cost a third of the answer.
        metric
        for metric in state.metrics.get(tenant, ())
        if (series := (tenant, metric, customer_ref)) in counters or adjusted(series)
    }
    metrics = sorted(mapped | seen)
    return [
        used
        for used in state.usage(partition, tenant, customer_ref, metrics, at_us)
        if used.metric in mapped or used.counter is not None or used.pending_count or used.current
    ]


def uncounted_by_day(
    state: ShardState, tenant: str, metric: str, customer_ref: str, events_max: int
) -> dict[int, int] | None:
    """Micros of late events that do not count (they wait, or were reverted) on UTC days, by their starts.

    They are in the history, which shows where use happened. None: there are more than `events_max` of them.
    """
    adjustments = state.adjustments[partition_of(tenant, customer_ref)]
    found: dict[int, int] = {}
    count = 0
    for adjustment in adjustments.of_series((tenant, metric, customer_ref)):
        if adjustment.kind != "event" or adjustment.status == "approved":
            continue
        count += len(adjustment.times_us)
        if count > events_max:
            return None
        for event in adjustment.events():
            day_us = event.ts_us - event.ts_us % DAY_US
            found[day_us] = found.get(day_us, 0) + event.micros
    return found


def usage_within(
    registry: Registry,
    state: ShardState,
    customer: tuple[str, str],
    range_us: tuple[int, int],
    periods_max: int,
) -> list[MetricUsage]:
    """A (tenant, customer)'s use in every period that begins in the half-open range: by metric, then by time.

    Metrics are those of `usage_at`; periods without use are there too. At most one more than `periods_max`, so that
    whoever asks can tell that there are too many.
    """
    tenant, customer_ref = customer
    start_us, end_us = range_us
    partition = partition_of(tenant, customer_ref)
    mapped = set(registry.mapped_metrics(tenant))
    found: list[MetricUsage] = []
    for metric in sorted(mapped | state.metrics.get(tenant, set())):
        own: list[MetricUsage] = []
        at_us = start_us
        while at_us < end_us and len(found) + len(own) <= periods_max:
            (used,) = state.usage(partition, tenant, customer_ref, (metric,), at_us)
            if used.start_us >= start_us:
                own.append(used)
            at_us = used.end_us
        if metric in mapped or any(one.counter or one.pending_count or one.current for one in own):
            found += own
    return found
