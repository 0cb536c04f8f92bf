"""How the demo is told: a line for what happens, a line for what the meter did about it, a bar, a final table.

Rules it keeps: without a terminal it is the same text, without colours and without a bar. It must not know the story.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gateway.demo.reckoning import Row, cost

_WIDTH_WITHOUT_TERMINAL = 120
_COLUMNS = ("customer", "used", "counted", "pushed", "at Stripe", "certified", "projected")


class Teller:
    """Tells one story of so many steps."""

    def __init__(self, output: TextIO, steps: int) -> None:
        width = None if output.isatty() else _WIDTH_WITHOUT_TERMINAL
        self._console = Console(file=output, highlight=False, width=width)
        self._steps = steps
        self._told = 0
        self._bar = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", style="dim"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Show the bar until the block ends."""
        with self._bar:
            yield

    def happens(self, text: str) -> None:
        """The next step begins."""
        self._told += 1
        self._bar.update(self._task, completed=self._told - 1, description="")
        self._console.print(f"[bold]{self._told:>2}/{self._steps}  {escape(text)}[/]")

    def waits(self, text: str) -> None:
        """What is waited for, beside the bar."""
        self._bar.update(self._task, description=text)

    def does(self, text: str) -> None:
        """What the meter did about it."""
        self._console.print(f"       [green]→[/] {escape(text)}")

    def ends(self, rows: Sequence[Row], wrong: Sequence[str]) -> None:
        """The table, if the story came so far, and whether all agrees."""
        self._console.print()
        if rows:
            self._console.print(_table(rows))
        for line in wrong:
            self._console.print(f"[bold red]differs:[/] {escape(line)}")
        if not wrong:
            total = sum(cost(row.used) for row in rows)
            text = f"Every number agrees, from the first event to the invoices: ${total:,.2f}."
            self._console.print(f"[bold green]{text}[/]")


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="What everybody says", title_justify="left", title_style="bold")
    table.add_column(_COLUMNS[0])
    for name in (*_COLUMNS[1:], "invoiced", ""):
        table.add_column(name, justify="right")
    for row in rows:
        units = (row.used, row.counted, row.pushed, row.at_stripe, row.certified)
        money = (f"${row.projected:,.2f}", f"{row.invoiced:,} = ${row.charged:,.2f}")
        mark = "[red]differs[/]" if any(row.wrong) else "[green]✓[/]"
        table.add_row(row.customer, *(f"{one:,}" for one in units), *money, mark)
    return table
