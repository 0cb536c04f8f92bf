"""`python sdk/conformance/place.py`: a real server and a fault proxy before it, for the tests of every SDK.

Rules it keeps: it prints one line of JSON, `{"server", "proxy", "control", "pid"}`, when all of it is ready, and lives
until its standard input ends; then everything it started is gone. It listens on loopback only, on free ports, in a
temporary directory. Arguments are settings of the server, as `STRIPEMETER_MAX_BATCH=10`. It must not know any client.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

from fault_proxy import Book, Control, FaultProxy

ROOT: Final = Path(__file__).resolve().parents[2]
START_SECONDS_MAX: Final = 60
STOP_SECONDS_MAX: Final = 20
_POLL_SECONDS: Final = 0.02
_WORDS_CHARS: Final = 3000


def start_server(directory: Path, settings: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """A ready server and its port. Raises RuntimeError with its last words when it does not get ready."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STRIPE")}
    chosen = dict(setting.split("=", 1) for setting in settings)
    log_path = directory / "server.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gateway.cli.main", "serve"),
                *("--host", "127.0.0.1", "--port", "0", "--data-dir", str(directory / "data")),
            ],
            cwd=directory,
            env={
                **kept,
                "PYTHONPATH": str(ROOT),
                "STRIPEMETER_LOG_FORMAT": "json",
                "STRIPEMETER_SIMULATOR": "off",
                **chosen,
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    until = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < until and process.poll() is None:
        port = _port_in(log_path.read_text(errors="replace"))
        if port is not None and _is_ready(port):
            return process, port
        time.sleep(_POLL_SECONDS)
    process.kill()
    process.wait()
    message = f"the server did not become ready: {log_path.read_text()[-_WORDS_CHARS:]}"
    raise RuntimeError(message)


def _port_in(log: str) -> int | None:
    """The port that the server says it listens on."""
    for line in log.splitlines(keepends=True):
        if '"listening"' in line and line.endswith("\n"):
            return int(json.loads(line)["urls"][0].rpartition(":")[2])
    return None


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def stop_server(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop, and make sure."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(settings: list[str]) -> int:
    """Run the place until standard input ends, or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="stripemeter-place-") as directory:
        process, port = start_server(Path(directory), settings)
        try:
            book = Book()
            proxy, control = FaultProxy(port, book), Control(book)
            for listening in (proxy, control):
                threading.Thread(target=listening.serve_forever, daemon=True).start()
            urls = {
                "server": port,
                "proxy": proxy.server_address[1],
                "control": control.server_address[1],
            }
            line = {name: f"http://127.0.0.1:{number}" for name, number in urls.items()}
            sys.stdout.write(json.dumps({**line, "pid": process.pid}) + "\n")
            sys.stdout.flush()
            while os.read(0, 1 << 16):
                pass
        finally:
            stop_server(process)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
