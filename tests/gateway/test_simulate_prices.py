"""`stripemeter simulate to-stripe` and `backtest`: files in, tables, CSV, JSON and pictures out; over a real server."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from engine import config
from engine.core.csv_cells import read_cell
from engine.pricing import read_price
from engine.pricing.stripe_prices import from_stripe
from gateway.cli.main import main
from gateway.simulator.wire import Request
from tests.helpers.priced import TIERED
from tests.helpers.server import STOCK, running
from tests.helpers.stripe_sim import Sim

ROOT = Path(__file__).parents[2]
NEW = "model: flat\ncurrency: USD\nunitPrice: 0.009\nminimumCharge: 5\n"


@pytest.fixture(autouse=True)
def _outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith((config.PREFIX, "STRIPE_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    return main(["simulate", *arguments])


def test_what_is_printed_creates_a_price_that_bills_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("plan.json").write_text(json.dumps(TIERED))
    sim = Sim()
    meter = str(sim.meter()["id"])
    assert run("to-stripe", "plan.json", "--product", "prod_x", "--meter", meter) == 0
    params = json.loads(capsys.readouterr().out)
    assert params["recurring"] == {"interval": "month", "usage_type": "metered", "meter": meter}
    product = str(sim.made("/v1/products", {"name": "calls"})["id"])
    assert run("to-stripe", "plan.json", "--product", product, "--meter", meter, "--curl") == 0
    text = capsys.readouterr().out
    assert text.startswith('curl https://api.stripe.com/v1/prices -u "$STRIPE_SECRET_KEY:" \\\n')
    fields = [
        line.strip().removesuffix(" \\").removeprefix("-d ").strip("'")
        for line in text.splitlines()[1:]
    ]
    made = sim.made("/v1/prices", dict(field.split("=", 1) for field in fields))
    shown = sim.send(
        Request(
            "GET",
            f"/v1/prices/{made['id']}",
            "expand[]=tiers",
            {"authorization": "Bearer sk_test_secret"},
        )
    ).json()
    as_graduated = TIERED | {"model": "graduated"}
    assert from_stripe(shown) == read_price(as_graduated)


def test_a_scenarios_prices_are_printed_by_metric(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("to-stripe", str(ROOT / "examples/pricing/api-calls.sim.yaml")) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed
    assert all(one["nickname"] == metric for metric, one in printed.items())
    assert run("to-stripe", str(ROOT / "examples/pricing/ai-tokens.sim.yaml")) == 1
    assert "embeddings: maximumCharge" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (NEW, "minimumCharge: has no counterpart"),
        ("model: flat\n", "currency: is missing"),
        ("calls:\n  model: flat\n  currency: USD\n", "calls.unitPrice"),
        ("[]", "must be a price configuration"),
        ("a: [", "price.yaml"),
    ],
)
def test_a_file_that_is_no_price_is_one_line(
    content: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("price.yaml").write_text(content)
    assert run("to-stripe", "price.yaml") == 1
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) == 1
    assert run("to-stripe", "none.yaml") == 1


@pytest.mark.slow
def test_without_matplotlib_a_picture_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("new.yaml").write_text(NEW)
    asked = ("backtest", "--price", "new.yaml", "--since", "2026-01-01", "--plot")
    assert run(*asked, "a.gif") == 1
    assert ".png or .svg" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(*asked, "a.png") == 1
    assert "pip install 'stripemeter[plots]'" in capsys.readouterr().err
    assert "matplotlib" not in {name.partition(".")[0] for name in _loaded_by_help()}


def _loaded_by_help() -> set[str]:
    """Modules of a process that only shows the command's help."""
    import subprocess

    program = "import sys; from gateway.cli.main import main; main(['simulate', 'backtest', '--help']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def fill(url: str) -> None:
    def put(path: str, body: dict[str, Any]) -> None:
        answer = httpx.post(url + path, json=body)
        assert answer.status_code < 300, answer.text

    price = {"model": "flat", "currency": "USD", "unitPrice": "0.01"}
    put("/v1/mappings", {"tenantId": "acme", "metric": "calls", "priceConfig": price})
    events = [
        {"tenantId": "acme", "metric": "calls", "customerRef": ref, "quantity": quantity}
        | {"idempotencyKey": ref}
        for ref, quantity in (("anna", 9000), ("=cmd|calc", 100), ("+bert", 2000), ("same", 5000))
    ]
    put("/v1/events/ingest", {"events": events})


@pytest.mark.lmdb
@pytest.mark.slow
def test_a_backtest_as_table_csv_json_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("new.yaml").write_text(NEW)
    with running(tmp_path / "data", module=STOCK) as server:
        url = f"http://127.0.0.1:{server.port}"
        fill(url)
        asked = ("backtest", "--price", "new.yaml", "--since", "-P400D", "--tenant", "acme")
        asked = (*asked, "--url", url)
        assert run(*asked) == 0
        table = capsys.readouterr().out
        for words in ("161.00", "149.00", "-12.00", "3 would pay less"):
            assert words in table
        assert "would pay more" in table
        assert run(*asked, "--csv", "-") == 0
        rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
        assert rows[0] == ["part", "name", "today", "candidate", "difference", "currency"]
        assert rows[-1][:2] == ["total", "TOTAL"]
        customers = {row[1]: row[2:5] for row in rows if row[0] == "customer"}
        assert customers["'=cmd|calc"] == ["1.00", "5.00", "4.00"]
        assert {read_cell(name) for name in customers} == {"anna", "=cmd|calc", "+bert", "same"}
        assert not any(name.startswith(("=", "+", "-", "@")) for name in customers)
        pictures = ("--plot", "a.png", "--csv", "all.csv", "--json")
        assert run(*asked, *pictures) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["total"]["today"] == 161.0
        png = Path("a.png").read_bytes()
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", png[16:24])
        assert (width, height) == (1650, 675)
        for name in ("a.svg", "b.svg"):
            assert run(*asked, "--plot", name) == 0
        assert ElementTree.parse("a.svg").getroot().tag.endswith("svg")
        assert len(Path("all.csv").read_text().splitlines()) == 1 + 1 + 4 + 1
        assert Path("a.svg").read_bytes() == Path("b.svg").read_bytes()
        capsys.readouterr()
        assert run(*asked, "--metric", "unmapped") == 0
        assert "nobody used unmapped" in capsys.readouterr().out
        assert run(*asked[:-2], "--url", "http://127.0.0.1:9") == 1
        assert "does not answer" in capsys.readouterr().err
