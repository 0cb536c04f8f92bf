"""`stripemeter retention`: archive and drop old events, or say which would be.

It must not know how: the engine's actors do it, here or behind HTTP.
"""

from __future__ import annotations

import click

from engine.actors.supervisor import Meter
from engine.settings_table import RETENTION_DAYS_MAX, RETENTION_DAYS_MIN
from gateway.data_directory import DataDirectory
from gateway.keeping import RetentionView, archives_of, retention_view
from gateway.logging_setup import configure
from gateway.offline import run_offline
from gateway.terminal.options import (
    chosen_url,
    client_of,
    json_option,
    place_options,
    settings_for,
)
from gateway.terminal.output import print_json

_HTTP_SECONDS_MAX = 3600


@click.command("retention")
@click.option("--dry-run", is_flag=True, help="Only say what would be dropped.")
@click.option(
    "--days",
    metavar="DAYS",
    type=click.IntRange(RETENTION_DAYS_MIN, RETENTION_DAYS_MAX),
    help="Older than this (STRIPEMETER_RETENTION_DAYS).",
)
@place_options("admin")
@json_option
def command(
    *,
    dry_run: bool,
    days: int | None,
    as_json: bool,
    url: str | None,
    api_key: str | None,
    data_dir: str | None,
) -> int:
    r"""Archive the events that are old enough, and in closed periods, to files; then drop them from the log.

    \b
    Examples:
      stripemeter retention --dry-run --days 400
      STRIPEMETER_RETENTION_DAYS=400 stripemeter retention

    Totals stay. Later events that old are refused, their keys may be forgotten, and questions about the time before
    answer 410. A running server with STRIPEMETER_RETENTION_DAYS does this once a day.
    """
    settings = settings_for(data_dir)
    url = chosen_url(url, data_dir)
    asked_days = days or settings.retention_days
    if not asked_days:
        raise click.UsageError("give --days, or set STRIPEMETER_RETENTION_DAYS")
    if url is None and DataDirectory(settings.data_path).holder_pid() is None:
        configure("warning", settings.log_format)

        async def work(meter: Meter) -> RetentionView:
            retention = meter.started.retention
            plans = (
                [await retention.plan(asked_days)]
                if dry_run
                else await retention.apply(asked_days, "cli")
            )
            horizon_us = meter.registry.horizon_us
            return retention_view(plans, horizon_us, archives_of(meter), dry_run=dry_run)

        view, _compaction = run_offline(settings, work)
    else:
        client = client_of(url, api_key, settings)
        body = {"days": asked_days, "dryRun": dry_run}
        view = client.ask(
            "POST", "/v1/admin/retention", RetentionView, body, seconds_max=_HTTP_SECONDS_MAX
        )
    if as_json:
        print_json(view)
    else:
        _show(view)
    return 0


def _show(view: RetentionView) -> None:
    if view.horizon is None:
        click.echo("nothing is old enough and in a closed period")
        return
    verb = "would be dropped" if view.dry_run else "were archived and dropped"
    size = f"{view.size_bytes / 2**20:,.1f} MiB"
    click.echo(
        f"{view.events:,} events in {view.groups:,} groups, {size}, {verb}; horizon {view.horizon}"
    )
    for name in view.archives:
        click.echo(f"archive/{name}")
