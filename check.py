"""Run every gate, in order of speed: `python check.py [--fix] [--full]`. What `make check` and `make test` call.

Rules it keeps: all gates run, also after one failed, so that one run shows everything; a gate that passes
takes one line; tests end with pytest's own closing line. It uses the tools of the environment that runs it.

--fix   format, and mend what the linter can mend
--full  with the slow tests and coverage, their output as it comes: what CI runs
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent
OUTPUT_CHARS_SHOWN = 6000


class Gate(NamedTuple):
    """One check. `live`: its output is shown as it comes, else only when it failed."""

    name: str
    command: list[str]
    live: bool = False


def gates(*, fix: bool, full: bool) -> list[Gate]:
    """The gates, the fastest first."""
    python = [sys.executable, "-m"]
    tests = [*python, "pytest"]
    if full:
        tests += ["-m", "not soak", "--durations=10", "--cov", "--cov-report=term"]
        # Two at once, a file on one of them: most slow tests wait for a disk or a process.
        tests += ["--numprocesses=2", "--dist=loadfile"]
    else:
        tests += ["-q", "-m", "not slow and not soak"]
    return [
        Gate("format", [*python, "ruff", "format", *([] if fix else ["--check"]), "."]),
        Gate("lint", [*python, "ruff", "check", *(["--fix"] if fix else []), "."]),
        # import-linter has no `python -m`; its script lies beside the interpreter.
        Gate("layers", [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]),
        Gate("types", [*python, "mypy"]),
        Gate("tests", tests, live=full),
    ]


def run(gate: Gate) -> tuple[bool, str]:
    """Run one gate: whether it passed, and the output that was not shown yet."""
    if gate.live:
        return subprocess.run(gate.command, cwd=ROOT, check=False).returncode == 0, ""
    result = subprocess.run(
        gate.command,
        cwd=ROOT,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return result.returncode == 0, result.stdout.rstrip()


def main(arguments: list[str]) -> int:
    """Run all gates; 1 when any failed, 2 for an unknown argument."""
    if unknown := set(arguments) - {"--fix", "--full"}:
        print(f"check.py: no such option: {' '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    failed = []
    for gate in gates(fix="--fix" in arguments, full="--full" in arguments):
        started = time.perf_counter()
        passed, output = run(gate)
        mark = "ok  " if passed else "FAIL"
        if not passed:
            failed.append(gate.name)
            print(output[-OUTPUT_CHARS_SHOWN:])
        elif gate.name == "tests" and output:
            print(output.splitlines()[-1])
        print(f"{mark} {gate.name:<7} {time.perf_counter() - started:6.1f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
