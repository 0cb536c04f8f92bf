"""From differences that are worth a word to the records that say so: opened, changed, resolved.

Rules it keeps: when many targets of an account lag, or wait to be pushed, that is one finding, and stays one until the
last of them is right; what was accepted is not said again while it is the same; nothing is resolved that was not
looked at; work grows with what was looked at. It must not know tasks, or how a difference is judged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Final, NamedTuple

import msgspec

from engine.core.finding_records import (
    REASON_CHARS_MAX,
    Cause,
    Finding,
    Gap,
    finding_id,
    finding_key,
    subject_of_finding,
)
from engine.core.findings import OPEN_MAX, Findings, OpenFinding
from engine.core.reconciling import GATHERED, MANY, Issue

_READ_GAPS: Final[frozenset[Gap]] = frozenset(("stripe", "invoice"))


class Unrouted(NamedTuple):
    """A customer's use in a period that goes nowhere, or (`series` empty) a metric that nothing bills."""

    tenant: str
    metric: str
    series: bytes
    start_us: int
    units: str
    """Of use, decimal."""
    reason: str | None


class Looked(NamedTuple):
    """A target that was looked at, and what about it is worth a word."""

    id: str
    issues: Sequence[Issue]
    is_read: bool
    """Stripe's summary was read; else nothing about it can be taken back."""


_Group = tuple[str, str, Cause]
"""(account, mode, cause)."""


class Gatherings:
    """Which targets of an account have the causes that are one finding when there are many."""

    def __init__(self) -> None:
        self._members: dict[_Group, dict[str, Issue]] = defaultdict(dict)
        self._of_target: dict[str, set[_Group]] = {}
        self.is_complete = False
        """Everything was looked at since the process began: who is not among the members is none."""

    def update(self, looked: Looked) -> None:
        """Take in what a look at a target says."""
        now = {_group_of(issue): issue for issue in looked.issues if _is_gathered(issue)}
        kept = self._of_target.pop(looked.id, set())
        for group in kept - now.keys():
            if looked.is_read or group[2] != "behind":
                del self._members[group][looked.id]
            else:
                now[group] = self._members[group][looked.id]
        for group, issue in now.items():
            self._members[group][looked.id] = issue
        if now:
            self._of_target[looked.id] = set(now)

    def count_of(self, whole: Finding, tenant: str | None) -> int:
        """How many members of a finding about many are a tenant's, or (None) there are, as far as they were looked at."""
        return sum(
            tenant in (None, issue.facts.tenant)
            for group, members in self._members.items()
            if finding_key(_whole(group, members)) == finding_key(whole)
            for issue in members.values()
        )

    def forget(self, target: str) -> None:
        """A target is gone."""
        for group in self._of_target.pop(target, set()):
            del self._members[group][target]

    def is_whole(self, group: _Group, findings: Findings) -> bool:
        """Whether the group speaks as one."""
        members = self._members.get(group)
        if not members:
            return False
        return len(members) > MANY or finding_key(_whole(group, members)) in findings.open

    def wholes(self, findings: Findings) -> list[tuple[Finding, bool, Sequence[str]]]:
        """(a finding about many, whether it is wanted, its members) of every group."""
        return [
            (_whole(group, members), self.is_whole(group, findings), tuple(members))
            for group, members in self._members.items()
        ]

    def left(self, findings: Findings) -> list[Finding]:
        """Findings about many, of before a restart, of whose members nobody was seen since."""
        known = {finding_key(_whole(group, members)) for group, members in self._members.items()}
        return [
            one.record
            for key, one in findings.open.items()
            if one.record.account and key not in known
        ]


def _is_gathered(issue: Issue) -> bool:
    """Whether it ends by itself, with many others. What a person has to accept does not, and nobody accepts for many."""
    return issue.cause in GATHERED and issue.repair != "accept"


def _group_of(issue: Issue) -> _Group:
    lane = issue.facts.target.lane
    return (lane.account, lane.mode, issue.cause)


def _whole(group: _Group, members: Mapping[str, Issue]) -> Finding:
    account, mode, cause = group
    return Finding(
        action="open",
        cause=cause,
        gap="stripe" if cause == "behind" else "push",
        account=f"{account}/{mode}",
        reason=_REASONS[cause],
        count=len(members),
    )


