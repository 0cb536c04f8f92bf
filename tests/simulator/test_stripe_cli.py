"""The official Stripe CLI as a client that nobody here wrote. It comes from npm; without npm the tests are skipped."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "@stripe/cli-linux-x64@1.52.0"
Stripe = Callable[..., Any]
"""Runs one command; what it printed as JSON."""


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command's path, installed for this module."""
    npm = shutil.which("npm")
    if npm is None or platform.machine() != "x86_64" or sys.platform != "linux":
        pytest.skip("the Stripe CLI comes from npm, for linux x64 only")
    directory = tmp_path_factory.mktemp("stripe-cli")
    command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(directory), PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not answer within two minutes")
    found = directory / "node_modules" / PACKAGE.rpartition("@")[0] / "bin" / "stripe"
    if done.returncode != 0 or not found.exists():
        pytest.skip(f"npm has no {PACKAGE} here: {done.stderr[-200:]}")
    return found


@pytest.fixture
def run(cli: Path, tmp_path: Path) -> Iterator[Stripe]:
    """Runs the CLI against a simulator that is a process of its own."""
    arguments = ["--port", "0", "--data-dir", str(tmp_path / "simulator")]
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli.main", "stripe-sim", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().split(" ready on ")[1].split(" ")[0]
    environ = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
        "STRIPE_CLI_TELEMETRY_OPTOUT": "1",
    }

    def run_cli(*words: str) -> Any:
        options = ["--api-key", "sk_test_cli_123456789", "--api-base", url, "--color", "off"]
        done = subprocess.run(
            [str(cli), *words, *options], capture_output=True, text=True, env=environ, timeout=60
        )
        text = done.stdout if "{" in done.stdout else done.stderr
        assert "{" in text, f"{words}: {done.stdout}{done.stderr}"
        return json.loads(text[text.index("{") : text.rindex("}") + 1])

    yield run_cli
    process.terminate()
    process.wait(10)
    process.stdout.close()


@pytest.mark.slow
def test_the_stripe_cli_makes_a_meter_sends_usage_and_reads_it_back(run: Stripe) -> None:
    meter = run(
        *("billing", "meters", "create", "--event-name", "calls", "--display-name", "Calls"),
        *("-d", "default_aggregation[formula]=sum"),
    )
    assert meter["object"] == "billing.meter"
    customer = run("customers", "create", "--name", "Ada")
    now_s = int(time.time())
    event = (
        *("post", "/v1/billing/meter_events", "-d", "event_name=calls", "-d", "identifier=cli"),
        *("-d", f"timestamp={now_s}", "-d", "payload[value]=42"),
        *("-d", f"payload[stripe_customer_id]={customer['id']}"),
    )
    assert run(*event)["identifier"] == "cli"
    again = run(*event)
    assert again["error"]["message"] == "An event already exists with identifier cli."
    minute_s = now_s // 60 * 60
    found = run(
        *("get", f"/v1/billing/meters/{meter['id']}/event_summaries"),
        *("-d", f"customer={customer['id']}", "-d", f"start_time={minute_s}"),
        *("-d", f"end_time={minute_s + 60}"),
    )
    assert found["data"][0]["aggregated_value"] == 42
    listed = run("billing", "meters", "list")
    assert [one["id"] for one in listed["data"]] == [meter["id"]]
    wrong = run("get", f"/v1/billing/meters/{meter['id']}x")
    assert wrong["error"]["code"] == "resource_missing"


@pytest.mark.slow
def test_the_stripe_cli_makes_a_price_and_a_subscription(run: Stripe) -> None:
    meter = run(
        *("billing", "meters", "create", "--event-name", "calls", "--display-name", "Calls"),
        *("-d", "default_aggregation[formula]=sum"),
    )
    customer = run("customers", "create", "--email", "ada@example.com")
    product = run("products", "create", "--name", "Calls")
    price = run(
        *("prices", "create", "--product", product["id"], "--currency", "usd"),
        *("--unit-amount", "10", "-d", "recurring[interval]=month"),
        *("-d", "recurring[usage_type]=metered", "-d", f"recurring[meter]={meter['id']}"),
    )
    made = run(
        *("subscriptions", "create", "--customer", customer["id"]),
        *("-d", f"items[0][price]={price['id']}"),
    )
    assert made["items"]["data"][0]["price"]["recurring"]["meter"] == meter["id"]
    found = run("subscriptions", "retrieve", made["id"])
    assert found["customer"] == customer["id"]
    canceled = run("subscriptions", "cancel", made["id"], "--confirm")
    assert canceled["status"] == "canceled"
