"""Rules: what is late, what is closed, which period holds; and that nothing reopens what was closed."""

from __future__ import annotations

from typing import Any

from engine.core.closings import anchored_end, due_closing
from engine.core.configured import Change, Customer, CustomerChange, Mapping, MappingChange
from engine.core.periods import period_in
from engine.core.records import PeriodClosing, SettingsChange
from engine.core.rules import ALWAYS_US, DEFAULT_LATENESS_US, Rules
from engine.core.times import parse_instant

HOUR_US = 3_600_000_000
OCTOBER = parse_instant("2026-10-01T00:00:00Z")
NOVEMBER = parse_instant("2026-11-01T00:00:00Z")
DECEMBER = parse_instant("2026-12-01T00:00:00Z")


def mapping(deleted: bool = False, since: int | None = None, **fields: Any) -> MappingChange:
    values = {"id": "map_1", "tenant_id": "t", "metric": "m"} | fields
    change = Change(actor="test", effective_from_us=since)
    return MappingChange(mapping=Mapping(**values), change=change, deleted=deleted)


def customer(anchor_us: int | None, since: int | None = None) -> CustomerChange:
    return CustomerChange(
        customer=Customer(tenant_id="t", customer_ref="c", billing_anchor_us=anchor_us),
        change=Change(actor="test", effective_from_us=since),
    )


def closing(end_us: int, tenant: str | None = None, metric: str | None = None) -> PeriodClosing:
    return PeriodClosing(start_us=0, end_us=end_us, lateness_us=0, tenant_id=tenant, metric=metric)


def rules(*records: Any) -> Rules:
    made = Rules()
    for record in records:
        made.apply(record)
    return made


def test_a_metric_without_a_mapping_has_the_common_lateness() -> None:
    assert rules().scope("t", "m") == (DEFAULT_LATENESS_US, ALWAYS_US)
    changed = rules(SettingsChange(lateness_us=5, late_policy="auto", actor="a"))
    assert changed.scope("t", "m").lateness_us == 5
    assert changed.late_policy == "auto"


def test_a_mapping_gives_its_metric_its_own_lateness_and_only_to_its_tenant() -> None:
    own = rules(mapping(lateness_us=7))
    assert own.scope("t", "m").lateness_us == 7
    assert own.scope("other", "m").lateness_us == DEFAULT_LATENESS_US
    assert (
        rules(mapping(lateness_us=7), mapping(deleted=True)).scope("t", "m").lateness_us
        == DEFAULT_LATENESS_US
    )


def test_a_metric_with_its_own_lateness_is_not_closed_with_the_others() -> None:
    own = rules(mapping(lateness_us=7), closing(NOVEMBER))
    assert own.scope("t", "m").closed_until_us == ALWAYS_US
    assert own.scope("t", "x").closed_until_us == NOVEMBER


def test_what_was_closed_stays_closed_when_a_mapping_brings_its_own_lateness() -> None:
    assert (
        rules(closing(NOVEMBER), mapping(lateness_us=10**15)).scope("t", "m").closed_until_us
        == NOVEMBER
    )


def test_what_was_closed_stays_closed_when_the_mapping_goes() -> None:
    gone = rules(mapping(lateness_us=7), closing(NOVEMBER, "t", "m"), mapping(deleted=True))
    assert gone.scope("t", "m").closed_until_us == NOVEMBER


def test_a_closing_never_moves_back() -> None:
    assert rules(closing(NOVEMBER), closing(OCTOBER)).scope("t", "m").closed_until_us == NOVEMBER
    own = rules(mapping(lateness_us=7), closing(NOVEMBER, "t", "m"), closing(OCTOBER, "t", "m"))
    assert own.scope("t", "m").closed_until_us == NOVEMBER


def test_a_change_of_aggregation_holds_from_its_instant() -> None:
    changed = rules(mapping(aggregation="max"), mapping(aggregation="last", since=NOVEMBER))
    assert changed.aggregation("t", "m", NOVEMBER - 1) == "max"
    assert changed.aggregation("t", "m", NOVEMBER) == "last"
    assert changed.aggregation("t", "unmapped", NOVEMBER) == "sum"


def test_a_change_that_is_taken_back_before_it_holds_leaves_nothing() -> None:
    taken_back = rules(
        mapping(aggregation="max"),
        mapping(aggregation="last", since=NOVEMBER),
        mapping(aggregation="max", since=NOVEMBER),
    )
    assert taken_back.aggregation("t", "m", DECEMBER) == "max"


