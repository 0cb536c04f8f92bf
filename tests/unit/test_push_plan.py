"""The push plan: whether, when and what is pushed of a target, and every reason not to."""

from __future__ import annotations

import pytest

from engine.core.billing import same_units
from engine.core.configured_checks import check_mapping
from engine.core.push_plan import (
    LAST_CALL_US,
    PAST_US_MAX,
    REFUSED_RETRY_US,
    REFUSED_RETRY_US_MAX,
    UNITS_MAX,
    VALUE_MAX,
    billable_units,
    choose_minute,
    finalization_us,
    first_minute,
    plan,
    remainder_text,
)
from engine.core.push_records import Lane, PushDecision, identifier_of
from engine.core.times import HOUR_US, MINUTE_US
from engine.errors import Refused
from tests.helpers.pushing import (
    AUGUST,
    DAY_US,
    INTERVAL_US,
    JULY,
    JUNE,
    LANE,
    LOG_ID,
    NOON,
    RESOLVED,
    SEPTEMBER,
    TARGET,
    UNIT,
    Book,
    baseline,
    ended,
    mapping,
    minute_of,
    target,
    view,
)

GRACE_US = HOUR_US

# How much.


@pytest.mark.parametrize(
    ("micros", "scale", "units"),
    [
        (2_999_999, "1", 2),
        (1_000_000, "0.001", 0),
        (999_999_999, "0.001", 0),
        (1_000_000_000, "0.001", 1),
        (1, "1000", 0),
        (1_500, "1000", 1),
        (100_000, "10", 1),
        (-1, "1", 0),
        (-5_000_000, "1000", 0),
        (3 * 10**30 + 999_999, "1", 3 * 10**24),
        (10**30, "0.000001", 10**18),
    ],
)
def test_billable_is_the_floor_of_use_times_scale_and_never_negative(
    micros: int, scale: str, units: int
) -> None:
    assert billable_units(micros, scale) == units


def test_what_floor_takes_off_is_shown_and_billed_once_it_makes_a_whole_unit() -> None:
    assert remainder_text(2_999_999, "1") * UNIT == 999_999
    assert remainder_text(-1, "1") == 0
    book = Book(baseline())
    book.push(view(micros=1_900_000))
    assert book.planned(view(micros=1_999_999)).standing == "current"
    assert book.planned(view(micros=2_000_000)).due == 1


@pytest.mark.parametrize("scale", ["1/3", "1e3", "1_000", "-1", "0", "0.10", " 1", "٣", "inf"])
def test_a_scale_is_a_plain_positive_decimal_or_refused(scale: str) -> None:
    with pytest.raises(Refused):
        check_mapping(mapping(stripe_scale=scale))
    check_mapping(mapping(stripe_scale="0.001"))


def test_what_is_due_is_pushed_in_values_of_at_most_15_digits() -> None:
    book = Book(baseline())
    wide = view(VALUE_MAX + 5)
    assert book.push(wide).request.value == "9" * 15
    assert book.push(wide).request.value == "5"
    assert book.planned(wide).standing == "current"


def test_a_total_larger_than_stripe_can_hold_is_held() -> None:
    assert Book(baseline()).planned(view(UNITS_MAX)).standing == "due"
    assert Book(baseline()).planned(view(UNITS_MAX + 1)).standing == "held"


def test_a_decrease_is_sent_but_never_below_zero() -> None:
    book = Book(baseline())
    book.push(view(100))
    assert book.planned(view(40)).due == -60
    assert book.push(view(40)).request.value == "-60"
    assert book.push(view(-7)).request.value == "-40"
    assert book.planned(view(-9)).standing == "current"


def test_a_decrease_waits_while_not_everything_of_the_target_is_known() -> None:
    book = Book(baseline())
    book.push(view(100))
    planned = book.planned(view(40, may_decrease=False))
    assert (planned.standing, planned.due) == ("held", -60)
    assert book.planned(view(101, may_decrease=False)).standing == "due"


