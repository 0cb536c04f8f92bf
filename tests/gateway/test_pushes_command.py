"""`stripemeter pushes` and `stripemeter stripe check`: a real server, its simulator, and a directory without a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine import config
from engine.actors.push_connections import NOT_ASKED
from gateway.cli import stripe
from gateway.cli.main import main
from gateway.push_shapes import ConnectionView
from gateway.pushes import PushList
from gateway.stripe_advice import advice
from tests.helpers.server import STOCK, Server, running

pytestmark = [pytest.mark.lmdb, pytest.mark.slow]
KEY = "sk_test_" + "4eC39HqLyjWDarjtT1zdp7dc"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith((config.PREFIX, "STRIPE_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@contextmanager
def serving(tmp_path: Path, **environ: str) -> Iterator[tuple[Server, str]]:
    environ.setdefault("STRIPEMETER_PUSH_INTERVAL_SECONDS", "0.02")
    with running(tmp_path / "data", module=STOCK, environment=environ) as server:
        yield server, f"http://127.0.0.1:{server.port}"


def put(url: str, method: str, path: str, body: dict[str, Any]) -> None:
    answer = httpx.request(method, url + path, json={"tenantId": "acme"} | body)
    assert answer.status_code < 300, answer.text


def fill(url: str) -> None:
    put(url, "POST", "/v1/mappings", {"metric": "calls", "meterEventName": "calls"})
    put(url, "PUT", "/v1/customers/anna", {"stripeCustomerId": "cus_anna"})
    event = {"tenantId": "acme", "metric": "calls", "customerRef": "anna", "quantity": 5}
    put(url, "POST", "/v1/events/ingest", {"events": [event | {"idempotencyKey": "1"}]})


def output(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_the_commands_show_flush_and_exit_by_what_waits_for_a_person(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path) as (server, url):
        fill(url)
        assert (
            main(["pushes", "flush", "--url", url, "--tenant", "acme", "--customer", "anna"]) == 0
        )
        assert output(capsys) == "1 of 1 targets are at Stripe in full\n"
        assert main(["pushes", "--url", url]) == 0
        text = output(capsys)
        assert "a Stripe simulator" in text
        assert "cus_anna (anna)" in text
        assert " 5 " in text
        assert (
            main(["pushes", "--url", url, "--tenant", "acme", "--customer", "anna", "--json"]) == 0
        )
        (one,) = json.loads(output(capsys))["pushes"]
        assert (one["pushed"], one["standing"]) == (5, "current")
        assert main(["stripe", "check", "--url", url]) == 0
        assert "a Stripe simulator is used, not Stripe" in output(capsys)
        event = {"tenantId": "acme", "metric": "calls", "customerRef": "bert", "quantity": 5}
        put(url, "POST", "/v1/events/ingest", {"events": [event | {"idempotencyKey": "2"}]})
        assert main(["pushes", "flush", "--url", url, "--timeout", "0"]) == 1
        assert main(["pushes", "--url", url]) == 1
        assert "goes nowhere: acme / bert / calls" in output(capsys)
        assert main(["stripe", "check", "--url", url, "--json"]) == 1
        assert "bert" in json.loads(output(capsys))["problems"][0]
        for arguments in (
            ["settle", one["id"], "delivered"],
            ["baseline", one["id"], "now"],
            ["carry-forward", one["id"], "credit"],
            ["resume", one["id"]],
        ):
            assert main(["pushes", *arguments, "--url", url]) == 1
            assert "stripemeter: " in capsys.readouterr().err, "one line says why"
        welcome = server.events("pushing")[0]["note"]
        assert "built-in Stripe simulator" in welcome


def said(account: str | None) -> PushList:
    """What a server answers before and after Stripe has said whose its key is."""
    error = NOT_ASKED if account is None else None
    key = ConnectionView(role="main", account=account, mode=None, is_simulator=False, error=error)
    return PushList(pushes=[], total=0, unroutable=[], unroutable_total=0, connections=[key])


def test_a_key_that_a_server_has_not_asked_about_yet_is_waited_for_and_not_called_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stripe, "ASK_AGAIN_SECONDS", 0.01)
    answers = [said(None), said(None), said("acct_1")]
    monkeypatch.setattr(stripe, "listed", lambda _client: answers.pop(0))
    assert main(["stripe", "check", "--url", "http://127.0.0.1:9"]) == 0
    assert "key of main: account acct_1" in output(capsys)
    monkeypatch.setattr(stripe, "ANSWER_SECONDS_MAX", 0.05)
    monkeypatch.setattr(stripe, "listed", lambda _client: said(None))
    assert main(["stripe", "check", "--url", "http://127.0.0.1:9"]) == 1
    text = output(capsys)
    assert "key of main: not known yet" in text
    assert "does not work" not in text


@contextmanager
def simulator(tmp_path: Path) -> Iterator[str]:
    """A simulator of its own; its URL."""
    arguments = ["stripe-sim", "--port", "0", "--data-dir", str(tmp_path / "sim")]
    arguments += ["--auto-create", "--meter", "calls"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "gateway.cli.main", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split(" is ready on ")[1].split(" ")[0]
    finally:
        process.terminate()
        process.communicate()


def test_a_directory_without_a_server_is_checked_with_its_keys_and_nothing_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, STRIPEMETER_SIMULATOR="off") as (server, url):
        fill(url)
        other = {"metric": "other", "meterEventName": "never_made"}
        put(url, "POST", "/v1/mappings", other)
        note = server.events("pushing")[0]["note"]
        assert note.startswith("nothing is pushed: set STRIPE_SECRET_KEY")
        assert main(["pushes", "--url", url]) == 1
        assert "nothing is pushed" in output(capsys)
    with simulator(tmp_path) as sim:
        monkeypatch.setenv("STRIPE_SECRET_KEY", KEY)
        monkeypatch.setenv("STRIPE_API_BASE", sim)
        arguments = ["stripe", "check", "--data-dir", str(tmp_path / "data")]
        assert main([*arguments, "--json"]) == 1
        text = output(capsys)
        assert KEY not in text
        found = json.loads(text)
        assert found["connections"][0]["account"].startswith("acct_sim")
        assert {one["metric"]: one["resolves"] for one in found["mappings"]} == {
            "calls": True,
            "other": False,
        }
        (due,) = found["pushes"]
        assert (due["due"], due["pushed"]) == (5, 0)
        assert len(found["problems"]) == 1
        assert "never_made" in found["problems"][0]
        assert main(arguments) == 1
        assert "5 to mtr_" in output(capsys)
        totals = httpx.get(f"{sim}/_sim/state").json()["accounts"][0]["totals"]
        assert totals == [], "a check sends no usage"


def test_without_log_or_key_the_check_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stripe", "check"]) == 0
    assert "there is no log" in output(capsys)


def test_the_doctor_says_what_pushing_lacks_and_how_to_mend_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STRIPE_SECRET_KEY", KEY)
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_" + KEY)
    assert main(["doctor", "--json"]) == 0
    text = output(capsys)
    assert KEY not in text
    (late,) = [note for note in json.loads(text)["notes"] if "carry-forward" in note]
    for part in ("48 h", "1 h", "72 h", "finalizationGraceHours", "STRIPEMETER_LATENESS_HOURS"):
        assert part in late
    monkeypatch.setenv("STRIPEMETER_LATENESS_HOURS", "1")
    assert main(["doctor", "--json"]) == 0
    assert "carry-forward" not in output(capsys)


def test_advice_names_what_is_missing() -> None:
    def words(**environ: str) -> str:
        return " ".join(advice(config.load(environ, None, {})))

    assert "nothing of it leaves" in words()
    assert "the keys that are set are not used" in words(
        STRIPEMETER_SIMULATOR="on", STRIPE_SECRET_KEY=KEY
    )
    assert words(STRIPEMETER_SIMULATOR="off").startswith("nothing is pushed")
    assert "only shadow mappings" in words(STRIPE_TEST_SECRET_KEY=KEY)
    assert "STRIPE_WEBHOOK_SECRET" in words(STRIPE_SECRET_KEY=KEY)
    assert "unencrypted to proxy.example" in words(
        STRIPE_SECRET_KEY=KEY, STRIPE_API_BASE="http://proxy.example:1"
    )
    assert "unencrypted" not in words(STRIPE_SECRET_KEY=KEY, STRIPE_API_BASE="http://127.0.0.1:1")
