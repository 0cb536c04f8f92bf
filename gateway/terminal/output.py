"""What commands print: JSON, tables that fit their terminal, notes.

Rules it keeps: results go to stdout, everything else to stderr; colour and progress are for a terminal alone, and
`--no-color` and NO_COLOR turn colour off; a number is never folded, cut or rounded: a table that does not fit becomes
one block of lines per row. It must not know what is shown.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final, NamedTuple, TextIO

import click
import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH: Final = 10_000
"""Characters in a line that nobody's terminal wraps: a table in a pipe is never folded."""
TEXT_WIDTH_MIN: Final = 12
"""A column of text is folded down to this, not further."""
GAP: Final = 2
_PLAIN: Final = "stripemeter.plain"
_LEVELS: Final = "▁▂▃▄▅▆▇█"


class Column(NamedTuple):
    """A column of a table. `folds`: it is text that may go on in the next line; else it is shown whole."""

    name: str
    folds: bool = True
    right: bool = False


def text_columns(*names: str) -> tuple[Column, ...]:
    """Columns of text that may be folded."""
    return tuple(Column(name) for name in names)


def number_columns(*names: str) -> tuple[Column, ...]:
    """Columns of numbers: right-aligned, never folded."""
    return tuple(Column(name, folds=False, right=True) for name in names)


def without_colour(ctx: click.Context) -> None:
    """From here on nothing of this run has colour."""
    root = ctx.find_root()
    root.meta[_PLAIN] = True
    ctx.color = root.color = False


def is_plain() -> bool:
    """Whether colour is turned off."""
    ctx = click.get_current_context(silent=True)
    return bool(os.environ.get("NO_COLOR")) or (ctx is not None and ctx.meta.get(_PLAIN, False))


def is_live(file: TextIO) -> bool:
    """Whether a person looks at it as it is written: a terminal that can move its cursor."""
    return file.isatty() and os.environ.get("TERM") != "dumb"


def console(file: TextIO | None = None) -> Console:
    """A console on stdout, or another file: as wide as the terminal; without one, without end."""
    file = file or sys.stdout
    width = None if file.isatty() else PIPE_WIDTH
    return Console(file=file, width=width, highlight=False, no_color=is_plain() or None)


def json_text(value: object) -> str:
    """A value as indented JSON; numbers as they are, to the last digit."""
    data = bytes(value) if isinstance(value, msgspec.Raw) else msgspec.json.encode(value)
    return msgspec.json.format(data).decode()


def print_json(value: object) -> None:
    """Print it on stdout."""
    click.echo(json_text(value))


def note(message: str) -> None:
    """One line on stderr for a person who reads along; not an error."""
    click.secho(message, err=True, fg="yellow")


@contextmanager
def full_screen(*, watched: bool) -> Iterator[None]:
    """What is printed within replaces what was on the terminal, if it is watched there."""
    if watched and is_live(sys.stdout):
        click.clear()
    yield


class Row(NamedTuple):
    """A row of a table; `style` is rich's, of the whole row."""

    cells: Sequence[str | Text]
    style: str = ""


def print_table(
    columns: Sequence[Column], rows: Sequence[Row], to: Console | None = None, footer: bool = False
) -> None:
    """Print rows as a table, or where that would not fit, each row as lines of `name  value`.

    A column of text is folded, to no less than TEXT_WIDTH_MIN characters; a column that is not folded is shown whole,
    so a number can be copied. `footer`: the last row is a total.
    """
    to = to or console()
    assert all(len(row.cells) == len(columns) for row in rows), "a cell for each column"
    widths = [
        max([cell_len(column.name), *(cell_len(str(row.cells[place])) for row in rows)])
        for place, column in enumerate(columns)
    ]
    least = [
        min(width, max(TEXT_WIDTH_MIN, cell_len(column.name))) if column.folds else width
        for column, width in zip(columns, widths, strict=True)
    ]
    if sum(least) + GAP * (len(columns) - 1) > to.width:
        _print_blocks(columns, rows, to)
        return
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_footer=False)
    for column, width in zip(columns, least, strict=True):
        table.add_column(
            column.name,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=not column.folds,
            min_width=width,
        )
    for number, row in enumerate(rows):
        if footer and number == len(rows) - 1:
            table.add_section()
        table.add_row(
            *(Text(one) if isinstance(one, str) else one for one in row.cells), style=row.style
        )
    to.print(table)


def _print_blocks(columns: Sequence[Column], rows: Sequence[Row], to: Console) -> None:
    names = max(cell_len(column.name) for column in columns)
    for number, row in enumerate(rows):
        if number:
            to.print()
        for column, cell in zip(columns, row.cells, strict=True):
            if cell:
                line = Text(f"{column.name:<{names}}  ", style="dim").append(cell, style=row.style)
                to.print(line, soft_wrap=not column.folds, overflow="fold")


def raw_text(value: Any) -> str:
    """A number or text of a server's answer as it came; none is empty."""
    if isinstance(value, msgspec.UnsetType) or value is None:
        return ""
    text = bytes(value).decode() if isinstance(value, msgspec.Raw) else str(value)
    return "" if text == "null" else text.strip('"')


def sparkline(values: Sequence[str], width_max: int) -> str:
    """Plain decimals as a line of bars, the newest last; the largest is a full bar, 0 the lowest.

    More values than `width_max`: neighbours are put together, and the largest of them is shown.
    """
    assert width_max >= 1
    numbers = [Decimal(value) for value in values]
    each = -(-len(numbers) // width_max) if numbers else 1
    # Groups are counted from the end, so that the newest values fill a bar of their own.
    first = len(numbers) % each or each
    bounds = [0, *range(first, len(numbers) + 1, each)] if numbers else [0]
    tops = [max(numbers[a:b]) for a, b in pairwise(bounds)]
    most = max(tops, default=Decimal(0))
    if most <= 0:
        return _LEVELS[0] * len(tops)
    last = len(_LEVELS) - 1
    # Rounded up: what is not nothing is seen to be not nothing.
    return "".join(_LEVELS[max(0, -int(-top * last // most))] for top in tops)
