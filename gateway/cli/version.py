"""`stripemeter version`: which version this is, and of what it is made."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Final

import click

from gateway import __version__
from gateway.terminal.options import json_option
from gateway.terminal.output import Column, Row, print_json, print_table

_LIBRARIES: Final = ("click", "hypercorn", "lmdb", "msgspec", "quart", "rich", "stripe", "trio")


@click.command("version")
@json_option
def command(*, as_json: bool) -> int:
    r"""Print the version of StripeMeter, of Python, and of the libraries that matter to a report of a fault.

    \b
    Examples:
      stripemeter version
      stripemeter version --json
    """
    libraries = {name: _version_of(name) for name in _LIBRARIES}
    if as_json:
        print_json(
            {
                "version": __version__,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "libraries": libraries,
            }
        )
        return 0
    rows = [("stripemeter", __version__), ("python", platform.python_version())]
    rows += [("platform", platform.platform()), *libraries.items()]
    print_table([Column("what"), Column("version")], [Row(row) for row in rows])
    return 0


def _version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"
