"""What every benchmark shares: the machine, the commit under test, the result file, cores, a process's memory and time.

Rules it keeps: a result names the machine, the commit *of the code that was measured* (found by where `engine` was
imported from, so that a comparison of two trees can't mix them up) and whether that tree had changes; cores are
split the same way everywhere. It must not know any benchmark.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import engine

ROOT: Final = Path(engine.__file__).parents[1]
"""The tree under test."""
BENCH: Final = Path(__file__).parent
RESULTS: Final = BENCH / "results"
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")


def server_core() -> int:
    """The core that the measured process gets for itself."""
    return max(os.sched_getaffinity(0))


def generator_cores() -> set[int]:
    """The cores for whoever makes the load: all others, or the only one there is."""
    cores = os.sched_getaffinity(0)
    return cores - {server_core()} or cores


def pin_to(cores: set[int]) -> None:
    """Give this process these cores, and the niceness that BENCH_NICE asks for.

    Used between fork and exec, so that every thread has them. A negative niceness (as root) keeps the figures apart
    from what else a shared machine does; only the caches and a core's other half are still shared.
    """
    os.sched_setaffinity(0, cores)
    if niceness():
        os.setpriority(os.PRIO_PROCESS, 0, niceness())
        # Linux weighs sessions first: in the caller's own, niceness would count only against the caller's processes.
        autogroup = Path("/proc/self/autogroup")
        if autogroup.exists() and os.getpid() != os.getsid(0):
            os.setsid()
            autogroup.write_text(str(niceness()))


def niceness() -> int:
    """What BENCH_NICE asks for, -20 to 19; 0 is everybody's."""
    return int(os.environ.get("BENCH_NICE", "0"))


def reference_ms() -> float:
    """The best of twenty runs of a fixed piece of Python: says how fast the machine is just now."""
    best = math.inf
    for _ in range(20):
        began = time.thread_time()
        table: dict[bytes, int] = {}
        for number in range(5000):
            table[blake2b(b"%d" % number, digest_size=16).digest()] = number
        best = min(best, time.thread_time() - began)
    return round(best * 1e3, 2)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
        "reference_ms": reference_ms(),
        "niceness": niceness(),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def commit(root: Path = ROOT) -> str:
    """The commit of a tree; `+` is appended when the measured packages differ from it."""
    name = _git(root, "rev-parse", "--short=12", "HEAD")
    changed = _git(root, "status", "--porcelain", "--", "engine", "wal", "gateway", "sdk")
    return f"{name or 'unknown'}{'+' if changed else ''}"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def report(name: str, results: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The result of a benchmark as it is kept."""
    return {
        "benchmark": name,
        "commit": commit(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        **more,
        "results": results,
    }


def publish(content: dict[str, Any], to: Path | None) -> None:
    """Print a result, and write it to `to`, else to results/<benchmark>.json."""
    path = to or RESULTS / f"{content['benchmark']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1)
    path.write_text(f"{text}\n")
    print(text)


def progress(text: str) -> None:
    """Tell the person who waits; results alone go to standard output."""
    print(text, file=sys.stderr, flush=True)


def memory_bytes(pid: int | str = "self") -> int:
    """Memory that is a process's own: files it has mapped are the kernel's cache."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, all threads, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
