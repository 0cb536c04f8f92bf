"""`/v1/usage`: what a customer has used now, and a metric's use over time.

Rules it keeps: quantities leave exactly as they are counted; an event acknowledged before the request is in the
answer. It must not know how anything is counted.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Annotated, Final

import msgspec

from engine.core.periods import period_in, period_of
from engine.core.quantities import to_json
from engine.core.queries import HistoryQuery
from engine.core.registry import Registry
from engine.core.rules import Rules
from engine.core.shard_state import MetricUsage
from engine.core.usage import usage_at
from engine.limits import METRIC_CHARS_MAX
from gateway import parameters
from gateway.as_of import AS_OF, AsOfField, AsOfView, view_of
from gateway.problems import Problem, wrong_fields
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

INTERVALS: Final = ("minute", "hour", "day", "month")
_GROUPS: Final = ("customerRef", "resourceId")
_META_START: Final = "meta."


class MetricNow(msgspec.Struct, rename="camel", kw_only=True):
    """A customer's use of one metric in its running period."""

    name: MetricName
    current: Annotated[
        Quantity, msgspec.Meta(description="By the metric's aggregation, approved late events too.")
    ]
    aggregation: str
    unit: str | None
    sum: Quantity
    max: Quantity
    last: Quantity
    count: Annotated[int, msgspec.Meta(description="Events counted.")]
    watermark: Annotated[
        Instant | None, msgspec.Meta(description="How far in event time it was counted.")
    ]
    period: Period
    adjusted: Annotated[
        Quantity,
        msgspec.Meta(description="What approved adjustments make of `current`: their difference."),
    ]
    pending_late: Annotated[
        int, msgspec.Meta(description="Late events that wait for a decision; not in `current`.")
    ]


class UsageAlert(msgspec.Struct, kw_only=True):
    """An alert that concerns the customer. This release raises none."""

    type: str
    message: str
    severity: str


class Freshness(msgspec.Struct, rename="camel", kw_only=True):
    """When the newest of the counted events was received."""

    last_update: Instant | None
    staleness: Annotated[
        float | None,
        msgspec.Meta(description="Seconds since then. The answer itself is never old."),
    ]


class UsageNow(msgspec.Struct, rename="camel", kw_only=True):
    """What a customer has used in the running periods."""

    tenant_id: TenantId
    customer_ref: CustomerRef
    period: Annotated[
        Period,
        msgspec.Meta(
            description="The calendar month; the subscription's if all metrics go by that."
        ),
    ]
    metrics: list[MetricNow]
    alerts: list[UsageAlert]
    freshness: Freshness
    as_of: AsOfField = msgspec.UNSET


class HistoryPoint(msgspec.Struct, omit_defaults=True):
    """The use in one bucket."""

    ts: Annotated[Instant, msgspec.Meta(description="The bucket's start.")]
    value: Quantity
    group: Annotated[
        str | msgspec.UnsetType | None, msgspec.Meta(description="With `groupBy` only.")
    ] = msgspec.UNSET


class HistoryTotal(msgspec.Struct):
    """The use over the whole range."""

    value: Quantity


class HistoryGroup(msgspec.Struct):
    """The use of one group over the whole range."""

    group: str | None
    value: Quantity


class UsageHistory(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True):
    """A metric's use over time, in buckets; those without use are there with 0."""

    tenant_id: TenantId
    metric: MetricName
    time_range: Annotated[Period, msgspec.Meta(description="Widened to whole buckets.")]
    series: Annotated[
        list[HistoryPoint], msgspec.Meta(description="In order of group, then of time.")
    ]
    totals: HistoryTotal
    groups: Annotated[
        list[HistoryGroup] | msgspec.UnsetType, msgspec.Meta(description="With `groupBy` only.")
    ] = msgspec.UNSET
    as_of: AsOfField = msgspec.UNSET


async def current(call: Call) -> Answer | Problem:
    """GET /v1/usage/current."""
    assert call.tenant is not None
    tenant, customer_ref = call.tenant, call.query["customerRef"]
    meter, at_us = call.gateway.meter, call.now_us
    registry, rules = meter.registry, meter.rules
    seen: AsOfView | msgspec.UnsetType = msgspec.UNSET
    if call.query["asOf"] is None:
        usage = meter.usage_current(tenant, customer_ref, at_us)
    else:
        past = meter.started.as_of
        prefix = await past.prefix(call.query["asOf"])
        fold = await past.customer(prefix, tenant, customer_ref)
        at_us, seen = prefix.at_us, view_of(prefix)
        registry, rules = fold.registry, fold.state.rules
        usage = usage_at(registry, fold.state, tenant, customer_ref, at_us)
    as_string = call.numbers_as_strings
    metrics = [_metric_now(registry, tenant, one, as_string=as_string) for one in usage]
    return Answer(
        UsageNow(
            tenant_id=tenant,
            customer_ref=customer_ref,
            period=_period(*common_period(rules, at_us, (tenant, customer_ref), usage)),
            metrics=metrics,
            alerts=[],
            freshness=freshness_of(usage, at_us),
            as_of=seen,
        )
    )


