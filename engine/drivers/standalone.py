"""The billing driver for use alone, without a meter: record usage, read it back, drive test clocks.

    async with StripeBillingDriver(test_key="sk_test_...") as driver:
        await driver.record_usage(
            "test", None, subscription_item_id="si_123", quantity=250, period_start=1764547200, idempotency_key="2026-12-a"
        )
        summary = await driver.get_usage_summary("si_123", 1764547200)

It runs under trio. What does not work is raised, and says what to do: `UsageRefused` (the same call would be refused
again), `UsageUnknown` (it may have been recorded: call again with the same idempotency key), `TryLater` (it was not
recorded). A repeated idempotency key records nothing twice within 24 hours, and says so in the result.

Rules it keeps: quantities are whole and exact, a float is a TypeError; live and test never share a key. It must not
know the meter: what is here is built on `StripeBilling` alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal, NamedTuple, Self

import trio
from stripe.params.test_helpers import TestClockAdvanceParams, TestClockCreateParams

from engine.core.billing import (
    UNITS_DIGITS_MAX,
    AlreadyDelivered,
    Delivered,
    Destination,
    DriverName,
    PushRequest,
    Refused,
    Resolved,
    RetryLater,
    Unknown,
    Unread,
    Unresolved,
)
from engine.drivers.billing import StripeBilling, api_version
from engine.drivers.cached import ResolutionCache
from engine.drivers.calls import API_BASE, METER_EVENTS_BASE, NotTaken, StripeCalls
from engine.drivers.opening import open_wire
from engine.drivers.outcomes import read_problem
from engine.drivers.questions import Unanswered, decode, is_id
from engine.drivers.shapes import TestClock
from engine.drivers.wire import Wire, WireFailure
from engine.errors import EngineError

KeyMode = Literal["live", "test"]

CLOCK_POLL_SECONDS: Final = 1
CLOCK_WAIT_SECONDS: Final = 300
"""Stripe advances a clock in seconds; a year of invoices takes minutes."""
STORED_MAX: Final = 10_000
_CLOCKS: Final = "/v1/test_helpers/test_clocks"


class UsageRefused(EngineError):
    """Stripe refuses, and would refuse the same again. Nothing was recorded."""


class UsageUnknown(EngineError):
    """It may have been recorded or not. Call again with the same idempotency key: it can't be recorded twice."""


