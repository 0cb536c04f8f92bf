"""From differences that are worth a word to the records that say so: opened, changed, resolved.

Rules it keeps: when many targets of an account lag, or wait to be pushed, that is one finding, and stays one until the
last of them is right; what was accepted is not said again while it is the same; nothing is resolved that was not
looked at. It must not know tasks, or how a difference is judged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import NamedTuple

import msgspec

from engine.core.finding_records import REASON_CHARS_MAX, Finding, Gap, finding_id, finding_key
from engine.core.findings import OPEN_MAX, Findings, OpenFinding
from engine.core.reconciling import GATHERED, MANY, Issue


class Unrouted(NamedTuple):
    """A customer's use in a period that goes nowhere, or (`series` empty) a metric that nothing bills."""

    tenant: str
    metric: str
    series: bytes
    start_us: int
    units: str
    """Of use, decimal."""
    reason: str | None


def wanted(
    issues: Iterable[Issue], unrouted: Iterable[Unrouted], findings: Findings
) -> dict[str, Finding]:
    """What is to be open, by key; each as an `open` record without an id."""
    found: dict[str, Finding] = {}
    gathered: dict[Finding, list[Issue]] = defaultdict(list)
    for issue in issues:
        if issue.cause in GATHERED:
            gathered[_of_account(issue)].append(issue)
        else:
            _add(found, _of_target(issue))
    for whole, members in gathered.items():
        if len(members) > MANY or finding_key(whole) in findings.open:
            units = sum((one.units for one in members), Fraction(0))
            _add(found, msgspec.structs.replace(whole, count=len(members), units=_text(units)))
        else:
            for issue in members:
                _add(found, _of_target(issue))
    for record in _of_unrouted(unrouted, findings):
        _add(found, record)
    return found


def _add(found: dict[str, Finding], record: Finding) -> None:
    found[finding_key(record)] = record


def _of_account(issue: Issue) -> Finding:
    lane = issue.facts.target.lane
    gap: Gap = "stripe" if issue.cause == "behind" else "push"
    reason = _REASONS[issue.cause]
    return Finding(
        action="open", cause=issue.cause, gap=gap, account=f"{lane.account}/{lane.mode}", reason=reason
    )  # fmt: skip


_REASONS = {
    "behind": "Stripe is behind: its summaries do not show what it acknowledged",
    "not_pushed": "pushing is behind",
}


def _of_target(issue: Issue) -> Finding:
    facts = issue.facts
    reason = None if issue.reason is None else issue.reason[:REASON_CHARS_MAX]
    return Finding(
        action="open",
        cause=issue.cause,
        gap=issue.gap,
        target=facts.target,
        units=_text(issue.units),
        reason=reason,
        repair=issue.repair,
        tenant_id=facts.tenant,
        metric=facts.metric,
    )


def _of_unrouted(unrouted: Iterable[Unrouted], findings: Findings) -> Iterable[Finding]:
    of_metric: dict[tuple[str, str], list[Unrouted]] = defaultdict(list)
    for one in unrouted:
        of_metric[one.tenant, one.metric].append(one)
    for (tenant, metric), members in of_metric.items():
        whole = Finding(
            action="open",
            cause="mapping_missing",
            gap="usage",
            tenant_id=tenant,
            metric=metric,
            count=len(members),
            units=_text(sum((Fraction(one.units) for one in members), Fraction(0))),
            reason=members[0].reason,
            repair="accept",
        )
        is_one = len(members) > MANY or not members[0].series
        if is_one or finding_key(whole) in findings.open:
            yield whole
            continue
        for one in members:
            yield msgspec.structs.replace(
                whole,
                series=one.series,
                start_us=one.start_us,
                count=1,
                units=one.units,
                reason=one.reason,
            )


def _text(units: Fraction) -> str:
    """Whole, or exact decimal digits: amounts come from decimal text."""
    if units.denominator == 1:
        return str(units.numerator)
    digits = 0
    while (units * 10**digits).denominator != 1 and digits < 40:
        digits += 1
    scaled = abs(int(units * 10**digits))
    text = f"{scaled:0{digits + 1}d}"
    return f"{'-' if units < 0 else ''}{text[:-digits]}.{text[-digits:]}"


def steps(
    findings: Findings,
    are_wanted: dict[str, Finding],
    *,
    was_looked_at: Callable[[OpenFinding], bool],
    now_us: int,
) -> list[Finding]:
    """The records that bring what is open to what is wanted, oldest first."""
    records: list[Finding] = []
    room = OPEN_MAX - len(findings.open)
    for key, record in are_wanted.items():
        known = findings.open.get(key)
        if known is None:
            if room > 0 and findings.accepted.get(key) != record.units:
                records.append(msgspec.structs.replace(record, id=finding_id(key, now_us)))
                room -= 1
        elif _differs(known.record, record):
            records.append(msgspec.structs.replace(record, action="change", id=known.id))
    for key, known in findings.open.items():
        if key not in are_wanted and was_looked_at(known):
            records.append(
                msgspec.structs.replace(known.record, action="resolve", id=known.id, repair=None)
            )
    return records


def _differs(known: Finding, now: Finding) -> bool:
    """Whether a change is worth a record. How many lag changes at every look, and is in the reports."""
    if now.account:
        return False
    fields = (known.units, known.reason, known.repair, known.count)
    return fields != (now.units, now.reason, now.repair, now.count)
