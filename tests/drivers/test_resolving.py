"""Resolving: from event, item or price to a meter, a customer and a period; and every reason why not, in words."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from engine.core.billing import Destination, Resolved, Unresolved
from engine.drivers.billing import StripeBilling
from engine.drivers.cached import RESOLVED_US, UNRESOLVED_US, ResolutionCache
from engine.drivers.calls import LEGACY_API_VERSION, LIBRARY_API_VERSION
from tests.drivers.fake_stripe import (
    KEY,
    Call,
    Reply,
    Silence,
    error_reply,
    fake_stripe,
    json_reply,
)

Objects = dict[str, Any]


def meter(meter_id: str = "mtr_1", event_name: str = "api_calls", **changed: Any) -> Objects:
    """A meter as Stripe shows it."""
    return {
        "id": meter_id,
        "object": "billing.meter",
        "event_name": event_name,
        "status": "active",
        "default_aggregation": {"formula": "sum"},
        "customer_mapping": {"type": "by_id", "event_payload_key": "who"},
        "value_settings": {"event_payload_key": "how_much"},
        "event_time_window": None,
        **changed,
    }


def price(**recurring: Any) -> Objects:
    """A metered price."""
    return {
        "id": "price_1",
        "object": "price",
        "currency": "usd",
        "recurring": {"usage_type": "metered", "interval": "month", "meter": "mtr_1", **recurring},
    }


def item(**changed: Any) -> Objects:
    """An item as newer API versions show it."""
    return {
        "id": "si_1",
        "object": "subscription_item",
        "subscription": "sub_1",
        "created": 50,
        "current_period_start": 100,
        "current_period_end": 200,
        "price": price(),
        **changed,
    }


def subscription(**changed: Any) -> Objects:
    """The item's subscription."""
    return {
        "id": "sub_1",
        "object": "subscription",
        "customer": "cus_1",
        "status": "active",
        **changed,
    }


WORLD: dict[str, Objects] = {
    "/v1/subscription_items/si_1": item(),
    "/v1/subscriptions/sub_1": subscription(),
    "/v1/prices/price_1": price(),
    "/v1/billing/meters/mtr_1": meter(),
    "/v1/customers/cus_1": {"id": "cus_1", "object": "customer"},
    "/v1/customers/cus_gone": {"id": "cus_gone", "object": "customer", "deleted": True},
}


def serving(world: dict[str, Objects], meters: list[Objects] | None = None) -> Any:
    """Answers from a dictionary; the list of meters comes one a page, so that pages are followed."""

    def answer(call: Call) -> Reply:
        if call.path == "/v1/billing/meters":
            found = [one for one in meters or [] if one["status"] == call.query["status"]]
            ids = [one["id"] for one in found]
            after = call.query.get("starting_after")
            first = ids.index(after) + 1 if after else 0
            page = found[first : first + 1]
            return json_reply({"data": page, "has_more": first + 1 < len(found)})
        if call.path in world:
            return json_reply(world[call.path])
        return error_reply(404, f"No such object: {call.path}", code="resource_missing")

    return answer


async def resolve(
    destination: Destination,
    meters: list[Objects] | None = None,
    **changed: Objects | None,
) -> Resolved | Unresolved:
    """Resolve in a world in which some paths' last part is changed."""
    world = {
        path: thing
        for path, known in WORLD.items()
        if (thing := changed.get(path.rpartition("/")[2], known)) is not None
    }
    async with (
        fake_stripe(serving(world, meters)) as fake,
        StripeBilling(KEY, api_base=fake.url) as billing,
    ):
        return await billing.resolve(destination)


BY_ITEM = Destination("meter", item="si_1")
BY_PRICE = Destination("meter", price="price_1", customer="cus_1")
BY_EVENT = Destination("meter", event_name="api_calls", customer="cus_1")
LEGACY = Destination("usage_record", item="si_1")
LEGACY_PRICE = price(meter=None)


