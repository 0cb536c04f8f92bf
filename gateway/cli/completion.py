"""`stripemeter completion`: a script that makes a shell complete commands, options and choices.

The script asks `stripemeter` itself, so it never goes stale. It must not know any command.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from gateway.terminal.options import json_option
from gateway.terminal.output import print_json

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_STRIPEMETER_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@json_option
@click.pass_context
def command(ctx: click.Context, *, shell: str, as_json: bool) -> int:
    r"""Print a script that completes commands, options and choices in SHELL.

    \b
    Examples:
      eval "$(stripemeter completion bash)"
      stripemeter completion bash > ~/.local/share/bash-completion/completions/stripemeter
      stripemeter completion zsh > ~/.zfunc/_stripemeter
      stripemeter completion fish > ~/.config/fish/completions/stripemeter.fish

    For bash 4.4 or newer; for good in the file above, where bash-completion finds it, or as the first line in ~/.bashrc.
    zsh needs ~/.zfunc in its `fpath` before `compinit`.
    """
    made = get_completion_class(shell)
    assert made is not None, "each of these is one that click has"
    script = _without_check(made)(ctx.find_root().command, {}, "stripemeter", VARIABLE).source()
    if as_json:
        print_json({"shell": shell, "script": script})
    else:
        click.echo(script)
    return 0


def _without_check(
    made: type[click.shell_completion.ShellComplete],
) -> type[click.shell_completion.ShellComplete]:
    """Click runs the bash of this machine to see its version; the script may be for another one."""

    class Printed(made):  # type: ignore[misc, valid-type]
        @staticmethod
        def _check_version() -> None:
            """Nothing to check."""

    return Printed
