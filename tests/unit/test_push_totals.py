"""Push totals: what each target's own use comes to, whoever contributes and in whatever order it is taken in."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.billing import Destination, PushRequest, Resolved, Unresolved
from engine.core.push_ledger import ROWS_FEW, ROWS_US, PushLedger
from engine.core.push_plan import plan
from engine.core.push_records import Lane, PushDecision, Target, series_digest
from engine.core.push_uses import PeriodUse
from engine.core.shard_state import Series
from tests.helpers.push_world import ANNA, BOB, World, frozen, shared, use
from tests.helpers.pushing import (
    AUGUST,
    DAY_US,
    JULY,
    JUNE,
    NOON,
    SEPTEMBER,
    UNIT,
    baseline,
    customer,
    mapped,
    view,
)


def test_all_customers_of_one_stripe_customer_share_its_target() -> None:
    world = shared()
    changed = world.take(ANNA, use(3), use(1, JUNE)) | world.take(BOB, use(4))
    assert world.locals() == {
        ("mtr_calls", "cus_1", JULY): 7 * UNIT,
        ("mtr_calls", "cus_1", JUNE): UNIT,
    }
    july = Target(Lane("acct_1", "test", "mtr_calls", "cus_1"), "1", JULY, AUGUST)
    assert july in changed
    assert set(world.totals.series_of(july)) == {ANNA, BOB}
    assert [part.micros for part in world.totals.contributions(ANNA)] == [3 * UNIT, UNIT]


def test_only_targets_that_changed_are_named() -> None:
    world = shared()
    world.take(ANNA, use(3), use(1, JUNE))
    assert world.take(ANNA, use(3), use(1, JUNE)) == set()
    assert {one.start_us for one in world.take(ANNA, use(4), use(1, JUNE))} == {JULY}
    assert {one.start_us for one in world.take(ANNA, use(4))} == {JUNE}
    assert {one.start_us for one in world.take(ANNA)} == {JULY}
    assert world.locals() == {}


def test_sums_hold_remainders_until_they_are_whole_and_go_beyond_int64() -> None:
    world = shared()
    world.take(ANNA, use(micros=600_000))
    world.take(BOB, use(micros=400_000 + 10**30))
    assert world.only().local_micros == 1_000_000 + 10**30


def test_whoever_came_first_the_same_series_speaks_for_the_target() -> None:
    seats: Series = ("acme", "seats", "anna")
    both = mapped(id="map_2", metric="seats")
    one, other = shared(both), shared(both)
    for world, order in ((one, (ANNA, seats)), (other, (seats, ANNA))):
        for series in order:
            world.take(series, use(3))
    assert one.only() == other.only()
    assert one.only().metric == "calls"


# Cutovers.


def test_a_change_at_the_next_period_leaves_the_running_one() -> None:
    world = shared(mapped(NOON, meter_event_name="new"))
    world.take(ANNA, use(3), use(5, AUGUST))
    assert world.locals() == {
        ("mtr_calls", "cus_1", JULY): 3 * UNIT,
        ("mtr_new", "cus_1", AUGUST): 5 * UNIT,
    }


def test_to_move_takes_all_from_the_old_target_and_gives_it_to_the_new() -> None:
    world = shared(mapped(NOON, "move", meter_event_name="new"))
    world.take(ANNA, use(9))
    assert world.locals() == {("mtr_calls", "cus_1", JULY): 0, ("mtr_new", "cus_1", JULY): 9 * UNIT}


def test_to_move_after_a_carry_takes_all_from_both() -> None:
    later = NOON + DAY_US
    world = shared(frozen(ANNA, 4 * UNIT), mapped(NOON, "carry", meter_event_name="new"))
    world.fold(mapped(later, "move", meter_event_name="last"))
    world.take(ANNA, use(9))
    found = {name: micros for (name, *_), micros in world.locals().items()}
    assert found == {"mtr_calls": 0, "mtr_new": 0, "mtr_last": 9 * UNIT}


def test_to_carry_leaves_the_old_target_what_it_had_and_the_new_one_gets_the_rest() -> None:
    world = shared(frozen(ANNA, 4_500_000), mapped(NOON, "carry", meter_event_name="new"))
    for micros in (4_500_000, 9_000_000, 10**25):
        world.take(ANNA, use(micros=micros))
        old, new = (world.locals()[name, "cus_1", JULY] for name in ("mtr_calls", "mtr_new"))
        assert (old, old + new) == (4_500_000, micros)


def test_who_had_used_nothing_at_the_cutover_is_all_the_new_targets() -> None:
    world = shared(frozen(ANNA, 4 * UNIT), mapped(NOON, "carry", meter_event_name="new"))
    world.take(BOB, use(6))
    assert world.locals() == {("mtr_calls", "cus_1", JULY): 0, ("mtr_new", "cus_1", JULY): 6 * UNIT}


def test_two_carries_back_and_forth_add_up_to_the_whole() -> None:
    later = NOON + DAY_US
    world = shared(
        frozen(ANNA, 4 * UNIT),
        mapped(NOON, "carry", meter_event_name="new"),
        frozen(ANNA, 7 * UNIT, later),
        mapped(later, "carry"),
    )
    world.take(ANNA, use(12))
    assert world.locals() == {
        ("mtr_calls", "cus_1", JULY): 9 * UNIT,
        ("mtr_new", "cus_1", JULY): 3 * UNIT,
    }


def test_a_carry_to_a_route_that_turns_out_to_be_the_same_target_adds_up() -> None:
    """From an event name to the item on that event's meter: one target, and both shares are its."""
    world = shared(frozen(ANNA, 4 * UNIT))
    world.known["si_1"] = Resolved("mtr_calls", "cus_1", event_name="calls", item="si_1")
    item: Any = {"stripe_customer_id": "cus_1", "subscription_items": {"calls": "si_1"}}
    world.fold(customer(from_us=NOON, cutover="carry", **item))
    world.take(ANNA, use(10))
    assert world.locals() == {("mtr_calls", "cus_1", JULY): 10 * UNIT}
    assert world.only().resolved.item == "si_1"