def test_a_negative_carry_into_a_period_without_use_is_not_an_empty_push() -> None:
    carry = PushDecision(
        kind="carry",
        actor="test",
        target=target(JUNE, JULY),
        into="current",
        units="-5",
        at_us=JULY,
        until_us=AUGUST,
    )
    book = Book(carry, baseline())
    assert book.planned(view(0)).standing == "current"
    assert book.planned(view(5)).standing == "current"
    assert book.planned(view(8)).due == 3
    assert book.push(view(8)).request.value == "3"


# When.


def test_deltas_are_paced_and_the_periods_last_one_goes_right_after_its_end() -> None:
    book = Book(baseline())
    last_us = AUGUST - INTERVAL_US // 2
    book.push(view(1), now_us=last_us)
    assert book.planned(view(2), now_us=last_us + 1).at_us == AUGUST
    early = Book(baseline())
    early.push(view(1), now_us=NOON)
    assert early.planned(view(2), now_us=NOON + 1).at_us == NOON + INTERVAL_US
    book.push(view(2), now_us=AUGUST + 1)
    assert book.planned(view(3), now_us=AUGUST + 2).at_us == AUGUST + 1 + INTERVAL_US


@pytest.mark.parametrize("interval_hours", [1, 24])
def test_what_comes_in_after_the_periods_end_goes_before_the_invoice_is_final(
    interval_hours: int,
) -> None:
    book = Book(baseline())
    interval_us = interval_hours * HOUR_US
    last_call_us = AUGUST + HOUR_US - LAST_CALL_US

    def at_us(units: int, now_us: int) -> int | None:
        lane, state = book.ledger.lane(TARGET.lane), book.ledger.target(TARGET)
        return plan(view(units), lane, state, now_us=now_us, interval_us=interval_us).at_us

    book.push(view(5), AUGUST - 60_000_000)
    assert at_us(6, AUGUST - 30_000_000) == AUGUST
    book.push(view(6), AUGUST)
    assert at_us(7, AUGUST + 1) == last_call_us
    for _ in range(8):  # and whatever was refused before it
        book.push(view(7), AUGUST + 1, result="refused")
    assert book.planned(view(7), AUGUST + 2).at_us == last_call_us
    assert book.planned(view(7), last_call_us).standing == "due"
    book.push(view(7), last_call_us)
    assert at_us(8, last_call_us + 1) == last_call_us + interval_us


def test_what_was_refused_backs_off_up_to_hours_and_is_tried_at_the_periods_end() -> None:
    book = Book(baseline())
    for count in range(1, 12):
        book.push(view(5), result="refused")
        planned = book.planned(view(5), now_us=NOON + 1)
        wait_us = min(REFUSED_RETRY_US << (count - 1), REFUSED_RETRY_US_MAX)
        assert (planned.standing, planned.at_us) == ("refused", NOON + wait_us)
        assert planned.reason == "no"
    late_us = AUGUST - HOUR_US
    book.push(view(5), now_us=late_us, result="refused")
    assert book.planned(view(5), now_us=AUGUST - 1).at_us == AUGUST
    assert book.planned(view(5), now_us=AUGUST).standing == "due"
    book.push(view(5), now_us=AUGUST)
    assert book.state().refusal is None


@pytest.mark.parametrize("finalized_at_us", [None, AUGUST + 3 * HOUR_US, AUGUST - 5 * DAY_US])
def test_nothing_is_pushed_once_the_invoice_is_final(finalized_at_us: int | None) -> None:
    book = Book(baseline())
    book.push(view(1))
    if finalized_at_us is not None:
        decision = PushDecision(
            kind="finalize", actor="stripe", target=TARGET, at_us=finalized_at_us
        )
        book.fold(decision)
    final_us = finalization_us(TARGET, book.state(), GRACE_US)
    assert final_us == (AUGUST + GRACE_US if finalized_at_us is None else finalized_at_us)
    assert book.planned(view(2), now_us=final_us - 1).standing == "due"
    for now_us in (final_us, final_us + 1, final_us + 40 * DAY_US):
        planned = book.planned(view(2), now_us=now_us)
        assert (planned.standing, planned.due, planned.at_us) == ("finalized", 1, None)
    assert book.planned(view(1), now_us=final_us).standing == "current"


