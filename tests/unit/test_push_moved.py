"""Use that was moved within a period: its new place waits until what was pushed at the old one is taken back."""

from __future__ import annotations

from typing import Any

from engine.core.billing import Destination, Proven, Resolved, Unresolved
from engine.core.push_ledger import PushLedger
from engine.core.push_records import Lane, PushDecision, Target
from tests.helpers.push_world import ANNA, BOB, World, shared, use
from tests.helpers.pushing import (
    AUGUST,
    DAY_US,
    JULY,
    NOON,
    SEPTEMBER,
    UNIT,
    baseline,
    customer,
    mapped,
)


def test_what_was_moved_waits_until_what_was_pushed_where_it_was_is_taken_back() -> None:
    """Else both would be billed until somebody mends what is in the way, which need not be before the invoice."""
    item: Any = {"stripe_customer_id": "cus_1", "subscription_items": {"calls": "si_1"}}
    world = shared(customer("bob", **item))
    world.known["si_1"] = Unresolved("it is gone", is_stopped=True)
    world.take(ANNA, use(5))
    world.book.fold(baseline(of=world.only().target))
    world.book.push(world.only())
    world.fold(mapped(NOON, "move", meter_event_name="new"))
    world.take(BOB, use(2))
    world.take(ANNA, use(9))
    assert _planned(world) == {"mtr_calls": ("held", -5), "mtr_new": ("held", 9)}
    world.take(BOB)
    assert _planned(world) == {"mtr_calls": ("due", -5), "mtr_new": ("held", 9)}
    world.book.push(world.view(_july("mtr_calls")))
    assert _planned(world) == {"mtr_calls": ("current", 0), "mtr_new": ("due", 9)}
    world.take(BOB, use(2))
    assert _planned(world)["mtr_new"] == ("due", 9), "nothing is left there"


def test_what_was_moved_waits_for_a_push_under_way_where_it_was_and_not_for_a_customer_who_is_gone() -> (
    None
):
    world = shared()
    world.take(ANNA, use(5))
    world.book.fold(baseline(of=world.only().target))
    world.book.intend(world.only())
    world.fold(mapped(NOON, "move", meter_event_name="new"))
    world.take(ANNA, use(9))
    assert _planned(world) == {"mtr_calls": ("in_flight", 0), "mtr_new": ("held", 9)}
    stop = PushDecision(kind="stop", actor="k", lane=_july("mtr_calls").lane, because="gone")
    world.fold(stop)
    assert _planned(world)["mtr_new"] == ("due", 9), "nobody bills that customer any more"


def test_what_was_moved_from_where_stripe_can_not_say_waits_for_what_was_pushed_there() -> None:
    world = shared()
    world.take(ANNA, use(5))
    world.book.fold(baseline(of=world.only().target))
    world.book.push(world.only())
    world.fold(mapped(NOON, "move", meter_event_name="new"))
    old = Destination("meter", event_name="calls")
    for known, why in (
        (None, "not been asked yet"),
        (Unresolved("it is archived", is_stopped=True), "mtr_calls of cus_1"),
    ):
        world.known["calls"] = known
        world.totals.resolved("main", old)
        world.take(ANNA, use(9))
        (new,) = world.totals.targets
        planned = world.book.planned(world.view(new))
        assert (new.lane.object_id, planned.standing, planned.due) == ("mtr_new", "held", 9)
        assert why in str(planned.reason)
    world.book.fold(baseline(0, of=_july("mtr_calls")))
    assert _planned(world) == {"mtr_new": ("due", 9)}
    again = PushLedger.restore(world.book.ledger.state())
    assert again.pushed_of("acme", "calls", _july("mtr_calls").lane, JULY) == [_july("mtr_calls")]


def test_what_was_moved_does_not_wait_for_what_another_account_holds_of_a_customer_of_that_name() -> (
    None
):
    """Nothing takes back there what was pushed with a key, or to the simulator, that is not in use any more."""
    world = shared()
    world.proven["main"] = Proven("acct_sim1", "sim")
    world.take(ANNA, use(5))
    world.book.fold(baseline(of=world.only().target))
    world.book.push(world.only())
    world.proven["main"] = Proven("acct_1", "test")
    world.known["calls"] = Unresolved("there is no such meter", is_stopped=True)
    world.take(ANNA, use(5))
    world.fold(mapped(NOON, "move", meter_event_name="new"))
    world.take(ANNA, use(9))
    assert _planned(world) == {"mtr_new": ("due", 9)}


