"""`stripemeter backup`: copy a data directory's log, beside a running server too, and verify the copy."""

from __future__ import annotations

from pathlib import Path

import click

from gateway.backup import back_up
from gateway.data_directory import DataDirectory
from gateway.progress import byte_progress
from gateway.system import SystemClock
from gateway.terminal.options import data_dir_option, json_option, settings_for
from gateway.terminal.output import print_json


@click.command("backup")
@click.argument("target", metavar="DEST")
@data_dir_option()
@click.option("--include-pepper", is_flag=True, help="Copy the secret of the API keys too.")
@json_option
def command(target: str, data_dir: str | None, *, include_pepper: bool, as_json: bool) -> int:
    r"""Copy the log and the archives of one moment to DEST, a directory that is not there yet.

    \b
    Examples:
      stripemeter backup /backups/2026-11-25
      stripemeter backup /mnt/nas/meter --data-dir /var/lib/stripemeter --include-pepper

    A running server goes on meanwhile; its log's file may grow by what it writes until the copy is done. Every record
    of the copy is verified. Indexes and snapshots are left out: they are built again from the log. Without
    --include-pepper the API keys of a restored directory need the same STRIPEMETER_KEY_PEPPER, or its file `pepper`.
    """
    settings = settings_for(data_dir)
    with byte_progress() as progress:
        manifest = back_up(
            DataDirectory(settings.data_path),
            Path(target).absolute(),
            SystemClock().now_us(),
            progress,
            include_pepper=include_pepper,
        )
    if as_json:
        print_json(manifest)
    else:
        click.echo(
            f"backed up everything before position {manifest.next_sequence:,} to {target}; the chain ends in "
            f"{manifest.head_hash}"
        )
    return 0
