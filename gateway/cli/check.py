"""`stripemeter check`: reads every record of the log and names each that is not what was appended.

Rules it keeps: the result goes to stdout, the progress to stderr and only on a terminal; a directory that a server has
open is refused, since that server reads and verifies its own records. It must not know what a record is.
"""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from engine import config
from engine.errors import StartRefused
from gateway.data_directory import DataDirectory
from gateway.environment import read_outside
from gateway.log_check import LogReport, Seen, check
from gateway.progress import byte_progress
from wal.check import PROBLEMS_MAX


@click.command("check", short_help="Verify every record of the log.")
@click.option("--data-dir", metavar="DIR", help="Check this data directory instead of the set one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(data_dir: str | None, *, as_json: bool) -> int:
    r"""Read the whole log: every record's checksum, place, chain and meaning; name every one that is damaged.

    \b
    Examples:
      stripemeter check
      stripemeter check --data-dir /var/lib/stripemeter --json

    Looks only, changes nothing. Stop the server first, or check a copy. Exit code 1 when something is damaged, or
    when the log can't be checked.
    """
    outside = read_outside({"STRIPEMETER_DATA_DIR": data_dir} if data_dir else {})
    text = config.sources(*outside)["STRIPEMETER_DATA_DIR"].text.replace("\0", "")
    directory = DataDirectory(Path(text).absolute())
    holder = directory.holder_pid()
    if holder is not None:
        who = f"process {holder}" if holder else "another process"
        message = f"the data directory {directory.path} is in use by {who}: stop that server first, or check a backup"
        raise StartRefused(message)
    report = _check_with_progress(directory.log_path)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        _show(report)
    return 0 if report.ok else 1


def _check_with_progress(log_path: Path) -> LogReport:
    with byte_progress() as show:

        def advance(seen: Seen) -> None:
            show("checking", seen.stored_bytes, seen.bytes_in_all)

        return check(log_path, advance)


def _show(report: LogReport) -> None:
    for problem in report.problems:
        where = "the file" if problem.sequence is None else f"record {problem.sequence}"
        click.secho(f"damaged: {where}: {problem.message}", fg="red")
    if len(report.problems) >= PROBLEMS_MAX:
        click.secho(f"stopped after {PROBLEMS_MAX} problems: there may be more", fg="red")
    size = f"{report.stored_bytes / 2**20:,.1f} MiB"
    click.echo(
        f"{report.records:,} records, {report.items:,} positions, {size}, next position {report.next_sequence:,}"
    )
    if report.parts_erased or report.parts_trimmed:
        click.echo(
            f"{report.parts_erased:,} parts erased, {report.parts_trimmed:,} dropped by retention: as recorded"
        )
    if report.ok:
        click.secho(f"no damage; the chain ends in {report.head_hash}", fg="green")
    else:
        click.secho("damaged: keep a copy of the directory, restore from a backup", fg="red")