def test_a_period_that_was_final_before_its_mapping_asks_nobody_for_anything() -> None:
    final_us = finalization_us(TARGET, None, GRACE_US)
    late = view(9)._replace(mapped_at_us=final_us)
    planned = Book().planned(late, now_us=SEPTEMBER)
    assert (planned.standing, planned.due, planned.billable) == ("held", 0, 9)
    in_time = view(9)._replace(mapped_at_us=final_us - 1)
    assert Book().planned(in_time, now_us=SEPTEMBER).standing == "finalized"
    pushed = Book(baseline())
    pushed.push(view(2))
    assert pushed.planned(late, now_us=SEPTEMBER).standing == "finalized"


def test_what_was_never_pushed_before_the_invoice_was_final_says_so() -> None:
    untouched = Book().planned(view(9), now_us=SEPTEMBER)
    pushed = Book(baseline())
    pushed.push(view(1))
    assert untouched.standing == pushed.planned(view(9), now_us=SEPTEMBER).standing == "finalized"
    assert "unless it was billed otherwise" in str(untouched.reason)
    assert "otherwise" not in str(pushed.planned(view(9), now_us=SEPTEMBER).reason)


def test_a_period_that_has_not_begun_is_not_pushed() -> None:
    assert Book(baseline()).planned(view(1), now_us=JULY - 1).standing == "held"


def test_the_first_push_waits_for_the_periods_first_whole_minute() -> None:
    odd = view(1, target=target(JULY + 30 * 1_000_000), newest_event_us=JULY)
    planned = Book(baseline()).planned(odd, now_us=JULY + 31 * 1_000_000)
    assert planned.at_us == JULY + MINUTE_US


def test_a_period_before_the_baseline_is_not_pushed() -> None:
    early = view(1, target=target(JUNE, JULY), grace_us=DAY_US)
    book = Book(baseline())
    assert book.planned(early, now_us=JULY + 1).standing == "held"
    assert "before the baseline" in str(book.planned(early, now_us=JULY + 1).reason)


def test_a_period_further_back_than_stripe_takes_is_not_pushed() -> None:
    far = view(1, grace_us=90 * DAY_US, newest_event_us=JULY)
    book = Book(baseline())
    assert book.planned(far, now_us=AUGUST + PAST_US_MAX - 1).standing == "due"
    assert book.planned(far, now_us=AUGUST + PAST_US_MAX).standing == "held"


def test_a_stopped_lane_is_shown_as_stopped_and_resumes() -> None:
    book = Book(baseline())
    book.fold(PushDecision(kind="stop", actor="test", lane=LANE, because="the customer is deleted"))
    assert book.planned(view(1)).standing == "stopped"
    assert book.planned(view(1)).reason == "the customer is deleted"
    book.fold(PushDecision(kind="resume", actor="test", lane=LANE))
    assert book.planned(view(1)).standing == "due"


def test_one_intent_a_lane_and_a_quarantined_one_holds_the_others() -> None:
    book = Book(baseline())
    intent = book.intend(view(1))
    assert book.planned(view(2)).standing == "in_flight"
    with pytest.raises(AssertionError, match="one unresolved intent"):
        book.intend(view(2))
    book.fold(ended(intent, "quarantined", reason="who knows"))
    assert book.planned(view(2)).standing == "quarantined"
    beside = view(2, target=target(scale="1000"))
    assert book.planned(beside).standing == "held"
    assert "quarantine" in str(book.planned(beside).reason)
    book.fold(ended(intent, "withdrawn", proof="person"))
    assert book.planned(view(2)).due == 2


