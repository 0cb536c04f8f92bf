"""The fold of findings: what Stripe held before us, what is not confirmed, what is open; and its records' bytes."""

from __future__ import annotations

import msgspec
import pytest

from engine.core.finding_records import FINDING_TYPES, Finding, finding_id, finding_key
from engine.core.findings import Findings
from engine.core.push_ledger import PushLedger
from engine.core.push_records import target_id
from engine.core.push_state import PushState
from engine.core.records import RecordType, decode_control, encode_control
from tests.golden.test_log_format import tables
from tests.helpers.pushing import NOON, TARGET, Book, baseline, ended, mapped, target, view

KEY = target_id(TARGET)


class Told(Book):
    """A ledger and what is known beside it, folded as the meter does."""

    def __init__(self, *records: object) -> None:
        self.findings = Findings()
        super().__init__(*records)

    def fold(self, *records: object, at_us: int = NOON) -> Told:
        for record in records:
            self.findings.fold(record, at_us, self.ledger)
            self.ledger.fold(record, at_us)
        return self

    def push(self, seen: object, now_us: int = NOON, result: object = "delivered") -> object:
        intent = self.intend(seen, now_us)  # type: ignore[arg-type]
        self.fold(ended(intent, result), at_us=now_us)
        return intent


@pytest.mark.parametrize(
    ("choice", "reading", "units", "offset"),
    [
        ("now", "50", 10, "40"),
        ("now", "0", 10, "-10"),
        ("period", "50", 0, "50"),
        ("period", "0", 0, "0"),
        ("period", "60", 100, "0"),
        ("stripe", "50", 50, "0"),
        ("stripe", "50.5", 50, "1/2"),
    ],
)
def test_what_stripe_held_at_a_baseline_is_no_difference(
    choice: str, reading: str, units: int, offset: str
) -> None:
    told = Told(mapped(), baseline(units, choice=choice, reading=reading))
    assert told.findings.mark(TARGET).offset == offset


def test_a_baseline_counts_what_is_beside_it_in_the_same_summary() -> None:
    other = target(scale="2")
    told = Told(mapped(), baseline(0), baseline(0, of=other, choice="period", reading="0"))
    told.push(view(7))
    told.fold(baseline(0, of=other, choice="period", reading="7"))
    assert told.findings.mark(other).offset == "0"


def test_what_is_acknowledged_is_unconfirmed_until_stripe_shows_it() -> None:
    told = Told(mapped(), baseline())
    told.push(view(7))
    told.push(view(3), NOON + 60_000_000)
    mark = told.findings.mark(TARGET)
    assert (mark.plus, mark.minus, mark.confirmed) == (7, -4, None)
    told.fold(Finding(action="confirm", rows=((KEY, "3", None),)))
    mark = told.findings.mark(TARGET)
    assert (mark.plus, mark.minus, mark.confirmed) == (0, 0, "3")


@pytest.mark.parametrize("result", ["rejected", "cancelled"])
def test_what_was_taken_back_may_still_be_shown(result: str) -> None:
    told = Told(mapped(), baseline())
    intent = told.push(view(7))
    told.fold(Finding(action="confirm", rows=((KEY, "7", None),)))
    proof = "report" if result == "rejected" else "answer"
    told.fold(ended(intent, result, proof=proof, reason="no such customer"))  # type: ignore[arg-type]
    mark = told.findings.mark(TARGET)
    # What Stripe says was never counted has nothing of it to lose.
    assert (mark.minus, told.state().pushed) == (0 if result == "rejected" else -7, 0)
    assert mark.rejected == ("no such customer" if result == "rejected" else None)


def finding(**fields: object) -> Finding:
    values: dict[str, object] = {"action": "open", "cause": "foreign", "gap": "stripe"}
    values |= {"target": TARGET, "units": "-5", "repair": "take_back", "tenant_id": "acme"}
    made = Finding(**(values | fields))  # type: ignore[arg-type]
    return made if made.id else Finding(**(values | {"id": "f1"} | fields))  # type: ignore[arg-type]


def test_a_findings_life_and_that_its_snapshot_is_the_same() -> None:
    told = Told(mapped()).fold(finding())
    key = finding_key(finding())
    assert told.findings.open[key].opened_at_us == NOON
    told.fold(finding(action="change", units="-9"), at_us=NOON + 1)
    told.fold(finding(action="apply", actor="anna"), at_us=NOON + 2)
    one = told.findings.open[key]
    assert (one.record.units, one.opened_at_us, one.applied is not None) == ("-9", NOON, True)
    assert [each.id for each in told.findings.of_target(KEY)] == ["f1"]
    again = Findings.restore(told.findings.state())
    assert again.state() == told.findings.state()
    assert again.open_of == told.findings.open_of
    told.fold(finding(action="resolve", id="another"))
    assert key in told.findings.open, "a record about one that is ended moves nothing"
    told.fold(finding(action="resolve"))
    assert (told.findings.open, told.findings.open_of) == ({}, {})
    assert told.findings.ended["f1"].how == "resolve"


def test_what_is_accepted_is_expected_from_then_on() -> None:
    told = Told(mapped(), baseline(), finding())
    told.fold(finding(action="accept", actor="anna"))
    assert told.findings.mark(TARGET).offset == "5"
    told.fold(finding(id="f2", gap="push", cause="held", units="8"))
    told.fold(finding(id="f2", gap="push", cause="held", units="8", action="accept"))
    assert list(told.findings.accepted.values()) == ["8"]


def test_a_metric_that_was_mapped_later_is_known_since_then() -> None:
    told = Told(mapped())
    first = told.findings.mapped_at_us["acme", "calls"]
    told.fold(mapped(), at_us=first + 5)
    assert told.findings.mapped_at_us["acme", "calls"] == first


def test_a_state_without_findings_is_that_of_a_version_before_them() -> None:
    state = PushState()
    state.fold(mapped(), NOON)
    old = msgspec.msgpack.encode((state.routes.state(), PushLedger().state()))
    assert PushState.restore(old).findings.open == {}
    assert PushState.restore(state.state()).findings.mapped_at_us == {("acme", "calls"): NOON}


def test_a_finding_is_read_back_and_its_page_names_every_field() -> None:
    assert set(FINDING_TYPES) == {RecordType.FINDING}
    record = finding(reason="no", rows=((KEY, "7", None),), series=b"\x01" * 16)
    number, data = encode_control(record)
    assert number == RecordType.FINDING
    assert decode_control(number, data) == record
    named = [row[0].strip("`") for row in tables("#### `FINDING`")]
    assert named == [field.encode_name for field in msgspec.structs.fields(Finding)]
    assert finding_id("a", 1) != finding_id("a", 2)
