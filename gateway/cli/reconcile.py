"""`stripemeter reconcile`: compare now, and show what differs and why; for people, and for cron by its exit code.

Rules it keeps: a running server is asked, and does the comparing; exit code 0 means that everything was read and agrees
within what is tolerated. It must not know how a difference is judged.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from engine.core.times import TimeError, format_date
from engine.errors import EngineError
from gateway.admin_client import AdminClient
from gateway.reconciliation_report import month_of
from gateway.reconciliation_shapes import (
    Applied,
    ApplyAnswer,
    JobView,
    Report,
    ReportRow,
)
from gateway.system import SystemClock
from gateway.terminal.options import (
    client_of,
    period_option,
    server_options,
    tenant_option,
    watch_option,
)
from gateway.terminal.output import (
    Column,
    Row,
    console,
    full_screen,
    is_live,
    number_columns,
    print_json,
    print_table,
    text_columns,
)

POLL_SECONDS: Final = 0.5
RUN_SECONDS_MAX: Final = 3600
WATCH_SECONDS: Final = 10
ROWS_SHOWN_MAX: Final = 50
_COLOURS: Final = {"ok": "green", "investigate": "bold red", "resolved": "cyan"}


@click.command("reconcile")
@period_option
@tenant_option
@click.option("--no-run", is_flag=True, help="Show what the last run found; start none.")
@watch_option(WATCH_SECONDS)
@click.option("--all", "show_all", is_flag=True, help="Show what agrees too.")
@click.option("--apply", "applied", multiple=True, metavar="ID", help="Apply this suggestion.")
@click.option("--accept", "accepted", multiple=True, metavar="ID", help="Leave it, knowingly.")
@click.option(
    "--reason",
    metavar="TEXT",
    default="by the command line",
    help="With --apply and --accept: why.",
)
@click.option("--csv", "csv_path", metavar="FILE", help="Write the report as CSV; - is stdout.")
@server_options("reconciliation:write")
def command(
    *,
    period: str | None,
    tenant: str | None,
    no_run: bool,
    watch: bool,
    show_all: bool,
    applied: tuple[str, ...],
    accepted: tuple[str, ...],
    reason: str,
    csv_path: str | None,
    as_json: bool,
    url: str | None,
    api_key: str | None,
) -> int:
    r"""Compare what was used, pushed, at Stripe and invoiced, and say why they differ.

    \b
    Examples:
      stripemeter reconcile
      stripemeter reconcile --period 2026-01 --tenant acme --csv january.csv
      stripemeter reconcile --no-run --watch
      stripemeter reconcile --apply 0123456789abcdef --reason "a stray script, stopped"

    What seems to differ is looked at twice, STRIPEMETER_RECONCILE_LAG_SECONDS apart: a run with a difference takes that
    long. What to do by cause is in RECONCILIATION.md.

    \b
    Exit codes:
      0  everything was read, and agrees within what is tolerated
      1  something differs, Stripe did not answer, or the server could not be asked
    """
    month = period or format_date(SystemClock().now_us())[: len("YYYY-MM")]
    try:
        month_of(month)
    except (TimeError, ValueError) as error:
        raise click.BadParameter("must be a month, YYYY-MM", param_hint="--period") from error
    client = client_of(url, api_key)
    if applied or accepted:
        return _apply(client, tenant, applied, accepted, reason, as_json=as_json)
    while True:
        if not no_run:
            _run(client, tenant)
        report = client.ask("GET", _path(month, tenant), Report, seconds_max=60)
        if csv_path is not None:
            _write_csv(client, month, tenant, csv_path)
        elif as_json:
            print_json(report)
        else:
            with full_screen(watched=watch):
                _show(console(), report, show_all=show_all)
        if not watch:
            return 0 if _is_right(report) else 1
        time.sleep(WATCH_SECONDS)


def _path(month: str, tenant: str | None, **more: str) -> str:
    query = ({} if tenant is None else {"tenantId": tenant}) | more
    return f"/v1/reconciliation/{month}" + (f"?{urlencode(query)}" if query else "")


def _is_right(report: Report) -> bool:
    return not report.summary.investigating and not report.summary.unread


def _run(client: AdminClient, tenant: str | None) -> None:
    """Start a run and wait for its end. Raises EngineError when it fails."""
    body = {} if tenant is None else {"tenantId": tenant}
    job = client.ask("POST", "/v1/reconciliation/run", JobView, body)
    query = "" if tenant is None else f"?{urlencode({'tenantId': tenant})}"
    until = time.monotonic() + RUN_SECONDS_MAX
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} totals"),
        console=console(sys.stderr),
        transient=True,
        disable=not is_live(sys.stderr),
    )
    with bar:
        shown = bar.add_task("comparing", total=None)
        while job.status in ("pending", "running"):
            if time.monotonic() > until:
                raise EngineError("the run takes more than an hour: look with --no-run")
            time.sleep(POLL_SECONDS)
            job = client.ask("GET", f"/v1/reconciliation/jobs/{job.job_id}{query}", JobView)
            words = "comparing"
            if job.second_look_at is not None:
                words = f"something seems to differ: second look at {job.second_look_at}"
            bar.update(shown, total=job.total, completed=job.done, description=words)
    if job.status == "failed":
        raise EngineError(f"the run failed: {job.error}")


def _apply(
    client: AdminClient,
    tenant: str | None,
    applied: tuple[str, ...],
    accepted: tuple[str, ...],
    reason: str,
    *,
    as_json: bool,
) -> int:
    failed = 0
    results: list[Applied] = []
    for ids, action in ((applied, None), (accepted, "accept")):
        if not ids:
            continue
        body: dict[str, Any] = {"adjustmentIds": list(ids), "reason": reason, "action": action}
        if tenant is not None:
            body["tenantId"] = tenant
        answer = client.ask("POST", "/v1/reconciliation/adjustments", ApplyAnswer, body)
        results += answer.results
        failed += answer.failed
    if as_json:
        print_json({"results": results, "failed": failed})
        return 1 if failed else 0
    for one in results:
        click.echo(f"{one.id}  {one.status}{'' if one.error is None else ': ' + one.error}")
    return 1 if failed else 0


def _write_csv(client: AdminClient, month: str, tenant: str | None, path: str) -> None:
    data = client.download(_path(month, tenant, format="csv"), seconds_max=60)
    if path == "-":
        click.echo(data, nl=False)
    else:
        Path(path).write_bytes(data)


def _text(raw: msgspec.Raw) -> str:
    text = bytes(raw).decode()
    return "-" if text == "null" else text.strip('"')


def _percent(raw: msgspec.Raw) -> str:
    text = _text(raw)
    return text if text == "-" else f"{float(text) * 100:.4g} %"


def _show(to: Console, report: Report, *, show_all: bool) -> None:
    summary = report.summary
    for notice in report.notices:
        to.print(
            Text(f"{notice.cause}: ", style="bold yellow")
            + Text(f"{notice.targets} totals, {notice.account}: {notice.reason or ''}")
        )
    rows = [row for row in report.reports if show_all or row.status != "ok"]
    if rows:
        print_table(_COLUMNS, [_row(row) for row in rows[:ROWS_SHOWN_MAX]], to)
    if len(rows) > ROWS_SHOWN_MAX:
        to.print(Text(f"... and {len(rows) - ROWS_SHOWN_MAX} more: --csv FILE has them all"))
    for one in report.suggested_adjustments[:ROWS_SHOWN_MAX]:
        to.print(
            Text(f"suggested for {one.customer_ref or one.metric}: {one.action} ({one.units})  "),
            Text(f"stripemeter reconcile --apply {one.id}", style="cyan"),
            soft_wrap=True,
        )
    style = "green" if _is_right(report) else "bold red"
    words = "everything agrees" if summary.green else "nothing beyond what is tolerated"
    if not _is_right(report):
        words = f"{summary.investigating} differ, {summary.unread} unread"
    counts = f"{summary.total} totals of {report.period}: {summary.ok} ok, "
    counts += f"{summary.resolved} resolved, {summary.lagging} lagging. "
    to.print(Text(counts) + Text(words, style=style))


_COLUMNS: Final = (
    *text_columns("customer", "metric"),
    Column("from", folds=False),
    *number_columns("used", "pushed", "Stripe", "invoiced", "differs", "share"),
    Column("status", folds=False),
    Column("cause"),
)


def _row(row: ReportRow) -> Row:
    causes = "; ".join(
        f"{one.cause} ({one.reason})" if one.reason else one.cause for one in row.causes
    )
    totals = (row.local_total, row.pushed_total, row.stripe_total, row.invoiced_total, row.diff)
    numbers = (*map(_text, totals), _percent(row.drift_pct))
    cells = (row.customer_ref, row.metric, row.period_start, *numbers, row.status, causes)
    return Row(cells, _COLOURS[row.status])