_REASONS: Final = {
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
        units=units_text(issue.units),
        reason=reason,
        repair=issue.repair,
        tenant_id=facts.tenant,
        metric=facts.metric,
    )


def units_text(units: Fraction) -> str:
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
    gatherings: Gatherings,
    looked: Sequence[Looked],
    now_us: int,
    *,
    is_end: bool = False,
) -> list[Finding]:
    """The records that bring what is open about some targets, and about many, to what was found.

    `is_end`: of a look at everything.
    """
    wanted: dict[str, Finding] = {}
    covered: dict[str, bool] = {}
    absorbed: set[str] = set()
    for one in looked:
        gatherings.update(one)
    for one in looked:
        covered[one.id] = one.is_read
        for issue in one.issues:
            if _is_gathered(issue) and gatherings.is_whole(_group_of(issue), findings):
                continue
            record = _of_target(issue)
            wanted[finding_key(record)] = record
    if is_end and gatherings.is_complete:
        covered |= {whole.account: True for whole in gatherings.left(findings)}
    for whole, is_wanted, members in gatherings.wholes(findings):
        if gatherings.is_complete:
            covered[whole.account] = True
        if is_wanted:
            key = finding_key(whole)
            wanted[key] = whole
            if key not in findings.open:
                # Those that spoke for themselves are in it now; what else is open about them was not looked at.
                absorbed |= {
                    own
                    for member in members
                    if member not in covered
                    for own in findings.open_of.get(member, ())
                    if findings.open[own].record.cause == whole.cause
                }
    gone = [_resolved(findings.open[key]) for key in sorted(absorbed)]
    return _records(findings, wanted, covered, now_us) + gone


def unrouted_steps(findings: Findings, unrouted: Iterable[Unrouted], now_us: int) -> list[Finding]:
    """The same for use that has no target; `unrouted` is all of it."""
    wanted = {finding_key(record): record for record in _of_unrouted(unrouted, findings)}
    covered = {
        subject_of_finding(known.record): True
        for known in findings.open.values()
        if known.record.target is None and not known.record.account
    }
    return _records(findings, wanted, covered, now_us)


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
            units=units_text(sum((Fraction(one.units) for one in members), Fraction(0))),
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


def is_unrouted_accepted(findings: Findings, one: Unrouted) -> bool:
    """Whether a person accepted this use, or all of its metric that goes nowhere."""
    whole = Finding(
        action="open",
        cause="mapping_missing",
        gap="usage",
        tenant_id=one.tenant,
        metric=one.metric,
        units=one.units,
    )
    own = msgspec.structs.replace(whole, series=one.series, start_us=one.start_us)
    # Whether a whole metric's use is still what was accepted is seen when all of it is looked at.
    return finding_key(whole) in findings.accepted or _is_accepted(findings, finding_key(own), own)


def _records(
    findings: Findings, wanted: Mapping[str, Finding], covered: Mapping[str, bool], now_us: int
) -> list[Finding]:
    records: list[Finding] = []
    room = OPEN_MAX - len(findings.open)
    for key, record in wanted.items():
        known = findings.open.get(key)
        if known is None:
            if room > 0 and not _is_accepted(findings, key, record):
                records.append(msgspec.structs.replace(record, id=finding_id(key, now_us)))
                room -= 1
        elif _differs(known.record, record):
            records.append(msgspec.structs.replace(record, action="change", id=known.id))
    for subject, is_read in covered.items():
        for key in sorted(findings.open_of.get(subject, ())):
            known = findings.open[key]
            if key not in wanted and (is_read or known.record.gap not in _READ_GAPS):
                records.append(_resolved(known))
    return records


def _resolved(known: OpenFinding) -> Finding:
    return msgspec.structs.replace(known.record, action="resolve", id=known.id, repair=None)


def _is_accepted(findings: Findings, key: str, record: Finding) -> bool:
    """Accepted amounts are not said again; a metric that was never mapped was accepted whatever it comes to.

    That an account is behind is accepted once and never for the next time: nobody would hear of it any more.
    """
    if record.account:
        return False
    known = findings.accepted.get(key)
    return known is not None and known == record.units


def _differs(known: Finding, now: Finding) -> bool:
    """Whether a change is worth a record. How many lag, and unbilled use, change at every look: see the reports."""
    if now.target is None:
        return False
    fields = (known.units, known.reason, known.repair)
    return fields != (now.units, now.reason, now.repair)
