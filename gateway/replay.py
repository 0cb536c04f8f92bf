"""`POST /v1/replay`: late events folded into open periods, seen before they are applied.

Rules it keeps: a dry run unless it says apply; times are absolute or relative to now; what is answered is the plan,
its hash and what it changes. It must not know how a plan is made (engine.core.replay).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

from engine.actors.replays import Applied
from engine.core.quantities import to_json
from engine.core.replay import MetricChange, ReplayPlan, ReplayRequest
from engine.core.times import INSTANT_US_END, INSTANT_US_MIN, TimeError, parse_instant_or_relative
from gateway import parameters
from gateway.mapping_shapes import LatenessHours, lateness_us
from gateway.problems import Problem, wrong_fields
from gateway.routes import Answer, Call
from gateway.shapes import (
    Instant,
    MetricName,
    Period,
    Quantity,
    TenantId,
    decode_cursor,
    encode_cursor,
    instant_or_none,
)

IDS_SHOWN_MAX: Final = 100
Mode = Literal["dry-run", "apply"]
Moment = Annotated[
    str,
    msgspec.Meta(
        description="ISO 8601, or a signed duration from now.",
        max_length=100,
        extra_json_schema={"x-instead": parameters.WHEN_SCHEMA},
    ),
]


class ReplayBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """What to replay. Without times: the open periods."""

    tenant_id: TenantId | None = None
    metrics: (
        Annotated[
            list[MetricName],
            msgspec.Meta(
                description="Only these; without it every metric.", min_length=1, max_length=100
            ),
        ]
        | None
    ) = None
    since: Moment | None = None
    until: Moment | None = None
    mode: Mode | None = None
    dry_run: Annotated[bool, msgspec.Meta(description="Another way to say the mode.")] | None = None
    cursor: Annotated[str, msgspec.Meta(max_length=parameters.CURSOR_CHARS_MAX)] | None = None
    watermark: Moment | None = None
    lateness_hours: LatenessHours | None = None
    expect: (
        Annotated[
            str,
            msgspec.Meta(
                description="Apply only if the plan still has this hash.",
                min_length=1,
                max_length=100,
            ),
        ]
        | None
    ) = None


class ReplayChange(msgspec.Struct, rename="camel", kw_only=True):
    """What the replay changes in one metric."""

    events_found: Annotated[int, msgspec.Meta(description="Events of the time range, all of them.")]
    late_events: Annotated[
        int, msgspec.Meta(description="Late ones among them whose adjustment waits.")
    ]
    folded_events: Annotated[int, msgspec.Meta(description="Late ones that the replay counts.")]
    counter_delta: Annotated[
        Quantity, msgspec.Meta(description="By how much what counts changes, over all customers.")
    ]
    affected_customers: Annotated[int, msgspec.Meta(description="Customers whose use changes.")]


class ReplaySummary(msgspec.Struct, rename="camel", kw_only=True):
    """The changes of all metrics together."""

    events_found: int
    late_events: int
    folded_events: int
    affected_counters: Annotated[
        int, msgspec.Meta(description="Counters (metric, customer, period) that change.")
    ]
    superseded_adjustments: Annotated[
        int, msgspec.Meta(description="Adjustments that no longer hold any event.")
    ]
    superseded_adjustment_ids: Annotated[
        list[str], msgspec.Meta(description=f"At most {IDS_SHOWN_MAX} of them.")
    ]
    message: str


class ReplayAnswer(msgspec.Struct, rename="camel", kw_only=True):
    """What a replay changes, or changed."""

    mode: Mode
    tenant_id: TenantId
    metrics: list[str]
    time_range: Period
    changes: Annotated[dict[str, ReplayChange], msgspec.Meta(description="By metric.")]
    cursor: Annotated[
        str | None, msgspec.Meta(description="Go on with it: there is more in the time range.")
    ]
    watermark: Annotated[
        Instant | None,
        msgspec.Meta(description="The one given, else the newest of the counters looked at."),
    ]
    applied: bool
    plan_hash: str
    summary: ReplaySummary


class _Asked(NamedTuple):
    request: ReplayRequest
    mode: Mode
    metrics: list[str]
    start_us: int
    end_us: int


async def replay(call: Call) -> Answer | Problem:
    """POST /v1/replay."""
    asked = _asked(call)
    if isinstance(asked, Problem):
        return asked
    body: ReplayBody = call.body
    request = asked.request
    found = await call.gateway.meter.started.indexer.counts(
        request.tenant, request.metrics, asked.start_us, asked.end_us
    )
    done: Applied | None = None
    if asked.mode == "apply":
        done = await call.gateway.replays.apply(request, body.expect, call.by)
        plan = done.plan
        if not done.was_applied:
            call.gateway.metrics.reaggregated("replay", len(plan.counters))
    else:
        plan = await call.gateway.replays.preview(request)
        if body.expect is not None and body.expect != plan.plan_hash:
            return Problem(409, "the plan is no longer what was reviewed: look at it anew")
    return Answer(_view(call, asked, plan, found, done))


def _asked(call: Call) -> _Asked | Problem:
    """The request's body as a request to the engine."""
    body: ReplayBody = call.body
    assert call.tenant is not None
    mode = _mode(body)
    if isinstance(mode, Problem):
        return mode
    times: dict[str, int | None] = {}
    for name, text in (
        ("since", body.since),
        ("until", body.until),
        ("watermark", body.watermark),
    ):
        try:
            times[name] = None if text is None else parse_instant_or_relative(text, call.now_us)
        except TimeError as error:
            return wrong_fields([(name, str(error))])
    since_us, until_us, watermark_us = times["since"], times["until"], times["watermark"]
    if since_us is not None and until_us is not None and since_us >= until_us:
        return wrong_fields([("since", "must be before until")])
    lateness = lateness_us(body.lateness_hours)
    if isinstance(lateness, Problem):
        return lateness
    replays = call.gateway.replays
    metrics = sorted(set(body.metrics)) if body.metrics else replays.metrics(call.tenant)
    if since_us is not None:
        call.gateway.meter.registry.must_hold(since_us)
    open_only = since_us is None and until_us is None
    start_us = INSTANT_US_MIN if since_us is None else since_us
    end_us = INSTANT_US_END - 1 if until_us is None else until_us
    if open_only:
        start_us, end_us = replays.open_range(call.tenant, metrics, call.now_us)
    if body.cursor is not None:
        # The range of the first page: relative times would move with the clock.
        place = decode_cursor(body.cursor)
        if place is None or [type(part) for part in place] != [int, int, int, bool]:
            return wrong_fields([("cursor", parameters.CURSOR_REFUSED)])
        since_us, start_us, end_us, open_only = place[0], place[1], place[2], place[3]
        if not INSTANT_US_MIN <= start_us <= since_us <= end_us < INSTANT_US_END:
            return wrong_fields([("cursor", parameters.CURSOR_REFUSED)])
        until_us = None if open_only else end_us
    wanted = frozenset(body.metrics) if body.metrics else None
    request = ReplayRequest(
        call.tenant, wanted, since_us, until_us, watermark_us, lateness, open_only
    )
    return _Asked(request, mode, metrics, start_us, end_us)


