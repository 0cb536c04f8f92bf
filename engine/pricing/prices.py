"""Price configurations: what a metric costs, and every reason for which a configuration is refused.

Models (design, "Pricing"): `flat` each unit at one price; `package` whole packages at one price; `tiered` each unit at
the price of the tier it lies in; `graduated` the same plus the flat fee of every tier that is reached; `volume` all units
at the price of the tier that the quantity reaches, plus that tier's flat fee.

Rules kept here:

- A configuration that exists is complete: whoever holds a PriceConfig can price any quantity with it.
- A model without what it needs, or with what it would ignore, is an error that names the field, never a price of 0.
- A tier ends at `up_to`, inclusive; the last one has no end, so that no unit is ever free by accident.
- Names in messages are those of the HTTP contract (`upTo`), since that is what people write.

It must not know how a quantity is priced (engine.pricing.charges) nor how a document is read (engine.pricing.documents).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal, get_args

from engine.pricing.errors import PricingError, Problem
from engine.pricing.money import ZERO, currency_code, exact, not_negative

Model = Literal["flat", "package", "tiered", "graduated", "volume"]
PackageRounding = Literal["up", "down"]

MODELS: Final[tuple[Model, ...]] = get_args(Model)
PACKAGE_ROUNDINGS: Final[tuple[PackageRounding, ...]] = get_args(PackageRounding)
TIERS_MAX: Final = 100
"""Stripe takes fewer; a table longer than that is a formula written down."""

TIERED_MODELS: Final[frozenset[str]] = frozenset({"tiered", "graduated", "volume"})
FIELDS_OF_MODEL: Final[dict[str, frozenset[str]]] = {
    "flat": frozenset({"unitPrice"}),
    "package": frozenset({"unitPrice", "packageSize", "packageRounding"}),
    "tiered": frozenset({"tiers"}),
    "graduated": frozenset({"tiers"}),
    "volume": frozenset({"tiers"}),
}
"""What a model uses, beside currency and the minimum and maximum charge. All but packageRounding is needed."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One step: units up to and including `up_to` (None: without end), each at `unit_price`, and a flat fee.

    Prices are in the currency's major unit (0.008 is 0.8 cents).
    """

    up_to: Decimal | None
    unit_price: Decimal = ZERO
    flat_price: Decimal = ZERO

    def __post_init__(self) -> None:
        problems = _take_numbers(self, _TIER_NUMBERS)
        if self.unit_price is None or self.flat_price is None:
            problems.append(("unitPrice", "must be a number, as flatPrice must; 0 is one"))
        if problems:
            raise PricingError(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceConfig:
    """What one metric costs; complete and without contradiction, else PricingError on construction.

    `unit_price` is the price of a unit, in `package` that of a package. `minimum_charge` and `maximum_charge` hold for the
    line of a whole period; a maximum of 0 makes the line free. Amounts are in the currency's major unit.
    """

    model: Model
    currency: str
    unit_price: Decimal | None = None
    tiers: tuple[Tier, ...] = ()
    package_size: Decimal | None = None
    package_rounding: PackageRounding | None = None
    minimum_charge: Decimal | None = None
    maximum_charge: Decimal | None = None

    def __post_init__(self) -> None:
        problems = _take_numbers(self, _NUMBERS)
        try:
            object.__setattr__(self, "currency", currency_code(self.currency, "currency"))
        except PricingError as error:
            problems += error.errors
        object.__setattr__(self, "tiers", tuple(self.tiers))
        if not problems:
            problems += _contradictions(self)
        if problems:
            raise PricingError(problems)


_NumberReader = Callable[[object, str], Decimal]
_TIER_NUMBERS: Final[tuple[tuple[str, str, _NumberReader], ...]] = (
    ("up_to", "upTo", exact),
    ("unit_price", "unitPrice", not_negative),
    ("flat_price", "flatPrice", not_negative),
)
_NUMBERS: Final[tuple[tuple[str, str, _NumberReader], ...]] = (
    ("unit_price", "unitPrice", not_negative),
    ("package_size", "packageSize", not_negative),
    ("minimum_charge", "minimumCharge", not_negative),
    ("maximum_charge", "maximumCharge", not_negative),
)


def _take_numbers(
    holder: object, numbers: tuple[tuple[str, str, _NumberReader], ...]
) -> list[Problem]:
    """Make exact decimals of a frozen object's fields while it is constructed; the problems of those that are none."""
    problems: list[Problem] = []
    for name, field, reader in numbers:
        value = getattr(holder, name)
        if value is None:
            continue
        try:
            object.__setattr__(holder, name, reader(value, field))
        except PricingError as error:
            problems += error.errors
    return problems


def _contradictions(price: PriceConfig) -> Iterator[Problem]:
    """Every problem of a configuration whose numbers are numbers."""
    if price.model not in MODELS:
        yield "model", f"must be one of {', '.join(MODELS)}"
        return
    yield from _wrong_fields(price)
    if price.package_size is not None and price.package_size == 0:
        yield "packageSize", "must be above 0"
    if price.package_rounding not in (None, *PACKAGE_ROUNDINGS):
        yield "packageRounding", "must be up or down"
    if price.tiers:
        yield from _wrong_tiers(price)
    low, high = price.minimum_charge, price.maximum_charge
    if low is not None and high is not None and high < low:
        yield "maximumCharge", f"must not be below minimumCharge, which is {low:f}"


def _wrong_fields(price: PriceConfig) -> Iterator[Problem]:
    given = {
        "unitPrice": price.unit_price is not None,
        "tiers": bool(price.tiers),
        "packageSize": price.package_size is not None,
        "packageRounding": price.package_rounding is not None,
    }
    used = FIELDS_OF_MODEL[price.model]
    for field, is_given in given.items():
        if is_given and field not in used:
            yield (
                field,
                f"is not used by the model {price.model}: remove it, or choose another model",
            )
        if not is_given and field in used and field != "packageRounding":
            yield field, f"is needed by the model {price.model}"


def _wrong_tiers(price: PriceConfig) -> Iterator[Problem]:
    tiers = price.tiers
    if len(tiers) > TIERS_MAX:
        yield "tiers", f"must be at most {TIERS_MAX}"
        return
    end = ZERO
    for index, tier in enumerate(tiers):
        path = f"tiers[{index}]"
        is_last = index == len(tiers) - 1
        if tier.up_to is None:
            if not is_last:
                message = "must be a number: a tier without end leaves the next ones unreachable"
                yield f"{path}.upTo", message
                return
        elif is_last:
            message = (
                f"must be null in the last tier: units above {tier.up_to:f} would have no price"
            )
            yield f"{path}.upTo", message
        elif tier.up_to <= end:
            before = "0" if index == 0 else f"the tier before it, which ends at {end:f}"
            yield f"{path}.upTo", f"must be above {before}"
        else:
            end = tier.up_to
        if price.model == "tiered" and tier.flat_price:
            message = "is not used by the model tiered: choose graduated, which adds it"
            yield f"{path}.flatPrice", message
