"""One key's way to Stripe: fills `engine.ports.Billing` with the drivers `meter`, `usage_record` and `stream`.

Rules it keeps: a request is sent once, as it was kept, under its own API version; `Delivered` needs an answer that
names this request, since a 200 from something on the way is no receipt; what Stripe or the network does is a value.
A request that Stripe could never take (no event name, a value with 16 digits) is refused before it leaves.

It must not know the plan, the log, or the other keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Context, Decimal, DecimalException
from typing import Any, Final, Self, TypeVar

import stripe
from stripe.params.billing import MeterEventAdjustmentCreateParams, MeterEventCreateParams

from engine import limits
from engine.core.billing import (
    EVENT_NAME_CHARS_MAX,
    IDENTIFIER_CHARS_MAX,
    UNITS_DIGITS_MAX,
    Delivered,
    Destination,
    DriverName,
    Invoiced,
    Outcome,
    PricedItem,
    Proven,
    PushRequest,
    Reading,
    Refused,
    RejectedEvent,
    RejectionReport,
    Resolved,
    Unknown,
    Unread,
    Unresolved,
)
from engine.drivers import resolving
from engine.drivers.calls import (
    API_BASE,
    LEGACY_API_VERSION,
    LIBRARY_API_VERSION,
    METER_EVENTS_BASE,
    NotTaken,
    StripeCalls,
    Text,
)
from engine.drivers.invoices import read_invoiced
from engine.drivers.opening import open_wire
from engine.drivers.outcomes import Subject, outcome_of_failure, outcome_of_problem, read_problem
from engine.drivers.prices import read_item, read_price
from engine.drivers.questions import Unanswered, ask, ask_list, decode, is_id, unread
from engine.drivers.shapes import (
    Account,
    Adjustment,
    Balance,
    MeterEvent,
    MeterSummary,
    RejectionEvent,
    UsageRecord,
    UsageSummary,
)
from engine.drivers.stream import MeterEventStream
from engine.drivers.wire import Wire, WireFailure

AnswerT = TypeVar("AnswerT")

SIMULATOR_ACCOUNT_PREFIX: Final = "acct_sim"
_VALUE: Final = re.compile(rf"-?(0|[1-9][0-9]{{0,{UNITS_DIGITS_MAX - 1}}})")
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
_EXPONENT_MAX: Final = 40
"""A summary beyond 10^40 is no usage; printing it plainly could fill the memory."""
_EXACT: Final = Context(prec=100)


def api_version(driver: DriverName) -> str:
    """The API version that a new request of this driver is to carry."""
    return LEGACY_API_VERSION if driver == "usage_record" else LIBRARY_API_VERSION


class StripeBilling:
    """Fills `engine.ports.Billing`. Close it after use (`async with`, or `aclose`)."""

    def __init__(
        self,
        secret: str,
        *,
        api_base: str = API_BASE,
        meter_events_base: str = METER_EVENTS_BASE,
        wire: Wire | None = None,
    ) -> None:
        """`wire`: connections to share with other keys; who made it closes it.

        Raises ValueError for a key that no header can carry.
        """
        self._own_wire = None if wire is not None else open_wire((api_base, meter_events_base))
        used = wire or self._own_wire
        assert used is not None

        def open_calls(token: str) -> StripeCalls:
            return StripeCalls(token, used, api_base=api_base, meter_events_base=meter_events_base)

        self._calls = open_calls(secret)
        self._stream = MeterEventStream(self._calls, open_calls)

    def __repr__(self) -> str:
        return "StripeBilling([key])"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, unless they are shared."""
        if self._own_wire is not None:
            await self._own_wire.aclose()

    def stripe_now_s(self) -> float | None:
        """Stripe's clock as of its last answer; None before the first."""
        return self._calls.stripe_now_s()

    async def prove(self) -> Proven | Unread:
        """See the port. Two questions, since an account does not say whether the key is a live one."""
        account = await ask(self._calls, "/v1/account", Account)
        if isinstance(account, Unanswered):
            return Unread(f"which account the key is of: {account.reason}", account.after_us)
        if account.id.startswith(SIMULATOR_ACCOUNT_PREFIX):
            return Proven(account.id, "sim", account.is_unlimited)
        balance = await ask(self._calls, "/v1/balance", Balance)
        if isinstance(balance, Unanswered):
            return Unread(
                f"whether the key is a live one: {balance.reason}; a restricted key needs read access to the balance",
                balance.after_us,
            )
        return Proven(account.id, "live" if balance.livemode else "test")

    async def send(self, requests: Sequence[PushRequest], attempts: Sequence[int]) -> list[Outcome]:
        """See the port."""
        assert len(requests) == len(attempts) >= 1
        assert len({request.driver for request in requests}) == 1, "all of one driver"
        if requests[0].driver == "stream":
            return await self._send_streamed(requests, attempts)
        assert len(requests) == 1, "only the stream takes more than one"
        return [await self._send_one(requests[0], attempts[0])]

    async def _send_one(self, request: PushRequest, attempt: int) -> Outcome:
        if (flaw := _flaw(request)) is not None:
            return flaw
        if request.driver == "meter":
            return await self._send_meter_event(request, attempt)
        return await self._set_usage_record(request, attempt)

    async def _send_streamed(
        self, requests: Sequence[PushRequest], attempts: Sequence[int]
    ) -> list[Outcome]:
        """Flawed ones are refused here; the rest goes in one batch a connected account and API version."""
        outcomes: list[Outcome | None] = [_flaw(request) for request in requests]
        batches: dict[tuple[str | None, str], list[int]] = {}
        for index, request in enumerate(requests):
            if outcomes[index] is None:
                group = (request.connect_account, request.api_version)
                batches.setdefault(group, []).append(index)
        for indexes in batches.values():
            found = await self._stream.send(
                [requests[index] for index in indexes], [attempts[index] for index in indexes]
            )
            for index, outcome in zip(indexes, found, strict=True):
                outcomes[index] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    async def _send_meter_event(self, request: PushRequest, attempt: int) -> Outcome:
        assert request.event_name is not None
        assert request.customer is not None
        params: MeterEventCreateParams = {
            "event_name": request.event_name,
            "identifier": request.identifier,
            "timestamp": request.timestamp_s,
            "payload": {
                request.customer_key: request.customer,
                request.value_key: request.value,
            },
        }
        return await self._post(
            "/v1/billing/meter_events",
            params,
            request,
            idempotency_key=f"{request.identifier}:{attempt}",
            shape=MeterEvent,
            is_receipt=lambda event: event.identifier == request.identifier,
        )

    async def _set_usage_record(self, request: PushRequest, attempt: int) -> Outcome:
        """`set` at a fixed timestamp takes the period's total, and taking it twice changes nothing."""
        quantity = int(request.value)
        return await self._post(
            f"/v1/subscription_items/{request.item}/usage_records",
            {"quantity": quantity, "timestamp": request.timestamp_s, "action": "set"},
            request,
            idempotency_key=f"{request.identifier}:{attempt}",
            shape=UsageRecord,
            is_receipt=lambda record: (
                (record.quantity, record.subscription_item) == (quantity, request.item)
            ),
        )

    async def cancel(self, request: PushRequest) -> Outcome:
        """See the port."""
        if request.driver == "usage_record":
            return Refused("usage records can't be cancelled: set another total")
        if (flaw := _flaw(request)) is not None:
            return flaw
        assert request.event_name is not None
        params: MeterEventAdjustmentCreateParams = {
            "event_name": request.event_name,
            "type": "cancel",
            "cancel": {"identifier": request.identifier},
        }
        return await self._post(
            "/v1/billing/meter_event_adjustments",
            params,
            request,
            idempotency_key=f"{request.identifier}:cancel",
            shape=Adjustment,
            is_receipt=lambda adjustment: adjustment.status in {"pending", "complete"},
        )

    async def _post(
        self,
        path: str,
        params: Any,
        request: PushRequest,
        *,
        idempotency_key: str,
        shape: type[AnswerT],
        is_receipt: Callable[[AnswerT], bool],
    ) -> Outcome:
        """One POST and what it came to."""
        try:
            answer: Text = await self._calls.call(
                "post",
                path,
                params,
                connect_account=request.connect_account,
                api_version=request.api_version,
                idempotency_key=idempotency_key,
            )
        except NotTaken as error:
            subject = Subject(
                request.driver,
                request.item,
                request.customer,
                request.event_name,
                request.connect_account,
            )
            return outcome_of_problem(read_problem(error.answer), subject)
        except WireFailure as failure:
            return outcome_of_failure(failure)
        found = decode(answer.body, shape, path)
        if isinstance(found, Unanswered) or not is_receipt(found):
            return Unknown("a successful answer that is no receipt for this request")
        return Delivered(answer.request_id, answer.is_replay)

    async def resolve(self, destination: Destination) -> Resolved | Unresolved:
        """See the port."""
        account = destination.connect_account
        if account is not None and not is_id(account):
            return Unresolved(f"{account!r} is no account of Stripe's (acct_...)")
        found = await resolving.resolve(self._calls, destination)
        if isinstance(found, Resolved):
            return found._replace(api_version=api_version(destination.driver))
        return found

    async def read(
        self,
        resolved: Resolved,
        customer: str,
        start_s: int,
        end_s: int,
        connect_account: str | None,
    ) -> Reading | Unread:
        """See the port."""
        assert start_s < end_s
        if resolved.event_name is None:
            return await self._read_usage_records(resolved, start_s, connect_account)
        assert (start_s % 60, end_s % 60) == (0, 0), "Stripe refuses other times"
        summaries = await ask_list(
            self._calls,
            f"/v1/billing/meters/{resolved.object_id}/event_summaries",
            MeterSummary,
            {"customer": customer, "start_time": start_s, "end_time": end_s},
            connect_account=connect_account,
        )
        if isinstance(summaries, Unanswered):
            return unread(f"summary of {resolved.event_name}", summaries)
        texts = [
            bytes(summary.aggregated_value).decode("ascii", "replace") for summary in summaries
        ]
        if (units := _sum_of(texts)) is None:
            return Unread(f"summary of {resolved.event_name}: a total that is no number")
        return Reading(units)

    async def invoiced(
        self, resolved: Resolved, customer: str, end_s: int, connect_account: str | None
    ) -> Invoiced | Unread | None:
        """See the port."""
        return await read_invoiced(self._calls, resolved, customer, end_s, connect_account)

    async def price(
        self, price: str, currency: str | None, connect_account: str | None
    ) -> dict[str, object] | Unread:
        """See the port."""
        return await read_price(self._calls, price, currency, connect_account)

    async def priced_item(self, item: str, connect_account: str | None) -> PricedItem | Unread:
        """See the port."""
        return await read_item(self._calls, item, connect_account)

    async def rejections(
        self, event_id: str, connect_account: str | None
    ) -> RejectionReport | Unread:
        """See the port."""
        if not is_id(event_id):
            return Unread(f"{event_id[:40]!r} is no event of Stripe's (evt_...)", is_missing=True)
        path = f"/v2/core/events/{event_id}"
        event = await ask(self._calls, path, RejectionEvent, connect_account=connect_account)
        if isinstance(event, Unanswered):
            return Unread(f"report {event_id}: {event.reason}", event.after_us, event.is_missing)
        named = tuple(
            RejectedEvent(
                sample.request.identifier,
                f"{kind.code}: {sample.error_message}"[: limits.STRIPE_REASON_CHARS_MAX],
            )
            for kind in event.data.reason.error_types
            for sample in kind.sample_errors
        )
        meter = None if event.related_object is None else event.related_object.id
        return RejectionReport(meter, event.data.reason.error_count, named)

    async def _read_usage_records(
        self, resolved: Resolved, start_s: int, connect_account: str | None
    ) -> Reading | Unread:
        """`total_usage` is per period, so the one that holds `start_s` counts, never their sum."""
        summaries = await ask_list(
            self._calls,
            f"/v1/subscription_items/{resolved.object_id}/usage_record_summaries",
            UsageSummary,
            {},
            connect_account=connect_account,
            api_version=LEGACY_API_VERSION,
        )
        if isinstance(summaries, Unanswered):
            return unread(f"summary of {resolved.object_id}", summaries)
        holding = [
            summary
            for summary in summaries
            if (summary.period.start is None or summary.period.start <= start_s)
            and (summary.period.end is None or start_s < summary.period.end)
        ]
        if not holding:
            return Unread(f"Stripe shows no period of {resolved.object_id} that holds {start_s}")
        # A running period may come without bounds, and then holds everything: one that states its start is surer.
        latest = max(holding, key=lambda summary: summary.period.start or -1)
        return Reading(str(latest.total_usage))


