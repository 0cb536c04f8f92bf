"""`stripemeter compact`: write a stopped server's log anew without free pages, in which erased bytes survive."""

from __future__ import annotations

import click

from engine.errors import StartRefused
from gateway.data_directory import DataDirectory
from gateway.progress import byte_progress
from gateway.terminal.options import data_dir_option, json_option, settings_for
from gateway.terminal.output import print_json
from wal.lmdb_copy import compact
from wal.lmdb_file import DATA_NAME


@click.command("compact")
@data_dir_option()
@json_option
def command(*, data_dir: str | None, as_json: bool) -> int:
    r"""Write the log's file anew, verify it, and put it in the place of the old one.

    \b
    Examples:
      stripemeter compact
      stripemeter compact --data-dir /var/lib/stripemeter

    Erasing and retention leave their old bytes in free pages of the file until they are used again. After an erasure
    the next start does this by itself, after retention nothing does: the pages are used for what comes. Needs as much
    free disk as the log takes. Stop the server first.
    """
    settings = settings_for(data_dir)
    directory = DataDirectory(settings.data_path)
    if not (directory.log_path / DATA_NAME).exists():
        message = f"there is no log in {directory.path}: name the data directory with --data-dir"
        raise StartRefused(message)
    directory.lock()
    try:
        with byte_progress() as progress:
            saved = compact(
                directory.log_path, lambda done, in_all: progress("compacting", done, in_all)
            )
    finally:
        directory.release()
    if as_json:
        print_json({"savedBytes": saved})
    else:
        click.echo(f"compacted: {saved:,} bytes saved")
    return 0
