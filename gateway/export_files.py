"""Files that an export writes: CSV, JSON lines (both also packed by gzip), Parquet.

Rules it keeps: a file has its name only when it is whole: until then it is `NAME.part`, and a failure removes that;
nothing but some thousand rows is in memory. It must not know where rows come from.
"""

from __future__ import annotations

import gzip
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Literal, Protocol

from engine.errors import EngineError
from gateway.export_rows import Column, Kind, Row, csv_lines, header_line, json_lines

Format = Literal["csv", "jsonl", "parquet"]
FORMATS: Final[tuple[Format, ...]] = ("csv", "jsonl", "parquet")
ROW_GROUP_ROWS: Final = 50_000
_DECIMAL_DIGITS: Final = 38
_FRACTION_DIGITS: Final = 6
MISSING: Final = "Parquet needs pyarrow, which is not installed: pip install 'stripemeter[parquet]', or choose csv or jsonl"


class RowFile(Protocol):
    """Takes rows."""

    def write(self, rows: Sequence[Row]) -> None:
        """Write these next. Raises EngineError or OSError."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def format_of(name: str | None, given: Format | None) -> Format:
    """The format asked for, else the one that the file's name says, else JSON lines. Raises EngineError."""
    if given is not None:
        return given
    if name is None:
        return "jsonl"
    stem = name.lower().removesuffix(".gz")
    for one, endings in (
        ("csv", (".csv",)),
        ("jsonl", (".jsonl", ".ndjson")),
        ("parquet", (".parquet",)),
    ):
        if stem.endswith(endings):
            return one  # type: ignore[return-value]
    raise EngineError(f"{name} does not say its format: add --format csv, jsonl or parquet")


@contextmanager
def open_file(
    name: str | None, format_name: Format, columns: Sequence[Column]
) -> Iterator[RowFile]:
    """A file of that name, or (None) standard output. Raises EngineError when it can't be written."""
    if name is None:
        if format_name == "parquet":
            raise EngineError("Parquet is no stream: name a file with --output")
        text = _Text(sys.stdout.buffer, format_name, columns)
        yield text
        text.close()
        return
    path = Path(name)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            writer = _writer(file, name, format_name, columns)
            yield writer
            writer.close()
        part.replace(path)
    except OSError as error:
        raise EngineError(f"{name} can't be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _writer(file: IO[bytes], name: str, format_name: Format, columns: Sequence[Column]) -> RowFile:
    packed = name.lower().endswith(".gz")
    if format_name == "parquet":
        if packed:
            raise EngineError("a Parquet file is packed inside: leave .gz out of its name")
        return _Parquet(file, columns)
    if packed:
        # No name and no time in it: equal rows are equal bytes.
        return _Text(gzip.GzipFile("", "wb", 6, file, mtime=0), format_name, columns, own=True)
    return _Text(file, format_name, columns)


class _Text:
    """CSV or JSON lines."""

    def __init__(
        self,
        file: IO[bytes] | gzip.GzipFile,
        format_name: Format,
        columns: Sequence[Column],
        *,
        own: bool = False,
    ) -> None:
        self._file = file
        self._own = own
        self._lines = partial(csv_lines if format_name == "csv" else json_lines, columns)
        if format_name == "csv":
            file.write(header_line(columns))

    def write(self, rows: Sequence[Row]) -> None:
        self._file.write(self._lines(rows))

    def close(self) -> None:
        if self._own:
            self._file.close()
        else:
            self._file.flush()


class _Parquet:
    """Quantities as decimal128(38, 6), instants as UTC timestamps in microseconds."""

    def __init__(self, file: IO[bytes], columns: Sequence[Column]) -> None:
        try:
            arrow: Any = importlib.import_module("pyarrow")
            parquet: Any = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise EngineError(MISSING) from error
        types: dict[Kind, Any] = {
            "text": arrow.string(),
            "json": arrow.string(),
            "integer": arrow.int64(),
            "instant": arrow.timestamp("us", tz="UTC"),
            "quantity": arrow.decimal128(_DECIMAL_DIGITS, _FRACTION_DIGITS),
        }
        self._arrow = arrow
        self._columns = columns
        self._schema = arrow.schema([(column.name, types[column.kind]) for column in columns])
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[Row] = []

    def write(self, rows: Sequence[Row]) -> None:
        self._rows += rows
        if len(self._rows) >= ROW_GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        values = zip(*self._rows, strict=True)
        arrays = [
            self._arrow.array(
                [_decimal(value) for value in column] if kind == "quantity" else list(column),
                type=field.type,
            )
            for column, (_name, kind), field in zip(
                values, self._columns, self._schema, strict=True
            )
        ]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []


def _decimal(micros: int | None) -> Decimal | None:
    if micros is None:
        return None
    if abs(micros) >= 10**_DECIMAL_DIGITS:
        raise EngineError("a total has more than 38 digits, which Parquet can't hold: choose csv")
    return Decimal(f"{micros}E-{_FRACTION_DIGITS}")  # from text, so no context rounds it
