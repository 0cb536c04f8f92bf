"""Pushing as a fold: snapshots anywhere change nothing, Stripe's total is what the ledger says, order does not matter.

What Stripe holds is kept here by the simplest of models: the sum of what was applied, whatever the ledger believes.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engine.core.push_baselines import baseline_decision, baseline_need
from engine.core.push_ledger import PushLedger
from engine.core.push_records import PushDecision, PushIntent, Target, series_digest
from engine.core.push_state import PushState
from engine.core.push_uses import PeriodUse
from engine.core.times import HOUR_US, MINUTE_US
from tests.helpers.push_world import ENDS, World, frozen
from tests.helpers.pushing import (
    AUGUST,
    DAY_US,
    INTERVAL_US,
    JULY,
    LANE,
    NOON,
    SEPTEMBER,
    TARGET,
    UNIT,
    Book,
    customer,
    ended,
    mapped,
    restored,
    target,
    view,
)

TARGETS = (TARGET, target(scale="10"), target(AUGUST, SEPTEMBER))
wholes = st.integers(0, 10**17)
amounts = st.one_of(st.integers(-20, 20), st.integers(-(10**17), 10**17))
steps = st.one_of(
    st.tuples(st.just("use"), st.integers(0, 2), amounts),
    st.tuples(st.just("push"), st.integers(0, 2)),
    st.tuples(
        st.just("settle"),
        st.sampled_from(["delivered", "delivered", "refused", "withdrawn", "quarantined"]),
    ),
    st.tuples(st.just("undo"), st.integers(0, 9), st.sampled_from(["rejected", "cancelled"])),
    st.tuples(st.just("choose"), st.integers(0, 2), st.sampled_from(["now", "period", "stripe"])),
    st.tuples(st.just("decide"), st.integers(0, 7)),
    st.tuples(st.just("wait"), st.sampled_from([1, MINUTE_US, HOUR_US, 5 * DAY_US])),
)


class History:
    """A valid history of one lane, and what Stripe would hold by it."""

    def __init__(self) -> None:
        self.now_us = NOON
        self.book = Book()
        self.records: list[tuple[Any, int]] = []
        self.used = [0, 0, 0]
        self.stripe: dict[Target, int] = {}
        self.applied: list[PushIntent] = []
        self.put(mapped())

    def put(self, record: Any) -> None:
        self.records.append((record, self.now_us))
        self.book.fold(record, at_us=self.now_us)

    def seen(self, number: int) -> Any:
        return view(self.used[number], target=TARGETS[number], newest_event_us=self.now_us)

    def run(self, step: tuple[Any, ...]) -> None:
        getattr(self, f"_{step[0]}")(*step[1:])

    def _use(self, number: int, units: int) -> None:
        self.used[number] += units

    def _push(self, number: int) -> None:
        seen = self.seen(number)
        planned = self.book.planned(seen, self.now_us)
        lane = self.book.ledger.lane(LANE)
        is_free = lane is None or lane.open is None
        if planned.standing != "due" or not is_free or baseline_need(seen, self.book.ledger):
            return
        intent = self.book.intend(seen, self.now_us)
        self.records.append((intent, self.now_us))
        assert intent.request.value != "0", "an empty push helps nobody"

    def _settle(self, result: Any) -> None:
        lane = self.book.ledger.lane(LANE)
        if lane is None or lane.open is None:
            return
        intent = lane.open
        if result == "delivered":
            self.stripe[intent.target] = self.stripe.get(intent.target, 0) + int(
                intent.request.value
            )
            self.applied.append(intent)
        self.put(ended(intent, result, reason="no"))

    def _undo(self, number: int, result: Any) -> None:
        if number < len(self.applied):
            intent = self.applied.pop(number)
            self.stripe[intent.target] -= int(intent.request.value)
            self.put(ended(intent, result, proof="report"))

    def _choose(self, number: int, choice: Any) -> None:
        seen = self.seen(number)
        need = baseline_need(seen, self.book.ledger)
        lane = self.book.ledger.lane(LANE)
        if need is None or (lane is not None and lane.open is not None):
            return
        state = self.book.ledger.target(seen.target)
        reading = str(self.stripe.get(seen.target, 0))
        self.put(baseline_decision(seen, state, need, reading))
        made = baseline_decision(seen, state, need, reading, choice=choice, actor="key_1")
        self.put(made)
        # What a baseline takes for pushed counts like what Stripe holds: the model goes along.
        self.stripe[seen.target] = int(made.units)
        self.applied = [one for one in self.applied if one.target != seen.target]
        self.book.ledger.delivered.clear()

    def _decide(self, number: int) -> None:
        rows = ((series_digest("acme", "calls", "anna"), JULY, "5"),)
        by: dict[str, Any] = {"actor": "key_1"}
        carry: dict[str, Any] = {"kind": "carry", "target": TARGET, "units": "2"}
        decisions: list[Any] = [
            PushDecision(kind="stop", lane=LANE, **by),
            PushDecision(kind="resume", lane=LANE, **by),
            PushDecision(kind="keep", target=TARGET, micros=str(10**20), rows=rows, **by),
            PushDecision(kind="freeze", at_us=self.now_us, rows=rows, **by),
            PushDecision(**carry, into="current", at_us=AUGUST, until_us=SEPTEMBER, **by),
            restored(),
            mapped(active=False),
            mapped(shadow=bool(self.now_us % 2)),
        ]
        self.put(decisions[number])

    def _wait(self, us: int) -> None:
        self.now_us += us


def same(left: PushLedger, right: PushLedger) -> bool:
    return vars(left) | {"version": 0} == vars(right) | {"version": 0}


@given(st.lists(steps, max_size=60), st.integers(0, 200))
def test_a_snapshot_anywhere_and_the_rest_is_the_whole(taken: list[Any], at: int) -> None:
    history = History()
    for step in taken:
        if step[0] != "choose":
            history.run(step)
    at = min(at, len(history.records))
    state = PushState()
    for record, at_us in history.records[:at]:
        state.fold(record, at_us)
    state = PushState.restore(state.state())
    for record, at_us in history.records[at:]:
        state.fold(record, at_us)
    assert same(state.ledger, history.book.ledger)
    whole = PushState.restore(state.state())
    assert same(whole.ledger, state.ledger)
    assert vars(whole.routes) | {"version": 0} == vars(state.routes) | {"version": 0}


@given(st.lists(steps, max_size=80))
def test_pushed_is_what_stripe_applied_and_no_identifier_has_two_amounts(taken: list[Any]) -> None:
    history = History()
    history.run(("choose", 0, "period"))
    history.run(("choose", 2, "period"))
    for step in taken:
        history.run(step)
        for one in TARGETS:
            state = history.book.ledger.target(one)
            pushed = 0 if state is None else state.pushed
            assert pushed == history.stripe.get(one, 0)
    sent = history.book.sent
    assert len({intent.request.identifier for intent in sent}) == len(sent)
    by_period: dict[int, list[int]] = {}
    for intent in sent:
        by_period.setdefault(intent.target.start_us, []).append(intent.number)
        assert len(intent.request.value.lstrip("-")) <= 15
        second = intent.request.timestamp_s * UNIT
        assert intent.target.start_us <= second <= intent.target.end_us - MINUTE_US
    for numbers in by_period.values():
        assert numbers == list(range(1, len(numbers) + 1))


@given(
    st.lists(
        st.tuples(wholes, st.sampled_from(["delivered", "refused", "withdrawn"]), st.booleans()),
        max_size=30,
    )
)
def test_use_that_only_grows_never_decreases_stripe_nor_bills_more_than_was_used(
    growth: list[tuple[int, Any, bool]],
) -> None:
    history = History()
    history.run(("choose", 0, "period"))
    for more, result, is_rejected in growth:
        history.used[0] += more
        history.run(("push", 0))
        history.run(("settle", result))
        if is_rejected:
            history.run(("undo", 0, "rejected"))
        history.run(("wait", HOUR_US * 7))
        if history.now_us > AUGUST:
            break
        assert 0 <= history.stripe.get(TARGET, 0) <= history.used[0]
    assert all(int(intent.request.value) > 0 for intent in history.book.sent)


@given(st.lists(wholes, min_size=1, max_size=8))
def test_in_the_end_stripe_has_everything_whatever_was_refused_on_the_way(more: list[int]) -> None:
    history = History()
    history.run(("choose", 0, "period"))
    for number, units in enumerate(more):
        history.used[0] += units
        history.run(("push", 0))
        history.run(("settle", "refused" if number % 2 else "withdrawn"))
        history.run(("wait", MINUTE_US))
    history.run(("wait", 7 * HOUR_US))  # longer than any refusal is backed off from
    for _ in range(1_000):
        if history.stripe.get(TARGET, 0) == history.used[0]:
            break
        history.run(("wait", INTERVAL_US))
        history.run(("push", 0))
        history.run(("settle", "delivered"))
    assert history.stripe.get(TARGET, 0) == history.used[0]


# Totals.

refs = st.sampled_from(["anna", "bob", "cus_9"])
periods = st.sampled_from(sorted(ENDS))
takes = st.lists(
    st.tuples(refs, st.dictionaries(periods, st.integers(-(10**20), 10**20), max_size=3)),
    max_size=20,
)


def uses_of(micros: dict[int, int]) -> list[PeriodUse]:
    return [
        PeriodUse(start_us, ENDS[start_us], micros[start_us], start_us)
        for start_us in sorted(micros, reverse=True)
    ]


def world(carried: int | None = None) -> World:
    made = World(mapped(), *[customer(ref, stripe_customer_id="cus_1") for ref in ("anna", "bob")])
    if carried is not None:
        made.fold(*[frozen(("acme", "calls", ref), carried) for ref in ("anna", "bob")])
        made.fold(mapped(NOON, "carry", meter_event_name="new"))
    return made


@given(takes, st.randoms(use_true_random=False))
def test_any_order_of_takes_gives_the_same_sums(taken: list[Any], rng: Any) -> None:
    newest = dict(taken)
    one, other = world(), world()
    for ref, micros in taken:
        one.take(("acme", "calls", ref), *uses_of(micros))
    order = list(newest)
    rng.shuffle(order)
    for ref in order:
        other.take(("acme", "calls", ref), *uses_of(newest[ref]))
    assert set(one.totals.targets) == set(other.totals.targets)
    for each in one.totals.targets:
        assert one.view(each) == other.view(each)
    by_start: dict[int, int] = {}
    for micros in newest.values():
        for start_us, value in micros.items():
            by_start[start_us] = by_start.get(start_us, 0) + value
    told: dict[int, int] = {}
    for (_object, _customer, start_us), value in one.locals().items():
        told[start_us] = told.get(start_us, 0) + value
    assert told == by_start


@given(takes, st.integers(0, 10**12))
def test_a_cutover_by_carry_never_changes_the_sum_over_both(taken: list[Any], had: int) -> None:
    made = world(had)
    for ref, micros in taken:
        made.take(("acme", "calls", ref), *uses_of(micros))
    newest = dict(taken)
    july = sum(micros.get(JULY, 0) for micros in newest.values())
    found = [value for (*_, start_us), value in made.locals().items() if start_us == JULY]
    assert sum(found) == july
    for (name, _customer, start_us), value in made.locals().items():
        if name == "mtr_calls" and start_us == JULY:
            ours = [ref for ref in newest if ref != "cus_9" and JULY in newest[ref]]
            assert value in (had * len(ours), 0), "the old one keeps what it had"


changes = st.sampled_from(
    [
        mapped(active=False),
        mapped(),
        mapped(AUGUST, meter_event_name="next"),
        mapped(NOON, "move", meter_event_name="moved"),
        mapped(NOON + 1, "carry", stripe_scale="10"),
        customer("bob", NOON, stripe_customer_id="cus_2"),
        customer("anna", NOON),
        frozen(("acme", "calls", "anna"), 7),
    ]
)


@given(st.lists(st.one_of(takes.map(lambda of: of[:1]), changes), max_size=25))
def test_what_is_taken_in_by_and_by_is_what_a_start_would_take_in(mixed: list[Any]) -> None:
    """Only what changed is looked at again: the same must come of it as of looking at all."""
    made, newest, records = world(), {}, []
    for one in mixed:
        if isinstance(one, list):
            for ref, micros in one:
                newest[ref] = micros
                made.take(("acme", "calls", ref), *uses_of(micros))
        else:
            made.fold(one)
            records.append(one)
            for ref, micros in newest.items():
                made.take(("acme", "calls", ref), *uses_of(micros))
    afresh = world().fold(*records)
    for ref, micros in newest.items():
        afresh.take(("acme", "calls", ref), *uses_of(micros))
    assert set(made.totals.targets) == set(afresh.totals.targets)
    for each in made.totals.targets:
        assert made.view(each) == afresh.view(each)
    assert made.totals.unroutable == afresh.totals.unroutable
