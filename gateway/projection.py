"""`POST /v1/usage/projection`: what a customer's invoice would be now, line by line, and at the period's end.

Rules it keeps: amounts are exact decimals; a metric without a price has `total: null` and a reason, and the answer is
not `complete`; a period that is over has no estimate. It must not know how a price is found (engine.actors.price_book)
or an estimate is made (engine.core.extrapolation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from engine.actors.price_book import KnownPrice
from engine.actors.projections import LINES_MAX, Asked, Estimate, ProjectedLine, sum_of
from engine.core.exact_json import exact_json, number
from engine.core.extrapolation import Method
from engine.core.quantities import to_json
from engine.core.shard_state import MetricUsage, ShardState
from engine.core.times import DAY_US, TimeError, parse_date
from engine.core.usage import usage_at, usage_within
from engine.pricing.charges import TierPart
from engine.pricing.documents import price_document
from engine.pricing.invoice import LineItem
from engine.pricing.money import plain
from gateway import parameters
from gateway.as_of import AS_OF, AsOfField, AsOfView, view_of
from gateway.money_shapes import NULL, Money, MoneyOrNull, PriceDocument
from gateway.problems import Problem, wrong_fields
from gateway.routes import Answer, Call
from gateway.shapes import CustomerRef, Instant, MetricName, Period, Quantity, TenantId
from gateway.shapes import instant_or_none as _instant
from gateway.usage import Freshness, common_period, freshness_of

RANGE_DAYS_MAX: Final = 366
PROJECTION_PARAMETERS: Final = (parameters.TENANT, AS_OF, parameters.NUMBERS)
_Day = Annotated[
    str,
    msgspec.Meta(
        min_length=10,
        max_length=10,
        extra_json_schema={"format": "date", "examples": ["2026-01-01"]},
    ),
]


class ProjectionBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Whose invoice, and of which period: without days the running one."""

    tenant_id: TenantId | None = None
    customer_ref: CustomerRef
    period_start: (
        Annotated[_Day, msgspec.Meta(description="The UTC day on which the period begins.")] | None
    ) = None
    period_end: (
        Annotated[
            _Day,
            msgspec.Meta(
                description="With it every period that begins from periodStart on and before this day."
            ),
        ]
        | None
    ) = None


class PriceView(msgspec.Struct, rename="camel", kw_only=True):
    """A price and where it comes from."""

    source: Annotated[
        Literal["subscriptionItem", "stripePrice", "mapping"],
        msgspec.Meta(
            description=(
                "`subscriptionItem`: what the customer's own item at Stripe bills by; `stripePrice`: the mapping's "
                "priceId; `mapping`: its priceConfig, since no subscription is known."
            )
        ),
    ]
    config: PriceDocument
    unit: Annotated[
        Literal["billable", "used"],
        msgspec.Meta(
            description="`billable`: prices floor(total x stripeScale), as Stripe is sent it; `used`: the total."
        ),
    ]
    stripe_scale: Annotated[
        str | None, msgspec.Meta(description="Billable units of one unit of use.")
    ]
    price_id: str | None
    subscription_item_id: str | None
    read_at: Annotated[Instant | None, msgspec.Meta(description="When Stripe said so.")]
    age_seconds: Annotated[int | None, msgspec.Meta(description="How long ago that was.")]
    stale_because: Annotated[
        str | None,
        msgspec.Meta(description="Why it is the last known one: Stripe could not be asked again."),
    ]


class TierView(msgspec.Struct, rename="camel", kw_only=True):
    """Units that were priced alike: amount = quantity x unitPrice + flatPrice, not rounded."""

    start: Quantity = msgspec.field(name="from")
    up_to: MoneyOrNull
    quantity: Quantity
    unit_price: Money
    flat_price: Money
    amount: Money


class Bound(msgspec.Struct, rename="camel", kw_only=True):
    """An end of the range."""

    quantity: Quantity
    total: Money


