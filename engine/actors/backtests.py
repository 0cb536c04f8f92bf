"""What recorded usage would have cost at another price: totals of all periods of a range, each priced twice.

Rules it keeps: today's price of a customer is the one that a projection uses, and a candidate prices the same quantity,
so that today's prices change nothing; what can't be compared (no price, another currency) is listed with its reason and
its size, never taken for 0; counting goes on meanwhile, so one runs at a time, in a thread. It must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

import trio

from engine.actors.price_book import CARRIED, KnownPrice, NoPrice, Payer, PriceBook
from engine.actors.supervisor import Meter
from engine.core.partitions import partition_of
from engine.core.period_totals import PeriodTotal, Range, period_totals
from engine.core.times import format_date
from engine.errors import Refused, Unavailable
from engine.pricing.backtest import Backtest, PricedUsage, backtest_priced
from engine.pricing.prices import PriceConfig

COUNTERS_MAX: Final = 1_000_000
"""Of one backtest: some 250 MB while it runs."""
WAITING_MAX: Final = 4
PRICES_SECONDS_MAX: Final = 20
"""For asking Stripe about all prices; what is known by then is kept, and the next one goes on from there."""
_NOT_IN_TIME: Final = NoPrice(
    "its price was not asked of Stripe in time: run it again, what is known by then is kept"
)


class Asked(NamedTuple):
    """Whose usage, and the candidate's price by metric; metrics that it does not name keep today's."""

    usage: Range
    candidate: Mapping[str, PriceConfig]
    currency: str


class Skipped(NamedTuple):
    """Counters that could not be compared for one reason."""

    reason: str
    metrics: tuple[str, ...]
    customers: int
    counters: int


class Compared(NamedTuple):
    """The result. `today` has the distinct prices by metric, in order of first use."""

    backtest: Backtest
    counters: int
    skipped: tuple[Skipped, ...]
    today: dict[str, list[KnownPrice]]
    unused: tuple[str, ...]
    """Metrics that the candidate names and nobody used in the range."""


_Payers = dict[tuple[str, str], Payer]
"""By metric and customer."""
_Prices = dict[Payer, KnownPrice | NoPrice]


class Backtests:
    """The backtests of a running meter."""

    def __init__(self, meter: Meter, prices: PriceBook) -> None:
        self._meter = meter
        self._prices = prices
        self._turn = trio.CapacityLimiter(1)

    async def run(self, asked: Asked) -> Compared:
        """Price everything twice. Raises Refused (too much) or Unavailable (others wait)."""
        if self._turn.statistics().tasks_waiting >= WAITING_MAX:
            raise Unavailable("too many backtests wait already; retry", retry_after_seconds=10)
        async with self._turn:
            totals = await self._totals(asked.usage)
            payers = await self._payers(asked.usage.tenant, totals)
            prices = await self._known(asked.usage.tenant, set(payers.values()))
            return await self._meter.run_blocking(partial(_compare, asked, totals, payers, prices))

    async def _totals(self, wanted: Range) -> list[PeriodTotal]:
        found: list[PeriodTotal] = []
        for shard in self._meter.shards:
            for partition in shard.state.counters:
                if wanted.customer_ref is not None and partition != partition_of(
                    wanted.tenant, wanted.customer_ref
                ):
                    continue
                for some in period_totals(shard.state, partition, wanted):
                    found += some
                    if len(found) > COUNTERS_MAX:
                        message = (
                            f"holds more than {COUNTERS_MAX:,} totals: ask for a shorter range"
                        )
                        raise Refused(f"the range {message}", (("since", message),))
                    await trio.lowlevel.checkpoint()
        return found

    async def _payers(self, tenant: str, totals: Sequence[PeriodTotal]) -> _Payers:
        """What each customer is billed by today."""
        payers: _Payers = {}
        one_of_each: dict[Payer, Payer] = {}
        for number, total in enumerate(totals):
            key = (total.metric, total.customer_ref)
            if key not in payers:
                payer = self._prices.payer(tenant, *key)
                payers[key] = one_of_each.setdefault(payer, payer)
            if number % 2_000 == 0:
                await trio.lowlevel.checkpoint()
        return payers

    async def _known(self, tenant: str, wanted: set[Payer]) -> _Prices:
        known: _Prices = {}
        with trio.move_on_after(PRICES_SECONDS_MAX):
            # Those without an item first: they are few, and most customers' price.
            for payer in sorted(wanted, key=lambda one: (one.item or "", one.metric)):
                known[payer] = await self._prices.price_for(tenant, payer)
        return known


class _Left:
    """What is left out for one reason."""

    def __init__(self) -> None:
        self.metrics: set[str] = set()
        self.customers: set[str] = set()
        self.counters = 0

    def add(self, total: PeriodTotal) -> None:
        self.metrics.add(total.metric)
        self.customers.add(total.customer_ref)
        self.counters += 1


def _compare(
    asked: Asked,
    totals: Sequence[PeriodTotal],
    payers: _Payers,
    prices: _Prices,
) -> Compared:
    left: dict[str, _Left] = {}
    used: dict[str, dict[tuple[str, str | None, PriceConfig], KnownPrice]] = {}
    noted: set[int] = set()
    """Identities of prices in `used`: hashing one for each total would cost as much as pricing it."""
    counted = 0
    months: dict[int, str] = {}

    def priced() -> Iterator[PricedUsage]:
        nonlocal counted
        for total in totals:
            payer = payers[total.metric, total.customer_ref]
            today = prices.get(payer, _NOT_IN_TIME)
            if payer.carried_us == total.start_us:
                today = CARRIED
            if isinstance(today, NoPrice) or today.config.currency != asked.currency:
                left.setdefault(_why_not(asked, today), _Left()).add(total)
                continue
            counted += 1
            if id(today) not in noted:
                noted.add(id(today))
                key = (today.source, today.price_id, today.config)
                used.setdefault(total.metric, {}).setdefault(key, today)
            month = months.get(total.start_us)
            if month is None:
                month = months[total.start_us] = format_date(total.start_us)[:7]
            yield PricedUsage(
                total.customer_ref,
                month,
                total.metric,
                today.quantity(total.micros),
                today.config,
                asked.candidate.get(total.metric, today.config),
            )

    found = backtest_priced(priced(), asked.currency)
    skipped = tuple(
        Skipped(reason, tuple(sorted(of.metrics)), len(of.customers), of.counters)
        for reason, of in sorted(left.items())
    )
    seen = {total.metric for total in totals}
    unused = tuple(sorted(asked.candidate.keys() - seen))
    today = {metric: list(of.values()) for metric, of in used.items()}
    return Compared(found, counted, skipped, today, unused)


def _why_not(asked: Asked, today: KnownPrice | NoPrice) -> str:
    """Why a total can't be compared."""
    if isinstance(today, NoPrice):
        return today.reason
    found = today.config.currency
    return f"it is billed in {found}, and the candidate is in {asked.currency}: compare one currency at a time"
