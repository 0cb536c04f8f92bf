"""The judgement of a book, against a summary that shows any part of what was acknowledged, in any order, at any time.

Pure: pushes are numbers, the summary is the sum of those it shows, and what it shows it goes on showing. Whatever
happens, nobody else is blamed; and whoever did send something is found once everything is shown.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engine.core.findings import NO_MARK, Mark
from engine.core.push_plan import Planned
from engine.core.push_records import target_id
from engine.core.reconciling import (
    WHOLE_US,
    BookFacts,
    Issue,
    TargetFacts,
    judge,
    suspect,
    tolerance,
)
from tests.helpers.pushing import AUGUST, LANE, NOON, TARGET

MINUTE = 60_000_000
LAG = 5 * MINUTE
EPSILON = Fraction(1, 200)


def target_facts(**fields: Any) -> TargetFacts:
    """A target that is pushed, in its running period."""
    values: dict[str, Any] = {
        "target": TARGET,
        "id": target_id(TARGET),
        "tenant": "acme",
        "metric": "calls",
        "planned": Planned(0, 0, 0, "current", None, None),
        "end_us": AUGUST,
        "finalization_us": AUGUST + 60 * MINUTE,
        "mark": NO_MARK,
    }
    return TargetFacts(**(values | fields))


def book(reading: str | None, pushed: int = 0, **fields: Any) -> BookFacts:
    """A book of one target."""
    values: dict[str, Any] = {
        "lane": LANE,
        "targets": (target_facts(),),
        "pushed": pushed,
        "offset": Fraction(0),
        "plus": 0,
        "minus": 0,
        "minus_at_us": 0,
        "fresh": 0,
        "open_units": 0,
        "reading": reading,
    }
    return BookFacts(**(values | fields))


def judged(facts: BookFacts, now_us: int = NOON, epsilon: Fraction = Fraction(0)) -> Any:
    return judge(facts, now_us=now_us, lag_us=LAG, epsilon=epsilon)


class Stripe:
    """A summary, and what the meter knows of it."""

    def __init__(self) -> None:
        self.shown: list[int] = []
        self.hidden: list[int] = []
        self.foreign = 0
        self.mark = Mark()
        self.now_us = NOON
        self.blamed: list[Issue] = []

    def push(self, units: int) -> None:
        self.hidden.append(units)
        self.mark.plus += max(units, 0)
        if units < 0:
            self.mark.minus += units
            self.mark.minus_at_us = self.now_us

    def show(self, which: int) -> None:
        if self.hidden:
            self.shown.append(self.hidden.pop(which % len(self.hidden)))

    def look(self, later_us: int) -> None:
        self.now_us += later_us
        found = judged(
            book(
                str(sum(self.shown) + self.foreign),
                sum(self.shown) + sum(self.hidden),
                plus=self.mark.plus,
                minus=self.mark.minus,
                minus_at_us=self.mark.minus_at_us,
            ),
            self.now_us,
        )
        if found.is_confirmed:
            self.mark.plus = self.mark.minus = 0
        self.blamed += [one for one in found.issues if one.cause in ("foreign", "duplicate")]


UNITS = st.sampled_from((-20, -7, -3, 3, 7, 20))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), UNITS),
        st.tuples(st.just("show"), st.integers(0, 9)),
        st.tuples(st.just("look"), st.sampled_from((MINUTE, LAG, 20 * LAG))),
    ),
    max_size=40,
)


@given(STEPS)
def test_whatever_a_summary_shows_of_our_own_pushes_nobody_else_is_blamed(
    steps: list[tuple[str, int]],
) -> None:
    stripe = Stripe()
    for what, number in steps:
        getattr(stripe, what)(number)
    assert stripe.blamed == []


@given(STEPS, st.sampled_from((-50, 1, 50)))
def test_what_somebody_else_sent_is_found_once_everything_is_shown(
    steps: list[tuple[str, int]], foreign: int
) -> None:
    stripe = Stripe()
    for what, number in steps:
        getattr(stripe, what)(number)
    while stripe.hidden:
        stripe.show(0)
    stripe.look(WHOLE_US)
    assert (stripe.mark.plus, stripe.mark.minus) == (0, 0), "all is confirmed"
    stripe.foreign = foreign
    stripe.look(LAG)
    (issue,) = stripe.blamed
    assert issue.units == -foreign


def test_a_total_that_things_were_taken_from_is_confirmed_after_a_day_only() -> None:
    facts = book("10", 10, plus=5, minus=-5, minus_at_us=NOON)
    assert not judged(facts, NOON + WHOLE_US - 1).is_confirmed
    assert judged(facts, NOON + WHOLE_US).is_confirmed
    assert judged(book("10", 10, plus=5)).is_confirmed
    assert not judged(book("10", 10, open_units=3)).is_confirmed


def test_the_bounds_of_a_lag_and_one_beyond_each() -> None:
    around = {"plus": 5, "minus": -3}
    for reading, cause in ((4, "foreign"), (5, "behind"), (13, "behind"), (14, "foreign")):
        (issue,) = judged(book(str(reading), 10, **around)).issues
        assert issue.cause == cause, reading
        assert not issue.is_proven, "what is absent, or somebody else's, is seen twice"
    assert judged(book("5", 10, plus=5, fresh=5)).verdict == "lagging"
    assert judged(book("4", 10, plus=5, fresh=5)).issues[0].cause == "foreign"
    assert judged(book("13", 10, open_units=3)).verdict == "lagging"
    assert judged(book("7", 10, open_units=-3)).verdict == "lagging"


def test_epsilon_is_of_the_total_and_nothing_once_the_period_is_over() -> None:
    assert tolerance(EPSILON, 1000, is_over=False) == 5
    assert tolerance(EPSILON, 1000, is_over=True) == 0
    running = book("1005", 1000)
    assert judged(running, epsilon=EPSILON).issues == ()
    assert judged(book("1006", 1000), epsilon=EPSILON).issues[0].cause == "foreign"
    assert judged(running, AUGUST - 1, EPSILON).issues == ()
    assert judged(running, AUGUST, EPSILON).issues[0].units == -5


def test_a_difference_speaks_at_the_second_look_and_not_when_the_summary_moves_on() -> None:
    (issue,) = judged(book("5", 10, plus=10)).issues
    is_said, first = suspect(None, issue, "5", now_us=NOON, lag_us=LAG)
    assert not is_said
    assert not suspect(first, issue, "5", now_us=NOON + LAG - 1, lag_us=LAG)[0]
    assert suspect(first, issue, "5", now_us=NOON + LAG, lag_us=LAG)[0]
    assert suspect(first, issue, "9", now_us=NOON + LAG, lag_us=LAG)[0]
    is_said, again = suspect(first, issue, "10", now_us=NOON + LAG, lag_us=LAG)
    assert not is_said, "what was missing then is there"
    assert again.since_us == NOON + LAG
    proven = issue._replace(is_proven=True)
    assert suspect(None, proven, None, now_us=NOON, lag_us=LAG)[0]


def test_before_a_baseline_and_in_doubt_what_stripe_holds_is_nobodys_fault() -> None:
    assert judged(book("50", 0, baseline="none")).issues == ()
    (doubt,) = judged(book("50", 0, baseline="doubt")).issues
    assert doubt.cause == "awaiting_baseline"
    assert judged(book("0", 0, baseline="doubt")).issues == ()
    assert judged(book("50", 10, offset=Fraction(40))).verdict == "agrees"
    assert judged(book(None, 10)).verdict == "unread"


def test_an_invoice_is_compared_with_what_stripe_counted_by_then() -> None:
    over = AUGUST + 100 * MINUTE
    assert judged(book("10", 10, invoiced="10"), over).issues == ()
    (less,) = judged(book("10", 10, invoiced="7"), over).issues
    assert (less.gap, less.cause, less.units) == ("invoice", "finalized", 3)
    (more,) = judged(book("10", 10, invoiced="12"), over).issues
    assert (more.gap, more.cause, more.units) == ("invoice", "invoice", -2)
    assert judged(book("-5", -5, invoiced="0"), over).issues == (), "a negative total bills as 0"
