"""Takes in that an invoice of Stripe's is final: for the targets of its period, and for those that may come.

Rules it keeps: what is final is in the log before it is answered; what concerns nobody's use here is not kept, for an account
has many invoices; told again it changes nothing. It must not know who tells it.
"""

from __future__ import annotations

from functools import partial

from engine.actors.pusher import Pusher
from engine.core.push_finals import KEPT_US
from engine.core.push_records import PushDecision


async def note_final(pusher: Pusher, decision: PushDecision, now_us: int) -> int:
    """Record a `finalize` without a target, and one for each target that it concerns; how many targets, or 1 for none yet."""
    ledger = pusher.state.ledger
    account, customer, end_us = decision.account, decision.customer, decision.until_us
    is_kept = ledger.finals.of_period(account, customer, end_us) is not None
    is_told = False
    is_ours = pusher.totals.is_served_customer(account, customer)
    if not is_kept and is_ours and end_us > now_us - KEPT_US:
        # Before anything else: a target that comes up meanwhile is final from its beginning.
        await pusher.recorder.record((decision,))
        is_told = True
    found = 0
    for lane in list(ledger.of_customer.get(customer, ())):
        if lane.lane.account != account:
            continue
        for known in list(lane.targets.values()):
            # Stripe's periods are whole seconds.
            is_same = abs(known.target.end_us - end_us) < 1_000_000
            if is_same and known.finalized_at_us is None:
                of_target = PushDecision(
                    kind="finalize",
                    actor=decision.actor,
                    target=known.target,
                    at_us=decision.at_us,
                )
                await pusher.server.decide(lane.lane, partial(_same, of_target))
                found += 1
    return max(found, int(is_told))


def _same(decision: PushDecision) -> PushDecision:
    return decision
