"""Delivering a batch: what to send next, when to send it again, when to split it, when it is over.

A machine without connections: `body()` is to be sent, `take(answer)` says how many seconds to wait before the next
`body()`; whoever drives it owns sockets and clocks, so threads, trio, asyncio and tests drive the same one.

Rules it keeps: a body that met an unknown outcome is sent again with the same bytes; the order of events is kept; an
event is settled exactly once, and all are when `body()` is None. It must not know sockets, threads or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Optional, Union

from stripemeter.answers import (
    Again,
    Answer,
    EventVerdict,
    NoAnswer,
    Settled,
    Split,
    outcome_of,
)
from stripemeter.events import Outgoing

CALL_WAIT_SECONDS_MAX = 60.0
"""A direct call does not sleep for longer, whatever the server asks for: it raises instead."""
REFUSED = "refused"
GIVEN_UP = "given up"


class Pace(NamedTuple):
    """How retries go: the wait doubles from first to most; `attempts_max` None is without end."""

    retry_seconds_first: float
    retry_seconds_max: float
    attempts_max: Optional[int]
    batch_events_max: int
    batch_bytes_max: int


class Settlement(NamedTuple):
    """An event that is over. `status` is that of the HTTP answer, 0 where none came.

    `verdict.status` is the server's "accepted", "duplicate" or "error"; REFUSED when it refused the whole request,
    GIVEN_UP when the attempts were used up.
    """

    outgoing: Outgoing
    verdict: EventVerdict
    status: int


class Delivery:
    """One batch on its way."""

    def __init__(self, batch: Iterable[Outgoing], pace: Pace, draw: Callable[[], float]) -> None:
        """`draw` gives numbers from 0 to below 1: the jitter."""
        self._pace = pace
        self._draw = draw
        # The next group is the last one.
        self._groups = _groups(batch, pace)[::-1]
        self._body: Optional[bytes] = None
        self._failures = 0
        self._over: list[Settlement] = []
        self.retries = 0
        self.last_reason = ""
        """Why it is sent again, or was the last time."""
        self.demanded = False
        """Whether the server named the wait: then nobody may cut it short."""

    def body(self) -> Optional[bytes]:
        """The next request's body, the same until its outcome is known; None: all are settled."""
        if self._body is None and self._groups:
            texts = ",".join([outgoing.text for outgoing in self._groups[-1]])
            self._body = f'{{"events":[{texts}]}}'.encode("ascii")
        return self._body

    def take(self, answer: Union[Answer, NoAnswer], now_us: int) -> float:
        """Make something of the answer to `body()`; the seconds to wait before the next one."""
        group = self._groups[-1]
        outcome = outcome_of(answer, len(group), now_us)
        if isinstance(outcome, Again):
            return self._again(outcome)
        self._groups.pop()
        self._body, self._failures = None, 0
        if isinstance(outcome, Settled):
            self._over += [
                Settlement(outgoing, verdict, 200)
                for outgoing, verdict in zip(group, outcome.verdicts)
            ]
        elif isinstance(outcome, Split) and len(group) > 1:
            middle = len(group) // 2
            self._groups += [group[middle:], group[:middle]]
        else:
            verdict = EventVerdict(REFUSED, error=outcome.detail)
            self._over += [Settlement(outgoing, verdict, outcome.status) for outgoing in group]
        return 0.0

    def _again(self, outcome: Again) -> float:
        self._failures += 1
        self.last_reason = outcome.reason
        self.demanded = outcome.after_seconds is not None
        if gives_up(self._pace, self._failures, outcome.after_seconds):
            # The server is away: what has not left yet is not tried either.
            verdict = EventVerdict(GIVEN_UP, error=outcome.reason)
            self._over += [Settlement(outgoing, verdict, 0) for outgoing in self.unsettled()]
            self._groups, self._body = [], None
            return 0.0
        self.retries += 1
        return wait_seconds(self._pace, self._failures, outcome.after_seconds, self._draw)

    def settlements(self) -> list[Settlement]:
        """What was settled since the last time this was asked, in order."""
        over, self._over = self._over, []
        return over

    def unsettled(self) -> list[Outgoing]:
        """Those whose outcome is unknown or which have not left, in order."""
        return [outgoing for group in reversed(self._groups) for outgoing in group]


def gives_up(pace: Pace, failures: int, after_seconds: Optional[float]) -> bool:
    """Whether a caller has waited enough: its attempts are used up, or the server names a time that is too far away."""
    if pace.attempts_max is None:
        return False
    return failures >= pace.attempts_max or (after_seconds or 0) > CALL_WAIT_SECONDS_MAX


def wait_seconds(
    pace: Pace, failures: int, after_seconds: Optional[float], draw: Callable[[], float]
) -> float:
    """The wait after so many failures: doubled each time, half of it drawn, so that many clients don't come at once."""
    # 2^60 times any first wait is above any bound; larger powers would be of no use and cost.
    doubled = pace.retry_seconds_first * 2.0 ** min(failures - 1, 60)
    wait = min(doubled, pace.retry_seconds_max) * (0.5 + draw() / 2)
    # At least what the server asked for, and a little more, for it asked everyone.
    return wait if after_seconds is None else max(wait, after_seconds * (1 + draw() / 10))


def _groups(batch: Iterable[Outgoing], pace: Pace) -> list[Sequence[Outgoing]]:
    """The batch in requests, none above the bounds, but for a single event that is larger."""
    groups: list[Sequence[Outgoing]] = []
    group: list[Outgoing] = []
    size = 0
    for outgoing in batch:
        length = len(outgoing.text)
        if group and (len(group) == pace.batch_events_max or size + length > pace.batch_bytes_max):
            groups.append(group)
            group, size = [], 0
        group.append(outgoing)
        size += length
    if group:
        groups.append(group)
    return groups
