"""Rows in bulk are rows one by one: the same rows, keys and fingerprints, the same refusals on the same lines.

The long way is the program before there was a quick one: the CSV reader over all lines, the JSON decoder line by line,
`taken` for each row, `parse_instant` for each time.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.core import row_columns, rows_in_bulk, times_in_bulk
from engine.core.events import EventLimits, Refusal
from engine.core.rows_in_bulk import Taker
from engine.core.sent_rows import (
    SOURCE_OF_IMPORT,
    Meant,
    SentRow,
    rows_of_csv,
    rows_of_lines,
    taken,
)
from engine.core.times import TimeError, format_instant, parse_instant
from engine.core.times_in_bulk import parse_instants
from gateway import row_files
from gateway.row_files import Cursor, RowFile

SEEDS = range(40)
NOW_US = 1_793_491_200_000_000
LIMITS = EventLimits(200, horizon_us=NOW_US - 10**15)
Got = tuple[int, Any]
TIMES = [
    "2026-01-01T00:00:00Z", "2026-01-01T00:00:00+01:00", "2026-01-01t00:00:00z", "2026-01-01 00:00:00Z",
    "2026-01-01T00:00:00.5Z", "2026-01-01T00:00:00.123456789Z", "2026-01-01T00:00:00.1234567891Z",
    "2026-01-01T00:00:00.12345-23:59", "2016-12-31T23:59:60Z", "2026-01-01T00:00:60Z", "2026-02-29T00:00:00Z",
    "2024-02-29T00:00:00Z", "2026-01-00T00:00:00Z", "2026-00-10T00:00:00Z", "2026-13-10T00:00:00Z",
    "2026-01-01T24:00:00Z", "2026-01-01T00:60:00Z", "2026-01-01T00:00:00", "2026-01-01T00:00:00 01:00",
    "2026-01-01T00:00:00+24:00", "2026-01-01T00:00:00,5Z", "2026-01-01", "", " 2026-01-01T00:00:00Z", "now",
    "2030-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00", "0000-12-31T23:59:59-01:00",
    "9999-12-31T23:59:59-01:00", "0000-12-31T23:59:59Z", "0000-12-31T23:59:59.123Z", "\uff12026-01-01T00:00:00Z", "2026-1-001T00:00:00Z",
    "2026-01-01T00-00:00Z", "2026/01/01T00:00:00Z", "2026-01-01X00:00:00Z", "2026-01-01T00:00:00A",
    "2026-01-01T0000:00:Z", "-026-01-01T00:00:00Z", "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00\u00b2Z",
]  # fmt: skip
NASTY: dict[str, list[str]] = {
    "tenantId": ["", "u", "x" * 255, "x" * 256, " t", "\u00e9", "'t"],
    "metric": ["", "x" * 100, "x" * 101, "m n", "'=m"],
    "customerRef": ["", "O'Brien", "'=1+1", "''@x", "=1+1", 'a"b', '"q"', "a,b", "a\nb", "a\r\nb", "a\rb", "\ufeffc",
                    "c\0d", "x" * 255, "x" * 256, "\U0001f600", "a\u2028b", "'"],
    "resourceId": ["", "r", "x" * 255, "x" * 256, "'+r", "r\0"],
    "quantity": ["0", "007", "1.5", "1.50", "-1", "-0", "+1", " 5", "5 ", "1e3", "1E-3", "0.1234567", "9" * 15,
                 "1" + "0" * 15, "abc", "", "\uff11", "1_000", "0.000001", "1.0000000", "NaN", '"5"', "1" * 70,
                 " " * 70 + "1", "5e-324", "."],
    "ts": TIMES,
    "idempotencyKey": ["", "k", "auto:0", "x" * 255, "x" * 256, "'=k", "k\0"],
    "source": ["", "sdk", "http", "import", "other", "SDK"],
    "meta": ["", '{"a":1}', '{"b":2,"a":1.50}', "null", "5", "{", ' {"a":1} ', '"{\\"a\\":1}"', '{"a":1},"source":"sdk"',
             "[" * 150 + "]" * 150, '{"a":"' + "x" * 195 + '"}', "   ", '{"a":"\\u0000"}'],
    "receivedAt": ["", "x"],
}  # fmt: skip
STYLES = {"idempotencyKey": ["idempotencyKey", "idempotency_key", "id"], "ts": ["ts", "timestamp"]}


def made_up(at: random.Random, number: int) -> dict[str, str]:
    """A row as most are."""
    return {
        "tenantId": "t",
        "metric": f"m{number % 3}",
        "customerRef": f"c{at.randrange(20)}",
        "resourceId": at.choice(["", "r1", "r2"]),
        "quantity": str(at.randrange(200)),
        "ts": format_instant(NOW_US - number * 20_000_123),
        "idempotencyKey": f"k{number}",
        "source": at.choice(["", "sdk"]),
        "meta": at.choice(["", '{"a":1}']),
        "receivedAt": "x",
    }


def rows_of(at: random.Random) -> tuple[list[str], list[dict[str, str]]]:
    """(columns, rows): some columns only, a nasty cell now and then."""
    columns = [
        name
        for name in NASTY
        if name == "quantity" or at.random() < (0.9 if name in ("metric", "customerRef") else 0.7)
    ]
    at.shuffle(columns)
    share = at.choice([0.0, 0.002, 0.02, 0.2])
    tenants = at.choice([["t"], ["t"], ["t", "u", ""], ["t", "u"]])
    rows = []
    for number in range(at.choice([3, 200, 400])):
        row = made_up(at, number) | {"tenantId": at.choice(tenants)}
        for name, cells in NASTY.items():
            if at.random() < share:
                row[name] = at.choice(cells)
        rows.append({name: row[name] for name in columns})
    return columns, rows


def as_csv(at: random.Random, columns: list[str], rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    quoting = at.choice([csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    end = at.choice(["\n", "\n", "\r\n"])
    writer = csv.writer(text, quoting=quoting, lineterminator=end)
    writer.writerow([at.choice(STYLES.get(name, [name])) for name in columns])
    for row in rows:
        cells = list(row.values())
        if at.random() < 0.002:
            cells = cells[:-1] if at.random() < 0.5 else [*cells, "more"]
        writer.writerow(cells)
        if at.random() < 0.002:
            text.write(at.choice([end, 'x"y"\n', '"a"b\n', "\r", '"open\n']))
    data = text.getvalue().encode()
    return data if at.random() < 0.7 else data.rstrip(b"\r\n")


def as_json_lines(at: random.Random, rows: list[dict[str, str]]) -> bytes:
    lines = []
    styles = {name: at.choice(names) for name, names in STYLES.items()}
    for row in rows:
        fields: dict[str, Any] = {
            styles.get(name, name): text
            for name, text in row.items()
            if text or at.random() < 0.0005
        }
        if styles["ts"] == "ts":
            fields.pop("receivedAt", None)
        if at.random() < 0.9 and row["quantity"].isdigit():
            fields["quantity"] = int(row["quantity"])
        if "meta" in fields and at.random() < 0.9:
            fields["meta"] = msgspec.Raw(fields["meta"].encode())
        line = msgspec.json.encode(fields)
        lines.append(
            line if at.random() > 0.002 else at.choice([b"", line[:-1], line + line, b"[1]"])
        )
    return b"\n".join(lines) + b"\n" * at.randrange(2)


def one_by_one(rows: Sequence[SentRow], meant: Meant) -> list[Got]:
    return [(row.line, taken(row.event, meant, NOW_US, LIMITS)) for row in rows]


def in_bulk(path: Path, meant: Meant) -> list[Got]:
    """Through the file's chunks, as an import takes them."""
    file = RowFile(str(path), 0, None)
    taker = Taker(meant, LIMITS)
    found: list[Got] = []
    for chunk in file.chunks(Cursor()):
        tenants, refused = taker.take(chunk.rows, NOW_US, nul=chunk.nul)
        found += refused
        for name, of in tenants.items():
            found += [(line, (name, row)) for line, row in zip(of.lines, of.rows, strict=True)]
    file.close()
    return sorted(found, key=lambda one: one[0])


