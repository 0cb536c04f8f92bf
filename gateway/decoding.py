"""From a request's bytes to values: JSON bodies into structs, and what msgspec says into words with a field's name.

Rules it keeps: JSON is decoded by msgspec alone, strictly: no field that is not known (a typo must not be silent), no
text for a number; depth is checked before anything parses. Refusals are values. It must not know any endpoint.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from engine.core.json_depth import deeper_than
from gateway.parameters import read_pairs
from gateway.problems import Problem, wrong_fields

JSON: Final = "application/json"
_PATH: Final = re.compile(r"^(?P<message>.*) - at `\$(?P<path>.*)`$", re.DOTALL)
_NAMED: Final = re.compile(
    r"^Object (?P<what>contains unknown|missing required) field `(?P<field>.*)`$", re.DOTALL
)
_PATTERN: Final = "matching regex"
"""In msgspec's sentence about a text's pattern; the one that is used keeps out U+0000 (gateway.parameters)."""
_FIELD_CHARS_MAX: Final = 200


def media_type(content_type: str | None) -> str:
    """A Content-Type without its parameters, in lower case; empty when there is none."""
    return (content_type or "").partition(";")[0].strip().lower()


def check_json_headers(content_type: str | None, content_encoding: str | None) -> Problem | None:
    """A 415 unless the headers announce plain JSON."""
    if media_type(content_type) != JSON:
        return Problem(415, f"send the body as {JSON}, with that Content-Type")
    if (content_encoding or "identity").strip().lower() != "identity":
        return Problem(415, "send the body without a Content-Encoding")
    return None


def decode_body(body: bytes, decoder: msgspec.json.Decoder[Any], depth_max: int) -> Any | Problem:
    """The decoded struct, or a 400 that names what is wrong."""
    if not body:
        return Problem(400, "the body is empty; send a JSON object")
    if deeper_than(body, depth_max):
        return Problem(400, f"the body nests deeper than {depth_max} levels")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        return wrong_fields([field_error(str(error))])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Problem(400, f"the body is not valid JSON: {error}")


def field_error(message: str) -> tuple[str, str]:
    """(field, message) from msgspec's sentence about a body."""
    path = ""
    if found := _PATH.match(message):
        message, path = found["message"], found["path"].lstrip(".")
    if named := _NAMED.match(message):
        path = f"{path}.{named['field']}" if path else named["field"]
        unknown = named["what"] == "contains unknown"
        message = "is not a field here; check its spelling" if unknown else "is missing"
    elif _PATTERN in message:
        message = "must not hold the character U+0000"
    elif message.startswith("Expected "):
        message = f"must be {message.removeprefix('Expected ').replace('`', '')}"
    else:
        message = message[:1].lower() + message[1:]
    return (path or "body")[:_FIELD_CHARS_MAX], message


def single_parameter(query_string: bytes, name: str, chars_max: int) -> str | Problem | None:
    """The one parameter that ingest takes (None: absent); a 400 for any other, a second one, or its length."""
    pairs = read_pairs(query_string)
    if isinstance(pairs, Problem):
        return pairs
    found: str | None = None
    for key, value in pairs:
        if key != name:
            return wrong_fields([(key[:100], f"is not a parameter here; there is: {name}")])
        if found is not None:
            return wrong_fields([(name, "is given more than once")])
        if not 1 <= len(value) <= chars_max or "\0" in value:
            return wrong_fields([(name, f"must have 1 to {chars_max} characters, none U+0000")])
        found = value
    return found
