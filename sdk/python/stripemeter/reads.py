"""Questions to the meter: usage, history, projection, events; how each is asked, and its answer read.

Rules it keeps: numbers are read exactly, as int or Decimal; a question has no effect, so it is asked again after any
failure that may pass. It must not know sockets or threads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Optional, Union

from stripemeter.answers import Answer, NoAnswer, detail_of, is_retried, retry_after_seconds
from stripemeter.delivery import Pace, wait_seconds
from stripemeter.errors import InvalidEvent, MeterUnavailable, RequestRefused
from stripemeter.wire import Question

When = Union[str, datetime, timedelta]
"""An instant, its text (relative too, such as "-PT24H"), or a time before now."""


def usage_question(tenant_id: str, customer_ref: str) -> Question:
    """What a customer has used now."""
    return Question(
        "GET", "/v1/usage/current", {"tenantId": tenant_id, "customerRef": customer_ref}
    )


def history_question(
    tenant_id: str,
    metric: str,
    customer_ref: Optional[str],
    since: When,
    until: Optional[When],
    interval: str,
    group_by: Optional[str],
) -> Question:
    """A metric's use over time."""
    parameters = {
        "tenantId": tenant_id,
        "metric": metric,
        "customerRef": customer_ref,
        "since": when_text(since),
        "until": None if until is None else when_text(until),
        "interval": interval,
        "groupBy": group_by,
    }
    return Question("GET", "/v1/usage/history", parameters)


def projection_question(
    tenant_id: str,
    customer_ref: str,
    period_start: Union[str, date, None],
    period_end: Union[str, date, None],
) -> Question:
    """What a customer's invoice would be now."""
    body = {"tenantId": tenant_id, "customerRef": customer_ref}
    for name, day in (("periodStart", period_start), ("periodEnd", period_end)):
        if day is not None:
            body[name] = day if isinstance(day, str) else day.strftime("%Y-%m-%d")
    return Question("POST", "/v1/usage/projection", {}, json.dumps(body).encode())


def events_question(
    tenant_id: str,
    metric: Optional[str],
    customer_ref: Optional[str],
    start_time: Optional[When],
    end_time: Optional[When],
    limit: Optional[int],
    cursor: Optional[str],
) -> Question:
    """What came in, newest first."""
    parameters = {
        "tenantId": tenant_id,
        "metric": metric,
        "customerRef": customer_ref,
        "startTime": None if start_time is None else when_text(start_time),
        "endTime": None if end_time is None else when_text(end_time),
        "sort": "ts",
        "sortDir": "desc",
        "limit": None if limit is None else str(limit),
        "cursor": cursor,
    }
    if cursor is not None:
        # A cursor holds the order it was made with.
        parameters["sort"] = parameters["sortDir"] = None
    return Question("GET", "/v1/events", parameters)


def when_text(when: When) -> str:
    """As the server reads it. Raises InvalidEvent for a time without a zone."""
    if isinstance(when, str):
        return when
    if isinstance(when, timedelta):
        return f"-PT{abs(int(when.total_seconds()))}S"
    if when.utcoffset() is None:
        message = "a time has no offset: give it a time zone"
        raise InvalidEvent(message)
    return when.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Asking:
    """One question until it is answered: `take` says how long to wait before it is asked again, None at the end."""

    def __init__(self, pace: Pace, draw: Callable[[], float]) -> None:
        self._pace = pace
        self._draw = draw
        self._failures = 0
        self.result: dict[str, Any] = {}

    def take(self, answer: Union[Answer, NoAnswer], now_us: int) -> Optional[float]:
        """Make something of an answer. Raises RequestRefused or MeterUnavailable."""
        after: Optional[float] = None
        if isinstance(answer, NoAnswer):
            reason = answer.reason
        elif answer.status == 200:
            try:
                found = json.loads(answer.body, parse_float=Decimal)
            except (ValueError, RecursionError):
                found = None
            if isinstance(found, dict):
                self.result = found
                return None
            reason = "the answer is not the meter's: is api_url right?"
        elif is_retried(answer.status):
            reason = f"{answer.status}: {detail_of(answer)}"
            after = retry_after_seconds(answer.headers, now_us)
        else:
            raise RequestRefused(detail_of(answer), answer.status)
        self._failures += 1
        if self._failures == self._pace.attempts_max:
            message = f"no answer after all attempts; the last: {reason}"
            raise MeterUnavailable(message)
        return wait_seconds(self._pace, self._failures, after, self._draw)