def test_a_subscription_period_follows_the_customers_anchor() -> None:
    anchor = parse_instant("2026-10-15T09:00:00Z")
    anchored = rules(mapping(period="subscription"), customer(anchor))
    start, end = period_in(anchored.schedule("t", "m", "c"), parse_instant("2026-11-20T00:00:00Z"))
    assert (start, end) == (
        parse_instant("2026-11-15T09:00:00Z"),
        parse_instant("2026-12-15T09:00:00Z"),
    )
    start, end = period_in(anchored.schedule("t", "m", "someone else"), NOVEMBER)
    assert (start, end) == (NOVEMBER, DECEMBER)


def test_a_new_anchor_does_not_move_the_past() -> None:
    first, second = parse_instant("2026-10-10T00:00:00Z"), parse_instant("2026-10-20T00:00:00Z")
    since = parse_instant("2026-11-10T00:00:00Z")
    moved = rules(mapping(period="subscription"), customer(first), customer(second, since))
    schedule = moved.schedule("t", "m", "c")
    assert period_in(schedule, since - 1) == (first, since)
    assert period_in(schedule, since) == (since, parse_instant("2026-11-20T00:00:00Z"))


def test_an_inactive_mapping_beside_the_active_one_changes_nothing() -> None:
    active = mapping(lateness_us=7, aggregation="max")
    beside = mapping(id="map_2", active=False, lateness_us=9)
    for records in (
        [active, beside],
        [beside, active],
        [active, beside, mapping(id="map_2", deleted=True)],
    ):
        judged = rules(*records)
        assert judged.scope("t", "m").lateness_us == 7
        assert judged.aggregation("t", "m", NOVEMBER) == "max"


def test_rules_survive_a_snapshot() -> None:
    before = rules(
        SettingsChange(lateness_us=5, late_policy="auto", actor="a"),
        mapping(period="subscription", lateness_us=9, since=OCTOBER, aggregation="max"),
        customer(OCTOBER + 5),
        customer(OCTOBER + 9, NOVEMBER),
        closing(OCTOBER),
        closing(NOVEMBER, "t", "m"),
    )
    after = Rules.restore(before.state())
    assert after.state() == before.state()
    assert after.scope("t", "m") == before.scope("t", "m")
    assert after.schedule("t", "m", "c") == before.schedule("t", "m", "c")
    assert after.aggregation("t", "m", NOVEMBER) == "max"
    assert after.late_policy == "auto"


def test_a_month_is_due_at_its_end_plus_the_lateness_and_not_a_microsecond_before() -> None:
    fresh = rules(closing(OCTOBER))
    due = NOVEMBER + DEFAULT_LATENESS_US
    assert due_closing(fresh, None, due - 1) is None
    found = due_closing(fresh, None, due)
    assert found is not None
    assert (found.start_us, found.end_us, found.lateness_us) == (
        OCTOBER,
        NOVEMBER,
        DEFAULT_LATENESS_US,
    )
    fresh.apply(found)
    assert due_closing(fresh, None, due) is None


def test_days_are_closed_only_where_a_mapping_counts_by_day() -> None:
    base = [closing(NOVEMBER)]
    at = NOVEMBER + DEFAULT_LATENESS_US + 24 * HOUR_US
    assert due_closing(rules(*base), None, at) is None
    by_day = due_closing(rules(*base, mapping(period="day")), None, at)
    assert by_day is not None
    assert by_day.end_us == NOVEMBER + 24 * HOUR_US


def test_a_metric_with_its_own_lateness_is_closed_by_it() -> None:
    own = rules(mapping(lateness_us=96 * HOUR_US), closing(OCTOBER, "t", "m"), closing(NOVEMBER))
    assert due_closing(own, ("t", "m"), NOVEMBER + 96 * HOUR_US - 1) is None
    found = due_closing(own, ("t", "m"), NOVEMBER + 96 * HOUR_US)
    assert found is not None
    assert (found.tenant_id, found.metric, found.end_us) == ("t", "m", NOVEMBER)


def test_a_subscription_is_closed_at_its_own_end() -> None:
    anchor = parse_instant("2026-10-15T09:00:00Z")
    end = parse_instant("2026-11-15T09:00:00Z")
    anchored = rules(mapping(period="subscription"), customer(anchor), closing(NOVEMBER))
    early = anchored_end(anchored, None, end + DEFAULT_LATENESS_US - 1, [anchor], None)
    assert early is None
    found = anchored_end(anchored, None, end + DEFAULT_LATENESS_US, [anchor], None)
    assert found is not None
    assert found.end_us == end
