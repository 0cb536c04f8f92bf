"""The exit codes of every command, in one table. It must not know any command."""

from __future__ import annotations

from typing import Final, NamedTuple


class ExitCode(NamedTuple):
    """A code, its name, and when a command ends with it."""

    code: int
    name: str
    meaning: str


EXIT_OK: Final = 0
EXIT_PROBLEM: Final = 1
EXIT_USAGE: Final = 2
EXIT_RESTART: Final = 3
EXIT_UNSENT: Final = 4
EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells have it."""

EXIT_CODES: Final = (
    ExitCode(EXIT_OK, "ok", "done, all is well"),
    ExitCode(
        EXIT_PROBLEM,
        "problem",
        "a problem was found, or the work could not be done: stderr says what to do",
    ),
    ExitCode(EXIT_USAGE, "usage", "wrong usage, a wrong setting, or a file that is not valid"),
    ExitCode(
        EXIT_RESTART,
        "restart",
        "serve: the disk or the log failed so that going on would be a guess; start again to recover",
    ),
    ExitCode(
        EXIT_UNSENT,
        "unsent",
        "send: some events got no answer; run it again with the same keys, nothing counts twice",
    ),
    ExitCode(EXIT_INTERRUPTED, "interrupted", "ended by Ctrl-C"),
)
