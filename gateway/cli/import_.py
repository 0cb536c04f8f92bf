"""`stripemeter import`: events from files into the meter, as often as need be.

Rules it keeps: the report goes to stdout, the progress to stderr and only on a terminal; what is wrong with a row never
stops the others. It must not know how a file is read (gateway.row_files) or where rows go (gateway.import_targets).
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

import click
import msgspec
import trio
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from engine.actors.supervisor import Meter
from engine.config import Settings
from engine.core.events import EventLimits
from engine.core.sent_rows import SOURCE_OF_IMPORT, Meant
from engine.ports import Clock
from gateway.admin_client import url_of
from gateway.data_directory import DataDirectory
from gateway.import_targets import DirectoryTarget, DryTarget, in_directory, quiet_engine
from gateway.importing import Files, Import, Report, Target
from gateway.opening import first_of
from gateway.row_files import FileRefused, Format, RowFile
from gateway.system import SystemClock
from gateway.terminal.options import chosen_url, json_option, place_options, settings_for
from gateway.terminal.output import console, is_live, json_text

SHOWN_ERRORS_MAX = 20


class _Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line asks for."""

    names: tuple[str, ...]
    tenant: str | None
    format: Format | None
    historic: bool
    dry_run: bool


@click.command("import")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--tenant", metavar="ID", help="The tenant of rows that name none; of no other rows.")
@click.option(
    "--format",
    "rows_format",
    type=click.Choice(["jsonl", "csv"]),
    help="What the files are; else told by their names or first byte.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be new, duplicate, late or invalid.")
