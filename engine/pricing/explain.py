"""Why a line costs what it costs: its parts in words and amounts, which sum to the line exactly.

Rules kept here: parts are exact and not rounded one by one; what minimum, maximum, proration and rounding change is a
part of its own. It must not know where the quantity came from: days and events are the engine's (engine.core.explain).
"""

from __future__ import annotations

from decimal import Decimal
from typing import Literal, NamedTuple

from engine.pricing.charges import TierPart
from engine.pricing.invoice import LineItem
from engine.pricing.money import exact_arithmetic, plain_text

PartKind = Literal["units", "flatFee", "minimum", "maximum", "proration", "rounding"]


class LinePart(NamedTuple):
    """A share of a line's amount: negative where something was taken off."""

    kind: PartKind
    text: str
    amount: Decimal


def explain_line(line: LineItem) -> tuple[LinePart, ...]:
    """The parts of the line's subtotal, in the order in which they were computed; their sum is the subtotal, exactly.

    A prorated line's rounding is within its part `proration`: the share itself has no end of digits.
    """
    with exact_arithmetic():
        parts = [found for part in line.tiers for found in _of_tier(line, part)]
        limit = line.limited - line.charge
        if limit > 0:
            parts.append(LinePart("minimum", f"raised to {_digits(line.limited)}", limit))
        elif limit < 0:
            parts.append(LinePart("maximum", f"cut to {_digits(line.limited)}", limit))
        rest = line.subtotal - line.limited
        if line.active_seconds != line.period_seconds:
            words = f"{line.active_seconds} of {line.period_seconds} seconds, rounded half up"
            parts.append(LinePart("proration", words, rest))
        elif rest:
            words = f"half up to {_digits(line.subtotal)} {line.price.currency}"
            parts.append(LinePart("rounding", words, rest))
        total = sum((part.amount for part in parts), start=line.subtotal - line.subtotal)
        assert total == line.subtotal, "the parts of a line are the line"
    return tuple(parts)


def _of_tier(line: LineItem, part: TierPart) -> list[LinePart]:
    model = line.price.model
    if model == "package":
        assert line.price.package_size is not None, "a PriceConfig is complete"
        what = f"packages of {_digits(line.price.package_size)}"
    else:
        what = line.metric
    where = ""
    if line.price.tiers:
        end = "without end" if part.up_to is None else f"to {_digits(part.up_to)}"
        where = f" in the tier above {_digits(part.above)} {end}"
    units = f"{_digits(part.quantity)} {what} at {_digits(part.unit_price)}{where}"
    found = [LinePart("units", units, part.amount - part.flat_price)]
    if part.flat_price:
        found.append(LinePart("flatFee", f"flat fee{where}", part.flat_price))
    return found


def _digits(value: Decimal) -> str:
    return plain_text(value)
