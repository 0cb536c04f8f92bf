"""What customers used in the periods of a range: one total for each counter of a tenant, corrections included.

Rules it keeps: a partition's series are listed at once and read in slices, so that folding may go on between two of
them; a total is what the aggregation in force says, as usage and invoices have it. It must not know prices or tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from engine.core.adjustments import effective_value
from engine.core.shard_state import Series, ShardState

SLICE_SERIES: Final = 2_000
"""Series that are read in one turn: some milliseconds."""


class PeriodTotal(NamedTuple):
    """One customer's use of one metric in one period."""

    customer_ref: str
    metric: str
    start_us: int
    micros: int


class Range(NamedTuple):
    """Whose, and periods that begin in [since_us, until_us). `at_us`: of a running period, now."""

    tenant: str
    customer_ref: str | None
    since_us: int
    until_us: int
    at_us: int


def period_totals(state: ShardState, partition: int, wanted: Range) -> Iterator[list[PeriodTotal]]:
    """A partition's totals, some at a time; what has nothing but approved corrections is there too."""
    starts: dict[Series, set[int]] = {
        series: set() for series in list(state.counters[partition]) if _is_wanted(series, wanted)
    }
    for tenant, metric, customer_ref, start_us in list(state.adjustments[partition].counters()):
        series = (tenant, metric, customer_ref)
        if _is_wanted(series, wanted):
            starts.setdefault(series, set()).add(start_us)
    found: list[PeriodTotal] = []
    for number, (series, adjusted) in enumerate(starts.items(), start=1):
        found += _of_series(state, partition, series, adjusted, wanted)
        if number % SLICE_SERIES == 0:
            yield found
            found = []
    yield found


def _is_wanted(series: Series, wanted: Range) -> bool:
    return series[0] == wanted.tenant and wanted.customer_ref in (None, series[2])


def _of_series(
    state: ShardState, partition: int, series: Series, adjusted: set[int], wanted: Range
) -> Iterator[PeriodTotal]:
    tenant, metric, customer_ref = series
    counters = {}
    counter = state.counters[partition].get(series)
    while counter is not None and counter.start_us >= wanted.since_us:
        counters[counter.start_us] = counter
        counter = counter.older
    for start_us in sorted(adjusted | counters.keys()):
        if not wanted.since_us <= start_us < wanted.until_us:
            continue
        counter = counters.get(start_us)
        adjustments = state.adjustments[partition].of_counter((*series, start_us))
        end_us = counter.end_us if counter is not None else adjustments[0].end_us
        instant_us = max(start_us, min(wanted.at_us, end_us - 1))
        aggregation = state.rules.aggregation(tenant, metric, instant_us)
        micros = effective_value(counter, adjustments, aggregation)
        if counter is not None or micros:
            yield PeriodTotal(customer_ref, metric, start_us, micros)
