"""Headless Chromium, driven over its debugging pipe: pages are opened, asked by JavaScript, and looked at.

Rules it keeps: the browser asks nobody by itself (no updates, no look-ups); its profile is a directory of the test's;
it is gone afterwards. Where there is no Chromium, `found` is None. It must not know what a page holds.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SECONDS_MAX = 60.0
_END_SECONDS_MAX = 10.0
_CHUNK_BYTES = 1 << 16
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-default-apps",
    "--remote-debugging-pipe",
)


def found() -> str | None:
    """The command of a Chromium of this machine."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Page:
    """One tab. Every request that it makes is in `requests`; what the console complains of in `complaints`."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._buffer = b""
        self._asked = 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page with a window of this size, and wait until it says that it is ready."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 800,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("Page.navigate", url="about:blank")
        self._ask("Page.navigate", url=url)
        self.wait_until("'ready' in (document.documentElement?.dataset ?? {})")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        answer = self._ask(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_until(self, condition: str) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + SECONDS_MAX
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < until, (condition, self.complaints)
            time.sleep(0.02)

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key, as a person does."""
        common = {"key": key, "code": key, "windowsVirtualKeyCode": _KEY_CODES.get(key, 0)}
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self._ask("Input.dispatchKeyEvent", type=kind, **common, **more)

    def picture(self, file: Path) -> None:
        """What is seen now, as a PNG."""
        file.write_bytes(
            base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"])
        )

    def _ask(self, method: str, **parameters: Any) -> Any:
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + SECONDS_MAX
        while True:
            answer = self._next(until)
            if answer.get("id") == self._asked:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(parameters["exceptionDetails"]))
            case "Log.entryAdded":
                self.complaints.append(parameters["entry"]["text"])

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = until - time.monotonic()
            ready, _, _ = select.select([self._answers], [], [], max(left, 0))
            assert ready, "Chromium does not answer"
            chunk = os.read(self._answers, _CHUNK_BYTES)
            assert chunk, "Chromium ended"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))


_KEY_CODES = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "/": 191}


@contextmanager
def opened(profile: Path) -> Iterator[Page]:
    """A tab of a browser of its own; both are gone afterwards."""
    command = found()
    assert command is not None, "ask `found` first"
    read_commands, commands = os.pipe()
    answers, write_answers = os.pipe()
    # Chromium reads commands from 3 and answers on 4; the shell puts our pipes there.
    line = f'exec "$@" 3<&{read_commands} 4>&{write_answers}'
    browser = subprocess.Popen(
        ["bash", "-c", line, "bash", command, *_FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(read_commands, write_answers),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_commands)
    os.close(write_answers)
    try:
        yield Page(commands, answers)
    finally:
        # Told to end, it ends its own processes too; killed, they would write to the profile for a while.
        with suppress(OSError):
            os.write(commands, b'{"id": 0, "method": "Browser.close"}\0')
        try:
            browser.wait(_END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            browser.kill()
            browser.wait()
        os.close(commands)
        os.close(answers)
