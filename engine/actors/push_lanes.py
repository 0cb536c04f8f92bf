"""Serves a lane: resolves its open intent, or plans, records and sends the next one.

Rules it keeps: an intent is durable before its request leaves, and only the bytes in the log are sent; a lane is served
by one course at a time; what a request's answer does not prove is read back, never guessed. What an attempt may have
done is noted before it is made. It must not know counters, nor which lanes have something to do, nor who carries out
what a course wishes.
"""

from __future__ import annotations

from collections import Counter as Tallied
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random
from typing import Final

import structlog
import trio

from engine.actors.push_connections import Connection, Pace
from engine.actors.push_course import Course, asked, recorded, sent
from engine.actors.push_reading import PushReader
from engine.actors.push_recorder import Outdated, PushRecorder
from engine.actors.push_runtime import LaneRuntime
from engine.core.billing import (
    AlreadyDelivered,
    Delivered,
    Refused,
    RetryLater,
    Unknown,
    Unread,
)
from engine.core.pace import backoff_us
from engine.core.push_baselines import (
    BaselineNeed,
    baseline_decision,
    baseline_need,
    baseline_range,
)
from engine.core.push_ledger import PushLedger
from engine.core.push_misfits import is_elsewhere
from engine.core.push_plan import (
    Attempts,
    Close,
    OpenStep,
    Planned,
    ReadBack,
    Send,
    TargetView,
    Wait,
    due_units,
    finalization_us,
    make_intent,
    next_for_open,
    outcome,
    plan,
)
from engine.core.push_records import Lane, PushDecision, PushIntent, PushOutcome, Role, Target
from engine.core.records import ControlRecord
from engine.core.times import MINUTE_US
from engine.errors import EngineError
from engine.ports import Clock

_logger = structlog.get_logger("stripemeter.push")
RECORD_RETRY_SECONDS: Final = 1.0
OUTDATED_RETRY_US: Final = 20_000
"""A mapping or customer changed: until its series are taken in, nothing new is planned."""
DECIDING_RETRY_US: Final = 20_000
"""Somebody's decision about the lane is being recorded."""
ACCOUNT_REFUSED_US: Final = 600 * 1_000_000


