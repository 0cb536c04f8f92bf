"""What counts of a series, period by period, as pushing wants it.

Rules it keeps: an aggregate is the one in force when its period began, with every approved correction; what a historic
import added to a closed period is counted and never pushed. It must not know destinations or ledgers.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from engine.core.adjustments import effective_value
from engine.core.counters import Counter
from engine.core.rules import Rules
from engine.core.shard_state import Series, ShardState

PERIODS_MAX: Final = 64
"""Of a series, the newest; older ones are final for years."""


class PeriodUse(NamedTuple):
    """One period of a series: what counts (micros) by the aggregation in force when it began."""

    start_us: int
    end_us: int
    micros: int
    newest_event_us: int
    hold: str | None = None
    """Why none of it may be pushed, in words."""


def uses_of(state: ShardState, rules: Rules, partition: int, series: Series) -> list[PeriodUse]:
    """The newest PERIODS_MAX periods of a series in which something counts, newest first."""
    tenant, metric, _customer = series
    adjustments = state.adjustments[partition]
    found: dict[int, tuple[int, Counter | None]] = {}
    counter = state.counters[partition].get(series)
    while counter is not None and len(found) < PERIODS_MAX:
        found[counter.start_us] = (counter.end_us, counter)
        counter = counter.older
    for adjustment in adjustments.of_series(series):
        # Reverted ones too: what they added may have been pushed, and has to be taken back.
        if adjustment.status in ("approved", "reverted"):
            found.setdefault(adjustment.start_us, (adjustment.end_us, None))
    uses = []
    for start_us in sorted(found, reverse=True)[:PERIODS_MAX]:
        end_us, held = found[start_us]
        aggregation = rules.aggregation(tenant, metric, start_us)
        corrections = adjustments.of_counter((*series, start_us))
        micros = effective_value(held, corrections, aggregation)
        historic = state.historic[partition].get((*series, start_us))
        hold = None
        if historic is not None and aggregation == "sum":
            micros -= historic
        elif historic is not None:
            # What it was without them is not known: neither more nor less may follow from it.
            hold = "a historic import changed it, and those are never pushed"
        newest_us = start_us if held is None else held.watermark_us
        uses.append(PeriodUse(start_us, end_us, micros, newest_us, hold))
    return uses
