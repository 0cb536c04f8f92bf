"""What a customer's usage costs now, and what it will by the period's end: usage, price and history put together.

Rules it keeps: a line has either an amount or a reason, never a 0 in an unknown price's place; a period that is over is
not extrapolated; what is priced is what Stripe bills, whole billable units of a price at Stripe. It must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from engine.actors.price_book import KnownPrice, NoPrice, PriceBook
from engine.actors.supervisor import Meter
from engine.core.extrapolation import (
    HISTORY_DAYS_MAX,
    Extrapolated,
    Running,
    extrapolate,
)
from engine.core.periods import first_whole_bucket
from engine.core.queries import HistoryQuery
from engine.core.shard_state import MetricUsage, ShardState
from engine.core.times import DAY_US
from engine.core.usage import uncounted_by_day
from engine.errors import Refused, Unavailable
from engine.pricing.errors import PricingError
from engine.pricing.invoice import InvoiceInput, LineItem, UsageItem, make_invoice
from engine.pricing.money import exact_arithmetic

LINES_MAX: Final = 1_000
"""Metrics of one customer in one answer: beyond that nobody reads it, and each may have to ask Stripe."""


LATE_EVENTS_MAX: Final = 10_000
"""Late events that are taken out of a history one by one. With more of them an estimate is by what was used alone."""


class Estimate(NamedTuple):
    """What a line will be at the period's end."""

    of: Extrapolated
    line: LineItem
    low: LineItem
    high: LineItem | None


class ProjectedLine(NamedTuple):
    """One metric. `line` None: `reason` says why it has no amount. `estimate` None: the period is over."""

    used: MetricUsage
    price: KnownPrice | None
    line: LineItem | None
    reason: str | None
    estimate: Estimate | None


class Asked(NamedTuple):
    """Whose projection, as of when and by which state; `end` is the log position of a question about the past."""

    tenant: str
    customer_ref: str
    now_us: int
    state: ShardState
    end: int | None = None


class Sum(NamedTuple):
    """The amounts of lines together; None: there is no sum, and why."""

    amount: Decimal | None
    currency: str | None
    reason: str | None


def line_of(
    price: KnownPrice, micros: int, start_us: int, end_us: int, metric: str
) -> LineItem | NoPrice:
    """A total's line on an invoice of its period; NoPrice for numbers beyond all bounds of money."""
    try:
        item = UsageItem(metric, price.quantity(micros), price.config)
        inputs = InvoiceInput(
            customer_id="", period_start_us=start_us, period_end_us=end_us, usage_items=(item,)
        )
    except PricingError as error:
        return NoPrice(f"can't be priced: {error}")
    return make_invoice(inputs).line_items[0]


def sum_of(lines: Sequence[LineItem]) -> Sum:
    """Lines are rounded already: summed as they are, if they are in one currency."""
    currencies = sorted({line.price.currency for line in lines})
    if not currencies:
        return Sum(None, None, "no line has a price")
    if len(currencies) > 1:
        return Sum(None, None, f"the lines are in {' and '.join(currencies)}: there is no one sum")
    with exact_arithmetic():
        first, *others = (line.subtotal for line in lines)
        return Sum(sum(others, start=first), currencies[0], None)


class Projections:
    """The projections of a running meter."""

    def __init__(self, meter: Meter, prices: PriceBook) -> None:
        self._meter = meter
        self._prices = prices

    async def lines(self, asked: Asked, usage: Sequence[MetricUsage]) -> list[ProjectedLine]:
        """One line for each metric's use."""
        if len(usage) > LINES_MAX:
            raise Refused(f"the customer has more than {LINES_MAX} metrics: ask for their counters")
        return [await self._line(asked, used) for used in usage]

    async def _line(self, asked: Asked, used: MetricUsage) -> ProjectedLine:
        price = await self._prices.price_of(
            asked.tenant, used.metric, asked.customer_ref, used.start_us
        )
        if isinstance(price, NoPrice):
            return ProjectedLine(used, None, None, price.reason, None)
        line = line_of(price, used.current, used.start_us, used.end_us, used.metric)
        if isinstance(line, NoPrice):
            return ProjectedLine(used, price, None, line.reason, None)
        return ProjectedLine(used, price, line, None, await self._estimate(asked, used, price))

    async def _estimate(
        self, asked: Asked, used: MetricUsage, price: KnownPrice
    ) -> Estimate | None:
        period = Running(used.start_us, used.end_us, asked.now_us, used.current)
        if not used.start_us <= asked.now_us < used.end_us:
            return None
        by_day = await self._by_day(asked, used) if used.aggregation == "sum" else {}
        found = extrapolate(period, used.aggregation, by_day)
        assert found is not None, "the period is under way"

        def line(micros: int) -> LineItem | None:
            made = line_of(price, micros, used.start_us, used.end_us, used.metric)
            return None if isinstance(made, NoPrice) else made

        expected, low = line(found.micros), line(found.low_micros)
        if expected is None or low is None:
            return None
        high = None if found.high_micros is None else line(found.high_micros)
        return Estimate(found, expected, low, high)

    async def _by_day(self, asked: Asked, used: MetricUsage) -> dict[int, int]:
        """Micros that count by UTC day, as far back as an estimate looks; empty when nobody can say."""
        series = (asked.tenant, used.metric, asked.customer_ref)
        uncounted = uncounted_by_day(asked.state, *series, LATE_EVENTS_MAX)
        if uncounted is None:
            return {}
        today_us = asked.now_us - asked.now_us % DAY_US
        since_us = min(used.start_us, today_us - HISTORY_DAYS_MAX * DAY_US)
        query = HistoryQuery(
            tenant=asked.tenant,
            metric=used.metric,
            customer_ref=asked.customer_ref,
            # Of the day that holds the horizon a part was dropped.
            since_us=max(since_us, first_whole_bucket("day", self._meter.registry.horizon_us)),
            until_us=asked.now_us,
            interval="day",
            as_of=asked.end,
        )
        if query.since_us >= query.until_us:
            return {}
        try:
            found = await self._meter.started.indexer.history(query, lambda _: "sum")
        except Unavailable:
            return {}
        (line,) = found.series
        by_day = dict(zip(found.bucket_starts_us, line.values_micros, strict=True))
        return {day: max(0, micros - uncounted.get(day, 0)) for day, micros in by_day.items()}
