"""Reports of reconciliation: the rows of some periods, their sums, suggestions, and the same as CSV.

Rules it keeps: pushed and used are of now, Stripe's side is of the last look; a target's difference is added without its
sign, so that two never cancel; work is done in slices. It must not know HTTP.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction
from typing import Final, NamedTuple

import msgspec
import trio

from engine.actors.push_desk import TargetReport
from engine.actors.recon_looks import Look
from engine.actors.supervisor import Meter
from engine.core.csv_cells import text_cell
from engine.core.findings import OpenFinding
from engine.core.push_records import target_id
from engine.core.reconciling import GATHERED
from engine.core.times import days_in_month, format_date, format_instant, parse_date
from engine.limits import MICROS_PER_UNIT
from gateway.export_rows import csv_lines
from gateway.reconciliation_shapes import (
    CauseView,
    Notice,
    Overall,
    ReportRow,
    ReportSummary,
    RowStatus,
    Suggestion,
    SummaryLine,
    Verdict,
    number,
    share,
)
from gateway.shapes import instant_or_none

ROWS_SHOWN_MAX: Final = 10_000
REFS_SHOWN_MAX: Final = 1_000
"""Customers of one row."""
_SLICE: Final = 50
_ALTERNATIVES: Final = frozenset(("take_back", "carry_forward", "push_again", "resend", "resume"))


class Months(NamedTuple):
    """Periods that begin in [start, end)."""

    start_us: int
    end_us: int


def month_of(text: str) -> Months:
    """`YYYY-MM`. Raises engine.core.times.TimeError."""
    start_us = parse_date(f"{text}-01")
    year, month = int(text[:4]), int(text[5:7])
    return Months(start_us, start_us + days_in_month(year, month) * 86_400_000_000)


class Line(NamedTuple):
    """One row before it is text."""

    report: TargetReport | None
    tenant: str
    metric: str
    customer_refs: tuple[str, ...]
    start_us: int
    end_us: int | None
    local: Fraction
    pushed: Fraction
    offset: Fraction
    stripe: Fraction | None
    look: Look | None
    causes: tuple[OpenFinding, ...]
    status: RowStatus
    id: str
    item: str | None = None
    """The subscription item, if it is known."""

    @property
    def diff(self) -> Fraction | None:
        """What Stripe still has to get; negative: it holds more. None: not read."""
        return None if self.stripe is None else self.local + self.offset - self.stripe


async def lines_of(
    meter: Meter, tenant: str | None, months: Months, *, look: bool = True
) -> list[Line]:
    """Every row of these periods, the worst first. `look`: with everything that was acknowledged by now."""
    started = meter.started
    if look:
        await started.push.look(tenant)
    findings = meter.push.findings
    whole = {
        (one.record.account, one.record.cause): one
        for one in findings.open.values()
        if one.record.account
    }
    resolved = {
        target_id(one.record.target)
        for one in findings.ended.values()
        if one.record.target is not None and one.how == "resolve"
    }
    found: list[Line] = []
    for index, target in enumerate(await started.reconciler.books.targets()):
        if index % _SLICE == _SLICE - 1:
            await trio.lowlevel.checkpoint()
        if not months.start_us <= target.start_us < months.end_us:
            continue
        report = started.pusher.report(target)
        if report is None or tenant not in (None, report.tenant):
            continue
        view = started.push.totals.view(target)
        seen = started.reconciler.looker.looks.get(target)
        causes = tuple(findings.of_target(report.id))
        account = f"{target.lane.account}/{target.lane.mode}"
        gathered = set() if seen is None else GATHERED.intersection(seen.causes)
        gathered -= {one.record.cause for one in causes}
        causes += tuple(whole[account, one] for one in sorted(gathered) if (account, one) in whole)
        mark = findings.mark(target)
        confirmed = mark.confirmed if seen is None or seen.stripe is None else seen.stripe
        status: RowStatus = "resolved" if report.id in resolved else "ok"
        found.append(
            Line(
                report=report,
                tenant=report.tenant,
                metric=report.metric,
                customer_refs=report.customer_refs,
                start_us=target.start_us,
                end_us=target.end_us,
                local=Fraction(report.pushed + report.due),
                pushed=Fraction(report.pushed),
                offset=Fraction(mark.offset),
                stripe=None if confirmed is None else Fraction(confirmed),
                look=seen,
                causes=causes,
                status="investigate" if causes else status,
                id=report.id,
                item=None if view is None else view.resolved.item,
            )
        )
    found += await _nowhere(meter, tenant, months)
    found.sort(key=_worst_first)
    return found


async def _nowhere(meter: Meter, tenant: str | None, months: Months) -> list[Line]:
    """Use that reaches no target: one row a finding, with what it comes to now."""
    found = await meter.started.reconciler.nowhere(tenant, months.start_us, months.end_us)
    return [
        Line(
            report=None,
            tenant=one.found.record.tenant_id,
            metric=one.found.record.metric,
            customer_refs=one.customer_refs,
            start_us=one.start_us,
            end_us=None,
            local=Fraction(one.micros, MICROS_PER_UNIT),
            pushed=Fraction(0),
            offset=Fraction(0),
            stripe=Fraction(0),
            look=None,
            causes=(one.found,),
            status="investigate",
            id=one.found.id,
        )
        for one in found
    ]


def _worst_first(line: Line) -> tuple[object, ...]:
    diff = Fraction(0) if line.diff is None else -abs(line.diff)
    return (
        line.status != "investigate",
        diff,
        line.tenant,
        line.metric,
        line.customer_refs,
        line.id,
    )


def row_of(line: Line, now_us: int, *, as_string: bool) -> ReportRow:
    """A row as the API shows it."""
    report = line.report
    lane = None if report is None else report.target.lane
    invoiced = None if line.look is None else line.look.invoiced
    diff = line.diff
    drift = None if diff is None else share(abs(diff), line.stripe or Fraction(0))
    return ReportRow(
        id=line.id,
        tenant_id=line.tenant,
        metric=line.metric,
        customer_ref=line.customer_refs[0] if line.customer_refs else "",
        customer_refs=list(line.customer_refs[:REFS_SHOWN_MAX]),
        subscription_item_id=line.item,
        stripe_customer_id=None if lane is None else lane.customer,
        period_start=format_date(line.start_us),
        period_end=None if line.end_us is None else format_instant(line.end_us),
        local_total=number(line.local, as_string=as_string),
        pushed_total=number(line.pushed, as_string=as_string),
        stripe_total=number(line.stripe, as_string=as_string),
        baseline_offset=number(line.offset, as_string=as_string),
        invoiced_total=number(
            None if invoiced is None else Fraction(invoiced), as_string=as_string
        ),
        diff=number(diff, as_string=as_string),
        drift_pct=number(drift, as_string=as_string),
        status=line.status,
        verdict=_verdict(line),
        causes=[cause_of(one) for one in line.causes],
        finalizes_at=None if report is None else format_instant(report.finalization_us),
        looked_at=None if line.look is None else instant_or_none(line.look.at_us),
        created_at=format_instant(now_us),
    )


def cause_of(one: OpenFinding) -> CauseView:
    """A finding as a row shows it."""
    record = one.record
    return CauseView(
        id=one.id,
        cause=record.cause,
        gap=record.gap,
        units=record.units,
        reason=record.reason,
        since=format_instant(one.opened_at_us),
        repair=record.repair,
        repaired=one.applied is not None,
    )


def suggestions_of(lines: Sequence[Line]) -> list[Suggestion]:
    """What a person can apply, one a cause; what was applied is not suggested again."""
    return [
        Suggestion(
            id=one.id,
            cause=one.record.cause,
            target_id=None if line.report is None else line.id,
            tenant_id=line.tenant,
            metric=line.metric,
            customer_ref=_whose(line, one),
            units=one.record.units,
            action=one.record.repair,
            alternatives=["accept"] if one.record.repair in _ALTERNATIVES else [],
            reason=one.record.reason,
            created_at=format_instant(one.opened_at_us),
        )
        for line in lines
        for one in line.causes
        if one.record.repair is not None and one.applied is None
    ]


def _whose(line: Line, one: OpenFinding) -> str | None:
    """Whose a suggestion is; of one about all customers of a metric nobody's."""
    is_whole = one.record.target is None and not one.record.series
    return None if is_whole or not line.customer_refs else line.customer_refs[0]