def _metric_now(registry: Registry, tenant: str, one: MetricUsage, *, as_string: bool) -> MetricNow:
    counter = one.counter
    mapping = registry.active_mapping(tenant, one.metric)
    write = partial(to_json, as_string=as_string)
    return MetricNow(
        name=one.metric,
        current=write(one.current),
        aggregation=one.aggregation,
        unit=None if mapping is None else mapping.unit,
        sum=write(counter.sum if counter else 0),
        max=write(counter.max if counter else 0),
        last=write(counter.last if counter else 0),
        count=counter.count if counter else 0,
        watermark=instant_or_none(counter.watermark_us if counter else None),
        period=_period(one.start_us, one.end_us),
        adjusted=write(one.current - (counter.value(one.aggregation) if counter else 0)),
        pending_late=one.pending_count,
    )


def freshness_of(usage: list[MetricUsage], at_us: int) -> Freshness:
    """How new the newest counted event of these was at an instant."""
    updated_us = max(
        (one.counter.updated_at_us for one in usage if one.counter is not None), default=None
    )
    staleness = None if updated_us is None else max(0, at_us - updated_us) // 1000 / 1000
    return Freshness(last_update=instant_or_none(updated_us), staleness=staleness)


def common_period(
    rules: Rules, at_us: int, customer: tuple[str, str], usage: list[MetricUsage]
) -> tuple[int, int]:
    """The subscription's period if every metric goes by it, else the calendar month."""
    tenant, customer_ref = customer
    schedules = [rules.schedule(tenant, one.metric, customer_ref) for one in usage]
    kinds = {
        next(part.kind for part in reversed(schedule) if part.from_us <= at_us)
        for schedule in schedules
    }
    if kinds == {"subscription"}:
        return period_in(schedules[0], at_us)
    return period_of("calendar", at_us)


@lru_cache(maxsize=1024)
def _period(start_us: int, end_us: int) -> Period:
    return Period(instant_or_none(start_us) or "", instant_or_none(end_us) or "")


async def history(call: Call) -> Answer | Problem:
    """GET /v1/usage/history."""
    assert call.tenant is not None
    query = call.query
    meter = call.gateway.meter
    rules, end = meter.rules, None
    seen: AsOfView | msgspec.UnsetType = msgspec.UNSET
    since_us, until_us, now_us = query["since"], query["until"], call.now_us
    if query["asOf"] is not None:
        past = meter.started.as_of
        prefix = await past.prefix(query["asOf"])
        rules = (await past.rules(prefix)).state.rules
        now_us, seen, end = prefix.at_us, view_of(prefix), prefix.end
    if until_us is None:
        until_us = now_us
    if since_us >= until_us:
        return wrong_fields([("since", "must be before `until`")])
    meter.registry.must_hold_bucket(query["interval"], since_us)
    asked = HistoryQuery(
        tenant=call.tenant,
        metric=query["metric"],
        customer_ref=query["customerRef"],
        since_us=since_us,
        until_us=until_us,
        interval=query["interval"],
        group_by=query["groupBy"],
        as_of=end,
    )
    found = await meter.started.indexer.history(
        asked, partial(rules.aggregation, asked.tenant, asked.metric)
    )
    write = partial(to_json, as_string=call.numbers_as_strings)
    grouped = asked.group_by is not None
    starts = [instant_or_none(start_us) or "" for start_us in found.bucket_starts_us]
    return Answer(
        UsageHistory(
            tenant_id=asked.tenant,
            metric=asked.metric,
            time_range=_period(found.since_us, found.until_us),
            series=[
                HistoryPoint(start, write(micros), line.group if grouped else msgspec.UNSET)
                for line in found.series
                for start, micros in zip(starts, line.values_micros, strict=True)
            ],
            totals=HistoryTotal(write(found.total_micros)),
            groups=[HistoryGroup(line.group, write(line.total_micros)) for line in found.series]
            if grouped
            else msgspec.UNSET,
            as_of=seen,
        )
    )


def _group_by(text: str, _now_us: int) -> str:
    key = text.removeprefix(_META_START)
    if text not in _GROUPS and (not text.startswith(_META_START) or not 1 <= len(key) <= 255):
        raise ValueError("must be customerRef, resourceId or meta.KEY")
    return text


METRIC: Final = parameters.text("metric", "The metric.", METRIC_CHARS_MAX)
CURRENT_PARAMETERS: Final = (
    parameters.TENANT,
    parameters.text("customerRef", "The customer.", required=True),
    AS_OF,
    parameters.NUMBERS,
)
HISTORY_PARAMETERS: Final = (
    parameters.TENANT,
    METRIC._replace(required=True),
    parameters.text("customerRef", "Only this customer's use."),
    parameters.instant("since", "From here on; ISO 8601 or relative to now.", required=True),
    parameters.instant("until", "Up to here, exclusive; without it now."),
    parameters.choice("interval", "The width of a bucket.", INTERVALS, "day"),
    parameters.Parameter(
        "groupBy",
        _group_by,
        {
            "type": "string",
            "pattern": "^(customerRef|resourceId|meta\\..+)$",
            "maxLength": len(_META_START) + 255,
            "examples": ["customerRef", "resourceId", "meta.region"],
        },
        "One series for each value of this: customerRef, resourceId or meta.KEY.",
    ),
    AS_OF,
    parameters.NUMBERS,
)
