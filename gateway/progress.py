"""A progress bar for the commands that copy and read much: on stderr, on a terminal only. It must not know what is done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def byte_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A function that shows (what is being done, bytes so far, bytes in all)."""
    console = Console(file=sys.stderr)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=None)

        def show(doing: str, done: int, in_all: int) -> None:
            bar.update(task, description=doing, completed=done, total=max(done, in_all))

        yield show
