"""Inputs and invoices as documents: the names of the HTTP contract, as JSON and YAML have them, to objects and back.

Rules kept here:

- Names are those of the contract (`priceConfig`, `upTo`); in Python their snake_case forms are taken too (`up_to`).
- A name that is not known is an error: a misspelled `maximunCharge` must not be a price without a maximum.
- Every problem of a document is told at once, each under its path: `usageItems[0].priceConfig.tiers[1].upTo`.
- Numbers are Decimal, int or decimal text, never binary floating point. Amounts go out as Decimal, with the digits of
  the currency.
- Objects of this library are taken where their documents are, so that a program can mix both.

It must not know how files are read: whoever decodes JSON or YAML keeps the numbers exact (gateway.scenario_files).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Final, TypeVar

from engine.pricing.charges import TierPart
from engine.pricing.errors import PricingError, Problem, join
from engine.pricing.instants import instant_text, instant_us
from engine.pricing.invoice import (
    Commitment,
    Credit,
    Invoice,
    InvoiceInput,
    LineItem,
    UsageItem,
)
from engine.pricing.money import ZERO, currency_code, exact, plain
from engine.pricing.prices import PriceConfig, Tier

Document = dict[str, object]

NAME_CHARS_MAX: Final = 255
_LIST_MAX: Final = 10_000
"""Of any list that is read. What each may hold is the business of what it becomes."""
_ENDLESS: Final = ("inf", ".inf")
"""Stripe's and YAML's words for a tier without end; JSON's is null."""

_SNAKE: Final = re.compile(r"_([a-z])")
_Read = TypeVar("_Read")


class Fields:
    """The fields of one mapping while it is read. Problems are collected, so that a reader goes on after the first."""

    def __init__(self, document: object, path: str, names: frozenset[str]) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self._values: dict[str, object] = {}
        if not isinstance(document, Mapping):
            raise PricingError([(path or "document", "must be an object with named fields")])
        for name, value in document.items():
            camel = _camel(name) if isinstance(name, str) else ""
            if camel not in names:
                field = join(path, str(name)[:NAME_CHARS_MAX])
                message = f"is not a field here; these are: {', '.join(sorted(names))}"
                self.problems.append((field, message))
            elif camel in self._values:
                self.problems.append((join(path, camel), "is given twice"))
            else:
                self._values[camel] = value

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._values.get(name) is not None

    def raw(self, name: str) -> object:
        """The value as it was given; None when it is absent."""
        return self._values.get(name)

    def read(self, name: str, reader: Callable[[object, str], _Read], default: _Read) -> _Read:
        """`reader(value, path)`, or `default` when the field is absent or null; a refusal is collected."""
        value = self._values.get(name)
        if value is None:
            return default
        try:
            return reader(value, join(self.path, name))
        except PricingError as error:
            self.problems += error.errors
            return default

    def needed(self, name: str, reader: Callable[[object, str], _Read], default: _Read) -> _Read:
        """`read`, for a field that must be there."""
        if not self.has(name):
            self.problems.append((join(self.path, name), "is missing"))
        return self.read(name, reader, default)

    def done(self, make: Callable[[], _Read]) -> _Read:
        """What `make` makes of fields without a problem; its refusals are put under this path."""
        if self.problems:
            raise PricingError(self.problems)
        try:
            return make()
        except PricingError as error:
            raise error.under(self.path) from None


def _camel(name: str) -> str:
    if "_" not in name:
        return name
    return _SNAKE.sub(lambda match: match[1].upper(), name)


def text(value: object, field: str) -> str:
    """A text of bounded length."""
    if not isinstance(value, str) or len(value) > NAME_CHARS_MAX:
        raise PricingError([(field, f"must be a text of at most {NAME_CHARS_MAX} characters")])
    return value


def name(value: object, field: str) -> str:
    """A text that is not empty."""
    if not text(value, field):
        raise PricingError([(field, "must not be empty")])
    return str(value)


