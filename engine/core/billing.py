"""What is said between the push plan and a billing driver: requests, their outcomes, what Stripe was found to hold.

Rules it keeps: plain frozen values that compare equal when they say the same; an amount is a whole number of units as
text or int, never a float; an outcome says what is known about delivery and nothing more, so that "perhaps" is never
taken for "no". It must not know Stripe's library, HTTP, or how a plan decides.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import msgspec

Mode = Literal["live", "test", "sim"]
DriverName = Literal["meter", "usage_record", "stream"]
UNITS_DIGITS_MAX: Final = 15
"""Significant digits that Stripe takes in one value."""
IDENTIFIER_CHARS_MAX: Final = 100
EVENT_NAME_CHARS_MAX: Final = 100


class Proven(NamedTuple):
    """What a key was found to be by asking Stripe with it; ledgers belong to this, never to a variable's name."""

    account: str
    """`acct_...`; the simulator's begin with `acct_sim`."""
    mode: Mode
    is_unlimited: bool = False
    """A simulator that refuses no call for its rate."""


class PushRequest(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """Everything that leaves for Stripe, as it is kept in the log: a resend is built from this alone."""

    driver: DriverName
    identifier: str
    """At most 100 characters; the idempotency key begins with it."""
    value: str
    """Whole units, signed decimal digits: a difference for `meter` and `stream`, the total for `usage_record`."""
    timestamp_s: int
    """Unix seconds."""
    api_version: str
    event_name: str | None = None
    customer: str | None = None
    """`cus_...`, for `meter` and `stream`."""
    customer_key: str = "stripe_customer_id"
    value_key: str = "value"
    """The payload's keys, as the meter names them."""
    item: str | None = None
    """`si_...`, for `usage_record`."""
    connect_account: str | None = None
    """The `Stripe-Account` header; None: the key's own account."""


# Outcomes of sending one request once.


class Delivered(NamedTuple):
    """Stripe took it."""

    request_id: str | None = None
    is_replay: bool = False
    """The answer is the one that an earlier request with the same idempotency key got."""


class AlreadyDelivered(NamedTuple):
    """Stripe refuses it since an event with this identifier exists: it was taken before, by whomever."""

    reason: str
    request_id: str | None = None


class RetryLater(NamedTuple):
    """It was certainly not applied by this attempt; the same bytes may go again."""

    reason: str
    after_us: int | None = None
    """Microseconds that Stripe asked for (`Retry-After`); None: the caller's own backoff."""
    is_account_wide: bool = False
    """Another request of the account would meet the same: an outage, a rate limit."""


class Refused(NamedTuple):
    """Stripe says no, and the same bytes would be refused again. Nothing was applied."""

    reason: str
    """In words, for a person; no secret in it."""
    code: str | None = None
    """Stripe's error code, if it gave one."""
    scope: Literal["request", "target", "account"] = "request"
    """`target`: customer, item or meter is gone or of the wrong kind; `account`: the key itself is refused."""
    request_id: str | None = None


class Unknown(NamedTuple):
    """It may have been applied or not: no answer came, or one that proves nothing (a 5xx)."""

    reason: str
    is_stored: bool = False
    """The answer was a 5xx, which the idempotency key would replay: the next attempt needs another key."""


Outcome = Delivered | AlreadyDelivered | RetryLater | Refused | Unknown


# Where usage goes, found out by asking.


class Destination(NamedTuple):
    """What a mapping names at Stripe, as far as it names it. Ask a driver to `resolve` it."""

    driver: DriverName
    event_name: str | None = None
    item: str | None = None
    price: str | None = None
    customer: str | None = None
    connect_account: str | None = None


class Resolved(NamedTuple):
    """A destination as Stripe describes it. Times are unix seconds."""

    object_id: str
    """What the lane is about: the meter (`mtr_...`), or the item (`si_...`) for `usage_record`."""
    customer: str | None
    """The Stripe customer; of an item that of its subscription; None: only the caller can know."""
    event_name: str | None = None
    customer_key: str = "stripe_customer_id"
    value_key: str = "value"
    item: str | None = None
    price: str | None = None
    currency: str | None = None
    period_start_s: int | None = None
    period_end_s: int | None = None
    """The item's running billing period; None: not known, there is no item."""
    item_created_s: int | None = None
    api_version: str = ""
    """The version of Stripe's API that pushes to it are written for."""


class Unresolved(NamedTuple):
    """A destination that can't be pushed to."""

    reason: str
    """In words: what is wrong and what to do."""
    is_temporary: bool = False
    """Stripe could not be asked, or answered a 5xx: ask again."""
    is_stopped: bool = False
    """It existed and is gone: a deleted customer, an ended subscription, an archived meter."""
    after_us: int | None = None
    is_unfit: bool = False
    """It is there, and is of a kind that differences can't be pushed to."""


class Reading(NamedTuple):
    """What Stripe's summary holds for a customer in a range of time; it may lag behind without a bound."""

    units: str
    """A decimal number as text, at the digits Stripe gave."""


class Invoiced(NamedTuple):
    """What a final invoice has of a customer's usage in a period."""

    units: str
    """Whole, the sum of its lines' quantities."""
    finalized_at_us: int | None
    invoice: str
    """`in_...`."""


class Unread(NamedTuple):
    """What was asked for could not be read."""

    reason: str
    after_us: int | None = None
    is_missing: bool = False
    """Stripe says that this account has no such thing."""
    is_refused: bool = False
    """Stripe answers, and refuses what was asked for: that says nothing against the account's other questions."""


class PricedItem(NamedTuple):
    """What a subscription item bills by. `currency` is the subscription's, in capitals or not, as Stripe writes it."""

    price: str
    currency: str
    customer: str


# What Stripe rejected after it had taken it.


class RejectedEvent(NamedTuple):
    """A meter event that Stripe acknowledged and did not count."""

    identifier: str
    reason: str
    """In words, with Stripe's code."""


class RejectionReport(NamedTuple):
    """One of Stripe's reports. It names samples: `events` may be more than `named` has."""

    meter: str | None
    """`mtr_...`; None: the events named no meter that exists."""
    events: int
    named: tuple[RejectedEvent, ...]


def same_units(left: str | int, right: str | int) -> bool:
    """Whether two amounts are equal as far as Stripe's 15 digits can tell."""
    return _rounded(left) == _rounded(right)


def _rounded(units: str | int) -> tuple[str, int]:
    """(sign and leading digits, exponent of ten) of an amount, rounded half up to 15 digits, trailing zeros off."""
    text = str(units)
    sign = "-" if text.startswith("-") else ""
    whole, _, fraction = text.lstrip("+-").partition(".")
    exponent = 0
    mantissa, _, power = fraction.lower().partition("e")
    if not fraction and "e" in whole.lower():
        whole, _, power = whole.lower().partition("e")
        mantissa = ""
    if power:
        exponent = int(power)
    digits = (whole + mantissa).lstrip("0")
    exponent -= len(mantissa)
    if len(digits) > UNITS_DIGITS_MAX:
        cut = len(digits) - UNITS_DIGITS_MAX
        number = (int(digits[:UNITS_DIGITS_MAX]) + (digits[UNITS_DIGITS_MAX] >= "5")) or 0
        digits, exponent = str(number), exponent + cut
    stripped = digits.rstrip("0")
    if not stripped:
        return "0", 0
    return sign + stripped, exponent + len(digits) - len(stripped)
