"""Explaining what a total costs, over HTTP and on the terminal: line, tiers, days, positions; everything sums."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.cli.main import main
from tests.helpers.priced import TENANT, TIERED, ask, mapped, proven, set_time, stripe_price, use
from tests.helpers.served import Served, served
from tests.helpers.server import STOCK, running

OF = TENANT | {"customerRef": "anna", "metric": "calls", "periodStart": "2026-02-01"}


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with served(stripe={}) as running_server:
        await proven(running_server)
        yield running_server


async def explained(server: Served, **more: Any) -> Any:
    return await ask(server, "GET", "/v1/usage/explain", params=OF | more)


def check(line: dict[str, Any]) -> None:
    """Parts sum to the line, shares to their part, to the last digit."""
    parts = line["parts"]
    assert sum(Decimal(str(part["amount"])) for part in parts) == Decimal(str(line["total"]))
    for part in parts:
        if part["kind"] == "units" and part["shares"]:
            shares = part["shares"]
            assert sum(Decimal(str(one["amount"])) for one in shares) == Decimal(
                str(part["amount"])
            )
        elif part["kind"] != "units":
            assert part["shares"] == []


async def test_a_line_is_taken_apart_down_to_days_and_positions(server: Served) -> None:
    await mapped(server, priceConfig=TIERED)
    for day, units in ((1, 6_000), (2, 7_000), (3, 12_000)):
        set_time(server, f"2026-02-{day:02d}T10:00:00Z")
        await use(server, str(day), units)
    found = await explained(server)
    line = found["line"]
    assert (line["total"], line["currency"], found["lineReason"]) == (220.0, "USD", None)
    first, second = line["parts"]
    assert (first["from"], first["upTo"], first["amount"]) == (0, 10_000, 100)
    assert [(one["source"]["id"], one["quantity"], one["amount"]) for one in first["shares"]] == [
        ("2026-02-01", 6_000, 60),
        ("2026-02-02", 4_000, 40),
    ]
    assert [(one["source"]["id"], one["quantity"]) for one in second["shares"]] == [
        ("2026-02-02", 3_000),
        ("2026-02-03", 12_000),
    ]
    days = {day["day"]: day["firstPosition"] for day in found["days"]}
    for one in (*first["shares"], *second["shares"]):
        assert one["source"]["firstPosition"] == days[one["source"]["id"]]
    check(line)


@pytest.mark.parametrize("seed", range(5))
async def test_parts_and_shares_sum_exactly_whatever_was_corrected(
    server: Served, seed: int
) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    own = stripe_price(
        server,
        unit_amount_decimal="0.737",
        **(
            {"transform_quantity[divide_by]": 7, "transform_quantity[round]": "up"}
            if seed % 2
            else {}
        ),
    )
    price = {"priceId": own, "stripeScale": "0.37"} if seed else {"priceConfig": TIERED}
    await mapped(server, **price)
    for day in range(1, 8):
        set_time(server, f"2026-02-{day:02d}T10:00:00Z")
        for number in range(3):
            quantity = f"{rng.randint(0, 5000)}.{rng.randint(0, 999_999):06d}"
            await use(server, f"{day}-{number}", quantity)
    await use(server, "late", "77.5", ts="2026-02-01T01:00:00Z")
    body = OF | {"reason": "credit"}
    for delta in ("-1234.25", "17"):
        await ask(server, "POST", "/v1/adjustments", 201, json=body | {"delta": delta})
    await ask(server, "POST", "/v1/adjustments/approve", json=TENANT)
    found = await explained(server, numbers="string")
    check(found["line"])
    kinds = {share["source"]["kind"] for part in found["line"]["parts"] for share in part["shares"]}
    assert kinds == {"day", "late", "adjustment"}
    projection = await ask(
        server, "POST", "/v1/usage/projection", json=TENANT | {"customerRef": "anna"}
    )
    assert Decimal(found["line"]["total"]) == Decimal(str(projection["total"]))


async def test_of_a_max_all_of_it_is_the_event_that_won(server: Served) -> None:
    await mapped(server, aggregation="max", priceConfig=TIERED)
    set_time(server, "2026-02-01T10:00:00Z")
    for key, units in (("1", 3), ("2", 9), ("3", 5)):
        await use(server, key, units)
    found = await explained(server)
    (part, *_) = found["line"]["parts"]
    (share,) = part["shares"]
    assert (share["source"]["kind"], share["quantity"]) == ("event", 9)
    assert share["source"]["firstPosition"] == found["decidedBy"]["position"]
    check(found["line"])


async def test_without_a_price_or_use_the_answer_says_so(server: Served) -> None:
    set_time(server, "2026-02-01T10:00:00Z")
    await use(server, "1", 5)
    found = await explained(server)
    assert found["line"] is None
    assert "no active mapping" in found["lineReason"]
    await mapped(server, priceConfig=TIERED)
    (nothing,) = (await explained(server, customerRef="nobody"))["line"]["parts"]
    assert (nothing["amount"], nothing["shares"]) == (0, [])


@pytest.mark.lmdb
@pytest.mark.slow
def test_the_command_shows_the_line_and_a_stopped_directory_says_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with running(tmp_path / "data", module=STOCK) as server:
        url = f"http://127.0.0.1:{server.port}"
        for path, body in (
            ("/v1/mappings", TENANT | {"metric": "calls", "priceConfig": TIERED}),
            (
                "/v1/events/ingest",
                {
                    "events": [
                        TENANT
                        | {"metric": "calls", "customerRef": "anna", "quantity": 25_000}
                        | {"idempotencyKey": "1"}
                    ]
                },
            ),
        ):
            assert httpx.post(url + path, json=body).status_code < 300
        usage = httpx.get(f"{url}/v1/usage/current", params=TENANT | {"customerRef": "anna"})
        month = usage.json()["period"]["start"][:7]
        asked = ["explain", "acme", "anna", "calls", month]
        assert main([*asked, "--url", url]) == 0
        shown = capsys.readouterr().out
        for words in ("220.00", "in the tier above 0 to 10000", "priceConfig", "day "):
            assert words in shown
    assert main([*asked, "--data-dir", "data", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["line"] is None
    assert "running server" in found["lineReason"]
