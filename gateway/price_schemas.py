"""Price configurations and scenarios as JSON Schema: documents that the pricing library reads, not structs of ours.

Rules it keeps: a document that the library refuses for its fields does not fit, one that it takes does; a test holds
both against `engine.pricing`. It must not know any endpoint.
"""

from __future__ import annotations

from typing import Any, Final

_AMOUNT: Final[dict[str, Any]] = {
    "type": ["number", "string"],
    "minimum": 0,
    "pattern": r"^[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$",
    "examples": [0.01],
}
"""Not negative, at most 30 digits before the decimal point and 15 after it."""
_NUMBER: Final[dict[str, Any]] = {"type": ["number", "string"]}
_CURRENCY: Final[dict[str, Any]] = {
    "type": "string",
    "pattern": "^[A-Za-z]{3}$",
    "examples": ["USD"],
}
_WHEN: Final[dict[str, Any]] = {
    "anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}],
    "examples": ["2026-01-01"],
}


def _said(schema: dict[str, Any], description: str, **more: Any) -> dict[str, Any]:
    return {"description": description, **schema, **more}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(
    description: str, needed: list[str], properties: dict[str, Any], **more: Any
) -> dict[str, Any]:
    optional = {
        name: schema if name in needed else _or_null(schema) for name, schema in properties.items()
    }
    return {
        "description": description,
        "type": "object",
        "properties": optional,
        "required": needed,
        "additionalProperties": False,
        **more,
    }


