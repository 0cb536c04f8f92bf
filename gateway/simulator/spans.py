"""Billing periods: where the n-th period of a subscription begins.

Rules it keeps: boundaries are computed from the original anchor, a day that a month lacks becomes its last. It must
not know subscriptions. Source: https://docs.stripe.com/billing/subscriptions/billing-cycle
"""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, datetime, timedelta


def boundary(anchor_s: int, interval: str, count: int, number: int) -> int:
    """Unix seconds of the anchor plus `number` times `count` intervals (`day`, `week`, `month`, `year`)."""
    anchor = datetime.fromtimestamp(anchor_s, UTC)
    steps = count * number
    if interval in ("day", "week"):
        return anchor_s + int(
            timedelta(days=steps * (7 if interval == "week" else 1)).total_seconds()
        )
    months = anchor.month - 1 + steps * (12 if interval == "year" else 1)
    year, month = anchor.year + months // 12, months % 12 + 1
    day = min(anchor.day, monthrange(year, month)[1])
    return int(anchor.replace(year=year, month=month, day=day).timestamp())


def number_at(anchor_s: int, interval: str, count: int, at_s: int) -> int:
    """The number of the period that holds an instant; negative before the anchor."""
    length_s = {"day": 86_400, "week": 604_800, "month": 2_629_800, "year": 31_557_600}[interval]
    number = (at_s - anchor_s) // (length_s * count)
    while boundary(anchor_s, interval, count, number) > at_s:
        number -= 1
    while boundary(anchor_s, interval, count, number + 1) <= at_s:
        number += 1
    return number
