"""Judges a book: what was used, pushed, shown by Stripe and invoiced, into differences with their causes.

Rules it keeps: the three pairs are compared each by itself; what a summary lacks proves nothing, and may be
anything that is not confirmed yet, while what it holds beyond that was put there by somebody else; a difference that
is not proven speaks only when a second look, a lag later, finds it still there; in a period that is over nothing is
tolerated. It must not know tasks, how a reading was made, or what is done about a difference.

A **book** is what one summary can tell of: the targets of one lane whose periods overlap. A **look** is a book with
the reading of one moment.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final, Literal, NamedTuple

from engine.core.billing import same_units
from engine.core.finding_records import Cause, Gap, Repair
from engine.core.findings import Mark
from engine.core.push_plan import Planned
from engine.core.push_records import Lane, Target
from engine.core.times import DAY_US

WHOLE_US: Final = DAY_US
"""After that long a total that looks whole counts as whole, also when something was taken away from it."""
MANY: Final = 3
"""More targets of an account than that with one of GATHERED are one finding."""
GATHERED: Final[frozenset[Cause]] = frozenset(("behind", "not_pushed"))
Verdict = Literal["agrees", "lagging", "differs", "unread"]
Baseline = Literal["taken", "none", "doubt"]
"""`none`: nothing says yet what of Stripe's holding is ours. `doubt`: it was known, until a restore or a pause."""


class TargetFacts(NamedTuple):
    """One target at one moment. Units are whole; amounts of money never appear here."""

    target: Target
    id: str
    tenant: str
    metric: str
    planned: Planned
    end_us: int
    finalization_us: int
    mark: Mark
    hold_cause: Cause = "held"
    """What it means if it is held."""
    open_since_us: int | None = None
    """Since when its intent is under way."""
    open_error: str | None = None
    is_history: bool = False
    """Its period was over before anything of it was to be pushed."""
    is_adjusted: bool = False
    """An adjustment of its period was decided after its invoice was final."""
    late_units: int | None = None
    """What late events that wait for a decision would add; None: there are none."""


class BookFacts(NamedTuple):
    """A book and what Stripe's summary held for it."""

    lane: Lane
    targets: tuple[TargetFacts, ...]
    """Those that somebody contributes to, oldest first; not empty."""
    pushed: int
    """Units that count as pushed to all targets of the book."""
    offset: Fraction
    plus: int
    minus: int
    """Of all its targets: see `Mark`."""
    minus_at_us: int
    """When something was taken away last."""
    fresh: int
    """Units that add, acknowledged within the last lag: their absence says nothing at all."""
    open_units: int
    """Of the lane's intent under way or in quarantine, if it is of this book; else 0."""
    reading: str | None
    baseline: Baseline = "taken"
    duplicates: int = 0
    """Units of the excess that lie in minutes which hold a multiple of what was acknowledged there."""
    invoiced: str | None = None
    """Units on the final invoice's lines; None: there is none yet, or it was not found."""
    missing: int = 0
    """Of all its targets: see `Mark`."""

    @property
    def expected(self) -> Fraction:
        """What Stripe holds when it shows everything."""
        return self.pushed + self.offset


class Issue(NamedTuple):
    """A difference at one look."""

    facts: TargetFacts
    gap: Gap
    cause: Cause
    units: Fraction
    """Missing on the side that is behind; negative: it holds more."""
    reason: str | None
    is_proven: bool
    """Somebody said so: it need not be seen twice."""
    level: Fraction | None = None
    """Of a summary that lacks something: what it should have held at least. A later one that does is catching up."""
    repair: Repair | None = None


class Judged(NamedTuple):
    """What one look says."""

    verdict: Verdict
    """About Stripe's summary against what was pushed."""
    issues: tuple[Issue, ...]
    is_confirmed: bool
    """The summary holds exactly what it should, and nothing is on its way."""


def tolerance(epsilon: Fraction, total: Fraction | int, *, is_over: bool) -> Fraction:
    """How much of a total may differ without being worth a word: nothing once the period is over."""
    return Fraction(0) if is_over else abs(epsilon * total)


