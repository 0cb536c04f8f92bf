"""A listing's cursor: where a walk stands, as a token that a client hands back.

Rules it keeps: a cursor is a place in the order and not a count, so that new events never shift a page; it goes with
one set of filters and is refused with another; a forged one can say nothing but another place in the same filters,
which are the asker's own. It must not know how pages are found.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from typing import Final

import msgspec

from engine.core.queries import EventsQuery
from engine.core.summaries import Key
from engine.core.times import INSTANT_US_END, INSTANT_US_MIN
from engine.errors import Refused

_VERSION: Final = 1
_TOKEN_CHARS_MAX: Final = 2_048
_FINGERPRINT_BYTES: Final = 8


class Place(msgspec.Struct, array_like=True, frozen=True):
    """Where a walk stands: everything up to here, in its direction, was given out."""

    version: int
    filters: bytes
    start_us: int
    end_us: int
    key: Key | None
    """None: at the beginning."""
    text: str
    """The sort key's value there, when the order is not that of time."""
    skip: int
    """Of an offset: how many matching events are still to be passed over."""


_decoder = msgspec.msgpack.Decoder(Place)


def place_of(query: EventsQuery) -> Place:
    """Where this page begins. Raises Refused for a cursor that is not of this query."""
    filters = _fingerprint(query)
    start_us = INSTANT_US_MIN if query.start_us is None else query.start_us
    end_us = INSTANT_US_END if query.end_us is None else query.end_us
    if query.cursor is None:
        return Place(_VERSION, filters, start_us, end_us, None, "", query.offset)
    if query.offset:
        raise _refused("cursor goes without offset: it says where to go on")
    try:
        token = query.cursor.encode("ascii")
        if len(token) > _TOKEN_CHARS_MAX:
            raise _refused("this is not a cursor of this server: start again without it")
        place = _decoder.decode(urlsafe_b64decode(token + b"=" * (-len(token) % 4)))
    except (msgspec.MsgspecError, ValueError) as error:
        message = "this is not a cursor of this server: start again without it"
        raise _refused(message) from error
    if place.version != _VERSION or place.filters != filters:
        message = "this cursor belongs to other filters or another order: start again without it"
        raise _refused(message)
    if place.skip < 0 or not INSTANT_US_MIN <= place.start_us <= INSTANT_US_END:
        raise _refused("this is not a cursor of this server: start again without it")
    return place


def token_of(place: Place) -> str:
    """The token of a place."""
    return urlsafe_b64encode(msgspec.msgpack.encode(place)).rstrip(b"=").decode()


def _fingerprint(query: EventsQuery) -> bytes:
    as_of = () if query.as_of is None else (query.as_of,)
    filters = (
        *as_of,
        query.tenant,
        query.metric,
        query.customer_ref,
        query.source,
        query.start_us if query.start_text is None else query.start_text,
        query.end_us if query.end_text is None else query.end_text,
        query.sort,
        query.direction,
    )
    return blake2b(msgspec.msgpack.encode(filters), digest_size=_FINGERPRINT_BYTES).digest()


def _refused(message: str) -> Refused:
    return Refused(message, (("cursor", message),))
