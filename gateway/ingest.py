"""`POST /v1/events/ingest`: the hot path, ahead of Quart.

One function, `Ingest.answer(body, headers)`, serves every way in. The order inside it is the product's: decode,
check, offer to the log, wait until durable and counted, then say so. Rules it keeps: a bad event never fails its
neighbours; a `200` means on disk, deduplicated, counted; a failure of the log answers 503 or 507 for the whole
request, of which then nothing may be assumed. It must not know how events are stored.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import trio

from engine.actors.group import Group, Marks
from engine.actors.log_writer import ACCEPTED, DUPLICATE, Offer
from engine.core.events import (
    KEY_REUSED,
    NUL_REFUSED,
    EventLimits,
    Refusal,
    SentEvent,
    accept,
    holds_nul,
)
from engine.core.events_in_bulk import EventTaker, Said
from engine.core.sent_rows import SOURCE_OF_IMPORT
from engine.errors import EngineError
from gateway.asgi_types import Receive, Scope, Send
from gateway.auth import Identity
from gateway.context import Gateway
from gateway.ingest_decoding import (
    CLOUD_EVENT,
    CLOUD_EVENT_BATCH,
    BodyLimits,
    Unreadable,
    read_events,
    too_large,
    unpack,
)
from gateway.ingest_headers import IngestHeaders, read_headers
from gateway.ingest_lone import LoneCounting, accepted_lone, begin_lone
from gateway.problems import Problem, problem_for

BODY_SECONDS_MAX: Final = 10.0
_SCOPE: Final = "events:write"
_JSON_HEADER: Final = (b"content-type", b"application/json")
_NO_TENANT: Final = "tenantId: is missing; name the tenant the event counts for"
_METRIC: Final = 0
_KEY_TEXT: Final = 8  # columns of engine.core.records.Row
_BULK_EVENTS_MIN: Final = 16
"""Fewer are taken sooner one by one."""


class Result(msgspec.Struct, rename="camel", omit_defaults=True, gc=False):
    """What became of one event."""

    idempotency_key: str | None
    status: str
    late: bool = False
    adjustment_id: str | None = None
    error: str | None = None


class IndexedError(msgspec.Struct, gc=False):
    """An event's error, by its index in the request."""

    index: int
    error: str


class IngestResponse(msgspec.Struct, rename="camel", gc=False):
    """The body of a 200."""

    accepted: int
    duplicates: int
    request_id: str
    results: list[Result]
    errors: list[IndexedError]


class _TenantRows:
    """A tenant's accepted rows of the request, with the index of each in the request."""

    __slots__ = ("columns", "indexes", "row_indexes", "rows")

    def __init__(
        self, columns: Sequence[Sequence[Any]] | None = None, indexes: Sequence[int] = ()
    ) -> None:
        self.rows: list[tuple[Any, ...]] = []
        """Empty if there are `columns`."""
        self.columns = columns
        self.row_indexes: list[int] = []
        """Of `rows`, to put more into."""
        self.indexes = self.row_indexes if columns is None else indexes

    def column(self, at: int) -> Sequence[Any]:
        """One of `Row`'s fields, of all rows."""
        return [row[at] for row in self.rows] if self.columns is None else self.columns[at]


class Counting:
    """A request whose events were offered, and whose answer is due when they are durable and counted."""

    __slots__ = ("offers", "refused", "request_id", "started_us", "tenants")

    def __init__(
        self,
        tenants: dict[str, _TenantRows],
        offers: list[Offer],
        refused: dict[int, Result],
        request_id: str,
        started_us: int,
    ) -> None:
        self.tenants = tenants
        self.offers = offers
        self.refused = refused
        self.request_id = request_id
        self.started_us = started_us

    @property
    def groups(self) -> list[Group]:
        """What must be done before the answer is true."""
        if len(self.offers) == 1:
            return self.offers[0].groups
        return [group for offer in self.offers for group in offer.groups]

    @property
    def count(self) -> int:
        """Events of the request."""
        return len(self.refused) + sum(len(of.indexes) for of in self.tenants.values())


_encode = msgspec.json.Encoder().encode
_ACCEPTED_START: Final = b'{"idempotencyKey":"'
_ACCEPTED_END: Final = b'","status":"accepted"}'
_ACCEPTED_BETWEEN: Final = _ACCEPTED_END + b"," + _ACCEPTED_START


