"""The control endpoints, `/_sim/...`: faults, time, what is held, a fresh start; none of them is Stripe's.

Rules it keeps: they change the state as requests do, so that a journal of requests holds them too; totals are exact
numbers as text. It must not know how faults strike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from gateway.simulator import faults
from gateway.simulator.aggregation import REJECTION_CODES, make_customer, make_meter, total
from gateway.simulator.desk import Desk, instant
from gateway.simulator.ledger import MICROS, Fault, Ledger, Settings, World
from gateway.simulator.wire import Json, Refusal, Request

ROWS_MAX: Final = 1000
WEBHOOK_RETRY_SECONDS: Final = (1, 5, 30, 120, 600, 3600, 7200)
"""Waits before a webhook goes out again; after the last it is given up. Stripe's own take up to three days."""
_FOREVER_S: Final = 1 << 40


class _Step(msgspec.Struct, forbid_unknown_fields=True):
    advance_seconds: float


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    delivered: bool


class _Names(msgspec.Struct, forbid_unknown_fields=True):
    customers: list[str] = []
    meters: list[str] = []


def control(
    world: World, settings: Settings, request: Request, now_us: int
) -> Json | list[Json] | Refusal | None:
    """Serve one control request; None: there is no such endpoint."""
    endpoint = _ENDPOINTS.get((request.method, request.path))
    if request.method == "POST" and request.path.startswith("/_sim/webhooks/"):
        endpoint = _answer_webhook
    if endpoint is None:
        return None
    try:
        return endpoint(world, settings, request, now_us)
    except msgspec.MsgspecError as error:
        return Refusal(400, f"The body can't be read: {error}")


def _add_fault(world: World, settings: Settings, request: Request, now_us: int) -> Json | Refusal:
    del settings
    fault = msgspec.json.decode(request.body, type=Fault, strict=True)
    if fault.code not in REJECTION_CODES:
        return Refusal(400, f"code must be one of {', '.join(REJECTION_CODES)}")
    added = faults.add(world, fault, now_us)
    if isinstance(added, str):
        return Refusal(400, added)
    content: Json = msgspec.to_builtins(added)
    return content


def _list_faults(world: World, settings: Settings, request: Request, now_us: int) -> Json:
    del settings, request, now_us
    return {"faults": msgspec.to_builtins(list(world.faults.values())), "kinds": faults.KINDS}


def _clear_faults(world: World, settings: Settings, request: Request, now_us: int) -> Json:
    del settings, request, now_us
    count = len(world.faults)
    world.faults.clear()
    return {"cleared": count}


def _move_clock(world: World, settings: Settings, request: Request, now_us: int) -> Json | Refusal:
    del settings
    step = msgspec.json.decode(request.body, type=_Step)
    if not 0 <= step.advance_seconds < _FOREVER_S:
        return Refusal(400, "advance_seconds must be 0 or more: time does not go back")
    world.offset_us += int(step.advance_seconds * MICROS)
    return {"now": instant(now_us + int(step.advance_seconds * MICROS))}


def _reset(world: World, settings: Settings, request: Request, now_us: int) -> Json:
    del request, now_us
    world.ledgers.clear()
    world.faults.clear()
    world.deliveries.clear()
    world.offset_us = 0
    del settings
    return {"reset": True}


def _ensure(world: World, settings: Settings, request: Request, now_us: int) -> Json:
    names = msgspec.json.decode(request.body, type=_Names)
    account = request.headers.get("stripe-account", world.account)
    desk = Desk(world, world.ledgers[account], settings, now_us)
    for name in names.meters:
        if name not in desk.ledger.meters:
            make_meter(desk, name)
    for name in names.customers:
        if name not in desk.ledger.objects:
            make_customer(desk, name)
    return {"meters": {name: desk.ledger.meters[name] for name in names.meters}}


def _answer_webhook(
    world: World, settings: Settings, request: Request, now_us: int
) -> Json | Refusal:
    del settings
    number = request.path.removeprefix("/_sim/webhooks/")
    answer = msgspec.json.decode(request.body, type=_Answer)
    delivery = world.deliveries.get(number)
    if delivery is None:
        return Refusal(404, f"No such webhook: '{number}'")
    if answer.delivered or delivery.attempts >= len(WEBHOOK_RETRY_SECONDS):
        del world.deliveries[number]
        return {"waiting": False}
    delivery.due_us = now_us + WEBHOOK_RETRY_SECONDS[delivery.attempts] * MICROS
    delivery.attempts += 1
    return {"waiting": True}


_ENDPOINTS: Final[
    dict[tuple[str, str], Callable[[World, Settings, Request, int], Json | Refusal]]
] = {
    ("POST", "/_sim/faults"): _add_fault,
    ("GET", "/_sim/faults"): _list_faults,
    ("DELETE", "/_sim/faults"): _clear_faults,
    ("POST", "/_sim/clock"): _move_clock,
    ("POST", "/_sim/reset"): _reset,
    ("POST", "/_sim/ensure"): _ensure,
}


def show(world: World, settings: Settings, now_us: int, requests: Sequence[Json]) -> Json:
    """What `GET /_sim/state` answers: every account with its meters, customers and totals, the last requests."""
    return {
        "account": world.account,
        "livemode": settings.is_live,
        "now": instant(now_us),
        "faults": msgspec.to_builtins(list(world.faults.values())),
        "webhooks_waiting": len(world.deliveries),
        "accounts": [_show_ledger(one) for one in world.ledgers.values()],
        "requests": list(requests),
    }


def _show_ledger(ledger: Ledger) -> Json:
    def newest(kind: str) -> list[Json]:
        ids = ledger.kinds.get(kind, [])[-ROWS_MAX:]
        return [ledger.objects[one] for one in reversed(ids) if one in ledger.objects]

    return {
        "account": ledger.account,
        "meters": newest("billing.meter"),
        "customers": newest("customer"),
        "customers_count": len(ledger.kinds.get("customer", [])),
        "totals": totals(ledger),
        "events_pending": len(ledger.pending),
        "events_known": len(ledger.sent),
        "invoices": newest("invoice"),
    }


def totals(ledger: Ledger) -> list[Json]:
    """All that was aggregated, per meter and customer, all time; at most `ROWS_MAX` rows."""
    rows = []
    for lane in list(ledger.usage)[-ROWS_MAX:]:
        meter_id, _, customer = lane.partition("|")
        meter = ledger.objects[meter_id]
        minutes = ledger.usage[lane].values()
        value = total(ledger, meter, customer, -_FOREVER_S, _FOREVER_S)
        rows.append(
            {
                "meter": meter_id,
                "event_name": meter["event_name"],
                "customer": customer,
                "formula": meter["default_aggregation"]["formula"],
                "value": str(value or 0),
                "events": sum(minute.count for minute in minutes),
            }
        )
    return rows