def test_a_change_of_scale_is_another_target_of_the_same_lane() -> None:
    world = shared(frozen(ANNA, 4 * UNIT), mapped(NOON, "carry", stripe_scale="1000"))
    world.take(ANNA, use(5))
    by_scale = {one.scale: world.view(one).local_micros for one in world.totals.targets}
    assert by_scale == {"1": 4 * UNIT, "1000": UNIT}
    assert len({one.lane for one in world.totals.targets}) == 1


# Roles, and what is held.


def test_shadow_use_goes_to_a_target_of_its_own_and_mains_is_held_meanwhile() -> None:
    world = shared(mapped(shadow=True, shadow_meter_event_name="try"))
    world.take(ANNA, use(5))
    found = {one.lane.account: world.view(one) for one in world.totals.targets}
    assert {account: seen.role for account, seen in found.items()} == {
        "acct_1": "main",
        "acct_t": "shadow",
    }
    assert found["acct_1"].hold == "its mapping is not active"
    assert found["acct_t"].hold is None


def test_a_deactivated_mapping_stays_in_the_totals_and_is_held() -> None:
    world = shared()
    world.take(ANNA, use(5))
    world.fold(mapped(active=False))
    assert world.take(ANNA, use(6))
    assert (world.only().local_micros, world.only().hold) == (6 * UNIT, "its mapping is not active")
    world.fold(mapped())
    world.take(ANNA, use(6))
    assert world.only().hold is None


def test_one_who_lost_the_stripe_customer_holds_the_target_and_stays_in_it() -> None:
    world = shared()
    world.take(ANNA, use(5))
    world.take(BOB, use(2))
    world.fold(customer("bob", NOON))
    world.take(BOB, use(3))
    assert world.only().local_micros == 8 * UNIT
    assert "no Stripe customer any more" in str(world.only().hold)


