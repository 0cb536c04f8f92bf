"""`stripemeter check`: reads every record of the log and names each that is not what was appended.

Rules it keeps: the result goes to stdout, the progress to stderr and only on a terminal; a directory that a server has
open is refused, since that server reads and verifies its own records. It must not know what a record is, nor where
anchors lie.
"""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from engine import config
from engine.errors import StartRefused
from gateway.data_directory import DataDirectory
from gateway.environment import read_outside
from gateway.log_check import Damage, LogReport, Seen, check
from gateway.progress import byte_progress
from gateway.terminal.options import data_dir_option, json_option
from gateway.terminal.output import print_json
from wal.check import PROBLEMS_MAX
from wal.marks import Mark


@click.command("check")
@data_dir_option()
@click.option(
    "--anchor",
    metavar="WHERE",
    help="Hold the log against anchors: a file, a URL, s3://bucket/prefix.",
)
@click.option("--key", metavar="HEX", help="Only anchors signed by this public key count.")
@json_option
def command(data_dir: str | None, anchor: str | None, key: str | None, *, as_json: bool) -> int:
    r"""Read the whole log: every record's checksum, place, chain and meaning; name every one that is damaged.

    \b
    Examples:
      stripemeter check
      stripemeter check --data-dir /var/lib/stripemeter --json
      stripemeter check --anchor /mnt/elsewhere/anchors.jsonl --key 0bbc34...

    The log alone can't show that its last records were cut off, or that all of it was written anew: anchors
    (STRIPEMETER_ANCHOR) can, and name the place.

    Looks only, changes nothing. Stop the server first, or check a copy.

    \b
    Exit codes:
      0  no damage
      1  something is damaged, or the log can't be checked
    """
    outside = read_outside({"STRIPEMETER_DATA_DIR": data_dir} if data_dir else {})
    text = config.sources(*outside)["STRIPEMETER_DATA_DIR"].text.replace("\0", "")
    directory = DataDirectory(Path(text).absolute())
    holder = directory.holder_pid()
    if holder is not None:
        who = f"process {holder}" if holder else "another process"
        message = f"the data directory {directory.path} is in use by {who}: stop that server first, or check a backup"
        raise StartRefused(message)
    marks: tuple[Mark, ...] = ()
    problems: tuple[str, ...] = ()
    if anchor is not None:
        # Here: most checks have no anchors, and an HTTP client takes half a second to load.
        from gateway.anchoring import read_anchors  # noqa: PLC0415

        marks, problems = read_anchors(anchor, key)
    report = _check_with_progress(directory.log_path, marks)
    if anchor is not None:
        report = _with_anchors(report, len(marks), problems)
    if as_json:
        print_json(report)
    else:
        _show(report)
    return 0 if report.ok else 1


def _with_anchors(report: LogReport, marks: int, refused: tuple[str, ...]) -> LogReport:
    """The report with what is wrong with the anchors themselves; to have none of this log is wrong too."""
    if marks == report.anchors_of_others:
        refused += (f"none of the {marks} anchors that were read is of this log",)
    every = (*report.problems, *(Damage(None, one) for one in refused))
    return msgspec.structs.replace(report, ok=not every, problems=every)


def _check_with_progress(log_path: Path, marks: tuple[Mark, ...]) -> LogReport:
    with byte_progress() as show:

        def advance(seen: Seen) -> None:
            show("checking", seen.stored_bytes, seen.bytes_in_all)

        return check(log_path, advance, marks)


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
    if report.anchors_held:
        click.echo(f"{report.anchors_held:,} anchors hold")
    if report.anchors_restored_away:
        click.secho(
            f"{report.anchors_restored_away:,} anchors are of records that a restore from a backup left behind",
            fg="yellow",
        )
    if report.ok:
        click.secho(f"no damage; the chain ends in {report.head_hash}", fg="green")
    else:
        click.secho("damaged: keep a copy of the directory, restore from a backup", fg="red")
