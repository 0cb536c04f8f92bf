"""`stripemeter restore`: make a data directory of a backup, in another epoch."""

from __future__ import annotations

from pathlib import Path

import click

from gateway.backup import restore
from gateway.progress import byte_progress
from gateway.system import SystemClock
from gateway.terminal.options import data_dir_option, json_option, settings_for
from gateway.terminal.output import print_json


@click.command("restore")
@click.argument("backup", metavar="BACKUP")
@data_dir_option("The new directory")
@json_option
def command(backup: str, data_dir: str | None, *, as_json: bool) -> int:
    r"""Make a data directory of BACKUP, which stays as it is. The directory must not be there yet, or be empty.

    \b
    Examples:
      stripemeter restore /backups/2026-11-25 --data-dir /var/lib/stripemeter
      stripemeter serve --data-dir /var/lib/stripemeter

    Every record is verified. The log goes on in another epoch: what it does later bears other identifiers than what
    the original did after the backup. Do not let both serve the same customers.
    """
    settings = settings_for(data_dir)
    target = settings.data_path.absolute()
    with byte_progress() as progress:
        manifest, epoch = restore(Path(backup).absolute(), target, SystemClock().now_us(), progress)
    if as_json:
        print_json({"epoch": epoch, "backup": manifest})
        return 0
    click.echo(
        f"restored everything before position {manifest.next_sequence:,}, as of {manifest.taken_at}, to {target}; "
        f"epoch {epoch}"
    )
    if not manifest.has_pepper:
        click.echo(
            "the backup has no pepper: API keys work only with the same STRIPEMETER_KEY_PEPPER, or the old file "
            "`pepper` in the directory",
            err=True,
        )
    return 0
