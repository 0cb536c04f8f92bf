"""What goes over the wire: requests in, answers out, Stripe's form encoding, its error shape, its lists.

Rules it keeps: pure, no IO; a parameter that nobody read is refused, as Stripe refuses it, so that a typo is found
here and not on an invoice; an expected refusal is a value of `Refusal`. It must not know any endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import parse_qsl

import msgspec

Json = dict[str, Any]
LIST_DEFAULT: Final = 10
LIST_MAX: Final = 100
_NESTED: Final = re.compile(r"\[([^\[\]]*)\]")
_WHOLE: Final = re.compile(r"-?[0-9]{1,18}\Z")
_encode: Final = msgspec.json.Encoder().encode


class Request(NamedTuple):
    """One request as it came. `path` is decoded and without the query; header names are lower case."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = {}
    body: bytes = b""


class Response(NamedTuple):
    """One answer, and what becomes of it on its way."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    delay_seconds: float = 0.0
    """How long the caller waits for it."""
    lost: Literal["", "reset", "swallowed"] = ""
    """`reset`: the connection is closed instead of an answer; `swallowed`: nothing comes, ever."""

    def json(self) -> Any:
        """The body decoded; for those who call in process."""
        return msgspec.json.decode(self.body)


class Refusal(NamedTuple):
    """An answer that says no."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    type: str = "invalid_request_error"
    is_kept: bool = True
    """Whether an idempotency key replays it. Stripe keeps none of what failed validation or met another request."""
    headers: Mapping[str, str] = {}

    def body(self) -> bytes:
        """The error as Stripe writes it; fields without a value are left out."""
        error: Json = {"message": self.message, "type": self.type}
        if self.code is not None:
            error["code"] = self.code
            error["doc_url"] = f"https://stripe.com/docs/error-codes/{self.code.replace('_', '-')}"
        if self.param is not None:
            error["param"] = self.param
        return _encode({"error": error})


def encode(content: object) -> bytes:
    """JSON bytes."""
    return _encode(content)


def missing(kind: str, object_id: str, param: str = "id") -> Refusal:
    """Stripe's words for what is not there: 404 for the object of the path, 400 for a parameter."""
    status = 404 if param == "id" else 400
    return Refusal(status, f"No such {kind}: '{object_id}'", "resource_missing", param)


def decode_form(text: str) -> Json:
    """Nested dictionaries of a form: `a[b][c]=1` is {"a": {"b": {"c": "1"}}}; lists have their indexes as keys."""
    values: Json = {}
    for key, value in parse_qsl(text, keep_blank_values=True, max_num_fields=2000):
        bracket = key.find("[")
        if bracket < 0:
            values[key] = value
            continue
        inner = values
        steps = [key[:bracket], *_NESTED.findall(key[bracket:])]
        for step in steps[:-1]:
            below = inner.get(step)
            if not isinstance(below, dict):
                below = inner[step] = {}
            inner = below
        inner[steps[-1] or str(len(inner))] = value
    return values


