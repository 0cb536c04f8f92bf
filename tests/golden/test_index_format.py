"""The bytes of runs, manifests and snapshots: changing any of them needs a new version number.

`index_v1.hex` was written once and is never regenerated. `docs/INDEX_FORMAT.md` is held against it by a reader
written from that page alone, without our code.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from pathlib import Path

import pytest
from crc32c import crc32c

from wal.run_blocks import (
    BLOCK_ENTRIES_MAX,
    Manifest,
    RunInfo,
    block_entries,
    block_high,
    decode_manifest,
    encode_block,
    encode_manifest,
    find_in_block,
)
from wal.snapshot import MemorySnapshots, write
from wal.snapshot_format import Section

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "INDEX_FORMAT.md"

LOG_ID = bytes(range(16))
LOW = bytes(15) + b"\x07"
HIGH = b"\xf0" + bytes(15)
ENTRIES = LOW + b"finger_1" + b"\x80" * 16 + b"finger_2"
MANIFEST = Manifest(LOG_ID, 3, 1_000_123, 18, (RunInfo(9, 2, 4_000_000_000), RunInfo(17, 0, 2)))
SECTIONS = (Section(1, 41, b"counters of partition 1"), Section(64, 44, b""))


def golden() -> dict[str, bytes]:
    text = re.sub(r"#.*", "", (HERE / "index_v1.hex").read_text())
    parts = re.split(r"^(\w+):", text, flags=re.MULTILINE)[1:]
    return {name: bytes.fromhex(data) for name, data in zip(parts[::2], parts[1::2], strict=True)}


def snapshot_bytes() -> bytes:
    store = MemorySnapshots()
    return store.files[write(store, LOG_ID, 3, 40, SECTIONS)]


def number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def test_what_is_written_today_is_byte_for_byte_what_was_written_then() -> None:
    assert golden() == {
        "block": encode_block(17, LOW, HIGH, ENTRIES).data,
        "last_block": encode_block(17, HIGH, None, ENTRIES[:24]).data,
        "manifest": encode_manifest(MANIFEST),
        "snapshot": snapshot_bytes(),
    }


def test_what_was_written_then_is_read_today() -> None:
    block = encode_block(17, LOW, HIGH, ENTRIES)._replace(data=golden()["block"])
    assert block_high(block) == HIGH
    assert bytes(block_entries(block)) == ENTRIES
    assert find_in_block(17, b"\x80" * 16, block) == b"finger_2"
    assert decode_manifest(golden()["manifest"]) == MANIFEST
    store = MemorySnapshots()
    store.files[f"{40:020d}-000000.snapshot"] = golden()["snapshot"]
    snapshot = store.newest_valid(LOG_ID, 3, 44).snapshot
    assert snapshot is not None
    assert tuple(snapshot.sections()) == SECTIONS


@pytest.mark.parametrize(
    ("name", "low", "high", "flags"), [("block", LOW, HIGH, 0), ("last_block", HIGH, bytes(16), 1)]
)
def test_the_page_describes_a_block(name: str, low: bytes, high: bytes, flags: int) -> None:
    data = golden()[name]
    assert number(data, 0, 4) == crc32c((17).to_bytes(4, "big") + low + data[4:])
    count = number(data, 4, 2)
    assert number(data, 6, 2) == flags
    assert data[8:24] == high
    assert data[24:] == ENTRIES[: count * 24]
    full = encode_block(1, LOW, None, b"".join(bytes([n]) * 24 for n in range(BLOCK_ENTRIES_MAX)))
    assert len(full.data) == 4080
    assert "4,080 bytes" in PAGE.read_text()
    assert "1 to 169" in PAGE.read_text()


def test_the_page_describes_the_manifest() -> None:
    data = golden()["manifest"]
    assert data[:4] == b"SMKI"
    assert "`SMKI`" in PAGE.read_text()
    assert (number(data, 4, 2), number(data, 6, 2)) == (1, 0)
    assert data[8:24] == LOG_ID
    assert (number(data, 24, 4), number(data, 28, 8), number(data, 36, 4)) == (3, 1_000_123, 18)
    assert number(data, 40, 4) == 2
    runs = [
        (number(data, at, 4), number(data, at + 4, 4), number(data, at + 8, 8)) for at in (44, 60)
    ]
    assert runs == [(9, 2, 4_000_000_000), (17, 0, 2)]
    assert number(data, 76, 4) == crc32c(data[:76])
    assert len(data) == 80


def test_the_page_describes_a_snapshot() -> None:
    data = golden()["snapshot"]
    assert data[:8] == b"SMSNAP\r\n"
    assert (number(data, 8, 2), number(data, 10, 2), number(data, 12, 4)) == (1, 0, 3)
    assert data[16:32] == LOG_ID
    assert number(data, 32, 8) == 40
    at = 40
    for section in SECTIONS:
        assert (number(data, at, 4), number(data, at + 4, 8)) == section[:2]
        length = number(data, at + 12, 8)
        body = data[at + 24 : at + 24 + length]
        assert body == section.data
        assert number(data, at + 20, 4) == crc32c(data[at : at + 20] + body)
        at += 24 + length
    assert (number(data, at, 4), number(data, at + 4, 4)) == (0xFFFFFFFF, 2)
    assert data[at + 8 :] == blake2b(data[: at + 8], digest_size=32).digest()


def test_the_checksum_is_the_one_the_page_names() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert "0xE3069283" in PAGE.read_text()
