"""The text of a `.env` file as a mapping: a small subset that means the same here and in a shell.

Rules it keeps: KEY=VALUE lines, `export`, comments, single or double quotes; no expansion of `$NAME`, no
value over several lines, for a file that needs them would be read differently by other tools. A line that
it does not understand is an error that names the line, never its text, which may be a secret. It must not
know which variables there are, or where the text comes from.
"""

from __future__ import annotations

import re
from typing import Final

from engine.errors import SettingsError

DOTENV_CHARS_MAX: Final = 1 << 20

_LINE: Final = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*(.*)")
_QUOTED: Final = re.compile(r"""(?:"((?:[^"\\]|\\.)*)"|'([^']*)')[ \t]*(?:#.*)?""")
_COMMENT: Final = re.compile(r"(?:^|[ \t])#")
"""Only after a blank: an unquoted secret may hold the sign."""
_ESCAPES: Final = {"n": "\n", "t": "\t", '"': '"', "\\": "\\", "$": "$"}


def parse_dotenv(text: str) -> dict[str, str]:
    """The variables of the file; of a key that is there twice, the last. Raises SettingsError."""
    if len(text) > DOTENV_CHARS_MAX:
        message = f".env: {len(text)} characters; allowed: at most {DOTENV_CHARS_MAX}"
        raise SettingsError(message)
    values: dict[str, str] = {}
    for number, raw in enumerate(text.lstrip("\ufeff").split("\n"), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            message = f".env line {number}: not an assignment; allowed: KEY=VALUE and # comments"
            raise SettingsError(message)
        values[match[1]] = _value(match[2], number)
    return values


def _value(text: str, number: int) -> str:
    if not text.startswith(('"', "'")):
        return _COMMENT.split(text, maxsplit=1)[0].strip()
    match = _QUOTED.fullmatch(text)
    if match is None:
        message = f".env line {number}: the quotes do not close; allowed: KEY='VALUE' on one line"
        raise SettingsError(message)
    if match[1] is None:
        return match[2]
    return re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[0]), match[1])
