"""Lists of a running server for commands that show all of them: page by page, as they came.

It must not know what is listed.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from engine.errors import EngineError
from gateway.admin_client import AdminClient

PAGE: Final = 100
PAGES_MAX: Final = 1_000
Item = dict[str, msgspec.Raw]


def listed(client: AdminClient, path: str, name: str, wanted: dict[str, Any]) -> list[Item]:
    """All items of a list whose answers hold them under `name`. `wanted`: its parameters; None: not given.

    Raises EngineError.
    """
    query = {key: value for key, value in wanted.items() if value is not None}
    query["limit"] = PAGE
    found: list[Item] = []
    for _ in range(PAGES_MAX):
        page = client.ask("GET", f"{path}?{urlencode(query)}", Item)
        found += msgspec.json.decode(page[name], type=list[Item])
        cursor = page.get("nextCursor")
        if cursor is None or bytes(cursor) == b"null":
            return found
        query["cursor"] = msgspec.json.decode(cursor, type=str)
    message = f"there are more than {PAGES_MAX * PAGE:,}: narrow the list"
    raise EngineError(message)


def value_of(text: str) -> Any:
    """What a `FIELD=VALUE` of the command line means: JSON where it is JSON, else the text itself."""
    try:
        return msgspec.json.decode(text, type=msgspec.Raw) if _is_json(text) else text
    except msgspec.MsgspecError:
        return text


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError):
        return False
    return True