def _mode(body: ReplayBody) -> Mode | Problem:
    said: Mode | None = None
    if body.dry_run is not None:
        said = "dry-run" if body.dry_run else "apply"
    if body.mode is not None and said not in (None, body.mode):
        return wrong_fields([("dryRun", f"says {said}, but mode says {body.mode}")])
    return body.mode or said or "dry-run"


def _view(
    call: Call, asked: _Asked, plan: ReplayPlan, found: dict[str, int], done: Applied | None
) -> ReplayAnswer:
    as_string = call.numbers_as_strings
    nothing = MetricChange(0, 0, 0, 0)
    was_applied = done is not None and done.was_applied
    changes = {} if was_applied else plan.changes
    shown = {
        metric: _change(changes.get(metric, nothing), found.get(metric, 0), as_string=as_string)
        for metric in asked.metrics
    }
    counters = 0 if was_applied else len(plan.counters)
    superseded = () if was_applied else plan.superseded
    cursor = None
    if plan.cursor_us is not None and not was_applied:
        place: list[Any] = [plan.cursor_us, asked.start_us, asked.end_us, asked.request.open_only]
        cursor = encode_cursor(place)
    return ReplayAnswer(
        mode=asked.mode,
        tenant_id=asked.request.tenant,
        metrics=asked.metrics,
        time_range=Period(
            instant_or_none(asked.start_us) or "", instant_or_none(asked.end_us) or ""
        ),
        changes=shown,
        cursor=cursor,
        watermark=instant_or_none(plan.watermark_us),
        applied=done is not None,
        plan_hash=plan.plan_hash,
        summary=ReplaySummary(
            events_found=sum(found.values()),
            late_events=sum(change.late_events for change in changes.values()),
            folded_events=sum(change.folded_events for change in changes.values()),
            affected_counters=counters,
            superseded_adjustments=len(superseded),
            superseded_adjustment_ids=list(superseded[:IDS_SHOWN_MAX]),
            message=_message(counters, done),
        ),
    )


def _change(change: MetricChange, found: int, *, as_string: bool) -> ReplayChange:
    return ReplayChange(
        events_found=found,
        late_events=change.late_events,
        folded_events=change.folded_events,
        counter_delta=to_json(change.delta_micros, as_string=as_string),
        affected_customers=change.customers,
    )


def _message(counters: int, done: Applied | None) -> str:
    if done is None:
        if counters:
            return f"{counters} counters would change; apply with expect: planHash"
        return "nothing would change"
    if done.was_applied:
        return "this plan was applied before; nothing changed now"
    return f"{counters} counters changed" if counters else "nothing changed"
