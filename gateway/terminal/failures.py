"""How a command that can't do its work says so: one line on stderr, or with `--json` a problem object there.

Rules it keeps: the line says what to do; a problem that a server answered is passed on as it came, another has the same
fields (RFC 9457) without a status, and every one has `exitCode`. It must not know any command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import click
import msgspec

from engine.errors import EngineError, SettingsError
from gateway.admin_client import ServerProblem
from gateway.problems import TYPE_START
from gateway.terminal.exits import EXIT_INTERRUPTED, EXIT_PROBLEM, EXIT_USAGE
from wal.log import LogError

_KINDS: Final = {
    EXIT_PROBLEM: ("not-done", "The command could not do its work"),
    EXIT_USAGE: ("wrong-usage", "The command was not given what it takes"),
    EXIT_INTERRUPTED: ("interrupted", "The command was ended"),
}


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether the arguments, however wrong, ask for JSON."""
    given = list(arguments)
    return "--json" in (given[: given.index("--")] if "--" in given else given)


def fail(error: Exception, *, as_json: bool) -> int:
    """Say what is wrong and return the exit code; an error that is none of an operator's or user's is raised again."""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            # click gives it the help's text: whoever typed only a group's name wants that.
            click.echo(error.format_message(), err=True, color=None)
            return EXIT_USAGE
        case click.UsageError():
            command = "stripemeter" if error.ctx is None else error.ctx.command_path
            message = one_line(error.format_message()).rstrip(".")
            return told(f"{message} (see `{command} --help`)", error.exit_code, as_json, command)
        case click.ClickException():
            return told(error.format_message(), error.exit_code, as_json)
        case SettingsError():
            return told(str(error), EXIT_USAGE, as_json)
        case ServerProblem():
            return told(str(error), EXIT_PROBLEM, as_json, body=error.body)
        case EngineError() | LogError():
            return told(str(error), EXIT_PROBLEM, as_json)
        case _:
            raise error


def told(
    message: str,
    exit_code: int,
    as_json: bool,
    command: str = "stripemeter",
    body: bytes | None = None,
) -> int:
    """Print a message and return its exit code."""
    text = one_line(message)
    if not as_json:
        click.echo(f"{command}: {text}", err=True)
        return exit_code
    kind, title = _KINDS.get(exit_code, _KINDS[EXIT_PROBLEM])
    problem: dict[str, Any] = {"type": TYPE_START + kind, "title": title, "detail": text}
    if body is not None:
        problem = msgspec.json.decode(body)
    print(msgspec.json.encode(problem | {"exitCode": exit_code}).decode(), file=sys.stderr)  # noqa: T201
    return exit_code


def one_line(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())