def test_what_was_moved_from_an_item_waits_until_stripe_says_whose_it_was() -> None:
    world = World(mapped(), customer(subscription_items={"calls": "si_1"}))
    world.known["si_1"] = Resolved("mtr_calls", "cus_1", item="si_1")
    world.known["si_2"] = Resolved("mtr_new", "cus_1", item="si_2")
    world.take(ANNA, use(5))
    world.book.fold(baseline(of=world.only().target))
    world.book.push(world.only())
    world.fold(customer("anna", NOON, "move", subscription_items={"calls": "si_2"}))
    for known, reason in ((None, "not been asked yet"), (world.known["si_1"], "of cus_1")):
        world.known["si_1"] = known
        world.totals.resolved("main", Destination("meter", item="si_1"))
        world.take(ANNA, use(9))
        new = next(one for one in world.totals.targets if one.lane.object_id == "mtr_new")
        planned = world.book.planned(world.view(new))
        assert (planned.standing, planned.due) == ("held", 9)
        assert reason in str(planned.reason)


def test_what_was_moved_from_usage_records_waits_until_the_items_total_is_set_back() -> None:
    legacy: Any = {"driver": "usage_record", "meter_event_name": None}
    world = World(
        mapped(subscription_item_id="si_1", **legacy), customer(stripe_customer_id="cus_1")
    )
    world.known["si_1"] = Resolved("si_1", "cus_1", item="si_1")
    world.take(ANNA, use(5))
    world.book.fold(baseline(of=world.only().target))
    world.book.push(world.only())
    world.fold(mapped(NOON, "move", meter_event_name="new"))
    world.take(ANNA, use(9))
    assert _planned(world) == {"si_1": ("due", -5), "mtr_new": ("held", 9)}
    old = next(one for one in world.totals.targets if one.lane.object_id == "si_1")
    assert world.book.push(world.view(old)).request.value == "0", "the total that it sets"
    assert _planned(world) == {"si_1": ("current", 0), "mtr_new": ("due", 9)}


def test_what_a_person_carried_into_the_next_period_does_not_wait_for_the_one_before() -> None:
    world = shared()
    world.take(ANNA, use(5))
    world.book.fold(baseline(of=world.only().target))
    world.book.push(world.only())
    world.fold(mapped(NOON, "move", meter_event_name="new"))
    new = _july("mtr_new")
    carry = PushDecision(
        kind="carry",
        actor="k",
        target=new,
        into="current",
        units="9",
        at_us=AUGUST,
        until_us=SEPTEMBER,
    )
    world.fold(carry)
    world.take(ANNA, use(9))
    owed = Target(new.lane, new.scale, AUGUST, SEPTEMBER)
    planned = world.book.planned(world.view(owed), now_us=AUGUST + DAY_US)
    assert (planned.standing, planned.due) == ("due", 9)


def test_where_many_were_moved_from_is_looked_at_once_and_not_once_for_each() -> None:
    """Each look adds up all who were there: a team of thousands would stop the server for seconds, at each push."""
    refs = [f"user-{number}" for number in range(50)]
    world = World(mapped(), *(customer(ref, stripe_customer_id="cus_1") for ref in refs))
    world.fold(mapped(NOON, "move", meter_event_name="new"))
    for ref in refs:
        world.take(("acme", "calls", ref), use(1))
    looks: list[Target] = []
    holds_more = world.totals._holds_more
    world.totals._holds_more = lambda of: bool(looks.append(of)) or holds_more(of)  # type: ignore[method-assign]
    assert world.view(_july("mtr_new")).local_micros == len(refs) * UNIT
    assert looks == [_july("mtr_calls")]


def _planned(world: World) -> dict[str, tuple[str, int]]:
    found = {}
    for one in world.totals.targets:
        planned = world.book.planned(world.view(one))
        found[one.lane.object_id] = (planned.standing, planned.due)
    return found


def _july(object_id: str) -> Target:
    return Target(Lane("acct_1", "test", object_id, "cus_1"), "1", JULY, AUGUST)
