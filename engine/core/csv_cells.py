"""Cells of CSV files that a spreadsheet can open without running them, and that read back as they were.

A spreadsheet runs a cell that begins with one of `= + - @`, a tab or a carriage return (OWASP, CSV Injection). Such a
text gets an apostrophe in front, which a spreadsheet shows as text. A text that already is apostrophes before such a
character gets one more, so that `read_cell` gives back exactly what `text_cell` was given, for every text.
Numbers that this program writes itself are not touched: `-5` must stay a number.
It must not know columns or files.
"""

from __future__ import annotations

import re
from typing import Final

RUN_BY_SPREADSHEETS: Final = "=+-@\t\r"
_RUNS: Final = re.compile(r"'*[=+\-@\t\r]")
_ESCAPED: Final = re.compile(r"'+[=+\-@\t\r]")


def text_cell(text: str) -> str:
    """The text as a cell that no spreadsheet runs."""
    return f"'{text}" if _RUNS.match(text) else text


def read_cell(cell: str) -> str:
    """The text of a cell that `text_cell` made; every other cell is its own text."""
    return cell[1:] if _ESCAPED.match(cell) else cell
