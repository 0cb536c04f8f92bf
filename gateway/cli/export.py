"""`stripemeter export`: events, counters, adjustments or the audit trail into a file.

Rules it keeps: rows go to the file or to stdout, everything else to stderr, the progress only on a terminal. It must
not know where rows come from (gateway.export_sources) or how they are written (gateway.export_files).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import click
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from engine.config import Settings
from engine.core.times import TimeError, parse_instant_or_relative
from gateway.admin_client import url_of
from gateway.data_directory import DataDirectory
from gateway.export_files import FORMATS, Format, format_of, open_file
from gateway.export_server import ServerSource
from gateway.export_sources import COLUMNS, ExportFilter, Source, What, open_directory
from gateway.system import SystemClock
from gateway.terminal.options import chosen_url, place_options, settings_for
from gateway.terminal.output import console, is_live, print_json
from gateway.terminal.output import note as note_of


@contextmanager
def open_source(settings: Settings, url: str | None, api_key: str | None) -> Iterator[Source]:
    """The server there, or the one that has the directory; else the directory itself."""
    if url is None and DataDirectory(settings.data_path).holder_pid() is None:
        with open_directory(settings) as source:
            yield source
        return
    yield ServerSource(url or url_of(settings), api_key or settings.admin_key)


@click.command("export")
@click.argument("what", type=click.Choice(get_args(What)))
@click.option(
    "--format",
    "file_format",
    type=click.Choice(FORMATS),
    help="Else told by the file's name; on standard output jsonl.",
)
@click.option("--output", "-o", metavar="FILE", help="A name that ends in .gz packs it.")
@click.option("--tenant", metavar="ID", help="Only this tenant's.")
@click.option("--since", metavar="TIME", help="From here on; ISO 8601, or relative: -P7D.")
@click.option("--until", metavar="TIME", help="Up to here, exclusive.")
@place_options("events:read, usage:read, adjustments:read or admin")
@click.option(
    "--json", "as_json", is_flag=True, help="With --output: say what was written as JSON."
)
def command(
    *,
    what: What,
    file_format: Format | None,
    output: str | None,
    tenant: str | None,
    since: str | None,
    until: str | None,
    data_dir: str | None,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> int:
    r"""Write all of a kind as CSV, JSON lines or Parquet, exact to the last digit.

    \b
    Examples:
      stripemeter export events -o usage.jsonl.gz
      stripemeter export events --tenant acme --since 2026-01-01T00:00:00Z --format csv > january.csv
      stripemeter export counters -o counters.parquet
      stripemeter export audit --url http://127.0.0.1:3000 --tenant acme --api-key sm_...

    --since and --until are about an event's own time, a counter's period start, or when an adjustment or an audit
    entry was recorded. Exported events can be imported again, into an empty directory to the same totals; `ts` is
    what was sent, or when the event was received. In CSV, a text that a spreadsheet would run (= + - @ first) has an
    apostrophe in front, which import takes away again. Parquet needs pyarrow: pip install 'stripemeter[parquet]'.

    Without a server it reads the data directory; while a server has that, or with --url, it asks the server. A file
    appears under its name when it is whole.
    """
    wanted = ExportFilter(tenant, _time("--since", since), _time("--until", until))
    chosen = format_of(output, file_format)
    settings = settings_for(data_dir)
    url = chosen_url(url, data_dir)
    written = 0
    with (
        open_source(settings, url, api_key) as source,
        open_file(output, chosen, COLUMNS[what]) as file,
        _bar(what) as bar,
    ):
        task = bar.add_task("", total=None)

        def advance(done: int, of: int | None) -> None:
            bar.update(task, completed=done, total=of)

        for rows in source.rows(what, wanted, advance):
            if rows:
                file.write(rows)
                written += len(rows)
        notes = source.notes()
    for note in notes:
        note_of(note)
    if output is not None and as_json:
        print_json({"what": what, "file": output, "rows": written, "notes": notes})
    elif output is not None:
        click.echo(f"{written:,} {what} in {output}", err=True)
    return 0


def _time(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_instant_or_relative(text, SystemClock().now_us())
    except TimeError as error:
        raise click.BadParameter(f"the time {error}", param_hint=option) from error


def _bar(what: str) -> Progress:
    return Progress(
        TextColumn(f"exporting {what}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console(sys.stderr),
        transient=True,
        disable=not is_live(sys.stderr),
    )
