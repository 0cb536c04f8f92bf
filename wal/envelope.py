"""The bytes of one record: encode and decode, CRC, digests, chain. The layout is docs/LOG_FORMAT.md.

Rules it keeps: the chain covers the envelope, the envelope holds digests of the parts, so a part can be
replaced (erased, trimmed) without touching the chain; the CRC covers everything stored, so a flipped bit is
found without hashing. Pure bytes: it must not know where a blob is stored or what a part means.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct

from crc32c import crc32c

from wal.log import Draft, Envelope, LogDamaged, PartHeader, PartState, StoredPart, StoredRecord

MAGIC = b"SMLG"
VERSION = 1
HASH_BYTES = 32
GENESIS_HASH = bytes(HASH_BYTES)
"""`previous_hash` of a log's first record."""

# magic, version, record type, part count, stream, epoch, sequence, item count, received_at_us, previous hash
_FIXED = Struct(">4sBBHIIQIq32s")
_PART = Struct(">B32sI")  # kind, digest, original length
_BODY = Struct(">BI")  # state, stored length
_CRC = Struct(">I")
PARTS_MAX = 0xFFFF
# Plain integers: looking up an enum's member per part would cost as much as hashing it.
_INTACT = int(PartState.INTACT)
_PSEUDONYM = int(PartState.PSEUDONYM)
"""Its digest is in an erase record: only who reads those can compare them (`wal.check`'s `inspect`)."""
_REPLACED = frozenset((int(PartState.TOMBSTONE), _PSEUDONYM, int(PartState.TRIMMED)))


def digest_of(data: bytes) -> bytes:
    """blake2b-256, of a part's bytes or of an envelope's."""
    return blake2b(data, digest_size=HASH_BYTES).digest()


def seal(
    draft: Draft, *, stream: int, epoch: int, sequence: int, previous_hash: bytes
) -> tuple[Envelope, bytes, bytes]:
    """Chain a draft: its envelope, the blob to store, and the envelope's hash (the next `previous_hash`)."""
    assert draft.item_count >= 1, "a record takes at least one position"
    assert len(draft.parts) <= PARTS_MAX
    assert len(previous_hash) == HASH_BYTES
    headers = tuple(PartHeader(p.kind, digest_of(p.data), len(p.data)) for p in draft.parts)
    envelope = Envelope(
        VERSION,
        draft.record_type,
        stream,
        epoch,
        sequence,
        draft.item_count,
        draft.received_at_us,
        previous_hash,
        headers,
    )
    head = encode_envelope(envelope)
    parts = tuple(StoredPart(p.kind, PartState.INTACT, p.data) for p in draft.parts)
    return envelope, _blob(head, parts), digest_of(head)


def encode_envelope(envelope: Envelope) -> bytes:
    """The bytes that the chain's hash covers."""
    fixed = _FIXED.pack(
        MAGIC,
        envelope.version,
        envelope.record_type,
        len(envelope.parts),
        envelope.stream,
        envelope.epoch,
        envelope.sequence,
        envelope.item_count,
        envelope.received_at_us,
        envelope.previous_hash,
    )
    return fixed + b"".join(_PART.pack(p.kind, p.digest, p.length) for p in envelope.parts)


def replace_parts(record: StoredRecord, parts: tuple[StoredPart, ...]) -> bytes:
    """The blob of a record with other stored parts under the same envelope (erasing, trimming)."""
    assert len(parts) == len(record.envelope.parts), "an envelope's parts are fixed"
    return _blob(encode_envelope(record.envelope), parts)


def replaced(record: StoredRecord, parts: tuple[StoredPart, ...]) -> bytes:
    """The same for a log's `replace`: parts that `decode` would refuse, or of another kind, are a bug."""
    for part, header in zip(parts, record.envelope.parts, strict=False):
        assert part.kind == header.kind, "a part's kind is fixed"
        if part.state == _INTACT:
            assert digest_of(part.data) == header.digest, "an intact part has its original bytes"
        else:
            assert part.state in _REPLACED, part.state
            assert not part.data or part.state == _PSEUDONYM, "only a pseudonymised part has bytes"
    return replace_parts(record, parts)


