"""What does pushing cost ingest, and how many pushes a second does it reach?

    python bench/push.py [--targets 10000] [--seconds 10] [--rounds 5] [--directory DIR]

One server whose usage goes to the Stripe simulator in a process of its own, with 10,000 targets, each of them settled
before. *ingest beside pushes*: the same paced load (1,000 single events a second, then 20 batches of 1,000) in turn for
a metric that is pushed, touching 500 targets a second, and for one that is not; latencies are taken from when each
request was due. *flood*: every target changes at once, with a push interval of one second: pushes per second until
Stripe has everything. At the end the simulator's totals are held against what was sent.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any, Final

from common import ROOT, cpu_seconds, generator_cores, pin_to, progress, publish, report
from server import Server

TENANT: Final = "acme"
CONNECTIONS: Final = 32
TOUCHED_PER_SECOND: Final = 500
SINGLES_PER_SECOND: Final = 1000
BATCHES_PER_SECOND: Final = 20
BATCH: Final = 1000
SETTLE_SECONDS_MAX: Final = 600
RECEIVE_BYTES: Final = 1 << 18


class Simulator:
    """The Stripe simulator in a process of its own, on the generators' core."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.url = ""

    def __enter__(self) -> Simulator:
        command = [sys.executable, "-m", "gateway.cli.main", "stripe-sim", "--port", "0"]
        command += [
            "--data-dir",
            str(self._directory),
            "--auto-create",
            "--no-limits",
            "--meter",
            "pushed",
        ]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            preexec_fn=lambda: pin_to(generator_cores()),  # noqa: PLW1509
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "http://127.0.0.1:" in line:
                self.url = "http://127.0.0.1:" + line.split("http://127.0.0.1:")[1].split("/")[
                    0
                ].split()[0].strip('",.')
                break
        else:
            raise RuntimeError("the simulator did not start")
        threading.Thread(target=self._process.stdout.read, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def post(self, path: str, body: dict[str, Any]) -> None:
        """One request to its control endpoint."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode())
        urllib.request.urlopen(request, timeout=30).read()


def post(server: Server, path: str, body: dict[str, Any]) -> Any:
    """The JSON of an answer. Raises urllib.error.URLError for a refusal."""
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def metrics(server: Server) -> dict[str, float]:
    """The server's counters of pushes, by result."""
    found = {}
    for line in server.get("/metrics").decode().splitlines():
        if line.startswith("stripe_push_total{"):
            name, value = line.rsplit(" ", 1)
            found[name.split('result="')[1].split('"')[0]] = float(value)
    return found


def delivered(server: Server) -> float:
    """Pushes that Stripe took so far."""
    return metrics(server).get("delivered", 0.0)


class Load:
    """Paced requests over a few connections; a latency counts from when its request was due."""

    def __init__(self, server: Server, metric: str, targets: int, run: str) -> None:
        self._host = server.url.removeprefix("http://")
        self._metric, self._targets, self._run = metric, targets, run
        self.latencies_ms: list[float] = []
        self.sent = 0
        self._lock = threading.Lock()

    def _body(self, number: int, batch: int, per_second: int) -> bytes:
        share = max(1, per_second // TOUCHED_PER_SECOND)
        events = [
            {
                "tenantId": TENANT,
                "metric": self._metric,
                "customerRef": f"cus_{(number * batch + n) // share % self._targets:06d}",
                "quantity": 1,
                "idempotencyKey": f"{self._run}-{number}-{n}",
            }
            for n in range(batch)
        ]
        body = json.dumps({"events": events}).encode()
        head = f"POST /v1/events/ingest HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def run(self, per_second: int, batch: int, seconds: float) -> None:
        """So many requests a second, for so long."""
        total = int(per_second * seconds)
        bodies = [self._body(number, batch, per_second * batch) for number in range(total)]
        began = time.perf_counter() + 0.2
        threads = [
            threading.Thread(target=self._send, args=(bodies, began, per_second, first))
            for first in range(CONNECTIONS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.sent += total * batch

    def _send(self, requests: list[bytes], began: float, per_second: int, first: int) -> None:
        host, _, port = self._host.partition(":")
        own = []
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number in range(first, len(requests), CONNECTIONS):
                due = began + number / per_second
                if (wait := due - time.perf_counter()) > 0:
                    time.sleep(wait)
                connection.sendall(requests[number])
                said = connection.recv(RECEIVE_BYTES)
                while len(said) < ended(said):
                    said += connection.recv(RECEIVE_BYTES)
                own.append((time.perf_counter() - due) * 1e3)
                if not said.startswith(b"HTTP/1.1 200") or b'"status":"accepted"' not in said:
                    raise RuntimeError(said[:300])
        with self._lock:
            self.latencies_ms += own


def ended(said: bytes) -> int:
    """How many bytes the whole answer has, as far as its head says."""
    head, found, _ = said.partition(b"\r\n\r\n")
    if not found:
        return len(said) + 1
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    return len(head) + 4 + length


def quantile(values: list[float], share: float) -> float:
    """A quantile by rank."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def settle(server: Server) -> float:
    """Wait until Stripe has everything; the seconds it took."""
    began = time.perf_counter()
    before = -1.0
    while time.perf_counter() - began < SETTLE_SECONDS_MAX:
        now = delivered(server)
        if now == before:
            said = post(server, "/v1/pushes/flush", {"tenantId": TENANT, "timeoutSeconds": 5})
            if said.get("complete", True):
                return time.perf_counter() - began
        before = now
        time.sleep(2)
    raise RuntimeError("Stripe does not get everything")


def flood(server: Server, targets: int, run: str) -> dict[str, Any]:
    """Every target changes at once: pushes per second until most are there."""
    load = Load(server, "pushed", targets, run)
    at_start, cpu = delivered(server), cpu_seconds(server.pid)
    events = [
        {
            "tenantId": TENANT,
            "metric": "pushed",
            "customerRef": f"cus_{n:06d}",
            "quantity": 1,
            "idempotencyKey": f"{run}-flood-{n}",
        }
        for n in range(targets)
    ]
    began = time.perf_counter()
    for start in range(0, targets, BATCH):
        post(server, "/v1/events/ingest", {"events": events[start : start + BATCH]})
    while (done := delivered(server) - at_start) < targets:
        if time.perf_counter() - began > SETTLE_SECONDS_MAX:
            raise RuntimeError(f"{done} of {targets}")
        time.sleep(0.1)
    seconds = time.perf_counter() - began
    spent = cpu_seconds(server.pid) - cpu
    del load
    progress(
        f"{run}: {targets} pushes in {seconds:.1f} s, {targets / seconds:.0f}/s, {spent / targets * 1e6:.0f} us CPU each"
    )
    return {
        "what": run,
        "targets": targets,
        "pushes_per_second": round(targets / seconds),
        "cpu_us_per_push": round(spent / targets * 1e6),
    }


def beside(
    server: Server, targets: int, seconds: float, rounds: int, *, per_second: int, batch: int
) -> dict[str, Any]:
    """The same load, in turn pushed and not."""
    p99: dict[str, list[float]] = {"alone": [], "pushed": []}
    pushes = []
    for number in range(rounds):
        for metric in ("alone", "pushed"):
            load = Load(server, metric, targets, f"{per_second}-{number}-{metric}-{time.time_ns()}")
            before = delivered(server)
            load.run(per_second, batch, seconds)
            p99[metric].append(quantile(load.latencies_ms, 0.99))
            if metric == "pushed":
                pushes.append((delivered(server) - before) / seconds)
            settle(server)
    ratios = [pushed / alone for pushed, alone in zip(p99["pushed"], p99["alone"], strict=True)]
    progress(
        f"{per_second}/s of {batch}: p99 {median(p99['alone']):.1f} ms alone, {median(p99['pushed']):.1f} pushed at "
        f"{median(pushes):.0f}/s: ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    return {
        "what": "ingest beside pushes",
        "requests_per_second": per_second,
        "batch": batch,
        "pushes_per_second": round(median(pushes)),
        "p99_ms_alone": round(median(p99["alone"]), 2),
        "p99_ms_pushed": round(median(p99["pushed"]), 2),
        "p99_ratio": round(median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--targets", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where to make the data, removed afterwards")
    parser.add_argument("--output", type=Path, help="the result file")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-") as parent,
        Simulator(Path(parent) / "stripe") as simulator,
        Server(
            Path(parent) / "data",
            STRIPE_SECRET_KEY="sk_test_of_a_simulator",
            STRIPE_API_BASE=simulator.url,
            STRIPE_METER_EVENTS_BASE=simulator.url,
            STRIPEMETER_PUSH_INTERVAL_SECONDS="1",
        ) as server,
    ):
        simulator.post("/_sim/ensure", {"customers": [], "meters": ["pushed"]})
        post(
            server,
            "/v1/mappings",
            {"tenantId": TENANT, "metric": "pushed", "meterEventName": "pushed"},
        )
        results = [
            flood(server, options.targets, "first pushes, a baseline read before each"),
            flood(server, options.targets, "pushes to settled targets"),
        ]
        settle(server)
        for per_second, batch in ((SINGLES_PER_SECOND, 1), (BATCHES_PER_SECOND, BATCH)):
            results.append(
                beside(
                    server,
                    options.targets,
                    options.seconds,
                    options.rounds,
                    per_second=per_second,
                    batch=batch,
                )
            )
        settle(server)
    publish(report("push", results, targets=options.targets), options.output)


if __name__ == "__main__":
    main()
