"""`ops/parity_test_clock.py` proves parity at the simulator as it would at Stripe, and puts away what it made."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.sim_process import SimProcess, sim_process

ROOT = Path(__file__).parents[2]
KEY = "sk_test_of_a_simulator"
SCRIPT = ROOT / "ops" / "parity_test_clock.py"


def run(url: str | None, key: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STRIPE")}
    environment |= {"STRIPE_API_BASE": url} if url else {}
    environment |= {"STRIPE_TEST_SECRET_KEY": key} if key else {}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )


def left(simulator: SimProcess) -> dict[str, Any]:
    """What of all that was made is still in use."""
    (account,) = simulator.call("/_sim/state")["accounts"]
    return {
        "meters": [one["id"] for one in account["meters"] if one["status"] == "active"],
        "customers": [one["id"] for one in account["customers"] if not one.get("deleted")],
    }


@pytest.mark.slow
@pytest.mark.lmdb
def test_the_invoice_of_the_simulated_period_is_what_was_certified(tmp_path: Path) -> None:
    with sim_process(tmp_path / "stripe", meters=()) as simulator:
        done = run(simulator.url, KEY)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "certified, and verified from the raw log: 25000 units, $220.00" in done.stdout
        assert "invoiced by Stripe: 25000 units, $220.00" in done.stdout
        assert left(simulator) == {"meters": [], "customers": []}


@pytest.mark.slow
@pytest.mark.lmdb
def test_what_stripe_never_counts_is_no_parity_and_all_is_put_away(tmp_path: Path) -> None:
    with sim_process(tmp_path / "stripe", meters=()) as simulator:
        drop = {"kind": "drop", "endpoint": "POST /v1/billing/meter_events"}
        simulator.call("/_sim/faults", drop)
        done = run(simulator.url, KEY, "--wait", "3")
        assert done.returncode == 1
        assert "Stripe's summary holds less than was pushed" in done.stderr
        assert "every number agrees" not in done.stdout
        assert left(simulator) == {"meters": [], "customers": []}


@pytest.mark.parametrize("wrong", range(4))
def test_each_number_that_is_off_alone_is_named(wrong: int) -> None:
    differences = runpy.run_path(str(SCRIPT))["differences"]
    right = [Decimal(25_000), Decimal("220.00"), Decimal(25_000), Decimal("220.00")]
    assert differences(*right) == []
    right[wrong] += 1
    names = ("certified units", "certified dollars", "invoiced units", "invoiced dollars")
    (found,) = differences(*right)
    assert found.startswith(names[wrong])


def test_a_live_key_and_no_key_are_refused_before_anything_is_sent() -> None:
    for key in (None, "sk_live_secret", "rk_live_secret"):
        done = run("http://127.0.0.1:9", key)
        assert done.returncode == 2
        assert "STRIPE_TEST_SECRET_KEY" in done.stderr
        assert "secret" not in done.stderr.replace("SECRET", "")
