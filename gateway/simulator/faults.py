"""Faults on purpose: which ones meet a request, and what they make of it.

Rules it keeps: whether a fault strikes follows from the seed and the count of requests that changed something, so a
run can be repeated; the control endpoints meet none. It must not know what the endpoints do.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final, Literal, NamedTuple

from gateway.simulator.desk import Effects
from gateway.simulator.ledger import MICROS, Fault, World, draw
from gateway.simulator.wire import Refusal, Request

KINDS: Final = {
    "rate_limited": "429; with `retry_after` the header says how many seconds",
    "error": "500, kept under the idempotency key; `applied: false`: without effect",
    "unavailable": "503, without effect",
    "busy": "409, as if another call of the same customer and meter were under way",
    "reset": "the connection is closed; after taking effect, or before with `applied: false`",
    "swallow": "it takes effect, and no answer ever comes",
    "outage": "the connection is closed, without effect; usually with `for_seconds`",
    "slow": "the answer takes `seconds`",
    "lag": "aggregated `seconds` later than else",
    "drop": "accepted, and never aggregated",
    "reject": "accepted, then rejected with `code` in an error report",
}
FAULTS_MAX: Final = 100
SECONDS_MAX: Final = 400 * 86_400


class Verdict(NamedTuple):
    """What becomes of one request."""

    refusal: Refusal | None = None
    """The answer instead of the endpoint's own."""
    is_applied: bool = True
    lost: Literal["", "reset", "swallowed"] = ""
    delay_seconds: float = 0.0
    effects: Effects | None = None
    is_struck: bool = False
    """Whether any fault was met, or could have been by chance: a count or a draw was used up."""


CLEAR: Final = Verdict()
_RATE: Final = Refusal(
    429, "Request rate limit exceeded.", "rate_limit", type="invalid_request_error", is_kept=False
)
_UNAVAILABLE: Final = Refusal(
    503, "The service is unavailable. Try again later.", type="api_error", is_kept=False
)
ERROR: Final = Refusal(
    500, "An unknown error occurred. It was not your fault.", type="api_error", is_kept=True
)
BUSY: Final = Refusal(
    409,
    "This object cannot be accessed right now because another API request or Stripe process is currently accessing it.",
    "lock_timeout",
    is_kept=False,
)


def judge(world: World, seed: str, request: Request, now_us: int) -> Verdict:
    """What the faults in force make of a request; counts are used up, what has run out is removed."""
    if not world.faults:
        return CLEAR
    where = f"{request.method} {request.path}"
    struck: list[Fault] = []
    is_met = False
    for fault in list(world.faults.values()):
        if fault.until_us is not None and fault.until_us <= now_us:
            del world.faults[fault.id]
            continue
        if not fnmatchcase(where, fault.endpoint):
            continue
        if fault.contains and fault.contains not in request.body.decode(errors="replace"):
            continue
        is_met = True
        chance = draw(seed, "fault", fault.id, world.sequence) if fault.probability < 1 else 0.0
        if chance >= fault.probability:
            continue
        struck.append(fault)
        if fault.count is not None:
            fault.count -= 1
            if fault.count <= 0:
                del world.faults[fault.id]
    if not is_met:
        return CLEAR
    return _verdict(struck)


def _verdict(struck: list[Fault]) -> Verdict:
    refusal: Refusal | None = None
    is_applied, delay = True, 0.0
    lost: Literal["", "reset", "swallowed"] = ""
    effects = Effects()
    for fault in struck:
        if fault.kind == "slow":
            delay += fault.seconds
        elif fault.kind == "lag":
            effects.lag_seconds += fault.seconds
        elif fault.kind == "drop":
            effects.is_dropped = True
        elif fault.kind == "reject":
            effects.reject_code = fault.code
        elif refusal is None and not lost:
            refusal, is_applied, lost = _decision(fault)
    return Verdict(refusal, is_applied, lost, delay, effects, is_struck=True)


def _decision(fault: Fault) -> tuple[Refusal | None, bool, Literal["", "reset", "swallowed"]]:
    """(the answer, whether the request takes effect, how the answer is lost) of a fault that decides."""
    if fault.kind == "rate_limited":
        after = {} if fault.retry_after is None else {"retry-after": str(fault.retry_after)}
        return _RATE._replace(headers=after), False, ""
    if fault.kind == "error":
        return ERROR, fault.applied, ""
    if fault.kind == "unavailable":
        return _UNAVAILABLE, False, ""
    if fault.kind == "busy":
        return BUSY, False, ""
    if fault.kind == "reset":
        return None, fault.applied, "reset"
    if fault.kind == "outage":
        return None, False, "reset"
    assert fault.kind == "swallow", fault.kind
    return None, True, "swallowed"


def add(world: World, fault: Fault, now_us: int) -> Fault | str:
    """Put a fault in force; what is wrong with it, in words, when it can't be."""
    if fault.kind not in KINDS:
        return f"kind must be one of {', '.join(KINDS)}"
    if not 0 < fault.probability <= 1:
        return "probability must be above 0 and at most 1"
    if fault.count is not None and fault.count < 1:
        return "count must be at least 1"
    for name, seconds in (
        ("seconds", fault.seconds),
        ("for_seconds", fault.for_seconds),
        ("retry_after", fault.retry_after),
    ):
        if seconds is not None and not 0 <= seconds <= SECONDS_MAX:
            return f"{name} must be 0 to {SECONDS_MAX}"
    if len(world.faults) >= FAULTS_MAX:
        return f"at most {FAULTS_MAX} faults are in force at once: DELETE /_sim/faults"
    fault.id = f"fault_{world.sequence}"
    if fault.for_seconds is not None:
        fault.until_us = now_us + int(fault.for_seconds * MICROS)
    world.faults[fault.id] = fault
    return fault