def test_an_item_of_another_customer_or_with_another_period_is_held() -> None:
    item: Any = {"subscription_items": {"calls": "si_1"}}
    world = World(mapped(), customer(stripe_customer_id="cus_1", **item))
    july_s, august_s = JULY // UNIT, AUGUST // UNIT

    def hold(period: tuple[int, int], owner: str = "cus_1", at: int = JULY) -> str | None:
        world.known["si_1"] = Resolved(
            "mtr_1", owner, item="si_1", period_start_s=period[0], period_end_s=period[1]
        )
        world.totals.resolved("main", Destination("meter", item="si_1"))
        world.take(ANNA, use(1, at))
        return world.only().hold

    assert hold((july_s, august_s)) is None
    assert hold((july_s + 999, august_s)) is None, "an item that began within the period"
    assert hold((august_s, august_s + 999)) is None, "over at Stripe too"
    assert "belongs to cus_9" in str(hold((july_s, august_s), "cus_9"))
    assert "not begun" in str(hold((july_s, august_s), at=AUGUST))
    assert "billingAnchor" in str(hold((july_s - 999, august_s)))
    assert "billingAnchor" in str(hold((july_s, august_s - 999)))


def test_an_item_says_whose_use_it_is() -> None:
    world = World(mapped(), customer(subscription_items={"calls": "si_1"}))
    world.known["si_1"] = Resolved("mtr_1", "cus_5", item="si_1")
    world.take(ANNA, use(1))
    assert world.locals() == {("mtr_1", "cus_5", JULY): UNIT}


# What is not known.


def test_what_is_not_known_yet_contributes_nothing_and_no_target_may_decrease() -> None:
    world = shared()
    world.take(ANNA, use(5))
    assert world.only().may_decrease
    item: Any = {"stripe_customer_id": "cus_1", "subscription_items": {"calls": "si_1"}}
    world.fold(customer("bob", **item))
    world.known["si_1"] = None
    world.take(BOB, use(2))
    assert (world.only().local_micros, world.only().may_decrease) == (5 * UNIT, False)
    assert world.totals.is_waiting(BOB)
    assert not world.totals.is_everything_resolved
    ((role, destination),) = world.totals.unresolved()
    assert (role, destination.item) == ("main", "si_1")
    world.known["si_1"] = Resolved("mtr_calls", "cus_1", item="si_1")
    assert world.totals.resolved(role, destination) == {BOB}
    assert world.totals.is_waiting(BOB), "its use is in no target until it is taken in again"
    assert not world.only().may_decrease
    world.take(BOB, use(2))
    assert not world.totals.is_waiting(BOB)
    assert (world.only().local_micros, world.only().may_decrease) == (7 * UNIT, True)
    assert world.totals.resolved(role, destination) == {BOB}, (
        "who is routed by it, should it change"
    )


def test_use_that_lost_its_destination_for_good_decreases_nothing_where_it_may_have_been() -> None:
    world = shared()
    item: Any = {"stripe_customer_id": "cus_1", "subscription_items": {"calls": "si_1"}}
    world.fold(customer("bob", **item), customer("eve", stripe_customer_id="cus_2"))
    world.known["si_1"] = Unresolved("it is gone", is_stopped=True)
    world.take(BOB, use(2))
    world.take(ANNA, use(5), use(1, JUNE))
    world.take(("acme", "calls", "eve"), use(5))
    may = {
        (one.lane.customer, one.start_us): world.view(one).may_decrease
        for one in world.totals.targets
    }
    assert may == {("cus_1", JULY): False, ("cus_1", JUNE): True, ("cus_2", JULY): True}
    assert world.totals.unroutable[BOB] == "it is gone"
    world.take(BOB)
    assert all(world.view(one).may_decrease for one in world.totals.targets)
    assert BOB not in world.totals.unroutable


@pytest.mark.parametrize("is_temporary", [True, False])
def test_a_shadow_that_can_not_be_reached_holds_nothing_of_main(is_temporary: bool) -> None:
    world = shared(mapped(id="map_2", metric="seats", shadow=True, shadow_meter_event_name="try"))
    world.known["try"] = Unresolved("needs STRIPE_TEST_SECRET_KEY", is_temporary=is_temporary)
    world.take(ANNA, use(5))
    world.take(("acme", "seats", "anna"), use(1))
    assert world.only().may_decrease


def test_an_account_that_is_not_proven_is_waited_for() -> None:
    world = shared()
    del world.proven["main"]
    world.take(ANNA, use(5))
    assert world.locals() == {}
    assert world.totals.is_waiting(ANNA)
    world.take(ANNA)
    assert world.totals.is_everything_resolved


