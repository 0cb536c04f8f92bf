"""Help that fits its terminal: kept lines (examples, exit codes) that are too long go on, indented, in the next.

Rules it keeps: an example stays one that can be pasted: it goes on after a backslash, before an option or a pipe, never
within a text. It must not know any command.
"""

from __future__ import annotations

import re
import textwrap
from typing import Final

import click

_KEPT: Final = "\b\n"
"""click's mark of a paragraph whose lines are kept."""
_GO_ON: Final = "    "
_BREAKS: Final = re.compile(r" (?=--?\w|[|>]|https?:)")
_CODE: Final = re.compile(r"( *(?:\d+|[\w.-]+) {2,})\S")
"""A line of a list: a code or name, then what it means."""


class FittingFormatter(click.HelpFormatter):
    """click's formatter, with long kept lines folded."""

    def write_text(self, text: str) -> None:
        """See click."""
        width = self.width - self.current_indent
        paragraphs = text.split("\n\n")
        super().write_text(
            "\n\n".join(_fitted(one, width) if one.startswith(_KEPT) else one for one in paragraphs)
        )


class FittingContext(click.Context):
    """A context whose help fits."""

    formatter_class: type[click.HelpFormatter] = FittingFormatter


def _fitted(paragraph: str, width: int) -> str:
    lines = paragraph.removeprefix(_KEPT).split("\n")
    is_shell = lines[0].strip() == "Examples:"
    return _KEPT + "\n".join(
        part for line in lines for part in _folded(line, width, is_shell=is_shell)
    )


def _folded(line: str, width: int, *, is_shell: bool) -> list[str]:
    """A line in as many as it takes."""
    if len(line) <= width:
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    # What is for people to read stands to the right of some examples.
    if is_shell and not re.search(r"\S {3,}\S", line):
        return _folded_example(line, indent + _GO_ON, width)
    found = _CODE.match(line)
    under = " " * len(found[1]) if found else indent + _GO_ON
    return textwrap.wrap(line, width, subsequent_indent=under, break_long_words=False)


def _folded_example(line: str, under: str, width: int) -> list[str]:
    found = [""]
    for number, part in enumerate(_BREAKS.split(line)):
        if number and len(found[-1]) + len(part) + len(" \\ ") > width:
            found[-1] += " \\"
            found.append(under + part)
        else:
            found[-1] += f" {part}" if number else part
    return found