class LineEstimate(msgspec.Struct, rename="camel", kw_only=True):
    """A line at its period's end."""

    quantity: Quantity
    total: Money
    method: Annotated[
        Method,
        msgspec.Meta(
            description=(
                "`weekdays`: the rest of the period is made of days like those of the last full weeks, weekday by "
                "weekday; `runRate`: the rate so far goes on; `asItIs`: a max or last stays."
            )
        ),
    ]
    weeks: Annotated[int, msgspec.Meta(description="Of `weekdays`: full weeks it is made of.")]
    low: Annotated[Bound, msgspec.Meta(description="If it goes on as in the slowest week or day.")]
    high: Annotated[
        Bound | None,
        msgspec.Meta(description="As in the fastest; null: too little is known to say."),
    ]


class ProjectionLine(msgspec.Struct, rename="camel", kw_only=True):
    """One metric on the invoice."""

    metric: MetricName
    aggregation: str
    period: Period
    used: Annotated[Quantity, msgspec.Meta(description="The total as it is counted.")]
    quantity: Annotated[Quantity, msgspec.Meta(description="What of it the price is for.")]
    unit_price: MoneyOrNull
    total: MoneyOrNull
    currency: str | None
    description: str | None
    tiers: list[TierView] | UnsetType = UNSET
    price: PriceView | None
    reason: Annotated[str | None, msgspec.Meta(description="Why `total` is null.")]
    pending_late: Annotated[
        int, msgspec.Meta(description="Late events that wait for a decision; not in the total.")
    ]
    projected: LineEstimate | UnsetType = UNSET


class SumEstimate(msgspec.Struct, rename="camel", kw_only=True):
    """All lines at their periods' ends. `quantity` is that of a single line."""

    quantity: Annotated[
        msgspec.Raw,
        msgspec.Meta(
            description="Of one line alone; quantities of several metrics have no sum.",
            extra_json_schema={"type": ["number", "string", "null"]},
        ),
    ]
    total: Money
    low: Annotated[Money, msgspec.Meta(description="The sum of the lines' low ends.")]
    high: MoneyOrNull


class Projection(msgspec.Struct, rename="camel", kw_only=True):
    """What the invoice would be. Commitments, credits and taxes are Stripe's: none is known here."""

    tenant_id: TenantId
    customer_ref: CustomerRef
    period_start: Instant
    period_end: Instant
    line_items: list[ProjectionLine]
    subtotal: MoneyOrNull
    credits: MoneyOrNull
    tax: MoneyOrNull
    total: Annotated[MoneyOrNull, msgspec.Meta(description="The sum of the lines with a price.")]
    currency: str | None
    complete: Annotated[
        bool, msgspec.Meta(description="Every line has an amount, and all are in one currency.")
    ]
    unpriced: Annotated[list[str], msgspec.Meta(description="Metrics without an amount.")]
    reason: Annotated[str | None, msgspec.Meta(description="Why `total` is null.")]
    freshness: Freshness
    projected: SumEstimate | UnsetType = UNSET
    as_of: AsOfField = UNSET


class _Found(NamedTuple):
    """The usage that is asked about, by whichever state."""

    usage: list[MetricUsage]
    state: ShardState
    period_us: tuple[int, int]
    now_us: int
    end: int | None
    as_of: AsOfView | UnsetType


async def projection(call: Call) -> Answer | Problem:
    """POST /v1/usage/projection."""
    body: ProjectionBody = call.body
    assert call.tenant is not None
    day_us = _day(body.period_start, "periodStart")
    end_us = _day(body.period_end, "periodEnd")
    for one in (day_us, end_us):
        if isinstance(one, Problem):
            return one
    assert not isinstance(day_us, Problem)
    assert not isinstance(end_us, Problem)
    if day_us is not None and day_us > call.now_us:
        return wrong_fields([("periodStart", "must not be in the future")])
    if (problem := _wrong_end(day_us, end_us)) is not None:
        return problem
    found = await _usage(call, body.customer_ref, day_us, end_us)
    if len(found.usage) > LINES_MAX:
        return wrong_fields([("periodEnd", f"makes more than {LINES_MAX} lines: ask for less")])
    asked = Asked(call.tenant, body.customer_ref, found.now_us, found.state, found.end)
    lines = await call.gateway.projections.lines(asked, found.usage)
    return Answer(_view(call, asked, found, lines))


