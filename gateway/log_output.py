"""Where a server's lines go: a thread of its own writes them, so that nobody who does not read them holds up the meter.

A pipe that is full and stays open (a stuck log collector, a stopped terminal), a slow disk: a write waits, without an
error, and a loop that waits with it answers nobody. Rules it keeps: who writes a line never waits; lines keep their
order; what waits has a bound, beyond it new lines are dropped and counted, and a line says how many where they are
missing, once it flows again; who ends the process waits for the last lines for as long as they are being read.
It must not know what a line says.

Not by `O_NONBLOCK`: it belongs to the open file, which other processes write to as well. Not by asking first whether a
write would wait: such another process may fill the pipe in between, and of a disk's file nobody can ask it.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TextIO

WAITING_BYTES_MAX: Final = 1 << 20
"""Some 5,000 lines."""
WRITE_BYTES_MAX: Final = 32 << 10
"""In one write: what tells whether somebody reads is that writes end."""
BREATH_SECONDS: Final = 0.005
"""Before a write of little: under load a wake-up for every line would cost more than the line."""
STUCK_SECONDS_MAX: Final = 1.0
"""An end waits so long for a reader that takes nothing."""
END_SECONDS_MAX: Final = 5.0
"""And so long for one that takes little."""
_NEWLINE: Final = 10


class Output(io.TextIOBase):
    """A text stream in the place of stdout or stderr whose `write` never waits."""

    def __init__(
        self,
        stream: TextIO,
        dropped_line: Callable[[int], str],
        waiting_bytes_max: int,
    ) -> None:
        """Writes to `stream`'s descriptor; `dropped_line` makes the line that tells of so many lost ones.

        Raises OSError when `stream` has no descriptor.
        """
        super().__init__()
        self._stream = stream
        self._descriptor = stream.fileno()
        self._dropped_line = dropped_line
        self._waiting_bytes_max = waiting_bytes_max
        # Taken again by its holder where the collector of garbage has something to say in the middle of a write.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._wake = threading.Lock()
        """Held while there is nothing to write."""
        self._wake.acquire()
        self._is_idle = True
        self._is_ending = False
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        """With those that are being written."""
        self._is_dropping = False
        """From the first text that had no room until all that waits is written."""
        self._untold = 0
        self._has_tried = False
        """To tell of them, just now."""
        self.lines_dropped = 0
        """Lines that were not written, in all."""
        self._has_failed = False
        self._last_byte = _NEWLINE
        threading.Thread(
            target=self._run, name=f"log output {stream.fileno()}", daemon=True
        ).start()

    # As a stream.

    def write(self, text: str) -> int:
        """Take a text, or drop it where too much waits."""
        data = text.encode(self.encoding, self.errors)
        with self._lock:
            if self._is_dropping or self._waiting_bytes + len(data) > self._waiting_bytes_max:
                self._is_dropping = True
                self._drop(data)
            else:
                self._waiting.append(data)
                self._waiting_bytes += len(data)
            if self._is_idle:
                self._is_idle = False
                self._wake.release()
        return len(text)

    def flush(self) -> None:
        """Nothing: who must not lose a line calls `drain`."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The replaced stream's."""
        return self._stream.encoding

    @property
    def errors(self) -> str:  # type: ignore[override, mutable-override]
        """What the encoding does not have is escaped."""
        return "backslashreplace"

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The descriptor; what is written to it directly overtakes lines that wait."""
        return self._descriptor

    def writable(self) -> bool:
        """Always."""
        return True

    def drain(self) -> bool:
        """Wait until all is written, for as long as it is being read; whether it is."""
        until = time.monotonic() + END_SECONDS_MAX
        with self._changed:
            self._is_ending = True
            while not self._is_idle:
                wait_seconds = min(STUCK_SECONDS_MAX, until - time.monotonic())
                if wait_seconds <= 0 or not self._changed.wait(wait_seconds):
                    return False
            return True

    # The thread.

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            while (found := self._next()) is not None:
                data, told = found
                self._put(self._dropped_line(told).encode() if told else data, told)
                with self._changed:
                    self._waiting_bytes -= len(data)
                    self._changed.notify_all()
                if self._waiting_bytes < WRITE_BYTES_MAX and not self._is_ending:
                    time.sleep(BREATH_SECONDS)

    def _next(self) -> tuple[bytes, int] | None:
        """What is to be written now, or of how many lost lines is to be told; None: from here on the thread is idle."""
        with self._changed:
            # Where they are missing: behind what had room, or before what comes after a failure.
            if self._untold and self._is_dropping != bool(self._waiting) and not self._has_tried:
                told, self._untold, self._is_dropping = self._untold, 0, False
                self._has_tried = True
                return b"", told
            self._has_tried = False
            if not self._waiting:
                self._is_idle, self._is_dropping = True, False
                self._changed.notify_all()
                return None
            parts = [self._waiting.popleft()]
            size = len(parts[0])
            while self._waiting and size + len(self._waiting[0]) <= WRITE_BYTES_MAX:
                parts.append(self._waiting.popleft())
                size += len(parts[-1])
            return b"".join(parts), 0

    def _put(self, data: bytes, told: int) -> None:
        """Write it; what can't be written is lost, and counted."""
        if (told or self._has_failed) and self._last_byte != _NEWLINE:
            data = b"\n" + data
        view = memoryview(data)
        try:
            while view:
                written = self._written(view[:WRITE_BYTES_MAX])
                if written:
                    self._last_byte = view[written - 1]
                    view = view[written:]
            self._has_failed = False
        except OSError:
            self._has_failed = True
            with self._lock:
                if told:
                    self._untold += told
                else:
                    self._drop(bytes(view))

    def _written(self, view: memoryview) -> int:
        """Bytes written; waits for as long as it takes. Raises OSError."""
        try:
            written = os.write(self._descriptor, view)
        except BlockingIOError:
            # Somebody else made the open file non-blocking.
            ready = select.poll()
            ready.register(self._descriptor, select.POLLOUT)
            ready.poll()
            return 0
        with self._changed:
            self._changed.notify_all()
        return written

    def _drop(self, data: bytes) -> None:
        count = data.count(b"\n")
        self._untold += count
        self.lines_dropped += count


def install(dropped_line: Callable[[int], str]) -> None:
    """Put an Output in the place of stdout and stderr, for the rest of the process; its end waits for the last lines."""
    _open_what_is_closed()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Output):
            continue
        with suppress(io.UnsupportedOperation):  # no descriptor: it waits for nobody
            output = Output(stream, dropped_line, WAITING_BYTES_MAX)
            setattr(sys, name, output)
            atexit.register(output.drain)


def _open_what_is_closed() -> None:
    """Have all three, if to nowhere: else the next file takes the number, and a library's word on stderr goes into the log."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(nothing, True)
            assert nothing == number, "the lowest that is free"
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def drain() -> None:
    """Before a hard exit: let the last lines out, if somebody reads them."""
    for output in _installed():
        output.drain()


def lines_dropped() -> int:
    """Lines that were not written so far."""
    return sum(output.lines_dropped for output in _installed())


def _installed() -> list[Output]:
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, Output)]
