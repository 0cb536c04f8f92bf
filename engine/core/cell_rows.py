"""Rows of a CSV that need no second look: whole lines, as columns of cells, without a text or an object per row.

Rules it keeps: what comes out is what `engine.core.sent_rows.rows_of_csv` says of the same lines, row by row and line
by line; anything it can't be sure of (a row over two lines, another count of cells, a byte order mark) is None, and
left to that. It must not know files, nor what a cell means.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import overload

from engine.core.sent_rows import CELL_CHARS_MAX, SentRow, lines_of, row_of_cells


class CellRows(Sequence[SentRow]):
    """Rows side by side: `columns[c][r]` is the cell of row r under `names[c]`; the lines follow one another."""

    __slots__ = ("columns", "first_line", "has_apostrophes", "names")

    def __init__(
        self,
        names: Sequence[str],
        columns: Sequence[Sequence[str]],
        first_line: int,
        *,
        has_apostrophes: bool,
    ) -> None:
        """`names`: the API's, as `columns_of` has them; `has_apostrophes`: a cell may begin with one."""
        self.names = names
        self.columns = columns
        self.first_line = first_line
        self.has_apostrophes = has_apostrophes

    def __len__(self) -> int:
        return len(self.columns[0])

    def __iter__(self) -> Iterator[SentRow]:
        names = self.names
        for line, cells in enumerate(zip(*self.columns, strict=True), self.first_line):
            yield SentRow(line, row_of_cells(names, cells))

    @overload
    def __getitem__(self, at: int) -> SentRow: ...
    @overload
    def __getitem__(self, at: slice) -> CellRows: ...
    def __getitem__(self, at: int | slice) -> SentRow | CellRows:
        if isinstance(at, slice):
            first = self.first_line + range(len(self))[at].start
            columns = [column[at] for column in self.columns]
            return CellRows(self.names, columns, first, has_apostrophes=self.has_apostrophes)
        line = self.first_line + range(len(self))[at]
        return SentRow(line, row_of_cells(self.names, [column[at] for column in self.columns]))


def cells_of(text: str, names: Sequence[str], first_line: int) -> CellRows | None:
    """The rows of whole lines of a CSV; None: they need the long way.

    `text` begins with a row, as the line `first_line`, and ends with a line.
    """
    if "\0" in text or "\ufeff" in text or len(names) < 2:
        return None
    columns = _quoted(text, len(names)) if '"' in text else _split(text, len(names))
    if columns is None or any(
        # What is passed over is looked at by nobody else; the longest line is longer than its longest cell.
        not name and max(map(len, column)) > CELL_CHARS_MAX
        for name, column in zip(names, columns, strict=True)
    ):
        return None
    return CellRows(names, columns, first_line, has_apostrophes="'" in text)


def _split(text: str, width: int) -> list[list[str]] | None:
    """Without quotes every comma parts two cells and every line end two rows.

    A column of line ends is put beside the others: if it holds them all, every row has `width` cells.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n")
        if "\r" in text:
            return None
    if not text.endswith("\n"):
        text += "\n"
    cells = text.replace("\n", ",\n,").split(",")
    cells.pop()  # what follows the last comma
    rows, rest = divmod(len(cells), width + 1)
    if rest or text.count("\n") != rows or cells[width :: width + 1].count("\n") != rows:
        return None
    return [cells[at :: width + 1] for at in range(width)]


def _quoted(text: str, width: int) -> list[Sequence[str]] | None:
    reader = csv.reader(lines_of(text), strict=True)
    try:
        rows = list(reader)
    except csv.Error:
        return None
    # As many lines as rows: none is blank, none goes over two lines.
    if reader.line_num != len(rows) or set(map(len, rows)) != {width}:
        return None
    return list(zip(*rows, strict=True))
