"""The `stripemeter` command: finds the sub-commands, runs one, turns its outcome into an exit code.

Rules it keeps: a sub-command is one module of this package with a `command` (click) of the module's name, listed in
gateway.terminal.family. A command returns its exit code, or None for 0. An operating failure is one line on stderr,
without a traceback; a bug is a traceback. It must not know any sub-command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from engine.errors import EngineError
from gateway import __version__
from gateway.terminal.exits import EXIT_CODES, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE
from gateway.terminal.failures import fail, told, wants_json
from gateway.terminal.family import LazyFamily, no_colour_option
from wal.log import LogError

HELP: Final = """Count usage exactly once, next to Stripe.

One process, one data directory. `serve` takes usage events over HTTP; the other commands ask a running server, or look
at a stopped one's directory. None of them changes a number that was acknowledged.

\b
Examples:
  stripemeter serve                         with its data in ./data
  stripemeter send api_calls cus_anna 3 --tenant acme
  stripemeter usage cus_anna --tenant acme --history day
  stripemeter tail --tenant acme            events as they come
  stripemeter doctor                        what is wrong here?

\b
Exit codes:
{exit_codes}

Where a server is: --url or STRIPEMETER_URL, else where the settings say. The key: --api-key or STRIPEMETER_API_KEY. The
tenant: --tenant or STRIPEMETER_TENANT. Settings are environment variables (STRIPEMETER_...), or lines of `.env` in the
working directory; `doctor` lists them all. With --json every command prints JSON, and an error as a problem object on
stderr. COMMAND --help explains each command.
"""


def _exit_codes() -> str:
    return "\n".join(f"  {one.code:<4}{one.meaning}" for one in EXIT_CODES)


@click.group(
    cls=LazyFamily,
    help=HELP.format(exit_codes=_exit_codes()),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="stripemeter")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Only a holder of the sub-commands; HELP is its text."""
    if os.environ.get("NO_COLOR"):
        ctx.color = False


cli.params.append(no_colour_option())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's own) and return the exit code.

    When stdout's reader (`| head`) has gone, click ends the process with 1, without a word.
    """
    as_json = wants_json(sys.argv[1:] if arguments is None else arguments)
    if not __debug__:
        # Asserts are what turns a bug into a stop instead of a wrong bill.
        message = "refuses to run under python -O or PYTHONOPTIMIZE: run it without"
        return told(message, EXIT_USAGE, as_json)
    try:
        result = cli.main(args=arguments, prog_name="stripemeter", standalone_mode=False)
    except click.Abort:
        return EXIT_INTERRUPTED
    except (click.ClickException, EngineError, LogError) as error:
        return fail(error, as_json=as_json)
    return result if isinstance(result, int) else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
