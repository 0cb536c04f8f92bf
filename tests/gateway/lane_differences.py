"""Where the fast lane answers the hostile corpus otherwise than stock Hypercorn: every difference, with its reason.

Rules it keeps: a difference that is not here is a fault, and so is one that is here and gone. It must not know how
requests are sent.
"""

from __future__ import annotations

import re

from tests.helpers.listening import Outcome, normalised

BARE = re.compile(rb"HTTP/1\.1 4\d\d \r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
"""All that h11 says when it refuses."""

AMBIGUOUS = "two readers could take it for two different messages; stock takes one of them"
MALFORMED = "not the grammar of RFC 9112; stock repairs or passes it on"
TOO_LARGE = "the head's bound; stock has it only for a head that comes in pieces"
OTHER_STATUS = "refused in both, as 400 and with a reason; h11 says 501"
DIFFERENCES: dict[str, tuple[tuple[int, ...], str]] = {
    "two equal lengths": ((400,), AMBIGUOUS),
    "a list of lengths": ((400,), AMBIGUOUS),
    "folded header": ((400,), MALFORMED),
    "folded length": ((400,), AMBIGUOUS),
    "bare LF after a header": ((400,), AMBIGUOUS),
    "all line ends bare": ((400,), AMBIGUOUS),
    "control character in a value": ((400,), MALFORMED),
    "DEL in a value": ((400,), MALFORMED),
    "version 1.2": ((400,), MALFORMED),
    "version 2.0": ((400,), MALFORMED),
    "lower case": (
        (400,),
        "methods are case-sensitive (RFC 9110, 9.1); stock turns `post` into POST",
    ),
    "a lower-case method": ((400,), "the same"),
    "a method with a digit": ((400,), "no such method is registered; stock answers 405"),
    "a header of 20,000 bytes": ((431,), TOO_LARGE),
    "coding xchunked": ((400,), OTHER_STATUS),
    "coding identity": ((400,), OTHER_STATUS),
    "coding empty": ((400,), OTHER_STATUS),
    "coding chunked twice in a line": ((400,), OTHER_STATUS),
    "coding gzip, chunked": ((400,), OTHER_STATUS),
    "coding chunked, gzip": ((400,), OTHER_STATUS),
    "coding twice": ((400,), OTHER_STATUS),
}
"""What differs from stock: the lane's statuses, and why that is wanted. By the case's name, of both targets."""

LOST_IN_STOCK: dict[str, set[tuple[int, ...]]] = {
    "length and chunked": {(400,)},
    "chunked and length": {(400,)},
    "LF hides a coding": {(400,)},
    "CR hides a coding": {(400,)},
    "150 headers": {(431,)},
    "connection close": {(400,), (415,)},
    "close in a list": {(400,), (415,)},
    "close in another header of the name": {(400,), (415,)},
    "version 1.0": {(400,), (415,)},
    "version 1.0 that stays": {(400,), (415,)},
    "usage that closes": {(200,)},
    "a websocket": {(403,), (400,), ()},
    "version 0.9": {(400,)},
    "a body of 2 MB": {(413,), (415,), ()},
}
"""Stock closes while bytes of the next request wait, and then sends its answer, a bare 400 or nothing, as it comes.

What the lane may answer is fixed here instead. Only where it gives Hypercorn the connection for good (a websocket), or
where the client still sends 2 MB, can its answer be lost too.
"""

UNSTEADY = frozenset(("a websocket", "a body of 2 MB"))
"""Of those the ones whose answer the lane itself may lose, by when the client's bytes come."""


def answers(outcome: Outcome) -> list[bytes]:
    """Each answer by itself, normalised."""
    parts = re.split(rb"(?=HTTP/1\.1 \d{3} \r\n)", normalised(outcome.data))
    return [part for part in parts if part]


def same(stock: bytes, lane: bytes) -> bool:
    """Equal to the byte, or both refuse with one status and the lane says why."""
    if stock == lane:
        return True
    return (
        BARE.fullmatch(stock) is not None
        and stock[:14] == lane[:14]
        and b"\r\nconnection: close\r\n" in lane
        and b"application/problem+json" in lane
    )


def short(name: str) -> str:
    """A case's name without its target."""
    return name.rpartition(": ")[2]


def check(name: str, stock: Outcome, lane: Outcome, where: object = "whole") -> bool:
    """Hold what the lane answered against stock's answer; whether they differ. Raises AssertionError."""
    told = (name, where, stock, lane)
    assert lane.end in ("closed", stock.end), told
    if short(name) in LOST_IN_STOCK:
        assert lane.statuses in LOST_IN_STOCK[short(name)], told
        return False
    if short(name) in DIFFERENCES:
        assert lane.statuses == DIFFERENCES[short(name)][0], told
        return lane.statuses != stock.statuses
    assert lane.statuses == stock.statuses, told
    assert all(same(*pair) for pair in zip(answers(stock), answers(lane), strict=True)), told
    return False