@click.option(
    "--historic", is_flag=True, help="Fold into closed periods too; these are never pushed."
)
@click.option("--errors", "errors_path", metavar="FILE", help="Write each bad row's error there.")
@place_options("events:write")
@json_option
def command(
    files: tuple[str, ...],
    *,
    tenant: str | None,
    rows_format: Format | None,
    dry_run: bool,
    historic: bool,
    errors_path: str | None,
    data_dir: str | None,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> int:
    r"""Take events from files: JSON lines or CSV, also packed by gzip; - is standard input.

    \b
    Examples:
      stripemeter import usage.jsonl.gz --dry-run
      stripemeter import 2026-01.csv 2026-02.csv --tenant acme
      zcat old.jsonl.gz | stripemeter import - --historic
      stripemeter import usage.csv --url http://127.0.0.1:3000 --api-key sm_... --errors bad.jsonl

    Fields and columns are those of an event (tenantId, metric, customerRef, quantity, ts, idempotencyKey, resourceId,
    meta, source) in camelCase or snake_case. All rows are judged by the watermarks at the import's start, so their
    order does not matter. The key of a row is its idempotencyKey, else a hash over all its fields: importing a file
    again counts nothing twice, and two equal rows without keys are one event. After an interruption the same command
    goes on where it stopped.

    Without a server it works on the data directory; while a server has that, or with --url, rows go through the server.

    \b
    Exit codes:
      0  every row counts, or did before
      1  rows were refused (see the report), now or by the run that is gone on with, or the work could not be done
      2  wrong usage
      130  interrupted; run it again to go on
    """
    if files.count("-") > 1:
        raise click.UsageError("standard input can be named once")
    wanted = _Wanted(
        names=files, tenant=tenant, format=rows_format, historic=historic, dry_run=dry_run
    )
    settings = settings_for(data_dir)
    url = chosen_url(url, data_dir)
    quiet_engine()
    with ExitStack() as stack:
        errors = stack.enter_context(_errors_file(errors_path)) if errors_path else None
        bar = stack.enter_context(_Bar())
        run = partial(_run, wanted=wanted, bar=bar, errors=errors)
        if url is None and DataDirectory(settings.data_path).holder_pid() is None:
            report = in_directory(
                settings, partial(_in_meter, run, wanted, settings), dry_run=dry_run
            )
        else:
            key = api_key or settings.admin_key
            report = _through_server(run, wanted, url or url_of(settings), key)
    report.dry_run = dry_run
    click.echo(json_text(report) if as_json else _words(report))
    return 1 if report.failed or report.failed_before else 0


_RunImport = Callable[[Target, Clock], Awaitable[Report]]


def _meant(wanted: _Wanted) -> Meant:
    return Meant(wanted.tenant, SOURCE_OF_IMPORT)


async def _in_meter(run: _RunImport, wanted: _Wanted, settings: Settings, meter: Meter) -> Report:
    limits = EventLimits(settings.max_meta_bytes, meter.registry.horizon_us)
    kind = DryTarget if wanted.dry_run else DirectoryTarget
    return await run(kind(meter, _meant(wanted), limits, historic=wanted.historic), meter.clock)


def _through_server(run: _RunImport, wanted: _Wanted, url: str, api_key: str | None) -> Report:
    # What the server says is typed by its handlers: a quarter of this command's start, that only this way needs.
    from gateway.import_server import ServerDryTarget, ServerTarget  # noqa: PLC0415

    async def work() -> Report:
        clock = SystemClock()
        kind = ServerDryTarget if wanted.dry_run else ServerTarget
        async with trio.open_nursery() as nursery:
            target = kind(url, api_key, _meant(wanted), clock, nursery, historic=wanted.historic)
            return await run(target, clock)

    try:
        return trio.run(work)
    except BaseExceptionGroup as group:
        raise first_of(group) from None


async def _run(
    target: Target, clock: Clock, *, wanted: _Wanted, bar: _Bar, errors: TextIO | None
) -> Report:
    salt = f"{wanted.tenant}\0{wanted.historic}\0{wanted.format}"
    opened = [RowFile(name, number, wanted.format) for number, name in enumerate(wanted.names)]
    files = Files(opened, salt)
    bar.total(files.bytes_total)

    def on_error(name: str, line: int, error: str) -> None:
        if errors is not None:
            entry = {"file": name, "line": line, "error": error}
            errors.write(msgspec.json.encode(entry).decode() + "\n")

    try:
        return await Import(files, target, clock, on_progress=bar.advance, on_error=on_error).run()
    finally:
        files.close()


@contextmanager
def _errors_file(path: str) -> Iterator[TextIO]:
    try:
        with Path(path).open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        message = f"--errors {path} can't be written ({error.strerror})"
        raise FileRefused(message) from error


class _Bar:
    """Bytes done, rows a second, time left; on a terminal only."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("importing"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TextColumn("{task.fields[rows]:,} rows, {task.fields[rate]:,}/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console(sys.stderr),
            transient=True,
            disable=not is_live(sys.stderr),
        )
        self._task = self._progress.add_task("", total=None, rows=0, rate=0)
        self._clock = SystemClock()
        self._started_us = self._clock.monotonic_us()

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def total(self, size_bytes: int) -> None:
        """So much there is to read; 0: nobody knows."""
        self._progress.update(self._task, total=size_bytes or None)

    def advance(self, report: Report, bytes_read: int) -> None:
        """So far it has come."""
        seconds = max(self._clock.monotonic_us() - self._started_us, 1) / 1e6
        rate = round(report.rows / seconds)
        self._progress.update(self._task, completed=bytes_read, rows=report.rows, rate=rate)


def _words(report: Report) -> str:
    """The report for people."""
    would = "would be " if report.dry_run else ""
    lines = [
        f"{report.rows:,} rows: {report.new:,} {would}new (of them {report.late:,} late), "
        f"{report.duplicates:,} counted before, {report.failed:,} refused"
    ]
    if report.passed_over:
        refused = (
            f", which refused {report.failed_before:,} of them" if report.failed_before else ""
        )
        lines.append(f"went on after {report.passed_over:,} rows of an earlier run{refused}")
    if report.late:
        lines.append("late events wait in pending adjustments, see `stripemeter adjustments list`")
    if report.seconds > 0 and not report.dry_run:
        lines.append(f"{report.seconds:,.1f} s, {round(report.rows / report.seconds):,} rows/s")
    shown = report.errors[:SHOWN_ERRORS_MAX]
    lines += [f"{name}, line {line}: {error}" for name, line, error in shown]
    refused_rows = report.failed + report.failed_before
    if refused_rows > len(shown):
        lines.append(f"and {refused_rows - len(shown):,} more; --errors FILE lists all")
    return "\n".join(lines)
