"""Runs wrk, the load generator, on the cores that the server does not have, and reads what it says.

wrk was chosen because it costs little: 3 µs for a single-event request, 1 µs an event in batches; a generator in
Python would take more than the server does. It must not know what is asked of the server.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any, Final

from common import BENCH, generator_cores, pin_to

_MARK: Final = "RESULT "
_SECONDS_GRACE: Final = 60


def wrk(
    script: str, url: str, *, connections: int, seconds: float, arguments: list[str]
) -> dict[str, Any]:
    """Load for so long: requests, rate, latencies in milliseconds. Raises RuntimeError when there were errors."""
    if shutil.which("wrk") is None:
        message = "wrk is not installed: apt-get install wrk"
        raise RuntimeError(message)
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--latency"]
    command += ["--timeout", "10s", "--duration", f"{seconds:.0f}s"]
    command += ["--script", str(BENCH / script), url, "--", *arguments]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds + _SECONDS_GRACE,
        preexec_fn=lambda: pin_to(generator_cores()),
    )
    said = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if not said:
        message = f"wrk failed:\n{done.stdout}"
        raise RuntimeError(message)
    result = json.loads(said[0].removeprefix(_MARK))
    return {
        "connections": connections,
        "requests": result["requests"],
        "seconds": result["microseconds"] / 1e6,
        "requests_per_second": round(result["requests"] / (result["microseconds"] / 1e6)),
        "p50_ms": round(result["p50_us"] / 1e3, 2),
        "p99_ms": round(result["p99_us"] / 1e3, 2),
        "p999_ms": round(result["p999_us"] / 1e3, 2),
        "max_ms": round(result["max_us"] / 1e3, 2),
        "not_2xx": result["not_2xx"],
        "socket_errors": result["socket_errors"],
    }