def test_what_goes_nowhere_says_why() -> None:
    world = World(mapped())
    world.take(ANNA, use(5))
    assert "PUT /v1/customers" in world.totals.unroutable[ANNA]
    assert world.totals.is_everything_resolved, "nobody waits for an answer"


# Carried and kept.


@pytest.mark.parametrize("change", [{}, {"stripe_scale": "10"}, {"meter_event_name": "new"}])
def test_units_carried_into_a_period_find_their_target_whatever_changed_since(
    change: dict[str, str],
) -> None:
    world = shared(mapped(AUGUST, **change))
    world.take(ANNA, use(5))
    (july,) = world.totals.targets
    carry = PushDecision(
        kind="carry",
        actor="k",
        target=july,
        into="current",
        units="5",
        at_us=AUGUST,
        until_us=SEPTEMBER,
    )
    world.fold(carry)
    for august_use in ((), (use(3, AUGUST),)):
        world.take(ANNA, use(5), *august_use)
        own = 3 if august_use and not change else 0
        owed = Target(july.lane, july.scale, AUGUST, SEPTEMBER)
        planned = world.book.planned(world.view(owed), now_us=AUGUST + DAY_US)
        assert (planned.standing, planned.due) == ("due", 5 + own)


def test_what_was_carried_into_a_period_without_use_and_back_again_is_taken_back_there() -> None:
    world = shared()
    world.take(ANNA, use(5))
    (july,) = world.totals.targets
    owed = Target(july.lane, july.scale, AUGUST, SEPTEMBER)
    into: Any = {"target": july, "into": "current", "at_us": AUGUST, "until_us": SEPTEMBER}
    world.fold(PushDecision(kind="carry", actor="k", units="5", **into))
    world.take(ANNA, use(5))
    world.book.fold(baseline(of=owed))
    world.book.push(world.view(owed), now_us=AUGUST + DAY_US)
    world.fold(PushDecision(kind="carry", actor="k", units="-5", **into))
    world.take(ANNA, use(5))
    planned = world.book.planned(world.view(owed), now_us=AUGUST + 2 * DAY_US)
    assert (planned.standing, planned.due) == ("due", -5)


def test_what_an_erased_customer_had_used_stays_in_the_target() -> None:
    world = shared()
    world.take(ANNA, use(5))
    (july,) = world.totals.targets
    world.fold(PushDecision(kind="keep", actor="k", target=july, micros=str(7 * UNIT)))
    assert world.only().local_micros == 12 * UNIT


def test_what_an_erased_customer_goes_on_using_adds_to_it_step_by_step() -> None:
    world = shared()
    world.take(ANNA, use(5))
    (july,) = world.totals.targets
    erased: Series = ("acme", "calls", "erased")
    request = PushRequest(
        driver="meter", identifier="", value="0", timestamp_s=0, api_version="v", event_name="calls"
    )
    rows = ((series_digest(*erased), JULY, str(2 * UNIT)),)
    world.fold(
        PushDecision(
            kind="keep",
            actor="k",
            target=july,
            micros=str(2 * UNIT),
            request=request,
            rows=rows,
            tenant_id="acme",
            metric="calls",
        )
    )
    for units in (5, 9, 4, 20):
        assert world.take(erased, use(units)) == {july}
        assert world.only().local_micros == (5 + units) * UNIT
    assert not world.take(erased, use(20))


