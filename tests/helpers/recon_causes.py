"""One way to bring about each cause that reconciliation can find, for one customer, in a world that is else clean.

Each injection is `async (place, meter, customer)`: it runs after a first push of 30 units was confirmed, and leaves
the world as it is when the cause is there to be found. `CAUSES` says what must be found of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from engine.actors.supervisor import Meter
from engine.core.push_records import PushOutcome, identifier_of
from tests.helpers.recon_place import LAG_SECONDS, ReconPlace

EVENTS = "POST /v1/billing/meter_events"
Inject = Callable[[ReconPlace, Meter, str], Awaitable[None]]


async def nothing(place: ReconPlace, meter: Meter, customer: str) -> None:
    """The control."""
    await place.use(meter, 4, customer)


async def not_pushed(place: ReconPlace, meter: Meter, customer: str) -> None:
    """Stripe answers 409 for ever: the intent stays open."""
    place.stripe.add_fault("busy", EVENTS, contains=customer)
    await place.use(meter, 10, customer)
    await trio.sleep(2 * LAG_SECONDS)


async def refused(place: ReconPlace, meter: Meter, customer: str) -> None:
    """Stripe says no."""
    place.wire.refused[customer] = "This customer may not be metered."
    await place.use(meter, 10, customer)


async def rejected(place: ReconPlace, meter: Meter, customer: str) -> None:
    """Stripe takes it, and reports later that it does not count; what is sent anew meets the same."""
    place.stripe.add_fault("reject", EVENTS, contains=customer)
    await place.use(meter, 10, customer)
    await trio.sleep(30)
    intent = place.newest_of(meter, customer)
    await meter.started.pusher.report_rejected(intent, "meter_event_invalid_value", "test")


async def foreign(place: ReconPlace, _meter: Meter, customer: str) -> None:
    """Another system sends to the same meter."""
    await place.foreign(7, customer)


async def taken_back(place: ReconPlace, _meter: Meter, customer: str) -> None:
    """Another system sends a negative difference."""
    await place.foreign(-7, customer)


async def duplicate(place: ReconPlace, _meter: Meter, customer: str) -> None:
    """What was pushed is at Stripe a second time, under another identifier."""
    at_s = place.minutes(customer)
    await place.foreign(30, customer, timestamp_s=max(at_s) * 60)


async def exists(place: ReconPlace, meter: Meter, customer: str) -> None:
    """Somebody has used the identifier before it was sent first."""
    (lane,) = [one for one in meter.push.ledger.lanes.values() if one.lane.customer == customer]
    (state,) = lane.targets.values()
    start_us = state.target.start_us
    identifier = identifier_of(meter.log_id, 1, lane.lane, start_us, lane.numbers[start_us] + 1)
    place.post(
        "/v1/billing/meter_events",
        event_name="calls",
        identifier=identifier,
        payload={"stripe_customer_id": customer, "value": "10"},
        timestamp=place.clock.now_us() // 1_000_000,
    )
    await place.use(meter, 10, customer)


async def quarantined(place: ReconPlace, meter: Meter, customer: str) -> None:
    """Nobody knows whether an intent was applied; it was not."""
    place.stripe.add_fault("busy", EVENTS, contains=customer)
    await place.use(meter, 10, customer)
    await trio.sleep(30)
    (lane,) = [one for one in meter.push.ledger.lanes.values() if one.lane.customer == customer]
    assert lane.open is not None
    outcome = PushOutcome(
        target=lane.open.target,
        number=lane.open.number,
        result="quarantined",
        proof="reading",
        reason="its minute holds 3 at Stripe",
    )
    await meter.append_control(outcome)


async def stopped(place: ReconPlace, meter: Meter, customer: str) -> None:
    """The customer was deleted at Stripe."""
    await meter.started.pusher.stop(place.stripe.account, customer, "deleted at Stripe", "test")
    await place.use(meter, 10, customer)


async def mapping_missing(place: ReconPlace, meter: Meter, customer: str) -> None:
    """Usage of a customer of whom no Stripe customer is known."""
    await place.use(meter, 10, f"nobody-{customer}")


async def behind(place: ReconPlace, meter: Meter, customer: str) -> None:
    """The summary lags for days."""
    place.stripe.add_fault("lag", EVENTS, contains=customer, seconds=86_400.0 * 3)
    await place.use(meter, 10, customer)
    await trio.sleep(10)


async def dropped(place: ReconPlace, meter: Meter, customer: str) -> None:
    """Stripe acknowledges it and never counts it: nobody can tell that from a lag."""
    place.stripe.add_fault("drop", EVENTS, contains=customer)
    await place.use(meter, 10, customer)
    await trio.sleep(10)


async def wrong_customer(place: ReconPlace, meter: Meter, customer: str) -> None:
    """A customer's record names another customer's subscription item, once something was used."""
    other = place.subscribe(f"{customer}_other")
    ref = f"ref-{customer}"
    await place.put(
        meter, ref, stripe_customer_id=f"{customer}_new", subscription_items={"calls": other}
    )
    await place.use(meter, 10, ref)


async def awaiting_baseline(place: ReconPlace, meter: Meter, customer: str) -> None:
    """Stripe held something before anything was pushed."""
    await place.foreign(3, f"{customer}_old")
    await place.use(meter, 10, f"{customer}_old")


class Expected(NamedTuple):
    """What must be found: nothing else, of this customer."""

    inject: Inject
    cause: str | None
    units: str | None = None
    gap: str = "stripe"


CAUSES: dict[str, Expected] = {
    "nothing": Expected(nothing, None),
    "not_pushed": Expected(not_pushed, "not_pushed", "10", "push"),
    "refused": Expected(refused, "refused", "10", "push"),
    "rejected": Expected(rejected, "rejected", "10"),
    "foreign": Expected(foreign, "foreign", "-7"),
    "taken_back": Expected(taken_back, "foreign", "7"),
    "duplicate": Expected(duplicate, "duplicate", "-30"),
    "exists": Expected(exists, "duplicate", "10", "push"),
    "quarantined": Expected(quarantined, "quarantined", "10", "push"),
    "stopped": Expected(stopped, "stopped", "10", "push"),
    "mapping_missing": Expected(mapping_missing, "mapping_missing", "10", "usage"),
    "behind": Expected(behind, "behind", "10"),
    "dropped": Expected(dropped, "behind", "10"),
    "wrong_customer": Expected(wrong_customer, "wrong_customer", "10", "push"),
    "awaiting_baseline": Expected(awaiting_baseline, "awaiting_baseline", "10", "push"),
}


def found_of(meter: Meter) -> set[tuple[str, str, str]]:
    """(gap, cause, units) of every open finding."""
    return {
        (one.record.gap, one.record.cause, one.record.units)
        for one in meter.push.findings.open.values()
    }


def expected_of(*names: str) -> set[tuple[str, str, str]]:
    """The same, as it must be."""
    return {
        (one.gap, one.cause, one.units or "")
        for one in (CAUSES[name] for name in names)
        if one.cause is not None
    }
