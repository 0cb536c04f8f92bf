"""Whether what is printed has colour: not when NO_COLOR or `--no-color` says so. Light: every start loads it.

It must not know what is printed.
"""

from __future__ import annotations

import os
from typing import Final

import click

_PLAIN: Final = "stripemeter.plain"


def without_colour(ctx: click.Context) -> None:
    """From here on nothing of this run has colour."""
    root = ctx.find_root()
    root.meta[_PLAIN] = True
    ctx.color = root.color = False


def is_plain() -> bool:
    """Whether colour is turned off."""
    ctx = click.get_current_context(silent=True)
    return bool(os.environ.get("NO_COLOR")) or (ctx is not None and ctx.meta.get(_PLAIN, False))
