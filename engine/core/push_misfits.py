"""Why a route can't be pushed, in words: by what was configured, and by what Stripe says of its destination.

Rules it keeps: a sentence says what to do about it, and None that nothing is known against it. It must not know what was
used or pushed.
"""

from __future__ import annotations

from typing import Final

from engine.core.billing import Proven, PushRequest, Resolved
from engine.core.push_records import Lane, Target
from engine.core.push_routes import Route
from engine.core.push_uses import PeriodUse

_SECOND_US: Final = 1_000_000
NO_CUSTOMER: Final = (
    "no Stripe customer is known for it: PUT /v1/customers/{customerRef} with its stripeCustomerId"
)


def kept_resolved(target: Target, request: PushRequest) -> Resolved:
    """What a target's destination was when a customer of it was erased."""
    return Resolved(
        object_id=target.lane.object_id,
        customer=target.lane.customer,
        event_name=request.event_name,
        customer_key=request.customer_key,
        value_key=request.value_key,
        item=request.item,
        api_version=request.api_version,
    )


def unroutable(route: Route) -> str | None:
    """Why a route goes nowhere as it was configured, in words; None: Stripe can be asked about it."""
    destination = route.destination
    if destination.item is None and destination.event_name is None and destination.price is None:
        return "its mapping names no meter: give it meterEventName, priceId or subscriptionItemId"
    if destination.driver == "usage_record" and destination.item is None:
        return "usage records need a subscription item: put it in the customer's subscriptionItems"
    if route.customer is None and not route.is_own_item:
        return NO_CUSTOMER
    return None


def misfit(route: Route, resolved: Resolved, use: PeriodUse) -> str | None:
    """Why a period can't be pushed to what its route turned out to be, in words."""
    if resolved.customer is not None and route.customer not in (None, resolved.customer):
        return (
            f"the subscription item {resolved.item} belongs to {resolved.customer}, "
            f"the usage to {route.customer}"
        )
    if resolved.period_end_s is None or resolved.period_start_s is None:
        return None
    start_s, end_s = use.start_us // _SECOND_US, use.end_us // _SECOND_US
    if end_s <= resolved.period_start_s:
        return None  # over at Stripe too; while it ran it was compared
    if start_s >= resolved.period_end_s:
        return "Stripe has not begun this billing period yet"
    if end_s == resolved.period_end_s and resolved.period_start_s >= start_s:
        return None
    return (
        f"its period ends at {end_s}, the billing period of {resolved.item} at {resolved.period_end_s} (unix seconds): "
        "give the mapping period `subscription` and the customer the subscription's billingAnchor"
    )


def is_elsewhere(lane: Lane, request: PushRequest, proven: Proven | None) -> bool:
    """Whether a request's lane is of another account or mode than the key that is set; False: or nobody knows yet."""
    if proven is None:
        return False
    account = request.connect_account or proven.account
    return (account, proven.mode) != (lane.account, lane.mode)
