"""Files of rows as an import reads them: JSON lines or CSV, plain or gzip, a path or standard input, in chunks.

Rules it keeps: a chunk ends with a row, and knows how many bytes were read up to there and their digest, so that an
import that goes on later can tell whether what it passes over is what was done; a line has a bound. Everything here
waits for a disk: call it in a thread. It must not know what a row means, nor where it goes.
"""

from __future__ import annotations

import csv
import gzip
import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, Final, Literal, NamedTuple, cast

import msgspec

from engine.core.cell_rows import CellRows, cells_of
from engine.core.sent_rows import (
    LINE_BYTES_MAX,
    HeaderRefused,
    SentRow,
    header_of,
    rows_after_header,
    rows_of_lines,
)
from engine.errors import EngineError

Format = Literal["jsonl", "csv"]
CHUNK_BYTES: Final = 1 << 20
CSV_CHUNK_ROWS: Final = 4_000
HEAD_BYTES: Final = 64 << 10
"""Of a file's start: with its size they tell one file from another."""
STDIN: Final = "-"
_GZIP_MAGIC: Final = b"\x1f\x8b"
_BOM: Final = b"\xef\xbb\xbf"


class FileRefused(EngineError):
    """A file can't be read; the message names it and says what to do."""


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """A place between two rows: the file's number, bytes up to there (unpacked), the line reached, their digest."""

    file: int = 0
    offset: int = 0
    line: int = 0
    digest: bytes = b""


class Chunk(NamedTuple):
    """Some rows, and the cursor after them."""

    rows: Sequence[SentRow]
    after: Cursor
    nul: bool
    """Whether a name may hold U+0000."""


class RowFile:
    """One file. `number` is its place among those of one import."""

    def __init__(self, name: str, number: int, rows_format: Format | None) -> None:
        """Opens it. Raises FileRefused."""
        self.name = name
        self.number = number
        self.size_bytes = 0
        """On the disk; 0: not known."""
        self._raw: io.BufferedReader
        self._stream: IO[bytes]
        head = self._open()
        self.identity = blake2b(b"%d\0" % self.size_bytes + head, digest_size=16).hexdigest()
        self.format: Format = rows_format or self._guessed()

    def _open(self) -> bytes:
        """Open it at its beginning; the first bytes. What is packed is unpacked from here on."""
        try:
            if self.name == STDIN:
                self._raw = cast("io.BufferedReader", sys.stdin.buffer)
            else:
                opened = Path(self.name).open("rb", CHUNK_BYTES)  # noqa: SIM115 - `close` closes it
                self._raw = cast("io.BufferedReader", opened)
                self.size_bytes = Path(self.name).stat().st_size
            head = self._raw.peek(HEAD_BYTES)[:HEAD_BYTES]
        except OSError as error:
            raise FileRefused(
                f"{self.name} can't be read ({error.strerror}): give a file"
            ) from error
        self._stream = self._raw
        if head.startswith(_GZIP_MAGIC):
            packed = gzip.GzipFile(fileobj=self._raw)
            self._stream = io.BufferedReader(cast("Any", packed), CHUNK_BYTES)
        self._digest = blake2b(digest_size=16)
        self._offset = 0
        return head

    @property
    def can_be_read_again(self) -> bool:
        """Whether it has a beginning to go back to."""
        return self.name != STDIN

    def read_bytes(self) -> int:
        """Bytes of the file read so far: of a packed one, packed."""
        return self._raw.tell() if self.can_be_read_again else self._offset

    def close(self) -> None:
        """Let the file go."""
        if self.can_be_read_again:
            self._raw.close()

    def _guessed(self) -> Format:
        stem = self.name.lower().removesuffix(".gz")
        if stem.endswith(".csv"):
            return "csv"
        if stem.endswith((".jsonl", ".ndjson")):
            return "jsonl"
        try:
            start = cast("io.BufferedReader", self._stream).peek(64)
        except (OSError, EOFError, zlib.error) as error:
            self.close()
            raise FileRefused(f"{self.name} can't be unpacked: {error}") from error
        return "jsonl" if start.removeprefix(_BOM).lstrip()[:1] == b"{" else "csv"

    def chunks(self, start: Cursor) -> Iterator[Chunk]:
        """All rows after a cursor of this file. Raises FileRefused.

        If the bytes up to the cursor are not those it was made of, all rows come: their keys make that harmless.
        """
        try:
            if start.offset and self.can_be_read_again:
                header = self._header_lines() if self.format == "csv" else []
                if not self._passes(start):
                    self.close()
                    self._open()
                    start = Cursor(self.number)
                    header = []
            else:
                start, header = Cursor(self.number), []
            yield from (
                self._csv_chunks(start, header)
                if self.format == "csv"
                else self._line_chunks(start)
            )
        except (OSError, EOFError, zlib.error) as error:
            raise FileRefused(f"{self.name} can't be read to its end: {error}") from error
        except HeaderRefused as error:
            raise FileRefused(f"{self.name}, {error}") from error

    def _passes(self, start: Cursor) -> bool:
        """Pass over what was done; False if the file begins with other bytes than what was done."""
        left = start.offset
        while left and (data := self._stream.read(min(left, CHUNK_BYTES))):
            self._digest.update(data)
            left -= len(data)
        self._offset = start.offset
        return not left and self._digest.digest() == start.digest

    def _cursor(self, line: int) -> Cursor:
        return Cursor(self.number, self._offset, line, self._digest.digest())

    def _line_chunks(self, start: Cursor) -> Iterator[Chunk]:
        line = start.line
        for block in self._blocks():
            first = line + 1
            line += block.count(b"\n") + (not block.endswith(b"\n"))
            rows = rows_of_lines(block.removeprefix(_BOM) if first == 1 else block, first)
            self._take(block)
            yield Chunk(rows, self._cursor(line), b"\\u0000" in block)

    def _take(self, data: bytes) -> None:
        self._digest.update(data)
        self._offset += len(data)

    def _blocks(self) -> Iterator[bytes]:
        """What is left of the file in pieces of whole lines."""
        rest = b""
        while data := self._stream.read(CHUNK_BYTES):
            block, newline, rest = (rest + data).rpartition(b"\n")
            if len(rest) > LINE_BYTES_MAX:
                raise FileRefused(f"{self.name} has a line longer than {LINE_BYTES_MAX} bytes")
            if newline:
                yield block + newline
        if rest:
            yield rest

    def _csv_chunks(self, start: Cursor, header: list[str]) -> Iterator[Chunk]:
        """Whole blocks of lines the quick way; a block that has rows which need it, row by row up to its end."""
        blocks = self._blocks()
        lines = _TextLines(self.name, blocks)
        names, _ = header_of(iter(header) if header else lines)
        line = start.line + self._take_lines(lines)[0]
        after_header = lines.rest()
        while True:
            if lines.is_between_blocks:
                block, after_header = after_header or next(blocks, b""), b""
                if not block:
                    return
                rows = _whole(block, names, line + 1)
                if rows is not None:
                    self._take(block)
                    line += len(rows)
                    yield Chunk(rows, self._cursor(line), nul=False)
                    continue
                lines.open(block)
            # The reader takes line by line and none ahead, so after a row exactly that row's lines are counted.
            some: list[SentRow] = []
            for row in rows_after_header(lines, names, line):
                some.append(row)
                if len(some) == CSV_CHUNK_ROWS or lines.is_between_blocks:
                    break
            count, nul = self._take_lines(lines)
            line += count
            if some:
                yield Chunk(some, self._cursor(line), nul=nul)

    def _take_lines(self, lines: _TextLines) -> tuple[int, bool]:
        """(how many lines were taken, whether they hold a NUL)."""
        taken = lines.taken()
        data = b"".join(taken)
        self._take(data)
        return len(taken), b"\0" in data

    def _header_lines(self) -> list[str]:
        """The lines of the header's row; the file is at its beginning again afterwards."""
        lines = _TextLines(self.name, self._blocks())
        next(csv.reader(lines, strict=True), None)
        taken = [lines.text_of(line) for line in lines.taken()]
        self.close()
        self._open()
        return taken


