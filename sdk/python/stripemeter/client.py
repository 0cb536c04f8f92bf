"""The client for threads: `StripeMeterClient`.

Rules it keeps: in buffered mode nothing it does breaks or holds up the app: whatever is wrong is counted and told to
`on_error` (but for the policies "raise" and "block", which an app chooses); in direct mode a call answers when the
server did, or raises. It must not know how batches are delivered (`sender`), nor what an answer means (`answers`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from os import PathLike
from types import TracebackType
from typing import Any, Optional, Union

import httpx

from stripemeter import forks, reads, wire
from stripemeter.answers import Answer, NoAnswer
from stripemeter.buffer import Buffer
from stripemeter.counts import Statistics
from stripemeter.errors import ClientClosed, Failure, InvalidEvent
from stripemeter.events import Draft, Instant
from stripemeter.options import Options
from stripemeter.quantities import Quantity
from stripemeter.reads import When
from stripemeter.results import BatchResult, Tracked, batch_result, single_result
from stripemeter.sender import Sender
from stripemeter.tracking import Tracking

FLUSH_SECONDS_MAX = 30.0


class StripeMeterClient:
    """Meters usage from any number of threads. `with StripeMeterClient(...) as meter:` closes it.

    Buffered mode (the default): `track` puts an event in a queue and returns; a background thread delivers batches
    until the server has answered for each event. Direct mode: `track` returns when the server has answered.
    """

    def __init__(
        self,
        api_url: str,
        tenant_id: str,
        customer_id: Optional[str] = None,
        api_key: Optional[str] = None,
        *,
        mode: str = "buffered",
        on_error: Optional[Callable[[Failure], object]] = None,
        backpressure: str = "drop_oldest",
        spool: Union[str, PathLike[str], None] = None,
        transport: Optional[httpx.BaseTransport] = None,
        clock_ns: Optional[Callable[[], int]] = None,
        **options: Any,
    ) -> None:
        """`options` are the other fields of `Options`, such as `flush_interval_seconds`. Raises ValueError.

        `transport`: an httpx transport, for proxies and certificates of one's own. `clock_ns`: the time that events
        without one get, nanoseconds since 1970.
        """
        self.options = Options(
            api_url,
            tenant_id,
            customer_id,
            api_key,
            mode=mode,
            backpressure=backpressure,
            spool=spool,
            **options,
        )
        self._tracking = Tracking(self.options, on_error, clock_ns)
        self._draft = self._tracking.draft
        self._address = wire.Address(self.options)
        self._own_transport = transport
        self._transport = wire.transport(self.options) if transport is None else transport
        self._closed = False
        self._sender: Optional[Sender] = None
        self._buffer: Optional[Buffer] = None
        if mode == "buffered":
            tracking = self._tracking
            self._buffer = Buffer(self.options, tracking.tell, tracking.now_us)
            self._sender = Sender(
                self.options,
                self._buffer,
                self._post,
                tracking.tell,
                tracking.draw,
                tracking.now_us,
            )
        forks.register(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.options!r})"

    def __enter__(self) -> StripeMeterClient:
        return self

    def __exit__(
        self,
        exc_type: Optional[type[BaseException]],
        exc: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    # Events

    def track(
        self,
        metric: str,
        customer_ref: Optional[str],
        quantity: Quantity,
        resource_id: Optional[str] = None,
        ts: Optional[Instant] = None,
        meta: Optional[Mapping[str, Any]] = None,
        idempotency_key: Optional[str] = None,
    ) -> Tracked:
        """Meter an event. Two equal calls are two events, unless both give the same `idempotency_key`.

        `customer_ref` None is the client's `customer_id`. Direct mode raises InvalidEvent, EventRejected,
        MeterUnavailable, ClientClosed; buffered mode raises nothing, but QueueFull under the policy "raise".
        """
        try:
            event = self._draft(
                metric, customer_ref, quantity, resource_id, ts, meta, idempotency_key
            )
        except InvalidEvent as error:
            fields = {
                "metric": metric,
                "customer_ref": customer_ref,
                "quantity": quantity,
                "resource_id": resource_id,
                "ts": ts,
                "meta": meta,
                "idempotency_key": idempotency_key,
            }
            return self._invalid(error, fields)
        if self._sender is None:
            return single_result(self._send([event]))
        return Tracked("queued" if self._sender.put(event) else "refused", event[6])

    def track_batch(self, events: Iterable[Mapping[str, Any]]) -> BatchResult:
        """Meter many events; each a mapping with the names of `track`'s arguments.

        Direct mode: one request (more where they are too many for one); each event has its result, of which the
        rejected ones were told to `on_error` too. One that is invalid refuses the whole call. Buffered mode: as many
        calls of `track`.
        """
        sender = self._sender
        if sender is None:
            return self._send(self._tracking.drafts_of(events))
        results = []
        for fields in events:
            try:
                event = self._tracking.draft_of(fields)
            except InvalidEvent as error:
                results.append(self._invalid(error, fields))
                continue
            results.append(Tracked("queued" if sender.put(event) else "refused", event[6]))
        return BatchResult(tuple(results))

    def _invalid(self, error: InvalidEvent, fields: object) -> Tracked:
        if self._buffer is None:
            raise error
        self._buffer.refuse(self._tracking.invalid(error, fields), invalid=True)
        return Tracked("refused", "", error=str(error))

    def _send(self, events: list[Draft]) -> BatchResult:
        """Deliver them now, in the caller's thread."""
        if self._closed:
            message = "the client is closed: make another one"
            raise ClientClosed(message)
        if not events:
            return BatchResult(())
        tracking = self._tracking
        delivery = tracking.delivery(events)
        settlements = []
        while (body := delivery.body()) is not None:
            answer = self._post(body, self.options.timeout_seconds)
            wait = delivery.take(answer, tracking.now_us())
            settlements += delivery.settlements()
            if wait:
                time.sleep(wait)
        tracking.count(settlements, delivery.retries)
        tracking.tell_failures(settlements)
        return batch_result(settlements, [event[6] for event in events])

    def _post(self, body: bytes, seconds_max: float) -> Union[Answer, NoAnswer]:
        request = self._address.ingest(body, seconds_max)
        return wire.send(self._transport, request, seconds_max)

    # Questions

    def get_usage(self, customer_ref: Optional[str] = None) -> dict[str, Any]:
        """What a customer has used now: `metrics` with `name`, `current`, ... Numbers are int or Decimal, exact.

        Every question raises RequestRefused or MeterUnavailable. Events that are still buffered are not in it.
        """
        return self._ask(
            reads.usage_question(self.options.tenant_id, self._tracking.customer(customer_ref))
        )

    def get_usage_history(
        self,
        metric: str,
        customer_ref: Optional[str] = None,
        since: When = "-PT24H",
        until: Optional[When] = None,
        interval: str = "hour",
        group_by: Optional[str] = None,
    ) -> dict[str, Any]:
        """A metric's use over time, of one customer or (None) of all: `series` and `totals`."""
        return self._ask(
            reads.history_question(
                self.options.tenant_id, metric, customer_ref, since, until, interval, group_by
            )
        )

    def get_projection(
        self,
        customer_ref: Optional[str] = None,
        period_start: Union[str, date, None] = None,
        period_end: Union[str, date, None] = None,
    ) -> dict[str, Any]:
        """What a customer's invoice would be now: `lineItems`, `total`, `currency`."""
        customer = self._tracking.customer(customer_ref)
        return self._ask(
            reads.projection_question(self.options.tenant_id, customer, period_start, period_end)
        )

    def get_events(
        self,
        metric: Optional[str] = None,
        customer_ref: Optional[str] = None,
        start_time: Optional[When] = None,
        end_time: Optional[When] = None,
        limit: Optional[int] = None,
        cursor: Optional[str] = None,
    ) -> dict[str, Any]:
        """What came in, newest first: `events`, `total`, and `nextCursor` while there is more."""
        return self._ask(
            reads.events_question(
                self.options.tenant_id, metric, customer_ref, start_time, end_time, limit, cursor
            )
        )

    def _ask(self, question: wire.Question) -> dict[str, Any]:
        if self._closed:
            message = "the client is closed: make another one"
            raise ClientClosed(message)
        tracking, seconds = self._tracking, self.options.timeout_seconds
        asking = reads.Asking(tracking.pace, tracking.draw)
        while True:
            answer = wire.send(self._transport, self._address.question(question, seconds), seconds)
            wait = asking.take(answer, tracking.now_us())
            if wait is None:
                return asking.result
            time.sleep(wait)

    # Its end

    def flush(self, timeout: float = FLUSH_SECONDS_MAX) -> bool:
        """Wait until every event tracked before this call is settled; False after `timeout` seconds."""
        return True if self._sender is None else self._sender.flush(timeout)

    def close(self, timeout: Optional[float] = None) -> bool:
        """Flush within `timeout` (`close_seconds_max`) and end; whether all events are settled. Again: the same.

        What is left then is told to `on_error`, or stays in the spool for the next start.
        """
        self._closed = True
        seconds = self.options.close_seconds_max if timeout is None else timeout
        settled = True if self._sender is None else self._sender.close(seconds)
        self._transport.close()
        return settled

    def statistics(self) -> Statistics:
        """How many events were tracked, accepted, and so on."""
        return self._tracking.statistics() if self._buffer is None else self._buffer.statistics()

    def tell_trouble(self, kind: str, detail: str) -> None:
        """Tell `on_error` of a metering that could not be done. For this package's own middleware."""
        self._tracking.tell(Failure(kind, detail))

    def begin_after_fork(self) -> list[Any]:
        """In the child of a fork: begin anew. Not for apps: it is called by itself."""
        left = [self._transport, self._buffer and self._buffer.leave_spool()]
        if self._own_transport is None:
            self._transport = wire.transport(self.options)
        self._tracking.begin()
        if self._buffer is not None and self._sender is not None and not self._closed:
            self._buffer.begin(child=True)
            self._sender.begin(child=True)
        return left
