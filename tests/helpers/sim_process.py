"""The Stripe simulator as a process of its own: it outlives the servers that a test kills.

It listens on a free port of 127.0.0.1 and keeps its state in a directory. It must not know what is tested.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from tests.helpers.server import ROOT, STOCK, server_environment


class SimProcess:
    """A running simulator."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self._directory = directory

    def settings(self) -> dict[str, str]:
        """What a server needs to push to it."""
        return {
            "STRIPE_SECRET_KEY": "sk_test_of_a_simulator",
            "STRIPE_API_BASE": self.url,
            "STRIPE_METER_EVENTS_BASE": self.url,
        }

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """One request to its control endpoint."""
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(
            urllib.request.Request(self.url + path, data), timeout=30
        ) as answer:
            return json.loads(answer.read())

    def totals(self) -> dict[str, int]:
        """Customer to everything that was aggregated, over all meters."""
        found: dict[str, int] = {}
        for account in self.call("/_sim/state")["accounts"]:
            for row in account["totals"]:
                found[row["customer"]] = found.get(row["customer"], 0) + int(row["value"])
        return found

    def sent(self) -> list[dict[str, str]]:
        """Every meter event that reached it, in order, by its journal: identifier, value, timestamp, customer."""
        found = []
        for path in sorted(self._directory.glob("journal-*.jsonl")):
            for line in path.read_text().splitlines():
                try:
                    _at, method, where, _query, _headers, body = json.loads(line)
                except ValueError:
                    continue
                if (method, where) == ("POST", "/v1/billing/meter_events"):
                    found.append({name: values[0] for name, values in parse_qs(body).items()})
        return found


@contextmanager
def sim_process(directory: Path, *, meters: tuple[str, ...] = ("calls",)) -> Iterator[SimProcess]:
    """A simulator that makes customers on first sight."""
    command = [sys.executable, "-m", STOCK, "stripe-sim", "--port", "0", "--auto-create"]
    command += ["--no-limits", "--data-dir", str(directory)]
    for meter in meters:
        command += ["--meter", meter]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=server_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    reader: threading.Thread | None = None
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if "http://127.0.0.1:" in line:
                port = line.split("http://127.0.0.1:")[1]
                number = "".join(char for char in port[:6] if char.isdigit())
                break
        else:
            raise AssertionError("".join(said))
        reader = threading.Thread(target=process.stdout.read, daemon=True)
        reader.start()
        yield SimProcess(f"http://127.0.0.1:{number}", directory)
    finally:
        process.terminate()
        process.wait()
        if reader is not None:
            reader.join()
        process.stdout.close()