def notices_of(meter: Meter, tenant: str | None) -> list[Notice]:
    """Findings about many targets, or about a metric as a whole."""
    found = []
    for one in meter.push.findings.open.values():
        record = one.record
        if record.target is not None or record.series:
            continue
        is_own = tenant in (None, record.tenant_id)
        count = record.count if is_own else 0
        if record.account:
            # One finding for all tenants of an account: each is told of its own totals, or of none.
            count = meter.started.reconciler.behind_of(record, tenant) or count
        if count:
            found.append(
                Notice(
                    id=one.id,
                    cause=record.cause,
                    account=record.account or f"{record.tenant_id}: {record.metric}",
                    targets=count,
                    reason=record.reason,
                    since=format_instant(one.opened_at_us),
                )
            )
    return found


def totals_of(lines: Sequence[Line], waiting: int) -> ReportSummary:
    """How many rows stand how. `waiting`: totals without a row, as it is not known yet where they are at Stripe."""
    statuses = Counter(line.status for line in lines)
    verdicts = Counter(_verdict(line) for line in lines)
    unread = verdicts["unread"] + waiting
    diffs = [abs(line.diff) for line in lines if line.diff is not None]
    is_exact = all(line.diff == 0 for line in lines)
    return ReportSummary(
        total=len(lines),
        ok=statuses["ok"],
        investigating=statuses["investigate"],
        resolved=statuses["resolved"],
        lagging=verdicts["lagging"],
        unread=unread,
        max_diff=number(max(diffs, default=Fraction(0))),
        green=is_exact and not statuses["investigate"] and not unread,
    )


