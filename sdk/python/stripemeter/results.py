"""What `track` and `track_batch` return, and what a direct call makes of its settlements.

It must not know how anything was sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

from stripemeter.delivery import GIVEN_UP, REFUSED, Settlement
from stripemeter.errors import EventRejected, MeterUnavailable


class Tracked(NamedTuple):
    """What became of one event.

    `status`: "accepted", "duplicate" or "rejected" (the server's word, direct mode), "queued" (buffered mode), "refused"
    (buffered mode: it was not taken, and `on_error` was told why).
    """

    status: str
    idempotency_key: str
    late: bool = False
    adjustment_id: Optional[str] = None
    error: Optional[str] = None


class BatchResult(NamedTuple):
    """What became of a batch; `results` are in its order."""

    results: tuple[Tracked, ...]

    def count(self, status: object) -> int:
        """How many have this status."""
        return sum(tracked.status == status for tracked in self.results)

    @property
    def accepted(self) -> int:
        """Counted now for the first time."""
        return self.count("accepted")

    @property
    def duplicates(self) -> int:
        """Counted before."""
        return self.count("duplicate")

    @property
    def rejected(self) -> tuple[Tracked, ...]:
        """Those that will not be counted, each with its `error`."""
        return tuple(tracked for tracked in self.results if tracked.status == "rejected")


def batch_result(settlements: Sequence[Settlement], keys: Sequence[str]) -> BatchResult:
    """The result of a direct call.

    Raises MeterUnavailable when attempts were used up, EventRejected when the server refused all of it as a request.
    """
    given_up = [at for at, over in enumerate(settlements) if over.verdict.status == GIVEN_UP]
    if given_up:
        reason = settlements[given_up[0]].verdict.error
        detail = (
            f"no answer for {len(given_up)} events after all attempts (the last: {reason}); whether they were "
            "counted is unknown: track them again with the same idempotency_key"
        )
        raise MeterUnavailable(detail, tuple(keys[at] for at in given_up))
    if settlements and all(over.verdict.status == REFUSED for over in settlements):
        first = settlements[0]
        raise EventRejected(first.verdict.error or "", first.status)
    return BatchResult(tuple(_tracked(over, key) for over, key in zip(settlements, keys)))


def single_result(result: BatchResult) -> Tracked:
    """The only event's. Raises EventRejected when the server will not count it."""
    (tracked,) = result.results
    if tracked.status == "rejected":
        raise EventRejected(tracked.error or "the server gave no reason", 200)
    return tracked


def _tracked(over: Settlement, key: str) -> Tracked:
    status, late, adjustment_id, error = over.verdict
    if status not in ("accepted", "duplicate"):
        status = "rejected"
    return Tracked(status, key, late, adjustment_id, error)