GONE = Unresolved("there is no such meter")
STEP_BY_STEP: dict[str, tuple[list[Any], list[PeriodUse], dict[str, Unresolved]]] = {
    "grows": ([], [use(1), use(5), use(5), use(3)], {}),
    "is held": ([], [use(5), use(9, hold="historic"), use(12, hold="historic"), use(12)], {}),
    "is cut over": (
        [frozen(ANNA, 5 * UNIT), mapped(NOON, "carry", meter_event_name="new")],
        [use(5), use(9)._replace(newest_event_us=NOON + DAY_US), use(7)],
        {},
    ),
    "is cut over and back": (
        [
            frozen(ANNA, 3 * UNIT),
            mapped(NOON, "carry", meter_event_name="new"),
            frozen(ANNA, 5 * UNIT, NOON + 1),
            mapped(NOON + 1, "carry"),
        ],
        [use(6), use(9)._replace(newest_event_us=NOON + DAY_US), use(7)],
        {},
    ),
    "is lost later": (
        [
            frozen(ANNA, 5 * UNIT),
            mapped(NOON, "carry", meter_event_name="gone"),
            mapped(NOON, "carry", meter_event_name="gone", active=False),
        ],
        [use(5), use(9)],
        {"gone": GONE},
    ),
    "is lost in shadow": (
        [mapped(shadow=True, shadow_meter_event_name="gone"), mapped()],
        [use(0), use(9)],
        {"gone": GONE},
    ),
    "is cut short": ([], [use(5), use(6)._replace(end_us=NOON + DAY_US)], {}),
}


@pytest.mark.parametrize("name", STEP_BY_STEP)
def test_what_changes_step_by_step_is_what_a_start_finds(name: str) -> None:
    records, steps, known = STEP_BY_STEP[name]
    by_and_by = shared(*records)
    by_and_by.known.update(known)
    for step in steps:
        by_and_by.take(ANNA, step)
        afresh = shared(*records)
        afresh.known.update(known)
        afresh.take(ANNA, step)
        assert by_and_by.locals() == afresh.locals()
        for each in afresh.totals.targets:
            assert by_and_by.view(each) == afresh.view(each)
        assert by_and_by.totals._lost == afresh.totals._lost
        assert by_and_by.totals.unroutable == afresh.totals.unroutable


def test_how_use_was_cut_over_is_forgotten_with_its_period_and_nothing_is_due_by_it() -> None:
    world = shared(frozen(ANNA, 3 * UNIT), mapped(NOON, "carry", meter_event_name="new"))
    world.take(ANNA, use(5))
    new = Target(Lane("acct_1", "test", "mtr_new", "cus_1"), "1", JULY, AUGUST)
    assert world.view(new).local_micros == 2 * UNIT

    def others(count: int, start_us: int) -> PushDecision:
        rows = tuple((bytes(8) + n.to_bytes(8, "big"), start_us, "1") for n in range(count))
        return PushDecision(kind="freeze", actor="k", at_us=NOON, rows=rows)

    later_us = JULY + ROWS_US
    ledger = world.book.ledger
    world.fold(others(ROWS_FEW - 1, later_us), at_us=later_us)
    assert len(ledger.frozen) == ROWS_FEW, "its hundred days are not over"
    world.fold(others(ROWS_FEW, later_us + DAY_US), at_us=later_us + DAY_US)
    assert len(ledger.frozen) == 2 * ROWS_FEW - 1, "of July nothing is left"
    world.take(ANNA, use(5))
    seen = world.view(new)
    planned = plan(seen, None, None, now_us=later_us, interval_us=1)
    assert (seen.is_past, planned.standing, planned.due) == (True, "held", 0)
    world.take(BOB, use(7, AUGUST))
    assert not world.view(Target(new.lane, "1", AUGUST, SEPTEMBER)).is_past
    again = PushLedger.restore(ledger.state())
    assert (again.frozen, again.rows_from_us) == (ledger.frozen, JULY + DAY_US)


def test_what_erased_customers_contributed_is_forgotten_with_its_period() -> None:
    target = Target(Lane("acct_1", "test", "mtr_calls", "cus_1"), "1", JULY, AUGUST)
    world = shared(baseline(of=target))

    def keep(count: int, start_us: int) -> PushDecision:
        rows = tuple((bytes(8) + n.to_bytes(8, "big"), start_us, "1") for n in range(count))
        return PushDecision(kind="keep", actor="k", target=target, micros="1", rows=rows)

    world.fold(keep(ROWS_FEW, JULY), at_us=NOON)
    assert not world.book.state(target).is_past
    later_us = JULY + ROWS_US + 1
    world.fold(keep(ROWS_FEW, later_us), at_us=later_us)
    state = world.book.state(target)
    assert (len(world.book.ledger.kept), state.is_past) == (ROWS_FEW, True)
    assert plan(view(5), None, state, now_us=later_us, interval_us=1).due == 0
