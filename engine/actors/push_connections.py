"""The keys that pushing works with: what each proved to be, how fast it may be asked, what it found out.

Rules it keeps: nothing is pushed through a key before Stripe has said whose it is; an account's pace and breaker are
its own, so that one that fails holds nobody else up; what was resolved is kept until it can have changed.
It must not know targets or the log.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from random import Random
from typing import Final, NamedTuple

import structlog
import trio

from engine.core.billing import (
    AlreadyDelivered,
    Delivered,
    Destination,
    Mode,
    Outcome,
    Proven,
    PushRequest,
    Refused,
    Resolved,
    RetryLater,
    Unknown,
    Unread,
    Unresolved,
)
from engine.core.pace import WAIT_SLICE_US, Breaker, TokenBucket, backoff_us
from engine.core.push_records import Role
from engine.ports import Billing, Clock, PromptBilling

_logger = structlog.get_logger("stripemeter.push")
NOT_ASKED: Final = "Stripe has not been asked yet whose key it is"
"""Of a key whose first answer has not come: neither that it works nor that it does not."""
RESOLVED_KEPT_MAX: Final = 100_000
RESOLVED_US: Final = 3600 * 1_000_000
"""How long an answer is trusted; an item's at most to the end of its billing period."""
FAILED_US: Final = 60 * 1_000_000
"""How long "there is no such thing" is trusted: somebody may be putting it right."""
_SENDS_PER_SECOND: Final[dict[Mode, int]] = {"live": 800, "test": 20, "sim": 900}
_READS_PER_SECOND: Final = 20
_READS_UNLIMITED_PER_SECOND: Final = 200
"""Of a simulator that says it has no limits: the built-in one, or one with `--no-limits`."""
STREAM_EVENTS_MAX: Final = 100
STREAM_GATHER_SECONDS: Final = 0.01
CONNECT_PER_SECOND: Final = 20
"""Stripe's limits with a fifth kept back for whoever else uses the account."""


class Pace:
    """An account's limits."""

    def __init__(self, proven: Proven, *, is_connected: bool, rng: Random) -> None:
        sends = CONNECT_PER_SECOND if is_connected else _SENDS_PER_SECOND[proven.mode]
        reads = _READS_UNLIMITED_PER_SECOND if proven.is_unlimited else _READS_PER_SECOND
        reads = CONNECT_PER_SECOND if is_connected else reads
        self.sends, self.reads, self.resolves = map(TokenBucket, (sends, reads, reads))
        self.breaker = Breaker(rng.randrange)

    def unread(self, answer: Unread, now_us: int) -> None:
        """What a reading that came to nothing says of the account: nothing, if what was asked for was refused."""
        if answer.is_refused:
            self.breaker.succeeded()
        elif answer.after_us is not None:
            self.breaker.pause(now_us, answer.after_us)
        else:
            self.breaker.failed(now_us, answer.reason)


class _Kept(NamedTuple):
    answer: Resolved | Unresolved
    until_us: int


class Again(NamedTuple):
    """When a destination may be asked about again."""

    wait_us: int
    breaker: Breaker | None
    """The wait is over when this one is closed; None: only when it is over."""


class _Batch:
    """Requests that go to the stream together."""

    def __init__(self) -> None:
        self.requests: list[PushRequest] = []
        self.stored: list[int] = []
        self.outcomes: list[Outcome] = []
        self.full = trio.Event()
        self.done = trio.Event()

    def add(self, request: PushRequest, stored: int) -> int:
        """Its place in the batch."""
        self.requests.append(request)
        self.stored.append(stored)
        if len(self.requests) == STREAM_EVENTS_MAX:
            self.full.set()
        return len(self.requests) - 1


class ConnectionReport(NamedTuple):
    """A key for a person's eyes; never the key."""

    account: str | None
    mode: Mode | None
    error: str | None
    """Why nothing goes through it now, in words."""


