"""What happens by itself: error reports, period ends, finalizations, each at its own time and in that order.

Rules it keeps: what happens at a time sees only what was aggregated by then, however late somebody looks; so the state
does not depend on how often it is asked. It must not know requests.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

from gateway.simulator.aggregation import aggregate, report
from gateway.simulator.desk import Desk
from gateway.simulator.invoices import finalize
from gateway.simulator.ledger import MICROS, Ledger, Settings, World
from gateway.simulator.subscriptions import close_period

_HAPPENINGS: Final[dict[str, Callable[[Desk, str], None]]] = {
    "report": report,
    "period_end": close_period,
    "finalize": finalize,
}


def catch_up(world: World, ledger: Ledger, settings: Settings, now_us: int) -> None:
    """Let everything happen on a ledger that is due in real time."""
    agenda = ledger.agendas.get("")
    while agenda and agenda[0].due_s * MICROS <= now_us:
        due = heapq.heappop(agenda)
        aggregate(ledger, due.due_s * MICROS)
        _HAPPENINGS[due.kind](Desk(world, ledger, settings, due.due_s * MICROS), due.subject)
    aggregate(ledger, now_us)


def catch_up_clock(desk: Desk, clock: str, until_s: int) -> None:
    """Let everything happen on a test clock up to a time on it; its own time is moved along."""
    agenda = desk.ledger.agendas.get(clock)
    while agenda and agenda[0].due_s <= until_s:
        due = heapq.heappop(agenda)
        desk.ledger.objects[clock]["frozen_time"] = due.due_s
        _HAPPENINGS[due.kind](desk, due.subject)
    desk.ledger.objects[clock]["frozen_time"] = until_s
