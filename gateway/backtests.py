"""`POST /v1/simulations/backtest`: recorded usage at today's prices and at a candidate's, side by side.

Rules it keeps: what could not be compared is listed with its reason and size, and then the answer is not `complete`;
amounts are exact. Nothing is stored. It must not know how usage is priced (engine.actors.backtests).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, NamedTuple

import msgspec

from engine.actors.backtests import Asked, Compared
from engine.core.exact_json import decode_exactly, exact_json, number
from engine.core.period_totals import Range
from engine.core.times import TimeError, parse_date, parse_instant_or_relative
from engine.errors import Refused
from engine.pricing.backtest import Change
from engine.pricing.documents import price_document, read_price
from engine.pricing.errors import PricingError
from engine.pricing.prices import PriceConfig
from gateway import parameters
from gateway.money_shapes import NULL, Money, MoneyOrNull, PriceDocument
from gateway.problems import Problem, wrong_fields
from gateway.projection import PriceView, price_view
from gateway.routes import Answer, Call
from gateway.shapes import CustomerRef, Instant, MetricName, TenantId, instant_or_none

CUSTOMERS_DEFAULT: Final = 100
CUSTOMERS_MAX: Final = 100_000
METRICS_MAX: Final = 1_000
PRICES_SHOWN_MAX: Final = 100
BACKTEST_PARAMETERS: Final = (parameters.TENANT, parameters.NUMBERS)
_Moment = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=100,
        description="A day, an instant, or a signed duration from now.",
        extra_json_schema={
            "x-instead": {
                "anyOf": [*parameters.DAY_SCHEMA["anyOf"], parameters.RELATIVE_SCHEMA],
                "examples": ["2026-01-01", "2026-01-01T00:00:00Z", "-P90D"],
            }
        },
    ),
]


class BacktestBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Periods that begin in [since, until), at today's prices and at the candidate's."""

    tenant_id: TenantId | None = None
    customer_ref: CustomerRef | None = None
    since: _Moment
    until: Annotated[_Moment, msgspec.Meta(description="Exclusive; without it now.")] | None = None
    metric: (
        Annotated[
            MetricName, msgspec.Meta(description="Of a single priceConfig: whose price it is.")
        ]
        | None
    ) = None
    price_config: Annotated[
        msgspec.Raw,
        msgspec.Meta(
            description=(
                "The candidate: one price configuration, or one for each metric by its name. Metrics that it does not "
                "name keep today's price. It prices what today's price is for: of a price at Stripe billable units."
            ),
            extra_json_schema={
                "type": "object",
                "examples": [{"calls": {"model": "flat", "currency": "USD", "unitPrice": 0.01}}],
            },
        ),
    ]
    limit: Annotated[
        int,
        msgspec.Meta(
            description="Winners and losers that are listed, each the largest changes first.",
            ge=0,
            le=CUSTOMERS_MAX,
        ),
    ] = CUSTOMERS_DEFAULT


class RevenueChange(msgspec.Struct, rename="camel", kw_only=True):
    """Revenue at today's prices and at the candidate's."""

    today: MoneyOrNull
    candidate: MoneyOrNull
    difference: MoneyOrNull


class MonthChange(msgspec.Struct, rename="camel", kw_only=True):
    """Revenue of the periods that begin in a month."""

    month: Annotated[str, msgspec.Meta(examples=["2026-01"])]
    today: Money
    candidate: Money
    difference: Money


class CustomerChange(msgspec.Struct, rename="camel", kw_only=True):
    """What a customer pays, over all periods."""

    customer_ref: CustomerRef
    today: Money
    candidate: Money
    difference: Money


class BandView(msgspec.Struct, rename="camel", kw_only=True):
    """Customers whose bill changes by more than `abovePercent` and at most `upToPercent`."""

    above_percent: Annotated[
        int | None, msgspec.Meta(description="Null: no end; both null: pays nothing today.")
    ]
    up_to_percent: int | None
    customers: int


class SkippedView(msgspec.Struct, rename="camel", kw_only=True):
    """What is in no amount here, and why."""

    reason: str
    metrics: list[str]
    customers: int
    counters: int


class MetricPrices(msgspec.Struct, rename="camel", kw_only=True):
    """The prices that were compared."""

    metric: MetricName
    today: Annotated[
        list[PriceView],
        msgspec.Meta(description=f"Customers may have their own; {PRICES_SHOWN_MAX} at most."),
    ]
    candidate: Annotated[PriceDocument, msgspec.Meta(description="Null: it keeps today's price.")]


class BacktestView(msgspec.Struct, rename="camel", kw_only=True):
    """What a price change would have done."""

    tenant_id: TenantId
    customer_ref: CustomerRef | None
    since: Instant
    until: Instant
    currency: str
    total: RevenueChange
    months: list[MonthChange]
    winners: Annotated[list[CustomerChange], msgspec.Meta(description="They would pay less.")]
    winners_total: int
    losers: Annotated[list[CustomerChange], msgspec.Meta(description="They would pay more.")]
    losers_total: int
    same: Annotated[int, msgspec.Meta(description="Customers who would pay the same.")]
    distribution: list[BandView]
    counters: Annotated[int, msgspec.Meta(description="Totals that were priced twice.")]
    complete: Annotated[bool, msgspec.Meta(description="Nothing was skipped.")]
    skipped: list[SkippedView]
    unused_metrics: Annotated[
        list[str], msgspec.Meta(description="Named by the candidate, and used by nobody.")
    ]
    prices: list[MetricPrices]


