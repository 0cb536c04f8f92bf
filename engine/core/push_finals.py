"""When invoices of Stripe customers became final, also of periods in which nothing was pushed yet: a fold of decisions.

Rules it keeps: what Stripe said once stays, the first word counts, and what no push can concern any more is forgotten: so
it is bounded by a season's invoices of the customers that are pushed for. It must not know lanes, counters, or clocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from engine.core.push_records import PushDecision, Target
from engine.core.times import HOUR_US

KEPT_US: Final = 40 * 24 * HOUR_US
"""From a period's end: Stripe takes usage of 35 days."""
KEPT_MAX: Final = 100_000
_SECOND_US: Final = 1_000_000
FinalRow = tuple[str, str, int, int]
"""(account, Stripe customer, period's end in seconds, finalized at in microseconds)."""


@dataclass
class PushFinals:
    """Rows, oldest first."""

    _rows: dict[tuple[str, str, int], int] = field(default_factory=dict)

    @staticmethod
    def restore(rows: Iterable[FinalRow]) -> PushFinals:
        """From the rows of a snapshot."""
        return PushFinals(
            {(account, customer, end_s): at_us for account, customer, end_s, at_us in rows}
        )

    def rows(self) -> list[FinalRow]:
        """For a snapshot."""
        return [(*key, at_us) for key, at_us in self._rows.items()]

    def fold(self, record: PushDecision, received_at_us: int) -> None:
        """Take in a `finalize` without a target."""
        self._rows.setdefault(
            (record.account, record.customer, record.until_us // _SECOND_US), record.at_us
        )
        until_s = (received_at_us - KEPT_US) // _SECOND_US
        while self._rows:
            oldest = next(iter(self._rows))
            if oldest[2] >= until_s and len(self._rows) <= KEPT_MAX:
                return
            del self._rows[oldest]

    def of_period(self, account: str, customer: str, end_us: int) -> int | None:
        """When the invoice of a period that ends then became final; None: nobody said so. Stripe's ends are whole seconds."""
        end_s = end_us // _SECOND_US
        found = self._rows.get((account, customer, end_s))
        if found is None and end_us % _SECOND_US:
            found = self._rows.get((account, customer, end_s + 1))
        return found

    def of_target(self, target: Target) -> int | None:
        """`of_period` of a target's."""
        if not self._rows:
            return None
        return self.of_period(target.lane.account, target.lane.customer, target.end_us)
