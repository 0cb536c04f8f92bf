"""What does the key index cost: adding keys, asking for new and for known ones, memory, merging?

    python bench/key_index.py [--keys 0 1000000 10000000] [--directory DIR]

Prints one JSON object: machine, commit, and per number of stored keys the rates and bounds. Merging runs in
the same thread here, so `add_keys_per_second` is the whole cost of a key, not what the owner's thread waits.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from wal.key_index import KeyIndex
from wal.key_merge import MergePlan, PlanKind
from wal.lmdb_runs import LmdbRuns

GROUP_KEYS = 1000
LOG_ID = bytes(16)
HEAD = 1 << 60


class Stopwatch:
    """The longest and the total of what it times, in milliseconds."""

    def __init__(self) -> None:
        self.total_ms = 0.0
        self.max_ms = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        took_ms = (time.perf_counter() - self._started) * 1e3
        self.total_ms += took_ms
        self.max_ms = max(self.max_ms, took_ms)


def memory_bytes() -> int:
    """Memory that is this process's own: the index's file, mapped, is the kernel's cache."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def random_group(count: int) -> dict[bytes, bytes]:
    data = os.urandom(count * 24)
    return {data[at : at + 16]: data[at + 16 : at + 24] for at in range(0, count * 24, 24)}


def merge(index: KeyIndex, watches: dict[str, Stopwatch]) -> None:
    while (plan := begin(index, watches)) is not None:
        more = True
        while more:
            with watches[plan.kind.value]:
                more = plan.run_slice()
        with watches["owner"]:
            index.finish_merge(plan)


def begin(index: KeyIndex, watches: dict[str, Stopwatch]) -> MergePlan | None:
    with watches["owner"]:
        return index.begin_merge()


def fill(index: KeyIndex, keys: int, position: int) -> tuple[int, dict[str, Any], list[bytes]]:
    names = ("add", *(kind.value for kind in PlanKind), "owner")
    watches = {name: Stopwatch() for name in names}
    sample: list[bytes] = []
    stop = position + keys
    while position < stop:
        group = random_group(GROUP_KEYS)
        sample.append(next(iter(group)))
        position += len(group)
        with watches["add"]:
            index.add(group, position)
        if index.is_full:
            with watches["owner"]:
                index.seal()
            merge(index, watches)
    total_ms = sum(watch.total_ms for watch in watches.values())
    report = {
        "add_keys_per_second": round(keys / total_ms * 1e3) if keys else None,
        "total_ms": {name: round(watch.total_ms) for name, watch in watches.items()},
        "max_ms": {name: round(watch.max_ms, 2) for name, watch in watches.items()},
    }
    return position, report, sample


def rate(count: int, started: float) -> int:
    return round(count / (time.perf_counter() - started))


def ask(index: KeyIndex, sample: list[bytes]) -> dict[str, Any]:
    new = list(random_group(100_000))
    started = time.perf_counter()
    assert not any(index.lookup(key) for key in new)
    result: dict[str, Any] = {"lookup_new_per_second": rate(len(new), started)}
    started = time.perf_counter()
    for at in range(0, len(new), GROUP_KEYS):
        assert not index.known(new[at : at + GROUP_KEYS])
    result["known_1000_new_per_second"] = rate(len(new), started)
    joined = b"".join(new)
    started = time.perf_counter()
    suspects = 0
    for at in range(0, len(joined), GROUP_KEYS * 16):
        suspects += len(index.suspects(joined[at : at + GROUP_KEYS * 16]))
    result["suspects_1000_new_per_second"] = rate(len(new), started)
    result["false_positive_rate"] = suspects / len(new)
    old = list(islice(sample, 100_000))
    if old:
        started = time.perf_counter()
        assert all(index.lookup(key) for key in old)
        result["lookup_known_per_second"] = rate(len(old), started)
        result["known_1000_old_per_second"] = result_old(index, old)
    return result


def result_old(index: KeyIndex, old: list[bytes]) -> int:
    started = time.perf_counter()
    for at in range(0, len(old), GROUP_KEYS):
        assert len(index.known(old[at : at + GROUP_KEYS])) == len(old[at : at + GROUP_KEYS])
    return rate(len(old), started)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, nargs="+", default=[0, 1_000_000, 10_000_000])
    parser.add_argument("--directory", type=Path, default=None)
    arguments = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    sizes = []
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        path = Path(directory) / "index"
        store = LmdbRuns(path)
        base_bytes = memory_bytes()
        index = KeyIndex.open(store, log_id=LOG_ID, epoch=0, head_sequence=HEAD)
        position, sample = 0, []
        for keys in sorted(arguments.keys):
            position, filled, more = fill(index, keys - position, position)
            sample += more
            statistics = index.statistics()
            held_bytes = memory_bytes() - base_bytes
            asked = ask(index, sample)
            index.close()
            started = time.perf_counter()
            store = LmdbRuns(path)
            index = KeyIndex.open(store, log_id=LOG_ID, epoch=0, head_sequence=HEAD)
            open_seconds = time.perf_counter() - started
            sizes.append(
                {
                    "keys": keys,
                    **filled,
                    **asked,
                    "open_seconds": round(open_seconds, 3),
                    "ram_bytes_per_key": round(held_bytes / keys, 1) if keys else None,
                    "filter_bytes_per_key": round(statistics.filter_bytes / keys, 2)
                    if keys
                    else None,
                    "disk_bytes_per_key": round(statistics.store_bytes / keys, 1) if keys else None,
                    "recent_keys": statistics.recent_keys,
                    "runs": len(statistics.runs),
                }
            )
            position = index.watermark  # what was recent is gone with the reopening
            del sample[position // GROUP_KEYS :]
        index.close()
    machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
    report = {"commit": commit.stdout.strip(), "machine": machine, "sizes": sizes}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
