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
from decimal import ROUND_CEILING, Decimal
from itertools import pairwise
from typing import Any, Final, NamedTuple, TextIO

import click
import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.terminal.colour import is_plain

PIPE_WIDTH: Final = 10_000
"""Characters in a line that nobody's terminal wraps: a table in a pipe is never folded."""
TEXT_WIDTH_MIN: Final = 12
"""A column of text is folded down to this, not further."""
GAP: Final = 2
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
    """One line on stderr for who reads along, a JSON object where JSON is asked for; not an error."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None and ctx.params.get("as_json"):
        click.echo(msgspec.json.encode({"note": message}).decode(), err=True)
    else:
        click.secho(printable(message), err=True, fg="yellow")


def is_confirmed(question: str) -> bool:
    """Whether a person says yes. Raises UsageError when nobody is there to ask."""
    try:
        is_yes = click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        ctx = click.get_current_context(silent=True)
        raise click.UsageError("it asks first, and nobody answers: give --yes", ctx) from None
    if not is_yes:
        note("nothing was changed")
    return is_yes


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


def print_table(columns: Sequence[Column], rows: Sequence[Row], to: Console | None = None) -> None:
    """Print rows as a table, or where that would not fit, each row as lines of `name  value`.

    A column of text is folded, to no less than TEXT_WIDTH_MIN characters; a column that is not folded is shown whole,
    so a number can be copied. Without a terminal nothing is folded.
    """
    to = to or console()
    rows = [
        Row([printable(one) if isinstance(one, str) else one for one in row.cells], row.style)
        for row in rows
    ]
    assert all(len(row.cells) == len(columns) for row in rows), "a cell for each column"
    widths = [
        max([cell_len(column.name), *(cell_len(str(row.cells[place])) for row in rows)])
        for place, column in enumerate(columns)
    ]
    least = [
        min(width, max(TEXT_WIDTH_MIN, cell_len(column.name))) if column.folds else width
        for column, width in zip(columns, widths, strict=True)
    ]
    if not to.is_terminal:
        _print_lines(columns, rows, widths, to)
        return
    if sum(least) + GAP * (len(columns) - 1) > to.width:
        filled = [at for at in range(len(columns)) if any(str(row.cells[at]) for row in rows)]
        if len(filled) == len(columns):
            _print_blocks(columns, rows, to)
        else:
            # A column without a cell says nothing: without it the table may fit.
            fewer = [Row([row.cells[at] for at in filled], row.style) for row in rows]
            print_table([columns[at] for at in filled], fewer, to)
        return
    has_names = any(column.name for column in columns)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=has_names)
    for column, width in zip(columns, least, strict=True):
        table.add_column(
            column.name,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=not column.folds,
            min_width=width,
        )
    for row in rows:
        cells = (Text(one) if isinstance(one, str) else one for one in row.cells)
        table.add_row(*cells, style=row.style)
    to.print(table)


def _print_lines(
    columns: Sequence[Column], rows: Sequence[Row], widths: Sequence[int], to: Console
) -> None:
    """Without a terminal: a line per row, however long, without blanks at its end."""
    names = [Row([column.name for column in columns])] if any(one.name for one in columns) else []
    for row in [*names, *rows]:
        cells = []
        for column, width, cell in zip(columns, widths, map(str, row.cells), strict=True):
            blanks = " " * (width - cell_len(cell))
            cells.append(blanks + cell if column.right else cell + blanks)
        to.print(Text((" " * GAP).join(cells).rstrip()), soft_wrap=True)


def _print_blocks(columns: Sequence[Column], rows: Sequence[Row], to: Console) -> None:
    """A row as lines of its own, each with a column's name before it; what is folded stays beside the name."""
    indent = max(cell_len(column.name) for column in columns) + GAP
    for number, row in enumerate(rows):
        if number:
            to.print()
        for column, cell in zip(columns, map(str, row.cells), strict=True):
            if not cell:
                continue
            whole = Text(cell, style=row.style)
            lines = (
                whole.wrap(to, max(1, to.width - indent), overflow="fold")
                if column.folds
                else [whole]
            )
            name = f"{column.name:<{indent}}"
            for line in lines:
                to.print(Text(name, style="dim").append_text(line), soft_wrap=True)
                name = " " * indent


def raw_text(value: Any) -> str:
    """A number as it came, to the last digit, or a text of a server's answer; none is empty."""
    if isinstance(value, msgspec.UnsetType) or value is None:
        return ""
    if not isinstance(value, msgspec.Raw):
        return str(value)
    data = bytes(value)
    if data[:1] == b'"':
        return msgspec.json.decode(data, type=str)
    return "" if data == b"null" else data.decode()


def printable(text: str) -> str:
    """The text on one line and without what a terminal would obey: names are whatever a client has sent."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


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
    return "".join(
        _LEVELS[max(0, int((top * last / most).to_integral_value(ROUND_CEILING)))] for top in tops
    )
