"""Examples of the OpenAPI document: requests that were really sent, and what was answered.

They lie in `pages/examples.json`, which `RECORD_EXAMPLES=1 pytest tests/gateway/test_openapi_examples.py` writes anew;
the same test, without the variable, sends each and compares the shape of the answer.
Rules it keeps: what is shown was answered. It must not know any endpoint.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any, Final

import msgspec

FILE: Final = "examples.json"


class Example(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """One request and its answer. Bodies are JSON values, or the text of what is not JSON."""

    operation_id: str
    name: str
    """Its key in the document."""
    summary: str
    path: dict[str, str] = {}
    query: dict[str, str] = {}
    headers: dict[str, str] = {}
    body: Any = None
    body_type: str = "application/json"
    status: int = 200
    answer: Any = None
    answer_type: str = "application/json"


@lru_cache(maxsize=1)
def all_examples() -> tuple[Example, ...]:
    """Every example, in the order in which they were sent."""
    data = (files("gateway.pages") / FILE).read_bytes()
    return tuple(msgspec.json.decode(data, type=list[Example]))


def examples_of(operation_id: str) -> list[Example]:
    """The examples of an operation."""
    return [one for one in all_examples() if one.operation_id == operation_id]
