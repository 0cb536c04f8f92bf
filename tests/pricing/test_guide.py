"""docs/pricing.md is true: its programs run, its scenario passes, its tables are what is computed.

tests/docs/test_docs_run.py runs its commands.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import engine.pricing
from engine.pricing import InvoiceSimulator
from engine.pricing.prices import FIELDS_OF_MODEL, MODELS
from gateway.cli.main import main

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "pricing.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
FONTS = [
    {"upTo": 5, "unitPrice": 7},
    {"upTo": 10, "unitPrice": "6.5"},
    {"upTo": None, "unitPrice": 6},
]


def total(usage: list[dict[str, Any]], **more: Any) -> str:
    inputs = {"customerId": "c", "periodStart": "2026-01-01", "periodEnd": "2026-02-01", **more}
    return str(InvoiceSimulator().simulate({**inputs, "usageItems": usage}).total)


def item(quantity: Any, **price: Any) -> dict[str, Any]:
    return {"metric": "units", "quantity": quantity, "priceConfig": {"currency": "USD", **price}}


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "python"])
def test_a_program_of_the_guide_runs_and_its_assertions_hold(text: str) -> None:
    assert "assert " in text
    exec(compile(text, "docs/pricing.md", "exec"), {})


def test_the_example_in_the_librarys_own_documentation_runs() -> None:
    assert engine.pricing.__doc__ is not None
    (program,) = re.findall(r"\n((?:    .*\n|\n)+)", engine.pricing.__doc__)
    lines = [line.removeprefix("    ") for line in program.splitlines()]
    assert any(line.startswith("assert ") for line in lines)
    exec(compile("\n".join(lines), "engine.pricing", "exec"), {})


def test_the_scenario_of_the_guide_is_as_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (text,) = [text for kind, text in BLOCKS if kind == "yaml"]
    path = tmp_path / "messages.sim.yaml"
    path.write_text(text)
    assert main(["simulate", "run", str(path), "--fail-on-diff"]) == 0
    assert "as expected, fields compared: 2" in " ".join(capsys.readouterr().out.split())


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading row."""
    table = GUIDE[GUIDE.index(heading) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def test_the_table_of_quantities_is_what_is_computed() -> None:
    table = rows("| quantity | `tiered` | `volume` |")
    assert len(table) == 6
    for quantity, tiered, volume in table:
        assert total([item(quantity, model="tiered", tiers=FONTS)]) == tiered
        assert total([item(quantity, model="volume", tiers=FONTS)]) == volume


def test_the_table_of_steps_is_what_is_computed() -> None:
    invoice = InvoiceSimulator().simulate(
        customer_id="c",
        period_start="2026-01-01",
        period_end="2026-02-01",
        usage_items=[item(100, model="flat", unitPrice=1)],
        commitments=[{"amount": 40, "start_date": "2026-01-01", "end_date": "2027-01-01"}],
        credits=[{"amount": 25, "reason": "x"}],
        tax_rate="8.5",
    )
    amounts = [
        invoice.subtotal,
        -invoice.commitments_applied,
        -invoice.credits_applied,
        invoice.tax,
        invoice.total,
    ]
    assert [row[1] for row in rows("| step | amount |")] == [str(amount) for amount in amounts]


def test_the_numbers_in_the_text_are_what_is_computed() -> None:
    assert "30 units at 0.0005 are 0.015, billed as 0.02" in GUIDE
    assert total([item(30, model="flat", unitPrice="0.0005")]) == "0.02"
    assert "12.00 x 1,382,400 / 2,678,400 = 6.19" in GUIDE
    seat = {**item(1, model="flat", unitPrice=12), "startDate": "2026-01-16"}
    assert total([seat]) == "6.19"


def test_the_table_of_models_names_every_model_and_field() -> None:
    table = {row[0].strip("`"): row[1] for row in rows("| model | needs | charge |")}
    assert list(table) == list(MODELS)
    for model, fields in FIELDS_OF_MODEL.items():
        assert all(f"`{field}`" in table[model] for field in fields) or "the same" in table[model]
