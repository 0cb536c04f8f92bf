"""The reconciler: looks at every book in its turn, says what differs and why, and repairs what is proven.

Rules it keeps: it never holds up ingest or a push; what changed is looked at first, then what was looked at longest ago;
a difference gets its second look a lag later, and a period that ends is looked at until it is final; a run that is
cut off leaves nothing behind, the next one does the same work. What is judged how is engine.core.reconciling's.
It must not know HTTP, nor Stripe's library.
"""

from __future__ import annotations

import heapq
from collections import Counter as Tallied
from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Final, Literal

import structlog
import trio

from engine.actors.group import Group
from engine.actors.push_desk import PushDesk
from engine.actors.push_recorder import Outdated
from engine.actors.pusher import Pusher
from engine.actors.recon_books import Book, ReconBooks
from engine.actors.recon_looks import Looker, Seen
from engine.actors.recon_reader import ReconReader
from engine.actors.recon_repairs import Repairs
from engine.actors.recon_unrouted import Nowhere, ReconUnrouted
from engine.actors.shard import Shard
from engine.core.billing import Mode
from engine.core.finding_plan import Gatherings, Looked, steps, unrouted_steps
from engine.core.finding_records import CONFIRMATIONS_PER_RECORD_MAX, Finding
from engine.core.findings import OpenFinding
from engine.core.push_records import Lane, Target, target_id
from engine.core.registry import Registry
from engine.errors import EngineError, NotFound, Unavailable
from engine.ports import Clock, Ids

_logger = structlog.get_logger("stripemeter.reconcile")
READERS: Final = 4
"""Questions at once. At 100 ms an answer they are 40 a second, more than an account takes."""
BOOKS_PER_SLICE: Final = 100
"""Books between two pauses, where many are gone through at once."""
BOOKS_PER_SETTLING: Final = 100
"""Books whose findings are recorded together."""
RECORDS_PER_APPEND_MAX: Final = 250
CONFIRM_TRIES: Final = 3
LANES_PER_SLICE: Final = 2_000
REPORTED_US: Final = 48 * 3600 * 1_000_000
"""A report comes within hours of what it is about; a day for Stripe to be late, and one for us."""
JOBS_KEPT_MAX: Final = 1_000
JOBS_WAITING_MAX: Final = 10
TICK_SECONDS_MIN, TICK_SECONDS_MAX = 0.05, 5.0
SETTLE_SECONDS: Final = 0.2
"""How often it is asked whether the pusher has taken in what there was at the start."""
STRIPE_AWAITED_US: Final = 10 * 1_000_000
"""How long a run waits, right after the start, for Stripe to say whose key it is."""
SECOND_LOOKS_MAX: Final = 2
JobStatus = Literal["pending", "running", "completed", "failed"]


@dataclass(frozen=True, kw_only=True)
class ReconOptions:
    """What the settings say."""

    interval_us: int = 3600 * 1_000_000
    lag_us: int = 300 * 1_000_000
    epsilon: Fraction = Fraction(1, 200)


RECON_DEFAULTS: Final = ReconOptions()


@dataclass
class Job:
    """One run, asked for or by the clock. Times are wall microseconds."""

    id: str
    tenant: str | None
    created_at_us: int
    status: JobStatus = "pending"
    total: int = 0
    """Books to look at."""
    done: int = 0
    unread: int = 0
    started_at_us: int | None = None
    ended_at_us: int | None = None
    error: str | None = None
    second_look_at_us: int | None = None
    """While it waits to see differences again."""
    ended: trio.Event = field(default_factory=trio.Event)


