"""Rows of files: names in any style, lines as an editor counts them, and going on exactly where a chunk ended."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.events import EventLimits, Refusal, SentEvent
from engine.core.rows_in_bulk import Taker
from engine.core.sent_rows import (
    SOURCE_OF_IMPORT,
    HeaderRefused,
    Meant,
    SentRow,
    columns_of,
    count_csv,
    rows_of_csv,
    rows_of_lines,
    taken,
)
from gateway import row_files
from gateway.row_files import Cursor, FileRefused, RowFile

NOW_US = 1_793_491_200_000_000
LIMITS = EventLimits(4096)
PLAIN = Meant(None, SOURCE_OF_IMPORT)
GOOD = b'{"tenantId":"t","metric":"m","customerRef":"c","quantity":1,"idempotencyKey":"k"}\n'
SNAKE = b'{"tenant_id":"t","metric":"m","customer_ref":"c","quantity":1,"idempotency_key":"k"}\n'
EXPORTED = b'{"id":"k","tenantId":"t","metric":"m","customerRef":"c","resourceId":null,"quantity":1,"timestamp":"2026-01-01T00:00:00Z","source":"sdk","meta":"{\\"a\\":1}","receivedAt":"x","sequence":5}\n'


def made(row: SentRow) -> Any:
    return taken(row.event, PLAIN, NOW_US, LIMITS)


def test_both_styles_of_names_are_one_event() -> None:
    (good,), (snake,) = rows_of_lines(GOOD, 1), rows_of_lines(SNAKE, 1)
    header = "tenant_id,Metric,customerRef,quantity,IDEMPOTENCY_KEY"
    (from_csv,) = rows_of_csv([header + "\n", "t,m,c,1,k\n"])
    assert made(good) == made(snake) == made(from_csv)


def test_what_an_export_wrote_is_read_back() -> None:
    (row,) = rows_of_lines(EXPORTED, 1)
    tenant, (metric, customer, micros, ts_us, _, _, _, source, key, resource, meta) = made(row)
    assert (tenant, metric, customer, micros, key, resource) == ("t", "m", "c", 10**6, "k", None)
    assert (source, meta, ts_us) == (1, '{"a":1}', 1_767_225_600_000_000)


def test_a_bad_row_is_named_by_its_line_and_its_neighbours_are_taken() -> None:
    bad = [
        b"\n",
        b"{\n",
        b'{"metric":"m","customerref":"c","quantity":1}\n',
        b'{"metric":"m"}\n',
        b"[1]\n",
    ]
    data = GOOD + b"".join(bad) + GOOD + GOOD.strip() + b" " + GOOD + GOOD.rstrip()
    rows = rows_of_lines(data, 11)
    refused = [row.line for row in rows if isinstance(row.event, Refusal)]
    assert refused == [13, 14, 15, 16, 18]
    assert [row.line for row in rows if row.line not in refused] == [11, 17, 19]
    twice = GOOD.replace(b"}", b',"id":"other"}')
    (row,) = rows_of_lines(twice, 1)
    assert isinstance(row.event, Refusal)
    assert "twice" in row.event.error


def test_two_rows_on_a_line_are_none_whatever_else_is_wrong_in_the_file() -> None:
    row = GOOD.strip()
    for odd in (row + row + b"\n\n", b"\n" + row + row + b"\n", row[:-1] + b"\n}" + row + b"\n"):
        rows = rows_of_lines(GOOD + odd + GOOD, 1)
        assert any(isinstance(one.event, Refusal) for one in rows), odd
        assert [one.line for one in rows if not isinstance(one.event, Refusal)] == [1, 4], odd


def test_a_header_that_is_none_is_refused_by_the_columns_name() -> None:
    for header, word in (
        (["quantity", "amount"], "amount"),
        (["metric"], "quantity"),
        (["ts", "timestamp", "quantity"], "twice"),
        ([], "quantity"),
    ):
        with pytest.raises(HeaderRefused, match=word):
            columns_of(header)
    assert count_csv('quantity,metric\n1,"a\nb"\n\n2,c\n') == 2


def test_a_nul_in_a_name_is_refused_and_never_joins_two_names() -> None:
    data = GOOD.replace(b'"c"', b'"c\\u0000d"')
    tenants, refused = Taker(PLAIN, LIMITS).take(rows_of_lines(data, 1), NOW_US, nul=True)
    assert (tenants, len(refused)) == ({}, 1)


fields = st.fixed_dictionaries(
    {},
    optional={
        "tenantId": st.sampled_from(["t", "u", "", None]),
        "metric": st.sampled_from(["m", "", "x" * 101]),
        "customerRef": st.sampled_from(["c", "d"]),
        "customer_ref": st.sampled_from(["c", "d"]),
        "quantity": st.sampled_from([1, "0.5", -1, 0.1234567, True, None]),
        "ts": st.sampled_from(["2026-01-01T00:00:00Z", "2030-01-01T00:00:00Z", "now", None]),
        "source": st.sampled_from(["sdk", "import", "other", None]),
        "meta": st.sampled_from([{"a": 1}, None, 5]),
        "idempotencyKey": st.sampled_from(["k", "l"]),
    },
)


@pytest.mark.parametrize("tenant", [None, "t"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"idempotencyKey": "k"},
        {"resourceId": "r", "idempotencyKey": "k"},
        {"source": "sdk"},
        {"meta": {"a": 1}},
        {"quantity": -1},
        {"ts": "2030-01-01T00:00:00Z"},
        {"ts": "never"},
    ],
    ids=str,
)
def test_the_short_way_makes_the_row_of_the_long_one(
    more: dict[str, Any], tenant: str | None
) -> None:
    row = {
        "tenantId": "t",
        "metric": "m",
        "customerRef": "c",
        "quantity": 1.5,
        "ts": "2026-01-01T00:00:00Z",
    }
    data = msgspec.json.encode(row | more)
    meant = Meant(tenant, SOURCE_OF_IMPORT)
    long = taken(rows_of_lines(data, 1)[0].event, meant, NOW_US, LIMITS)
    tenants, refused = Taker(meant, LIMITS).take(rows_of_lines(data, 1), NOW_US, nul=False)
    if isinstance(long, Refusal):
        assert refused == [(1, long)]
    else:
        assert [(name, of.rows) for name, of in tenants.items()] == [(long[0], [long[1]])]


@given(rows=st.lists(fields, max_size=12), tenant=st.sampled_from([None, "t"]))
def test_rows_in_bulk_are_taken_as_one_by_one(
    rows: list[dict[str, Any]], tenant: str | None
) -> None:
    data = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    meant = Meant(tenant, SOURCE_OF_IMPORT)
    alone = [
        (row.line, taken(row.event, meant, NOW_US, LIMITS))
        for row in (rows_of_lines(data, 1) if rows else [])
    ]
    one_by_one = [
        rows_of_lines(line + b"\n", number)[0]
        for number, line in enumerate(data.split(b"\n")[:-1], 1)
    ]
    assert [(row.line, taken(row.event, meant, NOW_US, LIMITS)) for row in one_by_one] == alone
    sent = rows_of_lines(data, 1) if rows else []
    tenants, refused = Taker(meant, LIMITS).take(sent, NOW_US, nul=False)
    assert refused == [(line, got) for line, got in alone if isinstance(got, Refusal)]
    taken_alone = [(line, got) for line, got in alone if not isinstance(got, Refusal)]
    in_bulk = [
        (line, (name, row))
        for name, of in tenants.items()
        for line, row in zip(of.lines, of.rows, strict=True)
    ]
    assert sorted(in_bulk, key=lambda one: one[0]) == taken_alone


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.csv.gz"])
def test_after_any_chunk_a_file_is_gone_on_with_at_the_next_row(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "CHUNK_BYTES", 300)
    monkeypatch.setattr(row_files, "CSV_CHUNK_ROWS", 7)
    if ".csv" in name:
        lines = ["tenant_id,metric,customer_ref,quantity,idempotency_key\n"]
        lines += [f'acme,m,"c{chr(10) if i % 5 == 0 else ""}",{i},k{i}\n' for i in range(60)]
    else:
        lines = [GOOD.decode().replace('"k"', f'"k{i}"') for i in range(60)]
    data = "".join(lines).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    def read(start: Cursor) -> list[row_files.Chunk]:
        file = RowFile(str(path), 0, None)
        try:
            return list(file.chunks(start))
        finally:
            file.close()

    def seen(chunks: list[row_files.Chunk]) -> list[tuple[int, Any]]:
        return [(row.line, row.event.idempotency_key) for chunk in chunks for row in chunk.rows]

    whole = read(Cursor())
    assert [key for _, key in seen(whole)] == [f"k{i}" for i in range(60)]
    assert len(whole) > 5
    for number, chunk in enumerate(whole):
        assert seen(whole[: number + 1]) + seen(read(chunk.after)) == seen(whole)
    other = whole[1].after
    changed = Cursor(0, other.offset, other.line, bytes(16))
    assert seen(read(changed)) == seen(whole), "other bytes are not passed over"


def test_what_can_not_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match="missing"):
        RowFile(str(tmp_path / "missing"), 0, None)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(GOOD * 5000)[:-20])
    long = tmp_path / "long.jsonl"
    long.write_bytes(b"x" * (3 << 20))
    latin = tmp_path / "latin.csv"
    latin.write_bytes("quantity,metric\n1,\u00e9\n".encode("latin-1"))
    damaged, unnamed = tmp_path / "damaged.jsonl.gz", tmp_path / "damaged.gz"
    packed = gzip.compress(GOOD)
    for path in (damaged, unnamed):
        path.write_bytes(packed[:10] + b"\xff" + packed[11:])
    with pytest.raises(FileRefused, match="can't be unpacked"):
        RowFile(str(unnamed), 0, None)
    refused = ((cut, "to its end"), (damaged, "to its end"), (long, "longer"), (latin, "UTF-8"))
    for path, words in refused:
        file = RowFile(str(path), 0, None)
        with pytest.raises(FileRefused, match=words):
            list(file.chunks(Cursor()))
        file.close()


@pytest.mark.parametrize(
    "cell",
    ['{}, "quantity": "7"', '{}, "tenantId": "other"', '{"a":1}}', '{"a":', "", "1 2", "nul"],
)
def test_a_meta_cell_sets_no_other_field(cell: str) -> None:
    quoted = cell.replace('"', '""')
    lines = ["metric,customerRef,quantity,meta,key\n".replace("key", "id"), f'm,c,5,"{quoted}",k\n']
    (row,) = rows_of_csv(lines)
    if not cell:
        assert isinstance(row.event, SentEvent)
        assert bytes(row.event.quantity) == b'"5"'
        return
    assert isinstance(row.event, Refusal)
    assert row.event.error.startswith("meta: is no JSON value: ")
    assert row.event.idempotency_key == "k"
