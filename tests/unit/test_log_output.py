"""Log output: who writes never waits; order, bound, the count of what is lost, and the end's last lines."""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.log_output import Output

ROOT = Path(__file__).parents[2]
PIPE_BYTES = 4096


def dropped_line(lines: int) -> str:
    return f"dropped {lines}\n"


class Pipe:
    """A small pipe, an Output into it, and its reading end."""

    def __init__(self, waiting_bytes_max: int = 1 << 20) -> None:
        self.reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.stream = os.fdopen(writing, "w")
        self.output = Output(self.stream, dropped_line, waiting_bytes_max)

    def read_all(self) -> list[str]:
        """What comes until all is written."""
        found = bytearray()
        drained = threading.Event()

        def wait() -> None:
            self.output.drain()
            drained.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        os.set_blocking(self.reading, False)
        while True:
            is_last = drained.is_set()
            try:
                while data := os.read(self.reading, 65536):
                    found += data
            except BlockingIOError:
                if is_last:
                    break
            time.sleep(0.001)
        waiting.join()
        return found.decode().splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.reading)
    assert not made.output.write("") or made.output.drain()


def test_lines_that_nobody_reads_hold_up_nobody_and_come_in_order_later(pipe: Pipe) -> None:
    lines = [f"line {number} " + "x" * 100 for number in range(2000)]
    began = time.monotonic()
    for line in lines:
        print(line, file=pipe.output)
    assert time.monotonic() - began < 1
    assert pipe.read_all() == lines
    assert pipe.output.lines_dropped == 0


def test_what_has_no_room_is_dropped_counted_and_told_where_it_is_missing() -> None:
    pipe = Pipe(waiting_bytes_max=20_000)
    for number in range(1000):
        pipe.output.write(f"{number:099d}\n")
    lost = pipe.output.lines_dropped
    assert lost > 700
    found = pipe.read_all()
    kept = 1000 - lost
    assert found == [*(f"{number:099d}" for number in range(kept)), f"dropped {lost}"]
    pipe.output.write("it flows again\n")
    assert pipe.read_all() == ["it flows again"]
    assert pipe.output.lines_dropped == lost
    os.close(pipe.reading)


def test_a_line_that_was_cut_by_the_bound_does_not_swallow_what_tells_of_it() -> None:
    pipe = Pipe(waiting_bytes_max=10_000)
    pipe.output.write("a" * 9000)
    pipe.output.write("b" * 2000 + "\n")
    pipe.output.write("it would have room, but not its place\n")
    assert pipe.read_all() == ["a" * 9000, "dropped 2"]
    os.close(pipe.reading)


def test_a_full_disk_costs_its_lines_and_they_are_counted(pipe: Pipe) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        os.dup2(full.fileno(), pipe.stream.fileno())
    pipe.output.write("lost\nlost too\n")
    assert pipe.output.drain()
    pipe.output.write("and this\n")
    assert pipe.output.drain()
    assert pipe.output.lines_dropped == 3
    reading, writing = os.pipe()
    os.dup2(writing, pipe.stream.fileno())
    os.close(writing)
    pipe.output.write("room again\n")
    assert pipe.output.drain()
    assert os.read(reading, 1000) == b"dropped 3\nroom again\n"
    os.close(reading)


def test_a_reader_that_has_gone_is_no_error(pipe: Pipe) -> None:
    other = os.open("/dev/null", os.O_RDONLY)
    os.dup2(other, pipe.reading)
    os.close(other)
    for _ in range(3):
        pipe.output.write("nobody\n")
        assert pipe.output.drain()
    assert pipe.output.lines_dropped == 3


def test_an_open_file_that_somebody_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.stream.fileno(), False)
    lines = [f"line {number} " + "x" * 100 for number in range(500)]
    for line in lines:
        pipe.output.write(line + "\n")
    assert pipe.read_all() == lines


def test_an_end_does_not_wait_for_long_where_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.log_output.STUCK_SECONDS_MAX", 0.05)
    pipe = Pipe()
    pipe.output.write("x" * 3 * PIPE_BYTES)
    began = time.monotonic()
    assert not pipe.output.drain()
    assert time.monotonic() - began < 1
    pipe.read_all()
    os.close(pipe.reading)


def test_a_stream_without_a_descriptor_is_left_alone() -> None:
    with pytest.raises(io.UnsupportedOperation):
        Output(io.StringIO(), dropped_line, 1000)


@pytest.mark.parametrize("end", ["drain(); os._exit(3)", "sys.exit(3)", "raise RuntimeError"])
def test_the_last_lines_before_an_end_are_read(end: str) -> None:
    program = (
        "import os, sys; from gateway.log_output import drain, install; install(str)\n"
        "for number in range(3000): print(number, 'x' * 100, file=sys.stderr)\n"
        f"print('the result'); {end}"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = ended.stderr.splitlines()
    assert [line.split()[0] for line in lines[:3000]] == [str(number) for number in range(3000)]
    assert ended.stdout == "the result\n"
    assert ended.returncode == (1 if end.startswith("raise") else 3)
    if end.startswith("raise"):
        assert lines[-1] == "RuntimeError"


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_a_standard_stream_that_is_closed_is_not_a_file_of_ours_next(
    closed: str, tmp_path: Path
) -> None:
    program = (
        "import os, sys; from gateway.log_output import install; install(str)\n"
        "with open(sys.argv[1], 'w') as data:\n"
        "    assert data.fileno() > 2\n"
        "    print('x'); print('y', file=sys.stderr); os.write(2, b'z')\n"
        "    data.write('fine')"
    )
    path = tmp_path / "data"
    shell = f'exec "$0" -c "$1" "$2" {closed}'
    subprocess.run(["sh", "-c", shell, sys.executable, program, path], cwd=ROOT, check=True)
    assert path.read_text() == "fine"
