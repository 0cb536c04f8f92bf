"""`/v1/reconciliation`: runs, reports of a month, sums over months, and applying what is suggested.

Rules it keeps: a tenant sees its own totals and its own customers in them; what one suggestion refuses does not keep
the others from being applied; every repair names who made it. It must not know how a difference is judged.
"""

from __future__ import annotations

from typing import Final

from engine.actors.push_desk import Asker
from engine.core.times import TimeError, format_date
from engine.errors import Conflict, EngineError
from gateway import parameters, reconciliation_report
from gateway.export_streams import CONTENT_TYPES
from gateway.parameters import Parameter
from gateway.problems import Problem, wrong_fields
from gateway.reconciliation_report import Line, Months, month_of
from gateway.reconciliation_shapes import (
    Applied,
    ApplyAnswer,
    ApplyBody,
    ReconciliationRunBody,
    Report,
    Summary,
    job_view,
    number,
)
from gateway.routes import Answer, Call
from gateway.shapes import instant_or_none

MONTHS_MAX: Final = 24
_MONTH_CHARS: Final = len("YYYY-MM")
_FORMATS: Final = ("json", "csv")


def _parse_month(text: str, _now_us: int) -> str:
    try:
        if len(text) != _MONTH_CHARS:
            raise ValueError("must be a month, YYYY-MM")
        month_of(text)
    except TimeError:
        raise ValueError("must be a month, YYYY-MM") from None
    return text


def _month(name: str, description: str) -> Parameter:
    return Parameter(name, _parse_month, parameters.MONTH_SCHEMA, description, required=True)


FORMAT: Final = parameters.choice("format", "`csv`: a file, `TOTAL` last.", _FORMATS, "json")
REPORT_PARAMETERS: Final = (parameters.TENANT, FORMAT, parameters.NUMBERS)
SUMMARY_PARAMETERS: Final = (
    parameters.TENANT,
    _month("periodStart", "The first month."),
    _month("periodEnd", f"The last month; at most {MONTHS_MAX} together."),
    parameters.text("metric", "Only of this metric.", 100),
    parameters.text("customerRef", "Only totals that this customer's usage goes to."),
    FORMAT,
    parameters.NUMBERS,
)


async def run(call: Call) -> Answer | Problem:
    """POST /v1/reconciliation/run."""
    body: ReconciliationRunBody = call.body
    del body  # its tenant is the call's
    if not call.gateway.meter.started.push.connections:
        raise Conflict(
            "there is nothing to compare with: no Stripe key is set, and the simulator is off"
        )
    job = call.gateway.meter.started.reconciler.start(call.tenant)
    return Answer(job_view(job), status=202)


async def get_job(call: Call) -> Answer | Problem:
    """GET /v1/reconciliation/jobs/{id}."""
    job = call.gateway.meter.started.reconciler.job(call.tenant, call.path["id"])
    return Answer(job_view(job))


async def report(call: Call) -> Answer | Problem:
    """GET /v1/reconciliation/{period}."""
    period = call.path["period"]
    try:
        _parse_month(period, call.now_us)
    except ValueError as error:
        return wrong_fields([("period", str(error))])
    meter = call.gateway.meter
    lines = await reconciliation_report.lines_of(meter, call.tenant, month_of(period))
    if call.query["format"] == "csv":
        data = reconciliation_report.report_csv(lines, call.now_us)
        return _csv(data, f"reconciliation-{period}")
    months = month_of(period)
    waiting = await meter.started.reconciler.waiting(call.tenant, months.start_us, months.end_us)
    shown = lines[: reconciliation_report.ROWS_SHOWN_MAX]
    as_string = call.numbers_as_strings
    return Answer(
        Report(
            period=period,
            reports=[
                reconciliation_report.row_of(line, call.now_us, as_string=as_string)
                for line in shown
            ],
            truncated=len(shown) < len(lines),
            suggested_adjustments=reconciliation_report.suggestions_of(shown),
            notices=reconciliation_report.notices_of(meter, call.tenant),
            summary=reconciliation_report.totals_of(lines, waiting),
            epsilon=bytes(number(call.gateway.settings.epsilon)).decode(),
            last_run_at=instant_or_none(meter.started.reconciler.last_ended_at_us(call.tenant)),
        )
    )


def _csv(data: bytes, name: str) -> Answer:
    disposition = ("content-disposition", f'attachment; filename="{name}.csv"')
    return Answer(data, content_type=CONTENT_TYPES["csv"], headers=(disposition,))


async def summary(call: Call) -> Answer | Problem:
    """GET /v1/reconciliation/summary."""
    query = call.query
    first, last = month_of(query["periodStart"]), month_of(query["periodEnd"])
    months = Months(first.start_us, last.end_us)
    if last.start_us < first.start_us:
        return wrong_fields([("periodEnd", "is before periodStart")])
    if months.end_us - months.start_us > MONTHS_MAX * 31 * 86_400_000_000:
        return wrong_fields([("periodEnd", f"is more than {MONTHS_MAX} months after periodStart")])
    lines = [
        line
        for line in await reconciliation_report.lines_of(call.gateway.meter, call.tenant, months)
        if _is_asked_for(line, query["metric"], query["customerRef"])
    ]
    waiting = await call.gateway.meter.started.reconciler.waiting(
        call.tenant,
        months.start_us,
        months.end_us,
        metric=query["metric"],
        customer_ref=query["customerRef"],
    )
    per_metric, overall = reconciliation_report.sums_of(
        lines, waiting, as_string=call.numbers_as_strings
    )
    if query["format"] == "csv":
        return _csv(reconciliation_report.summary_csv(per_metric, overall), "reconciliation")
    return Answer(
        Summary(
            period_start=format_date(first.start_us)[:_MONTH_CHARS],
            period_end=format_date(last.start_us)[:_MONTH_CHARS],
            per_metric=per_metric,
            overall=overall,
        )
    )


def _is_asked_for(line: Line, metric: str | None, customer_ref: str | None) -> bool:
    is_metric = metric in (None, line.metric)
    return is_metric and (customer_ref is None or customer_ref in line.customer_refs)


async def apply(call: Call) -> Answer | Problem:
    """POST /v1/reconciliation/adjustments."""
    body: ApplyBody = call.body
    repairs = call.gateway.meter.started.reconciler.repairs
    by = Asker(call.by.actor, call.by.request_id)
    results = []
    for wanted in dict.fromkeys(body.adjustment_ids):
        try:
            await repairs.apply(call.tenant, wanted, by, body.reason, body.action)
        except EngineError as error:
            results.append(Applied(id=wanted, status="failed", error=str(error)))
        else:
            results.append(Applied(id=wanted, status="applied"))
    applied = sum(1 for one in results if one.status == "applied")
    return Answer(ApplyAnswer(applied=applied, failed=len(results) - applied, results=results))
