"""How fast is what keeps a log: trimming, erasing, backing up, restoring, and what a running backup costs ingest?

    python bench/keeping.py [--events 1000000] [--rounds 3] [--pairs 7] [--seconds 4] [--directory DIR]

*trim*: all events are old; one retention pass archives them, writes a checkpoint and drops the bodies, asked for over
HTTP. *erase*: one customer of a thousand, who has events in every group, so that each group's texts are written anew.
*backup* and *restore*: the commands, copying and verifying all records, beside an idle server. *beside*: the same load
alone and while one backup follows the other, in turn; the ratio is the median of the pairs'. MB are of the log as a
backup has it, or (trim) of the bodies dropped. Each step's outcome is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from common import ROOT, generator_cores, pin_to, progress, publish, report
from ingest import Cell, measure
from preload import TENANT, Content, preload
from server import Server

CUSTOMERS: Final = 1000
METRICS: Final = 5
AGE_US: Final = 100 * 86_400_000_000
TRIM_DAYS: Final = 30
CELL: Final = Cell(100, 16, "unique")
POLL_SECONDS: Final = 0.01


def ask(server: Server, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON of an answer. Raises urllib.error.URLError for a refusal."""
    request = urllib.request.Request(
        server.url + path,
        None if body is None else json.dumps(body).encode(),
        {"content-type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.loads(response.read())


def command(*arguments: str) -> float:
    """Seconds of a command, beside the server's core. Raises CalledProcessError."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        preexec_fn=partial(pin_to, generator_cores()),
    )
    return time.perf_counter() - began


def line(what: str, events: int, sizes_bytes: list[int], seconds: list[float]) -> dict[str, Any]:
    """A step's result: the median of its rounds."""
    took = median(seconds)
    rate = events / took
    mb_per_second = median(sizes_bytes) / took / 1e6
    progress(f"{what}: {took:.2f} s, {rate:,.0f} events/s, {mb_per_second:.0f} MB/s")
    return {
        "what": what,
        "events": events,
        "seconds": round(took, 2),
        "events_per_second": round(rate),
        "mb_per_second": round(mb_per_second, 1),
        "every_seconds": [round(one, 3) for one in seconds],
    }


def trim(parent: Path, events: int, rounds: int) -> dict[str, Any]:
    """Each round on a log of its own."""
    seconds, sizes_bytes = [], []
    for number in range(rounds):
        directory = parent / f"old-{number}"
        preload(directory, Content(events, CUSTOMERS, METRICS, AGE_US))
        with Server(directory) as server:
            server.wait_until_idle()
            body = {"days": TRIM_DAYS, "dryRun": False}
            began = time.perf_counter()
            said = ask(server, "POST", "/v1/admin/retention", body)
            seconds.append(time.perf_counter() - began)
        if said["events"] != events:
            message = f"{said} of {events} events"
            raise RuntimeError(message)
        sizes_bytes.append(said["sizeBytes"])
        shutil.rmtree(directory)
    return line("trim", events, sizes_bytes, seconds)


def erase(server: Server, events: int, size_bytes: int, rounds: int) -> dict[str, Any]:
    """Each round another customer, from the request until nothing of the name is left."""
    seconds = []
    for number in range(rounds):
        began = time.perf_counter()
        said = ask(server, "DELETE", f"/v1/customers/customer-{number:07d}?tenantId={TENANT}")
        path = f"/v1/admin/erasures/{said['erasureId']}?tenantId={TENANT}"
        while ask(server, "GET", path)["status"] != "completed":
            time.sleep(POLL_SECONDS)
        seconds.append(time.perf_counter() - began)
    return line("erase a customer", events, [size_bytes], seconds)


def back_up(directory: Path, target: Path) -> tuple[float, int]:
    """(seconds, the copied log's bytes)."""
    seconds = command("backup", str(target), "--data-dir", str(directory))
    return seconds, (target / "log" / "data.mdb").stat().st_size


def copies(directory: Path, parent: Path, events: int, rounds: int) -> list[dict[str, Any]]:
    """Backups and what is restored from each."""
    backups, sizes_bytes, restores = [], [], []
    for number in range(rounds):
        target, restored = parent / f"backup-{number}", parent / f"restored-{number}"
        took, size_bytes = back_up(directory, target)
        backups.append(took)
        sizes_bytes.append(size_bytes)
        restores.append(command("restore", str(target), "--data-dir", str(restored)))
        shutil.rmtree(target)
        shutil.rmtree(restored)
    return [
        line("backup", events, sizes_bytes, backups),
        line("restore", events, sizes_bytes, restores),
    ]


class Backups(threading.Thread):
    """One backup after the other, until stopped."""

    def __init__(self, directory: Path, parent: Path) -> None:
        super().__init__()
        self._directory, self._parent = directory, parent
        self._stop_asked = threading.Event()
        self.failed: Exception | None = None
        self.made = 0

    def run(self) -> None:
        """Until stopped or one failed."""
        try:
            while not self._stop_asked.is_set():
                target = self._parent / "beside"
                back_up(self._directory, target)
                shutil.rmtree(target)
                self.made += 1
        except (OSError, subprocess.CalledProcessError) as error:
            self.failed = error

    def stop(self) -> None:
        """Wait for the last one."""
        self._stop_asked.set()
        self.join()
        if self.failed is not None:
            raise self.failed


def beside(server: Server, parent: Path, pairs: int, seconds: float) -> dict[str, Any]:
    """The same load alone and beside backups; first one, then the other, in changing order."""
    alone, loaded, made = [], [], 0
    for number in range(pairs):
        for with_backup in ((False, True), (True, False))[number % 2]:
            if not with_backup:
                alone.append(measure(server, CELL, seconds))
                continue
            thread = Backups(server.directory, parent)
            thread.start()
            try:
                loaded.append(measure(server, CELL, seconds))
            finally:
                thread.stop()
            made += thread.made
    ratios = [b["p99_ms"] / a["p99_ms"] for a, b in zip(alone, loaded, strict=True)]
    ratio = round(median(ratios), 2)
    progress(f"ingest p99 beside backups: {ratio} of alone, {[round(r, 2) for r in ratios]}")
    return {
        "what": "ingest beside backups",
        "p99_ms_alone": round(median(one["p99_ms"] for one in alone), 1),
        "p99_ms_beside": round(median(one["p99_ms"] for one in loaded), 1),
        "p99_ratio": ratio,
        "ratios": [round(one, 3) for one in ratios],
        "backups": made,
        "alone": alone,
        "beside": loaded,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--directory", type=Path, help="where to make the data, removed afterwards")
    parser.add_argument("--output", type=Path, help="the result file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-") as name:
        parent = Path(name)
        results = [trim(parent, options.events, options.rounds)]
        directory = parent / "data"
        preload(directory, Content(options.events, CUSTOMERS, METRICS))
        with Server(directory) as server:
            server.wait_until_idle()
            made = copies(directory, parent, options.events, options.rounds)
            _, size_bytes = back_up(directory, parent / "sized")
            shutil.rmtree(parent / "sized")
            results.append(erase(server, options.events, size_bytes, options.rounds))
            results += made
            server.wait_until_idle()
            results.append(beside(server, parent, options.pairs, options.seconds))
    publish(report("keeping", results, events=options.events), options.output)


if __name__ == "__main__":
    main()