class Ingest:
    """The ingest endpoint over one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        settings = gateway.settings
        self._body_limits = BodyLimits(
            settings.max_body_bytes, settings.max_batch, settings.max_json_depth
        )
        self._event_limits = EventLimits(settings.max_meta_bytes)
        self._taker = EventTaker()

    async def answer(
        self, body: bytes, identity: Identity, headers: IngestHeaders
    ) -> bytes | Problem:
        """The body of the 200, or the problem for the whole request. Never raises for input."""
        if headers.operation is None:
            return await self._answer(body, identity, headers, None)
        try:
            runner = self._gateway.meter.started.operations
            with runner.sending(headers.operation, identity.tenant) as (operation, marks):
                identity = identity._replace(tenant=operation.tenant_id or identity.tenant)
                return await self._answer(body, identity, headers, marks)
        except EngineError as error:
            return problem_for(error)

    async def _answer(
        self, body: bytes, identity: Identity, headers: IngestHeaders, marks: Marks | None
    ) -> bytes | Problem:
        begun = self.begin(body, identity, headers, marks)
        if isinstance(begun, bytes | Problem):
            return begun
        for group in begun.groups:
            await group.done.wait()
        return self.finish(begun)

    def begin(
        self,
        body: bytes,
        identity: Identity,
        headers: IngestHeaders,
        marks: Marks | None = None,
    ) -> bytes | Problem | Counting | LoneCounting:
        """Read the body and offer its events; what must be `finish`ed when its groups are done, or the answer.

        For `headers.operation` use `answer`. Never raises for input.
        """
        started_us = self._gateway.clock.monotonic_us()
        try:
            if headers.content_encoding is not None:
                body = unpack(body, headers.content_encoding, self._body_limits.body_bytes_max)
            has_key = headers.idempotency_key is not None
            sent = read_events(
                body, headers.content_type, self._body_limits, has_header_key=has_key
            )
        except Unreadable as error:
            return Problem(error.status, error.detail)
        if len(sent.events) == 1 and marks is None and not sent.may_hold_nul:
            try:
                lone = begin_lone(
                    self._gateway,
                    sent.events[0],
                    identity,
                    headers,
                    self._limits(),
                    len(body),
                    started_us,
                )
            except EngineError as error:
                return problem_for(error)
            if lone is not None:
                return lone
        refused: dict[int, Result] = {}
        tenants = self._accept(sent.events, identity, headers, refused, nul=sent.may_hold_nul)
        if isinstance(tenants, Problem):
            return tenants
        if self._gateway.limiter is not None:
            limited = self._over_limit(tenants)
            if limited is not None:
                return limited
        # Each tenant's part of the body: with all of it for each, many tenants never fit into the queue.
        sizes = [-(-len(body) * len(of.indexes) // len(sent.events)) for of in tenants.values()]
        try:
            taking = self._gateway.meter.taking
            offers = [
                taking.offer(tenant, of.rows, size_bytes, marks)
                if of.columns is None
                else taking.offer_columns(tenant, of.columns, size_bytes, marks)
                for (tenant, of), size_bytes in zip(tenants.items(), sizes, strict=True)
            ]
        except EngineError as error:
            return problem_for(error)
        counting = Counting(tenants, offers, refused, headers.request_id, started_us)
        return counting if tenants else self.finish(counting)

    def finish(self, counting: Counting | LoneCounting) -> bytes | Problem:
        """The answer, once all of `counting.groups` are done."""
        if isinstance(counting, LoneCounting):
            return self._finish_lone(counting)
        tenants, offers = counting.tenants, counting.offers
        for offer in offers:
            for group in offer.groups:
                if group.error is not None:
                    return problem_for(group.error)
        answer, duplicates = _plain_response(counting), 0
        if answer is None:
            results: list[Result] = [None] * counting.count  # type: ignore[list-item]
            for index, result in counting.refused.items():
                results[index] = result
            duplicates = _fill_results(tenants, offers, results)
            answer = _encode(_response(results, duplicates, counting.request_id))
        self._measure(tenants, offers, duplicates, counting.started_us)
        return answer

    def _finish_lone(self, counting: LoneCounting) -> bytes | Problem:
        for group in counting.groups:
            if group.error is not None:
                return problem_for(group.error)
        answer = accepted_lone(counting)
        if answer is None:
            rows = _TenantRows()
            rows.rows.append(counting.row)
            rows.row_indexes.append(0)
            offer = counting.offer
            return self.finish(
                Counting(
                    {offer.tenant: rows}, [offer], {}, counting.request_id, counting.started_us
                )
            )
        metrics = self._gateway.metrics
        metrics.ingested(counting.row[0], 1)
        metrics.ingest_latency(self._gateway.clock.monotonic_us() - counting.started_us)
        return answer

    def _limits(self) -> EventLimits:
        """What an event is held against now: retention moves on."""
        limits = self._event_limits
        if (horizon_us := self._gateway.meter.registry.horizon_us) != limits.horizon_us:
            limits = self._event_limits = limits._replace(horizon_us=horizon_us)
        return limits

    def _accept(
        self,
        events: Sequence[SentEvent | Refusal],
        identity: Identity,
        headers: IngestHeaders,
        refused: dict[int, Result],
        *,
        nul: bool,
    ) -> dict[str, _TenantRows] | Problem:
        """Check every event; refusals go into `refused`, rows to their tenants. A wrong tenant is a 403."""
        tenants: dict[str, _TenantRows] = {}
        own = identity.tenant
        default = own or headers.query_tenant
        if default is None and headers.content_type in (CLOUD_EVENT, CLOUD_EVENT_BATCH):
            default = "default"
        header_key, many = headers.idempotency_key, len(events) > 1
        now_us = self._gateway.clock.now_us()
        limits = self._limits()
        source = 0 if headers.operation is None else SOURCE_OF_IMPORT
        if len(events) >= _BULK_EVENTS_MIN and not nul:
            said = Said(own, default, header_key, source)
            bulk = self._taker.take(events, said, now_us, limits)
            if bulk is not None:
                return {name: _TenantRows(of.columns, of.indexes) for name, of in bulk.items()}
        last_tenant, last = "", None
        for index, sent in enumerate(events):
            if isinstance(sent, Refusal):
                refused[index] = Result(sent.idempotency_key, "error", error=sent.error)
                continue
            tenant = sent.tenant_id or default
            if tenant is None:
                refused[index] = Result(sent.idempotency_key, "error", error=_NO_TENANT)
                continue
            if own is not None and tenant != own:
                return Problem(403, f"events[{index}] names another tenant than the API key's")
            event_key = header_key if header_key is None or not many else f"{header_key}:{index}"
            if nul and holds_nul(sent, tenant):
                refused[index] = Result(sent.idempotency_key, "error", error=NUL_REFUSED)
                continue
            row = accept(sent, tenant, event_key, now_us, limits, source)
            if isinstance(row, Refusal):
                refused[index] = Result(row.idempotency_key, "error", error=row.error)
                continue
            if last is None or tenant != last_tenant:
                last = tenants.setdefault(tenant, _TenantRows())
                last_tenant = tenant
            last.rows.append(row)
            last.row_indexes.append(index)
        return tenants

    def _over_limit(self, tenants: Mapping[str, _TenantRows]) -> Problem | None:
        limiter = self._gateway.limiter
        assert limiter is not None
        wanted = {tenant: len(of.indexes) for tenant, of in tenants.items()}
        wait_seconds = limiter.take(wanted, self._gateway.clock.monotonic_us())
        if wait_seconds is None:
            return None
        detail = "the tenant's rate limit is reached; retry after the time in Retry-After"
        return Problem(429, detail, retry_after_seconds=wait_seconds)

    def _measure(
        self,
        tenants: Mapping[str, _TenantRows],
        offers: Sequence[Offer],
        duplicates: int,
        started_us: int,
    ) -> None:
        metrics = self._gateway.metrics
        for of, offer in zip(tenants.values(), offers, strict=True):
            accepted = of.column(_METRIC)
            if isinstance(offer.verdicts, list):
                pairs = zip(accepted, offer.verdicts, strict=True)
                accepted = [metric for metric, verdict in pairs if verdict == ACCEPTED]
            if len(accepted) == 1:
                metrics.ingested(accepted[0], 1)
            else:
                for metric, count in Tally(accepted).items():
                    metrics.ingested(metric, count)
            if offer.own_group is not None and offer.own_group.late:
                held = offer.own_group.late
                metrics.late(sum((offer.part, at) in held for at in offer.positions))
        metrics.duplicates(duplicates)
        metrics.ingest_latency(self._gateway.clock.monotonic_us() - started_us)

    # The ASGI side.

    async def __call__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> int:
        """Serve one ASGI request and return the status that was sent."""
        answer = await self._serve(scope, receive, request_id)
        if isinstance(answer, Problem):
            return await answer.send(send, request_id)
        headers = [
            _JSON_HEADER,
            (b"content-length", b"%d" % len(answer)),
            (b"x-request-id", request_id.encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
        return 200

    async def _serve(self, scope: Scope, receive: Receive, request_id: str) -> bytes | Problem:
        found = dict(scope["headers"])
        admitted = self.admit(found, read_headers(found, scope["query_string"]), request_id)
        if isinstance(admitted, Problem):
            return admitted
        body = await read_body(receive, self._body_limits.body_bytes_max)
        if isinstance(body, Problem):
            return body
        return await self.answer(body, *admitted)

    def admit(
        self, found: Mapping[bytes, bytes], headers: IngestHeaders | Problem, request_id: str
    ) -> tuple[Identity, IngestHeaders] | Problem:
        """Whether to read the body at all: who asks and what they ask for, else the problem.

        `found` has lower-case names; `headers` is what `read_headers` made of it.
        """
        gateway = self._gateway
        identity = gateway.access.identify(
            found.get(b"authorization"), found.get(b"x-api-key"), gateway.clock.now_us()
        )
        if isinstance(identity, Problem):
            return identity
        if not gateway.access.allows(identity, _SCOPE):
            return Problem(403, f"the API key lacks the scope {_SCOPE}")
        if isinstance(headers, Problem):
            return headers
        if identity.tenant is not None and headers.query_tenant not in (None, identity.tenant):
            return Problem(403, "tenantId names another tenant than the API key's")
        declared = found.get(b"content-length")
        limit = self._body_limits.body_bytes_max
        if declared is not None and declared.isdigit() and int(declared) > limit:
            return Problem(413, too_large(limit), close=True)
        return identity, headers.of(request_id)


async def read_body(receive: Receive, bytes_max: int) -> bytes | Problem:
    """The request's body: 413 while it still comes in if it is too large, 408 if it does not end in time."""
    chunks: list[bytes] = []
    size = 0
    with trio.move_on_after(BODY_SECONDS_MAX):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return Problem(400, "the connection ended before the body did", close=True)
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > bytes_max:
                return Problem(413, too_large(bytes_max), close=True)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    detail = f"the body did not arrive within {BODY_SECONDS_MAX:.0f} s"
    return Problem(408, detail, close=True)


