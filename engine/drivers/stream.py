"""The meter event stream (v2): sessions of a quarter of an hour, batches of up to 100.

Rules it keeps: a session is renewed before its end, by one task at a time, by its lifetime as Stripe states it (both of
its times are Stripe's, so our clock does not matter); its token is kept as a key is. A batch is one idempotency key. A
batch that Stripe refuses as a whole was not taken, so each event is then asked about alone: one bad event must not
speak for 99 others. It must not know the plan.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import trio
from stripe.params.v2.billing import MeterEventStreamCreateParams

from engine import limits
from engine.core.billing import (
    AlreadyDelivered,
    Delivered,
    Outcome,
    PushRequest,
    Refused,
    RetryLater,
    Unknown,
)
from engine.drivers.calls import NotTaken, StripeCalls
from engine.drivers.outcomes import (
    Subject,
    outcome_of_failure,
    outcome_of_problem,
    read_problem,
)
from engine.drivers.questions import Unanswered, decode
from engine.drivers.shapes import StreamSession
from engine.drivers.wire import WireFailure

RENEWED_BEFORE_END_SECONDS: Final = 60
_LIFETIME_SECONDS_MAX: Final = 15 * 60
_EXPIRED: Final = "temporary_session_expired"


class _Session:
    def __init__(self, calls: StripeCalls, ends_at: float) -> None:
        self.calls = calls
        self.ends_at = ends_at
        """By trio's clock."""


class MeterEventStream:
    """Sends batches for one key, each connected account with a session of its own."""

    def __init__(self, calls: StripeCalls, open_calls: Callable[[str], StripeCalls]) -> None:
        """`open_calls(token)` makes calls with a session's token, which stands in the key's place."""
        self._calls = calls
        self._open_calls = open_calls
        self._sessions: OrderedDict[str | None, _Session] = OrderedDict()
        self._opening = trio.Lock()

    async def send(self, requests: Sequence[PushRequest], attempts: Sequence[int]) -> list[Outcome]:
        """One outcome each, at the same index. All are of one connected account and API version."""
        assert 1 <= len(requests) <= limits.STRIPE_STREAM_EVENTS_MAX
        together = await self._send_once(requests, attempts)
        refused = isinstance(together, Refused | AlreadyDelivered)
        if len(requests) == 1 or not refused or _is_for_all(together):
            return [together] * len(requests)
        return [
            await self._send_once([request], [attempt])
            for request, attempt in zip(requests, attempts, strict=True)
        ]

    async def _send_once(self, requests: Sequence[PushRequest], attempts: Sequence[int]) -> Outcome:
        """The outcome of one batch; a session that ended unforeseen is renewed once."""
        account = requests[0].connect_account
        for is_last in (False, True):
            session = await self._session(account, requests[0].api_version)
            if not isinstance(session, _Session):
                return session
            try:
                answer = await session.calls.call(
                    "post",
                    "/v2/billing/meter_event_stream",
                    _batch(requests),
                    api_version=requests[0].api_version,
                    idempotency_key=_batch_key(requests, attempts),
                    base="meter_events",
                )
            except NotTaken as error:
                problem = read_problem(error.answer)
                is_over = problem.status == 401 or problem.type == _EXPIRED
                if is_over and self._sessions.get(account) is session:
                    del self._sessions[account]
                if is_over and not is_last:
                    continue
                if is_over:
                    return RetryLater(f"the stream's session is refused: {problem.words()}")
                return outcome_of_problem(problem, _subject(requests))
            except WireFailure as failure:
                return outcome_of_failure(failure)
            return Delivered(answer.request_id)
        raise AssertionError("the second round returns")

    async def _session(self, account: str | None, api_version: str) -> _Session | Outcome:
        """A session with time left. Opened by one task, the others wait for it."""
        if (kept := self._fresh(account)) is not None:
            return kept
        async with self._opening:
            if (kept := self._fresh(account)) is not None:
                return kept
            return await self._open(account, api_version)

    def _fresh(self, account: str | None) -> _Session | None:
        session = self._sessions.get(account)
        if session is None or trio.current_time() > session.ends_at - RENEWED_BEFORE_END_SECONDS:
            return None
        self._sessions.move_to_end(account)
        return session

    async def _open(self, account: str | None, api_version: str) -> _Session | Outcome:
        """A new session. Until it is there nothing was sent: what is unknown about it is no doubt about the events."""
        asked_at = trio.current_time()
        try:
            answer = await self._calls.call(
                "post",
                "/v2/billing/meter_event_session",
                {},
                connect_account=account,
                api_version=api_version,
            )
        except NotTaken as error:
            subject = Subject("stream", connect_account=account)
            outcome = outcome_of_problem(read_problem(error.answer), subject)
            if isinstance(outcome, Unknown):
                return RetryLater(f"no stream session: {outcome.reason}", is_account_wide=True)
            return outcome
        except WireFailure as failure:
            return RetryLater(f"no stream session: {failure}", is_account_wide=True)
        found = decode(answer.body, StreamSession, "a new stream session")
        lifetime_seconds = None if isinstance(found, Unanswered) else _lifetime_seconds(found)
        if isinstance(found, Unanswered) or lifetime_seconds is None:
            return RetryLater("no stream session: the answer makes no sense", is_account_wide=True)
        try:
            calls = self._open_calls(found.authentication_token)
        except ValueError:
            return RetryLater("no stream session: its token can't be sent", is_account_wide=True)
        session = _Session(calls, asked_at + lifetime_seconds)
        self._sessions[account] = session
        if len(self._sessions) > limits.STRIPE_SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return session


def _is_for_all(outcome: Outcome) -> bool:
    """The key, not an event, was refused."""
    return isinstance(outcome, Refused) and outcome.scope == "account"


def _subject(requests: Sequence[PushRequest]) -> Subject:
    """What a batch's answer is about: one request, or nothing in particular."""
    only = requests[0]
    if len(requests) > 1:
        return Subject("stream", connect_account=only.connect_account)
    return Subject("stream", None, only.customer, only.event_name, only.connect_account)


def _batch(requests: Sequence[PushRequest]) -> MeterEventStreamCreateParams:
    events = []
    for request in requests:
        assert request.event_name is not None
        assert request.customer is not None
        timestamp = datetime.fromtimestamp(request.timestamp_s, UTC)
        events.append(
            {
                "event_name": request.event_name,
                "identifier": request.identifier,
                "payload": {
                    request.customer_key: request.customer,
                    request.value_key: request.value,
                },
                "timestamp": timestamp.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )
    return {"events": events}  # type: ignore[typeddict-item]  # built in a loop; held to it by the contract check


def _batch_key(requests: Sequence[PushRequest], attempts: Sequence[int]) -> str:
    """One key for exactly these events and attempts, so that another batch never meets this one's answer."""
    digest = hashlib.blake2b(digest_size=16)
    for request, attempt in zip(requests, attempts, strict=True):
        digest.update(f"{request.identifier}:{attempt}\n".encode())
    return f"batch:{digest.hexdigest()}"


def _lifetime_seconds(session: StreamSession) -> float | None:
    """How long a session lives, at most Stripe's documented quarter of an hour; None: its times make no sense."""
    try:
        created = datetime.fromisoformat(session.created)
        ends = datetime.fromisoformat(session.expires_at)
        seconds = (ends - created).total_seconds()
    except (TypeError, ValueError):
        return None
    return min(seconds, _LIFETIME_SECONDS_MAX) if seconds > RENEWED_BEFORE_END_SECONDS else None
