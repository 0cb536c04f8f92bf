"""Looks at one book: reads Stripe, judges, and says what is worth a word now.

Rules it keeps: a push that is recorded while a summary is read makes that reading worthless; a difference that nobody
proved speaks at its second look; a book that is final and agreed is not read again. It must not know which books are
looked at when, nor how findings are recorded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Final, NamedTuple

from engine.actors.push_desk import PushDesk
from engine.actors.pusher import Pusher
from engine.actors.recon_books import Book, ReconBooks
from engine.actors.recon_reader import Excess, ReconReader
from engine.core.billing import Invoiced, Reading
from engine.core.finding_plan import Looked, units_text
from engine.core.finding_records import Cause, Gap, all_behind_key
from engine.core.findings import Findings
from engine.core.push_plan import TargetView
from engine.core.push_records import Target
from engine.core.reconciling import (
    BookFacts,
    Issue,
    Judged,
    Suspicion,
    TargetFacts,
    Verdict,
    judge,
    suspect,
)
from engine.core.times import DAY_US
from engine.ports import Clock

INVOICE_WAIT_US: Final = 4 * DAY_US
"""After a period's end; Stripe's longest grace is three days. Later no invoice is expected."""
METERS_MAX: Final = 1_000
"""Meters of which unnamed rejections are counted."""
ACTOR: Final = "system:reconciler"


class Look(NamedTuple):
    """What was found of a target when it was looked at last. Units are text."""

    at_us: int
    verdict: Verdict
    stripe: str | None
    """What Stripe's summary holds of it; None: not read."""
    expected: str
    """What it holds when it shows everything that was pushed."""
    invoiced: str | None
    causes: tuple[Cause, ...]
    """Of differences that are worth a word."""


class Seen(NamedTuple):
    """What one look came to."""

    looked: list[Looked]
    confirmed: list[tuple[str, str, str | None]]
    """Rows of a `confirm` record."""
    again_us: int | None
    """When the book should be looked at again, before its turn comes."""
    is_still: Callable[[], bool] = bool
    """Whether nothing was pushed to the book since: else its rows would confirm what the reading can't have shown."""