_TIER: Final = _object(
    "One tier of a price: with a unitPrice, a flatPrice or both.",
    [],
    {
        "upTo": _said(
            _AMOUNT, "The last unit that is in it; null: no end, the last tier.", examples=[10000]
        ),
        "unitPrice": _said(_AMOUNT, "Of each unit."),
        "flatPrice": _said(_AMOUNT, "Once, when the tier is reached.", examples=[5]),
    },
)
_PRICE: Final = _object(
    "What units of a metric cost. `flat`: each unit; `package`: each begun package; `tiered`: each unit at its tier's "
    "price; `graduated`: tiered plus the tier's flat fee; `volume`: all units at the reached tier's price. Amounts are "
    "exact decimals, rounded half up once per line.",
    ["model", "currency"],
    {
        "model": _said(
            {"type": "string", "enum": ["flat", "package", "tiered", "graduated", "volume"]},
            "How units become an amount.",
        ),
        "currency": _said(_CURRENCY, "ISO 4217."),
        "unitPrice": _said(_AMOUNT, "`flat`: of a unit; `package`: of a package."),
        "tiers": {
            "description": "`tiered`, `graduated`, `volume`: in order, the last without end.",
            "type": "array",
            "minItems": 1,
            "items": _ref("Tier"),
        },
        "packageSize": _said(_AMOUNT, "`package`: units in one.", examples=[1000]),
        "packageRounding": _said(
            {"type": "string", "enum": ["up", "down"]}, "`package`: what a begun one counts."
        ),
        "minimumCharge": _said(_AMOUNT, "The line is at least this.", examples=[10]),
        "maximumCharge": _said(_AMOUNT, "The line is at most this.", examples=[500]),
    },
    examples=[{"model": "flat", "currency": "USD", "unitPrice": 0.01}],
)
_USAGE_ITEM: Final = _object(
    "What was used of one metric.",
    ["metric", "quantity"],
    {
        "metric": _said({"type": "string", "minLength": 1, "maxLength": 255}, "The metric."),
        "quantity": _said(_AMOUNT, "How much; exact.", examples=[25000]),
        "priceConfig": _said(_ref("PriceConfig"), "Its price; without it the scenario's `model`."),
        "startDate": _said(_WHEN, "From when, for proration."),
        "endDate": _said(_WHEN, "Until when, exclusive, for proration."),
    },
)
_COMMITMENT: Final = _object(
    "What the customer has committed to spend; it is drawn down by at most what is left of it and of the bill.",
    ["amount", "startDate", "endDate"],
    {
        "amount": _said(_AMOUNT, "How much.", examples=[1000]),
        "startDate": _said(_WHEN, "From when it holds."),
        "endDate": _said(_WHEN, "Until when, exclusive."),
        "applied": _said(_AMOUNT, "What was drawn of it before.", examples=[0]),
    },
)
_CREDIT: Final = _object(
    "An amount taken off, unless it expired before the period's end.",
    ["amount"],
    {
        "amount": _said(_AMOUNT, "How much.", examples=[20]),
        "reason": _said({"type": "string", "maxLength": 255}, "Why, for people."),
        "expiresAt": _said(_WHEN, "Until when it counts."),
    },
)
_INPUTS: Final = _object(
    "What an invoice is made of.",
    ["customerId", "periodStart", "periodEnd", "usageItems"],
    {
        "customerId": _said({"type": "string", "minLength": 1, "maxLength": 255}, "The customer."),
        "periodStart": _said(_WHEN, "The period's first day or instant."),
        "periodEnd": _said(_WHEN, "The period's end, exclusive.", examples=["2026-02-01"]),
        "usageItems": {
            "description": "What was used.",
            "type": "array",
            "items": _ref("UsageItem"),
        },
        "commitments": {
            "description": "Committed spend.",
            "type": "array",
            "items": _ref("Commitment"),
        },
        "credits": {"description": "Credits.", "type": "array", "items": _ref("Credit")},
        "taxRate": _said(_AMOUNT, "In percent.", examples=[19]),
        "currency": _said(_CURRENCY, "ISO 4217; else that of the prices."),
    },
)
_METADATA: Final = _object(
    "What people want to know of it.",
    [],
    {
        "name": _said(
            {"type": "string", "maxLength": 255}, "Its name, where the scenario has none."
        ),
        "description": _said(
            {"type": "string", "maxLength": 10000}, "Its description, where the scenario has none."
        ),
        "version": {"description": "Of the file; anything."},
        "tags": {
            "description": "For people.",
            "type": "array",
            "items": {"type": "string", "maxLength": 255},
        },
    },
)
_PART_NUMBERS: Final = ("from", "upTo", "quantity", "unitPrice", "flatPrice", "amount")
_LINE_NUMBERS: Final = ("quantity", "unitPrice", "subtotal")
_INVOICE_NUMBERS: Final = (
    "subtotal",
    "commitmentsApplied",
    "creditsApplied",
    "credits",
    "adjustments",
    "tax",
    "total",
)
_EXPECTED_PART: Final = _object(
    "What a tier of a line is expected to be.",
    [],
    {name: _said(_NUMBER, "As the invoice has it.") for name in _PART_NUMBERS},
)
_EXPECTED_LINE: Final = _object(
    "What a line is expected to be.",
    [],
    {
        **{name: _said(_NUMBER, "As the invoice has it.") for name in _LINE_NUMBERS},
        "metric": _said({"type": "string"}, "The line's metric."),
        "description": _said({"type": "string"}, "The line's text."),
        "tiers": {
            "description": "All tiers, in order.",
            "type": "array",
            "items": _ref("ExpectedPart"),
        },
    },
)
_EXPECTED: Final = _object(
    "Any part of the invoice. What it does not mention is not compared.",
    [],
    {
        **{name: _said(_NUMBER, "As the invoice has it.") for name in _INVOICE_NUMBERS},
        "customerId": _said({"type": "string"}, "The customer."),
        "currency": _said({"type": "string"}, "ISO 4217."),
        "periodStart": _said(_WHEN, "The period's start."),
        "periodEnd": _said(_WHEN, "The period's end."),
        "lineItems": {
            "description": "All lines, in order.",
            "type": "array",
            "items": _ref("ExpectedLine"),
        },
    },
    examples=[{"total": 220}],
)
_TOLERANCE_NAMES: Final = (
    *_INVOICE_NUMBERS,
    *(f"lineItems.{name}" for name in _LINE_NUMBERS),
    *(f"lineItems.tiers.{name}" for name in _PART_NUMBERS),
)
_TOLERANCES: Final[dict[str, Any]] = {
    "description": "How far a number may be off: an amount for all, or `absolute`, `relative` and amounts by field.",
    "anyOf": [
        _AMOUNT,
        _object(
            "The larger of `absolute` and `relative`, or the field's own.",
            [],
            {
                "absolute": _said(_AMOUNT, "By how much."),
                "relative": _said(_AMOUNT, "By what fraction."),
                **{name: _said(_AMOUNT, f"For {name}.") for name in _TOLERANCE_NAMES},
            },
        ),
    ],
    "examples": [{"total": 0.01}],
}
_SCENARIO: Final = _object(
    "A scenario, as a file of `stripemeter simulate` has it.",
    ["inputs"],
    {
        "name": _said({"type": "string", "maxLength": 255}, "Its name."),
        "description": _said({"type": "string", "maxLength": 10000}, "In words."),
        "metadata": _ref("ScenarioMetadata"),
        "model": _said(_ref("PriceConfig"), "The price of usage items that have none."),
        "inputs": _ref("ScenarioInputs"),
        "expected": _ref("ScenarioExpected"),
        "tolerances": _ref("ScenarioTolerances"),
    },
)

DOCUMENTS: Final[dict[str, Any]] = {
    "PriceConfig": _PRICE,
    "Tier": _TIER,
    "ScenarioInputs": _INPUTS,
    "ScenarioMetadata": _METADATA,
    "Scenario": _SCENARIO,
    "ScenarioExpected": _EXPECTED,
    "ScenarioTolerances": _TOLERANCES,
    "ExpectedLine": _EXPECTED_LINE,
    "ExpectedPart": _EXPECTED_PART,
    "UsageItem": _USAGE_ITEM,
    "Commitment": _COMMITMENT,
    "Credit": _CREDIT,
}
"""Components of the OpenAPI document, by name."""


def document(name: str, *, or_null: bool = True) -> dict[str, Any]:
    """For `extra_json_schema` of a field that holds such a document."""
    assert name in DOCUMENTS, "it is one of those above"
    return {"x-instead": _or_null(_ref(name)) if or_null else _ref(name)}
