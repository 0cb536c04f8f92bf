"""A progress bar for the commands that copy and read much: on stderr, on a terminal only. It must not know what is done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gateway.terminal.output import console, is_live


@contextmanager
def byte_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A function that shows (what is being done, bytes so far, bytes in all)."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
        console=console(sys.stderr),
        transient=True,
        disable=not is_live(sys.stderr),
    ) as bar:
        task = bar.add_task("", total=None)

        def show(doing: str, done: int, in_all: int) -> None:
            bar.update(task, description=doing, completed=done, total=max(done, in_all))

        yield show


@contextmanager
def row_progress(doing: str) -> Iterator[Callable[[int, int, int | None], None]]:
    """A function that shows (rows so far, bytes so far, bytes in all or None where nobody knows)."""
    with Progress(
        TextColumn(doing),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console(sys.stderr),
        transient=True,
        disable=not is_live(sys.stderr),
    ) as bar:
        task = bar.add_task("", total=None, rows=0)

        def show(rows: int, done: int, in_all: int | None) -> None:
            bar.update(task, completed=done, total=in_all, rows=rows)

        yield show
