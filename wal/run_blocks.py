"""The bytes of the key index's blocks and manifest: encoding, and checking on every read.

Rules it keeps: a block that is wrong, missing, or read in another's place is found by the reader, because a
wrong block would silently turn a duplicate into a new event. So a block names the range of keys it answers
for ([low, high), the ranges of a run tile the key space without a gap), and its CRC32C covers the run's id
and the range too. It must not know where blocks are kept (`wal.runs`). Byte layout: docs/INDEX_FORMAT.md.

169 entries and the header are 4,080 bytes: with LMDB's own page header exactly one 4 KiB overflow page.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from crc32c import crc32c

from wal.runs import Block, IndexDamaged

KEY_BYTES: Final = 16
FINGERPRINT_BYTES: Final = 8
ENTRY_BYTES: Final = KEY_BYTES + FINGERPRINT_BYTES
BLOCK_ENTRIES_MAX: Final = 169
LOW_MIN: Final = bytes(KEY_BYTES)
"""The low end of a run's first block, whatever its first key is."""
RUN_ID_MAX: Final = 2**32 - 1
RUNS_MAX: Final = 1024
"""Far more than tiers ever leave (about 4 per tier); only damage or a bug is beyond it."""
LOG_ID_BYTES: Final = 16

_BLOCK_HEADER: Final = struct.Struct(">IHH16s")
_CRC: Final = struct.Struct(">I")
_FLAG_LAST: Final = 1
_RANGE: Final = struct.Struct(">I16s")
BLOCK_BYTES_MAX: Final = _BLOCK_HEADER.size + BLOCK_ENTRIES_MAX * ENTRY_BYTES
assert BLOCK_BYTES_MAX == 4096 - 16, "one LMDB overflow page, whose own header takes 16 bytes"

_MANIFEST_MAGIC: Final = b"SMKI"
MANIFEST_VERSION: Final = 1
_MANIFEST_HEADER: Final = struct.Struct(">4sHH16sIQII")
_MANIFEST_RUN: Final = struct.Struct(">IIQ")


class RunInfo(NamedTuple):
    """A live run: its id, its tier (0: straight from memory), how many entries it has."""

    run_id: int
    tier: int
    entries: int


class Manifest(NamedTuple):
    """What the index consists of. `runs` are in order of age, oldest first.

    Every key of the log's records below `watermark` is in `runs`. `next_run_id` was never used.
    """

    log_id: bytes
    epoch: int
    watermark: int
    next_run_id: int
    runs: tuple[RunInfo, ...]


def encode_block(run_id: int, low: bytes, high: bytes | None, entries: bytes | memoryview) -> Block:
    """The block of `entries` (sorted, 24 bytes each, 1..169) that answers for [low, high).

    `high` is the first key of the run's next block, or None for the last block.
    """
    count, rest = divmod(len(entries), ENTRY_BYTES)
    assert rest == 0
    assert 1 <= count <= BLOCK_ENTRIES_MAX
    assert len(low) == KEY_BYTES
    flags = 0 if high is not None else _FLAG_LAST
    header = _BLOCK_HEADER.pack(0, count, flags, high if high is not None else bytes(KEY_BYTES))
    body = header[_CRC.size :] + entries
    return Block(run_id, low, _CRC.pack(crc32c(body, crc32c(_RANGE.pack(run_id, low)))) + body)


def block_high(block: Block) -> bytes | None:
    """The end of the block's range (None: it is the run's last), after checking all of its bytes.

    Raises IndexDamaged.
    """
    run_id, low, data = block
    if not _BLOCK_HEADER.size < len(data) <= BLOCK_BYTES_MAX:
        raise _damaged(f"a block of {len(data)} bytes in run {run_id}")
    expected, count, flags, high = _BLOCK_HEADER.unpack_from(data)
    if crc32c(memoryview(data)[_CRC.size :], crc32c(_RANGE.pack(run_id, low))) != expected:
        raise _damaged(f"block {low.hex()} of run {run_id} has a wrong checksum")
    if len(data) != _BLOCK_HEADER.size + count * ENTRY_BYTES:
        raise _damaged(f"block {low.hex()} of run {run_id} has a wrong length")
    return None if flags & _FLAG_LAST else high


def block_entries(block: Block) -> memoryview:
    """The entries of a block that `block_high` has checked."""
    return memoryview(block.data)[_BLOCK_HEADER.size :]


def find_in_block(run_id: int, key: bytes, block: Block | None) -> bytes | None:
    """The fingerprint of `key` in the block that the store says answers for it; None: not in this run.

    Raises IndexDamaged if the block is not what was written, or not the one to ask.
    """
    if block is None or block.run_id != run_id:
        raise _damaged(f"no block of run {run_id} answers for {key.hex()}")
    high = block_high(block)
    if not (block.low <= key and (high is None or key < high)):
        raise _damaged(f"the block of run {run_id} that answers for {key.hex()} is missing")
    data = block.data
    at = data.find(key, _BLOCK_HEADER.size)
    # The pattern may also straddle two entries: only an aligned hit is a key.
    while at >= 0 and (at - _BLOCK_HEADER.size) % ENTRY_BYTES:
        at = data.find(key, at + 1)
    if at < 0:
        return None
    return data[at + KEY_BYTES : at + ENTRY_BYTES]


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest's bytes. The inverse of `decode_manifest`."""
    assert len(manifest.log_id) == LOG_ID_BYTES
    assert len(manifest.runs) <= RUNS_MAX
    parts = [
        _MANIFEST_HEADER.pack(
            _MANIFEST_MAGIC,
            MANIFEST_VERSION,
            0,
            manifest.log_id,
            manifest.epoch,
            manifest.watermark,
            manifest.next_run_id,
            len(manifest.runs),
        )
    ]
    parts += [_MANIFEST_RUN.pack(*run) for run in manifest.runs]
    body = b"".join(parts)
    return body + _CRC.pack(crc32c(body))


def decode_manifest(data: bytes) -> Manifest:
    """The manifest of these bytes. Raises IndexDamaged: wrong bytes, or a version not known here."""
    if len(data) < _MANIFEST_HEADER.size + _CRC.size:
        raise _damaged("the manifest is too short")
    body = data[: -_CRC.size]
    if _CRC.unpack(data[-_CRC.size :])[0] != crc32c(body):
        raise _damaged("the manifest has a wrong checksum")
    magic, version, _, log_id, epoch, watermark, next_run_id, count = _MANIFEST_HEADER.unpack_from(
        body
    )
    if magic != _MANIFEST_MAGIC or version != MANIFEST_VERSION:
        raise _damaged(
            f"the manifest has version {version}, this program writes {MANIFEST_VERSION}"
        )
    if len(body) != _MANIFEST_HEADER.size + count * _MANIFEST_RUN.size:
        raise _damaged("the manifest has a wrong length")
    runs = tuple(RunInfo(*run) for run in _MANIFEST_RUN.iter_unpack(body[_MANIFEST_HEADER.size :]))
    return Manifest(log_id, epoch, watermark, next_run_id, runs)


def _damaged(what: str) -> IndexDamaged:
    return IndexDamaged(
        f"The key index is damaged: {what}. It is rebuilt from the log at the next start."
    )
