"""What the meter takes from the outside, as Protocols whose docstrings are the contract.

Time, threads and ids are parameters, so that a simulation can own them; the real ones are in the composition root.
The log's port is `wal.log.Log`, the key index is `wal.key_index`, snapshots are `wal.snapshot`.
It must not know what fills a port, nor that Stripe has a library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from engine.core.billing import (
    Destination,
    Invoiced,
    Outcome,
    PricedItem,
    Proven,
    PushRequest,
    Reading,
    RejectionReport,
    Resolved,
    Unread,
    Unresolved,
)
from engine.errors import EngineError

if TYPE_CHECKING:  # the process that speaks with Stripe needs the ports, and no log
    from wal.log import Envelope

ResultT = TypeVar("ResultT")


class Clock(Protocol):
    """Two clocks: one that people set, one that only moves on."""

    def now_us(self) -> int:
        """Wall time in microseconds since 1970 UTC; may step either way."""
        ...

    def monotonic_us(self) -> int:
        """Microseconds since an arbitrary start; never steps back."""
        ...


class RunBlocking(Protocol):
    """Runs a function that waits for a disk where it does not hold up the others (a thread)."""

    async def __call__(self, function: Callable[[], ResultT]) -> ResultT:
        """The function's result, or its exception. Not cancelled half-way: the disk has been asked."""
        ...


class Appender(Protocol):
    """Runs the appends to the log, one at a time, where they hold up nobody: `RunBlocking` without a task that waits."""

    def start(self, append: Callable[[], tuple[Envelope, ...]]) -> None:
        """Begin. The one before has been told of by `finished`."""
        ...

    async def finished(self) -> tuple[Envelope, ...]:
        """Wait for the end of an append, begun already or not: its result, or its exception.

        Not cancelled while one is under way: the disk has been asked.
        """
        ...

    def close(self) -> None:
        """No more appends come; one that is under way is waited for."""
        ...


class Ids(Protocol):
    """Where ids and secrets come from."""

    def token(self, size_bytes: int) -> bytes:
        """That many unpredictable bytes."""
        ...


class Billing(Protocol):
    """One key's way to Stripe. Nothing here raises for what Stripe or the network does: that is in the answer.

    Safe to call from many tasks at once; each call may be cancelled, and then nothing is known of what it asked.
    """

    async def prove(self) -> Proven | Unread:
        """Which account and mode the key belongs to."""
        ...

    async def send(self, requests: Sequence[PushRequest], attempts: Sequence[int]) -> list[Outcome]:
        """Send each request once; its outcome at the same index.

        All are of one driver; more than one only for `stream` (at most 100). `attempts[i]` counts the stored
        answers (5xx) this request got before: the idempotency key is `identifier:attempt`.
        """
        ...

    async def resolve(self, destination: Destination) -> Resolved | Unresolved:
        """What a destination is, always asked anew: who calls keeps the answer."""
        ...

    async def read(
        self,
        resolved: Resolved,
        customer: str,
        start_s: int,
        end_s: int,
        connect_account: str | None,
    ) -> Reading | Unread:
        """What the summary holds in [start_s, end_s), both whole minutes, of a meter.

        Of an item (legacy): `total_usage` of the billing period that holds `start_s`.
        """
        ...

    async def invoiced(
        self, resolved: Resolved, customer: str, end_s: int, connect_account: str | None
    ) -> Invoiced | Unread | None:
        """What the final invoice has for the period that ends at `end_s`; None: there is no such line, or none yet."""
        ...

    async def rejections(
        self, event_id: str, connect_account: str | None
    ) -> RejectionReport | Unread:
        """What a thin event about rejected meter events (`evt_...`) stands for. `Unread.is_missing`: there is none."""
        ...

    async def price(
        self, price: str, currency: str | None, connect_account: str | None
    ) -> dict[str, object] | Unread:
        """A Price as Stripe's JSON has it, with its tiers; of another currency than its own, that option and its tiers.

        Numbers are int or Decimal. `Unread.is_missing`: there is no such price.
        """
        ...

    async def priced_item(self, item: str, connect_account: str | None) -> PricedItem | Unread:
        """Which price a subscription item has, also one of a subscription that ended. `is_missing`: there is none."""
        ...

    async def cancel(self, request: PushRequest) -> Outcome:
        """Cancel a delivered event by its identifier, within 24 h. `Delivered`: it is cancelled."""
        ...


@runtime_checkable
class PromptBilling(Protocol):
    """A way to Stripe that also sends for who has no task to wait with: a task a request costs more than the request."""

    def begin_send(
        self, request: PushRequest, attempt: int, done: Callable[[Outcome], None]
    ) -> bool:
        """`Billing.send` of one request; `done` is told its outcome once, later, and must not raise.

        False: it can't be begun at once, nothing was done, and `done` is not told: use `send`.
        """
        ...


class AnchorFailed(EngineError):
    """An anchor could not be kept or read; `str(error)` says why, without a secret."""


class AnchorStore(Protocol):
    """Where anchors are kept: somewhere that whoever can change the log can't."""

    where: str
    """In words, without a secret."""

    async def put(self, line: bytes, name: str) -> None:
        """Keep an anchor, a line of JSON, beside all others. `name`: sorts as the log's positions do.

        Durable on return. May be cancelled, and then nothing is known of it; twice is harmless. Raises AnchorFailed.
        """
        ...


class Fatal(EngineError):
    """The process must end now and recover at its next start; `str(error)` says why."""
