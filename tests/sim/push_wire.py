"""The wire of simulated pushing: what may never leave is caught as it leaves, what may happen to it on the way happens.

Rules it keeps: every request is held against the durable log and the rules of the design at the moment it leaves, and
what Stripe really took is noted apart from what Stripe answers. A crash may come before a request leaves, while it is
under way (it may then arrive later, when nobody waits any more) and after it was answered. It must not know totals.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import trio

from engine.drivers.wire import Answer, AnswerLost
from gateway.simulator.ledger import Sent
from gateway.simulator.state import StripeState
from gateway.simulator.wire import Request, decode_form
from tests.sim.push_books import DurableLog
from tests.sim.violation import Violation

EVENTS = "/v1/billing/meter_events"
MINUTE_US = 60_000_000
CONNECTION_SECONDS_MAX = 60.0


@dataclass
class StripeTruth:
    """What Stripe really took, whatever it answered. One for everybody who sends to it."""

    state: StripeState
    bodies: dict[str, bytes] = field(default_factory=dict)
    """Identifier to the one request it stands for."""
    senders: dict[str, str] = field(default_factory=dict)
    """Identifier to the log that sent it."""
    taken: dict[str, Sent] = field(default_factory=dict)
    """Identifier to the event it became; its state may be `rejected`."""
    reports: dict[str, int] = field(default_factory=dict)
    """Identifiers that were rejected afterwards, and when Stripe says so."""
    delayed: list[tuple[int, Request]] = field(default_factory=list)
    """Requests whose senders died, and when they arrive."""

    def now_us(self) -> int:
        """Stripe's clock."""
        return self.state.now_us()

    def arrive(self) -> None:
        """Let what was on its way when its sender died arrive."""
        due = [request for at_us, request in self.delayed if at_us <= self.now_us()]
        self.delayed = [entry for entry in self.delayed if entry[0] > self.now_us()]
        for request in due:
            call = self.state.begin(request)
            self.state.finish(call)
            self.note(request)

    def note(self, request: Request) -> None:
        """A request has been served: what became of its event?"""
        if request.path != EVENTS:
            return
        identifier = decode_form(request.body.decode())["identifier"]
        sent = self.state.world.ledgers[self.account(request)].sent.get(identifier)
        known = self.taken.get(identifier)
        if sent is None or (known is not None and known.sequence == sent.sequence):
            return
        if known is not None and known.state != "rejected":
            raise Violation(f"Stripe took {identifier} twice")
        self.taken[identifier] = sent
        if sent.state == "rejected":
            self.reports[identifier] = self.now_us() + 30_000_000

    def account(self, request: Request) -> str:
        """Whose a request is."""
        return request.headers.get("stripe-account") or self.state.account

    def is_there(self, identifier: str) -> bool:
        """Whether an event counts, or will once it is aggregated."""
        return identifier in self.taken and self.taken[identifier].state != "rejected"


