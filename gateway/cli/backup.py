"""`stripemeter backup`: copy a data directory's log, beside a running server too, and verify the copy."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from gateway.backup import back_up
from gateway.data_directory import DataDirectory
from gateway.environment import read_settings
from gateway.progress import byte_progress
from gateway.system import SystemClock


@click.command("backup", short_help="Copy the data, beside a running server too.")
@click.argument("target", metavar="DEST")
@click.option("--data-dir", metavar="DIR", help="The data directory (STRIPEMETER_DATA_DIR).")
@click.option("--include-pepper", is_flag=True, help="Copy the secret of the API keys too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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
    settings = read_settings({"STRIPEMETER_DATA_DIR": data_dir} if data_dir else {})
    with byte_progress() as progress:
        manifest = back_up(
            DataDirectory(settings.data_path),
            Path(target).absolute(),
            SystemClock().now_us(),
            progress,
            include_pepper=include_pepper,
        )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(manifest)).decode())
    else:
        click.echo(
            f"backed up everything before position {manifest.next_sequence:,} to {target}; the chain ends in "
            f"{manifest.head_hash}"
        )
    return 0