def judge(book: BookFacts, *, now_us: int, lag_us: int, epsilon: Fraction) -> Judged:
    """Compare a book's numbers."""
    found: list[Issue | None] = []
    for facts in book.targets:
        issue = judge_push(facts, now_us=now_us, lag_us=lag_us, epsilon=epsilon)
        if issue is not None and issue.cause == "quarantined" and _holds_open(book):
            issue = issue._replace(repair="settle_delivered")
        found += [issue, _late(facts, now_us)]
    verdict, stripe, is_confirmed = _judge_stripe(book, now_us=now_us, epsilon=epsilon)
    found += [stripe, _judge_invoice(book)]
    return Judged(verdict, tuple(one for one in found if one is not None), is_confirmed)


def _holds_open(book: BookFacts) -> bool:
    """Whether Stripe has just the intent in doubt beside what it confirmed: what is there is proof, what is not is none."""
    if book.reading is None or book.plus or book.minus or not book.open_units:
        return False
    return Fraction(book.reading) == book.expected + book.open_units


# Pushed against billable.

_STANDING_CAUSES: Final[dict[str, Cause]] = {
    "awaiting_baseline": "awaiting_baseline",
    "refused": "refused",
    "quarantined": "quarantined",
    "stopped": "stopped",
}
_REPAIRS: Final[dict[Cause, Repair]] = {
    "refused": "push_again",
    "stopped": "resume",
    "finalized": "carry_forward",
    "late": "carry_forward",
    "mapping_missing": "accept",
    "invoice": "accept",
}


def judge_push(facts: TargetFacts, *, now_us: int, lag_us: int, epsilon: Fraction) -> Issue | None:
    """Why not everything billable is pushed, when that is not just under way."""
    planned = facts.planned
    cause: Cause
    is_proven = True
    reason = planned.reason
    match planned.standing:
        case "current":
            return None
        case "due":
            if planned.at_us is not None and now_us < planned.at_us + lag_us:
                return None
            cause, is_proven = "not_pushed", False
            reason = facts.open_error
        case "in_flight":
            if facts.open_since_us is None or now_us < facts.open_since_us + lag_us:
                return None
            cause, is_proven = "not_pushed", False
            reason = facts.open_error
        case "held":
            if facts.is_history or now_us < facts.target.start_us or not planned.due:
                return None
            cause, is_proven = facts.hold_cause, False
        case "finalized":
            if facts.is_history:
                return None
            cause = "late" if facts.is_adjusted else "finalized"
        case "quarantined":
            cause = "duplicate" if facts.mark.exists else "quarantined"
        case _:
            cause = _STANDING_CAUSES[planned.standing]
    is_over = now_us >= facts.end_us
    tolerated = tolerance(epsilon, planned.billable, is_over=is_over)
    if cause not in ("quarantined", "duplicate") and abs(planned.due) <= tolerated:
        return None
    repair = _REPAIRS.get(cause)
    units = Fraction(planned.due)
    return Issue(facts, "push", cause, units, reason, is_proven, repair=repair)


def _late(facts: TargetFacts, now_us: int) -> Issue | None:
    """Late events of a period that is over count for nobody until somebody decides."""
    if facts.late_units is None or now_us < facts.end_us or facts.is_history:
        return None
    reason = "late events of its period wait for a decision"
    return Issue(facts, "usage", "late", Fraction(facts.late_units), reason, is_proven=True)


# Stripe against pushed.


