"""From what a mapping names (event, item, price) to what Stripe knows of it: meter, customer, period; or why it can't be.

Rules it keeps: always asked anew; what would make differences bill nonsense is refused (a meter that does not sum, one
with an event time window), with what to do instead; what is gone says so (`is_stopped`) and is told apart from what
could not be asked (`is_temporary`). It must not know mappings, the log or how an answer is kept.
"""

from __future__ import annotations

from typing import Final

from engine.core.billing import Destination, Resolved, Unresolved
from engine.drivers.calls import LEGACY_API_VERSION, LIBRARY_API_VERSION, StripeCalls
from engine.drivers.questions import Unanswered, ask, ask_list, is_id
from engine.drivers.shapes import Customer, Item, Meter, Price, Subscription

_ENDED: Final = frozenset({"canceled", "incomplete_expired"})


async def resolve(calls: StripeCalls, destination: Destination) -> Resolved | Unresolved:
    """What a destination is. See `engine.ports.Billing.resolve`."""
    for name in (destination.item, destination.price, destination.customer):
        if name is not None and not is_id(name):
            return Unresolved(f"{name!r} is no id of Stripe's: copy it from the dashboard")
    if destination.driver == "usage_record":
        return await _legacy(calls, destination)
    if destination.item is not None:
        return await _item_on_meter(calls, destination)
    if destination.price is not None:
        return await _price_on_meter(calls, destination)
    if destination.event_name is not None:
        return await _meter_by_event_name(calls, destination)
    return Unresolved(
        "nothing says where usage goes: give the mapping an item, a price or an event name"
    )


async def _legacy(calls: StripeCalls, destination: Destination) -> Resolved | Unresolved:
    if destination.item is None:
        return Unresolved("usage records need a subscription item (si_...)")
    found = await _item_and_subscription(calls, destination, LEGACY_API_VERSION)
    if isinstance(found, Unresolved):
        return found
    item, subscription = found
    recurring = item.price.recurring
    if recurring is not None and recurring.meter is not None:
        return Unresolved(
            f"the price of {item.id} is on the meter {recurring.meter}: set `driver` of its mapping to `meter`"
        )
    if recurring is None or recurring.usage_type != "metered":
        return Unresolved(
            f"the price of {item.id} is not metered: usage does not change what it bills"
        )
    return _resolved_item(item.id, item, subscription, meter=None)


async def _item_on_meter(calls: StripeCalls, destination: Destination) -> Resolved | Unresolved:
    found = await _item_and_subscription(calls, destination, LIBRARY_API_VERSION)
    if isinstance(found, Unresolved):
        return found
    item, subscription = found
    meter = await _meter_of_price(calls, item.price, destination)
    if isinstance(meter, Unresolved):
        return meter
    return _resolved_item(meter.id, item, subscription, meter)


async def _price_on_meter(calls: StripeCalls, destination: Destination) -> Resolved | Unresolved:
    price = await ask(
        calls,
        f"/v1/prices/{destination.price}",
        Price,
        connect_account=destination.connect_account,
    )
    if isinstance(price, Unanswered):
        return _unresolved(price, f"price {destination.price}")
    meter = await _meter_of_price(calls, price, destination)
    if isinstance(meter, Unresolved):
        return meter
    if (wrong := await _customer_flaw(calls, destination)) is not None:
        return wrong
    return _resolved_meter(meter, destination, price)


async def _meter_by_event_name(
    calls: StripeCalls, destination: Destination
) -> Resolved | Unresolved:
    """Active meters first: an event name may be used again after its meter was archived."""
    for status in ("active", "inactive"):
        meters = await ask_list(
            calls,
            "/v1/billing/meters",
            Meter,
            {"status": status},
            connect_account=destination.connect_account,
        )
        if isinstance(meters, Unanswered):
            return _unresolved(meters, "the list of meters")
        for meter in meters:
            if meter.event_name == destination.event_name:
                if (wrong := _meter_flaw(meter)) is not None:
                    return wrong
                if (wrong := await _customer_flaw(calls, destination)) is not None:
                    return wrong
                return _resolved_meter(meter, destination, None)
    return Unresolved(
        f"no meter has the event name {destination.event_name!r}: create one in Stripe (Billing, Meters), "
        "or correct the mapping"
    )


