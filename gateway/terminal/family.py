"""The commands as one family: grouped, loaded when they are needed, each with help of the same form.

Rules it keeps: what is listed here exists and is found without loading it (loading all of them costs a second: help and
completion must not); a name that is nearly right is told the right one. It must not know what a command does.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator
from keyword import iskeyword
from typing import Any, Final, NamedTuple

import click
from click.shell_completion import CompletionItem

from gateway.terminal.colour import without_colour
from gateway.terminal.help_text import FittingContext


class Listed(NamedTuple):
    """A command: its name, and what it does in some words."""

    name: str
    summary: str


SECTIONS: Final[tuple[tuple[str, tuple[Listed, ...]], ...]] = (
    (
        "Serve and operate",
        (
            Listed("serve", "Run the server."),
            Listed("doctor", "Show what is in force here, and what is wrong."),
            Listed("demo", "A month of trouble in half a minute; every number agrees."),
            Listed("stripe-sim", "Run the Stripe simulator alone."),
            Listed("version", "Which version this is, and of what."),
            Listed("openapi", "Print the API's OpenAPI document."),
            Listed("completion", "Print a script that completes commands in your shell."),
        ),
    ),
    (
        "Send and look",
        (
            Listed("send", "Send events; repeating it counts nothing twice."),
            Listed("usage", "What a customer has used."),
            Listed("tail", "Events as they are accepted, each once."),
            Listed("events", "List accepted events."),
            Listed("explain", "How a customer's total came about."),
        ),
    ),
    (
        "Set up and correct",
        (
            Listed("mappings", "How metrics are counted, and where their use is pushed."),
            Listed("customers", "Who customers are at Stripe, and when their months begin."),
            Listed("adjustments", "Corrections and late events: list, make, approve, undo."),
            Listed("import", "Events from files into the meter."),
        ),
    ),
    (
        "Stripe and prices",
        (
            Listed("pushes", "What was pushed to Stripe, and decisions that wait."),
            Listed("reconcile", "Compare Stripe with what was used; exit 1 if they differ."),
            Listed("parity", "Prove what Stripe will bill."),
            Listed("stripe", "Is Stripe set up right?"),
            Listed("simulate", "What an invoice would be: scenarios in files."),
        ),
    ),
    ("Keys", (Listed("keys", "Make, list, rotate and revoke API keys."),)),
    (
        "Data",
        (
            Listed("check", "Verify every record of the log."),
            Listed("export", "Events, counters, adjustments or the audit trail into a file."),
            Listed("backup", "Copy the data, beside a running server too."),
            Listed("restore", "Make a data directory of a backup."),
            Listed("retention", "Archive and drop old events; totals stay."),
            Listed("compact", "Write the log's file anew, without what was erased."),
            Listed("erase", "Erase a customer's name; totals stay."),
        ),
    ),
)


class Family(click.Group):
    """A group that names the nearest command when there is none of a name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click. Raises UsageError."""
        name = args[0]
        known = self.list_commands(ctx)
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean `{ctx.command_path} {close[0]}`?" if close else "there are: "
            raise click.UsageError(
                f"there is no command {name!r}; {hint}{'' if close else ', '.join(known)}", ctx
            )
        return super().resolve_command(ctx, args)


class LazyFamily(Family):
    """The top group: its commands are the modules of `gateway.cli` that are listed above."""

    context_class: type[click.Context] = FittingContext

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names of all commands, in the order in which help shows them."""
        return [one.name for _, listed in SECTIONS for one in listed]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, None when there is none."""
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"gateway.cli.{module_name(cmd_name)}").command
        assert isinstance(command, click.Command), f"gateway.cli's {cmd_name} has no command"
        _finish(command)
        self.add_command(command, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The commands by section."""
        width = max(len(one.name) for _, listed in SECTIONS for one in listed)
        for title, listed in SECTIONS:
            with formatter.section(title):
                formatter.write_dl([(f"{one.name:<{width}}", one.summary) for one in listed])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Completions of a command's name, or of an option of the top."""
        found = [
            CompletionItem(one.name, help=one.summary)
            for _, listed in SECTIONS
            for one in listed
            if one.name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)


def module_name(command_name: str) -> str:
    """The module of gateway.cli that has a command; one that Python has a word of its own for has a `_` at its end."""
    name = command_name.replace("-", "_")
    return f"{name}_" if iskeyword(name) else name


def group(name: str | None = None, **more: Any) -> Callable[[Callable[..., Any]], Family]:
    """A group of commands of this family."""
    return click.group(name, cls=Family, **more)


def no_colour_option() -> click.Option:
    """`--no-color`, which every command has."""

    def turn_off(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            without_colour(ctx)

    return click.Option(
        ["--no-color"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=turn_off,
        help="Without colour (NO_COLOR).",
    )


def walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, each with the words that are typed for it."""
    yield path, command
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            yield from walk(one, f"{path} {name}")


def _finish(command: click.Command) -> None:
    """What every command has, and docstrings cannot say."""
    for _, one in walk(command, ""):
        one.context_class = FittingContext
        if one.help is not None:
            # Docstrings are raw strings, so click's mark of a paragraph to keep is two characters there.
            one.help = one.help.replace("\\b\n", "\b\n")
        if not any("--no-color" in parameter.opts for parameter in one.params):
            one.params.append(no_colour_option())
