"""An intent without an outcome: resent as it is, read back, waited for, or given to a person; never guessed."""

from __future__ import annotations

import pytest

from engine.core.push_plan import (
    READ_AFTER_US,
    SENDING_US_MAX,
    Attempts,
    Close,
    OpenStep,
    ReadBack,
    Send,
    Wait,
    judge_reading,
    may_be_twofold,
    next_for_open,
    outcome,
)
from engine.core.push_records import PushIntent
from engine.core.times import HOUR_US
from tests.helpers.pushing import AUGUST, DAY_US, NOON, RESOLVED, UNIT, Book, baseline, view

FINAL_US = AUGUST + HOUR_US


class Step:
    """A step that equals only one of its own kind: empty tuples of two kinds would be equal."""

    def __init__(self, of: OpenStep) -> None:
        self.of = of

    def __eq__(self, other: object) -> bool:
        return type(self.of) is type(other) and self.of == other

    def __repr__(self) -> str:
        return repr(self.of)

    __hash__ = None  # type: ignore[assignment]

    def closed(self) -> Close:
        """The close that it must be."""
        assert isinstance(self.of, Close), self
        return self.of


def intent(units: int = 5) -> PushIntent:
    return Book(baseline()).intend(view(units))


def step(one: PushIntent, attempts: Attempts, now_us: int, monotonic_us: int = 0) -> Step:
    return Step(
        next_for_open(
            one, attempts, finalized_us=FINAL_US, now_us=now_us, monotonic_us=monotonic_us
        )
    )


def left(at_us: int = NOON) -> Attempts:
    return Attempts(left_at_us=at_us, has_left=True, last_us=at_us)


def judged(
    reading: str,
    attempts: Attempts,
    now_us: int,
    *,
    acknowledged: int | None = 7,
    is_visible: bool = True,
    of: PushIntent | None = None,
) -> Step:
    judgement = judge_reading(
        of or intent(),
        attempts,
        reading=reading,
        acknowledged=acknowledged,
        is_visible=is_visible,
        finalized_us=FINAL_US,
        now_us=now_us,
    )
    return Step(judgement)


def test_what_never_left_is_sent_at_any_time_before_finalization_and_withdrawn_after() -> None:
    one = intent()
    for now_us in (NOON, NOON + 2 * DAY_US, FINAL_US - 1):
        assert step(one, Attempts(), now_us) == Send()
    assert step(one, Attempts(next_try_us=NOON + 5), NOON) == Wait(NOON + 5)
    for now_us in (FINAL_US, FINAL_US + DAY_US):
        closed = step(one, Attempts(), now_us).closed()
        assert closed[:2] == ("withdrawn", "never left")


def test_what_may_have_left_is_resent_for_23_hours_and_read_an_hour_after_the_last_attempt() -> (
    None
):
    one, attempts = intent(), left()
    until_us = NOON + SENDING_US_MAX
    assert step(one, attempts, NOON + 1) == Send()
    assert step(one, attempts, until_us - 1) == Send()
    attempts.last_us = until_us - 1
    assert step(one, attempts, until_us) == Wait(until_us - 1 + READ_AFTER_US)
    assert step(one, attempts, until_us - 1 + READ_AFTER_US) == ReadBack()
    attempts.next_try_us = until_us + 9 * HOUR_US
    assert step(one, attempts, until_us + HOUR_US) == Wait(attempts.next_try_us)


def test_sending_stops_a_full_hour_before_identifiers_may_be_forgotten() -> None:
    assert SENDING_US_MAX == 23 * HOUR_US
    assert READ_AFTER_US == HOUR_US


def test_after_finalization_what_may_have_left_is_read_and_never_sent() -> None:
    one, attempts = intent(), left(FINAL_US - 10)
    assert step(one, attempts, FINAL_US) == Wait(FINAL_US - 10 + READ_AFTER_US)
    assert step(one, attempts, FINAL_US - 10 + READ_AFTER_US) == ReadBack()


