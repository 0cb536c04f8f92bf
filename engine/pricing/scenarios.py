"""Scenarios: inputs with what is expected of their invoice, and the differences within tolerances.

A scenario's document: `{name?, description?, metadata?, model?, inputs, expected?, tolerances?}`. `model` is the price
configuration of usage items that have none of their own. `expected` is any part of an invoice; what it does not mention
is not compared. `tolerances` are `absolute` (money), `relative` (a share, 0.001 is 0.1 %), or an amount per field such as
`total` or `lineItems.subtotal`, which then stands alone. Without tolerances every digit counts.

Rules kept here: a name that no invoice has is an error, so that a misspelled expectation can't pass; lists are compared
place by place and by their length. It must not know files or terminals (gateway.scenario_files, gateway.cli.simulate).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, NamedTuple

from engine.pricing.documents import (
    Document,
    Fields,
    invoice_document,
    list_of,
    name,
    read_inputs,
    read_price,
    text,
)
from engine.pricing.errors import PricingError, join
from engine.pricing.instants import instant_text, instant_us
from engine.pricing.invoice import Invoice, InvoiceInput, make_invoice
from engine.pricing.money import ZERO, exact, exact_arithmetic, not_negative

DESCRIPTION_CHARS_MAX: Final = 10_000

_SCENARIO_FIELDS: Final = frozenset(
    {"name", "description", "metadata", "model", "inputs", "expected", "tolerances"}
)
_METADATA_FIELDS: Final = frozenset({"name", "description", "version", "tags"})
_NUMBERS: Final = (
    "subtotal",
    "commitmentsApplied",
    "creditsApplied",
    "credits",
    "adjustments",
    "tax",
    "total",
)
_EXPECTED_FIELDS: Final = frozenset(
    {*_NUMBERS, "customerId", "periodStart", "periodEnd", "currency", "lineItems"}
)
_LINE_NUMBERS: Final = ("quantity", "unitPrice", "subtotal")
_LINE_FIELDS: Final = frozenset({*_LINE_NUMBERS, "metric", "description", "tiers"})
_PART_NUMBERS: Final = ("from", "upTo", "quantity", "unitPrice", "flatPrice", "amount")
_TOLERANCE_FIELDS: Final = frozenset(
    {
        "absolute",
        "relative",
        *_NUMBERS,
        *(f"lineItems.{one}" for one in _LINE_NUMBERS),
        *(f"lineItems.tiers.{one}" for one in _PART_NUMBERS),
    }
)

Value = Decimal | str | None


class Tolerances(NamedTuple):
    """How far a number may be off: the larger of absolute and relative, or the field's own amount."""

    absolute: Decimal = ZERO
    relative: Decimal = ZERO
    of_fields: Mapping[str, Decimal] = {}

    def allow(self, kind: str, expected: Decimal, actual: Decimal) -> bool:
        """Whether the difference is within; `kind` is the field's name without indexes."""
        own = self.of_fields.get(kind)
        allowed = max(self.absolute, self.relative * expected.copy_abs()) if own is None else own
        return (actual - expected).copy_abs() <= allowed


EXACTLY: Final = Tolerances()


@dataclass(frozen=True, slots=True)
class Scenario:
    """One case: what goes in, and the part of the invoice that is expected, flat: `lineItems[0].subtotal` to its value."""

    name: str
    description: str
    inputs: InvoiceInput
    expected: Mapping[str, Value] = field(default_factory=dict)
    tolerances: Tolerances = EXACTLY


class Difference(NamedTuple):
    """One field that is not as expected. `delta` is actual - expected, None when one of them is no number."""

    field: str
    expected: Value
    actual: Value
    delta: Decimal | None


class Outcome(NamedTuple):
    """A scenario that was run: its invoice, how many fields were compared, and those that differ."""

    scenario: Scenario
    invoice: Invoice
    compared: int
    differences: tuple[Difference, ...]

    @property
    def passed(self) -> bool:
        """True when nothing differs, and also when nothing was expected: see `compared`."""
        return not self.differences


def read_scenario(document: object, path: str = "", *, default_name: str = "") -> Scenario:
    """The scenario of a document; PricingError names all that is wrong in it."""
    fields = Fields(document, path, _SCENARIO_FIELDS)
    about = fields.read("metadata", _metadata, ("", ""))
    title = fields.read("name", name, "") or about[0] or default_name
    description = fields.read("description", _long_text, "") or about[1]
    price = fields.read("model", read_price, None)
    inputs = fields.needed(
        "inputs", lambda value, where: read_inputs(value, where, default_price=price), None
    )
    expected: dict[str, Value] = fields.read("expected", _expected, {})
    tolerances = fields.read("tolerances", _tolerances, EXACTLY)

    def make() -> Scenario:
        assert inputs is not None, "its absence is a problem"
        return Scenario(title, description, inputs, expected, tolerances)

    return fields.done(make)


def run(scenario: Scenario) -> Outcome:
    """The scenario's invoice, compared with what is expected of it."""
    invoice = make_invoice(scenario.inputs)
    actual = _flat(invoice_document(invoice))
    with exact_arithmetic():
        differences = tuple(_differences(scenario, actual))
    return Outcome(scenario, invoice, len(scenario.expected), differences)


