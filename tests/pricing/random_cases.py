"""Random inputs of invoices as documents, near the edges where mistakes live: tier ends, halves of a cent, zeros."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

MODELS = ("flat", "package", "tiered", "graduated", "volume")
CURRENCIES = ("JPY", "USD", "EUR", "KWD", "KRW")
DIGITS = {"JPY": 0, "KRW": 0, "USD": 2, "EUR": 2, "KWD": 3}
QUANTITY_MAX = 200


def number(rng: Random, most: int, digits: int) -> Decimal:
    """A number of up to so many digits after the point; small ones, halves and 0 often."""
    kind = rng.randrange(5)
    if kind == 0:
        return Decimal(0)
    if kind == 1:
        return Decimal(rng.randint(0, 20)) * 5 * Decimal(10) ** -digits
    return Decimal(rng.randint(0, most * 10**digits)) * Decimal(10) ** -digits


def quantity(rng: Random, near: list[Decimal]) -> Decimal:
    """0 to 200, in twentieths or whole units, and often at or beside one of the values `near`."""
    if rng.random() < 0.05:
        return Decimal(0)
    if near and rng.random() < 0.5:
        beside = rng.choice(near) + rng.choice([-1, 0, 1]) * rng.choice([1, Decimal("0.05")])
        return min(max(beside, Decimal(0)), Decimal(QUANTITY_MAX))
    if rng.random() < 0.3:
        return Decimal(rng.randint(0, QUANTITY_MAX * 20)) / 20
    return Decimal(rng.randint(0, QUANTITY_MAX))


def price(rng: Random, currency: str, model: str | None = None) -> dict[str, Any]:
    """A valid price configuration in the contract's names."""
    model = model or rng.choice(MODELS)
    found: dict[str, Any] = {"model": model, "currency": currency}
    digits = rng.choice([0, 2, 3, 6, 12])
    if model in ("flat", "package"):
        found["unitPrice"] = number(rng, 50, digits)
    if model == "package":
        found["packageSize"] = rng.choice([1, 2, 5, 7, 12, 60, Decimal("2.5"), Decimal("0.05")])
        if rng.random() < 0.7:
            found["packageRounding"] = rng.choice(["up", "down"])
    if model in ("tiered", "graduated", "volume"):
        ends = sorted(rng.sample(range(1, QUANTITY_MAX), rng.randint(0, 4)))
        tiers: list[dict[str, Any]] = [
            {"upTo": Decimal(end) / rng.choice([1, 1, 1, 20])} for end in ends
        ]
        tiers = [tier for index, tier in enumerate(tiers) if _rises(tiers, index)]
        for tier in (*tiers, {"upTo": None}):
            if tier["upTo"] is None:
                tiers.append(tier)
            tier["unitPrice"] = number(rng, 5, digits)
            if model != "tiered" and rng.random() < 0.5:
                tier["flatPrice"] = number(rng, 30, digits)
        found["tiers"] = tiers
    if rng.random() < 0.2:
        found["minimumCharge"] = number(rng, 100, DIGITS[currency])
    if rng.random() < 0.2:
        found["maximumCharge"] = found.get("minimumCharge", 0) + number(rng, 300, DIGITS[currency])
    return found


def _rises(tiers: list[dict[str, Any]], index: int) -> bool:
    return all(tiers[index]["upTo"] > before["upTo"] for before in tiers[:index])


def edges(found: dict[str, Any]) -> list[Decimal]:
    """The quantities at which a price changes its mind."""
    ends = [tier["upTo"] for tier in found.get("tiers", []) if tier["upTo"] is not None]
    if "packageSize" in found:
        ends += [Decimal(found["packageSize"]) * count for count in (1, 2, 3)]
    return [end for end in ends if end <= QUANTITY_MAX]


def _instant(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def inputs(rng: Random) -> dict[str, Any]:
    """A valid document of inputs: one to three lines, and often commitments, credits, tax and proration."""
    currency = rng.choice(CURRENCIES)
    start = datetime(2026, rng.randint(1, 12), 1, tzinfo=UTC)
    end = start + timedelta(seconds=rng.choice([86_400 * 28, 86_400 * 31, 3_600, 7, 86_401]))

    def inside() -> datetime:
        return start + timedelta(seconds=rng.randint(-86_400, 86_400 * 32))

    items = []
    for count in range(rng.randint(1, 3)):
        cost = price(rng, currency)
        item: dict[str, Any] = {
            "metric": f"metric_{count}",
            "quantity": quantity(rng, edges(cost)),
            "priceConfig": cost,
        }
        if rng.random() < 0.25:
            begin = inside()
            item["startDate"] = _instant(begin)
            if rng.random() < 0.5:
                item["endDate"] = _instant(begin + timedelta(seconds=rng.randint(1, 86_400 * 20)))
        items.append(item)
    found: dict[str, Any] = {
        "customerId": "cus_random",
        "periodStart": _instant(start),
        "periodEnd": _instant(end),
        "usageItems": items,
    }
    digits = DIGITS[currency]
    if rng.random() < 0.3:
        found["commitments"] = [
            {
                "amount": number(rng, 500, digits),
                "applied": number(rng, 300, digits),
                "startDate": _instant(start + timedelta(days=rng.choice([-300, -1, 0, 40]))),
                "endDate": _instant(end + timedelta(days=rng.choice([0, 1, 300]) + 60)),
            }
            for _ in range(rng.randint(1, 3))
        ]
    if rng.random() < 0.3:
        found["credits"] = [_credit(rng, digits, end) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.5:
        found["taxRate"] = rng.choice([Decimal(19), Decimal("8.875"), Decimal("7.25"), Decimal(0)])
    return found


def _credit(rng: Random, digits: int, end: datetime) -> dict[str, Any]:
    found: dict[str, Any] = {"amount": number(rng, 200, digits), "reason": "goodwill"}
    if rng.random() < 0.6:
        found["expiresAt"] = _instant(end + timedelta(seconds=rng.choice([-1, 0, 1, 86_400])))
    return found
