"""The push ledger: what was pushed is what outcomes and decisions in the log say, and nothing else moves it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from engine.core import push_ledger
from engine.core.push_ledger import (
    MINUTES_REMEMBERED_MAX,
    TARGETS_PER_LANE_MAX,
    PushLedger,
    Refusal,
)
from engine.core.push_plan import REFUSED_RETRY_US, finalization_us
from engine.core.push_records import Lane, PushDecision, Target, series_digest, target_id
from engine.core.times import HOUR_US, MINUTE_US
from tests.helpers.pushing import (
    AUGUST,
    DAY_US,
    JULY,
    JUNE,
    LANE,
    NOON,
    RESOLVED,
    SEPTEMBER,
    TARGET,
    UNIT,
    Book,
    baseline,
    ended,
    mapped,
    minute_of,
    target,
    view,
)


def carry(units: int, into: Any, of: Target = TARGET, **fields: Any) -> PushDecision:
    return PushDecision(
        kind="carry", actor="key_1", target=of, into=into, units=str(units), **fields
    )


def day_target(number: int) -> Target:
    return Target(LANE, "1", JUNE + number * DAY_US, JUNE + (number + 1) * DAY_US)


def test_only_what_was_delivered_counts_as_pushed() -> None:
    book = Book(baseline())
    intent = book.intend(view(5))
    assert book.state().pushed == 0, "an intent is no push yet"
    book.fold(ended(intent, "quarantined", reason="who knows"))
    assert book.state().pushed == 0, "what nobody knows is not taken for delivered"
    book.fold(ended(intent, "delivered", proof="person"))
    assert book.state().pushed == 5


@pytest.mark.parametrize("result", ["refused", "withdrawn"])
def test_what_was_not_applied_leaves_the_lane_free_and_its_minute_unused(result: str) -> None:
    book = Book(baseline())
    book.push(view(5), result=result)
    lane = book.ledger.lane(LANE)
    assert lane is not None
    assert lane.open is None
    assert (book.state().pushed, book.state().minutes) == (0, {})
    assert book.push(view(5)).number == 2
    assert book.state().pushed == 5


@pytest.mark.parametrize("result", ["rejected", "cancelled"])
def test_what_is_rejected_later_is_due_again_once(result: Any) -> None:
    book = Book(baseline())
    first = book.push(view(5))
    book.push(view(8))
    for _ in range(2):
        book.fold(ended(first, result, proof="report"))
        assert book.state().pushed == 3
    assert book.state().acknowledged_in(minute_of(NOON)) == 0
    assert book.state().is_used(minute_of(NOON)), "perhaps it is only not there yet"
    assert book.planned(view(8)).due == 5


def test_what_stripe_rejects_again_and_again_says_why_and_is_tried_ever_less_often() -> None:
    book = Book(baseline())
    waits = []
    for _ in range(4):
        first, second = book.push(view(5)), book.push(view(8))
        for rejected in (first, second):  # one bundle of reports is one refusal
            book.fold(ended(rejected, "rejected", proof="report", reason="no such customer"))
        refusal = book.state().refusal
        assert refusal is not None
        assert refusal.reason == "Stripe took it and rejected it later: no such customer"
        planned = book.planned(view(8))
        if planned.standing == "refused":
            assert planned.reason == refusal.reason
            assert planned.at_us is not None
            waits.append(planned.at_us - refusal.at_us)
        else:
            assert (planned.standing, waits) == ("due", []), "once is no rule yet"
        book.push(view(8))
        assert book.planned(view(8)).standing == "current"
        book.fold(ended(book.push(view(9)), "cancelled", proof="report"))
        assert book.planned(view(9)).standing == "due", "a repair is no refusal"
        book.fold(baseline())
    assert waits == [REFUSED_RETRY_US << doubled for doubled in range(3)]


def test_a_rejection_while_another_intent_is_under_way_stays_rejected() -> None:
    book = Book(baseline())
    first = book.push(view(5))
    second = book.intend(view(8))
    book.fold(ended(first, "rejected", proof="report"), ended(second))
    assert book.state().pushed == 3
    assert book.planned(view(8)).due == 5


def test_an_outcome_of_another_intent_than_the_open_one_is_a_bug() -> None:
    book = Book(baseline())
    first = book.push(view(5))
    book.intend(view(8))
    with pytest.raises(AssertionError):
        book.fold(ended(first))


def test_two_targets_of_a_lane_share_its_one_open_intent() -> None:
    book = Book(baseline())
    intent = book.intend(view(5))
    other = Book(baseline()).intend(view(1, target=target(AUGUST, SEPTEMBER)), now_us=AUGUST + 1)
    with pytest.raises(AssertionError, match="one unresolved intent"):
        book.fold(other)
    book.fold(ended(intent), other)


def test_numbers_go_on_per_lane_and_period() -> None:
    book = Book(baseline())
    august = target(AUGUST, SEPTEMBER)
    later = AUGUST + HOUR_US // 2
    numbers = [
        book.push(view(1)).number,
        book.push(view(1, target=august), now_us=later).number,
        book.push(view(2), now_us=later).number,
        book.push(view(1, target=target(scale="2")), now_us=later).number,
        book.push(view(2, target=august), now_us=later).number,
    ]
    assert numbers == [1, 1, 2, 3, 2]


def test_refusals_in_a_row_are_counted_and_a_delivery_ends_them() -> None:
    book = Book(baseline())
    for count in (1, 2, 3):
        intent = book.intend(view(5), now_us=NOON + count)
        refused = ended(intent, "refused", reason="no such meter", code="gone", is_target_wide=True)
        book.fold(refused, at_us=NOON + count)
        expected = Refusal(
            "no such meter", "gone", is_target_wide=True, at_us=NOON + count, count=count
        )
        assert book.state().refusal == expected
    book.push(view(5))
    assert book.state().refusal is None


def test_minutes_are_remembered_for_the_newest_and_older_ones_count_as_used() -> None:
    book = Book(baseline())
    count = MINUTES_REMEMBERED_MAX + 3
    for number in range(count):
        book.push(view(number + 1, newest_event_us=JULY + number * MINUTE_US))
    state = book.state()
    first = minute_of(JULY)
    assert len(state.minutes) == MINUTES_REMEMBERED_MAX
    assert [state.is_used(first + number) for number in range(3)] == [True, True, True]
    assert [state.acknowledged_in(first + number) for number in range(4)] == [None, None, None, 1]
    assert state.acknowledged_in(first + count) == 0
    rejected = book.sent[0]
    book.fold(ended(rejected, "rejected", proof="report"))
    assert state.pushed == count - 1
    assert state.acknowledged_in(first) is None


def test_a_carry_into_the_current_period_leaves_the_sum_over_both_as_it_was() -> None:
    book = Book(baseline(of=target(JUNE, JULY)))
    june = view(10, target=target(JUNE, JULY))
    book.push(june, now_us=JULY)
    june = june._replace(local_micros=17 * UNIT)
    assert book.planned(june).standing == "finalized"
    book.fold(carry(7, "current", june.target, at_us=JULY, until_us=AUGUST))
    assert book.planned(june).standing == "current"
    assert (book.planned(june).billable, book.planned(june).pushed) == (17, 10)
    assert book.planned(view(3)).due == 10
    assert book.push(view(3)).request.value == "10"
    assert book.planned(view(3)).standing == "current"
    assert book.planned(june._replace(local_micros=18 * UNIT)).due == 1, "more may become due"


@pytest.mark.parametrize("into", ["credit", "invoice_item", "write_off"])
def test_what_is_settled_elsewhere_is_due_nowhere(into: Any) -> None:
    book = Book(baseline())
    book.push(view(10))
    book.fold(carry(4, into), carry(3, into))
    assert book.state().carried == {into: 7}
    assert book.planned(view(17), now_us=SEPTEMBER).standing == "current"
    assert book.planned(view(15), now_us=SEPTEMBER).due == -2, "a correction that came later"


def test_periods_beyond_the_bound_are_forgotten_and_never_pushed_or_carried_again() -> None:
    book = Book(baseline(of=day_target(0)))
    for number in range(TARGETS_PER_LANE_MAX + 2):
        seen = view(1, target=day_target(number), newest_event_us=day_target(number).start_us)
        book.push(seen, now_us=day_target(number).start_us + HOUR_US)
    lane = book.ledger.lane(LANE)
    assert lane is not None
    assert len(lane.targets) == TARGETS_PER_LANE_MAX
    old = view(1, target=day_target(0), grace_us=900 * DAY_US)
    for now_us in (day_target(0).end_us, NOON, SEPTEMBER):
        planned = book.planned(old, now_us=now_us)
        assert (planned.standing, planned.due) == ("held", 0)
        assert "too long past" in str(planned.reason)
    kept = view(1, target=day_target(2), newest_event_us=day_target(2).start_us)
    assert book.planned(kept).standing == "current"
    assert min(lane.numbers) == day_target(2).start_us


def test_a_period_with_an_open_intent_is_not_forgotten() -> None:
    book = Book(baseline(of=day_target(0)))
    book.intend(view(1, target=day_target(0), newest_event_us=JUNE), now_us=JUNE + HOUR_US)
    for number in range(1, TARGETS_PER_LANE_MAX + 2):
        book.fold(PushDecision(kind="finalize", actor="s", target=day_target(number), at_us=1))
    assert book.ledger.target(day_target(0)) is not None
    book.fold(ended(book.sent[0]))
    assert book.state(day_target(0)).pushed == 1


def test_reports_find_the_newest_identifiers_and_the_rest_moves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(push_ledger, "DELIVERED_MAX", 3)
    book = Book(baseline())
    intents = [book.push(view(number)) for number in range(1, 6)]
    assert list(book.ledger.delivered) == [i.request.identifier for i in intents[2:]]
    book.fold(ended(intents[0], "rejected", proof="report"))
    assert book.state().pushed == 5


def test_stripes_word_on_finalization_wins_over_the_grace() -> None:
    book = Book(baseline())
    assert finalization_us(TARGET, book.ledger.target(TARGET), HOUR_US) == AUGUST + HOUR_US
    book.fold(PushDecision(kind="finalize", actor="stripe", target=TARGET, at_us=AUGUST + 7))
    assert finalization_us(TARGET, book.state(), HOUR_US) == AUGUST + 7


def test_what_erased_customers_had_used_adds_up_however_wide() -> None:
    wide = 10**25 + 1
    keep = PushDecision(kind="keep", actor="system:eraser", target=TARGET, micros=str(wide))
    book = Book(keep, keep)
    assert int(book.state().kept_micros) == 2 * wide


def test_what_series_had_at_a_cutover_is_kept_in_order() -> None:
    digest = series_digest("acme", "calls", "anna")
    book = Book()
    for at_us, micros in ((NOON, 5), (NOON + 1, 10**24)):
        rows = ((digest, JULY, str(micros)),)
        book.fold(PushDecision(kind="freeze", actor="key_1", at_us=at_us, rows=rows))
    assert book.ledger.frozen[digest, JULY] == [(NOON, "5"), (NOON + 1, str(10**24))]


def test_names_and_lanes_give_digests_and_ids_of_their_own() -> None:
    names = [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("b", "a", "c")]
    assert len({series_digest(*one) for one in names}) == len(names)
    targets = [
        TARGET,
        target(scale="2"),
        target(AUGUST, SEPTEMBER),
        Target(Lane("acct_1", "live", "mtr_1", "cus_1"), "1", JULY, AUGUST),
        Target(Lane("acct_1", "test", "mtr_1", "cus_2"), "1", JULY, AUGUST),
    ]
    assert len({target_id(one) for one in targets}) == len(targets)
    assert len(target_id(TARGET)) == 16


def test_usage_records_put_the_ledger_where_the_total_was_set() -> None:
    item = RESOLVED._replace(object_id="si_1", item="si_1")
    book = Book(baseline())
    legacy = view(5, driver="usage_record", resolved=item)
    book.push(legacy)
    assert book.state().pushed == 5
    book.push(legacy._replace(local_micros=2 * UNIT))
    assert book.state().pushed == 2


def test_ended_and_resumed_name_tenant_metric_and_role() -> None:
    book = Book(mapped(), at_us=1)
    assert book.ledger.ended_at_us("acme", "calls", "main") is None
    book.fold(mapped(shadow=True), at_us=2)
    assert book.ledger.ended_at_us("acme", "calls", "main") == 2
    assert book.ledger.resumed_at_us("acme", "calls", "shadow") is None
    book.fold(mapped(), at_us=3)
    assert book.ledger.ended_at_us("acme", "calls", "shadow") == 3
    assert book.ledger.resumed_at_us("acme", "calls", "main") == 3
    assert book.ledger.resumed_at_us("acme", "calls", "shadow") is None
    assert book.ledger.was_shadow == {("acme", "calls")}


def test_a_snapshot_of_everything_is_the_same_ledger(rng: random.Random) -> None:
    digest = series_digest("acme", "calls", "anna")
    freeze = PushDecision(kind="freeze", actor="k", at_us=NOON, rows=((digest, JULY, "5"),))
    keep = PushDecision(
        kind="keep", actor="k", target=TARGET, micros="7", rows=((digest, JUNE, "1"),)
    )
    stop = PushDecision(kind="stop", actor="k", lane=LANE)
    book = Book(mapped(shadow=True), baseline(), freeze, keep)
    book.fold(mapped(), stop)
    for _ in range(rng.randrange(3, 9)):
        book.push(view(rng.randrange(1, 10**20)))
    book.push(view(3), result="refused")
    book.fold(carry(4, "credit"), carry(2, "current", at_us=AUGUST, until_us=SEPTEMBER))
    intent = book.intend(view(1))
    book.fold(ended(intent, "quarantined", reason="r"))
    again = PushLedger.restore(book.ledger.state())
    assert vars(again) == vars(book.ledger) | {"version": 0}
    assert again.state() == book.ledger.state()