def _plain_response(counting: Counting) -> bytes | None:
    """The body of nearly every answer: one tenant's events, all accepted and in time, with keys that need no escapes.

    None: another one. The bytes are those of an encoded `IngestResponse`, at a fraction of the cost.
    """
    if counting.refused or len(counting.offers) != 1:
        return None
    (offer,), (of,) = counting.offers, counting.tenants.values()
    if offer.own_group is None or offer.own_group.late or any(offer.verdicts):
        return None
    keys = _encode(of.column(_KEY_TEXT))
    if b"\\" in keys:  # then a quote, a comma and a quote may stand within a key
        return None
    return b'{"accepted":%d,"duplicates":0,"requestId":"%b","results":[%b%b%b],"errors":[]}' % (
        len(of.indexes),
        counting.request_id.encode(),
        _ACCEPTED_START,
        keys[2:-2].replace(b'","', _ACCEPTED_BETWEEN),
        _ACCEPTED_END,
    )


def _fill_results(
    tenants: Mapping[str, _TenantRows], offers: Sequence[Offer], results: list[Result]
) -> int:
    """Put a result where each row came from; returns how many were duplicates."""
    duplicates = 0
    for of, offer in zip(tenants.values(), offers, strict=True):
        late = offer.own_group.late if offer.own_group is not None else {}
        key_texts = of.column(_KEY_TEXT)
        if not late and not any(offer.verdicts):  # nearly always: all accepted, all in time
            for index, key_text in zip(of.indexes, key_texts, strict=True):
                results[index] = Result(key_text, "accepted")
            continue
        for at, index in enumerate(of.indexes):
            key_text = key_texts[at]
            verdict = offer.verdicts[at]
            if verdict == ACCEPTED:
                result = Result(key_text, "accepted")
                if late:
                    held = late.get((offer.part, offer.positions[at]))
                    if held is not None:
                        result = Result(key_text, "accepted", late=True, adjustment_id=held)
            elif verdict == DUPLICATE:
                duplicates += 1
                result = Result(key_text, "duplicate")
            else:
                result = Result(key_text, "error", error=KEY_REUSED)
            results[index] = result
    return duplicates


def _response(results: list[Result], duplicates: int, request_id: str) -> IngestResponse:
    errors = [
        IndexedError(index, result.error)
        for index, result in enumerate(results)
        if result.error is not None
    ]
    accepted = len(results) - duplicates - len(errors)
    return IngestResponse(accepted, duplicates, request_id, results, errors)
