"""What is said of reconciliation over HTTP: reports, summaries, runs, suggestions.

Rules it keeps: units are exact; what was not read is null, never 0; a share is rounded up to six digits, so that a
difference never looks like none. It must not know how a difference is judged.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Final, Literal

import msgspec

from engine.actors.reconciler import Job
from engine.core.finding_plan import units_text
from engine.core.finding_records import Cause, Gap, Repair
from gateway.push_shapes import TargetId
from gateway.shapes import CustomerRef, Instant, MetricName, TenantId, instant_or_none

_PCT_DIGITS: Final = 6
RowStatus = Literal["ok", "investigate", "resolved"]
Verdict = Literal["agrees", "lagging", "differs", "unread"]
_Number = Annotated[
    msgspec.Raw, msgspec.Meta(extra_json_schema={"type": ["number", "string"], "examples": [1500]})
]
_NumberOrNull = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="null: not read yet.",
        extra_json_schema={"type": ["number", "string", "null"]},
    ),
]


class CauseView(msgspec.Struct, rename="camel", kw_only=True):
    """A difference, and why."""

    id: Annotated[str, msgspec.Meta(description="The finding's, and its suggestion's.")]
    cause: Cause
    gap: Annotated[
        Gap,
        msgspec.Meta(
            description=(
                "What differs: `push`: pushed from billable; `stripe`: Stripe from pushed; `invoice`: the invoice from "
                "Stripe; `usage`: billable from what was used."
            )
        ),
    ]
    units: Annotated[
        str,
        msgspec.Meta(
            description="Missing on the side that is behind; negative: it holds more.",
            examples=["-7"],
        ),
    ]
    reason: str | None
    since: Instant
    repair: Repair | None
    repaired: Annotated[
        bool, msgspec.Meta(description="Its repair was made; it ends when the numbers agree.")
    ]


class ReportRow(msgspec.Struct, rename="camel", kw_only=True):
    """One total at Stripe and its numbers, in the units that Stripe gets."""

    id: TargetId
    tenant_id: TenantId
    metric: MetricName
    customer_ref: CustomerRef
    customer_refs: Annotated[
        list[CustomerRef], msgspec.Meta(description="All whose usage goes to this total.")
    ]
    subscription_item_id: str | None
    stripe_customer_id: str | None
    period_start: Annotated[str, msgspec.Meta(examples=["2026-01-01"])]
    period_end: Annotated[
        Instant | None,
        msgspec.Meta(description="Null of usage that reaches no total at Stripe."),
    ]
    local_total: _Number
    pushed_total: _Number
    stripe_total: _NumberOrNull
    baseline_offset: Annotated[
        msgspec.Raw,
        msgspec.Meta(
            description="What Stripe holds beside what counts as pushed, as it was found or accepted.",
            extra_json_schema={"type": ["number", "string"]},
        ),
    ]
    invoiced_total: _NumberOrNull
    diff: Annotated[
        msgspec.Raw,
        msgspec.Meta(
            description="localTotal + baselineOffset - stripeTotal.",
            extra_json_schema={"type": ["number", "string", "null"]},
        ),
    ]
    drift_pct: _NumberOrNull
    status: RowStatus
    verdict: Annotated[
        Verdict,
        msgspec.Meta(
            description="Of Stripe's summary against what was pushed, when it was read last."
        ),
    ]
    causes: list[CauseView]
    finalizes_at: Instant | None
    looked_at: Instant | None
    created_at: Annotated[Instant, msgspec.Meta(description="When this row was made: now.")]


class Suggestion(msgspec.Struct, rename="camel", kw_only=True):
    """A repair that a person can apply."""

    id: str
    cause: Cause
    target_id: str | None
    tenant_id: str
    metric: str
    customer_ref: str | None
    units: str
    action: Repair
    alternatives: list[Repair]
    reason: str | None
    created_at: Instant


class Notice(msgspec.Struct, rename="camel", kw_only=True):
    """A finding about many targets at once."""

    id: str
    cause: Cause
    account: str
    targets: int
    reason: str | None
    since: Instant


class ReportSummary(msgspec.Struct, rename="camel", kw_only=True):
    """How many rows stand how."""

    total: int
    ok: int
    investigating: int
    resolved: int
    lagging: Annotated[int, msgspec.Meta(description="Rows that Stripe does not show all of yet.")]
    unread: Annotated[
        int,
        msgspec.Meta(
            description=(
                "Totals that Stripe did not tell at the last look, or was not asked yet; also those that have no row "
                "here, since Stripe has not said where they belong, or no run has found yet that they go nowhere."
            )
        ),
    ]
    max_diff: _Number
    green: Annotated[
        bool,
        msgspec.Meta(description="Every number there can be was read, and all agree exactly."),
    ]


class Report(msgspec.Struct, rename="camel", kw_only=True):
    """A month's totals, the worst first."""

    period: str
    reports: list[ReportRow]
    truncated: Annotated[
        bool, msgspec.Meta(description="There are more rows than were given: ask for the CSV.")
    ]
    suggested_adjustments: list[Suggestion]
    notices: list[Notice]
    summary: ReportSummary
    epsilon: str
    last_run_at: Instant | None