class _Candidate(NamedTuple):
    prices: dict[str, PriceConfig]
    currency: str


async def backtest(call: Call) -> Answer | Problem:
    """POST /v1/simulations/backtest."""
    assert call.tenant is not None
    body: BacktestBody = call.body
    since_us = _moment("since", body.since, call.now_us)
    until_us = call.now_us if body.until is None else _moment("until", body.until, call.now_us)
    if since_us >= until_us:
        return wrong_fields([("since", "must be before until")])
    wanted = Range(call.tenant, body.customer_ref, since_us, until_us, call.now_us)
    candidate = _candidate(call, body)
    found = await call.gateway.backtests.run(Asked(wanted, candidate.prices, candidate.currency))
    return Answer(_view(call, wanted, candidate, found, body.limit))


def _moment(field: str, text: str, now_us: int) -> int:
    try:
        if len(text) == len("YYYY-MM-DD"):
            return parse_date(text)
        return parse_instant_or_relative(text, now_us)
    except TimeError as error:
        raise Refused(f"{field} {error}", ((field, str(error)),)) from None


def _candidate(call: Call, body: BacktestBody) -> _Candidate:
    """The candidate's prices by metric, all in one currency. Raises Refused."""
    try:
        document = decode_exactly(body.price_config)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _refused("priceConfig", f"is not valid JSON: {error}") from None
    if not isinstance(document, dict) or not document:
        raise _refused("priceConfig", "must be a price configuration, or one for each metric")
    is_single = "model" in document and not isinstance(document["model"], dict)
    if is_single:
        document = {_only_metric(call, body): document}
    elif body.metric is not None:
        raise _refused("metric", "is for a single priceConfig: name the metric in it")
    if len(document) > METRICS_MAX:
        raise _refused("priceConfig", f"must name at most {METRICS_MAX} metrics")
    prices: dict[str, PriceConfig] = {}
    errors: list[tuple[str, str]] = []
    for metric, one in document.items():
        try:
            prices[metric] = read_price(
                one, "priceConfig" if is_single else f"priceConfig.{metric}"
            )
        except PricingError as error:
            errors += error.errors
    if errors:
        raise PricingError(errors)
    currencies = sorted({price.currency for price in prices.values()})
    if len(currencies) > 1:
        raise _refused("priceConfig", f"must be in one currency, not {' and '.join(currencies)}")
    return _Candidate(prices, currencies[0])


def _only_metric(call: Call, body: BacktestBody) -> str:
    """Whose price a single configuration is: the metric that is named, else the only one that is mapped."""
    if body.metric is not None:
        return body.metric
    assert call.tenant is not None
    mapped = sorted(call.gateway.meter.registry.mapped_metrics(call.tenant))
    if len(mapped) != 1:
        raise _refused(
            "metric", "says whose price priceConfig is: name it, or give a configuration a metric"
        )
    return mapped[0]


def _refused(field: str, message: str) -> Refused:
    return Refused(f"{field} {message}", ((field, message),))


def _view(
    call: Call, wanted: Range, candidate: _Candidate, found: Compared, limit: int
) -> BacktestView:
    as_string = call.numbers_as_strings
    result = found.backtest
    is_known = found.counters > 0 or not found.skipped
    total = _amounts(result.total, as_string=as_string)
    metrics = sorted(found.today.keys() | candidate.prices.keys())
    return BacktestView(
        tenant_id=wanted.tenant,
        customer_ref=wanted.customer_ref,
        since=instant_or_none(wanted.since_us) or "",
        until=instant_or_none(wanted.until_us) or "",
        currency=result.currency,
        total=RevenueChange(**(total if is_known else dict.fromkeys(total, NULL))),
        months=[
            MonthChange(month=one.name, **_amounts(one, as_string=as_string))
            for one in result.months
        ],
        winners=[_customer(one, as_string=as_string) for one in result.winners[:limit]],
        winners_total=len(result.winners),
        losers=[_customer(one, as_string=as_string) for one in result.losers[:limit]],
        losers_total=len(result.losers),
        same=result.same,
        distribution=[
            BandView(
                above_percent=band.above_percent,
                up_to_percent=band.up_to_percent,
                customers=band.customers,
            )
            for band in result.distribution
        ],
        counters=found.counters,
        complete=not found.skipped,
        skipped=[
            SkippedView(
                reason=one.reason,
                metrics=list(one.metrics[:METRICS_MAX]),
                customers=one.customers,
                counters=one.counters,
            )
            for one in found.skipped
        ],
        unused_metrics=list(found.unused),
        prices=[
            MetricPrices(
                metric=metric,
                today=[
                    price_view(one, call.now_us, as_string=as_string)
                    for one in found.today.get(metric, ())[:PRICES_SHOWN_MAX]
                ],
                candidate=_price(candidate.prices.get(metric), as_string=as_string),
            )
            for metric in metrics
        ],
    )


def _price(price: PriceConfig | None, *, as_string: bool) -> msgspec.Raw:
    if price is None:
        return NULL
    return msgspec.Raw(exact_json(price_document(price), as_string=as_string))


def _amounts(change: Change, *, as_string: bool) -> dict[str, Any]:
    return {
        "today": number(change.today, as_string=as_string),
        "candidate": number(change.candidate, as_string=as_string),
        "difference": number(change.difference, as_string=as_string),
    }


def _customer(change: Change, *, as_string: bool) -> CustomerChange:
    return CustomerChange(customer_ref=change.name, **_amounts(change, as_string=as_string))
