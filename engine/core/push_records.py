"""Records of pushing: intents, what became of them, and the decisions that move a ledger by hand or by proof.

Rules it keeps: an intent holds the whole request, so that a resend is the same bytes whatever was configured since;
amounts are whole numbers as text, since totals have no bound; a record names a lane by what Stripe knows it by and
never holds a key; a customer of ours is named only by a digest. It must not know how a plan decides.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, Literal

import msgspec

from engine.core.billing import Mode, PushRequest

Role = Literal["main", "shadow"]
OutcomeResult = Literal["delivered", "refused", "withdrawn", "quarantined", "rejected", "cancelled"]
OutcomeProof = Literal["answer", "exists", "reading", "report", "person", "never left"]
BaselineChoice = Literal["now", "period", "stripe"]
DecisionKind = Literal["baseline", "await", "carry", "stop", "resume", "finalize", "freeze", "keep"]
CarryInto = Literal["current", "credit", "invoice_item", "write_off"]
SERIES_DIGEST_BYTES: Final = 16
ROWS_PER_DECISION_MAX: Final = 10_000


class Lane(msgspec.Struct, frozen=True, array_like=True):
    """What has one unresolved intent and one request in flight at most, and one order of its own."""

    account: str
    """The connected account, else the key's own."""
    mode: Mode
    object_id: str
    """`mtr_...`, or `si_...` for usage records."""
    customer: str
    """`cus_...`."""


class Target(msgspec.Struct, frozen=True, array_like=True):
    """What one total at Stripe is kept for: a lane, a scale, and a period in microseconds, half-open."""

    lane: Lane
    scale: str
    start_us: int
    end_us: int


def target_id(target: Target) -> str:
    """The id of a target in the API: 16 hex digits."""
    lane = target.lane
    text = "\0".join((lane.account, lane.mode, lane.object_id, lane.customer, target.scale))
    return blake2b(f"{text}\0{target.start_us}".encode(), digest_size=8).hexdigest()


def identifier_of(log_id: bytes, epoch: int, lane: Lane, start_us: int, number: int) -> str:
    """The identifier of an intent: 32 hex digits that no other log, epoch, lane, period or number gives."""
    text = "\0".join((lane.account, lane.mode, lane.object_id, lane.customer))
    source = log_id + f"\0{epoch}\0{text}\0{start_us}\0{number}".encode()
    return blake2b(source, digest_size=16, person=b"stripemeter-push").hexdigest()


def series_digest(tenant: str, metric: str, customer_ref: str) -> bytes:
    """A customer's use of a metric, named without its name."""
    text = "\0".join((tenant, metric, customer_ref)).encode()
    return blake2b(text, digest_size=SERIES_DIGEST_BYTES).digest()


class PushIntent(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """A request that may leave once this record is durable. `number` counts per lane and period, from 1."""

    target: Target
    number: int
    from_units: str
    to_units: str
    """The target's acknowledged units before and after it."""
    request: PushRequest
    first_sent_at_us: int
    """When it could leave at the earliest: from then on it may have."""
    role: Role = "main"
    tenant_id: str = ""
    metric: str = ""
    """On whose behalf, for the trail."""


class PushOutcome(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """What became of an intent.

    `delivered`: counts. `refused`: Stripe said no. `withdrawn`: it is certain that it was never applied, and it will
    not be sent again. `quarantined`: nobody knows; a person decides. `rejected` (after `delivered`): a report
    names it. `cancelled` (after `delivered`): its cancel by identifier succeeded.
    """

    target: Target
    number: int
    result: OutcomeResult
    proof: OutcomeProof = "answer"
    reason: str | None = None
    code: str | None = None
    is_target_wide: bool = False
    """A refusal that holds for whatever is sent to this target, until somebody changes something."""
    request_id: str | None = None
    """Stripe's, to show to its support."""
    actor: str = "system:pusher"
    tenant_id: str = ""
    """Of a person's decision: whom it concerns."""
    is_resent: bool = False
    """Of `delivered`: it was sent a second time, a day after the first, since Stripe's summary lacked it."""


class PushDecision(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """What moves a ledger without a request.

    `baseline`: `units` count as pushed in the target, whose period is the lane's first. `await`: a baseline was read
    and waits for a person. `carry`: `units` of a finalized target are settled by `into`. `stop`, `resume`: of a lane.
    `finalize`: Stripe finalized the invoice of the target's period at `at_us`; without a target, that of a customer's period
    which ends at `until_us`, whatever is pushed for it later. `freeze`: what series had at a cutover
    (`carry`), in micros. `keep`: what erased customers use stays part of the target: the series in `rows`, named by
    their pseudonyms, less the micros there; and `micros` that no longer change.
    """

    kind: DecisionKind
    actor: str
    request_id: str | None = None
    target: Target | None = None
    lane: Lane | None = None
    choice: BaselineChoice | None = None
    units: str = "0"
    reading: str | None = None
    """What Stripe's summary held when it was read."""
    because: str | None = None
    into: CarryInto | None = None
    at_us: int = 0
    """Of `finalize` when, of `freeze` the cutover's instant, of `carry` into `current` that period's start."""
    until_us: int = 0
    """Of `carry` into `current` that period's end, of `finalize` without a target the invoice's period's."""
    micros: str = "0"
    """Millionths, which may be wide."""
    request: PushRequest | None = None
    """Of `keep`: how the target is pushed, with neither value nor identifier."""
    rows: tuple[tuple[bytes, int, str], ...] = ()
    """(series digest, period start, micros so far), at most ROWS_PER_DECISION_MAX."""
    role: Role = "main"
    tenant_id: str = ""
    metric: str = ""
    account: str = ""
    customer: str = ""
    """Of `finalize` without a target: whose invoice, `acct_...` and `cus_...`."""


PushRecord = PushIntent | PushOutcome | PushDecision
PUSH_TYPES: Final[dict[int, type[PushRecord]]] = {
    14: PushIntent,
    15: PushOutcome,
    16: PushDecision,
}
"""By the numbers of `engine.core.records.RecordType`, which knows this module."""
