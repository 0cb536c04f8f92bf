"""RECONCILIATION.md is true: its commands work when pasted, and it has a section for each cause."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from engine.core.finding_records import Cause
from tests.gateway.test_readme import BLOCK, Terminal

PAGE = (Path(__file__).parents[2] / "RECONCILIATION.md").read_text()
COMMANDS = [text for language, _, text in BLOCK.findall(PAGE) if language == "sh"]


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A server whose simulator has some usage."""
    made = Terminal(tmp_path_factory.mktemp("runbook"))
    made.environ |= {
        "STRIPEMETER_RECONCILE_LAG_SECONDS": "0.2",
        "STRIPEMETER_PUSH_INTERVAL_SECONDS": "0.05",
        "STRIPEMETER_URL": f"http://127.0.0.1:{made.port}",
    }
    made.serve()
    for path, body in (
        ("mappings", {"metric": "calls", "meterEventName": "calls"}),
        (
            "events/ingest",
            {
                "events": [
                    {"tenantId": "acme", "metric": "calls", "customerRef": "cus_anna"}
                    | {"quantity": 3, "idempotencyKey": "a"}
                ]
            },
        ),
        ("pushes/flush", {}),
    ):
        sent = json.dumps(body if "events" in body else {"tenantId": "acme"} | body)
        made.run(f"curl -sf --json '{sent}' http://127.0.0.1:3000/v1/{path}")
    yield made
    assert made.server is not None
    made.server.terminate()
    made.server.wait(20)


@pytest.mark.slow
@pytest.mark.lmdb
@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_of_the_runbook_works_when_it_is_pasted(terminal: Terminal, command: str) -> None:
    terminal.run(command)
    assert (terminal.directory / "report.csv").exists() or "report.csv" not in command


def test_the_runbook_has_a_section_for_each_cause_and_for_nothing_else() -> None:
    part = PAGE[PAGE.index("## By cause") : PAGE.index("## When it does not run")]
    assert sorted(re.findall(r"^### (\w+)$", part, re.MULTILINE)) == sorted(get_args(Cause))
    assert len(COMMANDS) >= 8
