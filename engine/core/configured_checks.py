"""What is wrong with a mapping or a customer as a person puts it, field by field.

Rules it keeps: every wrong field is named at once, in the names of the HTTP contract; a field that could never be
pushed is refused here and not months later at Stripe. It must not know what is already configured, nor HTTP.
"""

from __future__ import annotations

import re
from typing import Final

from engine.core.billing import EVENT_NAME_CHARS_MAX
from engine.core.configured import Customer, Mapping
from engine.core.counters import AGGREGATIONS
from engine.core.times import HOUR_US
from engine.errors import Refused
from engine.limits import METRIC_CHARS_MAX, NAME_CHARS_MAX

LATENESS_US_MAX: Final = 8760 * HOUR_US
"""A year: a period that stays open longer can't be billed."""
GRACE_HOURS_MAX: Final = 720
"""Stripe's own bound is 72; an invoice that is finalized by hand may stay a draft for longer."""
SCALE_DIGITS_MAX: Final = 12
UNIT_CHARS_MAX: Final = 50
PERIODS: Final = ("calendar", "subscription", "day")
DRIVERS: Final = ("meter", "usage_record", "stream")
BASELINES: Final = ("now", "period", "stripe")
SUBSCRIPTION_ITEMS_MAX: Final = 100
PRICE_CONFIG_CHARS_MAX: Final = 16_384
_NAMES: Final = {
    "stripe_account": "stripeAccount",
    "price_id": "priceId",
    "subscription_item_id": "subscriptionItemId",
    "shadow_stripe_account": "shadowStripeAccount",
    "shadow_price_id": "shadowPriceId",
    "shadow_subscription_item_id": "shadowSubscriptionItemId",
}
_EVENT_NAMES: Final = {
    "meter_event_name": "meterEventName",
    "shadow_meter_event_name": "shadowMeterEventName",
}
_SCALE: Final = re.compile(r"(?:0|[1-9][0-9]*)(?:\.[0-9]*[1-9])?")
_USAGE_RECORDS_NEED_ITEMS: Final = (
    "is for the drivers meter and stream: usage records go to a subscription item, the mapping's "
    "subscriptionItemId or the one in each customer's subscriptionItems"
)
_Found = list[tuple[str, str | None]]


def check_mapping(mapping: Mapping) -> None:
    """Raises Refused naming every field that is wrong."""
    found: _Found = [
        ("tenantId", _text_error(mapping.tenant_id, NAME_CHARS_MAX)),
        ("metric", _text_error(mapping.metric, METRIC_CHARS_MAX)),
        ("aggregation", _word_error(mapping.aggregation, AGGREGATIONS)),
        ("period", _word_error(mapping.period, PERIODS)),
        ("driver", _word_error(mapping.driver, DRIVERS)),
        ("stripeScale", _scale_error(mapping.stripe_scale)),
    ]
    if mapping.lateness_us is not None and not 0 <= mapping.lateness_us <= LATENESS_US_MAX:
        found.append(("latenessHours", "must be 0 to 8760 hours"))
    if not 0 <= mapping.finalization_grace_us <= GRACE_HOURS_MAX * HOUR_US:
        found.append(("finalizationGraceHours", f"must be 0 to {GRACE_HOURS_MAX} hours"))
    if mapping.baseline is not None:
        found.append(("baseline", _word_error(mapping.baseline, BASELINES)))
    if mapping.unit is not None:
        found.append(("unit", _text_error(mapping.unit, UNIT_CHARS_MAX)))
    if mapping.currency is not None and not (
        len(mapping.currency) == 3 and mapping.currency.isascii() and mapping.currency.isalpha()
    ):
        found.append(("currency", "must be a currency of three letters, such as usd"))
    if mapping.price_config is not None and len(mapping.price_config) > PRICE_CONFIG_CHARS_MAX:
        found.append(("priceConfig", f"must have at most {PRICE_CONFIG_CHARS_MAX} characters"))
    for field, name in _NAMES.items():
        if (value := getattr(mapping, field)) is not None:
            found.append((name, _text_error(value, NAME_CHARS_MAX)))
    for field, name in _EVENT_NAMES.items():
        if (value := getattr(mapping, field)) is not None:
            found.append((name, _text_error(value, EVENT_NAME_CHARS_MAX)))
            if mapping.driver == "usage_record":
                found.append((name, _USAGE_RECORDS_NEED_ITEMS))
    _refuse(found, "the mapping is not valid; see errors")


def check_customer(customer: Customer) -> None:
    """Raises Refused naming every field that is wrong."""
    found: _Found = [
        ("tenantId", _text_error(customer.tenant_id, NAME_CHARS_MAX)),
        ("customerRef", _text_error(customer.customer_ref, NAME_CHARS_MAX)),
    ]
    if customer.stripe_customer_id is not None:
        found.append(("stripeCustomerId", _text_error(customer.stripe_customer_id, NAME_CHARS_MAX)))
    if customer.test_clock is not None:
        found.append(("testClock", _text_error(customer.test_clock, NAME_CHARS_MAX)))
    items = customer.subscription_items
    if len(items) > SUBSCRIPTION_ITEMS_MAX:
        found.append(("subscriptionItems", f"must have at most {SUBSCRIPTION_ITEMS_MAX} metrics"))
    for metric, item in list(items.items())[:SUBSCRIPTION_ITEMS_MAX]:
        found.append(("subscriptionItems", _text_error(metric, METRIC_CHARS_MAX)))
        found.append((f"subscriptionItems.{metric}", _text_error(item, NAME_CHARS_MAX)))
    _refuse(found, "the customer is not valid; see errors")


def _text_error(value: str, chars_max: int) -> str | None:
    if not 1 <= len(value) <= chars_max:
        return f"must have 1 to {chars_max} characters"
    return "must not hold the character U+0000" if "\0" in value else None


def _word_error(value: str, words: tuple[str, ...]) -> str | None:
    return None if value in words else f"must be one of {', '.join(words)}"


def _scale_error(text: str) -> str | None:
    digits = sum(char.isdigit() for char in text)
    if _SCALE.fullmatch(text) is None or text == "0" or digits > SCALE_DIGITS_MAX:
        return f"must be a decimal above 0 with at most {SCALE_DIGITS_MAX} digits"
    return None


def _refuse(found: _Found, message: str) -> None:
    errors = tuple((field, text) for field, text in found if text is not None)
    if errors:
        raise Refused(message, errors)