class Connection:
    """One key."""

    def __init__(self, role: Role, billing: Billing, clock: Clock, rng: Random) -> None:
        self.role = role
        self.billing = billing
        self._prompt = billing if isinstance(billing, PromptBilling) else None
        self.proven: Proven | None = None
        self.error: str | None = NOT_ASKED
        """Why it is not proven; None: it is."""
        self.is_useless = False
        """It was found to be a key that must not be used; it will never be proven."""
        self._refused: str | None = None
        """Why Stripe refused the key for the newest push that it said anything about; None: it took the key."""
        self._clock = clock
        self._rng = rng
        self._paces: dict[str, Pace] = {}
        self._batches: dict[str | None, _Batch] = {}
        """Gathering now, by connected account."""
        self._kept: OrderedDict[Destination, _Kept] = OrderedDict()

    def report(self) -> ConnectionReport:
        """What to show of it."""
        proven = self.proven
        error = self.error
        if error is None and proven is not None:
            error = self._refused or self.pace(None).breaker.reason
        return ConnectionReport(
            None if proven is None else proven.account,
            None if proven is None else proven.mode,
            error,
        )

    def pace(self, connect_account: str | None) -> Pace:
        """The limits of an account; None: the key's own."""
        assert self.proven is not None, "nobody is asked before it is known who"
        account = connect_account or self.proven.account
        pace = self._paces.get(account)
        if pace is None:
            is_connected = connect_account is not None
            pace = Pace(self.proven, is_connected=is_connected, rng=self._rng)
            self._paces[account] = pace
        return pace

    async def prove(self) -> None:
        """Ask whose key it is until that is answered. A shadow key must not be a live one."""
        tries = 0
        while self.proven is None:
            answer = await self.billing.prove()
            if isinstance(answer, Unread):
                tries += 1
                self.error = f"Stripe did not say whose key it is: {answer.reason}"
                _logger.warning("stripe_unproven", role=self.role, reason=answer.reason)
                wait_us = answer.after_us or backoff_us(tries, self._rng.randrange)
                await trio.sleep(wait_us / 1_000_000)
            elif self.role == "shadow" and answer.mode == "live":
                self.error = "STRIPE_TEST_SECRET_KEY is a live key: shadow mode pushes nothing"
                self.is_useless = True
                _logger.error("stripe_shadow_key_is_live", account=answer.account)
                return
            else:
                self.proven, self.error = answer, None
                _logger.info(
                    "stripe_connected", role=self.role, account=answer.account, mode=answer.mode
                )

    def known_pace(self, account: str) -> Pace | None:
        """The limits of an account, if it was ever asked."""
        return self._paces.get(account)

    def known(self, destination: Destination) -> Resolved | Unresolved | None:
        """What was found out about a destination and still holds."""
        kept = self._kept.get(destination)
        if kept is None:
            return None
        if self._clock.now_us() >= kept.until_us:
            # An answer that was right stays until there is a newer one: Stripe may be down.
            return kept.answer if isinstance(kept.answer, Resolved) else None
        return kept.answer

    def forget_customer(self, customer: str | None, items: frozenset[str]) -> None:
        """Something of a Stripe customer or its items changed: ask again, and use what is known until then."""
        for destination, kept in self._kept.items():
            answer = kept.answer
            of_customer = destination.customer or (
                answer.customer if isinstance(answer, Resolved) else None
            )
            if destination.item in items or (customer is not None and of_customer == customer):
                self._kept[destination] = kept._replace(until_us=0)

    def forget_object(self, resolved: Resolved) -> None:
        """Something contradicted what is known of it: ask again, and use what is known until then."""
        for destination, kept in self._kept.items():
            if kept.answer == resolved:
                self._kept[destination] = kept._replace(until_us=0)
                return

    async def resolve(self, destination: Destination) -> Again | None:
        """Ask Stripe about a destination; None: it is known now."""
        pace = self.pace(destination.connect_account)
        now_us = self._clock.now_us()
        is_open = pace.breaker.is_open
        if wait_us := pace.breaker.admit(now_us) or pace.resolves.take(now_us):
            return Again(wait_us, pace.breaker if is_open else None)
        answer = await self.billing.resolve(destination)
        now_us = self._clock.now_us()
        if isinstance(answer, Unresolved) and answer.is_temporary:
            pace.breaker.failed(now_us, answer.reason)
            old = self._kept.get(destination)
            if old is None or not isinstance(old.answer, Resolved):
                self._keep(destination, _Kept(answer, now_us))
            if answer.after_us is not None:
                return Again(answer.after_us, None)
            is_open = pace.breaker.is_open
            return Again(backoff_us(3, self._rng.randrange), pace.breaker if is_open else None)
        pace.breaker.succeeded()
        until_us = now_us + (RESOLVED_US if isinstance(answer, Resolved) else FAILED_US)
        if isinstance(answer, Resolved) and answer.period_end_s is not None:
            # At the boundary the item's period becomes the next one; not before a moment for Stripe to do it.
            end_us = answer.period_end_s * 1_000_000 + 5_000_000
            until_us = min(until_us, end_us) if end_us > now_us else now_us + 30_000_000
        self._keep(destination, _Kept(answer, until_us))
        return None

    async def until(self, again: Again) -> None:
        """Wait, in slices: a probe that is answered ends a wait that would have been a minute."""
        left_us = again.wait_us
        while left_us > 0:
            slice_us = min(left_us, WAIT_SLICE_US)
            await trio.sleep(slice_us / 1e6)
            left_us -= slice_us
            if again.breaker is not None and not again.breaker.is_open:
                return

    def answered(self, outcome: Outcome) -> None:
        """A request that pushes came to this: whether Stripe takes the key for it is known from then on.

        That it may read says nothing: a restricted key may do that and not push.
        """
        match outcome:
            case Refused(reason, scope="account"):
                self._refused = reason
            case Delivered() | AlreadyDelivered() | Refused():
                self._refused = None
            case RetryLater() | Unknown():
                pass

    def begin_send(
        self, request: PushRequest, stored: int, done: Callable[[Outcome], None]
    ) -> bool:
        """Send one request once, and tell `done` its outcome; False: not this way or not now, so `send` it."""
        if self._prompt is None or request.driver == "stream":
            return False
        return self._prompt.begin_send(request, stored, done)

    async def send(self, request: PushRequest, stored: int) -> Outcome:
        """Send one request once; those for the stream go together with others that are due just now."""
        if request.driver != "stream":
            return (await self.billing.send((request,), (stored,)))[0]
        batch = self._batches.get(request.connect_account)
        if batch is not None and not batch.full.is_set():
            number = batch.add(request, stored)
            await batch.done.wait()
        else:
            batch = self._batches[request.connect_account] = _Batch()
            number = batch.add(request, stored)
            with trio.move_on_after(STREAM_GATHER_SECONDS):
                await batch.full.wait()
            if self._batches.get(request.connect_account) is batch:
                del self._batches[request.connect_account]
            try:
                batch.outcomes = await self.billing.send(batch.requests, batch.stored)
            finally:
                batch.done.set()
        # A sender that was cancelled has learnt nothing; neither have those who went with it.
        return batch.outcomes[number] if batch.outcomes else Unknown("it was not waited for")

    def _keep(self, destination: Destination, kept: _Kept) -> None:
        self._kept[destination] = kept
        self._kept.move_to_end(destination)
        if len(self._kept) > RESOLVED_KEPT_MAX:
            self._kept.popitem(last=False)

    def stale(self, most: int) -> list[Destination]:
        """Destinations in use whose answers have run out, at most so many."""
        now_us = self._clock.now_us()
        found = []
        for destination, kept in self._kept.items():
            if now_us >= kept.until_us:
                found.append(destination)
                if len(found) == most:
                    break
        return found