class WatchedWire:
    """Fills `engine.drivers.wire.Wire`."""

    name = "watched"

    def __init__(
        self,
        truth: StripeTruth,
        books: DurableLog,
        rng: random.Random,
        *,
        sender: str,
        period_of: Callable[[int], tuple[int, int]],
        grace_us: int,
        late_us: int = 0,
        point: Callable[[], None] = lambda: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`point`: a crash may come here, by cancelling. `check`: what holds after every request.

        `late_us`: so long after it was decided a request may leave.
        """
        self.truth = truth
        self.books = books
        self._rng = rng
        self._sender = sender
        self._period_of = period_of
        self._grace_us = grace_us + late_us
        self._point = point
        self._check = check
        self._under_way: set[tuple[str, str]] = set()
        self.failed_keys: set[str] = set()
        """Idempotency keys that this process knows to replay an error."""
        self.refusals = 0
        """So many of the next events are refused, without having been looked at."""
        self.is_refusing_again = False
        """Only what was sent before is refused: which says nothing of the time before."""
        self._tried: set[str] = set()
        self.is_late = False
        """A request whose sender dies may arrive afterwards."""
        self.events = 0

    async def exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """As a socket would."""
        parts = urlsplit(url)
        named = {name.lower(): text for name, text in headers.items()}
        request = Request(method, unquote(parts.path), parts.query, named, body)
        self.truth.arrive()
        if request.path != EVENTS:
            return await self._serve(request)
        lane = self._must_be_allowed(request)
        self._under_way.add(lane)
        try:
            return await self._send(request)
        finally:
            self._under_way.discard(lane)

    async def _send(self, request: Request) -> Answer:
        self.events += 1
        left_at = trio.current_time()
        try:
            self._point()
            await trio.sleep(self._rng.choice((0, 0, 0.01, 0.4)))
        except trio.Cancelled:
            if self.is_late and self._rng.random() < 0.5:
                seconds = self._rng.choice((0, 1, 40))
                self.truth.delayed.append((self.truth.now_us() + seconds * 1_000_000, request))
            raise
        if trio.current_time() > left_at + CONNECTION_SECONDS_MAX:
            raise AnswerLost("the machine slept, and its connections are gone")
        identifier = decode_form(request.body.decode())["identifier"]
        is_again = identifier in self._tried
        self._tried.add(identifier)
        if self.refusals and (is_again or not self.is_refusing_again):
            self.refusals -= 1
            return Answer(400, {"request-id": "req_no"}, _REFUSAL)
        answer = await self._serve(request)
        self._point()
        await trio.lowlevel.checkpoint()
        if answer.status >= 500:
            self.failed_keys.add(request.headers["idempotency-key"])
        return answer

    async def _serve(self, request: Request) -> Answer:
        call = self.truth.state.begin(request)
        try:
            self.truth.note(request)
            self._check()
            await trio.sleep(call.response.delay_seconds)
        finally:
            self.truth.state.finish(call)
        if call.response.lost == "swallowed":
            await trio.sleep(30)
        if call.response.lost:
            raise AnswerLost(f"the answer is lost: {call.response.lost}")
        return Answer(call.response.status, dict(call.response.headers), call.response.body)

    def _must_be_allowed(self, request: Request) -> tuple[str, str]:
        """What the design says of a request that leaves now; its lane. Raises Violation."""
        form = decode_form(request.body.decode())
        identifier, payload = form["identifier"], form["payload"]
        timestamp_s, value = int(form["timestamp"]), payload["value"]
        customer, event_name = payload["stripe_customer_id"], form["event_name"]
        if self.truth.bodies.setdefault(identifier, request.body) != request.body:
            raise Violation(f"{identifier} was sent with two contents")
        if self.truth.senders.setdefault(identifier, self._sender) != self._sender:
            raise Violation(f"{identifier} was sent by two logs")
        key = request.headers.get("idempotency-key", "")
        if not key.startswith(f"{identifier}:"):
            raise Violation(f"{identifier} has an idempotency key of another")
        if key in self.failed_keys:
            raise Violation(f"{key} can only replay the error that was answered before")
        intent = self.books.refresh().intents.get(identifier)
        if intent is None:
            raise Violation(f"{identifier} left before its intent was durable")
        kept = intent.request
        said = (kept.value, kept.timestamp_s, kept.customer, kept.event_name)
        if said != (value, timestamp_s, customer, event_name):
            raise Violation(f"{identifier} is not what the log says: {form}")
        if self.books.results[identifier]:
            raise Violation(
                f"{identifier} was sent after it was {self.books.results[identifier][-1]}"
            )
        target = intent.target
        if target.lane.account != self.truth.account(request):
            raise Violation(
                f"{identifier} is of {target.lane.account}, and sent to another account"
            )
        if (target.start_us, target.end_us) != self._period_of(timestamp_s * 1_000_000):
            raise Violation(f"{identifier} is dated outside of its period")
        minute_us = timestamp_s // 60 * MINUTE_US
        if minute_us < target.start_us or minute_us + MINUTE_US > target.end_us:
            raise Violation(f"{identifier} is dated in a boundary's partial minute")
        if self.truth.now_us() >= target.end_us + self._grace_us:
            raise Violation(f"{identifier} left after finalization")
        if timestamp_s * 1_000_000 > self.truth.now_us():
            raise Violation(f"{identifier} is dated in the future")
        if (event_name, customer) in self._under_way:
            raise Violation(f"{event_name} of {customer} has two requests in flight")
        return event_name, customer

    async def aclose(self) -> None:
        """Nothing is open."""


_REFUSAL = b'{"error": {"type": "invalid_request_error", "code": "odd", "message": "Not now."}}'
