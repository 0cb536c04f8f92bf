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
from rich.table import Table
from rich.text import Text

from engine.core.times import TimeError, format_date
from engine.errors import EngineError
from gateway.admin_client import AdminClient, url_of
from gateway.environment import read_settings
from gateway.reconciliation_report import month_of
from gateway.reconciliation_shapes import ApplyAnswer, JobView, Report, ReportRow
from gateway.system import SystemClock

_WIDTH_WITHOUT_TERMINAL: Final = 160
POLL_SECONDS: Final = 0.5
RUN_SECONDS_MAX: Final = 3600
WATCH_SECONDS: Final = 10
ROWS_SHOWN_MAX: Final = 50
_COLOURS: Final = {"ok": "green", "investigate": "bold red", "resolved": "cyan"}


@click.command("reconcile", short_help="Compare Stripe with what was used; exit 1 if they differ.")
@click.option("--period", metavar="YYYY-MM", help="The month (default: the running one).")
@click.option("--tenant", help="Only of this tenant.")
@click.option("--no-run", is_flag=True, help="Show what the last run found; start none.")
@click.option("--watch", is_flag=True, help=f"Again every {WATCH_SECONDS} s, until Ctrl-C.")
@click.option("--all", "show_all", is_flag=True, help="Show what agrees too.")
@click.option("--apply", "applied", multiple=True, metavar="ID", help="Apply this suggestion.")
@click.option("--accept", "accepted", multiple=True, metavar="ID", help="Leave it, knowingly.")
@click.option("--reason", default="by the command line", help="With --apply and --accept: why.")
@click.option("--csv", "csv_path", metavar="FILE", help="Write the report as CSV; - is stdout.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--url", metavar="URL", envvar="STRIPEMETER_URL", help="The server (STRIPEMETER_URL)."
)
@click.option(
    "--api-key",
    metavar="KEY",
    envvar="STRIPEMETER_API_KEY",
    help="A key with the scope reconciliation:write (STRIPEMETER_API_KEY).",
)
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
    long. Exit code 1: something differs beyond what is tolerated, or Stripe did not answer. What to do by cause is in
    RECONCILIATION.md.
    """
    month = period or format_date(SystemClock().now_us())[: len("YYYY-MM")]
    try:
        month_of(month)
    except (TimeError, ValueError) as error:
        raise click.BadParameter("must be a month, YYYY-MM", param_hint="--period") from error
    settings = read_settings()
    client = AdminClient(url or url_of(settings), api_key or settings.admin_key)
    console = _console(sys.stdout.isatty())
    if applied or accepted:
        return _apply(client, tenant, applied, accepted, reason)
    while True:
        if not no_run:
            _run(client, tenant)
        report = client.ask("GET", _path(month, tenant), Report, seconds_max=60)
        if csv_path is not None:
            _write_csv(client, month, tenant, csv_path)
        elif as_json:
            click.echo(msgspec.json.format(msgspec.json.encode(report)).decode())
        else:
            if watch:
                console.clear()
            _show(console, report, show_all=show_all)
        if not watch:
            return 0 if _is_right(report) else 1
        time.sleep(WATCH_SECONDS)


def _console(is_terminal: bool) -> Console:
    return Console() if is_terminal else Console(width=_WIDTH_WITHOUT_TERMINAL)


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
        console=Console(stderr=True),
        transient=True,
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
) -> int:
    failed = 0
    for ids, action in ((applied, None), (accepted, "accept")):
        if not ids:
            continue
        body: dict[str, Any] = {"adjustmentIds": list(ids), "reason": reason, "action": action}
        if tenant is not None:
            body["tenantId"] = tenant
        answer = client.ask("POST", "/v1/reconciliation/adjustments", ApplyAnswer, body)
        for one in answer.results:
            click.echo(f"{one.id}  {one.status}{'' if one.error is None else ': ' + one.error}")
        failed += answer.failed
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


def _show(console: Console, report: Report, *, show_all: bool) -> None:
    summary = report.summary
    for notice in report.notices:
        console.print(
            Text(f"{notice.cause}: ", style="bold yellow")
            + Text(f"{notice.targets} totals, {notice.account}: {notice.reason or ''}")
        )
    rows = [row for row in report.reports if show_all or row.status != "ok"]
    if rows:
        console.print(_table(rows[:ROWS_SHOWN_MAX]))
    if len(rows) > ROWS_SHOWN_MAX:
        console.print(Text(f"... and {len(rows) - ROWS_SHOWN_MAX} more: --csv FILE has them all"))
    for one in report.suggested_adjustments[:ROWS_SHOWN_MAX]:
        console.print(
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
    console.print(Text(counts) + Text(words, style=style))


def _table(rows: list[ReportRow]) -> Table:
    table = Table()
    for name in ("customer", "metric", "from"):
        table.add_column(name)
    for name in ("used", "pushed", "Stripe", "invoiced", "differs", "share"):
        table.add_column(name, justify="right")
    table.add_column("status")
    table.add_column("cause", overflow="fold")
    for row in rows:
        causes = "; ".join(
            f"{one.cause} ({one.reason})" if one.reason else one.cause for one in row.causes
        )
        table.add_row(
            Text(row.customer_ref),
            Text(row.metric),
            row.period_start,
            _text(row.local_total),
            _text(row.pushed_total),
            _text(row.stripe_total),
            _text(row.invoiced_total),
            _text(row.diff),
            _percent(row.drift_pct),
            Text(row.status, style=_COLOURS[row.status]),
            Text(causes),
        )
    return table