async def test_an_item_is_its_meter_its_customer_and_its_running_period() -> None:
    assert await resolve(BY_ITEM) == Resolved(
        "mtr_1",
        "cus_1",
        "api_calls",
        "who",
        "how_much",
        "si_1",
        "price_1",
        "usd",
        100,
        200,
        50,
        api_version=LIBRARY_API_VERSION,
    )


async def test_an_older_version_keeps_the_period_on_the_subscription() -> None:
    found = await resolve(
        LEGACY,
        si_1=item(current_period_start=None, current_period_end=None, price=LEGACY_PRICE),
        sub_1=subscription(current_period_start=300, current_period_end=400),
    )
    assert found == Resolved(
        "si_1", "cus_1", item="si_1", price="price_1", currency="usd",
        period_start_s=300, period_end_s=400, item_created_s=50, api_version=LEGACY_API_VERSION,
    )  # fmt: skip


async def test_a_price_is_its_meter_and_the_customer_is_given() -> None:
    assert await resolve(BY_PRICE) == Resolved(
        "mtr_1",
        "cus_1",
        "api_calls",
        "who",
        "how_much",
        price="price_1",
        currency="usd",
        api_version=LIBRARY_API_VERSION,
    )


async def test_an_event_name_is_searched_for_on_all_pages() -> None:
    meters = [meter(f"mtr_{number}", f"other_{number}") for number in range(2, 6)]
    found = await resolve(BY_EVENT, [*meters, meter("mtr_9")])
    assert found == Resolved(
        "mtr_9", "cus_1", "api_calls", "who", "how_much", api_version=LIBRARY_API_VERSION
    )


async def test_an_active_meter_goes_before_an_archived_one_of_the_same_name() -> None:
    found = await resolve(BY_EVENT, [meter("mtr_8", status="inactive"), meter("mtr_9")])
    assert isinstance(found, Resolved)
    assert found.object_id == "mtr_9"


async def test_the_connected_account_is_asked() -> None:
    async with (
        fake_stripe(serving(WORLD)) as fake,
        StripeBilling(KEY, api_base=fake.url) as billing,
    ):
        await billing.resolve(BY_ITEM._replace(connect_account="acct_7"))
        assert {call.headers["stripe-account"] for call in fake.calls} == {"acct_7"}


@pytest.mark.parametrize(
    ("destination", "changed", "words", "is_stopped"),
    [
        (Destination("meter"), {}, "nothing says where usage goes", False),
        (Destination("meter", item="si_1/../x"), {}, "no id of Stripe's", False),
        (Destination("meter", price=".."), {}, "no id of Stripe's", False),
        (Destination("meter", price="price_1?x=y"), {}, "no id of Stripe's", False),
        (Destination("meter", price="gold-plan.v2"), {}, "price gold-plan.v2 is not at Stripe", False),
        (BY_ITEM._replace(connect_account="acct 1"), {}, "no account of Stripe's", False),
        (Destination("usage_record"), {}, "need a subscription item", False),
        (BY_ITEM, {"si_1": None}, "subscription item si_1 is not at Stripe", False),
        (BY_ITEM, {"sub_1": None}, "subscription sub_1 is not at Stripe", False),
        (BY_ITEM, {"mtr_1": None}, "meter mtr_1 is not at Stripe", False),
        (BY_ITEM, {"sub_1": subscription(status="canceled")}, "has ended (canceled)", True),
        (BY_ITEM, {"sub_1": subscription(status="incomplete_expired")}, "has ended", True),
        (BY_ITEM, {"si_1": item(price=LEGACY_PRICE)}, "`driver` of its mapping to `usage_record`", False),
        (BY_ITEM, {"si_1": item(price=price(usage_type="licensed"))}, "is not metered", False),
        (BY_ITEM, {"mtr_1": meter(status="inactive")}, "is archived: reactivate it", True),
        (BY_ITEM, {"mtr_1": meter(default_aggregation={"formula": "last"})}, "formula 'last'", False),
        (BY_ITEM, {"mtr_1": meter(default_aggregation={"formula": "count"})}, "formula 'count'", False),
        (BY_ITEM, {"mtr_1": meter(event_time_window="day")}, "event time window (day)", False),
        (BY_ITEM._replace(customer="cus_2"), {}, "belongs to cus_1, not to cus_2", False),
        (BY_ITEM._replace(event_name="other"), {}, "'api_calls', not 'other'", False),
        (LEGACY, {}, "is on the meter mtr_1: set `driver` of its mapping to `meter`", False),
        (LEGACY, {"si_1": item(price=price(meter=None, usage_type="licensed"))}, "not metered", False),
        (BY_PRICE._replace(price="price_2"), {}, "price price_2 is not at Stripe", False),
        (BY_PRICE, {"cus_1": None}, "customer cus_1 is not at Stripe", False),
        (BY_PRICE._replace(customer="cus_gone"), {}, "customer cus_gone was deleted", True),
        (BY_EVENT, {}, "no meter has the event name 'api_calls': create one", False),
    ],
)  # fmt: skip
async def test_what_can_not_be_pushed_to_says_why_and_what_to_do(
    destination: Destination, changed: dict[str, Any], words: str, is_stopped: bool
) -> None:
    found = await resolve(destination, **changed)
    assert isinstance(found, Unresolved)
    assert words in found.reason
    assert (found.is_stopped, found.is_temporary) == (is_stopped, False)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (meter(status="inactive"), "archived"),
        (meter(event_time_window="hour"), "event time window"),
        (meter(default_aggregation={"formula": "last"}), "formula"),
    ],
)
async def test_a_meter_found_by_its_event_name_is_looked_at_as_well(
    wrong: Objects, words: str
) -> None:
    found = await resolve(BY_EVENT, [wrong])
    assert isinstance(found, Unresolved)
    assert words in found.reason