# Which minute.


def test_the_minute_is_the_newest_events_and_within_the_period() -> None:
    assert choose_minute(view(1), [], NOON) == minute_of(NOON)
    assert choose_minute(view(1, newest_event_us=NOON + HOUR_US), [], NOON) == minute_of(NOON)
    assert choose_minute(view(1, newest_event_us=JUNE), [], NOON) == minute_of(JULY)
    late = view(1, newest_event_us=AUGUST - 1)
    assert choose_minute(late, [], AUGUST + HOUR_US // 2) == minute_of(AUGUST) - 1


def test_a_delta_is_never_in_a_boundarys_partial_minute() -> None:
    odd = target(JULY + 20_000_000, AUGUST + 40_000_000)
    first = choose_minute(view(1, target=odd, newest_event_us=JULY), [], NOON)
    last = choose_minute(view(1, target=odd, newest_event_us=SEPTEMBER), [], AUGUST + DAY_US)
    assert first is not None
    assert first * MINUTE_US >= odd.start_us
    assert last is not None
    assert (last + 1) * MINUTE_US <= odd.end_us
    assert choose_minute(view(1, target=odd), [], JULY + 50_000_000) is None


def test_a_used_minute_is_avoided_downwards_and_shared_when_none_is_free() -> None:
    book = Book(baseline())
    minutes = [book.push(view(count)).request.timestamp_s // 60 for count in (1, 2, 3)]
    assert minutes == [minute_of(NOON) - back for back in (0, 1, 2)]
    full = Book(baseline())
    start = view(1, newest_event_us=JULY + MINUTE_US)
    used = [
        full.push(start._replace(local_micros=count * UNIT)).request.timestamp_s // 60
        for count in (1, 2, 3, 4)
    ]
    first = minute_of(JULY)
    assert used == [first + 1, first, first + 1, first + 1]
    assert full.state().acknowledged_in(first + 1) == 3


def test_the_lanes_other_scale_shares_its_minutes() -> None:
    book = Book(baseline())
    book.push(view(1))
    other = book.push(view(1, target=target(scale="10")))
    assert other.request.timestamp_s // 60 == minute_of(NOON) - 1
    assert other.number == 2


def test_minutes_that_are_forgotten_count_as_used() -> None:
    book = Book(baseline())
    for count in range(1, 300):
        book.push(view(count, newest_event_us=JULY + count * MINUTE_US))
    floor = book.state().floor_minute
    assert floor == minute_of(JULY) + 43
    early = view(999, newest_event_us=JULY + 20 * MINUTE_US)
    assert choose_minute(early, [book.state()], NOON) == minute_of(JULY) + 20
    assert book.state().acknowledged_in(minute_of(JULY) + 20) is None
    used = view(999, newest_event_us=JULY + 299 * MINUTE_US)
    assert choose_minute(used, [book.state()], NOON) == minute_of(JULY) + 299


def test_nothing_goes_before_the_items_start_or_further_back_than_34_days() -> None:
    created_s = (JULY + 3 * DAY_US) // 1_000_000 + 1
    item = RESOLVED._replace(item_created_s=created_s)
    early = view(1, resolved=item, newest_event_us=JULY)
    assert first_minute(early) * 60 == created_s + 59
    assert choose_minute(early, [], NOON) == first_minute(early)
    planned = Book(baseline()).planned(early, now_us=JULY + DAY_US)
    assert planned.at_us == first_minute(early) * MINUTE_US
    now_us = AUGUST + 10 * DAY_US + 1
    oldest = choose_minute(view(1, newest_event_us=JULY), [], now_us)
    assert oldest == minute_of(now_us - PAST_US_MAX) + 1
    after = view(1, resolved=RESOLVED._replace(item_created_s=AUGUST // 1_000_000))
    assert Book(baseline()).planned(after).standing == "held"


# The request.


def test_an_identifier_is_of_log_epoch_lane_period_and_number_alone() -> None:
    base = identifier_of(LOG_ID, 1, LANE, JULY, 1)
    others = {
        identifier_of(bytes(16), 1, LANE, JULY, 1),
        identifier_of(LOG_ID, 2, LANE, JULY, 1),
        identifier_of(LOG_ID, 1, Lane("acct_2", "test", "mtr_1", "cus_1"), JULY, 1),
        identifier_of(LOG_ID, 1, Lane("acct_1", "live", "mtr_1", "cus_1"), JULY, 1),
        identifier_of(LOG_ID, 1, Lane("acct_1", "test", "mtr_2", "cus_1"), JULY, 1),
        identifier_of(LOG_ID, 1, Lane("acct_1", "test", "mtr_1", "cus_2"), JULY, 1),
        identifier_of(LOG_ID, 1, LANE, AUGUST, 1),
        identifier_of(LOG_ID, 1, LANE, JULY, 2),
    }
    assert len(others | {base}) == 9
    assert identifier_of(LOG_ID, 1, LANE, JULY, 1) == base
    assert len(base) == 32


def test_a_total_that_returns_to_where_it_was_gets_identifiers_of_its_own() -> None:
    book = Book(baseline())
    for units in (100, 90, 100):
        book.push(view(units))
    assert [intent.request.value for intent in book.sent] == ["100", "-10", "10"]
    assert len({intent.request.identifier for intent in book.sent}) == 3


def test_a_scales_intents_and_a_withdrawn_one_never_share_an_identifier() -> None:
    book = Book(baseline())
    book.push(view(1), result="withdrawn")
    book.push(view(1))
    book.push(view(1, target=target(scale="10")))
    assert len({intent.request.identifier for intent in book.sent}) == 3


def test_a_restored_log_uses_no_identifier_of_the_epoch_before() -> None:
    before, after = Book(baseline(), epoch=1), Book(baseline(), epoch=2)
    assert before.push(view(1)).request.identifier != after.push(view(1)).request.identifier


def test_usage_records_carry_the_items_total_at_one_fixed_instant() -> None:
    item = RESOLVED._replace(object_id="si_1", item="si_1", item_created_s=JULY // 1_000_000 + 30)
    book = Book(baseline())
    legacy = view(5, driver="usage_record", resolved=item)
    first, second = book.push(legacy), book.push(legacy._replace(local_micros=12 * UNIT))
    assert [first.request.value, second.request.value] == ["5", "12"]
    assert first.request.timestamp_s == second.request.timestamp_s == JULY // 1_000_000 + 60
    assert (first.request.item, first.request.identifier) != (None, second.request.identifier)
    assert book.state().pushed == 12


def test_a_usage_records_total_holds_the_items_other_scale_too() -> None:
    item = RESOLVED._replace(object_id="si_1", item="si_1")
    book = Book(baseline())
    old = view(5, driver="usage_record", resolved=item)
    new = old._replace(target=target(scale="10"))
    book.push(old)
    assert book.push(new._replace(local_micros=50 * UNIT)).request.value == "505"
    assert book.push(old._replace(local_micros=0)).request.value == "500"
    assert (book.state().pushed, book.state(target(scale="10")).pushed) == (0, 500)


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("12.0", 12, True),
        ("1e+16", 10**16, True),
        ("1.5E3", 1500, True),
        ("12.000001", 12, False),
        ("123456789012345678", 123456789012345100, False),
        ("123456789012345100", 123456789012345200, True),
        ("999999999999999900", 10**18, True),
        ("-0", 0, True),
        ("-5", 5, False),
        ("0.000", "0", True),
        ("1e-07", 0, False),
    ],
)
def test_amounts_are_compared_at_15_digits(left: str, right: int | str, same: bool) -> None:
    assert same_units(left, right) is same
    assert same_units(right, left) is same
