"""What the OpenAPI document says and the server does, where the two once differed; and that it is a valid document."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from engine.pricing import documents, scenarios
from engine.pricing.documents import read_price
from engine.pricing.errors import PricingError
from engine.pricing.scenarios import read_scenario
from gateway.documentation import ASSETS
from gateway.openapi_fields import FIELDS
from gateway.price_schemas import DOCUMENTS
from gateway.routes import PATH_PARAMETERS
from gateway.table import ROUTES, openapi_document
from tests.helpers.served import ADMIN_KEY, served

DOCUMENT: dict[str, Any] = json.loads(openapi_document())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]


def fits(name: str, value: Any) -> bool:
    whole = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": SCHEMAS}}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True).is_valid(value)


def test_the_document_is_openapi_3_1_and_its_schemas_are_json_schema() -> None:
    assert OPENAPI_31_VALIDATOR.is_valid(DOCUMENT)
    assert not OPENAPI_31_VALIDATOR.is_valid(DOCUMENT | {"paths": {"/x": {"get": 3}}})
    for name, schema in SCHEMAS.items():
        declared = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
        assert jsonschema_rs.meta.is_valid(declared), name


def test_every_field_of_every_schema_is_described_and_no_description_is_left_over() -> None:
    used = set()
    for struct, schema in SCHEMAS.items():
        assert schema.get("description"), struct
        for field, found in schema.get("properties", {}).items():
            own = "description" in found or any("description" in x for x in found.get("anyOf", ()))
            refers = "$ref" in found or any("$ref" in one for one in found.get("anyOf", ()))
            assert own or refers, f"{struct}.{field}: gateway/openapi_fields.py can describe it"
            used |= {field, f"{struct}.{field}"}
    assert set(FIELDS) <= used


def test_a_request_refuses_other_fields_and_an_answer_may_have_more() -> None:
    for route in ROUTES:
        if route.response is not None:
            assert SCHEMAS[route.response.__name__].get("additionalProperties") is not False
        # An event's other fields are passed over: producers send more than a meter needs.
        if route.request is not None and route.scope != "events:write":
            assert SCHEMAS[route.request.__name__]["additionalProperties"] is False


def test_a_server_that_requires_keys_says_so() -> None:
    def security(*, auth_required: bool) -> list[Any]:
        found = json.loads(openapi_document(auth_required=auth_required))
        return list(found["paths"]["/v1/mappings"]["get"]["security"])

    assert security(auth_required=True) == [{"bearer": []}, {"apiKey": []}]
    assert security(auth_required=False) == [{"bearer": []}, {"apiKey": []}, {}]


@pytest.mark.parametrize(
    ("name", "field", "good", "bad"),
    [
        ("MappingBody", "latenessHours", (48, 1.5, "1.5", None), ("two", [], True)),
        ("MappingBody", "stripeScale", (1000, "0.001"), ("", {})),
        ("MappingBody", "metric", ("calls",), ("", "a\0b", "x" * 101, 3)),
        ("ReplayBody", "since", ("-PT24H", "2026-01-31T00:00:00Z", None), ("PT24H", "-P", "now")),
        ("AdjustmentBody", "periodStart", ("2026-01-01", "2026-01-31T09:30:00Z"), ("January",)),
        ("AdjustmentBody", "delta", (-12.5, "-12.5"), ("", "1,5", None)),
        ("ApiKeyBody", "scopes", (["events:write"],), (["everything"], [], "admin")),
        ("IngestEvent", "quantity", (0, "0.1", 1e3), ("much", None, [])),
    ],
)
def test_a_field_is_described_as_it_is_read(
    name: str, field: str, good: tuple[Any, ...], bad: tuple[Any, ...]
) -> None:
    schema = {**SCHEMAS[name]["properties"][field], "components": {"schemas": SCHEMAS}}
    validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    assert [value for value in good if not validator.is_valid(value)] == []
    assert [value for value in bad if validator.is_valid(value)] == []


def test_documents_of_prices_have_the_fields_that_the_library_reads() -> None:
    fields = {name: set(schema.get("properties", ())) for name, schema in DOCUMENTS.items()}
    assert fields["PriceConfig"] == documents._PRICE_FIELDS
    assert fields["Tier"] == documents._TIER_FIELDS
    assert fields["ScenarioInputs"] == documents._INPUT_FIELDS
    assert fields["UsageItem"] == documents._ITEM_FIELDS
    assert fields["Commitment"] == documents._COMMITMENT_FIELDS
    assert fields["Credit"] == documents._CREDIT_FIELDS
    assert fields["ScenarioMetadata"] == scenarios._METADATA_FIELDS
    assert fields["Scenario"] == scenarios._SCENARIO_FIELDS
    assert fields["ScenarioExpected"] == scenarios._EXPECTED_FIELDS
    assert fields["ExpectedLine"] == scenarios._LINE_FIELDS
    assert fields["ExpectedPart"] == set(scenarios._PART_NUMBERS)
    tolerances = DOCUMENTS["ScenarioTolerances"]["anyOf"][1]["properties"]
    assert set(tolerances) == scenarios._TOLERANCE_FIELDS


@pytest.mark.parametrize(
    "price",
    [
        {"model": "flat", "currency": "usd", "unitPrice": "0.01"},
        {"model": "package", "currency": "USD", "unitPrice": 1, "packageSize": 10},
        {"model": "volume", "currency": "USD", "tiers": [{"upTo": None, "flatPrice": 1}]},
        {"model": "flat", "currency": "dollars", "unitPrice": 1},
        {"model": "flat", "currency": "USD", "unitPrice": -1},
        {"model": "steps", "currency": "USD"},
        {"model": "volume", "currency": "USD", "tiers": []},
        {"model": "flat", "currency": "USD", "unitPrice": 1, "maximunCharge": 5},
        {"currency": "USD", "unitPrice": 1},
    ],
)
def test_the_schema_and_the_library_take_the_same_prices(price: dict[str, Any]) -> None:
    try:
        read_price(price)
    except PricingError:
        assert not fits("PriceConfig", price)
    else:
        assert fits("PriceConfig", price)


@pytest.mark.parametrize(
    "more",
    [
        {"tolerances": 1},
        {"tolerances": "0.01", "metadata": {"version": "AAA", "name": None}},
        {"tolerances": {"total": 1, "relative": "0.1"}},
        {"expected": {"total": -1, "lineItems": [{"subtotal": 2, "tiers": [{"amount": 2}]}]}},
        {"tolerances": -1},
        {"tolerances": {"totals": 1}},
        {"expected": {"sum": 1}},
        {"metadata": {"author": "a"}},
        {"inputs": {"currency": "usd", "taxRate": "19"}},
        {"inputs": {"currency": ""}},
        {"inputs": {"credits": [{"amount": 1, "expiresAt": "2026-01-01T00:00:00Z"}]}},
        {"inputs": {"commitments": [{"amount": 1, "startDate": "2026-01-01"}]}},
    ],
)
def test_the_schema_and_the_library_take_the_same_scenarios(more: dict[str, Any]) -> None:
    price = {"model": "flat", "currency": "USD", "unitPrice": 1}
    items = [{"metric": "m", "quantity": 1, "priceConfig": price}]
    inputs = {"customerId": "c", "periodStart": "2026-01-01", "periodEnd": "2026-02-01"}
    inputs |= {"usageItems": items} | more.get("inputs", {})
    scenario = more | {"inputs": inputs}
    try:
        read_scenario(scenario)
    except PricingError:
        assert not fits("Scenario", scenario)
    else:
        assert fits("Scenario", scenario)


async def test_a_name_with_nul_is_refused_wherever_one_is_sent() -> None:
    async with served() as server:
        price = {"model": "flat", "currency": "USD", "unitPrice": 1}
        asked: list[tuple[str, dict[str, Any], str]] = [
            ("/v1/adjustments/approve", {"customerRef": "a\0"}, "customerRef"),
            ("/v1/adjustments/revert", {"metric": "\0"}, "metric"),
            ("/v1/pushes/flush", {"customerRef": "a\0b"}, "customerRef"),
            ("/v1/replay", {"metrics": ["a\0"]}, "metrics[0]"),
            (
                "/v1/simulations/backtest",
                {"customerRef": "\0", "since": "-P1D", "priceConfig": {"m": price}},
                "customerRef",
            ),
            ("/v1/mappings", {"metric": "a\0"}, "metric"),
        ]
        for path, body, field in asked:
            response = await server.client.post(path, json={"tenantId": "acme", **body})
            assert response.status_code == 400, path
            assert response.json()["errors"] == [
                {"field": field, "message": "must not hold the character U+0000"}
            ]


async def test_what_has_not_changed_is_not_sent_again() -> None:
    async with served(auth="required", admin_key=ADMIN_KEY) as server:
        for path in ("/openapi.json", "/docs", *(f"/docs/{name}" for name in ASSETS)):
            first = await server.client.get(path)
            tag = first.headers["etag"]
            assert first.status_code == 200
            assert first.content
            for given in (tag, f"W/{tag}", f'"other", {tag}', "*"):
                again = await server.client.get(path, headers={"if-none-match": given})
                assert (again.status_code, again.content) == (304, b""), (path, given)
                assert again.headers["etag"] == tag
            other = await server.client.get(path, headers={"if-none-match": '"other"'})
            assert other.content == first.content


def test_the_assets_that_are_described_are_those_that_are_served() -> None:
    assert PATH_PARAMETERS["asset"][1]["enum"] == list(ASSETS)
