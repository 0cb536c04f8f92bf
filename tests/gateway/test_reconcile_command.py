"""`stripemeter reconcile` against a real server with its built-in simulator: table, files, exit codes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.main import main
from tests.helpers.server import Server, running

pytestmark = [pytest.mark.slow, pytest.mark.lmdb]
ENVIRONMENT = {
    "STRIPEMETER_SIMULATOR": "on",
    "STRIPEMETER_PUSH_INTERVAL_SECONDS": "0.05",
    "STRIPEMETER_RECONCILE_LAG_SECONDS": "0.3",
    "STRIPEMETER_RECONCILE_INTERVAL_SECONDS": "3600",
}


def post(server: Server, path: str, body: dict[str, Any]) -> int:
    """The status."""
    with server.client() as client:
        return client.request("POST", path, json.dumps(body).encode()).status


def used(server: Server, ref: str, quantity: int) -> None:
    event = {"tenantId": "acme", "metric": "calls", "customerRef": ref, "quantity": quantity}
    assert post(server, "/v1/events/ingest", {"events": [event | {"idempotencyKey": ref}]}) == 200


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    with running(tmp_path / "data", environment=ENVIRONMENT) as one:
        monkeypatch.setenv("STRIPEMETER_URL", f"http://127.0.0.1:{one.port}")
        body = {"tenantId": "acme", "metric": "calls", "meterEventName": "calls"}
        assert post(one, "/v1/mappings", body) == 201
        used(one, "cus_anna", 30)
        assert post(one, "/v1/pushes/flush", {"tenantId": "acme"}) == 200
        yield one


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """(exit code, stdout) of a command."""
    capsys.readouterr()
    code = main(["reconcile", "--tenant", "acme", *arguments])
    return code, capsys.readouterr().out


def test_what_agrees_is_exit_code_0_and_a_difference_1(
    server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, text = told(capsys, "--all")
    assert code == 0, text
    assert "everything agrees" in text
    assert "cus_anna" in text

    used(server, "nobody", 4)
    code, text = told(capsys)
    assert code == 1, text
    assert "mapping_missing" in text
    assert "1 differ" in text

    code, text = told(capsys, "--no-run", "--json")
    report: dict[str, Any] = json.loads(text)
    assert (code, report["summary"]["investigating"]) == (1, 1)
    (suggested,) = report["suggestedAdjustments"]
    code, text = told(capsys, "--no-run", "--csv", "-")
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[-1][0] == "TOTAL"
    told(capsys, "--no-run", "--csv", str(tmp_path / "report.csv"))
    assert (tmp_path / "report.csv").read_bytes().endswith(b"\r\n")

    code, text = told(capsys, "--accept", suggested["id"], "--reason", "a test customer")
    assert (code, "applied" in text) == (0, True)
    code, text = told(capsys)
    assert code == 0, text


def test_a_period_that_is_none_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "--period", "January")[0] == 2
