"""From differences to records: one finding about many takes in what is of it, and leaves the rest as it was found."""

from __future__ import annotations

from fractions import Fraction

import msgspec

from engine.core.finding_plan import Gatherings, Looked, Unrouted, steps, unrouted_steps
from engine.core.finding_records import Finding, FindingAction
from engine.core.findings import Findings
from engine.core.push_ledger import PushLedger
from engine.core.push_plan import Planned
from engine.core.push_records import Target, target_id
from engine.core.reconciling import MANY, Issue, TargetFacts
from tests.helpers.pushing import AUGUST, NOON, baseline, target

TARGETS = [target(scale=str(number + 1)) for number in range(MANY + 1)]


def behind(of: Target) -> Issue:
    facts = TargetFacts(
        target=of,
        id=target_id(of),
        tenant="acme",
        metric="calls",
        planned=Planned(10, 10, 0, "current", None, None),
        end_us=AUGUST,
        finalization_us=AUGUST,
        mark=Findings().mark(of),
    )
    return Issue(facts, "stripe", "behind", Fraction(10), None, is_proven=False)


def looked(findings: Findings, gatherings: Gatherings, of: Target, *issues: Issue) -> list[Finding]:
    """One look at one target, and the records that it makes, folded."""
    records = steps(findings, gatherings, [Looked(target_id(of), issues, is_read=True)], NOON)
    for record in records:
        findings.fold(record, NOON, PushLedger())
    return records


def test_one_finding_about_many_leaves_open_what_else_was_found_of_its_members() -> None:
    findings, gatherings = Findings(), Gatherings()
    first = behind(TARGETS[0])
    late = first._replace(gap="usage", cause="late", is_proven=True)
    looked(findings, gatherings, TARGETS[0], first, late)
    for of in TARGETS[1:]:
        looked(findings, gatherings, of, behind(of))
    left = {(one.record.cause, one.record.count) for one in findings.open.values()}
    assert left == {("late", 1), ("behind", len(TARGETS))}
    assert {one.record.cause for one in findings.ended.values()} == {"behind"}
    assert len(findings.ended) == MANY


def test_what_was_accepted_and_shows_after_all_is_for_a_person_also_while_stripe_is_behind() -> (
    None
):
    """One finding about many can't be accepted, and would not end as long as this one does not."""
    findings, gatherings = Findings(), Gatherings()
    for of in TARGETS:
        looked(findings, gatherings, of, behind(of))
    shown = behind(TARGETS[0])._replace(units=Fraction(-10), repair="accept")
    looked(findings, gatherings, TARGETS[0], shown)
    for of in TARGETS[1:]:
        looked(findings, gatherings, of)
    left = [(one.record.account, one.record.units) for one in findings.open.values()]
    assert left == [("acct_1/test", "0"), ("", "-10")]
    gatherings.is_complete = True
    looked(findings, gatherings, TARGETS[1])
    (own,) = findings.open.values()
    assert (own.record.target, own.record.repair) == (TARGETS[0], "accept")


def test_what_was_accepted_as_missing_is_less_by_what_shows_again_and_nothing_after_a_baseline() -> (
    None
):
    findings, of = Findings(), TARGETS[0]

    def accepted(units: int) -> int:
        opened = Finding(
            action="open", id="1", cause="behind", gap="stripe", target=of, units=str(units)
        )
        for record in (opened, msgspec.structs.replace(opened, action="accept")):
            findings.fold(record, NOON, PushLedger())
        return findings.mark(of).missing

    assert [accepted(units) for units in (10, 5, -4, -20, 7)] == [10, 15, 11, 0, 7]
    read = msgspec.structs.replace(baseline(of=of), reading="0")
    findings.fold(read, NOON, PushLedger())
    assert findings.mark(of).missing == 0, "what Stripe holds was looked at anew"


def unrouted(*units: int) -> list[Unrouted]:
    """Use of a mapped metric by so many customers that goes nowhere, and of a metric that was never mapped."""
    mapped = [
        Unrouted("acme", "calls", bytes([number]), 0, str(each), None)
        for number, each in enumerate(units)
    ]
    return [*mapped, Unrouted("acme", "seats", b"", 0, "0", None)]


def test_what_more_goes_nowhere_than_was_accepted_is_said_again() -> None:
    findings = Findings()

    def told(action: FindingAction | None, *units: int) -> list[tuple[str, str]]:
        records = unrouted_steps(findings, unrouted(*units), NOON)
        for record in records:
            findings.fold(record, NOON, PushLedger())
        for one in [*findings.open.values()] if action is not None else []:
            accepted = msgspec.structs.replace(one.record, action=action)
            findings.fold(accepted, NOON, PushLedger())
        return [(record.metric, record.units) for record in records]

    many = [10] * (MANY + 1)
    assert told("accept", *many) == [("calls", "40"), ("seats", "0")]
    assert told(None, *many) == [], "it is the same"
    assert told(None, *many, 7) == [("calls", "47")], "a customer more, whom nobody accepted"
