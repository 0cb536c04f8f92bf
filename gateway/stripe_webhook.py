"""`POST /v1/webhooks/stripe`: what Stripe tells that changes what is pushed.

Rules it keeps: nothing is believed that is not signed; nothing of a body is logged or answered; an event is dealt with
before it is answered 200, and what can't be dealt with now is a 503, so that Stripe sends it again; dealing with an
event twice changes nothing the second time. It must not know how a target is pushed.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
import structlog

from engine.actors.push_connections import Connection
from engine.actors.push_desk import Unproven
from engine.core.billing import RejectionReport
from engine.errors import Conflict, Unavailable
from gateway.problems import Problem
from gateway.routes import Answer, Call
from gateway.stripe_signature import objection

ACTOR: Final = "stripe:webhook"
REJECTIONS: Final = (
    "v1.billing.meter.error_report_triggered",
    "v1.billing.meter.no_meter_found",
)
_SUBSCRIPTION_CHANGES: Final = (
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
)
_logger = structlog.get_logger("stripemeter.webhook")


class Received(msgspec.Struct, rename="camel", kw_only=True):
    """A webhook was taken."""

    received: bool = True
    handled: Annotated[
        bool,
        msgspec.Meta(description="false: it came before, or its type means nothing here."),
    ]


class _Data(msgspec.Struct):
    object: msgspec.Raw = msgspec.Raw(b"null")


class _Event(msgspec.Struct):
    """A snapshot event or a thin one, as far as it is used."""

    id: str
    type: str
    livemode: bool = False
    created: int | str = 0
    account: str | None = None
    """Of a snapshot event: the connected account."""
    context: str | None = None
    """Of a thin event: the same."""
    data: _Data = msgspec.field(default_factory=_Data)

    @property
    def connect_account(self) -> str | None:
        """The connected account that it is about; None: the key's own."""
        found = self.account or self.context
        return found if found is not None and found.startswith("acct_") else None


class _Transitions(msgspec.Struct):
    finalized_at: int | None = None


class _Invoice(msgspec.Struct):
    customer: str | None = None
    period_end: int = 0
    status_transitions: _Transitions = msgspec.field(default_factory=_Transitions)


class _Deleted(msgspec.Struct):
    id: str


class _Item(msgspec.Struct):
    id: str


class _Items(msgspec.Struct):
    data: list[_Item] = []


class _Subscription(msgspec.Struct):
    customer: str | None = None
    items: _Items = msgspec.field(default_factory=_Items)


async def receive(call: Call) -> Answer | Problem:
    """POST /v1/webhooks/stripe."""
    gateway, body = call.gateway, call.body
    secrets = gateway.settings.stripe_webhook_secrets
    if gateway.ways is not None:
        secrets = gateway.ways.webhook_secrets
    if not secrets:
        return Problem(
            400,
            "no webhook is believed: set STRIPE_WEBHOOK_SECRET to the endpoint's signing secret",
        )
    now_s = call.now_us // 1_000_000
    why = objection(call.headers.get("stripe-signature"), body, secrets, now_s)
    if why is not None:
        _logger.warning("webhook_refused", reason=why, request_id=call.request_id)
        return Problem(400, why)
    try:
        event = msgspec.json.decode(body, type=_Event)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Problem(400, "the body is no event of Stripe's")
    assert gateway.meter.started is not None, "while recovering this raises"
    if not gateway.seen_events.is_new(event.id, now_s):
        return Answer(Received(handled=False))
    try:
        handled = await _deal_with(call, event)
    except BaseException:
        gateway.seen_events.forget(event.id)
        raise
    _logger.info("webhook", type=event.type[:100], handled=handled, event_id=event.id[:64])
    return Answer(Received(handled=handled))


async def _deal_with(call: Call, event: _Event) -> bool:
    """Whether the event meant something. Raises Unavailable when Stripe has to send it again."""
    try:
        if event.type in REJECTIONS:
            return await _rejected(call, event)
        if event.type == "invoice.finalized":
            return await _finalized(call, event, _read(event, _Invoice))
        if event.type == "customer.deleted":
            return await _deleted(call, event, _read(event, _Deleted))
        if event.type in _SUBSCRIPTION_CHANGES:
            return _changed(call, _read(event, _Subscription))
    except msgspec.MsgspecError:
        # Signed, and of another shape than we know: a newer API version. To send it again would not help.
        _logger.warning("webhook_unreadable", type=event.type, event_id=event.id[:64])
    return False