def lines_as_read(data: bytes) -> list[str]:
    """What ends a line of bytes ends a row, and no line begins with a mark of byte order."""
    return [line.decode().removeprefix("\ufeff") for line in data.splitlines(keepends=True)]


@pytest.fixture
def quick_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small pieces and blocks; how many rows went the quick way since."""
    monkeypatch.setattr(rows_in_bulk, "PIECE_ROWS", 40)
    monkeypatch.setattr(times_in_bulk, "ROWS_MIN", 38)
    monkeypatch.setattr(row_files, "CHUNK_BYTES", 4_000)
    monkeypatch.setattr(row_files, "CSV_CHUNK_ROWS", 30)
    counted = [0]
    put: Callable[..., None] = rows_in_bulk.put

    def counting(*parts: Any) -> None:
        counted[0] += len(parts[4])
        put(*parts)

    monkeypatch.setattr(rows_in_bulk, "put", counting)
    return counted


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_any_file_in_bulk_is_what_it_is_row_by_row(
    kind: str, tmp_path: Path, quick_rows: list[int]
) -> None:
    every = 0
    for seed in SEEDS:
        print(f"seed {seed}")
        at = random.Random(seed)
        columns, rows = rows_of(at)
        meant = Meant(at.choice([None, "t"]), SOURCE_OF_IMPORT)
        path = tmp_path / f"{seed}.{kind}"
        if kind == "csv":
            data = as_csv(at, columns, rows)
            long = list(rows_of_csv(lines_as_read(data)))
        else:
            data = as_json_lines(at, rows)
            long = [
                row
                for number, line in enumerate(data.split(b"\n"), 1)
                if line.strip()
                for row in rows_of_lines(line, number)
            ]
        path.write_bytes(data)
        expected = one_by_one(long, meant)
        assert in_bulk(path, meant) == expected, f"seed {seed}"
        every += len(expected)
    # A test of the quick way in which nothing goes it would show nothing.
    assert quick_rows[0] > every // 4, (quick_rows, every)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_one_odd_cell_among_plain_rows_is_what_it_is_alone(
    kind: str, tmp_path: Path, quick_rows: list[int]
) -> None:
    plain = random.Random(1)
    for name, cells in NASTY.items():
        columns = [name, *(other for other in NASTY if other not in (name, "meta", "receivedAt"))]
        for number, cell in enumerate(cells):
            rows = [made_up(plain, at) for at in range(60)]
            rows[45][name] = cell
            path = tmp_path / f"{name}{number}.{kind}"
            if kind == "csv":
                text = io.StringIO()
                writer = csv.writer(text, lineterminator="\n")
                writer.writerows([columns, *([row[of] for of in columns] for row in rows)])
                data = text.getvalue().encode()
                long = list(rows_of_csv(lines_as_read(data)))
            else:
                kept = [{of: row[of] for of in columns if row[of]} for row in rows]
                kept[45][name] = cell
                encoded = [msgspec.json.encode(row) for row in kept]
                data = b"\n".join(encoded)
                long = [row for at, one in enumerate(encoded, 1) for row in rows_of_lines(one, at)]
            path.write_bytes(data)
            meant = Meant(None, SOURCE_OF_IMPORT)
            assert in_bulk(path, meant) == one_by_one(long, meant), (name, cell)
    assert quick_rows[0] > 0


@pytest.mark.parametrize("width", [3, 6])
def test_rows_with_too_few_and_too_many_cells_never_make_up_for_each_other(
    width: int, tmp_path: Path, quick_rows: list[int]
) -> None:
    columns = ["metric", "customerRef", "quantity", "tenantId", "resourceId", "idempotencyKey"][
        :width
    ]
    line = ",".join(["m", "c", "1", "t", "r", "k"][:width])
    meant = Meant("t", SOURCE_OF_IMPORT)
    good = [line] * 20
    for odd in (
        [line + ",x", line.rpartition(",")[0]],
        [line.rpartition(",")[0], line + ",x"],
        [",".join([line, line])],
        [line.partition(",")[0], line.partition(",")[2]],
        [line.partition(",")[0]] * width,
        [line.rsplit(",", 2)[0], line.partition(",")[0]],
        [line.partition(",")[0], line.rsplit(",", 2)[0]],
        [line.replace(",", "\r")],
        ["", line],
        [line + "\r"],
        ["\ufeff" + line],
    ):
        data = "\n".join([",".join(columns), *good, *odd, *good]).encode()
        path = tmp_path / "some.csv"
        path.write_bytes(data)
        expected = one_by_one(list(rows_of_csv(lines_as_read(data))), meant)
        assert in_bulk(path, meant) == expected, odd
    if width == 3:  # without a key or a time no row is taken
        assert quick_rows[0] == 0


def times_of(at: random.Random) -> list[str]:
    """Many of one form, or of a few; something else now and then."""
    share = at.choice([0.0, 0.0, 0.005, 0.1])
    span_us = at.choice([10**6, 10**12, 10**13])
    zone = at.choice(["Z", "Z", "z", "+01:00", "-23:59"])
    digits = at.choice([None, None, 0, 1, 3, 6, 9])
    texts = []
    for _ in range(at.choice([3, 40, 300])):
        us = NOW_US - at.randrange(span_us) * at.choice([1, 1000])
        text = format_instant(us)
        if digits is not None:
            text = (
                text[:19] + ("." + f"{at.randrange(10**9):09d}"[:digits] if digits else "") + zone
            )
        texts.append(text if at.random() >= share else at.choice(TIMES))
    return texts


@pytest.mark.parametrize("seed", range(200))
def test_many_times_at_once_are_each_what_it_is_alone(seed: int) -> None:
    print(f"seed {seed}")
    texts = times_of(random.Random(seed))
    try:
        alone = list(map(parse_instant, texts))
    except TimeError:
        with pytest.raises(TimeError):
            parse_instants(texts)
    else:
        assert parse_instants(texts) == alone


@pytest.mark.parametrize("odd", TIMES)
def test_an_odd_time_among_many_is_what_it_is_alone(odd: str) -> None:
    for texts in (
        [odd],
        [odd] * 50,
        ["2026-01-01T00:00:00.123Z"] * 40 + [odd],
        [odd, *["2026-01-01T00:00:00.123456z"] * 40],
        [odd] * 300,
        ["2026-01-01T00:00:00Z"] * 300 + [odd],
        [odd, *["2026-01-01T00:00:00.5Z"] * 300],
    ):
        try:
            alone = list(map(parse_instant, texts))
        except TimeError:
            with pytest.raises(TimeError):
                parse_instants(texts)
        else:
            assert parse_instants(texts) == alone


def test_what_is_remembered_stays_within_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_columns, "CUSTOMERS_REMEMBERED_MAX", 100)
    monkeypatch.setattr(row_columns, "TEXTS_REMEMBERED_MAX", 100)
    monkeypatch.setattr(rows_in_bulk, "PIECE_ROWS", 50)
    taker = Taker(Meant(None, SOURCE_OF_IMPORT), LIMITS)
    line = b'{"tenantId":"t%d","metric":"m%d","customerRef":"c%d","quantity":%d,"idempotencyKey":"k%d"}\n'
    data = b"".join(line % (n % 7, n, n, n, n) for n in range(1000))
    rows = rows_of_lines(data, 1)
    tenants, refused = taker.take(rows, NOW_US, nul=False)
    assert not refused
    assert sum(len(of.lines) for of in tenants.values()) == 1000
    known = taker._remembered
    held = [sum(map(len, known.tenants.values())), len(known.metrics), len(known.quantities)]
    assert max(held) <= 100, held
    assert not isinstance(rows[999].event, Refusal)
