"""`stripemeter send` through a proxy that loses answers, resets, cuts and refuses: every event counts once, exactly."""

from __future__ import annotations

import json
import os
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from engine import config
from gateway.cli.main import main
from tests.helpers.sdk_place import place

pytestmark = [pytest.mark.slow, pytest.mark.lmdb]
SEED = int(os.environ.get("SEND_STORM_SEED", "20261126"))
EVENTS = 300
CUSTOMERS = 3


def test_a_storm_on_the_way_changes_no_total(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sys.stderr.write(f"SEND_STORM_SEED={SEED}\n")
    for name in list(os.environ):
        if name.startswith((config.PREFIX, "STRIPE_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    event = '{"metric":"calls","customerRef":"c%d","quantity":"0.1"}\n'
    lines = [event % (number % CUSTOMERS) for number in range(EVENTS)]
    Path("events.jsonl").write_text("".join(lines))
    # A small batch limit: requests are cut in halves on top of it.
    with place("STRIPEMETER_MAX_BATCH=40") as here:
        asked = ["send", "--file", "events.jsonl", "--key", "storm", "--tenant", "acme", "--json"]
        asked += ["--url", here.proxy, "--retry-for", "120"]
        for is_again in (False, True):
            here.fail([{"kind": "lose_answer"}, {"kind": "status", "status": 503}])
            here.storm(SEED + is_again, share=0.3)
            assert main(asked) == 0, f"SEED {SEED}"
            summary = json.loads(capsys.readouterr().out)
            assert (summary["events"], summary["failed"]) == (EVENTS, 0)
            if is_again:
                assert summary["duplicates"] == EVENTS, f"SEED {SEED}: other keys"
        totals = [Decimal(here.total("acme", f"c{one}", "calls")) for one in range(CUSTOMERS)]
        assert totals == [Decimal(10)] * CUSTOMERS, f"SEED {SEED}"
        keys = {key for request in here.seen() for key in request["keys"]}
    assert keys == {f"storm:{number + 1}" for number in range(EVENTS)}, "no try has another key"