class Fields:
    """A request's parameters, read one by one; the first that is wrong is kept in `wrong`.

    Every reader returns a value of its type even then, so that an endpoint reads all it needs and looks at `wrong` once.
    """

    __slots__ = ("_path", "_unread", "_values", "wrong")

    def __init__(self, values: Json, path: str = "") -> None:
        self._values = values
        self._unread = set(values)
        self._path = path
        self.wrong: Refusal | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def refuse(self, message: str, param: str, code: str | None = None) -> None:
        """Keep the first refusal."""
        if self.wrong is None:
            self.wrong = Refusal(400, message, code, self.named(param), is_kept=False)

    def named(self, name: str) -> str:
        """The parameter's full name, as Stripe writes it in `param`."""
        return f"{self._path}[{name}]" if self._path else name

    def text(self, name: str, *, required: bool = False, chars_max: int = 5000) -> str:
        """The text of a parameter; "" when it is not there."""
        self._unread.discard(name)
        value = self._values.get(name)
        if value is None or value == "":
            if required:
                self.refuse(
                    f"Missing required param: {self.named(name)}.", name, "parameter_missing"
                )
            return ""
        if not isinstance(value, str):
            self.refuse(f"Invalid string: {value!r:.100}", name)
            return ""
        if len(value) > chars_max:
            self.refuse(
                f"Invalid {name}: at most {chars_max} characters.", name, "parameter_invalid_string"
            )
            return ""
        return value

    def choice(self, name: str, allowed: Sequence[str], default: str | None = None) -> str:
        """One of `allowed`; required when there is no default."""
        value = self.text(name, required=default is None) or (default or "")
        if value and value not in allowed:
            self.refuse(f"Invalid {name}: must be one of {', '.join(allowed)}", name)
        return value

    def whole(self, name: str, *, required: bool = False) -> int | None:
        """A whole number (unix seconds, quantities), None when it is not there."""
        value = self._values.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            self._unread.discard(name)
            return value
        text = self.text(name, required=required)
        if not text:
            return None
        if _WHOLE.match(text) is None:
            self.refuse(f"Invalid integer: {text:.50}", name, "parameter_invalid_integer")
            return None
        return int(text)

    def says(self, name: str, word: str) -> bool:
        """Whether a parameter of two types is just that word."""
        if self._values.get(name) != word:
            return False
        self._unread.discard(name)
        return True

    def flag(self, name: str, *, default: bool = False) -> bool:
        """A boolean as forms write it."""
        value = self._values.get(name)
        if isinstance(value, bool):
            self._unread.discard(name)
            return value
        text = self.text(name)
        if text not in ("", "true", "false"):
            self.refuse(f"Invalid boolean: {text:.50}", name)
        return text == "true" if text else default

    def inner(self, name: str) -> Fields | None:
        """A hash of its own; None when it is not there. What is wrong in it is to be taken over by `take`."""
        self._unread.discard(name)
        value = self._values.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, dict):
            self.refuse("Invalid object", name)
            return None
        return Fields(value, self.named(name))

    def rows(self, name: str) -> list[Fields]:
        """A list of hashes, in order."""
        self._unread.discard(name)
        value = self._values.get(name)
        if value is None or value == "":
            return []
        rows = list(value.values()) if isinstance(value, dict) else value
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            self.refuse("Invalid array", name)
            return []
        return [Fields(row, f"{self.named(name)}[{number}]") for number, row in enumerate(rows)]

    def words(self, name: str) -> list[str]:
        """A list of texts."""
        self._unread.discard(name)
        value = self._values.get(name) or []
        rows = list(value.values()) if isinstance(value, dict) else value
        if not isinstance(rows, list) or not all(isinstance(row, str) for row in rows):
            self.refuse("Invalid array", name)
            return []
        return rows

    def texts(self, name: str) -> dict[str, str]:
        """A hash from text to text (`metadata`, `payload`)."""
        self._unread.discard(name)
        value = self._values.get(name) or {}
        if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
            self.refuse("Invalid object: the values must be strings", name)
            return {}
        return value

    def unused(self, *names: str) -> None:
        """Parameters that Stripe takes and that make no difference here."""
        self._unread.difference_update(names)

    def take(self, inner: Fields) -> None:
        """Take over what was found wrong in a part of this one, once all of it was read."""
        inner.finish()
        if self.wrong is None:
            self.wrong = inner.wrong

    def finish(self) -> Refusal | None:
        """What was wrong first; a parameter that nobody asked for is wrong too."""
        self._unread.discard("expand")
        if self.wrong is None and self._unread:
            name = self.named(min(self._unread))
            self.wrong = Refusal(
                400,
                f"Received unknown parameter: {name}",
                "parameter_unknown",
                name,
                is_kept=False,
            )
        return self.wrong


def page(
    url: str, found: Sequence[Json], fields: Fields, shape: Callable[[Json], Json] | None = None
) -> Json | Refusal:
    """One page of a list, newest first as given, by Stripe's cursors (`starting_after`, `ending_before`, `limit`)."""
    limit = fields.whole("limit") or LIST_DEFAULT
    after, before = fields.text("starting_after"), fields.text("ending_before")
    if not 1 <= limit <= LIST_MAX:
        fields.refuse(f"Invalid limit: must be between 1 and {LIST_MAX}", "limit")
    refused = fields.finish()
    if refused is not None:
        return refused
    ids = [one["id"] for one in found]
    for cursor, name in ((after, "starting_after"), (before, "ending_before")):
        if cursor and cursor not in ids:
            return missing("object", cursor, name)
    if before:
        end = ids.index(before)
        chosen = found[max(0, end - limit) : end]
        has_more = end > limit
    else:
        start = ids.index(after) + 1 if after else 0
        chosen = found[start : start + limit]
        has_more = start + limit < len(found)
    data = [shape(one) for one in chosen] if shape else list(chosen)
    return {"object": "list", "url": url, "has_more": has_more, "data": data}
