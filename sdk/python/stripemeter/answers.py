"""What an answer to an ingest request means for the events in it.

Rules it keeps: an outcome is unknown unless the server said it: no answer, a half one, one that is not the meter's,
"try again" in any form. Only a plain refusal is final. Pure: the time is a parameter. It must not know how a request is
sent, nor when it is sent again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Optional, Union

RETRIED_STATUSES = frozenset((408, 425, 429))
"""Beside every 5xx."""
SPLIT_STATUSES = frozenset((400, 413))
"""About the body, as no 401, 403 or 404 is: it may be about one of its events, such as one whose meta nests too deep."""
RETRY_AFTER_SECONDS_MAX = 3600.0
DETAIL_CHARS_MAX = 500
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


class Answer(NamedTuple):
    """An HTTP answer. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NoAnswer(NamedTuple):
    """Why none came: whether the request was done is unknown."""

    reason: str


class EventVerdict(NamedTuple):
    """What became of one event. `status`: "accepted", "duplicate", or "error" with a text."""

    status: str
    late: bool = False
    adjustment_id: Optional[str] = None
    error: Optional[str] = None


class Settled(NamedTuple):
    """A verdict for each event, in their order."""

    verdicts: list[EventVerdict]


class Again(NamedTuple):
    """To be sent again, as it is; not before so many seconds, if the server said so."""

    reason: str
    after_seconds: Optional[float] = None


class Split(NamedTuple):
    """Fewer events may do: there are too many, or one of them spoils the request for its neighbours. Final for one alone."""

    detail: str
    status: int


class Refused(NamedTuple):
    """Final for all of its events."""

    detail: str
    status: int


Outcome = Union[Settled, Again, Split, Refused]


def outcome_of(answer: Union[Answer, NoAnswer], events: int, now_us: int) -> Outcome:
    """What to make of an answer to a request of so many events."""
    if isinstance(answer, NoAnswer):
        return Again(answer.reason)
    status = answer.status
    if status == 200:
        verdicts = _verdicts(answer.body, events)
        if verdicts is None:
            return Again("the answer is not the meter's: is api_url right?")
        return Settled(verdicts)
    detail = detail_of(answer)
    if is_retried(status):
        return Again(f"{status}: {detail}", retry_after_seconds(answer.headers, now_us))
    if status in SPLIT_STATUSES:
        return Split(detail, status)
    return Refused(detail, status)


def is_retried(status: int) -> bool:
    """Whether a status says "not now" and not "no"."""
    return status >= 500 or status in RETRIED_STATUSES


def _verdicts(body: bytes, events: int) -> Optional[list[EventVerdict]]:
    """A verdict for each event; None when this is not an ingest answer for so many."""
    try:
        results = json.loads(body)["results"]
        verdicts = [
            EventVerdict(
                str(result["status"]),
                bool(result.get("late", False)),
                result.get("adjustmentId"),
                result.get("error"),
            )
            for result in results
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    known = all(verdict.status in ("accepted", "duplicate", "error") for verdict in verdicts)
    return verdicts if known and len(verdicts) == events else None


def detail_of(answer: Answer) -> str:
    """The server's own words, cut; else the status alone."""
    try:
        body: Any = json.loads(answer.body)
        detail = body["detail"]
        if isinstance(detail, str) and detail:
            return detail[:DETAIL_CHARS_MAX]
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    if 300 <= answer.status < 400:
        return f"a redirect ({answer.status}), which is not followed: give the final address as api_url"
    return f"status {answer.status}"


def retry_after_seconds(headers: Mapping[str, str], now_us: int) -> Optional[float]:
    """How long the server asks to wait: seconds or a date (RFC 9110); None without, or for what can't be read."""
    text = headers.get("retry-after")
    if text is None:
        return None
    if _SECONDS.fullmatch(text.strip()):
        return min(float(text), RETRY_AFTER_SECONDS_MAX)
    try:
        ahead = parsedate_to_datetime(text).timestamp() - now_us / 1e6
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(ahead, 0.0), RETRY_AFTER_SECONDS_MAX)
