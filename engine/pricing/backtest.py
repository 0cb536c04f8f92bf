"""What a price change would have done: recorded usage priced as today and with a candidate, customer by customer.

Rules kept here: both sides price the same quantities with the same code, each line rounded as on an invoice, so that
today's prices reproduce what was billed and a candidate equal to them changes nothing; a metric that the candidate does
not name keeps today's price; a metric without any price is an error, never free. Lines are compared, with their minimum
and maximum charge; commitments, credits and tax, which a price change does not touch, are left out.

It must not know where the quantities were recorded, nor how the result is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Final, NamedTuple

from engine.pricing.charges import charge_exactly, limited
from engine.pricing.errors import PricingError
from engine.pricing.money import ZERO, average, exact_arithmetic, round_money
from engine.pricing.prices import PriceConfig

BANDS: Final = (-50, -20, -10, -5, 0, 5, 10, 20, 50)
"""Edges of the distribution, in percent of today's amount."""


class UsageOfMonth(NamedTuple):
    """One counter: what a customer used of a metric in a period. `month` is its label, such as 2026-01."""

    customer_ref: str
    month: str
    metric: str
    quantity: Decimal


class PricedUsage(NamedTuple):
    """The same with the prices that this customer has today and would have: customers may have prices of their own."""

    customer_ref: str
    month: str
    metric: str
    quantity: Decimal
    today: PriceConfig
    candidate: PriceConfig


class Change(NamedTuple):
    """Revenue of one month or from one customer, as priced today and by the candidate."""

    name: str
    today: Decimal
    candidate: Decimal

    @property
    def difference(self) -> Decimal:
        """What the candidate adds; negative where it takes off."""
        with exact_arithmetic():
            return self.candidate - self.today


class Band(NamedTuple):
    """How many customers' bills change by more than `above_percent` and at most `up_to_percent`; None: no end.

    The band from None to None holds the customers who pay nothing today and something then.
    """

    above_percent: int | None
    up_to_percent: int | None
    customers: int


class Backtest(NamedTuple):
    """The result. `winners` pay less with the candidate, `losers` more, the largest change first; the others are `same`."""

    currency: str
    months: tuple[Change, ...]
    winners: tuple[Change, ...]
    losers: tuple[Change, ...]
    same: int
    distribution: tuple[Band, ...]
    total: Change


def backtest(
    usage: Iterable[UsageOfMonth],
    today: Mapping[str, PriceConfig],
    candidate: Mapping[str, PriceConfig],
) -> Backtest:
    """Price `usage` with today's configuration per metric and with the candidate's. Pure; one pass over the usage.

    Raises PricingError for a metric without a price and for two currencies.
    """
    currency = _one_currency(today, candidate)

    def priced() -> Iterator[PricedUsage]:
        for customer_ref, month, metric, quantity in usage:
            price = today.get(metric)
            new = candidate.get(metric, price)
            if price is None or new is None:
                message = "has usage but no price: give it one, 0 if it is free"
                raise PricingError([(f"prices.{metric}", message)])
            yield PricedUsage(customer_ref, month, metric, quantity, price, new)

    return backtest_priced(priced(), currency)


def backtest_priced(usage: Iterable[PricedUsage], currency: str) -> Backtest:
    """The same where customers have prices of their own, all of them in `currency`. Pure; one pass.

    Raises PricingError for another currency.
    """
    months: dict[str, list[Decimal]] = {}
    customers: dict[str, list[Decimal]] = {}
    with exact_arithmetic():
        for customer_ref, month, metric, quantity, price, new in usage:
            if not price.currency == currency == new.currency:
                message = f"is {price.currency} and {new.currency}, not {currency}: compare one currency at a time"
                raise PricingError([(f"prices.{metric}.currency", message)])
            before = _line_amount(price, quantity)
            after = before if new is price else _line_amount(new, quantity)
            for sums, key in ((months, month), (customers, customer_ref)):
                pair = sums.setdefault(key, [ZERO, ZERO])
                pair[0] += before
                pair[1] += after
        changes = [Change(name, *pair) for name, pair in customers.items()]
        total = Change(
            "total",
            sum((change.today for change in changes), start=round_money(ZERO, currency)),
            sum((change.candidate for change in changes), start=round_money(ZERO, currency)),
        )
    moved = sorted(changes, key=lambda change: (-change.difference.copy_abs(), change.name))
    return Backtest(
        currency=currency,
        months=tuple(Change(name, *months[name]) for name in sorted(months)),
        winners=tuple(change for change in moved if change.candidate < change.today),
        losers=tuple(change for change in moved if change.candidate > change.today),
        same=sum(change.candidate == change.today for change in changes),
        distribution=_distribution(changes),
        total=total,
    )


def _one_currency(today: Mapping[str, PriceConfig], candidate: Mapping[str, PriceConfig]) -> str:
    found = ""
    for side, prices in (("today", today), ("candidate", candidate)):
        for metric, price in prices.items():
            if found and price.currency != found:
                message = (
                    f"is {price.currency}, and others are {found}: compare one currency at a time"
                )
                raise PricingError([(f"{side}.{metric}.currency", message)])
            found = price.currency
    if not found:
        raise PricingError([("today", "must name at least one metric's price")])
    return found


def _line_amount(price: PriceConfig, quantity: Decimal) -> Decimal:
    return round_money(limited(price, charge_exactly(price, quantity).amount), price.currency)


def _distribution(changes: Iterable[Change]) -> tuple[Band, ...]:
    edges = (None, *BANDS, None)
    counts = [0] * (len(edges) - 1)
    from_nothing = 0
    for change in changes:
        if change.today == 0:
            from_nothing += change.candidate > 0
            continue
        percent = _percent(change)
        counts[sum(percent > edge for edge in BANDS)] += 1
    bands = [Band(edges[index], edges[index + 1], count) for index, count in enumerate(counts)]
    return (*bands, Band(None, None, from_nothing))


def _percent(change: Change) -> Decimal:
    with exact_arithmetic():
        grown = average(change.candidate, change.today)
        return (grown - 1).scaleb(2)
