"""The price book: one asks for all, what is kept for how long, what is said when Stripe is slow, down or has nothing."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from engine.actors import price_book
from engine.actors.price_book import (
    ASK_SECONDS_MAX,
    FRESH_US,
    ITEM_FRESH_US,
    MISSING_FRESH_US,
    RETRY_US,
    KnownPrice,
    NoPrice,
    PriceBook,
)
from engine.actors.push_connections import Connection
from engine.core.billing import Destination, PricedItem, Proven, Resolved, Unread
from engine.core.configured import Change, Customer, CustomerChange, Mapping, MappingChange
from engine.core.push_routes import PushRoutes
from engine.core.registry import Registry
from engine.core.rules import Rules
from tests.helpers.push_place import VirtualClock

BY = Change(actor="test")
DOWN = Unread("Stripe is down")
GONE = Unread("price price_1 is not at Stripe", is_missing=True)


def price(cents: int, currency: str = "usd") -> dict[str, object]:
    return {"id": "price_1", "currency": currency, "unit_amount": cents}


class FakeBilling:
    """Answers as a test says, and counts what it was asked."""

    def __init__(self) -> None:
        self.says: Any = price(7)
        self.item_says: Any = PricedItem("price_1", "usd", "cus_1")
        self.asked: list[tuple[str, str | None]] = []
        self.seconds = 0.0

    async def price(self, price_id: str, currency: str | None, _account: str | None) -> Any:
        self.asked.append((price_id, currency))
        await trio.sleep(self.seconds)
        return self.says

    async def priced_item(self, item: str, _account: str | None) -> Any:
        self.asked.append((item, None))
        await trio.sleep(self.seconds)
        return self.item_says


class Place:
    """A book over a registry and one connection."""

    def __init__(self, **mapping: Any) -> None:
        self.clock = VirtualClock()
        self.billing = FakeBilling()
        self.connection = Connection("main", cast("Any", self.billing), self.clock, Random(1))
        self.connection.proven = Proven("acct_1", "test")
        self.registry = Registry()
        fields = {"price_id": "price_1"} | mapping
        made = Mapping(id="map_1", tenant_id="acme", metric="calls", **fields)
        self.routes, self.rules = PushRoutes(), Rules()
        self.fold(MappingChange(mapping=made, change=BY))
        push = SimpleNamespace(connections={"main": self.connection})
        meter = SimpleNamespace(
            registry=self.registry,
            rules=self.rules,
            clock=self.clock,
            push=SimpleNamespace(routes=self.routes),
            started=SimpleNamespace(push=push),
        )
        self.book = PriceBook(cast("Any", meter))

    def fold(self, record: MappingChange | CustomerChange) -> None:
        self.registry.fold(record)
        self.routes.fold(record)
        self.rules.apply(record)

    def subscribe(self, ref: str, item: str) -> None:
        customer = Customer(tenant_id="acme", customer_ref=ref, subscription_items={"calls": item})
        self.fold(CustomerChange(customer=customer, change=BY))

    async def known(self, ref: str = "anna") -> KnownPrice:
        found = await self.book.price_of("acme", "calls", ref, 0)
        assert isinstance(found, KnownPrice), found
        return found

    async def reason(self, ref: str = "anna") -> str:
        found = await self.book.price_of("acme", "calls", ref, 0)
        assert isinstance(found, NoPrice), found
        return found.reason

    def wait(self, us: int) -> None:
        self.clock.start_us += us


async def test_many_who_want_the_same_ask_once(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = Place()
    place.billing.seconds = 1
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(place.known)
    assert place.billing.asked == [("price_1", None)]


async def test_whoever_asked_may_go_away_and_another_one_asks(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = Place()
    place.billing.seconds = 1
    found: list[KnownPrice] = []
    async with trio.open_nursery() as nursery:

        async def impatient() -> None:
            with trio.move_on_after(0.5):
                await place.known()

        async def patient() -> None:
            await trio.sleep(0.1)
            found.append(await place.known())

        nursery.start_soon(impatient)
        nursery.start_soon(patient)
    assert len(found) == 1
    assert len(place.billing.asked) == 2


async def test_a_price_is_asked_for_again_when_it_is_an_hour_old() -> None:
    place = Place()
    assert (await place.known()).config.unit_price == Decimal("0.07")
    place.billing.says = price(9)
    place.wait(FRESH_US - 1_000_000)
    assert (await place.known()).config.unit_price == Decimal("0.07")
    place.wait(1_000_000)
    assert (await place.known()).config.unit_price == Decimal("0.09")


async def test_while_stripe_is_down_it_is_the_last_known_and_asked_for_now_and_then() -> None:
    place = Place()
    first = await place.known()
    place.billing.says = DOWN
    place.wait(FRESH_US)
    for _ in range(3):
        later = await place.known()
        assert (later.config, later.read_at_us) == (first.config, first.read_at_us)
        assert later.stale_because == "Stripe is down"
    assert len(place.billing.asked) == 2, "not each time"
    place.wait(RETRY_US)
    place.billing.says = price(9)
    assert (await place.known()).stale_because is None


async def test_what_is_gone_is_not_the_last_known() -> None:
    place = Place()
    await place.known()
    place.billing.says = GONE
    place.wait(FRESH_US)
    assert "is not at Stripe" in await place.reason()
    place.billing.says = DOWN
    place.wait(MISSING_FRESH_US)
    assert "the price is not known" in await place.reason()
    place.billing.says = price(9)
    place.wait(RETRY_US)
    await place.known()


async def test_a_slow_stripe_is_not_waited_for(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = Place()
    place.billing.seconds = ASK_SECONDS_MAX + 1
    began = trio.current_time()
    assert f"within {ASK_SECONDS_MAX} s" in await place.reason()
    assert trio.current_time() - began == pytest.approx(ASK_SECONDS_MAX)
    for number in range(50):
        place.subscribe(f"c{number}", f"si_{number}")
        assert f"within {ASK_SECONDS_MAX} s" in await place.reason(f"c{number}")
    assert trio.current_time() - began == pytest.approx(ASK_SECONDS_MAX), "one waited for all"
    place.billing.seconds = 0
    place.wait(RETRY_US)
    await place.known("c1")


async def test_a_key_that_is_not_proven_and_an_open_breaker_ask_nobody() -> None:
    place = Place()
    place.connection.proven = None
    assert "whose key it is" in await place.reason()
    place.connection.proven = Proven("acct_1", "test")
    pace = place.connection.pace(None)
    for _ in range(9):
        pace.breaker.failed(place.clock.now_us(), "an outage")
    place.wait(RETRY_US)
    pace.breaker.failed(place.clock.now_us(), "an outage")
    assert "an outage" in await place.reason()
    assert place.billing.asked == []


async def test_a_customers_item_is_followed_to_its_price_and_currency() -> None:
    place = Place(currency="EUR")
    place.subscribe("anna", "si_1")
    place.billing.item_says = PricedItem("price_9", "usd", "cus_1")
    found = await place.known()
    assert (found.source, found.price_id, found.item) == ("subscriptionItem", "price_9", "si_1")
    assert place.billing.asked == [("si_1", None), ("price_9", "usd")]
    place.billing.item_says = PricedItem("price_8", "usd", "cus_1")
    place.wait(ITEM_FRESH_US)
    assert (await place.known()).price_id == "price_8", "the plan was changed"
    place.billing.item_says = DOWN
    place.wait(ITEM_FRESH_US)
    later = await place.known()
    assert (later.price_id, later.stale_because) == ("price_8", "Stripe is down")


async def test_what_the_pusher_resolved_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Place()
    place.subscribe("anna", "si_1")
    resolved = Resolved("mtr_1", "cus_1", item="si_1", price="price_5", currency="usd")
    known: Callable[[Destination], Any] = {Destination("meter", item="si_1"): resolved}.get
    monkeypatch.setattr(place.connection, "known", known)
    assert (await place.known()).price_id == "price_5"
    assert place.billing.asked == [("price_5", "usd")]


async def test_the_mappings_currency_chooses_the_prices_option() -> None:
    place = Place(currency="eur")
    place.billing.says = price(7) | {"currency_options": {"eur": {"unit_amount": 6}}}
    found = await place.known()
    assert (found.config.currency, found.config.unit_price) == ("EUR", Decimal("0.06"))
    other = Place(currency="gbp")
    assert "has no GBP" in await other.reason()


async def test_a_price_that_has_no_counterpart_here_is_a_reason() -> None:
    place = Place()
    place.billing.says = price(7) | {"custom_unit_amount": {}}
    assert "can't be computed here" in await place.reason()


async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price_book, "KEPT_MAX", 3)
    place = Place()
    for number in range(6):
        place.subscribe(f"c{number}", f"si_{number}")
        await place.known(f"c{number}")
    assert len(place.book._kept) == 3


async def test_a_clock_that_stepped_back_keeps_no_answer_for_ever() -> None:
    place = Place()
    await place.known()
    place.wait(-10 * FRESH_US)
    await place.known()
    assert len(place.billing.asked) == 2
