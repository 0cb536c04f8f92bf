"""Which part of whose use goes nowhere."""

from __future__ import annotations

from engine.core.push_nowhere import PushNowhere
from tests.helpers.push_world import ANNA, BOB, use
from tests.helpers.pushing import JULY, JUNE, UNIT


def test_only_the_part_of_a_period_that_reaches_no_target_goes_nowhere() -> None:
    nowhere = PushNowhere()
    nowhere.add(ANNA, use(9), 5 * UNIT, "it is gone")
    assert nowhere.micros(ANNA, use(9)) == 5 * UNIT
    assert nowhere.micros(ANNA, use(12)) == 8 * UNIT, "what grew goes there, too"
    assert (nowhere.micros(ANNA, use(3, JUNE)), nowhere.micros(BOB, use(3))) == (0, 0)
    assert (nowhere.has_part(ANNA, JULY), nowhere.has_part(ANNA, JUNE)) == (True, False)
    nowhere.add(ANNA, use(9), 4 * UNIT, "it is gone, too")
    assert nowhere.micros(ANNA, use(9)) == 9 * UNIT
    nowhere.forget(ANNA)
    assert nowhere.micros(ANNA, use(9)) == 0
    assert not nowhere.reasons
    assert not nowhere.incomplete


def test_what_is_nothing_is_no_use_that_goes_nowhere_and_may_still_be_waited_for() -> None:
    nowhere = PushNowhere()
    nowhere.add(ANNA, use(9), 0, "it is gone")
    nowhere.add(BOB, use(9), 0, "nobody was asked", is_waiting=True)
    assert nowhere.reasons == {BOB: "nobody was asked"}
    assert set(nowhere.incomplete) == {ANNA, BOB}
    assert not any(nowhere.has_part(who, JULY) for who in (ANNA, BOB))
