"""`GET /v1/usage/explain`: how a total came about, part by part.

Rules it keeps: quantities leave exactly as they are counted; of a sum, the parts' amounts add up to the total. It must
not know how the parts are found (engine.core.explain), nor what they cost (gateway.explain_price).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from engine.actors.as_of import Prefix
from engine.actors.price_book import NoPrice
from engine.core.explain import (
    AdjustmentPart,
    Explainer,
    Explanation,
    LatePart,
    Origin,
    ReplayPart,
)
from engine.core.quantities import to_json
from engine.core.times import TimeError, format_date, parse_date
from gateway import parameters
from gateway.as_of import AS_OF, AsOfView, view_of
from gateway.explain_price import NO_PRICES_HERE, LineExplained, explain_price
from gateway.parameters import Parameter
from gateway.problems import Problem
from gateway.routes import Answer, Call
from gateway.shapes import (
    CustomerRef,
    Instant,
    MetricName,
    Period,
    Quantity,
    TenantId,
    instant_or_none,
)
from gateway.usage import METRIC

_Position = Annotated[int, msgspec.Meta(description="A position in the log.")]
_Amount = Annotated[
    Quantity, msgspec.Meta(description="What it adds to the sum now; 0 unless it is approved.")
]


class DayView(msgspec.Struct, rename="camel", kw_only=True):
    """The events of one UTC day that were counted when they came."""

    day: str
    count: int
    sum: Quantity
    first_position: _Position
    last_position: _Position


class ReplayView(msgspec.Struct, rename="camel", kw_only=True):
    """Late events that a replay counted; `position` is that of its record."""

    position: _Position
    at: Instant
    actor: str
    plan_hash: str
    adjustment_ids: tuple[str, ...]
    count: int
    sum: Quantity
    first_position: _Position
    last_position: _Position


class LateView(msgspec.Struct, rename="camel", kw_only=True):
    """Late events that share one decision."""

    adjustment_id: str
    status: str
    count: int
    sum: Quantity
    amount: _Amount
    first_position: _Position | None
    last_position: _Position | None
    decided_at: Instant | None
    decided_by: str | None


class CorrectionView(msgspec.Struct, rename="camel", kw_only=True):
    """An adjustment that somebody made. `amount` is null for a value, which replaces and does not add."""

    adjustment_id: str
    kind: str
    status: str
    value: Quantity
    amount: Annotated[
        msgspec.Raw,
        msgspec.Meta(
            description="What it adds to the sum now; 0 unless it is approved; null for a value.",
            extra_json_schema={"type": ["number", "string", "null"]},
        ),
    ]
    position: _Position
    reason: str
    actor: str
    note: str | None
    created_at: Instant
    decided_at: Instant | None
    decided_by: str | None


class CountedView(msgspec.Struct, rename="camel", kw_only=True):
    """What the counter itself holds: days and replays, without adjustments."""

    sum: Quantity
    max: Quantity
    last: Quantity
    count: int


class WinnerView(msgspec.Struct, rename="camel", kw_only=True):
    """The event or adjustment that a max or last comes from."""

    via: Annotated[
        str, msgspec.Meta(description="`event`, `late`, `replay` (a late event) or `adjustment`.")
    ]
    position: _Position
    quantity: Quantity
    timestamp: Instant | None
    adjustment_id: str | None


class RestView(msgspec.Struct, rename="camel", kw_only=True):
    """Late collections and adjustments beyond the first thousand of each, together."""

    lines: int
    amount: Quantity


class UsageExplained(msgspec.Struct, rename="camel", kw_only=True):
    """Everything that made a total. Of a sum: days + replays + amounts = total, to the last digit."""

    tenant_id: TenantId
    customer_ref: CustomerRef
    metric: MetricName
    period: Period
    aggregation: str
    total: Quantity
    counted: CountedView
    days: list[DayView]
    replays: list[ReplayView]
    late: list[LateView]
    adjustments: list[CorrectionView]
    rest: RestView
    decided_by: Annotated[
        WinnerView | None, msgspec.Meta(description="Of max and last; null for a sum.")
    ]
    as_of: Annotated[AsOfView, msgspec.Meta(description="The part of the log that was looked at.")]
    line: Annotated[
        LineExplained | None,
        msgspec.Meta(
            description="What it costs: from the amount to tiers, days and log positions."
        ),
    ] = None
    line_reason: Annotated[str | None, msgspec.Meta(description="Why there is no line.")] = (
        NO_PRICES_HERE
    )


async def explain(call: Call) -> Answer | Problem:
    """GET /v1/usage/explain."""
    assert call.tenant is not None
    query = call.query
    series = (call.tenant, query["metric"], query["customerRef"])
    past = call.gateway.meter.started.as_of
    prefix = await past.prefix(query["asOf"])
    explainer = Explainer(series, query["periodStart"])
    await past.series(prefix, series, explainer, ts_us_min=query["periodStart"])
    found = await call.gateway.meter.run_blocking(lambda: explainer.explanation(prefix.at_us))
    answer = explained(found, prefix, as_string=call.numbers_as_strings)
    price = await call.gateway.prices.price_of(*series, found.start_us)
    line = explain_price(found, price, call.now_us, as_string=call.numbers_as_strings)
    if isinstance(line, NoPrice):
        answer.line_reason = line.reason
    else:
        answer.line, answer.line_reason = line, None
    return Answer(answer)


def explained(found: Explanation, prefix: Prefix, *, as_string: bool) -> UsageExplained:
    """An explanation as JSON shows it."""

    def write(micros: int) -> msgspec.Raw:
        return to_json(micros, as_string=as_string)

    tenant, metric, customer_ref = found.series
    counted = found.counted
    return UsageExplained(
        tenant_id=tenant,
        customer_ref=customer_ref,
        metric=metric,
        period=Period(_instant(found.start_us), _instant(found.end_us)),
        aggregation=found.aggregation,
        total=write(found.total_micros),
        counted=CountedView(
            sum=write(counted.sum),
            max=write(counted.max),
            last=write(counted.last),
            count=counted.count,
        ),
        days=[
            DayView(
                day=format_date(day.day_us),
                count=day.events,
                sum=write(day.sum_micros),
                first_position=day.first_position,
                last_position=day.last_position,
            )
            for day in found.days
        ],
        replays=[_replay(one, write) for one in found.replays],
        late=[_late(one, write) for one in found.late],
        adjustments=[_correction(one, write) for one in found.adjustments],
        rest=RestView(lines=found.rest.lines, amount=write(found.rest.amount_micros)),
        decided_by=None if found.decided_by is None else _winner(found.decided_by, write),
        as_of=view_of(prefix),
    )


def _instant(us: int) -> str:
    return instant_or_none(us) or ""


def _replay(one: ReplayPart, write: Any) -> ReplayView:
    return ReplayView(
        position=one.position,
        at=_instant(one.at_us),
        actor=one.actor,
        plan_hash=one.plan_hash,
        adjustment_ids=one.adjustment_ids,
        count=one.events,
        sum=write(one.sum_micros),
        first_position=one.first_position,
        last_position=one.last_position,
    )


def _late(one: LatePart, write: Any) -> LateView:
    adjustment = one.adjustment
    return LateView(
        adjustment_id=adjustment.id,
        status=adjustment.status,
        count=one.events,
        sum=write(one.sum_micros),
        amount=write(one.amount_micros),
        first_position=one.first_position,
        last_position=one.last_position,
        decided_at=instant_or_none(adjustment.decided_at_us),
        decided_by=adjustment.decided_by,
    )


def _correction(one: AdjustmentPart, write: Any) -> CorrectionView:
    adjustment = one.adjustment
    return CorrectionView(
        adjustment_id=adjustment.id,
        kind=adjustment.kind,
        status=adjustment.status,
        value=write(adjustment.micros),
        amount=write(one.amount_micros) if adjustment.kind == "delta" else msgspec.Raw(b"null"),
        position=adjustment.sequence,
        reason=adjustment.reason,
        actor=adjustment.actor,
        note=adjustment.note,
        created_at=_instant(adjustment.created_at_us),
        decided_at=instant_or_none(adjustment.decided_at_us),
        decided_by=adjustment.decided_by,
    )


def _winner(one: Origin, write: Any) -> WinnerView:
    return WinnerView(
        via=one.via,
        position=one.position,
        quantity=write(one.micros),
        timestamp=instant_or_none(one.ts_us),
        adjustment_id=one.adjustment_id,
    )


def _date(text: str, _now_us: int) -> int:
    try:
        return parse_date(text)
    except TimeError as error:
        raise ValueError(str(error)) from None


EXPLAIN_PARAMETERS: Final = (
    parameters.TENANT,
    parameters.text("customerRef", "The customer.", required=True),
    METRIC._replace(required=True),
    Parameter(
        "periodStart",
        _date,
        {"type": "string", "format": "date", "examples": ["2026-01-01"]},
        "The UTC day on which the period begins.",
        required=True,
    ),
    AS_OF,
    parameters.NUMBERS,
)