def _verdict(line: Line) -> Verdict:
    """As the row says it; of use that reaches no target there is nothing to read."""
    if line.report is None:
        return "differs"
    return "unread" if line.look is None or line.stripe is None else line.look.verdict


class _Sums:
    """Of one metric, or of all."""

    def __init__(self) -> None:
        self.local = self.pushed = self.stripe = self.drift = Fraction(0)
        self.items = self.unread = 0

    def add(self, line: Line) -> None:
        self.local += line.local + line.offset
        self.pushed += line.pushed
        self.stripe += line.stripe or Fraction(0)
        # What was never read differs by all of it: nobody knows better.
        self.drift += abs(line.local + line.offset if line.diff is None else line.diff)
        self.items += 1
        self.unread += _verdict(line) == "unread"


def sums_of(
    lines: Sequence[Line], waiting: int = 0, *, as_string: bool = False
) -> tuple[list[SummaryLine], Overall]:
    """Per metric, sorted, and together. `waiting`: as `totals_of` has it."""
    per_metric: dict[str, _Sums] = defaultdict(_Sums)
    overall = _Sums()
    for line in lines:
        per_metric[line.metric].add(line)
        overall.add(line)
    summed = [
        SummaryLine(
            metric=metric,
            **_numbers(sums, as_string=as_string),
            items=sums.items,
            unread=sums.unread,
        )
        for metric, sums in sorted(per_metric.items())
    ]
    unread = overall.unread + waiting
    numbers = _numbers(overall, as_string=as_string)
    return summed, Overall(**numbers, items=overall.items, unread=unread)


def _numbers(sums: _Sums, *, as_string: bool) -> dict[str, msgspec.Raw]:
    return {
        "local": number(sums.local, as_string=as_string),
        "pushed": number(sums.pushed, as_string=as_string),
        "stripe": number(sums.stripe, as_string=as_string),
        "drift_abs": number(sums.drift, as_string=as_string),
        "drift_pct": number(share(sums.drift, sums.stripe), as_string=as_string),
    }


# CSV.

REPORT_HEADER: Final = (
    "id", "tenantId", "metric", "customerRef", "subscriptionItemId", "periodStart", "localTotal", "pushedTotal",
    "stripeTotal", "invoicedTotal", "diff", "driftPct", "status", "causes", "createdAt", "verdict", "lookedAt",
)  # fmt: skip
SUMMARY_HEADER: Final = (
    "metric", "local", "pushed", "stripe", "drift_abs", "drift_pct", "items", "unread",
)  # fmt: skip


def report_csv(lines: Sequence[Line], now_us: int) -> bytes:
    """A row a total, TOTAL last."""
    cells: list[Sequence[str]] = [REPORT_HEADER]
    for line in lines:
        row = row_of(line, now_us, as_string=False)
        cells.append(
            (
                row.id,
                text_cell(row.tenant_id),
                text_cell(row.metric),
                text_cell(row.customer_ref),
                text_cell(row.subscription_item_id or ""),
                row.period_start,
                _cell(row.local_total),
                _cell(row.pushed_total),
                _cell(row.stripe_total),
                _cell(row.invoiced_total),
                _cell(row.diff),
                _cell(row.drift_pct),
                row.status,
                " ".join(sorted({one.cause for one in row.causes})),
                row.created_at,
                row.verdict,
                row.looked_at or "",
            )
        )
    _, overall = sums_of(lines)
    totals = (_cell(overall.local), _cell(overall.pushed), _cell(overall.stripe))
    drift = (_cell(overall.drift_abs), _cell(overall.drift_pct))
    cells.append(("TOTAL", "", "", "", "", "", *totals, "", *drift, *[""] * 5))
    return csv_lines(None, cells)


def summary_csv(per_metric: Sequence[SummaryLine], overall: Overall) -> bytes:
    """A row a metric, TOTAL last."""
    cells: list[Sequence[str]] = [SUMMARY_HEADER]
    named: list[tuple[str, SummaryLine | Overall]] = [
        (text_cell(one.metric), one) for one in per_metric
    ]
    for name, line in [*named, ("TOTAL", overall)]:
        numbers = (line.local, line.pushed, line.stripe, line.drift_abs, line.drift_pct)
        cells.append((name, *map(_cell, numbers), str(line.items), str(line.unread)))
    return csv_lines(None, cells)


def _cell(raw: msgspec.Raw) -> str:
    text = bytes(raw).decode().strip('"')
    return "" if text == "null" else text
