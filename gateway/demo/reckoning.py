"""The demo's own books: what was used, what that costs, and whether every number that was shown is that.

Rules it keeps: it counts what the story used, by itself, before any server says anything; money is Decimal, rounded
half up to the cent once a line. It must not know servers: what they said is given to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final, NamedTuple

TIERS: Final[tuple[tuple[int | None, str], ...]] = (
    (10_000, "0.01"),
    (50_000, "0.008"),
    (None, "0.005"),
)
"""(up to how many units, dollars for each of them). 25,000 units cost 220.00."""
_CENT: Final = Decimal("0.01")


def price_document() -> dict[str, Any]:
    """The tiers as a mapping's priceConfig."""
    tiers = [{"upTo": up_to, "unitPrice": each} for up_to, each in TIERS]
    return {"model": "tiered", "currency": "USD", "tiers": tiers}


def price_fields() -> dict[str, Any]:
    """The same as fields of a Stripe price, in cents."""
    fields: dict[str, Any] = {"billing_scheme": "tiered", "tiers_mode": "graduated"}
    for number, (up_to, each) in enumerate(TIERS):
        fields[f"tiers[{number}][up_to]"] = "inf" if up_to is None else up_to
        fields[f"tiers[{number}][unit_amount_decimal]"] = f"{(Decimal(each) * 100).normalize():f}"
    return fields


def cost(units: int) -> Decimal:
    """Dollars of so many units."""
    assert units >= 0, "nobody uses less than nothing"
    total, below = Decimal(0), 0
    for up_to, each in TIERS:
        reached = units if up_to is None else min(units, up_to)
        total += max(0, reached - below) * Decimal(each)
        below = max(below, reached)
    return total.quantize(_CENT, ROUND_HALF_UP)


class Books:
    """What the customers used, each event once."""

    def __init__(self, customers: Iterable[str]) -> None:
        self.used = dict.fromkeys(customers, 0)
        self._keys: set[str] = set()

    def event(self, key: str, customer: str, quantity: int, **more: Any) -> dict[str, Any]:
        """An event of that use; written down the first time that its key is seen."""
        if key not in self._keys:
            self._keys.add(key)
            self.used[customer] += quantity
        event = {"metric": "api_calls", "customerRef": customer, "quantity": quantity}
        return {**event, "idempotencyKey": key, **more}


class Row(NamedTuple):
    """All that is said of one customer: units, then dollars."""

    customer: str
    used: int
    """By the demo's own books."""
    counted: Decimal
    certified: Decimal
    """The certificate's total."""
    pushed: Decimal
    at_stripe: Decimal
    invoiced: Decimal
    projected: Decimal
    """By the meter, at the price that it read from Stripe."""
    certified_line: Decimal
    charged: Decimal
    """On Stripe's invoice."""

    @property
    def wrong(self) -> Iterator[str]:
        """Each number that is not what the books say."""
        for names, expected in ((_UNITS, Decimal(self.used)), (_DOLLARS, cost(self.used))):
            for name in names:
                found = getattr(self, name)
                if found != expected:
                    yield f"{self.customer}: {name} is {found} instead of {expected}"


_UNITS: Final = ("counted", "certified", "pushed", "at_stripe", "invoiced")
_DOLLARS: Final = ("projected", "certified_line", "charged")
assert set(_UNITS) | set(_DOLLARS) | {"customer", "used"} == set(Row._fields)


def differences(rows: Sequence[Row], books: Books) -> list[str]:
    """All that does not agree, in words; a customer without a row is a difference."""
    missing = books.used.keys() - {row.customer for row in rows}
    found = [f"{customer}: nothing is known of it" for customer in sorted(missing)]
    for row in rows:
        if row.used != books.used.get(row.customer):
            found.append(f"{row.customer}: the books say {books.used.get(row.customer)}")
        found += row.wrong
    return found
