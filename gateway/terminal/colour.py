"""Whether what is printed has colour: not when NO_COLOR or `--no-color` says so. Light: every start loads it.

Rules it keeps: `--no-color` is NO_COLOR for as long as the command runs, so that logs, the demo and the processes that it
starts keep to it too. It must not know what is printed.
"""

from __future__ import annotations

import os
from typing import Final

import click

_VARIABLE: Final = "NO_COLOR"


def without_colour(ctx: click.Context) -> None:
    """Nothing of this run has colour from here on."""
    root = ctx.find_root()
    before = os.environ.get(_VARIABLE)

    def restore() -> None:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before

    root.call_on_close(restore)
    os.environ[_VARIABLE] = "1"
    ctx.color = root.color = False


def is_plain() -> bool:
    """Whether colour is turned off."""
    return bool(os.environ.get(_VARIABLE))
