"""Records of reconciliation: differences that were found, what became of them, and what Stripe confirmed.

Rules it keeps: a finding names targets and series as pushing does, by what Stripe knows and by digests, never a
customer of ours; its id follows from what it is about and when it was opened, so that the same difference is one
finding however often it is seen; amounts are whole or decimal text. It must not know how a difference is judged.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, Literal

import msgspec

from engine.core.push_records import Lane, Target, target_id

Cause = Literal[
    "not_pushed",
    "held",
    "awaiting_baseline",
    "refused",
    "rejected",
    "quarantined",
    "stopped",
    "wrong_customer",
    "mapping_missing",
    "foreign",
    "duplicate",
    "late",
    "finalized",
    "invoice",
    "behind",
]
Gap = Literal["push", "stripe", "invoice", "usage"]
"""What differs: pushed from billable, Stripe from pushed, the invoice from Stripe, billable from all that was used."""
FindingAction = Literal["open", "change", "resolve", "accept", "apply", "confirm"]
Repair = Literal[
    "take_back", "accept", "carry_forward", "push_again", "resend", "resume", "settle_delivered"
]
CONFIRMATIONS_PER_RECORD_MAX: Final = 5_000
REASON_CHARS_MAX: Final = 500


class Finding(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """A step in a finding's life, or (`confirm`) what Stripe was found to hold as it should.

    `open`, `change`: the difference as it is now. `resolve`: it is gone. `accept`: a person knows of it and leaves it.
    `apply`: its repair was made; it stays open until the numbers agree.
    """

    action: FindingAction
    id: str = ""
    cause: Cause = "not_pushed"
    gap: Gap = "push"
    target: Target | None = None
    series: bytes = b""
    """Of a customer's use that has no target: its digest."""
    account: str = ""
    """Of one finding about many targets."""
    start_us: int = 0
    """Of a series: its period's start."""
    count: int = 1
    """Targets that it is about."""
    units: str = "0"
    """What is missing on the side that is behind; negative: that side holds more."""
    reason: str | None = None
    """In Stripe's words, or ours."""
    repair: Repair | None = None
    actor: str = "system:reconciler"
    request_id: str | None = None
    note: str | None = None
    tenant_id: str = ""
    metric: str = ""
    rows: tuple[tuple[str, str, str | None], ...] = ()
    """Of `confirm`: (target id, what the summary holds, units on the final invoice), CONFIRMATIONS_PER_RECORD_MAX."""


FINDING_TYPES: Final[dict[int, type[Finding]]] = {17: Finding}
"""By the numbers of `engine.core.records.RecordType`, which knows this module."""


def subject_of_finding(record: Finding) -> str:
    """What a finding is about, as text: a target's id, a series, or a whole account."""
    if record.target is not None:
        return target_id(record.target)
    if record.series:
        return f"{record.series.hex()}@{record.start_us}"
    return record.account or f"{record.tenant_id}\0{record.metric}"


def finding_key(record: Finding) -> str:
    """Equal for the same difference of the same thing: at most one finding of a key is open."""
    return f"{subject_of_finding(record)}:{record.gap}:{record.cause}"


def behind_key(target: Target) -> str:
    """The key of the finding that Stripe's summary of a target lacks what was pushed."""
    return f"{target_id(target)}:stripe:behind"


def all_behind_key(lane: Lane) -> str:
    """The key of the finding that the summaries of many targets of a lane's account do."""
    return f"{lane.account}/{lane.mode}:stripe:behind"


def finding_id(key: str, opened_at_us: int) -> str:
    """The id of a finding, which is also its suggestion's: 16 hex digits."""
    return blake2b(f"{key}@{opened_at_us}".encode(), digest_size=8).hexdigest()
