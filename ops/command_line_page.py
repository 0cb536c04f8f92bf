"""docs/command-line.md, made of the commands' own help: `python ops/command_line_page.py` writes it anew.

Rules it keeps: what a command's help says stands in the page word by word, and nothing else says it again; the page is
the same on every machine. A test fails when the file is not what this makes. It must not know any command.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from gateway.cli.main import cli
from gateway.terminal.exits import EXIT_CODES
from gateway.terminal.family import SECTIONS, walk
from gateway.terminal.help_text import FittingContext

PAGE: Final = Path(__file__).parents[1] / "docs" / "command-line.md"
WIDTH: Final = 100
BEGIN: Final = """# Command line

<!-- Made by `python ops/command_line_page.py` of what `--help` prints. Change the commands, not this page. -->

`stripemeter COMMAND --help` (or `-h`) prints what stands here. A command that is nearly right is told the right one.

**Where.** Commands that ask a running server take `--url` and `--api-key`, or `STRIPEMETER_URL` and `STRIPEMETER_API_KEY`;
without them they ask where the settings say that the server listens. `--tenant`, or `STRIPEMETER_TENANT`, names the tenant;
an API key of a tenant needs none. Commands that work on a stopped server's files take `--data-dir`. Where both are possible, the
directory is used while no server has it, and else that server is asked.

**Output.** Results go to stdout; notes, progress and errors go to stderr. On a terminal there is colour, and progress for what
takes long; elsewhere there is neither, and tables are as wide as they need. `--no-color` and `NO_COLOR` turn colour off. A table
that does not fit its terminal becomes one block of lines per row: a number is never cut or folded.

**For machines.** Every command takes `--json`. Its fields are those of the API (`stripemeter openapi`). An error is then one
line of JSON on stderr: a problem object (RFC 9457) with `detail`, as the server sent it if it came from there, and `exitCode`;
a note there is `{"note": ...}`.

**Repeating.** `send` and `adjustments add` print a key. The same command with `--key` and that key counts nothing twice,
whatever became of the first one.

## Exit codes

"""
COMPLETION: Final = """
## Shell completion

Commands, options and choices are completed in bash (4.4 or newer), zsh and fish, by a script that asks `stripemeter` itself.

| shell | for good |
|---|---|
| bash | `stripemeter completion bash > ~/.local/share/bash-completion/completions/stripemeter` |
| zsh | `stripemeter completion zsh > ~/.zfunc/_stripemeter`, with `fpath+=~/.zfunc` before `compinit` in `~/.zshrc` |
| fish | `stripemeter completion fish > ~/.config/fish/completions/stripemeter.fish` |

In the running shell alone: `eval "$(stripemeter completion bash)"`.
"""


def page() -> str:
    """The whole page."""
    return "".join(_parts())


def _parts() -> Iterator[str]:
    yield BEGIN
    yield "| code | when |\n|---|---|\n"
    for one in EXIT_CODES:
        yield f"| {one.code} | {one.meaning} |\n"
    yield COMPLETION
    top = FittingContext(cli, info_name="stripemeter", **_context())
    yield _help("stripemeter", top)
    for title, listed in SECTIONS:
        yield f"\n## {title}\n"
        for one in listed:
            command = cli.get_command(top, one.name)
            assert command is not None, f"{one.name} is listed and not there"
            for path, below in walk(command, one.name):
                yield f"\n### {path}\n"
                yield _help(path, _context_of(top, path, below))


def _context() -> dict[str, Any]:
    return {**cli.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}


def _context_of(top: click.Context, path: str, command: click.Command) -> click.Context:
    """A context as if the words of a path had been typed."""
    *groups, last = path.split()
    parent = top
    for name in groups:
        group = parent.command
        assert isinstance(group, click.Group), f"{name} is within a group"
        below = group.get_command(parent, name)
        assert below is not None, f"{name} is a group"
        parent = FittingContext(below, info_name=name, parent=parent, **_context())
    return FittingContext(command, info_name=last, parent=parent, **_context())


def _help(path: str, ctx: click.Context) -> str:
    text = ctx.command.get_help(ctx)
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return f"\n```text no-run: what `{path} --help` prints\n{lines}\n```\n"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page())
    sys.stderr.write(f"written: {PAGE.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