def _wrong_end(day_us: int | None, end_us: int | None) -> Problem | None:
    if end_us is None:
        return None
    if day_us is None:
        return wrong_fields([("periodEnd", "needs periodStart")])
    if not day_us < end_us <= day_us + RANGE_DAYS_MAX * DAY_US:
        message = f"must be after periodStart, by at most {RANGE_DAYS_MAX} days"
        return wrong_fields([("periodEnd", message)])
    return None


def _day(text: str | None, field: str) -> int | Problem | None:
    try:
        return None if text is None else parse_date(text)
    except TimeError as error:
        return wrong_fields([(field, str(error))])


async def _usage(call: Call, customer_ref: str, day_us: int | None, end_us: int | None) -> _Found:
    """Usage in the periods that hold now, or the end of the day on which they begin, or that begin in a range."""
    assert call.tenant is not None
    meter = call.gateway.meter
    customer = (call.tenant, customer_ref)
    seen: AsOfView | UnsetType = UNSET
    end: int | None = None
    if call.query["asOf"] is None:
        shard, _partition = meter.shard_of_customer(*customer)
        registry, state, now_us = meter.registry, shard.state, call.now_us
    else:
        past = meter.started.as_of
        prefix = await past.prefix(call.query["asOf"])
        fold = await past.customer(prefix, *customer)
        registry, state, now_us = fold.registry, fold.state, prefix.at_us
        end, seen = prefix.end, view_of(prefix)
    if day_us is not None and end_us is not None:
        usage = usage_within(registry, state, customer, (day_us, end_us), LINES_MAX)
        return _Found(usage, state, (day_us, end_us), now_us, end, seen)
    at_us = now_us if day_us is None else day_us + DAY_US - 1
    usage = usage_at(registry, state, *customer, at_us)
    period_us = common_period(state.rules, at_us, customer, usage)
    return _Found(usage, state, period_us, now_us, end, seen)


def _view(call: Call, asked: Asked, found: _Found, lines: Sequence[ProjectedLine]) -> Projection:
    as_string = call.numbers_as_strings
    start_us, end_us = found.period_us
    priced = [line.line for line in lines if line.line is not None]
    summed = sum_of(priced)
    nothing = None if summed.amount is None else summed.amount - summed.amount
    unpriced = list(dict.fromkeys(line.used.metric for line in lines if line.line is None))
    return Projection(
        tenant_id=asked.tenant,
        customer_ref=asked.customer_ref,
        period_start=_instant(start_us) or "",
        period_end=_instant(end_us) or "",
        line_items=[_line(line, call.now_us, as_string=as_string) for line in lines],
        subtotal=number(summed.amount, as_string=as_string),
        credits=number(nothing, as_string=as_string),
        tax=number(nothing, as_string=as_string),
        total=number(summed.amount, as_string=as_string),
        currency=summed.currency,
        complete=not unpriced and summed.amount is not None,
        unpriced=unpriced,
        reason=summed.reason,
        freshness=freshness_of(found.usage, found.now_us),
        projected=_estimate_of_all(lines, as_string=as_string),
        as_of=found.as_of,
    )


