"""A second implementation of invoices, as plain as it can be: unit by unit, in whole numbers, from the document itself.

It shares nothing with engine.pricing: no code, no Decimal arithmetic, no order of thought. A unit looks up its own tier;
an amount is a whole number of 10^-15; a rounding is one division with the remainder doubled.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

SCALE = 10**15
STEPS_PER_UNIT = 20
"""Quantities and tier ends are multiples of a twentieth; where all of a line's are whole, its units are counted."""
MINOR_DIGITS = {"JPY": 0, "KRW": 0, "USD": 2, "EUR": 2, "KWD": 3}


def scaled(value: Any) -> int:
    """A number as a whole number of 10^-15, by its digits alone."""
    text = f"{Decimal(value):f}"
    whole, _, fraction = text.partition(".")
    assert not text.startswith("-")
    assert len(fraction) <= 15
    return int(whole + fraction.ljust(15, "0"))


def steps(value: Any, per_unit: int) -> int:
    """A quantity as a whole number of steps."""
    count, rest = divmod(scaled(value) * per_unit, SCALE)
    assert rest == 0
    return count


def steps_per_unit(price: dict[str, Any], quantity: Any) -> int:
    """1 when a line has no fraction of a unit anywhere, else 20."""
    sizes = [
        quantity,
        price.get("packageSize", 0),
        *(tier["upTo"] or 0 for tier in price.get("tiers", [])),
    ]
    return 1 if all(scaled(size) % SCALE == 0 for size in sizes) else STEPS_PER_UNIT


def half_up(numerator: int, denominator: int) -> int:
    """The nearest whole number, a half to the next one."""
    count, rest = divmod(numerator, denominator)
    return count + 1 if rest * 2 >= denominator else count


def line_amount(price: dict[str, Any], quantity: Any, per_unit: int) -> int:
    """What a quantity costs before minimum and maximum, in steps' shares of 10^-15."""
    used = steps(quantity, per_unit)
    model = price["model"]
    if model == "flat":
        each = scaled(price["unitPrice"])
        return sum(each for _ in range(used))
    if model == "package":
        size, filled, packages = steps(price["packageSize"], per_unit), 0, 0
        for _ in range(used):
            filled += 1
            if filled == size:
                packages, filled = packages + 1, 0
        if filled and price.get("packageRounding", "up") == "up":
            packages += 1
        return packages * scaled(price["unitPrice"]) * per_unit
    tiers = price["tiers"]
    ends = [None if tier["upTo"] is None else steps(tier["upTo"], per_unit) for tier in tiers]
    tier_of = [_tier_of_step(ends, step) for step in range(1, used + 1)]
    reached = tier_of[-1] if tier_of else 0
    fees = [scaled(tier.get("flatPrice", 0)) * per_unit for tier in tiers]
    unit = [scaled(tier.get("unitPrice", 0)) for tier in tiers]
    if model == "volume":
        return fees[reached] + sum(unit[reached] for _ in tier_of)
    return sum(fees[: reached + 1]) + sum(unit[index] for index in tier_of)


def _tier_of_step(ends: list[int | None], step: int) -> int:
    for index, end in enumerate(ends):
        if end is None or step <= end:
            return index
    raise AssertionError("the last tier has no end")


def _seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def invoice(inputs: dict[str, Any]) -> dict[str, Any]:
    """Lines, subtotal, credits, tax and total, in whole minor units."""
    start, end = _seconds(inputs["periodStart"]), _seconds(inputs["periodEnd"])
    digits = MINOR_DIGITS[inputs["usageItems"][0]["priceConfig"]["currency"]]
    lines = []
    for item in inputs["usageItems"]:
        price = item["priceConfig"]
        per_unit = steps_per_unit(price, item["quantity"])
        amount = line_amount(price, item["quantity"], per_unit)
        if "minimumCharge" in price:
            amount = max(amount, scaled(price["minimumCharge"]) * per_unit)
        if "maximumCharge" in price:
            amount = min(amount, scaled(price["maximumCharge"]) * per_unit)
        first = max(start, _seconds(item["startDate"])) if "startDate" in item else start
        last = min(end, _seconds(item["endDate"])) if "endDate" in item else end
        active = max(0, last - first)
        lines.append(half_up(amount * 10**digits * active, SCALE * per_unit * (end - start)))
    subtotal = left = sum(lines)
    for one in inputs.get("commitments", []):
        if _seconds(one["startDate"]) < end and _seconds(one["endDate"]) > start:
            unused = (scaled(one["amount"]) - scaled(one.get("applied", 0))) * 10**digits // SCALE
            left -= max(0, min(left, unused))
    for one in inputs.get("credits", []):
        if "expiresAt" not in one or _seconds(one["expiresAt"]) >= end:
            left -= min(left, scaled(one["amount"]) * 10**digits // SCALE)
    tax = half_up(left * scaled(inputs.get("taxRate", 0)), 100 * SCALE)
    return {
        "lines": lines,
        "subtotal": subtotal,
        "credits": subtotal - left,
        "tax": tax,
        "total": left + tax,
    }
