"""The `stripemeter` command: finds the sub-commands, runs one, turns its outcome into an exit code.

Rules it keeps: a sub-command is one module of this package with a `command` (click) of the module's name;
putting the file there registers it. A command returns its exit code, or None for 0. An operating failure is
one line on stderr, without a traceback; a bug is a traceback. It must not know any sub-command.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from keyword import iskeyword
from pathlib import Path
from typing import Final

import click

from engine.errors import EngineError, SettingsError
from gateway import __version__
from wal.log import LogError

EXIT_OK: Final = 0
EXIT_PROBLEM: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells have it."""

HELP: Final = """Count usage exactly once, next to Stripe.

One process, one data directory. `serve` takes usage events over HTTP; the other commands look at the same
directory, and none of them changes a number that was acknowledged.

\b
Examples:
  stripemeter serve                         on http://127.0.0.1:3000, data in ./data
  stripemeter serve --port 8080 --data-dir /var/lib/stripemeter
  stripemeter doctor                        settings, directory, versions: what is wrong here?
  stripemeter doctor --json                 the same for machines

\b
Exit codes:
  0  done, all is well
  1  a problem was found, or the work could not be done: stderr says what to do
  2  wrong usage, or a wrong setting
  3  serve: the disk or the log failed so that going on would be a guess; start again to recover

Settings are environment variables (STRIPEMETER_...), or lines of `.env` in the working directory; `doctor`
lists them all. COMMAND --help explains each command.
"""


class CommandGroup(click.Group):
    """A group whose commands are the modules of this package, imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names of all commands, sorted; a module's `_` becomes a `-`, one at its end (`import_`) nothing."""
        names = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
        return sorted(name.rstrip("_").replace("_", "-") for name in names if name != "main")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, None when there is no such module."""
        if cmd_name not in self.list_commands(ctx):
            return None
        name = cmd_name.replace("-", "_")
        module = importlib.import_module(
            f"gateway.cli.{name}_" if iskeyword(name) else f"gateway.cli.{name}"
        )
        command = module.command
        assert isinstance(command, click.Command), (
            f"{module.__name__}.command is not a click command"
        )
        _keep_paragraphs(command)
        return command


def _keep_paragraphs(command: click.Command) -> None:
    """Docstrings are raw strings, so click's mark of a paragraph to keep, a backspace, is two characters there."""
    if command.help is not None:
        command.help = command.help.replace("\\b\n", "\b\n")
    if isinstance(command, click.Group):
        for one in command.commands.values():
            _keep_paragraphs(one)


@click.group(
    cls=CommandGroup,
    help=HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="stripemeter")
def cli() -> None:
    """Only a holder of the sub-commands; HELP is its text."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's own) and return the exit code.

    When stdout's reader (`| head`) has gone, click ends the process with 1, without a word.
    """
    if not __debug__:
        # Asserts are what turns a bug into a stop instead of a wrong bill.
        return _fail("refuses to run under python -O or PYTHONOPTIMIZE: run it without", EXIT_USAGE)
    try:
        result = cli.main(args=arguments, prog_name="stripemeter", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return EXIT_INTERRUPTED
    except SettingsError as error:
        return _fail(str(error), EXIT_USAGE)
    except (EngineError, LogError) as error:
        return _fail(str(error), EXIT_PROBLEM)
    return result if isinstance(result, int) else EXIT_OK


def _fail(message: str, exit_code: int) -> int:
    click.echo("stripemeter: " + " ".join(message.splitlines()), err=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