class TryLater(EngineError):
    """Stripe could not take it now; nothing was recorded. `after_seconds`: what Stripe asked for, if it did."""

    def __init__(self, message: str, after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


class Recorded(NamedTuple):
    """Usage is at Stripe."""

    driver: DriverName
    identifier: str
    units: int
    was_there_before: bool
    """Stripe had an event under this idempotency key already."""
    request_id: str | None


class Summary(NamedTuple):
    """What Stripe's summary holds; it may lag minutes behind what was recorded."""

    units: Decimal
    period_start_s: int
    period_end_s: int | None


def _wall_us() -> int:
    return time.time_ns() // 1000  # noqa: TID251 - used alone there is nobody to be given a clock by


class StripeBillingDriver:
    """Stripe for one platform: a live key, a test key, or both. Close it after use (`async with`, or `aclose`)."""

    def __init__(
        self,
        live_key: str | None = None,
        test_key: str | None = None,
        *,
        api_base: str = API_BASE,
        meter_events_base: str = METER_EVENTS_BASE,
        wire: Wire | None = None,
        now_us: Callable[[], int] = _wall_us,
    ) -> None:
        """Raises ValueError for no key, or for one that is visibly of the other mode; no message shows a key."""
        keys: dict[KeyMode, str] = {}
        for mode, key, other in (("live", live_key, "_test_"), ("test", test_key, "_live_")):
            if key is not None:
                if key[2:8] == other:
                    raise ValueError(f"{mode}_key is a key of the other mode")
                keys[mode] = key  # type: ignore[index]  # of the two literals above
        if not keys:
            raise ValueError("give live_key, test_key or both")
        self._wire = wire or open_wire((api_base, meter_events_base))
        self._billings = {
            mode: StripeBilling(
                key, api_base=api_base, meter_events_base=meter_events_base, wire=self._wire
            )
            for mode, key in keys.items()
        }
        self._calls = {
            mode: StripeCalls(key, self._wire, api_base=api_base) for mode, key in keys.items()
        }
        self._caches = {
            mode: ResolutionCache(billing, now_us) for mode, billing in self._billings.items()
        }

        self._stored: dict[tuple[KeyMode, str | None, str], int] = {}
        """(mode, connected account, idempotency key) to the 5xx answers that Stripe keeps under it, the newest last."""

    def __repr__(self) -> str:
        return f"StripeBillingDriver({', '.join(self._billings)})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._wire.aclose()

    async def record_usage(
        self,
        mode: KeyMode,
        stripe_account: str | None,
        *,
        subscription_item_id: str | None = None,
        meter_event_name: str | None = None,
        stripe_customer_id: str | None = None,
        quantity: int | Decimal | str,
        period_start: int | datetime,
        idempotency_key: str,
    ) -> Recorded:
        """Usage recorded at Stripe, once for an idempotency key.

        What `quantity` means is what Stripe makes of it. On a billing meter (an item of a meter price, or an event
        name with a customer) it is **added**; negative takes back. On an item of a legacy metered price it is the
        period's **total**, which replaces what was there.

        It is booked at `period_start` (unix seconds or an aware datetime), on a meter at the first whole minute of the
        period, so that minute-wise summaries of two periods never share it. A meter takes times up to 35 days back.
        `stripe_account` is the connected account (`acct_...`), None the key's own. The idempotency key has 1 to 100
        visible ASCII characters.

        Raises ValueError or TypeError for arguments that can't be right, UsageRefused, UsageUnknown, TryLater.
        """
        billing, cache = self._of(mode)
        units = whole_units(quantity)
        start_s = unix_seconds(period_start)
        by_item = subscription_item_id is not None
        by_event = meter_event_name is not None and stripe_customer_id is not None
        if by_item == by_event or (by_item and (meter_event_name or stripe_customer_id)):
            raise ValueError("name a subscription item, or a meter event and a customer, not both")
        destination = Destination(
            "meter",
            event_name=meter_event_name,
            item=subscription_item_id,
            customer=stripe_customer_id,
            connect_account=stripe_account,
        )
        destination, resolved = await self._resolve(cache, destination)
        request = _request(destination, resolved, units, start_s, idempotency_key)
        known_as = (mode, stripe_account, idempotency_key)
        [outcome] = await billing.send([request], [self._stored.get(known_as, 0)])
        match outcome:
            case Delivered(request_id, is_replay):
                return Recorded(request.driver, idempotency_key, units, is_replay, request_id)
            case AlreadyDelivered(_, request_id):
                return Recorded(request.driver, idempotency_key, units, True, request_id)
            case RetryLater(reason, after_us, _):
                raise TryLater(reason, None if after_us is None else after_us / 1_000_000)
            case Refused(reason, _, scope, _):
                if scope == "target":
                    cache.forget(destination)
                raise UsageRefused(reason)
            case Unknown(reason, is_stored):
                if is_stored:
                    self._count_stored(known_as)
                raise UsageUnknown(f"{reason}: call again with the same idempotency key")

    def _count_stored(self, known_as: tuple[KeyMode, str | None, str]) -> None:
        """Stripe replays a 5xx for a day: the next attempt needs another key, and the event's identifier guards the usage."""
        self._stored[known_as] = self._stored.pop(known_as, 0) + 1
        if len(self._stored) > STORED_MAX:
            del self._stored[next(iter(self._stored))]

    async def get_usage_summary(
        self,
        subscription_item_id: str,
        period_start: int | datetime,
        stripe_account: str | None = None,
        *,
        period_end: int | datetime | None = None,
        mode: KeyMode | None = None,
    ) -> Summary:
        """What Stripe's summary holds of an item in the period that begins at `period_start`.

        `period_end` is needed for a meter's period that is not the running one, since an item only knows that.
        `mode` is needed when the driver has both keys. Raises UsageRefused, TryLater; ValueError for a missing end.
        """
        if mode is None:
            if len(self._billings) > 1:
                raise ValueError("say which mode: this driver has a live key and a test key")
            [mode] = self._billings
        billing, cache = self._of(mode)
        start_s = unix_seconds(period_start)
        end_s = None if period_end is None else unix_seconds(period_end)
        destination = Destination(
            "meter", item=subscription_item_id, connect_account=stripe_account
        )
        destination, resolved = await self._resolve(cache, destination)
        assert resolved.customer is not None, "an item's subscription has one"
        if end_s is None and start_s == resolved.period_start_s:
            end_s = resolved.period_end_s
        if destination.driver == "usage_record":
            first_s, last_s = start_s, start_s + 1
        elif end_s is None:
            raise ValueError("give period_end: this is not the item's running period")
        else:
            first_s, last_s = _next_minute(start_s), end_s // 60 * 60
        if first_s >= last_s:
            raise ValueError("a period ends after it begins, and has a whole minute")
        found = await billing.read(resolved, resolved.customer, first_s, last_s, stripe_account)
        if isinstance(found, Unread):
            raise TryLater(
                found.reason, None if found.after_us is None else found.after_us / 1_000_000
            )
        return Summary(Decimal(found.units), start_s, end_s)

    async def create_test_clock(
        self, frozen_time: int | datetime, name: str | None = None
    ) -> TestClock:
        """A new test clock that stands at that time. Customers made with it live by it."""
        params: TestClockCreateParams = {"frozen_time": unix_seconds(frozen_time)}
        if name is not None:
            params["name"] = name
        return await self._clock("post", _CLOCKS, params)

    async def advance_test_clock(self, clock_id: str, frozen_time: int | datetime) -> TestClock:
        """The clock, once it stands at that time and Stripe has done what falls before it (invoices, renewals).

        Raises TryLater if that takes longer than CLOCK_WAIT_SECONDS; it goes on at Stripe meanwhile.
        """
        if not is_id(clock_id):
            raise ValueError(f"{clock_id!r} is no test clock (clock_...)")
        params: TestClockAdvanceParams = {"frozen_time": unix_seconds(frozen_time)}
        clock = await self._clock("post", f"{_CLOCKS}/{clock_id}/advance", params)
        with trio.move_on_after(CLOCK_WAIT_SECONDS):
            while clock.status == "advancing":
                await trio.sleep(CLOCK_POLL_SECONDS)
                clock = await self._clock("get", f"{_CLOCKS}/{clock_id}", {})
        if clock.status == "advancing":
            raise TryLater(f"test clock {clock_id} still advances after {CLOCK_WAIT_SECONDS} s")
        if clock.status != "ready":
            raise UsageRefused(f"test clock {clock_id} is {clock.status}: create another one")
        return clock

    async def _clock(
        self, method: Literal["get", "post"], path: str, params: Mapping[str, Any]
    ) -> TestClock:
        calls = self._calls.get("test")
        if calls is None:
            raise ValueError("test clocks need test_key")
        try:
            answer = await calls.call(method, path, params)
        except NotTaken as error:
            problem = read_problem(error.answer)
            if problem.status >= 500 or problem.status in {409, 429} or not problem.is_stripes:
                raise TryLater(f"Stripe: {problem.words()}") from None
            raise UsageRefused(f"Stripe: {problem.words()}") from None
        except WireFailure as failure:
            raise TryLater(str(failure)) from None
        clock = decode(answer.body, TestClock, path)
        if isinstance(clock, Unanswered):
            raise TryLater(clock.reason)
        return clock

    def _of(self, mode: KeyMode) -> tuple[StripeBilling, ResolutionCache]:
        if mode not in self._billings:
            raise ValueError(f"no {mode}_key was given")
        return self._billings[mode], self._caches[mode]

    async def _resolve(
        self, cache: ResolutionCache, destination: Destination
    ) -> tuple[Destination, Resolved]:
        """Where it goes: a meter, or for an item without one, usage records."""
        found = await cache.resolve(destination)
        if isinstance(found, Unresolved) and destination.item and not found.is_temporary:
            legacy = destination._replace(driver="usage_record")
            if isinstance(resolved := await cache.resolve(legacy), Resolved):
                return legacy, resolved
        if isinstance(found, Resolved):
            return destination, found
        if found.is_temporary:
            after_us = found.after_us
            raise TryLater(found.reason, None if after_us is None else after_us / 1_000_000)
        raise UsageRefused(found.reason)


def whole_units(quantity: int | Decimal | str) -> int:
    """A quantity as Stripe takes it: whole, at most 15 digits. Exact; raises TypeError for a float, else ValueError."""
    if isinstance(quantity, bool) or not isinstance(quantity, int | Decimal | str):
        raise TypeError(f"quantity is an int, Decimal or str, not {type(quantity).__name__}")
    if isinstance(quantity, str) and len(quantity) > 64:
        raise ValueError("quantity is longer than 64 characters")
    try:
        number = Decimal(quantity)
    except InvalidOperation:
        raise ValueError("quantity is no decimal number") from None
    if not number.is_finite() or (number and number.adjusted() >= UNITS_DIGITS_MAX):
        raise ValueError(f"quantity has at most {UNITS_DIGITS_MAX} digits")
    if number.as_tuple().exponent < -64 or number != int(number):  # type: ignore[operator]  # finite: an int
        raise ValueError("Stripe takes whole units only: scale the price and the quantity")
    return int(number)


def unix_seconds(time_: int | datetime) -> int:
    """Unix seconds of an instant; a part of a second is cut off. Raises ValueError for a datetime without a zone."""
    if isinstance(time_, datetime):
        if time_.tzinfo is None:
            raise ValueError("a datetime needs a time zone: which one do you mean?")
        return int(time_.timestamp())
    if isinstance(time_, bool) or not isinstance(time_, int):
        raise TypeError("a time is unix seconds as an int, or an aware datetime")
    return time_


def _next_minute(time_s: int) -> int:
    """The first whole minute that is not before."""
    return -(-time_s // 60) * 60


def _request(
    destination: Destination,
    resolved: Resolved,
    units: int,
    start_s: int,
    idempotency_key: str,
) -> PushRequest:
    is_meter = destination.driver == "meter"
    return PushRequest(
        driver=destination.driver,
        identifier=idempotency_key,
        value=str(units),
        timestamp_s=_next_minute(start_s) if is_meter else start_s,
        api_version=api_version(destination.driver),
        event_name=resolved.event_name,
        customer=resolved.customer if is_meter else None,
        customer_key=resolved.customer_key,
        value_key=resolved.value_key,
        item=None if is_meter else resolved.object_id,
        connect_account=destination.connect_account,
    )


__all__ = [
    "Recorded",
    "StripeBillingDriver",
    "Summary",
    "TestClock",
    "TryLater",
    "UsageRefused",
    "UsageUnknown",
]
