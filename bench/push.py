"""What does pushing cost ingest, and how many pushes a second does it reach?

    python bench/push.py [--targets 10000] [--seconds 10] [--rounds 5] [--directory DIR] [--skip-flood]
                         [--stripe-process off]

One server whose usage goes to the Stripe simulator in a process of its own, with 10,000 targets, each of them settled
before. *ingest beside pushes*: the same paced load (1,000 single events a second, then 20 batches of 1,000) for a metric
that is pushed, touching 500 targets a second, and for one that is not; latencies are taken from when each request
was due. *flood*: every target changes at once, with a push interval of one second: pushes per second until
Stripe has everything.

What is measured is the server; who loads it and who answers in Stripe's place stand on the other cores, and must not delay
each other, which real clients and the real Stripe would not: the simulator keeps its journal in memory where there is room for that
(/dev/shm), since its syncs would else be the server's disk's work. The generator has the first say there (SCHED_RR, as root; the
result says whether it could), the simulator the last (a niceness 10 above), and the server's process that speaks with
Stripe, which the kernel would place where there is room, is put there too. Each round has three parts, in turn:
`alone`: the metric that is not pushed; `control`: the same, while somebody else sends the simulator as many requests by the same
driver: what the machine itself costs; `pushed`. `p99_ratio` is pushed to alone, `p99_ratio_to_control` pushed to control; each
is the median of the rounds' own ratios, and `pooled` the ratio of the quantiles of all rounds together. The processor time of
a push is what the server took more in `pushed` than in `alone`, and all that its other process took.
"""

from __future__ import annotations

import argparse
import json
import os
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

import trio
from common import ROOT, cpu_seconds, generator_cores, niceness, pin_to, progress, publish, report
from server import Server

from engine.core.billing import PushRequest
from engine.drivers.billing import StripeBilling, api_version

TENANT: Final = "acme"
CONNECTIONS: Final = 32
TOUCHED_PER_SECOND: Final = 500
SINGLES_PER_SECOND: Final = 1000
BATCHES_PER_SECOND: Final = 20
BATCH: Final = 1000
SETTLE_SECONDS_MAX: Final = 600
RECEIVE_BYTES: Final = 1 << 18
KEY: Final = "sk_test_of_a_simulator"
SIMULATOR_NICENESS: Final = 10
"""More than everybody else's."""
SENDER_NICENESS: Final = 5
"""As the server's own process has it (engine.drivers.sender)."""
STAND_IN_AT_ONCE: Final = 32
KINDS: Final = ("alone", "control", "pushed")


def lowered(by: int) -> None:
    """Between fork and exec: on the generators' cores, and after everybody else there."""
    pin_to(generator_cores())
    os.setpriority(os.PRIO_PROCESS, 0, min(19, niceness() + by))
    autogroup = Path("/proc/self/autogroup")
    if niceness() and autogroup.exists():
        autogroup.write_text(str(min(19, niceness() + by)))


def take_precedence() -> str:
    """Make this process the first on the generators' cores; how that was done."""
    os.sched_setaffinity(0, generator_cores())
    sys.setswitchinterval(0.0005)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        return "as everybody"
    return "SCHED_RR"


def children_of(pid: int) -> list[int]:
    """Processes that a process started and that are still there."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(each) for each in (task / "children").read_text().split()]
    return found


class Simulator:
    """The Stripe simulator in a process of its own, on the generators' core, on a disk of its own if there is one."""

    def __init__(self) -> None:
        in_memory = Path("/dev/shm")
        self._parent = tempfile.TemporaryDirectory(
            dir=in_memory if in_memory.is_dir() else None, prefix="bench-"
        )
        self._directory = Path(self._parent.name) / "stripe"
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
            "--meter",
            "control",
        ]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            preexec_fn=lambda: lowered(SIMULATOR_NICENESS),  # noqa: PLW1509
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
        self._parent.cleanup()

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