def test_an_intent_found_in_the_log_may_have_left_until_it_was_found() -> None:
    one = intent()
    found_us = NOON + SENDING_US_MAX - 1
    found = Attempts.unknown(one, found_us)
    assert (found.left_at_us, found.has_left) == (NOON, True)
    assert step(one, found, found_us) == Send()
    assert step(one, found, NOON + SENDING_US_MAX) == Wait(found_us + READ_AFTER_US)
    late = Attempts.unknown(one, NOON + 30 * HOUR_US)
    assert step(one, late, NOON + 30 * HOUR_US) == Wait(NOON + 31 * HOUR_US)


def test_a_refusal_of_a_later_attempt_stops_sending_and_leaves_the_first_to_be_read() -> None:
    attempts = left()
    attempts.is_refused = True
    assert step(intent(), attempts, NOON + 1) == Wait(NOON + READ_AFTER_US)


def test_the_acknowledged_sum_and_the_delta_in_its_minute_is_delivered() -> None:
    assert judged("12", left(), NOON + DAY_US) == Close("delivered", "reading")
    assert judged("12.0", left(), NOON + DAY_US) == Close("delivered", "reading")
    assert judged("12", left(), NOON + DAY_US, is_visible=False) == Close("delivered", "reading")


@pytest.mark.parametrize("reading", ["11", "13", "0", "5", "17", "12.5"])
def test_any_other_sum_waits_for_a_person(reading: str) -> None:
    closed = judged(reading, left(), NOON + DAY_US).closed()
    assert closed[:2] == ("quarantined", "reading")
    assert reading in str(closed.reason)


def test_a_minute_that_is_not_remembered_waits_for_a_person() -> None:
    closed = judged("5", left(), NOON + DAY_US, acknowledged=None).closed()
    assert closed.result == "quarantined"


def test_a_minute_whose_sum_hides_the_delta_beyond_15_digits_waits_for_a_person() -> None:
    """At 15 digits the sum with the delta looks like the one without: neither is proven."""
    closed = judged(str(10**17), left(), NOON + DAY_US, acknowledged=10**17).closed()
    assert closed.result == "quarantined"


def test_absent_twice_an_hour_apart_beside_later_ones_is_resent_under_the_same_identifier() -> None:
    one, attempts = intent(), left()
    first_us = NOON + DAY_US
    assert judged("7", attempts, first_us, of=one) == Wait(first_us + READ_AFTER_US)
    assert step(one, attempts, first_us + READ_AFTER_US - 1) == Wait(first_us + READ_AFTER_US)
    again_us = first_us + READ_AFTER_US
    assert step(one, attempts, again_us) == ReadBack()
    assert judged("7", attempts, again_us, of=one) == Send()
    assert attempts.has_left, "an identifier that exists now is this intent's"
    assert step(one, attempts, again_us) == Send()
    attempts.left_at_us = attempts.last_us = again_us
    assert step(one, attempts, again_us + SENDING_US_MAX - 1) == Send()
    assert step(one, attempts, again_us + SENDING_US_MAX) != Send()


def test_absence_once_or_twice_within_the_hour_proves_nothing() -> None:
    attempts = left()
    first_us = NOON + DAY_US
    for now_us in (first_us, first_us + 1, first_us + READ_AFTER_US - 1):
        assert judged("7", attempts, now_us) == Wait(first_us + READ_AFTER_US)
        assert attempts.left_at_us is not None


def test_absence_without_later_pushes_in_sight_waits_however_long() -> None:
    attempts = left()
    now_us = NOON + DAY_US
    for _ in range(5):
        waited = judged("7", attempts, now_us, is_visible=False)
        assert waited == Wait(now_us + READ_AFTER_US)
        now_us += READ_AFTER_US
        assert step(intent(), attempts, now_us - 1) == Wait(now_us)
    assert judged("7", attempts, now_us) == Send()


def test_absence_for_a_day_where_nothing_later_can_be_seen_waits_for_a_person() -> None:
    attempts = left()
    first_us = NOON + DAY_US
    judged("7", attempts, first_us, is_visible=False)
    last_us = first_us + DAY_US
    assert judged("7", attempts, last_us - 1, is_visible=False) == Wait(last_us - 1 + READ_AFTER_US)
    assert judged("7", attempts, last_us, is_visible=False).closed().result == "quarantined"
    assert judged("7", attempts, last_us) == Send()


