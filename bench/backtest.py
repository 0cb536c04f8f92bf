"""How long does a backtest over so many totals take, and how long does another request wait meanwhile?

    python bench/backtest.py [--counters 100000] [--repeat 3] [--directory DIR]

One server on a log of three events a counter, five metrics with tiered prices, and a candidate of another model for
each; asked over HTTP for all customers. `seconds` is the wall time of the answer; beside it a customer's current usage is
asked for every 5 ms, and `other_ms_max` is the longest that took.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from common import cpu_seconds, progress, publish, report
from preload import TENANT, Content, preload
from server import Server

METRICS = 5
EVENTS_PER_COUNTER = 3
TIERS = [
    {"upTo": 10, "unitPrice": "0.01"},
    {"upTo": 500, "unitPrice": "0.008"},
    {"upTo": None, "unitPrice": "0.005"},
]
TODAY = {"model": "tiered", "currency": "USD", "tiers": TIERS}
CANDIDATE = {"model": "volume", "currency": "USD", "tiers": TIERS, "minimumCharge": 1}


def post(server: Server, path: str, body: dict[str, Any]) -> bytes:
    request = urllib.request.Request(
        server.url + path,
        json.dumps(body).encode(),
        {"content-type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer: bytes = response.read()
        return answer


class Neighbour(threading.Thread):
    """Asks for something else all the time, and remembers the longest wait."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server
        self._ended = threading.Event()
        self.ms_max = 0.0

    def run(self) -> None:
        """Until it is told to end."""
        path = f"/v1/usage/current?tenantId={TENANT}&customerRef=customer-1"
        while not self._ended.wait(0.005):
            began = time.perf_counter()
            self._server.get(path)
            self.ms_max = max(self.ms_max, (time.perf_counter() - began) * 1e3)

    def end(self) -> float:
        """The longest wait in milliseconds."""
        self._ended.set()
        self.join()
        return round(self.ms_max, 1)


def measure(server: Server, limit: int) -> dict[str, Any]:
    candidate = {f"metric-{number}": CANDIDATE for number in range(METRICS)}
    body = {"tenantId": TENANT, "since": "-P800D", "priceConfig": candidate, "limit": limit}
    neighbour = Neighbour(server)
    neighbour.start()
    cpu, began = cpu_seconds(server.pid), time.perf_counter()
    answer = post(server, "/v1/simulations/backtest", body)
    seconds = time.perf_counter() - began
    found = json.loads(answer)
    assert found["complete"]
    result = {
        "counters": found["counters"],
        "customers_listed": len(found["winners"]) + len(found["losers"]),
        "seconds": round(seconds, 2),
        "server_cpu_seconds": round(cpu_seconds(server.pid) - cpu, 2),
        "answer_bytes": len(answer),
        "other_ms_max": neighbour.end(),
    }
    progress(str(result))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--counters", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where to make the data, removed afterwards")
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-") as parent:
        directory = Path(parent) / "data"
        customers = options.counters // METRICS
        preload(directory, Content(options.counters * EVENTS_PER_COUNTER, customers, METRICS))
        with Server(directory, STRIPEMETER_SIMULATOR="off") as server:
            for number in range(METRICS):
                mapping = {"tenantId": TENANT, "metric": f"metric-{number}", "priceConfig": TODAY}
                post(server, "/v1/mappings", mapping)
            server.wait_until_idle()
            results = [measure(server, 100) for _ in range(options.repeat)]
            results.append(measure(server, 100_000))
    publish(report("backtest", results), options.to)


if __name__ == "__main__":
    main()
