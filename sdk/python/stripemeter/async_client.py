"""The client for tasks: `AsyncStripeMeterClient`, under asyncio and trio alike.

Rules it keeps: those of `client`; and it belongs to one loop, whose task enters and leaves it: `async with` gives it the
task group that its background task runs in. It must not know which loop runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import date
from os import PathLike
from types import TracebackType
from typing import Any, Optional, Union

import anyio
import anyio.abc
import httpx

from stripemeter import forks, reads, wire
from stripemeter.answers import Answer, NoAnswer
from stripemeter.async_sender import AsyncSender
from stripemeter.buffer import Buffer
from stripemeter.client import FLUSH_SECONDS_MAX
from stripemeter.counts import Statistics
from stripemeter.errors import ClientClosed, Failure, InvalidEvent
from stripemeter.events import Draft, Instant
from stripemeter.options import Options
from stripemeter.quantities import Quantity
from stripemeter.reads import When
from stripemeter.results import BatchResult, Tracked, batch_result, single_result
from stripemeter.tracking import Tracking


class AsyncStripeMeterClient:
    """Meters usage from tasks. Buffered mode needs `async with`; what it says of modes is said at `StripeMeterClient`."""

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
        transport: Optional[httpx.AsyncBaseTransport] = None,
        clock_ns: Optional[Callable[[], int]] = None,
        **options: Any,
    ) -> None:
        """As `StripeMeterClient`. Raises ValueError."""
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
        self._address = wire.Address(self.options)
        self._own_transport = transport
        self._transport = wire.async_transport(self.options) if transport is None else transport
        self._closed = False
        self._tasks: Optional[anyio.abc.TaskGroup] = None
        self._sender: Optional[AsyncSender] = None
        self._buffer: Optional[Buffer] = None
        if mode == "buffered":
            tracking = self._tracking
            self._buffer = Buffer(self.options, tracking.tell, tracking.now_us)
            self._sender = AsyncSender(
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

    async def __aenter__(self) -> AsyncStripeMeterClient:
        if self._sender is not None:
            self._tasks = anyio.create_task_group()
            await self._tasks.__aenter__()
            self._tasks.start_soon(self._sender.run)
        return self

    async def __aexit__(
        self,
        exc_type: Optional[type[BaseException]],
        exc: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> Optional[bool]:
        # Also when the app is being cancelled: its events are worth the bounded wait.
        with anyio.CancelScope(shield=True):
            await self.close()
        tasks, self._tasks = self._tasks, None
        if tasks is None:
            return None
        tasks.cancel_scope.cancel()
        # The group's own business is with its task alone; the app's error goes on as it came.
        await tasks.__aexit__(None, None, None)
        return None

    # Events

    async def track(
        self,
        metric: str,
        customer_ref: Optional[str],
        quantity: Quantity,
        resource_id: Optional[str] = None,
        ts: Optional[Instant] = None,
        meta: Optional[Mapping[str, Any]] = None,
        idempotency_key: Optional[str] = None,
    ) -> Tracked:
        """As `StripeMeterClient.track`. In buffered mode it only waits under the policy "block"."""
        fields = {
            "metric": metric,
            "customer_ref": customer_ref,
            "quantity": quantity,
            "resource_id": resource_id,
            "ts": ts,
            "meta": meta,
            "idempotency_key": idempotency_key,
        }
        try:
            event = self._tracking.draft(*fields.values())
        except InvalidEvent as error:
            return self._invalid(error, fields)
        if self._sender is None:
            return single_result(await self._send([event]))
        return Tracked("queued" if await self._put(event) else "refused", event[6])

    async def track_batch(self, events: Iterable[Mapping[str, Any]]) -> BatchResult:
        """As `StripeMeterClient.track_batch`."""
        if self._sender is None:
            return await self._send(self._tracking.drafts_of(events))
        results = []
        for fields in events:
            try:
                event = self._tracking.draft_of(fields)
            except InvalidEvent as error:
                results.append(self._invalid(error, fields))
                continue
            results.append(Tracked("queued" if await self._put(event) else "refused", event[6]))
        return BatchResult(tuple(results))

    async def _put(self, event: Draft) -> bool:
        assert self._sender is not None, "only in buffered mode"
        if self._tasks is None and not self._closed:
            message = "buffered mode needs `async with`, which runs its background task"
            raise RuntimeError(message)
        return await self._sender.put(event)

    def _invalid(self, error: InvalidEvent, fields: object) -> Tracked:
        if self._buffer is None:
            raise error
        self._buffer.refuse(self._tracking.invalid(error, fields), invalid=True)
        return Tracked("refused", "", error=str(error))

    async def _send(self, events: list[Draft]) -> BatchResult:
        """Deliver them now, in the caller's task."""
        if self._closed:
            message = "the client is closed: make another one"
            raise ClientClosed(message)
        if not events:
            return BatchResult(())
        tracking = self._tracking
        delivery = tracking.delivery(events)
        settlements = []
        while (body := delivery.body()) is not None:
            answer = await self._post(body, self.options.timeout_seconds)
            wait = delivery.take(answer, tracking.now_us())
            settlements += delivery.settlements()
            if wait:
                await anyio.sleep(wait)
        tracking.count(settlements, delivery.retries)
        tracking.tell_failures(settlements)
        return batch_result(settlements, [event[6] for event in events])

    async def _post(self, body: bytes, seconds_max: float) -> Union[Answer, NoAnswer]:
        request = self._address.ingest(body, seconds_max)
        return await wire.send_async(self._transport, request, seconds_max)

    # Questions

    async def get_usage(self, customer_ref: Optional[str] = None) -> dict[str, Any]:
        """As `StripeMeterClient.get_usage`."""
        return await self._ask(
            reads.usage_question(self.options.tenant_id, self._tracking.customer(customer_ref))
        )

    async def get_usage_history(
        self,
        metric: str,
        customer_ref: Optional[str] = None,
        since: When = "-PT24H",
        until: Optional[When] = None,
        interval: str = "hour",
        group_by: Optional[str] = None,
    ) -> dict[str, Any]:
        """As `StripeMeterClient.get_usage_history`."""
        return await self._ask(
            reads.history_question(
                self.options.tenant_id, metric, customer_ref, since, until, interval, group_by
            )
        )

    async def get_projection(
        self,
        customer_ref: Optional[str] = None,
        period_start: Union[str, date, None] = None,
        period_end: Union[str, date, None] = None,
    ) -> dict[str, Any]:
        """As `StripeMeterClient.get_projection`."""
        customer = self._tracking.customer(customer_ref)
        return await self._ask(
            reads.projection_question(self.options.tenant_id, customer, period_start, period_end)
        )

    async def get_events(
        self,
        metric: Optional[str] = None,
        customer_ref: Optional[str] = None,
        start_time: Optional[When] = None,
        end_time: Optional[When] = None,
        limit: Optional[int] = None,
        cursor: Optional[str] = None,
    ) -> dict[str, Any]:
        """As `StripeMeterClient.get_events`."""
        return await self._ask(
            reads.events_question(
                self.options.tenant_id, metric, customer_ref, start_time, end_time, limit, cursor
            )
        )

    async def _ask(self, question: wire.Question) -> dict[str, Any]:
        if self._closed:
            message = "the client is closed: make another one"
            raise ClientClosed(message)
        tracking, seconds = self._tracking, self.options.timeout_seconds
        asking = reads.Asking(tracking.pace, tracking.draw)
        while True:
            request = self._address.question(question, seconds)
            answer = await wire.send_async(self._transport, request, seconds)
            wait = asking.take(answer, tracking.now_us())
            if wait is None:
                return asking.result
            await anyio.sleep(wait)

    # Its end

    async def flush(self, timeout: float = FLUSH_SECONDS_MAX) -> bool:  # noqa: ASYNC109 - as the sync client has it
        """Wait until every event tracked before this call is settled; False after `timeout` seconds."""
        return True if self._sender is None else await self._sender.flush(timeout)

    async def close(self, timeout: Optional[float] = None) -> bool:  # noqa: ASYNC109 - as the sync client has it
        """As `StripeMeterClient.close`; `async with` calls it."""
        self._closed = True
        seconds = self.options.close_seconds_max if timeout is None else timeout
        settled = True
        if self._sender is not None:
            # Without its task nothing would be delivered: no use in waiting.
            settled = await self._sender.close(seconds if self._tasks is not None else 0)
        await self._transport.aclose()
        return settled

    def statistics(self) -> Statistics:
        """How many events were tracked, accepted, and so on."""
        return self._tracking.statistics() if self._buffer is None else self._buffer.statistics()

    def tell_trouble(self, kind: str, detail: str) -> None:
        """Tell `on_error` of a metering that could not be done. For this package's own middleware."""
        self._tracking.tell(Failure(kind, detail))

    def begin_after_fork(self) -> list[Any]:
        """In the child of a fork: begin anew. Not for apps: it is called by itself."""
        left = [self._transport, self._tasks, self._buffer and self._buffer.leave_spool()]
        if self._own_transport is None:
            self._transport = wire.async_transport(self.options)
        self._tracking.begin()
        self._tasks = None
        if self._buffer is not None and self._sender is not None and not self._closed:
            self._buffer.begin(child=True)
            self._sender.begin()
        return left