def _flaw(request: PushRequest) -> Refused | None:
    """What Stripe would refuse for sure, or HTTP can't carry: found before it leaves. None: nothing."""
    if not (
        len(request.identifier) <= IDENTIFIER_CHARS_MAX and _VISIBLE.fullmatch(request.identifier)
    ):
        return Refused("an identifier is 1 to 100 visible ASCII characters")
    if not _VALUE.fullmatch(request.value):
        return Refused(
            f"Stripe takes whole numbers of at most {UNITS_DIGITS_MAX} digits, not {request.value[:40]!r}: "
            "scale the mapping"
        )
    if request.connect_account is not None and not is_id(request.connect_account):
        return Refused(
            f"{request.connect_account!r} is no account of Stripe's (acct_...)", scope="target"
        )
    if request.driver == "usage_record":
        if request.item is None or not is_id(request.item):
            return Refused("usage records need a subscription item (si_...)", scope="target")
        if request.value.startswith("-"):
            return Refused("a usage record's total can't be negative")
        return None
    if not request.event_name or len(request.event_name) > EVENT_NAME_CHARS_MAX:
        return Refused(f"an event name has 1 to {EVENT_NAME_CHARS_MAX} characters", scope="target")
    if not request.customer:
        return Refused("a meter event needs a Stripe customer (cus_...)", scope="target")
    return None


def _sum_of(texts: list[str]) -> str | None:
    """The sum of JSON numbers, exact; a single one at the digits it came with. None: one is no number."""
    try:
        numbers = [Decimal(text) for text in texts]
    except DecimalException:
        return None
    if not all(
        number.is_finite() and abs(number.adjusted()) <= _EXPONENT_MAX for number in numbers
    ):
        return None
    if len(texts) == 1:
        return texts[0]
    total = Decimal(0)
    for number in numbers:
        total = _EXACT.add(total, number)
    return format(total, "f")


assert limits.STRIPE_STREAM_EVENTS_MAX == 100, "https://docs.stripe.com/api/v2/billing-meter-stream"
assert stripe.enable_telemetry is False
