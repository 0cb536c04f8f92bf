"""Query parameters as data: what each is called, how its text is read, and how the documentation shows it.

Rules it keeps: a parameter that is unknown, given twice, empty or outside its range is an error that names it, never
clamped or passed over; times may be relative to `now_us`. Parsers raise ValueError with the rest of the sentence
"PARAMETER ...". It must not know any endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from engine.core.times import INSTANT_US_END, TimeError, parse_instant_or_relative
from engine.limits import LISTING_LIMIT_MAX, NAME_CHARS_MAX
from gateway.problems import Problem, wrong_fields

PARAMETERS_MAX: Final = 50
OFFSET_MAX: Final = 1_000_000_000
CURSOR_CHARS_MAX: Final = 512
LISTING_LIMIT_DEFAULT: Final = 25
CURSOR_REFUSED: Final = (
    "is not one that this listing gave, or came with an offset: leave it out and start over"
)
_WHOLE: Final = re.compile(r"[0-9]{1,10}")
TEXT_PATTERN: Final = r"^[^\u0000]*$"
"""As JSON Schema has it: any text without U+0000."""
MONTH_SCHEMA: Final[dict[str, Any]] = {
    "type": "string",
    "pattern": "^(?!0000)[0-9]{4}-(0[1-9]|1[0-2])$",
    "examples": ["2026-01"],
}
RELATIVE_SCHEMA: Final[dict[str, Any]] = {
    "type": "string",
    "pattern": r"^[+-]P(?=.)([0-9]+W)?([0-9]+D)?(T(?=.)([0-9]+H)?([0-9]+M)?([0-9]+(\.[0-9]+)?S)?)?$",
}
WHEN_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [{"type": "string", "format": "date-time"}, RELATIVE_SCHEMA],
    "examples": ["2026-01-31T00:00:00Z", "-PT24H"],
}
"""An instant, or a signed duration from now."""
DAY_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}],
    "examples": ["2026-01-01"],
}
"""A UTC day, or an instant."""


class Parameter(NamedTuple):
    """One query parameter. `default` is a parsed value; `parse(text, now_us)` raises ValueError."""

    name: str
    parse: Callable[[str, int], Any]
    schema: dict[str, Any]
    description: str
    required: bool = False
    default: Any = None


def parse_query(
    query_string: bytes, parameters: Sequence[Parameter], now_us: int
) -> dict[str, Any] | Problem:
    """Every parameter's value by name, the defaults too; a 400 that names each wrong one."""
    if not query_string and not any(parameter.required for parameter in parameters):
        return {parameter.name: parameter.default for parameter in parameters}
    pairs = read_pairs(query_string)
    if isinstance(pairs, Problem):
        return pairs
    values = {parameter.name: parameter.default for parameter in parameters}
    by_name = {parameter.name: parameter for parameter in parameters}
    errors: list[tuple[str, str]] = []
    given: set[str] = set()
    for name, text in pairs:
        parameter = by_name.get(name)
        if parameter is None:
            known = ", ".join(by_name) or "none"
            errors.append((name[:100], f"is not a parameter here; there are: {known}"))
        elif name in given:
            errors.append((name, "is given more than once"))
        else:
            given.add(name)
            try:
                values[name] = parameter.parse(text, now_us)
            except ValueError as error:
                errors.append((name, str(error)))
    errors += [
        (parameter.name, "is missing")
        for parameter in parameters
        if parameter.required and parameter.name not in given
    ]
    return wrong_fields(errors) if errors else values


def read_pairs(query_string: bytes) -> list[tuple[str, str]] | Problem:
    """The parameters in order, decoded; a 400 for what is not UTF-8 or too many."""
    try:
        return parse_qsl(
            query_string.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=PARAMETERS_MAX,
        )
    except UnicodeDecodeError:
        return Problem(400, "the query must be percent-encoded UTF-8")
    except ValueError:
        return Problem(400, f"the query has more than {PARAMETERS_MAX} parameters")


def text(name: str, description: str, chars_max: int = NAME_CHARS_MAX, **more: Any) -> Parameter:
    """A parameter that is a text of 1 to `chars_max` characters, without U+0000."""

    def parse(value: str, _now_us: int) -> str:
        if not 1 <= len(value) <= chars_max:
            message = f"must have 1 to {chars_max} characters"
            raise ValueError(message)
        if "\0" in value:
            raise ValueError("must not hold the character U+0000")
        return value

    schema = {"type": "string", "minLength": 1, "maxLength": chars_max, "pattern": TEXT_PATTERN}
    return Parameter(name, parse, schema, description, **more)


def whole_number(
    name: str, description: str, lowest: int, highest: int, default: int | None = None
) -> Parameter:
    """A parameter that is a whole number from `lowest` to `highest`."""

    def parse(value: str, _now_us: int) -> int:
        if _WHOLE.fullmatch(value) is None or not lowest <= int(value) <= highest:
            message = f"must be a whole number from {lowest} to {highest}"
            raise ValueError(message)
        return int(value)

    schema: dict[str, Any] = {"type": "integer", "minimum": lowest, "maximum": highest}
    if default is not None:
        schema["default"] = default
    return Parameter(name, parse, schema, description, default=default)


def choice(
    name: str,
    description: str,
    words: Sequence[str],
    default: str | None = None,
    *,
    required: bool = False,
) -> Parameter:
    """A parameter that is one of some words."""

    def parse(value: str, _now_us: int) -> str:
        if value not in words:
            message = f"must be one of {', '.join(words)}"
            raise ValueError(message)
        return value

    schema: dict[str, Any] = {"type": "string", "enum": list(words)}
    if default is not None:
        schema["default"] = default
    return Parameter(name, parse, schema, description, default=default, required=required)


def instant(name: str, description: str, *, required: bool = False) -> Parameter:
    """A parameter that is an instant, or a signed duration from now; its value is microseconds since 1970."""

    def parse(value: str, now_us: int) -> int:
        try:
            us = parse_instant_or_relative(value, now_us)
        except TimeError as error:
            raise ValueError(str(error)) from None
        assert us < INSTANT_US_END
        return us

    return Parameter(name, parse, WHEN_SCHEMA, description, required=required)


TENANT: Final = text("tenantId", "The tenant. A tenant's own API key needs no other.")
NUMBERS: Final = choice(
    "numbers",
    "`string` gives quantities as strings, for clients whose JSON reads doubles.",
    ("number", "string"),
    "number",
)
LIMIT: Final = whole_number(
    "limit", "At most so many.", 1, LISTING_LIMIT_MAX, LISTING_LIMIT_DEFAULT
)
OFFSET: Final = whole_number("offset", "Pass over so many.", 0, OFFSET_MAX)
CURSOR: Final = text("cursor", "Go on where `nextCursor` of an answer says.", CURSOR_CHARS_MAX)