def _whole(block: bytes, names: list[str], first_line: int) -> CellRows | None:
    """The rows of a block of lines, the quick way; None: it needs the other."""
    try:
        return cells_of(block.decode(), names, first_line)
    except UnicodeDecodeError:
        return None


class _TextLines(Iterator[str]):
    """The lines of blocks as text, one by one; knows which were taken, and whether a block is used up."""

    def __init__(self, name: str, blocks: Iterator[bytes]) -> None:
        self._name = name
        self._blocks = blocks
        self._lines: list[bytes] = []
        self._next = 0

    @property
    def is_between_blocks(self) -> bool:
        """Whether the next line would be the first of a block."""
        return self._next == len(self._lines)

    def open(self, block: bytes) -> None:
        """Go on with a block that was read elsewhere."""
        assert not self._lines, "what was taken is asked for first"
        self._lines = block.splitlines(keepends=True)

    def rest(self) -> bytes:
        """What is left of a block, which counts as read elsewhere; what was taken is asked for first."""
        assert self._next == 0
        rest, self._lines = b"".join(self._lines), []
        return rest

    def __next__(self) -> str:
        if self._next == len(self._lines):
            self._lines += next(self._blocks).splitlines(keepends=True)
        line = self._lines[self._next]
        self._next += 1
        return self.text_of(line)

    def text_of(self, line: bytes) -> str:
        """A line as the reader has it. Raises FileRefused."""
        try:
            return line.decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            message = f"{self._name} is not UTF-8: {error}; convert it first"
            raise FileRefused(message) from error

    def taken(self) -> list[bytes]:
        """The lines that were taken since the last call."""
        taken, self._lines = self._lines[: self._next], self._lines[self._next :]
        self._next = 0
        return taken