class LaneServer:
    """Everything a lane needs. One for all lanes."""

    def __init__(
        self,
        ledger: PushLedger,
        *,
        connection: Callable[[Role], Connection | None],
        views: Callable[[Lane], Iterable[TargetView]],
        view: Callable[[Target], TargetView | None],
        grace_us: Callable[[Target], int],
        recorder: PushRecorder,
        clock: Clock,
        rng: Random,
        log_id: bytes,
        epoch: int,
        interval_us: int,
        held: Callable[[], str | None],
        is_current: Callable[[], bool],
    ) -> None:
        self._ledger = ledger
        self._connection = connection
        self._views = views
        self._view = view
        self._grace_us = grace_us
        self._recorder = recorder
        self._clock = clock
        self._rng = rng
        self._log_id = log_id
        self._epoch = epoch
        self._interval_us = interval_us
        self._held = held
        self._is_current = is_current
        self.runtimes: dict[Lane, LaneRuntime] = {}
        self.results: Tallied[tuple[Role, str]] = Tallied()
        """(role, what became of an attempt or intent) to how often; for metrics."""
        self._undecided: dict[Lane, None] = {}
        """Lanes that would decrease once it is known that nothing is missing from them."""
        self.confirmed: dict[Target, tuple[str, int]] = {}
        """What Stripe's summary held when it was read last, and when."""
        self._reader = PushReader(ledger, clock)

    def runtime(self, lane: Lane) -> LaneRuntime:
        """What is known of a lane; made when first asked for."""
        found = self.runtimes.get(lane)
        if found is None:
            found = self.runtimes[lane] = LaneRuntime()
        return found

    def take_undecided(self) -> tuple[Lane, ...]:
        """Lanes to serve again now that more is known."""
        taken = tuple(self._undecided)
        self._undecided.clear()
        return taken

    def planned(self, view: TargetView, *, forced: bool = False) -> Planned:
        """A target's plan now."""
        lane, now_us = view.target.lane, self._clock.now_us()
        found = plan(
            view,
            self._ledger.lane(lane),
            self._ledger.target(view.target),
            now_us=now_us,
            interval_us=0 if forced else self._interval_us,
        )
        return self.runtime(lane).planned(found, now_us)

    def serve(self, lane: Lane) -> Course[int | None]:
        """Do what can be done for a lane now; when to come again (wall time), None: when something changes."""
        runtime = self.runtime(lane)
        if runtime.lock.value == 0:
            return self._clock.now_us() + DECIDING_RETRY_US
        runtime.lock.acquire_nowait()
        try:
            while True:
                try:
                    again_us = yield from self._step(lane, runtime)
                except Outdated:
                    return self._clock.now_us() + OUTDATED_RETRY_US
                except EngineError as error:
                    runtime.last_error = f"the log could not take a record: {error}"
                    return self._clock.now_us() + int(RECORD_RETRY_SECONDS * 1e6)
                if again_us != 0:
                    return again_us
        finally:
            runtime.lock.release()

    def _step(self, lane: Lane, runtime: LaneRuntime) -> Course[int | None]:
        """One thing; 0: and at once another."""
        state = self._ledger.lane(lane)
        if state is not None and state.open is not None:
            if state.quarantine is not None:
                return None
            return (yield from self._go_on(state.open, runtime))
        return (yield from self._begin(lane, runtime))

    # A new intent.

    def _begin(self, lane: Lane, runtime: LaneRuntime) -> Course[int | None]:
        views = self._behind(lane)
        if not views:
            runtime.forced.clear()
            return None
        now_us = self._clock.now_us()
        if self._held() is not None:
            return now_us + 30_000_000
        if wait_us := self._gate(lane, runtime, now_us):
            return now_us + wait_us
        if not self._is_current():
            return now_us + OUTDATED_RETRY_US
        wake_us: int | None = None
        due: TargetView | None = None
        for view in views:
            planned = self.planned(view, forced=view.target in runtime.forced)
            if planned.standing == "refused" and view.target in runtime.forced:
                planned = planned._replace(standing="due", at_us=now_us)
            if planned.standing == "awaiting_baseline":
                # A later period must not become the first while a person may still choose this one.
                state = self._ledger.target(view.target)
                final_us = finalization_us(view.target, state, view.grace_us)
                wake_us = final_us if wake_us is None else min(wake_us, final_us)
                break
            if planned.due < 0 and not view.may_decrease:
                self._undecided[lane] = None
            if planned.at_us is None or planned.standing not in ("due", "refused"):
                continue
            if planned.standing == "due" and planned.at_us <= now_us:
                due = view
                break
            wake_us = planned.at_us if wake_us is None else min(wake_us, planned.at_us)
        if due is None:
            runtime.forced.clear()
            return wake_us
        connection = self._connection(due.role)
        if connection is None or connection.proven is None:
            return None
        pace = connection.pace(due.connect_account)
        need = baseline_need(due, self._ledger)
        if need is not None:
            return (yield from self._take_baseline(due, need, connection, runtime))
        # While nothing answers deltas are not made into intents: they go on adding up.
        if wait_us := runtime.admitted(pace, pace.sends, now_us):
            return now_us + wait_us
        intent = make_intent(
            due, self._ledger, log_id=self._log_id, epoch=self._epoch, now_us=now_us
        )
        if intent is None:
            return now_us + MINUTE_US - now_us % MINUTE_US
        yield from recorded((intent,), self._is_current)
        runtime.forced.discard(due.target)
        attempts = runtime.attempts = Attempts()
        # The disk may have taken its time: by now the invoice may be final.
        if isinstance(self._next_for_open(intent, attempts), Send):
            yield from self._send(intent, runtime, connection, pace)
        return 0

    def _behind(self, lane: Lane) -> list[TargetView]:
        """Targets for which Stripe holds more or less than was used, oldest period first: no plan concerns the others."""
        state = self._ledger.lane(lane)
        behind = (
            view
            for view in self._views(lane)
            if due_units(view, None if state is None else state.target(view.target))
        )
        return sorted(behind, key=_order)

    def _gate(self, lane: Lane, runtime: LaneRuntime, now_us: int) -> int:
        """Before anything is planned: how long nothing can be asked anyway; thousands may come at once."""
        if wait_us := runtime.slot_wait_us(now_us):
            return wait_us
        state = self._ledger.lane(lane)
        connection = self._connection("main" if state is None else state.role)
        pace = None if connection is None else connection.known_pace(lane.account)
        return 0 if pace is None else pace.breaker.wait_us(now_us)

    def _take_baseline(
        self, view: TargetView, need: BaselineNeed, connection: Connection, runtime: LaneRuntime
    ) -> Course[int | None]:
        pace = connection.pace(view.connect_account)
        now_us = self._clock.now_us()
        if wait_us := runtime.admitted(pace, pace.reads, now_us):
            return now_us + wait_us
        lane = view.target.lane
        start_s, end_s = baseline_range(view, now_us)
        answer = yield from asked(
            lambda: connection.billing.read(
                view.resolved, lane.customer, start_s, end_s, view.connect_account
            )
        )
        now_us = self._clock.now_us()
        if isinstance(answer, Unread):
            return runtime.waits_to_read(answer, self._unread(answer, pace, runtime))
        pace.breaker.succeeded()
        runtime.has_read()
        self.confirmed[view.target] = (answer.units, now_us)
        state = self._ledger.target(view.target)
        decision = baseline_decision(view, state, need, answer.units)
        known = self._ledger.lane(lane)
        waits = None if known is None else known.awaits
        said = None if waits is None else (waits.target, waits.reading)
        # One of another period may be left: it was final before anybody decided.
        if decision.kind == "await" and said == (decision.target, decision.reading):
            return None
        yield from recorded((decision,), self._is_current)
        _logger.info(
            "push_baseline",
            kind=decision.kind,
            choice=decision.choice,
            reading=decision.reading,
            because=decision.because,
        )
        return 0

    def _unread(self, answer: Unread, pace: Pace, runtime: LaneRuntime) -> int:
        now_us = self._clock.now_us()
        pace.unread(answer, now_us)
        return runtime.unread(answer, now_us, self._rng.randrange)

    # An open intent.

    def _next_for_open(self, intent: PushIntent, attempts: Attempts) -> OpenStep:
        return next_for_open(
            intent,
            attempts,
            finalized_us=self._finalized_us(intent),
            now_us=self._clock.now_us(),
            monotonic_us=self._clock.monotonic_us(),
        )

    def _go_on(self, intent: PushIntent, runtime: LaneRuntime) -> Course[int | None]:
        if runtime.attempts is None:
            now_us, monotonic_us = self._clock.now_us(), self._clock.monotonic_us()
            runtime.attempts = Attempts.unknown(intent, now_us, monotonic_us)
        connection = self._connection(intent.role)
        proven = None if connection is None else connection.proven
        request = intent.request
        is_away = is_elsewhere(intent.target.lane, request, proven)
        if connection is None or proven is None or is_away:
            runtime.last_error = "the account it was begun with is not connected"
            return None
        match step := self._next_for_open(intent, runtime.attempts):
            case Wait(until_us):
                return until_us
            case Close():
                return (yield from self._close(intent, step, runtime))
            case Send():
                pace, now_us = connection.pace(request.connect_account), self._clock.now_us()
                if wait_us := runtime.admitted(pace, pace.sends, now_us):
                    return now_us + wait_us
                yield from self._send(intent, runtime, connection, pace)
                return 0
            case ReadBack():
                return (yield from self._read_back(intent, runtime, connection))

    def _finalized_us(self, intent: PushIntent) -> int:
        target = intent.target
        return finalization_us(target, self._ledger.target(target), self._grace_us(target))

    def _close(self, intent: PushIntent, close: Close, runtime: LaneRuntime) -> Course[int]:
        # Surely: an identifier that was there before it was sent would look like its own when it is sent again.
        yield from self._record_surely((outcome(intent, close),))
        self.results[intent.role, close.result] += 1
        runtime.attempts = None
        if close.result != "delivered":
            _logger.warning(
                "push_closed",
                result=close.result,
                reason=close.reason,
                identifier=intent.request.identifier,
            )
        return 0

    def _send(
        self, intent: PushIntent, runtime: LaneRuntime, connection: Connection, pace: Pace
    ) -> Course[None]:
        """One attempt; its outcome is recorded, or noted in the attempts."""
        attempts = runtime.attempts
        assert attempts is not None, "what an attempt may have done is noted before it is made"
        before_us = attempts.left_at_us
        had_left = attempts.has_left
        attempts.leave(self._clock.now_us(), self._clock.monotonic_us())
        answer = yield from sent(connection, intent.request, attempts.stored)
        now_us = self._clock.now_us()
        attempts.tries += 1
        match answer:
            case Delivered():
                pace.breaker.succeeded()
                close = Close("delivered", "answer", is_resent=attempts.is_resent)
                yield from self._delivered(intent, runtime, close)
            case AlreadyDelivered(reason):
                pace.breaker.succeeded()
                if had_left:
                    yield from self._delivered(intent, runtime, Close("delivered", "exists"))
                else:
                    finding = f"Stripe had its identifier before it was sent first: {reason}"
                    yield from self._close(intent, Close("quarantined", "exists", finding), runtime)
            case RetryLater(reason, after_us, is_account_wide):
                if before_us is None:
                    attempts.left_at_us, attempts.has_left = None, had_left
                self._later(attempts, runtime, reason, after_us)
                if is_account_wide and after_us is not None:
                    pace.breaker.pause(now_us, after_us)
                elif is_account_wide:
                    pace.breaker.failed(now_us, reason)
            case Unknown(reason, is_stored):
                attempts.stored += is_stored
                self._later(attempts, runtime, reason, None)
                pace.breaker.failed(now_us, reason)
            case Refused():
                if before_us is None and answer.scope == "account":  # it was not looked at
                    attempts.left_at_us, attempts.has_left = None, had_left
                yield from self._refused(intent, runtime, connection, answer, before_us=before_us)
        self.results[intent.role, _RESULT_NAMES[type(answer)]] += 1

    def _later(
        self, attempts: Attempts, runtime: LaneRuntime, reason: str, after_us: int | None
    ) -> None:
        wait_us = backoff_us(attempts.tries, self._rng.randrange)
        attempts.next_try_us = self._clock.now_us() + max(wait_us, after_us or 0)
        runtime.last_error = reason

    def _delivered(self, intent: PushIntent, runtime: LaneRuntime, close: Close) -> Course[None]:
        yield from self._record_surely((outcome(intent, close),))
        runtime.attempts, runtime.last_error = None, None
        self._reader.remember(intent)

    def _record_surely(self, records: Sequence[ControlRecord]) -> Course[None]:
        """Record what is known for certain, however long the log can't take it."""
        while True:
            try:
                yield from recorded(records)
            except EngineError:
                yield from asked(partial(trio.sleep, RECORD_RETRY_SECONDS))
            else:
                return

    def _refused(
        self,
        intent: PushIntent,
        runtime: LaneRuntime,
        connection: Connection,
        answer: Refused,
        *,
        before_us: int | None,
    ) -> Course[None]:
        attempts = runtime.attempts
        assert attempts is not None
        runtime.last_error = answer.reason
        pace = connection.pace(intent.request.connect_account)
        now_us = self._clock.now_us()
        if answer.scope == "account":
            # It stays open and goes again when the key is right.
            attempts.next_try_us = now_us + ACCOUNT_REFUSED_US
            pace.breaker.pause(now_us, ACCOUNT_REFUSED_US)
            return
        pace.breaker.succeeded()
        if before_us is not None:
            # That this attempt was refused says nothing about the one before it.
            attempts.is_refused = True
            attempts.next_try_us = now_us
            return
        record = PushOutcome(
            target=intent.target,
            number=intent.number,
            result="refused",
            reason=answer.reason,
            code=answer.code,
            is_target_wide=answer.scope == "target",
            request_id=answer.request_id,
        )
        yield from self._record_surely((record,))
        runtime.attempts = None
        view = self._view(intent.target)
        if view is not None:
            connection.forget_object(view.resolved)
        _logger.warning("push_refused", reason=answer.reason, code=answer.code, scope=answer.scope)

    def _read_back(
        self, intent: PushIntent, runtime: LaneRuntime, connection: Connection
    ) -> Course[int | None]:
        attempts = runtime.attempts
        assert attempts is not None
        pace = connection.pace(intent.request.connect_account)
        now_us = self._clock.now_us()
        if wait_us := runtime.admitted(pace, pace.reads, now_us):
            return now_us + wait_us
        finalized_us = self._finalized_us(intent)
        judge = partial(self._reader.judge, intent, attempts, connection, finalized_us)
        step = yield from asked(judge)
        match step:
            case Unread():
                return self._unread(step, pace, runtime)
            case Wait(until_us):
                pace.breaker.succeeded()
                return until_us
            case Close():
                pace.breaker.succeeded()
                return (yield from self._close(intent, step, runtime))
            case Send() | ReadBack():
                pace.breaker.succeeded()
                return 0

    # Decisions of people; hold the lane's lock.

    async def decide(self, lane: Lane, make: Callable[[], PushDecision | PushOutcome]) -> None:
        """Record a decision about a lane that nobody is serving meanwhile; `make` checks and may raise."""
        runtime = self.runtime(lane)
        async with runtime.lock:
            record = make()
            await self._recorder.record((record,))
            state = self._ledger.lane(lane)
            if state is None or state.open is None:
                # Not for a report about an earlier one, while another is open.
                runtime.attempts = None


def _order(view: TargetView) -> tuple[int, str]:
    """Oldest period first."""
    return view.target.start_us, view.target.scale


_RESULT_NAMES: Final[dict[type, str]] = {
    Delivered: "delivered",
    AlreadyDelivered: "exists",
    RetryLater: "later",
    Unknown: "unknown",
    Refused: "refused",
}
