"""What both clients share: options, keys, checked events, and what direct calls make of their answers.

Rules it keeps: a key is made once, here, when an event is tracked; an event without a time gets that of the call in
buffered mode, unless the app gave its own key (see `stamp_ns`). It must not know threads, tasks or connections.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Optional

from stripemeter.buffer import failures_of
from stripemeter.clocks import jitter, now_ns, now_us
from stripemeter.counts import Statistics, Teller
from stripemeter.delivery import Delivery, Settlement
from stripemeter.errors import Failure, InvalidEvent
from stripemeter.events import Draft, Outgoing, as_given, draft, wire_text
from stripemeter.keys import key_source
from stripemeter.options import Options
from stripemeter.sender import pace_of

_FIELDS = ("metric", "customer_ref", "quantity", "resource_id", "ts", "meta", "idempotency_key")


class Tracking:
    """An app's events before they are sent, and the verdicts on those that were sent directly."""

    def __init__(
        self,
        options: Options,
        on_error: Optional[Callable[[Failure], object]],
        clock_ns: Optional[Callable[[], int]],
    ) -> None:
        self.options = options
        self.tell = Teller(on_error)
        self.clock_ns = now_ns if clock_ns is None else clock_ns
        self.draw = jitter()
        self.pace = pace_of(options, attempts=True)
        self._tenant_json = json.dumps(options.tenant_id)
        self._stamps = options.mode == "buffered"
        self.begin()

    def begin(self) -> None:
        """Keys and counts of its own: at the start, and in the child of a fork."""
        self.make_key = key_source()
        self._lock = threading.RLock()  # a signal's handler may track too
        self._counts = {"accepted": 0, "duplicate": 0, "rejected": 0, "retries": 0}

    def now_us(self) -> int:
        """Microseconds since 1970."""
        return now_us()

    def draft(
        self,
        metric: object,
        customer_ref: object,
        quantity: object,
        resource_id: object = None,
        ts: object = None,
        meta: object = None,
        idempotency_key: object = None,
    ) -> Draft:
        """The checked event. Raises InvalidEvent.

        One without a time gets the call's in buffered mode, so that a late flush moves no usage into another period.
        Not one with an own key: its app may track it twice, and with two times it would be two payloads of one key.
        """
        if customer_ref is None:
            customer_ref = self.options.customer_id
        stamp_ns = None
        if idempotency_key is None:
            idempotency_key = self.make_key()
            if self._stamps:
                stamp_ns = self.clock_ns()
        try:
            return draft(
                metric, customer_ref, quantity, resource_id, ts, meta, idempotency_key, stamp_ns
            )
        except ValueError as error:
            raise InvalidEvent(str(error)) from None
        except Exception as error:
            message = f"an argument raised {type(error).__name__} when it was read"
            raise InvalidEvent(message) from error

    def draft_of(self, fields: Mapping[str, Any]) -> Draft:
        """The checked event of one of `track_batch`'s mappings. Raises InvalidEvent."""
        try:
            unknown = set(fields) - set(_FIELDS)
            if unknown:
                message = f"{min(unknown)!r} is no field of an event; they are {', '.join(_FIELDS)}"
                raise InvalidEvent(message)
            return self.draft(*(fields.get(name) for name in _FIELDS))
        except (TypeError, AttributeError):
            message = "an event of a batch must be a mapping with the names of track's arguments"
            raise InvalidEvent(message) from None

    def iterable(self, events: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
        """A buffered batch's events; what can't be iterated is one event that is none."""
        return events if isinstance(events, Iterable) else [events]

    def invalid(self, error: InvalidEvent, fields: object) -> Failure:
        """What `on_error` is told of arguments that are no event."""
        given = fields if isinstance(fields, Mapping) else {"metric": fields}
        return Failure("invalid", str(error), (as_given(given),))

    def drafts_of(self, events: Iterable[Mapping[str, Any]]) -> list[Draft]:
        """A direct batch's events. Raises InvalidEvent for the first that is none; then nothing is sent."""
        return [self.draft_of(fields) for fields in events]

    def delivery(self, drafts: Sequence[Draft]) -> Delivery:
        """Their way to the server, with as many attempts as the options say."""
        texts = [Outgoing(wire_text(event, self._tenant_json)) for event in drafts]
        return Delivery(texts, self.pace, self.draw)

    def customer(self, customer_ref: Optional[str]) -> str:
        """The customer that is asked about, else the client's. Raises InvalidEvent without either."""
        customer = self.options.customer_id if customer_ref is None else customer_ref
        if customer is None:
            message = "customer_ref must be given, since the client has no customer_id"
            raise InvalidEvent(message)
        return customer

    def count(self, settlements: Sequence[Settlement], retries: int) -> None:
        """Count what became of a direct call's events."""
        with self._lock:
            self._counts["retries"] += retries
            for over in settlements:
                status = over.verdict.status
                self._counts[status if status in self._counts else "rejected"] += 1

    def statistics(self) -> Statistics:
        """The counts of direct calls."""
        with self._lock:
            accepted, duplicates, rejected, retries = self._counts.values()
        return Statistics(
            accepted + duplicates + rejected, accepted, duplicates, rejected, 0, 0, retries
        )

    def tell_failures(self, settlements: Sequence[Settlement]) -> None:
        """Tell `on_error` of what will not be counted."""
        failed = [
            over for over in settlements if over.verdict.status not in ("accepted", "duplicate")
        ]
        for failure in failures_of(failed):
            self.tell(failure)
