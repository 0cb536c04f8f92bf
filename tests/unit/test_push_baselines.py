"""Baselines: a target never bills a period twice because it is new, restored, re-activated or was a shadow."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.push_baselines import (
    BaselineNeed,
    baseline_decision,
    baseline_need,
    baseline_range,
)
from engine.core.push_records import PushDecision
from engine.core.times import HOUR_US, MINUTE_US
from tests.helpers.pushing import (
    AUGUST,
    DAY_US,
    JULY,
    JUNE,
    NOON,
    SEPTEMBER,
    TARGET,
    Book,
    baseline,
    mapped,
    restored,
    target,
    view,
)

NEW = BaselineNeed("new", person=False)
DOUBTFUL = BaselineNeed("doubtful", person=True)


def need(book: Book, **fields: Any) -> BaselineNeed | None:
    return baseline_need(view(9, **fields), book.ledger)


def decided(reading: str, by: BaselineNeed = NEW, book: Book | None = None, **how: Any) -> Any:
    own = book or Book()
    fields = {key: how.pop(key) for key in ("baseline", "units", "micros") if key in how}
    seen = view(fields.pop("units", 9), **fields)
    return baseline_decision(seen, own.ledger.target(TARGET), by, reading, **how)


def kind(decision: PushDecision) -> tuple[str, str | None, str]:
    return decision.kind, decision.choice, decision.units


def test_a_new_lane_is_read_and_without_anything_there_all_of_the_period_is_due() -> None:
    book = Book()
    assert need(book) == BaselineNeed("nothing was pushed to it before", person=False)
    assert kind(decided("0.0")) == ("baseline", "period", "0")
    book.fold(decided("0"))
    assert need(book) is None
    assert book.planned(view(9)).due == 9


def test_a_new_lane_that_holds_something_waits_visibly_for_a_person() -> None:
    waiting = decided("4")
    assert kind(waiting) == ("await", None, "0")
    book = Book(waiting)
    planned = book.planned(view(9))
    assert (planned.standing, planned.due) == ("awaiting_baseline", 9)
    assert "4" in str(planned.reason)
    assert need(book) is not None, "awaiting is not a baseline"


@pytest.mark.parametrize(
    ("choice", "pushed", "due"), [("now", 9, 0), ("period", 0, 9), ("stripe", 4, 5)]
)
def test_the_choice_says_what_counts_as_pushed(choice: Any, pushed: int, due: int) -> None:
    book = Book(decided("4"))
    book.fold(decided("4", choice=choice, actor="key_1", request_id="r"))
    assert book.state().pushed == pushed
    assert book.planned(view(9)).due == due
    assert need(book) is None
    lane = book.ledger.lane(TARGET.lane)
    assert lane is not None
    assert lane.awaits is None


def test_the_mappings_choice_answers_for_a_new_target_only_where_something_is_there() -> None:
    assert kind(decided("4", baseline="stripe")) == ("baseline", "stripe", "4")
    assert kind(decided("4", baseline="now")) == ("baseline", "now", "9")
    for choice in ("now", "period", "stripe"):
        assert kind(decided("0", baseline=choice)) == ("baseline", "period", "0")
        assert decided("0", DOUBTFUL, baseline=choice).kind == "await"
        assert decided("4", DOUBTFUL, baseline=choice).kind == "await"


def test_where_something_is_doubtful_even_an_empty_reading_waits() -> None:
    assert decided("0", DOUBTFUL).kind == "await"


def test_now_leaves_nothing_due_of_what_was_used_and_all_that_was_carried_here() -> None:
    carry = PushDecision(
        kind="carry",
        actor="test",
        target=target(JUNE, JULY),
        into="current",
        units="3",
        at_us=JULY,
        until_us=AUGUST,
    )
    book = Book(carry)
    book.fold(decided("4", book=book, choice="now"))
    assert book.planned(view(9)).due == 3


def test_a_period_choice_after_a_doubt_keeps_what_the_ledger_has() -> None:
    book = Book(baseline())
    book.push(view(6))
    book.fold(restored())
    book.fold(decided("6", DOUBTFUL, book, choice="period"))
    assert (book.state().pushed, book.planned(view(9)).due) == (6, 3)


def test_what_stripe_holds_is_shared_with_the_lanes_other_scale() -> None:
    book = Book(baseline())
    book.push(view(6))
    assert kind(decided("10", DOUBTFUL, book, choice="stripe", beside=6)) == (
        "baseline",
        "stripe",
        "4",
    )


def test_later_periods_start_from_zero_without_reading() -> None:
    book = Book()
    book.fold(baseline(), at_us=NOON)
    assert need(book, target=target(AUGUST, SEPTEMBER)) is None
    assert book.planned(view(9, target=target(AUGUST, SEPTEMBER)), now_us=AUGUST + 1).due == 9


def test_a_period_that_had_begun_when_the_first_baseline_was_taken_is_read_too() -> None:
    book = Book()
    book.fold(baseline(of=target(JUNE, JULY)), at_us=JULY + 20 * MINUTE_US)
    assert need(book) == NEW._replace(because="nothing was pushed to it before")
    book.fold(baseline(), at_us=JULY + 21 * MINUTE_US)
    assert need(book) is None
    assert need(book, target=target(JUNE, JULY)) is None


def test_after_a_restore_every_period_begun_before_waits_for_a_person_and_later_ones_do_not() -> (
    None
):
    book = Book(baseline(of=target(JUNE, JULY)), baseline())
    restore_us = NOON + DAY_US
    book.fold(restored(), at_us=restore_us)
    june = {"target": target(JUNE, JULY)}
    for fields in (june, {}):
        found = need(book, **fields)
        assert found is not None
        assert found.person
    assert need(book, target=target(AUGUST, SEPTEMBER)) is None
    book.fold(baseline(), at_us=restore_us + 1)
    assert need(book) is None
    found = need(book, **june)
    assert found is not None, "one period's decision is not another's"
    assert found.person
    early = book.planned(view(9, grace_us=60 * DAY_US, **june), now_us=restore_us + 2)
    assert early.standing == "due", (
        "the later decision does not put the earlier period out of reach"
    )


def test_after_a_restore_a_lane_the_backup_does_not_know_waits_for_a_person_too() -> None:
    book = Book(at_us=JULY).fold(restored(), at_us=NOON)
    found = need(book)
    assert found is not None
    assert found.person
    later = need(book, target=target(AUGUST, SEPTEMBER))
    assert later is not None
    assert not later.person


@pytest.mark.parametrize("has_lane", [True, False])
@pytest.mark.parametrize("gone", [{"active": False}, {"deleted": True}])
def test_a_re_activated_mapping_waits_for_a_person_in_every_period_begun_before(
    has_lane: bool, gone: dict[str, Any]
) -> None:
    book = Book(mapped(), at_us=JUNE)
    if has_lane:
        book.fold(baseline(of=target(JUNE, JULY)), at_us=JUNE + HOUR_US)
    book.fold(mapped(**gone), at_us=JUNE + DAY_US)
    book.fold(mapped(id="map_2"), at_us=NOON)
    found = need(book)
    assert found is not None, "who billed between June and the tenth of July is not known"
    assert found.person
    later = need(book, target=target(AUGUST, SEPTEMBER))
    assert later is None or not later.person


@pytest.mark.parametrize("has_lane", [True, False])
def test_shadow_to_live_waits_for_a_person_in_the_period_of_the_change(has_lane: bool) -> None:
    book = Book(at_us=JUNE)
    if has_lane:
        book.fold(mapped(), baseline(of=target(JUNE, JULY)), at_us=JUNE)
    book.fold(mapped(shadow=True), at_us=JUNE + DAY_US)
    book.fold(mapped(shadow=False), at_us=NOON)
    found = need(book)
    assert found is not None
    assert found.person
    later = need(book, target=target(AUGUST, SEPTEMBER))
    assert later is None or not later.person


def test_a_mapping_that_is_put_again_doubts_nothing() -> None:
    book = Book(mapped(), baseline())
    book.fold(mapped(unit="calls", auto_repair=True), at_us=NOON)
    assert need(book) is None


def test_a_doubt_leaves_other_metrics_lanes_and_the_other_role_alone() -> None:
    book = Book(mapped(), baseline())
    book.fold(mapped(id="map_9", metric="seats"), at_us=NOON)
    book.fold(mapped(id="map_9", metric="seats", deleted=True), at_us=NOON + 1)
    assert need(book) is None
    shadow = Book(mapped(id="map_s", shadow=True), baseline(role="shadow"))
    shadow.fold(mapped(id="map_m"), mapped(id="map_m", deleted=True), at_us=NOON)
    assert need(shadow, role="shadow") is None


def test_a_doubt_takes_back_what_awaited_a_decision() -> None:
    book = Book(decided("4"))
    book.fold(restored(), at_us=NOON)
    assert book.planned(view(9)).standing == "due", "it is read again before it is pushed"
    found = need(book)
    assert found is not None
    assert found.person


def test_what_is_read_are_whole_minutes_that_hold_the_period_so_far() -> None:
    assert baseline_range(view(), NOON) == (JULY // UNIT_US, NOON // UNIT_US + 60)
    odd = view(target=target(JULY + 30_000_000, AUGUST + 30_000_000))
    start_s, end_s = baseline_range(odd, SEPTEMBER)
    assert (start_s, end_s) == (JULY // UNIT_US, AUGUST // UNIT_US + 60)
    first_s, last_s = baseline_range(view(), JULY - DAY_US)
    assert last_s - first_s == 60


UNIT_US = 1_000_000
