"""The log's bytes, for ever: a change of any of these breaks every log in the field.

The files beside this one hold hex, one record a line group, `#` starts a comment. They were written once and are
never regenerated: a new format gets a new version byte and new files. `docs/LOG_FORMAT.md` is held against them too,
by a reader written from that page alone, without our code.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.core.records import (
    Genesis,
    PartKind,
    PeriodClosing,
    RecordType,
    TenantEvents,
    decode_control,
    decode_events,
    encode_control,
    encode_counting,
    encode_erasable,
)
from wal.envelope import GENESIS_HASH, decode, replace_parts, seal
from wal.log import Draft, DraftPart, PartState, StoredPart
from wal.memory_log import FakeDisk, MemoryLog

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "LOG_FORMAT.md"

DRAFTS = (
    Draft(1, 1, 1_700_000_000_000_000, (DraftPart(3, b"genesis"),)),
    Draft(2, 3, 1_700_000_000_123_456, (DraftPart(1, b"counting"), DraftPart(2, b"names"))),
    Draft(7, 1, -1, ()),
)
"""The second takes three positions, so the third is at 4; its time is before 1970."""


def golden(name: str) -> dict[str, bytes]:
    """The hex blocks of a file, by the name in the comment before each."""
    blocks: dict[str, bytes] = {}
    title = ""
    for line in (HERE / name).read_text().splitlines():
        if line.startswith("# "):
            title = line[2:]
        elif line:
            blocks[title] = blocks.get(title, b"") + bytes.fromhex(line)
    return blocks


LOG = golden("log_v1.hex")
GROUPS = golden("event_groups_v1.hex")
CONTROLS = golden("control_records_v1.hex")


def blob(index: int) -> bytes:
    return LOG[f"record {(0, 1, 4)[index]}"]


def test_three_records_in_a_chain_have_their_golden_bytes() -> None:
    previous, sequence = GENESIS_HASH, 0
    for index, draft in enumerate(DRAFTS):
        envelope, encoded, previous = seal(
            draft, stream=5, epoch=2, sequence=sequence, previous_hash=previous
        )
        assert encoded.hex() == blob(index).hex()
        assert decode(encoded, sequence).envelope == envelope
        sequence += draft.item_count
    assert previous == LOG["hash of record 4"]


def test_golden_records_are_read_as_what_was_written() -> None:
    previous = GENESIS_HASH
    for index, (draft, sequence) in enumerate(zip(DRAFTS, (0, 1, 4), strict=True)):
        record = decode(blob(index), sequence)
        assert record.envelope[:8] == (
            1,
            draft.record_type,
            5,
            2,
            sequence,
            draft.item_count,
            draft.received_at_us,
            previous,
        )
        assert record.parts == tuple((p.kind, PartState.INTACT, p.data) for p in draft.parts)
        previous = record.hash


def test_an_old_log_opens_and_goes_on() -> None:
    disk = FakeDisk()
    disk.durable = {0: blob(0), 1: blob(1), 4: blob(2)}
    disk.head = 5
    log = MemoryLog(disk, stream=5)
    [envelope] = log.append([DRAFTS[0]])
    assert (envelope.sequence, envelope.epoch) == (5, 2)
    assert envelope.previous_hash == LOG["hash of record 4"]


@pytest.mark.parametrize(
    ("title", "parts"),
    [
        ("record 1, trimmed", ((1, PartState.TRIMMED, b""), (2, PartState.TRIMMED, b""))),
        ("record 1, erased", ((1, PartState.INTACT, b"counting"), (2, PartState.TOMBSTONE, b""))),
        (
            "record 1, pseudonym",
            ((1, PartState.INTACT, b"counting"), (2, PartState.PSEUDONYM, b"n7")),
        ),
    ],
)
def test_replaced_parts_have_their_golden_bytes_under_the_same_envelope(
    title: str, parts: tuple[tuple[int, int, bytes], ...]
) -> None:
    record = decode(blob(1), 1)
    stored = tuple(StoredPart(*part) for part in parts)
    assert replace_parts(record, stored).hex() == LOG[title].hex()
    replaced = decode(LOG[title], 1)
    assert replaced.parts == stored
    assert (replaced.envelope, replaced.hash) == (record.envelope, record.hash)


# The page, held against the bytes by a reader of its own.


def crc32c_by_the_book(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def tables(heading: str) -> list[list[str]]:
    """The rows of the first table after a heading of the page, without its head."""
    text = PAGE.read_text().split(heading, 1)[1]
    lines = re.search(r"(\|.*\n)+", text)
    assert lines is not None, heading
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines.group(0).splitlines()[2:]
    ]


def fields(heading: str, data: bytes) -> tuple[dict[str, bytes], int]:
    """Cut `data` by the page's table (offset, size, name): bytes by name, and the table's length."""
    cut: dict[str, bytes] = {}
    end = 0
    for offset, size, name, *_ in tables(heading):
        assert int(offset) == end, "the page's offsets follow from its sizes"
        end += int(size)
        cut[name.strip("`")] = data[int(offset) : end]
    return cut, end


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_page_alone_is_enough_to_read_a_record(index: int) -> None:
    data, draft = blob(index), DRAFTS[index]
    assert int.from_bytes(data[-4:], "big") == crc32c_by_the_book(data[:-4])
    fixed, position = fields("### Fixed fields", data)
    assert fixed["magic"] == b"SMLG"
    number = {name: int.from_bytes(value, "big") for name, value in fixed.items()}
    assert number["version"] == 1
    assert (number["record type"], number["part count"]) == (draft.record_type, len(draft.parts))
    assert (number["stream"], number["epoch"]) == (5, 2)
    assert (number["sequence"], number["item count"]) == ((0, 1, 4)[index], draft.item_count)
    received = int.from_bytes(fixed["received at"], "big", signed=True)
    assert received == draft.received_at_us
    headers = []
    for _ in draft.parts:
        header, size = fields("### Part table", data[position:])
        headers.append(header)
        position += size
    envelope_end = position
    for part, header in zip(draft.parts, headers, strict=True):
        body, size = fields("### Stored parts", data[position:])
        position += size
        length = int.from_bytes(body["stored length"], "big")
        stored = data[position : position + length]
        position += length
        assert (body["state"], stored) == (b"\0", part.data)
        assert header["kind"] == bytes([part.kind])
        assert header["digest"] == blake2b(stored, digest_size=32).digest()
        assert int.from_bytes(header["length"], "big") == length
    assert position == len(data) - 4
    own_hash = blake2b(data[:envelope_end], digest_size=32).digest()
    expected = LOG["hash of record 4"] if index == 2 else blob(index + 1)[36:68]
    assert own_hash == expected
    if index == 0:
        assert fixed["previous hash"] == bytes(32)


def test_the_page_names_every_part_state() -> None:
    states = {int(row[0]): row[1].strip("`") for row in tables("### Part states")}
    assert states == {int(state): state.name for state in PartState}


def test_the_worked_example_of_the_page_is_the_golden_record() -> None:
    section = PAGE.read_text().split("## A worked example", 1)[1].split("\n## ", 1)[0]
    block = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert block is not None
    shown = "".join(line.split("  ")[0] for line in block.group(1).splitlines())
    assert bytes.fromhex(shown).hex() == blob(1).hex()
    assert LOG["hash of record 0"].hex() in section


# Event groups and control records.

NARROW = TenantEvents(
    "acme",
    ("api_calls", "storage", "api_calls"),
    ("c-1", "c-1", "ü-2"),
    (1_000_000, -1, 2**63 - 1),
    (1_700_000_000_000_000, None, -1),
    bytes((0, 63, 7)),
    (b"\x01" * 16, b"\x02" * 16, b"\x03" * 16),
    (b"\x11" * 16, b"\x12" * 16, b"\x13" * 16),
    bytes((0, 1, 3)),
    ("k1", "auto:ff", ""),
    (None, "r-1", None),
    (None, None, '{"a":1}'),
    {},
)
WIDE = NARROW._replace(
    micros=(10**21 - 1, -(2**63) - 1, 5), extra={"import": "imp_1", "historic": True}
)


@pytest.mark.parametrize(("title", "events"), [("narrow", NARROW), ("wide", WIDE)])
def test_event_groups_have_their_golden_bytes(title: str, events: TenantEvents) -> None:
    counting, erasable = encode_counting(events), encode_erasable(events)
    assert counting.hex() == GROUPS[f"{title}, counting part"].hex()
    assert erasable.hex() == GROUPS["erasable part of both"].hex()
    read = decode_events(counting, erasable)
    assert [list(column) for column in read[1:-1]] == [list(column) for column in events[1:-1]]
    assert (read.tenant, read.extra) == (events.tenant, events.extra)


def test_quantities_are_int64_in_msgpack_and_16_bytes_of_extension_1_beyond() -> None:
    def not_ours(code: int, data: memoryview) -> Any:
        return (code, bytes(data))

    decoder = msgspec.msgpack.Decoder(ext_hook=not_ours)
    narrow = decoder.decode(GROUPS["narrow, counting part"])
    wide = decoder.decode(GROUPS["wide, counting part"])
    assert narrow[4] == list(NARROW.micros)
    assert wide[4] == [
        (1, (10**21 - 1).to_bytes(16, "big", signed=True)),
        (1, (-(2**63) - 1).to_bytes(16, "big", signed=True)),
        5,
    ]
    assert wide[:4] == narrow[:4]
    assert wide[5:-1] == narrow[5:-1]


@pytest.mark.parametrize(
    ("title", "record"),
    [
        (
            "GENESIS",
            Genesis(log_id=bytes(range(16)), partition_count=64, partition_hash="h", software="1"),
        ),
        ("PERIOD_CLOSING", PeriodClosing(start_us=0, end_us=2**40, lateness_us=5)),
    ],
)
def test_control_records_of_version_1_are_read_for_ever(
    title: str, record: Genesis | PeriodClosing
) -> None:
    # Read, not written: a later version may add a field to the map.
    assert decode_control(RecordType[title], CONTROLS[title]) == record
    record_type, data = encode_control(record)
    assert record_type == RecordType[title]
    assert decode_control(record_type, data) == record


def test_the_page_names_every_record_type_and_part_kind() -> None:
    types = {int(row[0]): row[1].strip("`") for row in tables("### Record types")}
    assert types == {int(record_type): record_type.name for record_type in RecordType}
    kinds = {int(row[0]): row[1].strip("`") for row in tables("### Part kinds")}
    assert kinds == {int(kind): kind.name for kind in PartKind}