class Looker:
    """Remembers what was seen, for as long as the process runs."""

    def __init__(
        self,
        pusher: Pusher,
        desk: PushDesk,
        books: ReconBooks,
        reader: ReconReader,
        clock: Clock,
        *,
        lag_us: int,
        epsilon: Fraction,
    ) -> None:
        self._pusher = pusher
        self._desk = desk
        self._books = books
        self._reader = reader
        self._clock = clock
        self._lag_us = lag_us
        self._epsilon = epsilon
        self.looks: dict[Target, Look] = {}
        self._suspicions: dict[tuple[str, Gap], Suspicion] = {}
        self._unnamed = _unnamed_of(pusher.state.findings)
        """Meter to events that Stripe rejected without naming them, since the start and as findings tell that are open."""
        self._located: dict[str, tuple[Fraction, Excess]] = {}
        """Target id to the excess that was searched for, and where it is."""

    def forget(self, target: Target, key: str) -> None:
        """A target is gone."""
        self.looks.pop(target, None)
        self._pusher.summaries.pop(target, None)
        self._located.pop(key, None)
        for gap in _GAPS:
            self._suspicions.pop((key, gap), None)

    def rejected_unnamed(self, meter: str, events: int) -> None:
        """Stripe reported rejected events and named only samples: what is missing may be one of the others."""
        if meter in self._unnamed or len(self._unnamed) < METERS_MAX:
            self._unnamed[meter] = self._unnamed.get(meter, 0) + events

    def judged(self, facts: BookFacts) -> Judged:
        """A book's differences now."""
        now_us = self._clock.now_us()
        unnamed = self._unnamed.get(facts.lane.object_id, 0)
        # Where Stripe said that something is missing, a small difference is no noise.
        epsilon = Fraction(0) if unnamed else self._epsilon
        judged = judge(facts, now_us=now_us, lag_us=self._lag_us, epsilon=epsilon)
        if not unnamed:
            return judged
        # It stays a lag: that one of them is of this total is not proven.
        told = _UNNAMED.format(unnamed)
        issues = (
            one._replace(reason=f"{one.reason}{told}") if one.cause == "behind" else one
            for one in judged.issues
        )
        return judged._replace(issues=tuple(issues))

    async def look(self, book: Book) -> Seen:
        """Read and judge a book."""
        facts = self._books.facts(book, None, None, 0)
        view = None if facts is None else self._pusher.totals.view(facts.targets[-1].target)
        if facts is None or view is None or self._clock.now_us() < book.start_us:
            return Seen([], [], None)
        if self._is_done(book, facts) and not self.judged(facts).issues:
            return self._done(facts)
        before, began_us = self._pushed(book), self._clock.now_us()
        answer = await self._reader.read(book, view)
        invoiced = await self._invoiced(book, facts, view)
        reading = answer.units if isinstance(answer, Reading) else None
        has_moved = self._pushed(book) != before
        facts = self._books.facts(book, None if has_moved else reading, invoiced, 0)
        if facts is None:
            return Seen([], [], None)
        if (
            facts.reading is not None
            and len({(one.start_us, one.end_us) for one in book.targets}) == 1
        ):
            # Of several periods' summary nobody could tell what is of one of them.
            for target in book.targets:
                self._pusher.summaries[target] = (facts.reading, began_us)
        judged = self.judged(facts)
        if self._is_excess_spoken(judged, facts):
            facts = facts._replace(duplicates=await self._duplicates(book, view, facts))
            judged = self.judged(facts)
        seen = self._seen(book, facts, judged)
        return seen._replace(again_us=self._clock.now_us()) if has_moved else seen

    async def issues_now(self, target: Target) -> tuple[Issue, ...] | None:
        """A target's differences by a reading made for this; None: Stripe could not be read, or it is being pushed to.

        For who is about to act on what an earlier look said; nothing is remembered of it.
        """
        for book in await self._books.books(None, {target.lane}):
            view = self._pusher.totals.view(target)
            if target not in book.targets or view is None:
                continue
            before = self._pushed(book)
            answer = await self._reader.read(book, view)
            if not isinstance(answer, Reading) or self._pushed(book) != before:
                return None
            facts = self._books.facts(book, answer.units, None, 0)
            if facts is not None:
                issues = self.judged(facts).issues
                return tuple(one for one in issues if one.facts.target == target)
        return ()

    def _pushed(self, book: Book) -> tuple[object, ...]:
        lane = self._pusher.state.ledger.lane(book.lane)
        if lane is None:
            return ()
        number = None if lane.open is None else lane.open.number
        return (number, *((key, state.pushed) for key, state in lane.targets.items()))

    # What is over and agreed.

    def _is_done(self, book: Book, facts: BookFacts) -> bool:
        now_us = self._clock.now_us()
        return all(
            now_us >= one.finalization_us
            and one.mark.confirmed is not None
            and one.mark.confirmed_at_us >= one.finalization_us
            and one.planned.due == 0
            and (one.mark.invoiced is not None or now_us >= book.end_us + INVOICE_WAIT_US)
            and one.id not in self._pusher.state.findings.open_of
            for one in facts.targets
        )

    def _done(self, facts: BookFacts) -> Seen:
        for one in facts.targets:
            if one.target not in self.looks:
                confirmed = one.mark.confirmed
                self.looks[one.target] = Look(
                    one.mark.confirmed_at_us,
                    "agrees",
                    confirmed,
                    confirmed or "0",
                    one.mark.invoiced,
                    (),
                )
        return Seen([Looked(one.id, (), is_read=True) for one in facts.targets], [], None)

    # Invoices.

    async def _invoiced(self, book: Book, facts: BookFacts, view: TargetView) -> str | None:
        known = next((one.mark.invoiced for one in facts.targets if one.mark.invoiced), None)
        now_us = self._clock.now_us()
        final_us = min(one.finalization_us for one in facts.targets)
        if known is not None or not final_us <= now_us < book.end_us + INVOICE_WAIT_US:
            return known
        answer = await self._reader.invoiced(book, view)
        if not isinstance(answer, Invoiced):
            return None
        if answer.finalized_at_us is not None:
            # A webhook may have been lost, or none is set up: the invoice itself says since when it is final.
            lane = book.lane
            await self._desk.invoice_finalized(
                lane.account, lane.customer, book.end_us, answer.finalized_at_us, ACTOR
            )
        return answer.units

    # An excess.

    def _is_excess_spoken(self, judged: Judged, facts: BookFacts) -> bool:
        """Only what will be said is worth a search of twenty readings."""
        return any(
            issue.cause == "foreign" and issue.units < 0 and self._speaks(issue, facts)
            for issue in judged.issues
        )

    async def _duplicates(self, book: Book, view: TargetView, facts: BookFacts) -> int:
        excess = Fraction(facts.reading or 0) - facts.expected
        key = facts.targets[-1].id
        known = self._located.get(key)
        if known is None or known[0] != excess:
            found = Excess(-1, 0)
            if facts.offset == 0 and facts.minus == 0 and excess.denominator == 1:
                found = await self._reader.locate(book, view, int(excess))
            known = self._located[key] = (excess, found)
        return known[1].duplicates

    # Speaking.

    def _speaks(self, issue: Issue, facts: BookFacts) -> bool:
        open_keys = self._pusher.state.findings.open_of.get(issue.facts.id, ())
        # A duplicate is foreign until it was searched for.
        causes = _EXCESSES if issue.cause in _EXCESSES else (issue.cause,)
        if any(f"{issue.facts.id}:{issue.gap}:{cause}" in open_keys for cause in causes):
            return True
        before = self._suspicions.get((issue.facts.id, issue.gap))
        return suspect(
            before, issue, facts.reading, now_us=self._clock.now_us(), lag_us=self._lag_us
        )[0]

    def _seen(self, book: Book, facts: BookFacts, judged: Judged) -> Seen:
        now_us = self._clock.now_us()
        is_read = facts.reading is not None
        again_us: int | None = None
        looked = []
        for one in facts.targets:
            spoken = []
            own = [issue for issue in judged.issues if issue.facts.id == one.id]
            for issue in own:
                key = (one.id, issue.gap)
                is_said = self._speaks(issue, facts)
                before = self._suspicions.get(key)
                _, self._suspicions[key] = suspect(
                    before, issue, facts.reading, now_us=now_us, lag_us=self._lag_us
                )
                if is_said:
                    spoken.append(issue)
                else:
                    at_us = self._suspicions[key].since_us + self._lag_us
                    again_us = at_us if again_us is None else min(again_us, at_us)
            for gap in _GAPS:
                if all(issue.gap != gap for issue in own) and (is_read or gap not in _READ):
                    self._suspicions.pop((one.id, gap), None)
            looked.append(Looked(one.id, spoken, is_read))
            self._remember(one, facts, judged, spoken, now_us)
        rows, pushed = self._confirmed(facts, judged), self._pushed(book)
        again_us = _earliest(again_us, self._until_final(book, facts, judged, now_us))
        if judged.verdict == "lagging" and self._is_told_behind(book):
            again_us = _earliest(
                again_us, self._books.known_from_us
            )  # whether it is still one of them
        if any(issue.cause == "rejected" for issue in judged.issues) and judged.is_confirmed:
            again_us = now_us + 1  # It is said now, and will be confirmed at the next look.
        return Seen(looked, rows, again_us, lambda: self._pushed(book) == pushed)

    def _is_told_behind(self, book: Book) -> bool:
        """Whether its account was found to be behind before the start, and nobody can tell yet what is only fresh."""
        is_told = all_behind_key(book.lane) in self._pusher.state.findings.open
        return is_told and self._clock.now_us() < self._books.known_from_us

    def _until_final(self, book: Book, facts: BookFacts, judged: Judged, now_us: int) -> int | None:
        """At a period's end it is looked at until it agrees, and once more when it is final."""
        final_us = max(one.finalization_us for one in facts.targets)
        if now_us < book.end_us:
            return book.end_us + self._lag_us
        if now_us >= final_us:
            return None
        is_right = judged.is_confirmed and not judged.issues
        return final_us + self._lag_us if is_right else now_us + self._lag_us

    def _remember(
        self,
        one: TargetFacts,
        facts: BookFacts,
        judged: Judged,
        spoken: list[Issue],
        now_us: int,
    ) -> None:
        expected = one.planned.pushed + Fraction(one.mark.offset)
        stripe: str | None = None
        if facts.reading is not None:
            # One summary for all targets of a book: the difference is shown with the newest.
            is_newest = one.id == facts.targets[-1].id
            others = facts.expected - expected
            stripe = units_text(Fraction(facts.reading) - others if is_newest else expected)
            self._pusher.server.confirmed[one.target] = (stripe, now_us)
        old = self.looks.get(one.target)
        if stripe is None and old is not None:
            stripe = old.stripe
        self.looks[one.target] = Look(
            now_us,
            judged.verdict,
            stripe,
            units_text(expected),
            facts.invoiced,
            tuple(issue.cause for issue in spoken),
        )

    def _confirmed(self, facts: BookFacts, judged: Judged) -> list[tuple[str, str, str | None]]:
        """Rows that say something new."""
        if not judged.is_confirmed:
            return []
        open_of = self._pusher.state.findings.open_of
        rows = []
        for one in facts.targets:
            mark = one.mark
            if mark.rejected is not None and f"{one.id}:stripe:rejected" not in open_of.get(
                one.id, ()
            ):
                return []  # First it is said that it was rejected; then that it is there.
            expected = units_text(one.planned.pushed + Fraction(mark.offset))
            is_new_invoice = facts.invoiced is not None and mark.invoiced is None
            is_late = (
                mark.confirmed_at_us < one.finalization_us <= self._clock.now_us()
                or mark.confirmed_at_us < one.end_us <= self._clock.now_us()
            )
            if (
                mark.confirmed != expected
                or mark.plus
                or mark.rejected
                or is_new_invoice
                or is_late
            ):
                rows.append((one.id, expected, facts.invoiced))
        return rows


def _unnamed_of(findings: Findings) -> dict[str, int]:
    """What open findings say of it: else what was told because of it would be tolerated from the next start on."""
    found: dict[str, int] = {}
    for one in findings.open.values():
        record = one.record
        if record.target is None or record.cause != "behind" or len(found) >= METERS_MAX:
            continue
        if (said := _UNNAMED_SAID.search(record.reason or "")) is not None:
            meter = record.target.lane.object_id
            found[meter] = max(found.get(meter, 0), int(said[1]))
    return found


_UNNAMED: Final = "; it reported {} rejected events of this meter that it did not name"
_UNNAMED_SAID: Final = re.compile(re.escape(_UNNAMED).replace(r"\{\}", "([0-9]{1,18})"))
_EXCESSES: Final[tuple[Cause, ...]] = ("foreign", "duplicate")
_GAPS: Final[tuple[Gap, ...]] = ("push", "stripe", "invoice", "usage")
_READ: Final[frozenset[Gap]] = frozenset(("stripe", "invoice"))


def _earliest(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)
