"""Where use is pushed over time: a period keeps its destination, a cutover splits it, nothing is forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.configured import Change, Mapping
from engine.core.keeping import EraseChange
from engine.core.push_misfits import NO_CUSTOMER, unroutable
from engine.core.push_routes import PushRoutes, Route, Segment, mapping_route
from engine.core.push_state import PushState
from tests.helpers.pushing import (
    AUGUST,
    DAY_US,
    JULY,
    JUNE,
    NOON,
    SEPTEMBER,
    customer,
    mapped,
    mapping,
)

ANNA = ("acme", "calls", "anna")


def routes(*records: Any) -> PushRoutes:
    made = PushRoutes()
    for record in records:
        made.fold(record)
    return made


def segments(
    of: PushRoutes, start_us: int = JULY, role: Any = "main", ref: str = "anna"
) -> list[Segment]:
    ends = {JUNE: JULY, JULY: AUGUST, AUGUST: SEPTEMBER}
    return of.segments(("acme", "calls", ref), role, start_us=start_us, end_us=ends[start_us])


def events(of: list[Segment]) -> list[tuple[int, str | None, str | None]]:
    """(since, event name, cutover) of each segment."""
    return [(one.since_us, one.route.destination.event_name, one.cutover) for one in of]


def only(of: PushRoutes, start_us: int = JULY, role: Any = "main", ref: str = "anna") -> Route:
    found = segments(of, start_us, role, ref)
    assert len(found) == 1
    return found[0].route


def test_a_metric_without_a_mapping_goes_nowhere() -> None:
    assert segments(routes(customer(stripe_customer_id="cus_1"))) == []
    assert segments(routes(mapped(active=False))) == []
    assert routes().role("acme", "calls") is None


def test_where_nothing_was_pushed_a_mapping_holds_for_all_of_time() -> None:
    made = routes(mapped(), customer(stripe_customer_id="cus_1"))
    for start_us in (JUNE, JULY, AUGUST):
        assert only(made, start_us).customer == "cus_1"
    replaced = routes(mapped(), mapped(meter_event_name="other"))
    assert only(replaced, JUNE).destination.event_name == "other"


def test_a_period_keeps_its_destination_and_the_next_one_has_the_new() -> None:
    made = routes(mapped(), mapped(AUGUST, meter_event_name="new"))
    assert only(made).destination.event_name == "calls"
    assert only(made, AUGUST).destination.event_name == "new"
    midway = routes(mapped(), mapped(NOON, meter_event_name="new"))
    assert events(segments(midway)) == [(JULY, "calls", None)]
    assert only(midway, AUGUST).destination.event_name == "new"


def test_a_change_that_is_taken_back_before_it_holds_leaves_nothing() -> None:
    made = routes(mapped(), mapped(AUGUST, meter_event_name="new"), mapped(AUGUST))
    assert only(made, AUGUST).destination.event_name == "calls"
    assert made.mapping_entry("acme", "calls", "main")[1] < JUNE
    changed = routes(
        mapped(),
        mapped(AUGUST, meter_event_name="new"),
        mapped(AUGUST, meter_event_name="newer"),
    )
    assert only(changed, AUGUST).destination.event_name == "newer"


@pytest.mark.parametrize("cutover", ["move", "carry"])
def test_a_cutover_splits_the_period_that_holds_it_and_no_other(cutover: Any) -> None:
    made = routes(mapped(), mapped(NOON, cutover, meter_event_name="new"))
    assert events(segments(made)) == [(JULY, "calls", None), (NOON, "new", cutover)]
    assert events(segments(made, JUNE)) == [(JUNE, "calls", None)]
    assert events(segments(made, AUGUST)) == [(AUGUST, "new", None)]


def test_a_cutover_to_where_it_was_is_none() -> None:
    assert len(segments(routes(mapped(), mapped(NOON, "move", unit="calls")))) == 1


def test_a_cutover_of_the_customer_does_not_bring_the_mappings_next_change_forward() -> None:
    made = routes(
        mapped(),
        customer(stripe_customer_id="cus_1"),
        mapped(NOON, meter_event_name="new"),
        customer(from_us=NOON + DAY_US, cutover="carry", stripe_customer_id="cus_2"),
    )
    found = segments(made)
    assert events(found) == [(JULY, "calls", None), (NOON + DAY_US, "calls", "carry")]
    assert [one.route.customer for one in found] == ["cus_1", "cus_2"]
    assert only(made, AUGUST).destination.event_name == "new"


def test_to_move_wins_over_to_carry_at_the_same_instant() -> None:
    for first, second in (("move", "carry"), ("carry", "move")):
        made = routes(
            mapped(),
            customer(stripe_customer_id="cus_1"),
            mapped(NOON, first, meter_event_name="new"),
            customer(from_us=NOON, cutover=second, stripe_customer_id="cus_2"),
        )
        assert events(segments(made))[1] == (NOON, "new", "move")


def test_scale_and_account_are_part_of_where_it_goes() -> None:
    made = routes(mapped(stripe_scale="0.001", stripe_account="acct_9"))
    assert (only(made).scale, only(made).destination.connect_account) == ("0.001", "acct_9")


def test_the_most_exact_name_speaks() -> None:
    everything = mapped(subscription_item_id="si_0", price_id="price_0")
    anna = only(routes(everything, customer(subscription_items={"calls": "si_1"}))).destination
    assert (anna.item, anna.event_name, anna.price) == ("si_1", None, None)
    of_mapping = only(routes(everything)).destination
    assert (of_mapping.item, of_mapping.event_name, of_mapping.price) == ("si_0", None, None)
    by_price = only(routes(mapped(meter_event_name=None, price_id="price_0"))).destination
    assert (by_price.item, by_price.event_name, by_price.price) == (None, None, "price_0")
    other = only(routes(mapped(), customer(subscription_items={"seats": "si_1"}))).destination
    assert other.item is None


def test_a_customers_own_item_says_who_it_is_and_a_mappings_does_not() -> None:
    own = only(routes(mapped(), customer(subscription_items={"calls": "si_1"})))
    assert own.customer is None
    assert unroutable(own) is None
    shared = only(routes(mapped(subscription_item_id="si_0")))
    assert unroutable(shared) == NO_CUSTOMER


def test_what_goes_nowhere_says_what_to_do() -> None:
    nothing = only(routes(mapped(meter_event_name=None), customer(stripe_customer_id="cus_1")))
    assert "meterEventName" in str(unroutable(nothing))
    legacy = mapped(meter_event_name=None, price_id="price_1", driver="usage_record")
    assert "subscriptionItems" in str(
        unroutable(only(routes(legacy, customer(stripe_customer_id="cus_1"))))
    )
    assert unroutable(only(routes(mapped()))) == NO_CUSTOMER


def test_a_reference_that_is_a_stripe_customer_needs_no_record() -> None:
    assert only(routes(mapped()), ref="cus_77").customer == "cus_77"
    told = routes(mapped(), customer("cus_77", stripe_customer_id="cus_1"))
    assert only(told, ref="cus_77").customer == "cus_1"


def test_shadow_and_main_have_histories_of_their_own() -> None:
    made = routes(mapped(), mapped(shadow=True, shadow_meter_event_name="test_calls"))
    assert made.role("acme", "calls") == "shadow"
    assert made.roles_known("acme", "calls") == ("main", "shadow")
    assert only(made).destination.event_name == "calls"
    assert only(made, role="shadow").destination.event_name == "test_calls"
    fields = mapping(shadow=True, shadow_stripe_account="acct_t", stripe_account="acct_live")
    assert mapping_route(fields).connect_account == "acct_t"
    assert mapping_route(mapping(stripe_account="acct_live")).connect_account == "acct_live"


def test_a_mapping_that_is_taken_away_is_remembered_but_speaks_no_longer() -> None:
    for gone in (mapped(deleted=True), mapped(active=False)):
        made = routes(mapped(), gone)
        assert made.role("acme", "calls") is None
        assert only(made).destination.event_name == "calls"
        assert made.metrics() == {("acme", "calls")}
    beside = routes(mapped(), mapped(id="map_2", active=False), mapped(id="map_2", deleted=True))
    assert beside.role("acme", "calls") == "main"


def test_a_customer_that_loses_its_stripe_id_keeps_its_route_and_is_marked() -> None:
    made = routes(mapped(), customer(stripe_customer_id="cus_1"), customer(from_us=NOON))
    assert made.attached["acme", "anna"] is False
    assert only(made).customer == "cus_1"
    assert only(made, AUGUST).customer == "cus_1"
    again = routes(
        mapped(),
        customer(stripe_customer_id="cus_1"),
        customer(from_us=NOON),
        customer(from_us=NOON + 1, stripe_customer_id="cus_1"),
    )
    assert again.attached["acme", "anna"] is True


def test_a_customer_that_was_nobody_gets_its_stripe_id_for_all_of_time() -> None:
    made = routes(mapped(), customer(), customer(stripe_customer_id="cus_1"))
    assert only(made, JUNE).customer == "cus_1"


def test_an_erased_customer_is_forgotten() -> None:
    made = routes(mapped(), customer(stripe_customer_id="cus_1"))
    names = {"anna": "erased_1"}
    made.fold(EraseChange(action="begin", erasure_id="e", tenant_id="acme", actor="k", names=names))
    assert only(made).customer is None
    assert only(made, ref="erased_1").customer is None
    assert made.attached == {}
    assert b"cus_1" not in made.state()


def test_other_tenants_change_nothing() -> None:
    other = Mapping(id="map_9", tenant_id="other", metric="calls", meter_event_name="theirs")
    record = mapped()
    theirs = type(record)(mapping=other, change=Change(actor="test"))
    assert only(routes(record, theirs)).destination.event_name == "calls"


def test_a_snapshot_of_the_routes_is_the_same_routes() -> None:
    made = routes(
        mapped(),
        mapped(id="map_2", metric="seats", shadow=True),
        customer(stripe_customer_id="cus_1", subscription_items={"calls": "si_1", "seats": "si_2"}),
        mapped(NOON, "carry", meter_event_name="new", stripe_scale="0.5"),
        customer(from_us=AUGUST, stripe_customer_id="cus_2"),
        customer("bob"),
    )
    again = PushRoutes.restore(made.state())
    assert vars(again) == vars(made) | {"version": 0}
    assert segments(again) == segments(made)
    assert again.state() == made.state()


def test_a_log_from_before_pushing_is_taken_as_it_was_configured() -> None:
    anna = customer(stripe_customer_id="cus_1").customer
    made = PushState.of_configuration([mapping()], [anna])
    assert only(made.routes).customer == "cus_1"
    assert made.ledger.ended_at_us("acme", "calls", "main") is None
    made.fold(mapped(deleted=True), NOON)
    assert made.ledger.ended_at_us("acme", "calls", "main") == NOON
    assert vars(PushState.restore(made.state()).ledger) == vars(made.ledger)
