"""The place where SDKs are tried: a real server and the fault proxy, as `sdk/conformance/place.py` starts them.

Rules it keeps: whatever a test does, the place is gone afterwards; totals are asked of the server itself, past the
proxy, as decimal strings. It must not know the client under test.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONFORMANCE = ROOT / "sdk" / "conformance"
ANSWER_SECONDS_MAX = 30
STOP_SECONDS_MAX = 30


class Place:
    """A running place: `server`, `proxy`, `control` are URLs."""

    def __init__(self, line: dict[str, Any]) -> None:
        self.server: str = line["server"]
        self.proxy: str = line["proxy"]
        self.control: str = line["control"]
        self.pid: int = line["pid"]

    def fail(self, faults: Sequence[dict[str, Any]]) -> None:
        """Script these faults and forget what was seen."""
        ask(f"{self.control}/faults", "DELETE")
        ask(f"{self.control}/seen", "DELETE")
        ask(f"{self.control}/faults", "POST", list(faults))

    def storm(self, seed: int, share: float, kinds: Sequence[str] = ()) -> None:
        """Random faults from now on."""
        ask(
            f"{self.control}/faults/random",
            "POST",
            {"seed": seed, "share": share, "kinds": list(kinds)},
        )

    def calm(self) -> None:
        """No more faults."""
        ask(f"{self.control}/faults", "DELETE")

    def seen(self) -> list[dict[str, Any]]:
        """The ingest requests that arrived, in order."""
        found: list[dict[str, Any]] = ask(f"{self.control}/seen")
        return found

    def total(self, tenant_id: str, customer_ref: str, metric: str) -> str:
        """What the server counted, as a decimal string; "0" for nothing."""
        query = urllib.parse.urlencode(
            {"tenantId": tenant_id, "customerRef": customer_ref, "numbers": "string"}
        )
        for found in ask(f"{self.server}/v1/usage/current?{query}")["metrics"]:
            if found["name"] == metric:
                return str(found["current"])
        return "0"


def ask(url: str, method: str = "GET", body: Any = None) -> Any:
    """The JSON answer. Raises urllib.error.HTTPError for any status but 2xx."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS_MAX) as response:
        return json.loads(response.read())


@contextmanager
def place(*settings: str) -> Iterator[Place]:
    """A place of its own, with these settings of the server (`NAME=VALUE`)."""
    process = subprocess.Popen(
        [sys.executable, str(CONFORMANCE / "place.py"), *settings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, "the place did not start; its words are on standard error"
        yield Place(json.loads(line))
    finally:
        process.stdin.close()
        process.wait(STOP_SECONDS_MAX)
        process.stdout.close()
