"""`stripemeter doctor`: shows what gateway.doctor found, for eyes or as JSON; exit code 1 when something is wrong.

Rules it keeps: the result goes to stdout, problems too, since they are the result. It must not know how
anything is found out.
"""

from __future__ import annotations

import sys

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.doctor import Report, examine

_WIDTH_WITHOUT_TERMINAL = 140


@click.command("doctor", short_help="Show what is in force here, and what is wrong.")
@click.option(
    "--data-dir", metavar="DIR", help="Look at this data directory instead of the set one."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(data_dir: str | None, *, as_json: bool) -> int:
    """Show settings, data directory, log and versions, and say what is wrong.

    Looks only, changes nothing, and may run beside a server. Secrets are masked. Exit code 1 when something
    is wrong. To verify every record of the log, use `stripemeter check`.
    """
    report = examine({"STRIPEMETER_DATA_DIR": data_dir} if data_dir else {})
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        _show(report)
    return 1 if report.problems else 0


def _show(report: Report) -> None:
    console = Console(
        file=sys.stdout,
        width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL,
        highlight=False,
    )
    settings = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("setting", "value", "from"):
        settings.add_column(column, overflow="fold")
    for setting in report.settings:
        settings.add_row(
            setting.name,
            Text(setting.value or "-"),
            Text(setting.source),
            style="dim" if setting.source == "default" else "",
        )
    console.print(settings)
    console.print()
    facts = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(report):
        facts.add_row(name, Text(value))
    console.print(facts)
    console.print()
    for note in report.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    for problem in report.problems:
        console.print(Text(f"problem: {problem}", style="bold red"), soft_wrap=True)
    if not report.problems:
        console.print(Text("no problem found", style="green"))


def _facts(report: Report) -> list[tuple[str, str]]:
    directory, log = report.directory, report.log
    if directory.held_by_pid is not None:
        state, log_state = "in use by a server", "open in that server"
    else:
        state, log_state = "not in use", "none, or not readable"
    if log is not None:
        log_state = (
            f"{log.next_sequence:,} positions, {log.size_bytes / 2**20:,.1f} MiB, epoch {log.epoch}"
        )
    return [
        ("stripemeter", report.version),
        ("python", f"{report.python} on {report.platform}"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in report.libraries.items())),
        (
            "data directory",
            f"{directory.path}, {directory.free_bytes / 2**30:,.1f} GiB free, {state}",
        ),
        ("log", log_state),
    ]
