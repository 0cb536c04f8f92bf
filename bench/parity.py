"""What does a parity certificate cost, and its recount from the raw log?

    python bench/parity.py [--events 1000000] [--directory DIR]

A tenant's whole month on a log without a snapshot; every event is of that tenant. Results: `fold` (watched, from the log's
start), `body` (chains), `sign` (seals and signature), `arithmetic` (checking it alone), `recount` (from raw records, in
the witness). Seconds, and events a second, on one core; the longest slice is what a running meter would feel.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from common import pin_to, publish, report, server_core
from preload import TENANT, Content, preload

from engine.actors.prefix_fold import PrefixFold, Wanted
from engine.core.parity import Parity
from engine.core.parity_trail import ParityTrail
from engine.core.push_totals import PushTotals
from engine.core.times import format_instant
from engine.witness.arithmetic import check_document
from engine.witness.canonical import Signer
from engine.witness.purposes import PARITY
from engine.witness.spans import month_of
from engine.witness.verify import check_against_log
from gateway.data_directory import DataDirectory
from wal.lmdb_log import LmdbLog
from wal.log import StoredRecord, scan


def parity_of(trail: ParityTrail, fold: PrefixFold, received_at_us: int) -> Parity:
    """What a server that is not connected to Stripe makes certificates of."""
    totals = PushTotals(
        trail.push.routes,
        trail.push.ledger,
        resolution=lambda _role, _destination: None,
        proven=lambda _role: None,
        mapping=fold.registry.active_mapping,
    )
    month = month_of(received_at_us)
    return Parity(trail, totals, since_us=month.start_us, until_us=month.end_us, customer_ref=None)


def document_of(last: StoredRecord, chains: list[dict[str, Any]]) -> dict[str, Any]:
    """An unsigned certificate of usage that is not mapped."""
    counts = dict.fromkeys(("green", "waiting", "red"), 0) | {"unbilled": len(chains)}
    return {
        "format": PARITY,
        "period": format_instant(last.envelope.received_at_us)[:7],
        "scope": {"tenantId": TENANT, "customerRef": None},
        "log": {
            "id": (b"\0" * 16).hex(),
            "epoch": last.envelope.epoch,
            "position": last.next_sequence - 1,
            "headHash": last.hash.hex(),
        },
        "chains": chains,
        "targets": [],
        "summary": {"chains": len(chains), "targets": 0} | counts,
        "verdict": "unbilled",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    pin_to({server_core()})
    directory = options.directory or Path(tempfile.mkdtemp(prefix="stripemeter-bench-"))
    preload(directory, Content(options.events, 1000, 5))
    log = LmdbLog(DataDirectory(directory).log_path, read_only=True)
    results: list[dict[str, Any]] = []

    def measured(step: str, began: float, **more: Any) -> None:
        seconds = time.perf_counter() - began
        rate = round(options.events / seconds)
        results.append(
            {"step": step, "seconds": round(seconds, 3), "events_per_second": rate, **more}
        )

    end = log.head().next_sequence
    last = log.read(end - 1, bytes_max=1)[0]
    began, longest = time.perf_counter(), 0.0
    trail = ParityTrail(TENANT)
    fold = PrefixFold(log, end, wanted=Wanted(TENANT), observer=trail)
    more = True
    while more:
        slice_began = time.perf_counter()
        more = fold.run_slice()
        longest = max(longest, time.perf_counter() - slice_began)
    measured("fold", began, longest_slice_ms=round(longest * 1e3, 1))
    began = time.perf_counter()
    parity = parity_of(trail, fold, last.envelope.received_at_us)
    parity.collect()
    chains = [parity.chain(key, str) for key in parity.keys]
    measured("body", began, chains=len(chains))
    began = time.perf_counter()
    document = Signer(bytes(32)).sealed(PARITY, document_of(last, chains))
    measured("sign", began)
    began = time.perf_counter()
    problems = check_document(document)
    measured("arithmetic", began)
    began = time.perf_counter()
    problems += check_against_log(document, partial(scan, log, 0), lambda _position: None)
    measured("recount", began)
    wrong = [problem for problem in problems if problem.where != "log.id"]
    assert not wrong, wrong[:3]
    log.close()
    if options.directory is None:
        shutil.rmtree(directory)
    publish(report("parity", results, events=options.events), options.to)


if __name__ == "__main__":
    main()