@pytest.mark.parametrize(
    "reply",
    [
        Silence(ends=True),
        error_reply(500, "boom"),
        error_reply(429, "slow down", Retry_After="9"),
        Reply(200, b"<html>"),
        Reply(200, b'{"id": 7}'),
        Reply(404, b"<html>not here</html>"),
    ],
    ids=range(6),
)
@pytest.mark.parametrize("destination", [BY_ITEM, BY_PRICE, BY_EVENT, LEGACY], ids=range(4))
async def test_what_could_not_be_asked_is_asked_again(
    destination: Destination, reply: Reply | Silence
) -> None:
    async with (
        fake_stripe(lambda _: reply) as fake,
        StripeBilling(KEY, api_base=fake.url) as billing,
    ):
        found = await billing.resolve(destination)
        assert isinstance(found, Unresolved)
        assert found.is_temporary
        if isinstance(reply, Reply) and reply.status == 429:
            assert found.after_us == 9_000_000


# The cache.


class Asked:
    """Stands in for a Billing that answers from a list, and counts."""

    def __init__(self, *answers: Resolved | Unresolved) -> None:
        self.answers = list(answers)
        self.count = 0
        self.may_answer = trio.Event()
        self.may_answer.set()

    async def resolve(self, destination: Destination) -> Resolved | Unresolved:
        assert isinstance(destination, Destination)
        self.count += 1
        answer = self.answers[min(self.count, len(self.answers)) - 1]
        await self.may_answer.wait()
        return answer


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000_000

    def __call__(self) -> int:
        return self.now


KNOWN = Resolved("mtr_1", "cus_1", event_name="api_calls", item="si_1")


def cache_of(asked: Asked, clock: Clock, entries_max: int = 10) -> ResolutionCache:
    """A cache over it."""
    return ResolutionCache(asked, clock, entries_max)  # type: ignore[arg-type]  # only `resolve` is called


async def test_what_is_known_is_asked_once_until_an_hour_has_passed() -> None:
    asked, clock = Asked(KNOWN), Clock()
    cache = cache_of(asked, clock)
    for _ in range(3):
        assert await cache.resolve(BY_ITEM) == KNOWN
    assert asked.count == 1
    clock.now += RESOLVED_US - 1
    await cache.resolve(BY_ITEM)
    assert asked.count == 1
    clock.now += 1
    await cache.resolve(BY_ITEM)
    assert asked.count == 2


