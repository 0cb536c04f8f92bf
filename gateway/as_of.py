"""`asOf`: the parameter that asks for an answer as it was known, and what the answer says about it.

Rules it keeps: a whole number is a position of the log, everything else a time. It must not know any endpoint.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec

from engine.actors.as_of import Asked, Prefix
from engine.core.times import TimeError, parse_instant_or_relative
from gateway.parameters import WHEN_SCHEMA, Parameter
from gateway.shapes import Instant, instant_or_none

_POSITION: Final = re.compile(r"[0-9]{1,18}")


class AsOfView(msgspec.Struct, frozen=True):
    """Which part of the log an answer about the past is from."""

    position: Annotated[
        int,
        msgspec.Meta(
            description="The last log position in it; asking with it gives the same answer."
        ),
    ]
    time: Annotated[
        Instant, msgspec.Meta(description="The time asked for, or when it was received.")
    ]


AsOfField = Annotated[AsOfView | msgspec.UnsetType, msgspec.Meta(description="With `asOf` only.")]


def parse_as_of(text: str, now_us: int) -> Asked:
    """A position, or an instant. Raises ValueError with the rest of the sentence "asOf ..."."""
    if _POSITION.fullmatch(text):
        return Asked(int(text), None)
    try:
        return Asked(None, parse_instant_or_relative(text, now_us))
    except TimeError as error:
        message = f"must be a log position or a time; as a time it {error}"
        raise ValueError(message) from None


def view_of(prefix: Prefix) -> AsOfView:
    """What an answer says."""
    return AsOfView(prefix.position, instant_or_none(prefix.at_us) or "")


AS_OF: Final = Parameter(
    "asOf",
    parse_as_of,
    {
        "anyOf": [*WHEN_SCHEMA["anyOf"], {"type": "string", "pattern": "^[0-9]{1,18}$"}],
        "examples": ["2026-01-31T00:00:00Z", "-PT24H", "4711"],
    },
    "The answer as it was known then: at a time, or up to and including a log position.",
)