def list_of(
    reader: Callable[[object, str], _Read],
) -> Callable[[object, str], tuple[_Read, ...]]:
    """A reader of lists of what `reader` reads; the problems of all items are told."""

    def read(value: object, field: str) -> tuple[_Read, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > _LIST_MAX:
            raise PricingError([(field, f"must be a list of at most {_LIST_MAX}")])
        items: list[_Read] = []
        problems: list[Problem] = []
        for index, item in enumerate(value):
            try:
                items.append(reader(item, f"{field}[{index}]"))
            except PricingError as error:
                problems += error.errors
        if problems:
            raise PricingError(problems)
        return tuple(items)

    return read


_TIER_FIELDS: Final = frozenset({"upTo", "unitPrice", "flatPrice"})
_PRICE_FIELDS: Final = frozenset(
    [
        "model",
        "currency",
        "unitPrice",
        "tiers",
        "packageSize",
        "packageRounding",
        "minimumCharge",
        "maximumCharge",
    ]
)
_ITEM_FIELDS: Final = frozenset({"metric", "quantity", "priceConfig", "startDate", "endDate"})
_COMMITMENT_FIELDS: Final = frozenset({"amount", "startDate", "endDate", "applied"})
_CREDIT_FIELDS: Final = frozenset({"amount", "reason", "expiresAt"})
_INPUT_FIELDS: Final = frozenset(
    [
        "customerId",
        "periodStart",
        "periodEnd",
        "usageItems",
        "commitments",
        "credits",
        "taxRate",
        "currency",
    ]
)


def read_price(document: object, path: str = "") -> PriceConfig:
    """The price configuration of a document in the contract's names; PricingError names all that is wrong."""
    if isinstance(document, PriceConfig):
        return document
    fields = Fields(document, path, _PRICE_FIELDS)
    tiers: tuple[Tier, ...] = fields.read("tiers", list_of(_tier), ())
    if fields.raw("tiers") is not None and not tiers and not fields.problems:
        fields.problems.append((join(path, "tiers"), "must not be empty"))
    model = fields.needed("model", text, "")
    currency = fields.needed("currency", text, "")
    rounding = fields.read("packageRounding", text, None)
    # What is no model, no currency or no rounding is for PriceConfig to refuse.
    return fields.done(
        lambda: PriceConfig(
            model=model,  # type: ignore[arg-type]
            currency=currency,
            unit_price=fields.raw("unitPrice"),  # type: ignore[arg-type]
            tiers=tiers,
            package_size=fields.raw("packageSize"),  # type: ignore[arg-type]
            package_rounding=rounding,  # type: ignore[arg-type]
            minimum_charge=fields.raw("minimumCharge"),  # type: ignore[arg-type]
            maximum_charge=fields.raw("maximumCharge"),  # type: ignore[arg-type]
        )
    )


def _tier(document: object, path: str) -> Tier:
    if isinstance(document, Tier):
        return document
    fields = Fields(document, path, _TIER_FIELDS)
    if not fields.has("unitPrice") and not fields.has("flatPrice"):
        message = "is missing: a tier needs a unitPrice, a flatPrice or both"
        fields.problems.append((join(path, "unitPrice"), message))
    # Numbers that are none are for Tier to refuse: read here, each would be looked at twice.
    up_to, unit_price, flat_price = map(fields.raw, ("upTo", "unitPrice", "flatPrice"))
    return fields.done(
        lambda: Tier(
            None if up_to in _ENDLESS else up_to,  # type: ignore[arg-type]
            ZERO if unit_price is None else unit_price,  # type: ignore[arg-type]
            ZERO if flat_price is None else flat_price,  # type: ignore[arg-type]
        )
    )


def read_inputs(
    document: object, path: str = "", *, default_price: PriceConfig | None = None
) -> InvoiceInput:
    """The inputs of an invoice from a document in the contract's names; PricingError names all that is wrong.

    `default_price` is the price of usage items that have none of their own.
    """
    if isinstance(document, InvoiceInput):
        return document
    fields = Fields(document, path, _INPUT_FIELDS)

    def item(one: object, where: str) -> UsageItem:
        return _usage_item(one, where, default_price)

    customer = fields.needed("customerId", name, "")
    start_us = fields.needed("periodStart", instant_us, 0)
    end_us = fields.needed("periodEnd", instant_us, 0)
    items: tuple[UsageItem, ...] = fields.needed("usageItems", list_of(item), ())
    commitments: tuple[Commitment, ...] = fields.read("commitments", list_of(_commitment), ())
    credits_: tuple[Credit, ...] = fields.read("credits", list_of(_credit), ())
    tax_rate = fields.read("taxRate", exact, ZERO)
    currency = fields.read("currency", currency_code, "")
    return fields.done(
        lambda: InvoiceInput(
            customer_id=customer,
            period_start_us=start_us,
            period_end_us=end_us,
            usage_items=items,
            commitments=commitments,
            credits=credits_,
            tax_rate=tax_rate,
            currency=currency,
        )
    )


def _usage_item(document: object, path: str, default_price: PriceConfig | None) -> UsageItem:
    if isinstance(document, UsageItem):
        return document
    fields = Fields(document, path, _ITEM_FIELDS)
    metric = fields.needed("metric", name, "")
    quantity = fields.needed("quantity", exact, ZERO)
    price = fields.read("priceConfig", read_price, default_price)
    if price is None and not fields.has("priceConfig"):
        message = "is missing: without a price the line would be free"
        fields.problems.append((join(path, "priceConfig"), message))
    start_us = fields.read("startDate", instant_us, None)
    end_us = fields.read("endDate", instant_us, None)

    def make() -> UsageItem:
        assert price is not None, "its absence is a problem"
        return UsageItem(metric, quantity, price, start_us, end_us)

    return fields.done(make)


def _commitment(document: object, path: str) -> Commitment:
    if isinstance(document, Commitment):
        return document
    fields = Fields(document, path, _COMMITMENT_FIELDS)
    amount = fields.needed("amount", exact, ZERO)
    start_us = fields.needed("startDate", instant_us, 0)
    end_us = fields.needed("endDate", instant_us, 0)
    applied = fields.read("applied", exact, ZERO)
    return fields.done(lambda: Commitment(amount, start_us, end_us, applied))


def _credit(document: object, path: str) -> Credit:
    if isinstance(document, Credit):
        return document
    fields = Fields(document, path, _CREDIT_FIELDS)
    amount = fields.needed("amount", exact, ZERO)
    reason = fields.read("reason", text, "")
    expires_us = fields.read("expiresAt", instant_us, None)
    return fields.done(lambda: Credit(amount, reason, expires_us))


def price_document(price: PriceConfig) -> Document:
    """The configuration in the contract's names, without what it does not use; `read_price` gives it back."""
    document: Document = {"model": price.model, "currency": price.currency}
    if price.unit_price is not None:
        document["unitPrice"] = plain(price.unit_price)
    if price.tiers:
        document["tiers"] = [_tier_document(tier) for tier in price.tiers]
    if price.package_size is not None:
        document["packageSize"] = plain(price.package_size)
    if price.package_rounding is not None:
        document["packageRounding"] = price.package_rounding
    if price.minimum_charge is not None:
        document["minimumCharge"] = plain(price.minimum_charge)
    if price.maximum_charge is not None:
        document["maximumCharge"] = plain(price.maximum_charge)
    return document


def _tier_document(tier: Tier) -> Document:
    document: Document = {
        "upTo": None if tier.up_to is None else plain(tier.up_to),
        "unitPrice": plain(tier.unit_price),
    }
    if tier.flat_price:
        document["flatPrice"] = plain(tier.flat_price)
    return document


def invoice_document(invoice: Invoice) -> Document:
    """The invoice in the contract's names; numbers are Decimal, amounts with the currency's digits."""
    return {
        "customerId": invoice.customer_id,
        "periodStart": instant_text(invoice.period_start_us),
        "periodEnd": instant_text(invoice.period_end_us),
        "lineItems": [_line_document(line) for line in invoice.line_items],
        "subtotal": invoice.subtotal,
        "commitmentsApplied": invoice.commitments_applied,
        "creditsApplied": invoice.credits_applied,
        "credits": invoice.credits,
        "adjustments": invoice.adjustments,
        "tax": invoice.tax,
        "total": invoice.total,
        "currency": invoice.currency,
    }


def _line_document(line: LineItem) -> Document:
    document: Document = {
        "metric": line.metric,
        "quantity": plain(line.quantity),
        "unitPrice": plain(line.unit_price),
        "subtotal": line.subtotal,
        "description": line.description,
    }
    if line.price.tiers:
        document["tiers"] = [_part_document(part) for part in line.tiers]
    return document


def _part_document(part: TierPart) -> dict[str, Decimal | None]:
    return {
        "from": plain(part.above),
        "upTo": None if part.up_to is None else plain(part.up_to),
        "quantity": plain(part.quantity),
        "unitPrice": plain(part.unit_price),
        "flatPrice": plain(part.flat_price),
        "amount": plain(part.amount),
    }
