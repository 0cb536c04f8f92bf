"""`stripemeter compact`: write a stopped server's log anew without free pages, in which erased bytes survive."""

from __future__ import annotations

import click

from engine.errors import StartRefused
from gateway.data_directory import DataDirectory
from gateway.environment import read_settings
from gateway.progress import byte_progress
from wal.lmdb_copy import compact
from wal.lmdb_file import DATA_NAME


@click.command("compact", short_help="Write the log's file anew, without what was erased.")
@click.option("--data-dir", metavar="DIR", help="The data directory (STRIPEMETER_DATA_DIR).")
def command(data_dir: str | None) -> int:
    r"""Write the log's file anew, verify it, and put it in the place of the old one.

    \b
    Examples:
      stripemeter compact
      stripemeter compact --data-dir /var/lib/stripemeter

    Erasing and retention leave their old bytes in free pages of the file until they are used again; the next start
    after either does this by itself. Needs as much free disk as the log takes. Stop the server first.
    """
    settings = read_settings({"STRIPEMETER_DATA_DIR": data_dir} if data_dir else {})
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
    click.echo(f"compacted: {saved:,} bytes saved")
    return 0
