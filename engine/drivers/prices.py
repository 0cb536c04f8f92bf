"""Prices as Stripe has them: a Price object with its tiers, and which one a subscription item bills by.

Rules it keeps: numbers stay exact (a decimal is never read as a binary float); the tiers of another currency are asked
for by name, since Stripe sends only what `expand` says; what could not be asked is told apart from what is not there.
It must not know what a price means (engine.pricing.stripe_prices) or how an answer is kept.
Sources: https://docs.stripe.com/api/prices/object, https://docs.stripe.com/api/subscription_items/object.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

import msgspec

from engine.core.billing import PricedItem, Unread
from engine.drivers.calls import StripeCalls
from engine.drivers.questions import Unanswered, ask, is_id
from engine.drivers.shapes import Item, Subscription

_decode: Final = msgspec.json.Decoder(dict[str, object], float_hook=Decimal).decode
StripePrice = dict[str, object]


async def read_price(
    calls: StripeCalls, price: str, currency: str | None, connect_account: str | None
) -> StripePrice | Unread:
    """See `engine.ports.Billing.price`."""
    if not is_id(price):
        return Unread(f"{price[:40]!r} is no id of Stripe's (price_...)", is_missing=True)
    found = await _ask(calls, price, ["tiers", "currency_options"], connect_account)
    if isinstance(found, Unread) or currency is None:
        return found
    wanted, options = currency.lower(), found.get("currency_options")
    is_other = str(found.get("currency", "")).lower() != wanted
    is_option = isinstance(options, dict) and wanted in options
    if is_other and is_option and found.get("billing_scheme") == "tiered":
        expand = ["tiers", "currency_options", f"currency_options.{wanted}.tiers"]
        return await _ask(calls, price, expand, connect_account)
    return found


async def _ask(
    calls: StripeCalls, price: str, expand: list[str], connect_account: str | None
) -> StripePrice | Unread:
    answer = await ask(
        calls,
        f"/v1/prices/{price}",
        msgspec.Raw,
        {"expand": expand},
        connect_account=connect_account,
    )
    if isinstance(answer, Unanswered):
        return _unread(answer, f"price {price}")
    try:
        return _decode(answer)
    except msgspec.MsgspecError as error:
        return Unread(f"price {price}: the answer makes no sense: {error}")


async def read_item(
    calls: StripeCalls, item: str, connect_account: str | None
) -> PricedItem | Unread:
    """See `engine.ports.Billing.priced_item`."""
    if not is_id(item):
        return Unread(f"{item[:40]!r} is no id of Stripe's (si_...)", is_missing=True)
    found = await ask(
        calls, f"/v1/subscription_items/{item}", Item, connect_account=connect_account
    )
    if isinstance(found, Unanswered):
        return _unread(found, f"subscription item {item}")
    if not is_id(found.subscription):
        return Unread(f"subscription item {item} names no subscription")
    subscription = await ask(
        calls,
        f"/v1/subscriptions/{found.subscription}",
        Subscription,
        connect_account=connect_account,
    )
    if isinstance(subscription, Unanswered):
        return _unread(subscription, f"subscription {found.subscription}")
    currency = subscription.currency or found.price.currency
    return PricedItem(found.price.id, currency, subscription.customer)


def _unread(found: Unanswered, what: str) -> Unread:
    if found.is_missing:
        reason = f"{what} is not at Stripe (it may be of another account or mode)"
        return Unread(f"{reason}. {found.reason}", is_missing=True)
    return Unread(f"{what}: {found.reason}", found.after_us)
