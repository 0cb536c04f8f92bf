"""Why a line costs what it costs: its parts in words and amounts, which sum to the line exactly.

Rules kept here: parts are exact and not rounded one by one; what minimum, maximum, proration and rounding change is a
part of its own. It must not know where the quantity came from: days and events are the engine's (engine.core.explain).
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Literal, NamedTuple

from engine.pricing.charges import TierPart, packages
from engine.pricing.invoice import LineItem
from engine.pricing.money import ZERO, exact_arithmetic, plain_text

PartKind = Literal["units", "flatFee", "minimum", "maximum", "proration", "rounding"]


class LinePart(NamedTuple):
    """A share of a line's amount: negative where something was taken off."""

    kind: PartKind
    text: str
    amount: Decimal
    tier: int | None = None
    """Of units and flat fees: the index of the line's tier."""


class Share(NamedTuple):
    """What one step of the quantity's growth put into a tier: negative where something was taken back."""

    step: int
    quantity: Decimal
    """In `package`, packages: whoever starts one has it."""
    amount: Decimal


def explain_line(line: LineItem) -> tuple[LinePart, ...]:
    """The parts of the line's subtotal, in the order in which they were computed; their sum is the subtotal, exactly.

    A prorated line's rounding is within its part `proration`: the share itself has no end of digits.
    """
    with exact_arithmetic():
        parts = [found for tier in range(len(line.tiers)) for found in _of_tier(line, tier)]
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


def spread_line(line: LineItem, after: Sequence[Decimal]) -> tuple[tuple[Share, ...], ...]:
    """For each of the line's tiers, what each step put into it, in order; steps that put nothing are left out.

    `after[i]` is the line's quantity after step i, the last one the line's own: units fill the tiers in the order in which
    they came. The amounts of a tier's shares sum to its units' amount, exactly; its flat fee is nobody's.
    """
    assert not after or after[-1] == line.quantity, "the last step makes the line's quantity"
    found = []
    with exact_arithmetic():
        for part in line.tiers:
            shares = []
            before = ZERO
            for step, quantity in enumerate(after):
                inside = _inside(line, part, quantity)
                if inside != before:
                    share = inside - before
                    shares.append(Share(step, share, share * part.unit_price))
                before = inside
            total = sum((share.amount for share in shares), start=ZERO)
            assert not after or total == part.amount - part.flat_price, "the shares are the units"
            found.append(tuple(shares))
    return tuple(found)


def _inside(line: LineItem, part: TierPart, quantity: Decimal) -> Decimal:
    """How much of a quantity lies in a tier."""
    quantity = max(quantity, ZERO)
    match line.price.model:
        case "package":
            return packages(line.price, quantity)
        case "flat" | "volume":
            return quantity
        case _:
            below_end = quantity if part.up_to is None else min(quantity, part.up_to)
            return max(below_end - part.above, ZERO)


def _of_tier(line: LineItem, tier: int) -> list[LinePart]:
    model, part = line.price.model, line.tiers[tier]
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
    found = [LinePart("units", units, part.amount - part.flat_price, tier)]
    if part.flat_price:
        found.append(LinePart("flatFee", f"flat fee{where}", part.flat_price, tier))
    return found


def _digits(value: Decimal) -> str:
    return plain_text(value)