def test_what_arrives_between_two_readings_is_delivered() -> None:
    attempts = left()
    judged("7", attempts, NOON + DAY_US)
    again_us = NOON + DAY_US + READ_AFTER_US
    assert judged("12", attempts, again_us) == Close("delivered", "reading")


def test_what_is_proven_absent_once_the_invoice_is_final_is_withdrawn_by_its_reading() -> None:
    one, attempts = intent(), left(FINAL_US - 1)
    read_us = FINAL_US + HOUR_US
    judged("7", attempts, read_us, of=one)
    closed = judged("7", attempts, read_us + READ_AFTER_US, of=one).closed()
    assert closed[:2] == ("withdrawn", "reading")
    proven = Attempts(has_left=True, last_us=NOON)
    late = step(one, proven, FINAL_US).closed()
    assert late[:2] == ("withdrawn", "reading"), "it did leave once, so that is not the proof"


def test_a_negative_delta_is_read_back_like_any_other() -> None:
    book = Book(baseline())
    book.push(view(10))
    down = book.intend(view(4))
    assert judged("1", left(), NOON + DAY_US, of=down) == Close("delivered", "reading")
    assert judged("7", left(), NOON + DAY_US, of=down) == Wait(NOON + DAY_US + READ_AFTER_US)


def test_a_usage_records_total_is_resent_until_finalization_and_then_compared() -> None:
    item = RESOLVED._replace(object_id="si_1", item="si_1")
    book = Book(baseline())
    legacy = view(5, driver="usage_record", resolved=item)
    book.push(legacy)
    total = book.intend(legacy._replace(local_micros=12 * UNIT))
    attempts = left()
    assert step(total, attempts, NOON + 3 * DAY_US) == Send()
    assert step(total, attempts, FINAL_US) == ReadBack()
    assert judged("12", attempts, FINAL_US, of=total) == Close("delivered", "reading")
    other = judged("5", attempts, FINAL_US, of=total).closed()
    assert other.result == "quarantined"


def test_a_close_becomes_the_record_of_its_intent() -> None:
    one = intent()
    record = outcome(one, Close("withdrawn", "reading", "why"))
    assert (record.target, record.number) == (one.target, one.number)
    assert (record.result, record.proof, record.reason) == ("withdrawn", "reading", "why")


def test_an_identifier_that_was_sent_twice_a_day_apart_is_marked_for_reports_about_it() -> None:
    for close, twofold in (
        (Close("delivered", "answer"), False),
        (Close("delivered", "exists"), False),
        (Close("delivered", "answer", is_resent=True), True),
        (Close("delivered", "reading"), True),
    ):
        book = Book(baseline())
        one = book.intend(view(5))
        book.fold(outcome(one, close))
        assert book.ledger.delivered[one.request.identifier].is_twofold is twofold


def test_a_clock_that_was_set_back_does_not_make_the_time_longer_in_which_it_is_sent_again() -> (
    None
):
    one, attempts = intent(), Attempts()
    attempts.leave(NOON, 1_000)
    back_us = NOON - 5 * HOUR_US
    assert step(one, attempts, back_us, 1_000 + SENDING_US_MAX - 1) == Send()
    assert step(one, attempts, back_us, 1_000 + SENDING_US_MAX) != Send()
    attempts.leave(back_us, 5_000)  # a second attempt is no second beginning
    assert step(one, attempts, back_us, 1_000 + SENDING_US_MAX) != Send()
    found = Attempts.unknown(one, back_us, 7_000)
    assert step(one, found, back_us, 7_000 + SENDING_US_MAX) != Send()


def test_an_open_intent_may_be_twofold_once_it_was_resent_or_is_older_than_sending_lasts() -> None:
    one = intent()
    at_us = one.first_sent_at_us
    assert not may_be_twofold(one, Attempts.unknown(one), at_us + SENDING_US_MAX - 1)
    assert not may_be_twofold(one, None, at_us)
    assert may_be_twofold(one, None, at_us + SENDING_US_MAX)
    assert may_be_twofold(one, Attempts(is_resent=True), at_us)
