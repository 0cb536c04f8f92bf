"""What does `track` of the Node SDK cost an app's thread, buffered: plain, with meta, with a spool?

    python bench/sdk_track_node.py [--calls 9999] [--rounds 31] [--to FILE]

Prints one JSON object and keeps it in results/. The measuring is done by sdk_track_node.mjs in Node, with the SDK built from this
tree. A round's figures are the process's processor time (all threads, so that collecting garbage counts) and the wall time of a call: a
busy machine shows in the second alone. The best round counts, as what a call costs without neighbours. Rounds are many, since the first ones
run before V8 has compiled the path.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from common import BENCH, ROOT, progress, publish, report

TARGET_MICROSECONDS: Final = 2.0
SDK: Final = ROOT / "sdk" / "node"


def node_version() -> str | None:
    """What Node there is, with the SDK built for it; None where node or npm is missing."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return None
    for step in (["npm", "ci"], ["npm", "run", "build"]):
        subprocess.run(step, cwd=SDK, check=True, stdout=sys.stderr)
    found = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True)
    return found.stdout.strip()


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    # A batch that is ready starts sending, which is not the caller's time.
    parser.add_argument("--calls", type=int, default=9_999)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--to", type=Path, help="the result's file")
    arguments = parser.parse_args()
    version = node_version()
    if version is None:
        progress("node and npm are not installed: nothing was measured")
        return
    script = [
        "node",
        str(BENCH / "sdk_track_node.mjs"),
        str(arguments.calls),
        str(arguments.rounds),
    ]
    measured = subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True)
    results: list[dict[str, Any]] = json.loads(measured.stdout)
    within = all(found["cpu_us"] < TARGET_MICROSECONDS for found in results[:-1])
    more = {"node": version, "target_us": TARGET_MICROSECONDS, "within_without_spool": within}
    publish(report("sdk_track_node", results, **more), arguments.to)


if __name__ == "__main__":
    main()