def _judge_stripe(
    book: BookFacts, *, now_us: int, epsilon: Fraction
) -> tuple[Verdict, Issue | None, bool]:
    """(what the summary says, the difference if it is one, whether it confirms the total)."""
    if book.reading is None:
        return "unread", None, False
    reading, expected = Fraction(book.reading), book.expected
    newest = book.targets[-1]
    if book.baseline == "none":
        return "lagging", None, False
    if book.baseline == "doubt" and reading != expected:
        if newest.planned.standing == "awaiting_baseline":
            return "lagging", None, False
        reason = "what Stripe holds and what was pushed went apart while nothing was known of it"
        doubt = Issue(
            newest, "stripe", "awaiting_baseline", expected - reading, reason, is_proven=False
        )
        return "differs", doubt, False
    rejected = next((facts for facts in book.targets if facts.mark.rejected is not None), None)
    is_equal = expected.denominator == 1 and same_units(book.reading, int(expected))
    is_equal = is_equal or reading == expected
    issue: Issue | None = None
    if rejected is not None:
        missing = Fraction(0) if is_equal else max(expected - reading, Fraction(0))
        why = rejected.mark.rejected
        issue = Issue(rejected, "stripe", "rejected", missing, why, is_proven=True)
    if is_equal:
        # A sum of what adds and what takes away may look whole while both are missing.
        is_whole = book.minus == 0 or now_us >= book.minus_at_us + WHOLE_US
        is_confirmed = book.open_units == 0 and is_whole
        return "agrees", issue, is_confirmed
    is_over = now_us >= max(facts.end_us for facts in book.targets)
    total = max(abs(reading), abs(expected))
    if abs(reading - expected) <= tolerance(epsilon, total, is_over=is_over):
        return "agrees", issue, False
    highest = expected - book.minus + max(0, book.open_units)
    lowest = expected - book.plus + min(0, book.open_units)
    due = expected - book.fresh + min(0, book.open_units)
    if issue is not None and lowest <= reading <= highest:
        return "differs", issue, False
    if highest < reading <= highest + book.missing:
        reason = "Stripe shows by now what was accepted as missing there"
        found_again = Issue(
            newest, "stripe", "behind", expected - reading, reason, is_proven=False, repair="accept"
        )
        return "differs", found_again, False
    if reading > highest or reading < lowest:
        return "differs", _foreign(book, newest, expected - reading), False
    if due <= reading <= expected:
        return "lagging", None, False
    if reading > expected and book.open_units:
        return "lagging", None, False
    reason = "Stripe's summary does not show all that Stripe acknowledged"
    level = due if reading < due else None
    repair: Repair | None = "resend" if reading < due else None
    behind = Issue(
        newest, "stripe", "behind", expected - reading, reason, is_proven=False, level=level
    )
    return "differs", behind._replace(repair=repair), False


def _foreign(book: BookFacts, facts: TargetFacts, units: Fraction) -> Issue:
    """What no push of ours explains: somebody else's, or ours counted more than once."""
    if book.duplicates and units == -book.duplicates:
        reason = "a minute at Stripe holds a multiple of what was pushed there"
        cause: Cause = "duplicate"
    else:
        more = "more than was pushed" if units < 0 else "less than it confirmed before"
        reason, cause = f"Stripe holds {more}", "foreign"
    repair: Repair = "take_back" if units < 0 else "accept"
    return Issue(facts, "stripe", cause, units, reason, is_proven=False, repair=repair)


# The invoice against Stripe.


def _judge_invoice(book: BookFacts) -> Issue | None:
    if book.invoiced is None or book.reading is None:
        return None
    difference = max(Fraction(book.reading), Fraction(0)) - Fraction(book.invoiced)
    if same_units(book.invoiced, str(max(0, int(Fraction(book.reading))))):
        difference = Fraction(0)
    if difference == 0:
        return None
    facts = book.targets[-1]
    if difference > 0:
        reason = "Stripe counted it after the invoice was final"
        return Issue(
            facts, "invoice", "finalized", difference, reason, is_proven=True, repair="accept"
        )
    reason = "the invoice has more than Stripe's summary"
    return Issue(facts, "invoice", "invoice", difference, reason, is_proven=True, repair="accept")


# Looking twice.


class Suspicion(NamedTuple):
    """A difference that was seen once."""

    cause: Cause
    since_us: int
    level: Fraction | None


def suspect(
    before: Suspicion | None, issue: Issue, reading: str | None, *, now_us: int, lag_us: int
) -> tuple[bool, Suspicion]:
    """Whether a difference is worth a word now, and what to remember of it."""
    # Where an excess comes from is looked for once it is worth a word: until then it is foreign.
    cause: Cause = "foreign" if issue.cause == "duplicate" else issue.cause
    fresh = Suspicion(cause, now_us, issue.level)
    if issue.is_proven:
        return True, fresh
    if before is None or before.cause != cause:
        return False, fresh
    if before.level is not None and reading is not None and Fraction(reading) >= before.level:
        return False, fresh  # What was missing then is there: the summary is catching up.
    return now_us >= before.since_us + lag_us, before