def record(invoice: Invoice) -> Document:
    """The `expected` that a run of this invoice would pass: what a person wants to see change, no descriptions."""
    document = invoice_document(invoice)
    lines = document["lineItems"]
    assert isinstance(lines, list)
    kept: Document = {
        "lineItems": [
            {one: line[one] for one in ("metric", "quantity", "unitPrice", "subtotal")}
            for line in lines
        ]
    }
    return kept | {one: document[one] for one in (*_NUMBERS, "currency")}


def _differences(scenario: Scenario, actual: Mapping[str, Value]) -> list[Difference]:
    found = []
    for where, expected in scenario.expected.items():
        got = actual.get(where)
        if isinstance(expected, Decimal) and isinstance(got, Decimal):
            if not scenario.tolerances.allow(_kind(where), expected, got):
                found.append(Difference(where, expected, got, got - expected))
        elif expected != got:
            found.append(Difference(where, expected, got, None))
    return found


def _kind(where: str) -> str:
    """`lineItems[3].subtotal` is of the kind `lineItems.subtotal`."""
    return "".join(
        part.partition("]")[2] if index else part for index, part in enumerate(where.split("["))
    )


def _flat(value: object, path: str = "") -> dict[str, Value]:
    """Every leaf of a document under its path, and every list's length."""
    if isinstance(value, Mapping):
        flat: dict[str, Value] = {}
        for one, inner in value.items():
            flat |= _flat(inner, join(path, one))
        return flat
    if isinstance(value, list):
        flat = {f"{path}.length": Decimal(len(value))}
        for index, inner in enumerate(value):
            flat |= _flat(inner, f"{path}[{index}]")
        return flat
    assert value is None or isinstance(value, Decimal | str), "an invoice's document has no others"
    return {path: value}


def _expected(document: object, path: str) -> dict[str, Value]:
    fields = Fields(document, path, _EXPECTED_FIELDS)
    flat: dict[str, Value] = {}
    for one in _NUMBERS:
        if fields.has(one):
            flat[one] = fields.read(one, exact, ZERO)
    for one in ("customerId", "currency"):
        if fields.has(one):
            flat[one] = fields.read(one, text, "")
    if isinstance(flat.get("currency"), str):
        flat["currency"] = str(flat["currency"]).upper()
    for one in ("periodStart", "periodEnd"):
        if fields.has(one):
            flat[one] = fields.read(one, _instant, "")
    lines: tuple[dict[str, Value], ...] = fields.read("lineItems", list_of(_expected_line), ())
    if fields.has("lineItems"):
        flat["lineItems.length"] = Decimal(len(lines))
    for index, line in enumerate(lines):
        flat |= {f"lineItems[{index}].{one}": value for one, value in line.items()}
    return fields.done(lambda: flat)


def _expected_line(document: object, path: str) -> dict[str, Value]:
    fields = Fields(document, path, _LINE_FIELDS)
    flat: dict[str, Value] = {
        one: fields.read(one, exact, ZERO) for one in _LINE_NUMBERS if fields.has(one)
    }
    for one in ("metric", "description"):
        if fields.has(one):
            flat[one] = fields.read(one, _long_text, "")
    parts: tuple[dict[str, Value], ...] = fields.read("tiers", list_of(_expected_part), ())
    if fields.has("tiers"):
        flat["tiers.length"] = Decimal(len(parts))
    for index, part in enumerate(parts):
        flat |= {f"tiers[{index}].{one}": value for one, value in part.items()}
    return fields.done(lambda: flat)


def _expected_part(document: object, path: str) -> dict[str, Value]:
    fields = Fields(document, path, frozenset(_PART_NUMBERS))
    flat: dict[str, Value] = {
        one: fields.read(one, exact, ZERO) for one in _PART_NUMBERS if fields.has(one)
    }
    return fields.done(lambda: flat)


def _instant(value: object, where: str) -> str:
    # In the one form that an invoice has, so that a plain date matches its midnight.
    return instant_text(instant_us(value, where))


def _tolerances(document: object, path: str) -> Tolerances:
    if isinstance(document, Decimal | int | str):
        return Tolerances(absolute=not_negative(document, path))
    fields = Fields(document, path, _TOLERANCE_FIELDS)
    amounts = {
        one: fields.read(one, not_negative, ZERO) for one in _TOLERANCE_FIELDS if fields.has(one)
    }
    absolute = amounts.pop("absolute", ZERO)
    relative = amounts.pop("relative", ZERO)
    return fields.done(lambda: Tolerances(absolute, relative, amounts))


def _metadata(document: object, path: str) -> tuple[str, str]:
    fields = Fields(document, path, _METADATA_FIELDS)
    title = fields.read("name", text, "")
    description = fields.read("description", _long_text, "")
    tags: tuple[str, ...] = ()
    fields.read("tags", list_of(text), tags)
    return fields.done(lambda: (title, description))


def _long_text(value: object, where: str) -> str:
    if not isinstance(value, str) or len(value) > DESCRIPTION_CHARS_MAX:
        message = f"must be a text of at most {DESCRIPTION_CHARS_MAX} characters"
        raise PricingError([(where, message)])
    return value