def _read(event: _Event, shape: type[Any]) -> Any:
    return msgspec.json.decode(event.data.object, type=shape)


def _connections(call: Call, event: _Event) -> list[Connection]:
    """The keys whose account the event may be of: a webhook says live or test, not which account.

    Raises Unavailable while Stripe has not said yet of a key whether it is one of them.
    """
    found = []
    for connection in call.gateway.meter.started.push.connections.values():
        proven = connection.proven
        is_shadows = connection.role == "shadow" and event.livemode
        if proven is None and not connection.is_useless and not is_shadows:
            raise Unavailable(
                "Stripe has not said yet whose the keys are, so whose event it is can't be told",
                retry_after_seconds=60,
            )
        if proven is not None and (proven.mode == "live") == event.livemode:
            found.append(connection)
    return found


def _accounts(call: Call, event: _Event) -> list[str]:
    """The accounts that the event may be of; ids of customers are of one account alone."""
    if event.connect_account is not None:
        return [event.connect_account]
    proven = [one.proven for one in _connections(call, event)]
    return list(dict.fromkeys(one.account for one in proven if one is not None))


async def _rejected(call: Call, event: _Event) -> bool:
    """Events that Stripe took and did not count: those that the report names are due again."""
    report = await _report(call, event)
    if report is None:
        return False
    desk = call.gateway.meter.started.pusher
    reopened = unproven = 0
    for rejected in report.named:
        try:
            reopened += await desk.report_rejected(rejected.identifier, rejected.reason, ACTOR)
        except Unproven:
            unproven += 1
        except Conflict:
            continue  # It was reported before.
    unnamed = max(0, report.events - len(report.named)) + unproven
    _logger.warning(
        "meter_events_rejected",
        meter=report.meter,
        events=report.events,
        reopened=reopened,
        unnamed=unnamed,
    )
    if unnamed and report.meter is not None:
        await call.gateway.meter.started.reconciler.rejected_unnamed(report.meter, unnamed)
    call.gateway.metrics.push.rejected += report.events
    return True


async def _report(call: Call, event: _Event) -> RejectionReport | None:
    """The report of a thin event; None: it is none of our accounts'. Raises Unavailable when nobody can tell now."""
    is_unread = False
    connections = _connections(call, event)
    if not connections:
        # To be asked again for days would not help: only a key would, and a reading of what Stripe counted then tells as much.
        mode = "live" if event.livemode else "test"
        _logger.warning("webhook_without_key", type=event.type, mode=mode, event_id=event.id[:64])
        call.gateway.metrics.push.without_key += 1
    for connection in connections:
        report = await connection.billing.rejections(event.id, event.connect_account)
        if isinstance(report, RejectionReport):
            return report
        is_unread |= not report.is_missing
    if is_unread:
        raise Unavailable("the report can't be read from Stripe now", retry_after_seconds=60)
    return None


async def _finalized(call: Call, event: _Event, invoice: _Invoice) -> bool:
    """An invoice takes nothing more in."""
    finalized_s = invoice.status_transitions.finalized_at
    if finalized_s is None:
        finalized_s = event.created if isinstance(event.created, int) else call.now_us // 1_000_000
    if invoice.customer is None:
        return False
    desk = call.gateway.meter.started.pusher
    found = 0
    for account in _accounts(call, event):
        # The invoice's own period and not its lines': a licensed line is about the period ahead.
        found += await desk.invoice_finalized(
            account,
            invoice.customer,
            invoice.period_end * 1_000_000,
            finalized_s * 1_000_000,
            ACTOR,
        )
    return found > 0


async def _deleted(call: Call, event: _Event, customer: _Deleted) -> bool:
    desk = call.gateway.meter.started.pusher
    reason = "the customer was deleted at Stripe"
    stopped = 0
    for account in _accounts(call, event):
        stopped += await desk.stop(account, customer.id, reason, ACTOR)
    return stopped > 0


def _changed(call: Call, subscription: _Subscription) -> bool:
    """Periods, items or the subscription's life may be others now: what is known of them is asked for again."""
    items = frozenset(item.id for item in subscription.items.data)
    # Whosever it is: to ask again does no harm, and of a key that is not proven yet nothing is known.
    for connection in call.gateway.meter.started.push.connections.values():
        connection.forget_customer(subscription.customer, items)
    return True