class Reconciler:
    """All books of all accounts. `run` it beside the pusher."""

    def __init__(
        self,
        pusher: Pusher,
        desk: PushDesk,
        *,
        registry: Callable[[], Registry],
        shards: Sequence[Shard],
        clock: Clock,
        ids: Ids,
        options: ReconOptions,
    ) -> None:
        self._pusher = pusher
        self._clock = clock
        self._ids = ids
        self.options = options
        self.books = ReconBooks(pusher, clock, options.lag_us)
        self.reader = ReconReader(pusher, clock)
        self.looker = Looker(
            pusher,
            desk,
            self.books,
            self.reader,
            clock,
            lag_us=options.lag_us,
            epsilon=options.epsilon,
        )
        self._unrouted = ReconUnrouted(pusher, registry, shards, clock, options.lag_us)
        self.repairs = Repairs(
            pusher,
            desk,
            self.reader,
            registry,
            clock,
            issues_now=self.looker.issues_now,
            look_soon=self.look_soon,
            units_now=self._unrouted.units_now,
        )
        self._gatherings = Gatherings()
        self._due: dict[Lane, int] = {}
        """When a lane is to be looked at before its turn."""
        self._passing = trio.Lock()
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._wake = trio.Event()
        self.runs: Tallied[str] = Tallied()
        """Runs by how they ended; for metrics."""
        self.last_run_us = 0
        """How long the last whole run took."""
        self._whole_ended_at_us: int | None = None
        self.run_us_sum = 0

    # Tasks.

    async def run(self) -> None:
        """Look until cancelled."""
        while not self._pusher.is_settled or not self._is_connected():
            await trio.sleep(SETTLE_SECONDS)
            self._give_up_waiting()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_by_clock)
            nursery.start_soon(self._run_due)
            while True:
                while self._waiting:
                    nursery.start_soon(self._run_job, self._waiting.popleft())
                self._wake = trio.Event()
                await self._wake.wait()

    def _give_up_waiting(self) -> None:
        """Runs that were asked for before Stripe said whose key it is fail with the reason, and nobody waits for ever."""
        now_us = self._clock.now_us()
        while self._waiting and now_us - self._waiting[0].created_at_us >= STRIPE_AWAITED_US:
            job = self._waiting.popleft()
            reasons = [one.error for one in self._pusher.connections.values() if one.error]
            job.status, job.ended_at_us = "failed", now_us
            job.error = (
                "; ".join(reasons) or "usage of before the start is still being gone through"
            )
            self.runs[job.status] += 1
            job.ended.set()

    def _is_connected(self) -> bool:
        return any(one.proven is not None for one in self._pusher.connections.values())

    async def _run_by_clock(self) -> None:
        while True:
            began_us = self._clock.monotonic_us()
            await self._run_job(self._new_job(None))
            spent_us = self._clock.monotonic_us() - began_us
            await trio.sleep(max(self.options.interval_us - spent_us, 10_000) / 1e6)

    async def _run_due(self) -> None:
        """Second looks, and periods that end."""
        tick = min(max(self.options.lag_us / 4e6, TICK_SECONDS_MIN), TICK_SECONDS_MAX)
        while True:
            await trio.sleep(tick)
            now_us = self._clock.now_us()
            lanes = {lane for lane, at_us in self._due.items() if at_us <= now_us}
            if not lanes:
                continue
            try:
                async with self._passing:
                    await self._pass(await self.books.books(None, lanes), None)
            except EngineError as error:
                # A full disk is no reason to end; the next look by the clock sees the same.
                _logger.warning("reconciliation_failed", reason=str(error))

    def feed(self, group: Group) -> None:
        """A group is durable and folded."""
        self.books.feed(group.controls)

    # Jobs.

    def start(self, tenant: str | None) -> Job:
        """A run now. Raises Unavailable when too many wait."""
        if not self._pusher.connections:
            raise Unavailable(
                "there is nothing to reconcile with: no Stripe key is set, and the simulator is off",
                retry_after_seconds=60,
            )
        if len(self._waiting) >= JOBS_WAITING_MAX:
            raise Unavailable("too many runs wait; retry", retry_after_seconds=30)
        job = self._new_job(tenant)
        self._waiting.append(job)
        self._wake.set()
        return job

    def _new_job(self, tenant: str | None) -> Job:
        job = Job(self._ids.token(8).hex(), tenant, self._clock.now_us())
        self._jobs[job.id] = job
        if len(self._jobs) > JOBS_KEPT_MAX:
            oldest = next((one for one in self._jobs.values() if one.ended.is_set()), None)
            if oldest is not None:
                del self._jobs[oldest.id]
        return job

    def job(self, tenant: str | None, wanted: str) -> Job:
        """A run by its id. Raises NotFound, also for another tenant's, and after a restart."""
        found = self._jobs.get(wanted)
        if found is None or (tenant is not None and found.tenant != tenant):
            raise NotFound(f"there is no reconciliation run {wanted}")
        return found

    def last_ended_at_us(self, tenant: str | None) -> int | None:
        """When the last completed run over all that this tenant has ended: its own, or one over everything."""
        own = (
            job.ended_at_us or 0
            for job in self._jobs.values()
            if job.tenant == tenant and job.status == "completed"
        )
        return max(self._whole_ended_at_us or 0, *own, 0) or None

    async def waiting(
        self,
        tenant: str | None,
        start_us: int,
        end_us: int,
        *,
        metric: str | None = None,
        customer_ref: str | None = None,
    ) -> int:
        """Totals of these periods that no book holds and no finding tells: it is not known yet where they belong."""
        return await self._unrouted.waiting(tenant, start_us, end_us, metric, customer_ref)

    async def nowhere(self, tenant: str | None, start_us: int, end_us: int) -> list[Nowhere]:
        """What the open findings about use that goes nowhere come to now, in these periods."""
        return await self._unrouted.told(tenant, start_us, end_us)

    def behind_of(self, whole: Finding, tenant: str | None) -> int:
        """How many totals, of a tenant or (None) all, a finding about many is about, as far as they were looked at."""
        return self._gatherings.count_of(whole, tenant)

    async def _run_job(self, job: Job) -> None:
        began_us = self._clock.monotonic_us()
        job.status, job.started_at_us = "running", self._clock.now_us()
        try:
            await self._look_twice(job)
        except EngineError as error:
            job.status, job.error = "failed", str(error)
            _logger.warning("reconciliation_failed", reason=str(error))
        else:
            job.status = "completed"
        finally:
            job.ended_at_us = self._clock.now_us()
            job.second_look_at_us = None
            job.ended.set()
        self.runs[job.status] += 1
        spent_us = self._clock.monotonic_us() - began_us
        self.run_us_sum += spent_us
        if job.tenant is None:
            self.last_run_us = spent_us
            if job.status == "completed":
                self._whole_ended_at_us = job.ended_at_us
        _logger.info(
            "reconciled",
            books=job.total,
            unread=job.unread,
            findings=len(self._pusher.state.findings.open),
            seconds=round(spent_us / 1e6, 3),
        )

    async def _look_twice(self, job: Job) -> None:
        """A pass over everything, and second looks at what seemed to differ."""
        await self._pusher.look(job.tenant)
        async with self._passing:
            books = await self.books.books(job.tenant)
            job.total = len(books)
            soon = await self._pass(await self._in_order(books), job)
            is_known = self._clock.now_us() >= self.books.known_from_us
            self._gatherings.is_complete |= is_known and job.tenant is None and not job.unread
            # While it is not known where some usage goes, what has no target may only wait for it.
            if job.tenant is None and self._pusher.totals.is_everything_resolved:
                await self._forget_gone(books)
            await self._settle_unrouted()
        for _ in range(SECOND_LOOKS_MAX):
            until_us = self._clock.now_us() + self.options.lag_us
            waiting = [at for lane in soon if (at := self._due.get(lane)) and at <= until_us]
            unrouted_us = self._unrouted.again_us
            if unrouted_us is not None:
                waiting.append(unrouted_us)
            if not waiting:
                return
            job.second_look_at_us = max(waiting)
            await self._until_looked(soon, until_us)
            if unrouted_us is not None:
                await trio.sleep(max(0, unrouted_us - self._clock.now_us()) / 1e6)
                async with self._passing:
                    await self._settle_unrouted()

    async def _until_looked(self, lanes: set[Lane], until_us: int) -> None:
        """Wait until what is due of these by then was looked at; not for ever, if Stripe does not answer."""
        give_up_us = until_us + self.options.lag_us
        while any(self._due.get(lane, until_us + 1) <= until_us for lane in lanes):
            if self._clock.now_us() > give_up_us:
                return
            await trio.sleep(TICK_SECONDS_MIN)

    async def _in_order(self, books: list[Book]) -> Iterable[Book]:
        """What changed first, then what was never looked at, then by how long ago that was; sorted in slices."""
        looks, changed = self.looker.looks, self.books.changed

        def order(book: Book) -> tuple[bool, int, int, str, str]:
            lane, look = book.lane, looks.get(book.targets[-1])
            at_us = 0 if look is None else look.at_us
            return (lane not in changed, at_us, book.start_us, lane.customer, lane.object_id)

        parts = []
        for first in range(0, len(books), BOOKS_PER_SLICE):
            await trio.lowlevel.checkpoint()
            parts.append(sorted(books[first : first + BOOKS_PER_SLICE], key=order))
        # Merged as they are taken: what the order goes by may change meanwhile, which does no harm.
        return heapq.merge(*parts, key=order)

    # Looking.

    async def _pass(self, books: Iterable[Book], job: Job | None) -> set[Lane]:
        """Look at these, a few at once, and record what is found as it is found; those that want a second look."""
        left = iter(books)
        seen: list[Seen] = []
        soon: set[Lane] = set()

        async def read() -> None:
            for book in left:
                self.books.changed.discard(book.lane)
                self._due.pop(book.lane, None)
                one = await self.looker.look(book)
                if one.again_us is not None:
                    self._due[book.lane] = min(one.again_us, self._due.get(book.lane, one.again_us))
                    if one.again_us <= self._clock.now_us() + self.options.lag_us:
                        soon.add(book.lane)
                seen.append(one)
                if job is not None:
                    job.done += 1
                    job.unread += any(not looked.is_read for looked in one.looked)
                if len(seen) >= BOOKS_PER_SETTLING:
                    taken = seen.copy()
                    seen.clear()
                    await self._settle(taken)
                await trio.lowlevel.checkpoint()

        failed: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(READERS):
                    nursery.start_soon(read)
        except* EngineError as errors:
            failed = errors.exceptions[0]
        if failed is not None:
            raise failed  # as itself: who waits for it expects no group
        await self._settle(seen)
        return soon

    async def _settle(self, seen: Sequence[Seen]) -> None:
        """Record what some looks came to; repair what is proven."""
        findings = self._pusher.state.findings
        looked: list[Looked] = [one for each in seen for one in each.looked]
        records = steps(findings, self._gatherings, looked, self._clock.now_us())
        await self._record(records)
        await self._confirm([each for each in seen if each.confirmed])
        await self.repairs.make_proven([one.id for one in looked])

    async def _record(self, records: Sequence[Finding]) -> None:
        for first in range(0, len(records), RECORDS_PER_APPEND_MAX):
            await self._pusher.recorder.record(records[first : first + RECORDS_PER_APPEND_MAX])
        for record in records:
            if record.action in ("open", "resolve"):
                _logger.info(
                    "finding",
                    action=record.action,
                    id=record.id,
                    cause=record.cause,
                    gap=record.gap,
                    units=record.units,
                    targets=record.count,
                )

    async def _confirm(self, seen: Sequence[Seen]) -> None:
        """Record what Stripe holds as it should. What was pushed to meanwhile is confirmed by a later look."""
        for _ in range(CONFIRM_TRIES):
            still = [each for each in seen if each.is_still()]
            rows = [row for each in still for row in each.confirmed]
            records = [
                Finding(action="confirm", rows=tuple(rows[first:][:CONFIRMATIONS_PER_RECORD_MAX]))
                for first in range(0, len(rows), CONFIRMATIONS_PER_RECORD_MAX)
            ]
            try:
                if records:
                    await self._pusher.recorder.record(records, partial(_is_still, still))
            except Outdated:
                continue
            return

    async def _settle_unrouted(self) -> None:
        found = await self._unrouted.find()
        findings = self._pusher.state.findings
        await self._record(unrouted_steps(findings, found, self._clock.now_us()))

    async def _forget_gone(self, books: Iterable[Book]) -> None:
        """What nobody contributes to any more differs from nothing."""
        known: set[str] = set()
        proven = (one.proven for one in self._pusher.connections.values())
        asked = {(one.account, one.mode) for one in proven if one is not None}
        for number, book in enumerate(books):
            if number % BOOKS_PER_SLICE == BOOKS_PER_SLICE - 1:
                await trio.lowlevel.checkpoint()
            known.update(map(target_id, book.targets))
            asked.add((book.lane.account, book.lane.mode))
        for number, target in enumerate(list(self.looker.looks)):
            if number % BOOKS_PER_SLICE == BOOKS_PER_SLICE - 1:
                await trio.lowlevel.checkpoint()
            if (key := target_id(target)) not in known:
                self.looker.forget(target, key)
        findings = self._pusher.state.findings
        left = [
            subject
            for subject, keys in findings.open_of.items()
            if subject not in known and any(_is_of(findings.open[key], asked) for key in keys)
        ]
        looked = [Looked(subject, (), is_read=True) for subject in left]
        now_us = self._clock.now_us()
        await self._record(steps(findings, self._gatherings, looked, now_us, is_end=True))

    async def rejected_unnamed(self, meter: str, events: int) -> None:
        """Stripe reported rejected events and named only samples: what was pushed to the meter of late is read back."""
        self.looker.rejected_unnamed(meter, events)
        now_us = self._clock.now_us()
        # By then all that was pushed before the report should show; what does not is looked at a second time.
        at_us = now_us + self.options.lag_us
        for number, (lane, state) in enumerate(list(self._pusher.state.ledger.lanes.items())):
            if lane.object_id == meter and state.newest_intent_at_us > now_us - REPORTED_US:
                self._due[lane] = min(at_us, self._due.get(lane, at_us))
            if number % LANES_PER_SLICE == LANES_PER_SLICE - 1:
                await trio.lowlevel.checkpoint()

    def look_soon(self, target: Target) -> None:
        """Somebody changed something about a target."""
        self._due[target.lane] = self._clock.now_us()


def _is_still(seen: Iterable[Seen]) -> bool:
    return all(each.is_still() for each in seen)


def _is_of(one: OpenFinding, accounts: Container[tuple[str, Mode]]) -> bool:
    """Whether a finding is about a total of one of these: of another account's nothing is known with this key."""
    target = one.record.target
    return target is not None and (target.lane.account, target.lane.mode) in accounts