def _line(one: ProjectedLine, now_us: int, *, as_string: bool) -> ProjectionLine:
    used, line = one.used, one.line
    estimate: LineEstimate | UnsetType = UNSET
    if one.estimate is not None:
        estimate = _estimate(one.estimate, as_string=as_string)
    return ProjectionLine(
        metric=used.metric,
        aggregation=used.aggregation,
        period=Period(_instant(used.start_us) or "", _instant(used.end_us) or ""),
        used=to_json(used.current, as_string=as_string),
        quantity=to_json(used.current, as_string=as_string)
        if line is None
        else number(plain(line.quantity), as_string=as_string),
        unit_price=NULL if line is None else number(plain(line.unit_price), as_string=as_string),
        total=NULL if line is None else number(line.subtotal, as_string=as_string),
        currency=None if one.price is None else one.price.config.currency,
        description=None if line is None else line.description,
        tiers=tiers_of(line, as_string=as_string),
        price=None if one.price is None else price_view(one.price, now_us, as_string=as_string),
        reason=one.reason,
        pending_late=used.pending_count,
        projected=estimate,
    )


def tiers_of(line: LineItem | None, *, as_string: bool) -> list[TierView] | UnsetType:
    """The tiers of a line whose price has any."""
    if line is None or not line.price.tiers:
        return UNSET
    return [_tier(part, as_string=as_string) for part in line.tiers]


def _tier(part: TierPart, *, as_string: bool) -> TierView:
    above, quantity, unit, flat, amount = (
        number(plain(value), as_string=as_string)
        for value in (part.above, part.quantity, part.unit_price, part.flat_price, part.amount)
    )
    end = None if part.up_to is None else plain(part.up_to)
    return TierView(
        start=above,
        up_to=number(end, as_string=as_string),
        quantity=quantity,
        unit_price=unit,
        flat_price=flat,
        amount=amount,
    )


def price_view(price: KnownPrice, now_us: int, *, as_string: bool) -> PriceView:
    """A price as the API shows it."""
    read_us = price.read_at_us
    return PriceView(
        source=price.source,
        config=msgspec.Raw(exact_json(price_document(price.config), as_string=as_string)),
        unit="used" if price.scale is None else "billable",
        stripe_scale=price.scale,
        price_id=price.price_id,
        subscription_item_id=price.item,
        read_at=_instant(read_us),
        age_seconds=None if read_us is None else max(0, now_us - read_us) // 1_000_000,
        stale_because=price.stale_because,
    )


def _bound(line: LineItem, *, as_string: bool) -> Bound:
    return Bound(
        quantity=number(plain(line.quantity), as_string=as_string),
        total=number(line.subtotal, as_string=as_string),
    )


def _estimate(one: Estimate, *, as_string: bool) -> LineEstimate:
    expected = _bound(one.line, as_string=as_string)
    return LineEstimate(
        quantity=expected.quantity,
        total=expected.total,
        method=one.of.method,
        weeks=one.of.weeks,
        low=_bound(one.low, as_string=as_string),
        high=None if one.high is None else _bound(one.high, as_string=as_string),
    )


def _estimate_of_all(lines: Sequence[ProjectedLine], *, as_string: bool) -> SumEstimate | UnsetType:
    """A line without an estimate of its own is over, and stays as it is; all of them over: nothing to estimate."""
    priced = [line for line in lines if line.line is not None]
    if not any(line.estimate for line in priced):
        return UNSET

    def ends(pick: Callable[[Estimate], LineItem | None]) -> list[LineItem]:
        """Without those of which nothing is known."""
        found = (one.line if one.estimate is None else pick(one.estimate) for one in priced)
        return [line for line in found if line is not None]

    expected, low = sum_of(ends(lambda one: one.line)), sum_of(ends(lambda one: one.low))
    highs = ends(lambda one: one.high)
    high = sum_of(highs).amount if len(highs) == len(priced) else None
    if expected.amount is None:
        return UNSET
    [alone, *others] = ends(lambda one: one.line)
    return SumEstimate(
        quantity=NULL if others else number(plain(alone.quantity), as_string=as_string),
        total=number(expected.amount, as_string=as_string),
        low=number(low.amount, as_string=as_string),
        high=number(high, as_string=as_string),
    )
