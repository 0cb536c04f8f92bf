"""`stripemeter demo`: watch the meter get through everything that goes wrong in a month of billing.

Rules it keeps: exit code 0 only when every number agrees. It must not know the story.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

import click

from gateway.demo.processes import DemoFailed
from gateway.demo.story import tell
from gateway.terminal.options import json_option
from gateway.terminal.output import print_json


@click.command("demo")
@click.option(
    "--keep",
    "keep_dir",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Do it in this empty directory and leave it: its log, certificate and simulator.",
)
@json_option
def command(*, keep_dir: Path | None, as_json: bool) -> int:
    r"""Tell a story in one terminal: a duplicate, a late event, kill -9 in mid-push, a Stripe outage, and more.

    A real server and the Stripe simulator run as processes of their own on free ports of 127.0.0.1, in a temporary
    directory. Nothing is sent to Stripe; no setting and no data of yours is touched.

    \b
    Examples:
      stripemeter demo
      stripemeter demo --keep ./story
      stripemeter parity verify story/parity.json --log story/data
      stripemeter check --data-dir story/data

    \b
    Exit codes:
      0  every number agrees: used, counted, pushed, at Stripe, certified, projected, invoiced
      1  one does not: the last lines say which
    """
    # A SIGTERM ends what was started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if keep_dir is None:
            with tempfile.TemporaryDirectory(prefix="stripemeter-demo-") as name:
                return _tell(Path(name), as_json=as_json)
        keep_dir.mkdir(parents=True, exist_ok=True)
        if any(keep_dir.iterdir()):
            message = f"{keep_dir} is not empty: name another directory"
            raise click.ClickException(message)
        return _tell(keep_dir.absolute(), as_json=as_json)
    except (DemoFailed, OSError) as error:
        raise click.ClickException(str(error)) from error


def _tell(directory: Path, *, as_json: bool) -> int:
    """Tell it; with JSON, to stderr, and what does not agree to stdout."""
    wrong = tell(directory, sys.stderr if as_json else sys.stdout)
    if as_json:
        print_json({"agrees": not wrong, "problems": wrong})
    return 1 if wrong else 0