async def test_what_is_known_of_an_item_ends_with_its_period() -> None:
    asked, clock = Asked(KNOWN._replace(period_start_s=900, period_end_s=1_070)), Clock()
    cache = cache_of(asked, clock)
    await cache.resolve(BY_ITEM)
    clock.now = 1_070_000_000 - 1
    await cache.resolve(BY_ITEM)
    assert asked.count == 1
    clock.now = 1_070_000_000
    await cache.resolve(BY_ITEM)
    assert asked.count == 2


async def test_a_period_that_has_ended_already_is_not_asked_about_at_every_push() -> None:
    asked, clock = Asked(KNOWN._replace(period_start_s=1, period_end_s=2)), Clock()
    cache = cache_of(asked, clock)
    for _ in range(3):
        await cache.resolve(BY_ITEM)
    assert asked.count == 1
    clock.now += UNRESOLVED_US
    await cache.resolve(BY_ITEM)
    assert asked.count == 2


async def test_what_can_not_be_pushed_to_is_kept_a_minute_and_what_could_not_be_asked_not_at_all() -> (
    None
):
    asked, clock = Asked(Unresolved("x", is_temporary=True), Unresolved("y"), KNOWN), Clock()
    cache = cache_of(asked, clock)
    assert await cache.resolve(BY_ITEM) == Unresolved("x", is_temporary=True)
    assert await cache.resolve(BY_ITEM) == Unresolved("y")
    assert await cache.resolve(BY_ITEM) == Unresolved("y")
    clock.now += UNRESOLVED_US
    assert await cache.resolve(BY_ITEM) == KNOWN


async def test_the_cache_is_bounded_and_the_least_used_goes_first() -> None:
    asked = Asked(KNOWN)
    cache = cache_of(asked, Clock(), entries_max=2)
    await cache.resolve(BY_ITEM)
    await cache.resolve(BY_PRICE)
    await cache.resolve(BY_ITEM)
    await cache.resolve(BY_EVENT)
    assert len(cache) == 2
    assert cache.known(BY_PRICE) is None
    assert cache.known(BY_ITEM) == KNOWN


async def test_a_refusal_makes_it_ask_anew() -> None:
    asked = Asked(KNOWN)
    cache = cache_of(asked, Clock())
    await cache.resolve(BY_ITEM)
    cache.forget(BY_ITEM)
    await cache.resolve(BY_ITEM)
    cache.forget_naming("mtr_1")
    await cache.resolve(BY_ITEM)
    cache.forget_naming("cus_other")
    await cache.resolve(BY_ITEM)
    assert asked.count == 3


@pytest.mark.parametrize("by_name", [False, True])
async def test_an_answer_that_was_asked_for_before_a_refusal_is_not_kept(by_name: bool) -> None:
    asked = Asked(KNOWN)
    asked.may_answer = trio.Event()
    cache = cache_of(asked, Clock())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.resolve, BY_ITEM)
        await trio.testing.wait_all_tasks_blocked()
        if by_name:
            cache.forget_naming("cus_1")
        else:
            cache.forget(BY_ITEM)
        asked.may_answer.set()
    assert cache.known(BY_ITEM) is None
    await cache.resolve(BY_ITEM)
    assert cache.known(BY_ITEM) == KNOWN


async def test_many_who_want_the_same_ask_once() -> None:
    asked = Asked(KNOWN)
    asked.may_answer = trio.Event()
    cache = cache_of(asked, Clock())
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(cache.resolve, BY_ITEM)
        await trio.testing.wait_all_tasks_blocked()
        asked.may_answer.set()
    assert asked.count == 1


async def test_who_waits_asks_when_the_one_who_asked_is_cancelled() -> None:
    asked = Asked(KNOWN)
    asked.may_answer = trio.Event()
    cache = cache_of(asked, Clock())
    first = trio.CancelScope()

    async def ask_first() -> None:
        with first:
            await cache.resolve(BY_ITEM)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(cache.resolve, BY_ITEM)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        asked.may_answer.set()
    assert asked.count == 2
    assert cache.known(BY_ITEM) == KNOWN
