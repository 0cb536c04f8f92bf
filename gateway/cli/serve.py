"""`stripemeter serve`: run the server in the foreground. It must not know how it runs."""

from __future__ import annotations

import sys
from functools import partial

import click
import structlog

from engine import config
from gateway import log_output
from gateway.environment import read_outside
from gateway.logging_setup import configure, dropped_line, is_console
from gateway.system import SystemClock
from gateway.terminal.options import data_dir_option


@click.command("serve")
@click.option("--host", metavar="ADDRESS", help="Address to listen on (STRIPEMETER_HOST).")
@click.option(
    "--port", metavar="PORT", help="Port to listen on; 0 picks a free one (STRIPEMETER_PORT)."
)
@data_dir_option()
@click.option(
    "--json", "as_json", is_flag=True, help="Log as JSON lines (STRIPEMETER_LOG_FORMAT=json)."
)
def command(*, host: str | None, port: str | None, data_dir: str | None, as_json: bool) -> int:
    r"""Run the meter: take usage events over HTTP, count each exactly once, keep them for ever.

    \b
    Examples:
      stripemeter serve
      stripemeter serve --port 8080 --data-dir /var/lib/stripemeter
      STRIPEMETER_AUTH=required stripemeter serve --host 0.0.0.0

    The data directory is made if it is not there, and belongs to one server at a time. Stop it with Ctrl-C or
    SIGTERM: requests in flight are answered first. Killing it loses nothing that was acknowledged.

    \b
    Exit codes:
      0  stopped by a signal
      1  the start was refused: the directory is in use, the log is damaged, the port is taken
      2  wrong usage, or a wrong setting
      3  the disk or the log failed so that going on would be a guess; start again to recover
    """
    flags = {
        "STRIPEMETER_HOST": host,
        "STRIPEMETER_PORT": port,
        "STRIPEMETER_DATA_DIR": data_dir,
        "STRIPEMETER_LOG_FORMAT": "json" if as_json else None,
    }
    outside = read_outside({name: value for name, value in flags.items() if value is not None})
    settings = config.load(*outside)
    log_output.install(partial(_dropped_line, settings.log_format))
    configure(settings.log_level, settings.log_format)
    if names := config.ignored(*outside):
        structlog.get_logger("stripemeter.server").warning("settings_without_effect", names=names)
    # Late: --help and a wrong setting should not wait for the server's imports.
    from gateway.main import serve  # noqa: PLC0415

    return serve(settings)


def _dropped_line(log_format: str, lines: int) -> str:
    console = is_console(log_format, sys.stderr)
    return dropped_line(lines, console=console, now_us=SystemClock().now_us())