class StandIn:
    """Somebody else who sends the simulator so many requests a second, by the same driver, as long as the block lasts."""

    def __init__(self, simulator: Simulator, per_second: int) -> None:
        self._command = [sys.executable, __file__, "--stand-in", simulator.url, str(per_second)]

    def __enter__(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: lowered(SENDER_NICENESS),  # noqa: PLW1509
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError("the stand-in did not start")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


async def stand_in(url: str, per_second: int) -> None:
    """Send that many meter events a second until killed."""
    sent = 0
    run = time.time_ns()

    async def send(billing: StripeBilling) -> None:
        nonlocal sent
        while True:
            number, sent = sent, sent + 1
            await trio.sleep_until(began + number / per_second)
            request = PushRequest(
                driver="meter",
                identifier=f"control-{run}-{number}",
                value="1",
                timestamp_s=int(time.time()) // 60 * 60,
                api_version=api_version("meter"),
                event_name="control",
                customer=f"cus_{number % 500:06d}",
            )
            await billing.send([request], [0])

    async with StripeBilling(KEY, api_base=url, meter_events_base=url) as billing:
        await billing.prove()
        print("ready", flush=True)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(STAND_IN_AT_ONCE):
                nursery.start_soon(send, billing)


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


class Spent:
    """Processor seconds of the server's process and of the one that speaks with Stripe, since it was made."""

    def __init__(self, server: Server) -> None:
        self._began = {pid: cpu_seconds(pid) for pid in (server.pid, *children_of(server.pid))}
        self._server = server.pid

    def seconds(self) -> tuple[float, float]:
        """(the server's, its other process's)."""
        spent = {pid: cpu_seconds(pid) - began for pid, began in self._began.items()}
        own = spent.pop(self._server)
        return own, sum(spent.values())


def flood(server: Server, targets: int, run: str) -> dict[str, Any]:
    """Every target changes at once: pushes per second until most are there."""
    at_start, spent = delivered(server), Spent(server)
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
    own, other = (each / targets * 1e6 for each in spent.seconds())
    progress(
        f"{run}: {targets} pushes in {seconds:.1f} s, {targets / seconds:.0f}/s, {own:.0f} + {other:.0f} us CPU each"
    )
    return {
        "what": run,
        "targets": targets,
        "pushes_per_second": round(targets / seconds),
        "cpu_us_per_push": round(own),
        "cpu_us_per_push_other_process": round(other),
    }


def beside(
    server: Server,
    simulator: Simulator,
    options: argparse.Namespace,
    *,
    per_second: int,
    batch: int,
) -> dict[str, Any]:
    """The same load: not pushed, not pushed beside somebody who pushes as much, pushed."""
    latencies: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    cpu: dict[str, list[float]] = {kind: [] for kind in KINDS}
    other, pushes = [], []
    for number in range(options.rounds):
        for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
            metric = "pushed" if kind == "pushed" else "alone"
            run = f"{per_second}-{number}-{kind}-{time.time_ns()}"
            load = Load(server, metric, options.targets, run)
            before, spent = delivered(server), Spent(server)
            if kind == "control":
                with StandIn(simulator, TOUCHED_PER_SECOND):
                    load.run(per_second, batch, options.seconds)
            else:
                load.run(per_second, batch, options.seconds)
            settle(server)
            own, others = spent.seconds()
            latencies[kind].append(load.latencies_ms)
            cpu[kind].append(own)
            if kind == "pushed":
                pushes.append(delivered(server) - before)
                other.append(others)
    p99 = {kind: [quantile(each, 0.99) for each in latencies[kind]] for kind in KINDS}
    pooled = {
        kind: quantile([ms for each in latencies[kind] for ms in each], 0.99) for kind in KINDS
    }
    ratios = {
        kind: [round(mine / its, 2) for mine, its in zip(p99["pushed"], p99[kind], strict=True)]
        for kind in ("alone", "control")
    }
    more = [mine - its for mine, its in zip(cpu["pushed"], cpu["alone"], strict=True)]
    result = {
        "what": "ingest beside pushes",
        "requests_per_second": per_second,
        "batch": batch,
        "pushes_per_second": round(median(pushes) / options.seconds),
        **{f"p99_ms_{kind}": round(median(p99[kind]), 2) for kind in KINDS},
        "p99_ratio": median(ratios["alone"]),
        "p99_ratio_to_control": median(ratios["control"]),
        "pooled_p99_ratio": round(pooled["pushed"] / pooled["alone"], 2),
        "pooled_p99_ratio_to_control": round(pooled["pushed"] / pooled["control"], 2),
        "ratios": ratios["alone"],
        "ratios_to_control": ratios["control"],
        "cpu_us_per_push": round(sum(more) / sum(pushes) * 1e6),
        "cpu_us_per_push_other_process": round(sum(other) / sum(pushes) * 1e6),
    }
    progress(str(result))
    return result


def how(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, for the result."""
    return {
        "seconds": options.seconds,
        "rounds": options.rounds,
        "stripe_process": options.stripe_process,
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
    parser.add_argument(
        "--skip-flood", action="store_true", help="targets are made, nothing said of it"
    )
    parser.add_argument("--stripe-process", default="auto", help="STRIPEMETER_STRIPE_PROCESS")
    parser.add_argument("--stand-in", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stand_in:
        trio.run(stand_in, options.stand_in[0], int(options.stand_in[1]))
        return
    with (
        tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-") as parent,
        Simulator() as simulator,
        Server(
            Path(parent) / "data",
            STRIPE_SECRET_KEY=KEY,
            STRIPE_API_BASE=simulator.url,
            STRIPE_METER_EVENTS_BASE=simulator.url,
            STRIPEMETER_PUSH_INTERVAL_SECONDS="1",
            STRIPEMETER_STRIPE_PROCESS=options.stripe_process,
        ) as server,
    ):
        for child in children_of(server.pid):
            os.sched_setaffinity(child, generator_cores())
        simulator.post("/_sim/ensure", {"customers": [], "meters": ["pushed", "control"]})
        post(
            server,
            "/v1/mappings",
            {"tenantId": TENANT, "metric": "pushed", "meterEventName": "pushed"},
        )
        results = [flood(server, options.targets, "first pushes, a baseline read before each")]
        if not options.skip_flood:
            results.append(flood(server, options.targets, "pushes to settled targets"))
        settle(server)
        generator = take_precedence()
        for per_second, batch in ((SINGLES_PER_SECOND, 1), (BATCHES_PER_SECOND, BATCH)):
            results.append(beside(server, simulator, options, per_second=per_second, batch=batch))
    publish(
        report("push", results, targets=options.targets, generator=generator, **how(options)),
        options.output,
    )


if __name__ == "__main__":
    main()