class SummaryLine(msgspec.Struct, kw_only=True):
    """One metric's totals."""

    metric: str
    local: _Number
    pushed: _Number
    stripe: _Number
    drift_abs: Annotated[
        msgspec.Raw,
        msgspec.Meta(
            description="The sum of what differs at each total, so that two never cancel.",
            extra_json_schema={"type": ["number", "string"]},
        ),
    ]
    drift_pct: _Number
    items: int
    unread: Annotated[
        int,
        msgspec.Meta(description="Of `items`, those that Stripe did not tell at the last look."),
    ]


class Overall(msgspec.Struct, kw_only=True):
    """All metrics together."""

    local: _Number
    pushed: _Number
    stripe: _Number
    drift_abs: _Number
    drift_pct: _Number
    items: int
    unread: Annotated[
        int,
        msgspec.Meta(
            description=(
                "Totals that Stripe did not tell at the last look, or was not asked yet; also those that are in no sum "
                "here, since Stripe has not said where they belong, or no run has found yet that they go nowhere."
            )
        ),
    ]


class Summary(msgspec.Struct, rename="camel", kw_only=True):
    """Totals per metric over some months."""

    period_start: str
    period_end: str
    per_metric: list[SummaryLine]
    overall: Overall


class ReconciliationRunBody(
    msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True
):
    """What to compare now."""

    tenant_id: TenantId | None = None


class JobView(msgspec.Struct, rename="camel", kw_only=True):
    """A run."""

    id: str
    job_id: str
    tenant_id: str | None
    status: Literal["pending", "running", "completed", "failed"]
    total: Annotated[int, msgspec.Meta(description="Totals at Stripe to look at.")]
    done: int
    unread: Annotated[int, msgspec.Meta(description="Of them, those that Stripe did not answer.")]
    created_at: Instant
    started_at: Instant | None
    ended_at: Instant | None
    second_look_at: Annotated[
        Instant | None,
        msgspec.Meta(description="When what seemed to differ is looked at again, and told."),
    ]
    error: str | None


class ApplyBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Which suggestions to apply."""

    adjustment_ids: Annotated[
        list[Annotated[str, msgspec.Meta(min_length=1, max_length=64)]],
        msgspec.Meta(min_length=1, max_length=100),
    ]
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
    action: Annotated[
        Literal["accept"] | None,
        msgspec.Meta(description="`accept`: the difference is known and stays; else its repair."),
    ] = None
    tenant_id: TenantId | None = None


class Applied(msgspec.Struct, rename="camel", kw_only=True):
    """What became of one."""

    id: str
    status: Literal["applied", "failed"]
    error: str | None = None


class ApplyAnswer(msgspec.Struct, rename="camel", kw_only=True):
    """What became of all."""

    applied: int
    failed: int
    results: list[Applied]


def number(value: Fraction | int | None, *, as_string: bool = False) -> msgspec.Raw:
    """An exact amount as JSON; None: null."""
    if value is None:
        return msgspec.Raw(b"null")
    text = units_text(Fraction(value))
    return msgspec.Raw((f'"{text}"' if as_string else text).encode())


def share(drift: Fraction, stripe: Fraction) -> Fraction:
    """Drift / stripe, rounded up to six digits: a difference never looks like none; 1 when Stripe has nothing."""
    if drift == 0:
        return Fraction(0)
    if stripe == 0:
        return Fraction(1)
    scaled = abs(drift / stripe) * 10**_PCT_DIGITS
    return Fraction(-(-scaled.numerator // scaled.denominator), 10**_PCT_DIGITS)


def job_view(job: Job) -> JobView:
    """A run as the API shows it."""
    return JobView(
        id=job.id,
        job_id=job.id,
        tenant_id=job.tenant,
        status=job.status,
        total=job.total,
        done=job.done,
        unread=job.unread,
        created_at=instant_or_none(job.created_at_us) or "",
        started_at=instant_or_none(job.started_at_us),
        ended_at=instant_or_none(job.ended_at_us),
        second_look_at=instant_or_none(job.second_look_at_us),
        error=job.error,
    )