def trimmed(record: StoredRecord, record_type: int) -> bytes | None:
    """The record's blob without its bodies; None when it is of another type or already trimmed."""
    if record.envelope.record_type != record_type:
        return None
    if all(part.state == PartState.TRIMMED for part in record.parts):
        return None
    parts = tuple(StoredPart(part.kind, PartState.TRIMMED, b"") for part in record.parts)
    return replace_parts(record, parts)


def _blob(head: bytes, parts: tuple[StoredPart, ...]) -> bytes:
    chunks = [head]
    for part in parts:
        chunks.append(_BODY.pack(part.state, len(part.data)))
        chunks.append(part.data)
    body = b"".join(chunks)
    return body + _CRC.pack(crc32c(body))


def decode(blob: bytes, key_sequence: int) -> StoredRecord:
    """Read a stored blob and verify it: CRC, key, layout, digests of intact parts.

    `key_sequence` is the position it was stored under. Raises LogDamaged that names the record and what
    is wrong. The link to the record before it is the caller's to compare.
    """
    size = len(blob)
    if size < _FIXED.size + _CRC.size:
        raise _damaged(key_sequence, f"it is cut short ({size} bytes)")
    if crc32c(memoryview(blob)[: size - 4]) != _CRC.unpack_from(blob, size - 4)[0]:
        raise _damaged(
            key_sequence, "its checksum does not match: a bit was flipped or a write was torn"
        )
    magic, version, record_type, count, stream, epoch, sequence, items, received, previous = (
        _FIXED.unpack_from(blob)
    )
    if magic != MAGIC:
        raise _damaged(key_sequence, "it is not a record of this log (wrong magic)")
    if version != VERSION:
        raise _damaged(
            key_sequence, f"its format version is {version}; this program reads {VERSION}"
        )
    if sequence != key_sequence:
        raise _damaged(key_sequence, f"it says it is record {sequence}: it was moved")
    if items < 1:
        raise _damaged(key_sequence, "it holds no items")
    head_size = _FIXED.size + count * _PART.size
    if head_size + 4 > size:
        raise _damaged(key_sequence, "its table of parts is cut short")
    head = blob[:head_size]
    headers = tuple(map(PartHeader._make, _PART.iter_unpack(head[_FIXED.size :])))
    parts = _decode_parts(blob, head_size, headers, key_sequence)
    envelope = Envelope(
        version, record_type, stream, epoch, sequence, items, received, previous, headers
    )
    return StoredRecord(envelope, parts, digest_of(head))


def _decode_parts(
    blob: bytes, offset: int, headers: tuple[PartHeader, ...], sequence: int
) -> tuple[StoredPart, ...]:
    end = len(blob) - _CRC.size
    parts = []
    for index, (kind, digest, original_length) in enumerate(headers):
        start = offset + _BODY.size
        if start > end:
            raise _damaged(sequence, f"its part {index} is missing")
        state, length = _BODY.unpack_from(blob, offset)
        offset = start + length
        if offset > end:
            raise _damaged(sequence, f"its part {index} is cut short")
        data = blob[start:offset]
        if state == _INTACT:
            if length != original_length or digest_of(data) != digest:
                raise _damaged(
                    sequence, f"its part {index} does not match its digest: it was changed"
                )
        elif state not in _REPLACED or (length and state != _PSEUDONYM):
            raise _damaged(
                sequence, f"its part {index} has the state {state} with {length} bytes: unknown"
            )
        parts.append(StoredPart(kind, state, data))
    if offset != end:
        raise _damaged(sequence, f"{end - offset} bytes follow its last part")
    return tuple(parts)


def _damaged(sequence: int, what: str) -> LogDamaged:
    return LogDamaged(
        f"record {sequence} is damaged: {what}. Stop, keep a copy of the directory, restore from a backup.",
        sequence,
    )
