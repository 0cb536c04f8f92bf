r"""JSON that spells half of a surrogate pair: which values of a list hold one, when no decoder takes the whole.

The grammar of JSON allows the escape "\ud83d" alone, and encoders of languages with 16-bit characters write it for a text
that was cut in two (RFC 8259, section 8.2); no text can hold it. Rules it keeps: nothing is guessed or replaced in what is
counted, the value that holds it is refused and its neighbours are as they were. Pure: bytes in, bytes out. It must not know events.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

REFUSED: Final = (
    "a text holds half of a surrogate pair, which stands for no character; send whole characters"
)
_PRIVATE_FIRST, _PRIVATE_LAST = 0xE000, 0xF8FF
"""Characters that mean nothing by themselves: one that the body does not spell stands for each half meanwhile."""
_MARKS_TRIED_MAX: Final = 64
_HALF: Final = re.compile(
    rb"(?<!\\)((?:\\\\)*+)(?:"
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
"""An escape of the one kind that none of the other follows, or of the other that follows none; not after a backslash that
is itself escaped."""


class Value(NamedTuple):
    """A value of a list as it was sent, or with a mark in place of each half."""

    data: bytes
    has_half: bool
    mark: bytes = b""

    def holds_half(self, part: bytes) -> bool:
        """Whether a part of the value is one that holds a half."""
        return self.has_half and self.mark in part


def values_of(body: bytes, decode: Callable[[bytes], Sequence[msgspec.Raw]]) -> list[Value] | None:
    """The values that `decode` finds in a body that it did not take; None: halves are not what is wrong with it."""
    if _HALF.search(body) is None:
        return None
    mark = _mark_for(body)
    if mark is None:
        return None
    try:
        raws = decode(_HALF.sub(rb"\1" + mark.replace(b"\\", b"\\\\"), body))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return [Value(data, mark in data, mark) for data in map(bytes, raws)]


def _mark_for(body: bytes) -> bytes | None:
    """An escape that the body does not hold; None: it holds every one that is tried."""
    for code in range(_PRIVATE_FIRST, min(_PRIVATE_LAST, _PRIVATE_FIRST + _MARKS_TRIED_MAX)):
        mark = b"\\u%04x" % code
        if mark not in body:
            return mark
    return None
