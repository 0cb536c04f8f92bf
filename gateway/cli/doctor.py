"""`stripemeter doctor`: shows what gateway.doctor found, for eyes or as JSON; exit code 1 when something is wrong.

Rules it keeps: the result goes to stdout, problems too, since they are the result. It must not know how
anything is found out.
"""

from __future__ import annotations

import click
from rich.text import Text

from gateway.doctor import Report, examine
from gateway.terminal.options import data_dir_option, json_option
from gateway.terminal.output import Row, console, print_json, print_table, text_columns


@click.command("doctor")
@data_dir_option()
@json_option
def command(data_dir: str | None, *, as_json: bool) -> int:
    r"""Show settings, data directory, log and versions, and say what is wrong.

    Looks only, changes nothing, and may run beside a server. Secrets are masked. To verify every record of the log, use
    `stripemeter check`.

    \b
    Examples:
      stripemeter doctor
      stripemeter doctor --data-dir /var/lib/stripemeter --json

    \b
    Exit codes:
      0  no problem found
      1  something is wrong: the last lines say what to do
    """
    report = examine({"STRIPEMETER_DATA_DIR": data_dir} if data_dir else {})
    if as_json:
        print_json(report)
    else:
        _show(report)
    return 1 if report.problems else 0


def _show(report: Report) -> None:
    to = console()
    rows = [
        Row((one.name, one.value or "-", one.source), "dim" if one.source == "default" else "")
        for one in report.settings
    ]
    print_table(text_columns("setting", "value", "from"), rows, to)
    to.print()
    print_table(text_columns("", ""), [Row(fact) for fact in _facts(report)], to)
    to.print()
    for note in report.notes:
        to.print(Text(f"note: {note}"), soft_wrap=True)
    for problem in report.problems:
        to.print(Text(f"problem: {problem}", style="bold red"), soft_wrap=True)
    if not report.problems:
        to.print(Text("no problem found", style="green"))


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
