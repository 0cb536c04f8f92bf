"""The invoice of one customer for one period: lines, commitments, credits, tax, total.

The order of things, each step on the result of the one before (docs/pricing.md shows it with numbers):

1. each line: the exact charge, raised to the minimum charge, cut to the maximum charge, prorated by seconds, and then
   rounded half up to the currency's minor unit, once;
2. subtotal: the sum of the rounded lines;
3. commitments draw down what is left of each, at most what is left of the bill: a commitment never adds a charge;
4. credits that have not expired before the period's end, at most what is left of the bill;
5. tax on the rest, rounded once; total = the rest + tax.

Rules kept here: one invoice has one currency; the order in which items, commitments or credits are given changes no
amount; subtotal - credits + adjustments + tax = total, to the last digit. It must not know how a charge is computed
(engine.pricing.charges), how a document is read or written, nor the present.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal, NamedTuple

from engine.pricing.charges import TierPart, charge_exactly, limited
from engine.pricing.errors import PricingError
from engine.pricing.instants import SECOND_US
from engine.pricing.money import (
    HUNDRED,
    RATE_FRACTION_DIGITS_MAX,
    ZERO,
    average,
    currency_code,
    exact,
    exact_arithmetic,
    fraction_digits,
    minor_digits,
    not_negative,
    plain_text,
    round_money,
    share_of_money,
)
from engine.pricing.prices import PriceConfig

USAGE_ITEMS_MAX: Final = 1_000
DEDUCTIONS_MAX: Final = 1_000
"""Commitments, and credits, of one invoice."""
_NEVER_US: Final = 1 << 62
_AVERAGED: Final = frozenset({"tiered", "graduated"})
"""Models in which one line can have several prices."""


@dataclass(frozen=True, slots=True)
class UsageItem:
    """How much of a metric was used, and its price.

    `start_us` and `end_us` bound the part of the period in which the item was there (None: from its start, to its end):
    the line is prorated by whole seconds. Usage is not prorated; seats and fees that came or went in between are.
    """

    metric: str
    quantity: Decimal
    price: PriceConfig
    start_us: int | None = None
    end_us: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "quantity", exact(self.quantity, "quantity"))
        if self.start_us is not None and self.end_us is not None and self.end_us <= self.start_us:
            raise PricingError([("endDate", "must be after startDate")])


@dataclass(frozen=True, slots=True)
class Commitment:
    """Spend that was agreed and paid for: draws a bill down while a period overlaps [start_us, end_us).

    `applied` is what earlier periods drew; more than `amount` leaves nothing, and never a charge.
    """

    amount: Decimal
    start_us: int
    end_us: int
    applied: Decimal = ZERO

    def __post_init__(self) -> None:
        object.__setattr__(self, "amount", not_negative(self.amount, "amount"))
        object.__setattr__(self, "applied", not_negative(self.applied, "applied"))
        if self.end_us <= self.start_us:
            raise PricingError([("endDate", "must be after startDate")])


@dataclass(frozen=True, slots=True)
class Credit:
    """Money that a customer was given; it counts unless it expired before the period's end."""

    amount: Decimal
    reason: str = ""
    expires_us: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "amount", not_negative(self.amount, "amount"))


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceInput:
    """All that an invoice depends on. The period is half-open; `tax_rate` is in percent.

    `currency` is only needed without usage items. Raises PricingError for two currencies, for money finer than the
    currency's minor unit, and for a period that does not end after its start.
    """

    customer_id: str
    period_start_us: int
    period_end_us: int
    usage_items: Sequence[UsageItem]
    commitments: Sequence[Commitment] = ()
    credits: Sequence[Credit] = ()
    tax_rate: Decimal = ZERO
    currency: str = ""

    def __post_init__(self) -> None:
        if self.period_end_us // SECOND_US <= self.period_start_us // SECOND_US:
            raise PricingError([("periodEnd", "must be at least one second after periodStart")])
        for name in ("usage_items", "commitments", "credits"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        rate = not_negative(self.tax_rate, "taxRate")
        if rate > HUNDRED or fraction_digits(rate) > RATE_FRACTION_DIGITS_MAX:
            digits = f"with at most {RATE_FRACTION_DIGITS_MAX} digits after the point"
            raise PricingError([("taxRate", f"must be a percentage from 0 to 100, {digits}")])
        object.__setattr__(self, "tax_rate", rate)
        object.__setattr__(self, "currency", self._one_currency())
        self._check_sizes()
        self._check_money()

    def _one_currency(self) -> str:
        currency = currency_code(self.currency, "currency") if self.currency else ""
        for index, item in enumerate(self.usage_items):
            found = item.price.currency
            if currency and found != currency:
                field = f"usageItems[{index}].priceConfig.currency"
                message = (
                    f"is {found}, and the invoice is in {currency}: an invoice has one currency"
                )
                raise PricingError([(field, message)])
            currency = found
        if not currency:
            raise PricingError([("currency", "is needed when there are no usageItems")])
        return currency

    def _check_sizes(self) -> None:
        sizes = (
            ("usageItems", self.usage_items, USAGE_ITEMS_MAX),
            ("commitments", self.commitments, DEDUCTIONS_MAX),
            ("credits", self.credits, DEDUCTIONS_MAX),
        )
        for field, things, most in sizes:
            if len(things) > most:
                raise PricingError([(field, f"must be at most {most}")])

    def _check_money(self) -> None:
        digits = minor_digits(self.currency)
        amounts = [
            (f"commitments[{index}].{field}", amount)
            for index, one in enumerate(self.commitments)
            for field, amount in (("amount", one.amount), ("applied", one.applied))
        ]
        amounts += [
            (f"credits[{index}].amount", one.amount) for index, one in enumerate(self.credits)
        ]
        for field, amount in amounts:
            if fraction_digits(amount) > digits:
                message = (
                    f"must have at most {digits} digits after the point, as {self.currency} has"
                )
                raise PricingError([(field, message)])


class LineItem(NamedTuple):
    """One line. `subtotal` is what is billed; `charge` is the exact sum of `tiers`, `limited` after minimum and maximum.

    `unit_price` is the configured one in flat and volume, a package's in package, else the average of the charge.
    `active_seconds` of `period_seconds` is the share of the period that is billed.
    """

    metric: str
    quantity: Decimal
    unit_price: Decimal
    subtotal: Decimal
    tiers: tuple[TierPart, ...]
    charge: Decimal
    limited: Decimal
    active_seconds: int
    period_seconds: int
    price: PriceConfig

    @property
    def description(self) -> str:
        """The line in words."""
        text = f"{plain_text(self.quantity)} {self.metric}, {self.price.model}"
        if self.quantity < 0:
            text += ", below zero: billed as 0"
        if self.limited != self.charge:
            text += (
                ", raised to the minimum" if self.limited > self.charge else ", cut to the maximum"
            )
        if self.active_seconds != self.period_seconds:
            text += f", {self.active_seconds} of {self.period_seconds} seconds"
        return text


class Draw(NamedTuple):
    """What one commitment or credit took off the bill. `place` is its index in the input."""

    kind: Literal["commitment", "credit"]
    place: int
    amount: Decimal


class Invoice(NamedTuple):
    """A bill. subtotal - credits + adjustments + tax = total; every amount has the currency's digits.

    `credits` is all that was taken off: `commitments_applied` + `credits_applied`, listed in `draws`. `adjustments` is 0:
    corrections of usage are in the quantities already, and there are none of money.
    """

    customer_id: str
    period_start_us: int
    period_end_us: int
    line_items: tuple[LineItem, ...]
    subtotal: Decimal
    commitments_applied: Decimal
    credits_applied: Decimal
    credits: Decimal
    adjustments: Decimal
    tax: Decimal
    total: Decimal
    currency: str
    draws: tuple[Draw, ...]


def make_invoice(inputs: InvoiceInput) -> Invoice:
    """The invoice of these inputs: a pure function, exact to the last digit."""
    with exact_arithmetic():
        lines = tuple(_line(item, inputs) for item in inputs.usage_items)
        subtotal = sum((line.subtotal for line in lines), start=round_money(ZERO, inputs.currency))
        draws = _drawn(inputs, subtotal)
        nothing = subtotal - subtotal
        from_commitments = sum(
            (draw.amount for draw in draws if draw.kind == "commitment"), start=nothing
        )
        from_credits = sum((draw.amount for draw in draws if draw.kind == "credit"), start=nothing)
        taxable = subtotal - from_commitments - from_credits
        assert taxable >= 0, "deductions end where the bill ends"
        tax = round_money((taxable * inputs.tax_rate).scaleb(-2), inputs.currency)
        return Invoice(
            customer_id=inputs.customer_id,
            period_start_us=inputs.period_start_us,
            period_end_us=inputs.period_end_us,
            line_items=lines,
            subtotal=subtotal,
            commitments_applied=from_commitments,
            credits_applied=from_credits,
            credits=from_commitments + from_credits,
            adjustments=nothing,
            tax=tax,
            total=taxable + tax,
            currency=inputs.currency,
            draws=draws,
        )


def _line(item: UsageItem, inputs: InvoiceInput) -> LineItem:
    price = item.price
    amount, parts = charge_exactly(price, item.quantity)
    after_limits = limited(price, amount)
    active, whole = active_seconds(
        inputs.period_start_us, inputs.period_end_us, item.start_us, item.end_us
    )
    if active == whole:
        subtotal = round_money(after_limits, price.currency)
    else:
        subtotal = share_of_money(after_limits, active, whole, price.currency)
    unit_price = parts[0].unit_price
    if price.model in _AVERAGED and item.quantity > 0:
        unit_price = average(amount, item.quantity)
    return LineItem(
        item.metric,
        item.quantity,
        unit_price,
        subtotal,
        parts,
        amount,
        after_limits,
        active,
        whole,
        price,
    )


def active_seconds(
    period_start_us: int, period_end_us: int, start_us: int | None, end_us: int | None
) -> tuple[int, int]:
    """(seconds of the period in [start, end), seconds of the period): instants are cut to whole seconds first."""
    first, last = period_start_us // SECOND_US, period_end_us // SECOND_US
    assert last > first, "InvoiceInput refuses such a period"
    start = first if start_us is None else max(first, start_us // SECOND_US)
    end = last if end_us is None else min(last, end_us // SECOND_US)
    return max(0, end - start), last - first


def _drawn(inputs: InvoiceInput, subtotal: Decimal) -> tuple[Draw, ...]:
    """What each commitment, then each credit takes off; what ends first is used first. Sums to at most `subtotal`."""
    left = subtotal
    draws = []
    for kind, place, available in (*_commitments(inputs), *_credits(inputs)):
        amount = min(available, left)
        if amount > 0:
            # The currency's digits, whatever the input wrote.
            draws.append(Draw(kind, place, round_money(amount, inputs.currency)))
            left -= amount
    return tuple(draws)


_Available = tuple[Literal["commitment", "credit"], int, Decimal]


def _commitments(inputs: InvoiceInput) -> list[_Available]:
    active = [
        (one.end_us, one.start_us, one.amount, one.applied, index)
        for index, one in enumerate(inputs.commitments)
        if one.start_us < inputs.period_end_us and one.end_us > inputs.period_start_us
    ]
    return [
        ("commitment", index, amount - applied) for _, _, amount, applied, index in sorted(active)
    ]


def _credits(inputs: InvoiceInput) -> list[_Available]:
    valid = [
        (_NEVER_US if one.expires_us is None else one.expires_us, one.amount, one.reason, index)
        for index, one in enumerate(inputs.credits)
        if one.expires_us is None or one.expires_us >= inputs.period_end_us
    ]
    return [("credit", index, amount) for _, amount, _, index in sorted(valid)]