async def _item_and_subscription(
    calls: StripeCalls, destination: Destination, api_version: str
) -> tuple[Item, Subscription] | Unresolved:
    """The item and the running subscription it belongs to."""
    item = await ask(
        calls,
        f"/v1/subscription_items/{destination.item}",
        Item,
        connect_account=destination.connect_account,
        api_version=api_version,
    )
    if isinstance(item, Unanswered):
        return _unresolved(item, f"subscription item {destination.item}")
    if not is_id(item.subscription):
        return Unresolved(f"{item.id} names no subscription", is_temporary=True)
    subscription = await ask(
        calls,
        f"/v1/subscriptions/{item.subscription}",
        Subscription,
        connect_account=destination.connect_account,
        api_version=api_version,
    )
    if isinstance(subscription, Unanswered):
        return _unresolved(subscription, f"subscription {item.subscription}")
    if subscription.status in _ENDED:
        return Unresolved(
            f"subscription {subscription.id} has ended ({subscription.status}): "
            "give the customer's new item, or remove this one",
            is_stopped=True,
        )
    if destination.customer not in {None, subscription.customer}:
        return Unresolved(
            f"item {item.id} belongs to {subscription.customer}, not to {destination.customer}: correct the customer"
        )
    return item, subscription


async def _meter_of_price(
    calls: StripeCalls, price: Price, destination: Destination
) -> Meter | Unresolved:
    """The meter that a price bills, fit for differences."""
    recurring = price.recurring
    if recurring is None or recurring.usage_type != "metered":
        return Unresolved(f"price {price.id} is not metered: usage does not change what it bills")
    if recurring.meter is None:
        return Unresolved(
            f"price {price.id} has no meter (legacy usage records): "
            "set `driver` of its mapping to `usage_record`, or move the price to a meter"
        )
    if not is_id(recurring.meter):
        return Unresolved(f"price {price.id} names no meter", is_temporary=True)
    meter = await ask(
        calls,
        f"/v1/billing/meters/{recurring.meter}",
        Meter,
        connect_account=destination.connect_account,
    )
    if isinstance(meter, Unanswered):
        return _unresolved(meter, f"meter {recurring.meter}")
    if destination.event_name not in {None, meter.event_name}:
        return Unresolved(
            f"price {price.id} bills the meter event {meter.event_name!r}, not {destination.event_name!r}: "
            "correct the mapping"
        )
    return _meter_flaw(meter) or meter


def _meter_flaw(meter: Meter) -> Unresolved | None:
    """Why differences can't be sent to this meter; None: they can."""
    if meter.status != "active":
        return Unresolved(
            f"meter {meter.id} ({meter.event_name}) is archived: reactivate it, or map to another",
            is_stopped=True,
        )
    if meter.default_aggregation.formula != "sum":
        return Unresolved(
            f"meter {meter.id} ({meter.event_name}) has the formula {meter.default_aggregation.formula!r}: "
            "differences only add up with `sum`; create a meter with `sum`",
            is_unfit=True,
        )
    if meter.event_time_window is not None:
        return Unresolved(
            f"meter {meter.id} ({meter.event_name}) has an event time window ({meter.event_time_window}): "
            "events in one window replace each other; create a meter without",
            is_unfit=True,
        )
    return None


async def _customer_flaw(calls: StripeCalls, destination: Destination) -> Unresolved | None:
    """Why the named customer can't be billed; None: it can, or none is named.

    Asked, since a meter event for an unknown customer is taken and dropped later, by a report alone.
    """
    if destination.customer is None:
        return None
    customer = await ask(
        calls,
        f"/v1/customers/{destination.customer}",
        Customer,
        connect_account=destination.connect_account,
    )
    if isinstance(customer, Unanswered):
        return _unresolved(customer, f"customer {destination.customer}")
    if customer.deleted:
        return Unresolved(
            f"customer {customer.id} was deleted at Stripe: its usage can't be billed",
            is_stopped=True,
        )
    return None


def _resolved_item(
    object_id: str, item: Item, subscription: Subscription, meter: Meter | None
) -> Resolved:
    start_s, end_s = item.current_period_start, item.current_period_end
    if start_s is None or end_s is None:
        start_s, end_s = subscription.current_period_start, subscription.current_period_end
    return Resolved(
        object_id=object_id,
        customer=subscription.customer,
        event_name=meter.event_name if meter else None,
        customer_key=meter.customer_mapping.event_payload_key if meter else "stripe_customer_id",
        value_key=meter.value_settings.event_payload_key if meter else "value",
        item=item.id,
        price=item.price.id,
        currency=subscription.currency or item.price.currency,
        period_start_s=start_s,
        period_end_s=end_s,
        item_created_s=item.created,
    )


def _resolved_meter(meter: Meter, destination: Destination, price: Price | None) -> Resolved:
    return Resolved(
        object_id=meter.id,
        customer=destination.customer,
        event_name=meter.event_name,
        customer_key=meter.customer_mapping.event_payload_key,
        value_key=meter.value_settings.event_payload_key,
        price=price.id if price else None,
        currency=price.currency if price else None,
    )


def _unresolved(found: Unanswered, what: str) -> Unresolved:
    """A question without an answer, as the reason for the whole."""
    if found.is_missing:
        return Unresolved(
            f"{what} is not at Stripe (it may be of another account or mode): correct the mapping. {found.reason}"
        )
    return Unresolved(
        f"{what}: {found.reason}", is_temporary=found.is_temporary, after_us=found.after_us
    )
