"""`make demo`: the story is true, it ends in time, leaves nothing behind, and does not end well when a number is off."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from decimal import Decimal
from io import StringIO
from pathlib import Path

import pytest

from gateway.demo import proof, troubles
from gateway.demo.reckoning import TIERS, Books, Row, cost, differences
from gateway.demo.story import STEPS, tell
from tests.helpers.server import in_time

ROOT = Path(__file__).parents[2]
STORY_SECONDS_MAX = 60
STUCK_SECONDS = 600
"""What is promised; half of it on a machine that does nothing else."""


@dataclass
class Told:
    """One run of the command."""

    directory: Path
    exit_code: int
    output: str
    seconds: float


def demo(directory: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gateway.cli.main", "demo", "--keep", str(directory)],
        cwd=directory.parent,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def arguments_of(process: Path) -> str:
    """Of a directory of /proc; empty when it is gone meanwhile."""
    try:
        return (process / "cmdline").read_text(errors="replace")
    except OSError:
        return ""


def is_running(directory: Path) -> bool:
    """Whether any process has the directory among its arguments."""
    return any(str(directory) in arguments_of(one) for one in Path("/proc").glob("[0-9]*"))


@pytest.mark.slow
@pytest.mark.lmdb
def test_the_story_ends_well_and_in_time_whatever_the_environment_says(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("STRIPEMETER_NO_SUCH=1\n")
    directory, begun = tmp_path / "story", time.monotonic()
    process = demo(
        directory,
        STRIPEMETER_PORT="no port",
        STRIPE_SECRET_KEY="sk_live_must_not_be_used",
        HTTP_PROXY="http://127.0.0.1:9",
        ALL_PROXY="http://127.0.0.1:9",
    )
    output, _ = process.communicate(timeout=STUCK_SECONDS)
    assert process.returncode == 0, output
    assert in_time(time.monotonic() - begun, STORY_SECONDS_MAX)
    assert f"{len(STEPS)}/{len(STEPS)}" in output
    assert "Every number agrees" in output
    assert "differs" not in output
    for cells in ("25,000 = $220.00", "60,000 = $470.00", "1,934 = $19.34"):
        assert cells in output, output
    assert "sk_live" not in (directory / "meter.log").read_text()
    assert not is_running(directory)

    certificate = json.loads((directory / "parity.json").read_text())
    assert certificate["verdict"] == "green"
    chains = {one["customerRef"]: one for one in certificate["chains"]}
    assert {name: one["total"] for name, one in chains.items()} == {
        "anna": "25000",
        "bert": "60000",
        "cora": "1934",
    }
    assert chains["anna"]["events"]["late"] == 1
    pushes = _pushes_that_stripe_was_sent(directory / "stripe")
    swallowed = [identifier for identifier, times in pushes.items() if times > 1]
    assert len(swallowed) >= 1, "the kill fell between a push and its answer"


def _pushes_that_stripe_was_sent(directory: Path) -> dict[str, int]:
    """Identifier to how often it arrived, by the simulator's own journal."""
    found: dict[str, int] = {}
    for path in directory.glob("journal-*.jsonl"):
        for identifier in re.findall(r"identifier=([0-9a-f]{8,})", path.read_text()):
            found[identifier] = found.get(identifier, 0) + 1
    return found


@pytest.mark.slow
@pytest.mark.lmdb
def test_a_number_that_is_off_in_the_end_is_named_and_nothing_is_called_right(
    tmp_path: Path,
) -> None:
    """The foreign usage is not taken back: Stripe would bill it, and the table says so."""
    steps = (
        troubles.begin,
        troubles.customers_use_it,
        troubles.somebody_else_bills_too,
        proof.parity_is_proven,
        proof.stripe_draws_its_invoices,
    )
    output = StringIO()
    wrong = "\n".join(tell(tmp_path, output, steps))
    assert "reconciliation is not green" in wrong
    assert "the certificate is red: Stripe holds more than was pushed" in wrong
    assert "cora: at_stripe is 1477 instead of 1000" in wrong
    assert "cora: invoiced is 1477 instead of 1000" in wrong
    assert "cora: charged is 14.77 instead of 10.00" in wrong
    assert "anna" not in wrong
    assert "Every number agrees" not in output.getvalue()
    assert "1,477 = $14.77" in output.getvalue()


@pytest.mark.slow
@pytest.mark.lmdb
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_ends_it_early_ends_all_that_it_started(
    tmp_path: Path, number: signal.Signals
) -> None:
    directory = tmp_path / "story"
    process = demo(directory)
    assert process.stdout is not None
    for line in process.stdout:
        if "2/12" in line:
            break
    assert is_running(directory)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode not in (0, -number)
    assert not is_running(directory)


def test_the_demo_refuses_a_directory_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("data")
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", "demo", "--keep", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def right(books: Books) -> list[Row]:
    rows = []
    for customer, used in books.used.items():
        units, dollars = [Decimal(used)] * 5, [cost(used)] * 3
        rows.append(Row(customer, used, *units, *dollars))
    return rows


@pytest.mark.parametrize("field", Row._fields)
def test_every_number_that_is_off_alone_is_a_difference(field: str) -> None:
    books = Books(("anna", "bert"))
    books.event("1", "anna", 25_000)
    books.event("2", "bert", 7)
    first, second = right(books)
    assert differences([first, second], books) == []
    value = "somebody" if field == "customer" else getattr(first, field) + 1
    found = differences([first._replace(**{field: value}), second], books)
    assert found, field
    assert all("bert" not in line for line in found)
    assert differences([first], books) == ["bert: nothing is known of it"]


def test_the_books_count_a_key_once_and_know_the_price() -> None:
    books = Books(("anna",))
    first = books.event("1", "anna", 10)
    assert books.event("1", "anna", 10) == first
    assert books.used == {"anna": 10}
    assert [str(cost(units)) for units in (0, 1, 10_000, 10_001, 25_000, 60_000)] == [
        "0.00",
        "0.01",
        "100.00",
        "100.01",
        "220.00",
        "470.00",
    ]
    assert len(TIERS) == 3


def test_the_demo_is_a_user_and_imports_nothing_of_the_meter() -> None:
    files = [*(ROOT / "gateway/demo").glob("*.py"), ROOT / "gateway/cli/demo.py"]
    assert len(files) > 5
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [one.name for one in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                is_ours = name.split(".")[0] in ("engine", "wal", "gateway")
                is_demo = name == "gateway.demo" or name.startswith("gateway.demo.")
                # What all commands share knows nothing of the meter's state either.
                is_demo |= path.parent.name == "cli" and name.startswith("gateway.terminal.")
                assert is_demo or not is_ours, f"{path.name} imports {name}"


def test_make_demo_is_what_these_tests_run() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:.*\n\t@\$\(BIN\)/stripemeter demo", makefile, re.MULTILINE)
