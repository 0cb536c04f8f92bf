"""The log's fsck, as a library call: reads every record and says which is wrong and how.

Rules it keeps: it trusts nothing but the bytes; it goes on after a damaged record, so that one report names them
all; it never writes. It must not know what the parts mean. It can't see a cut tail: only an anchor outside
the log can (the last records are simply not there).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from wal.envelope import GENESIS_HASH, decode
from wal.log import LogDamaged, PartState

PROBLEMS_MAX = 1000
_PAGE_BYTES = 4 << 20


class RawLog(Protocol):
    """What `check_log` reads from: stored blobs, unverified."""

    def raw(self, from_key: int, *, bytes_max: int) -> list[tuple[int, bytes]]:
        """Blobs stored under `from_key` or later, in order, as (key, blob); at least one if there is one."""
        ...


class Problem(NamedTuple):
    """One thing that is wrong: the record's sequence (None: the file itself) and what it is."""

    sequence: int | None
    message: str


class CheckReport(NamedTuple):
    """What `check_log` found. `problems` is cut at PROBLEMS_MAX."""

    records: int
    items: int
    stored_bytes: int
    parts_erased: int
    parts_trimmed: int
    next_sequence: int
    head_hash: bytes
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether every record is what was appended, in its place."""
        return not self.problems


def check_log(log: RawLog, progress: Callable[[int, int], None] | None = None) -> CheckReport:
    """Verify every record: CRC, layout, digests, place, and the chain from the first to the last.

    `progress(records, bytes)` is called after each page. Never raises for damage: it is in the report.
    """
    problems: list[Problem] = []
    records = items = size = erased = trimmed = 0
    expected_hash: bytes | None = GENESIS_HASH
    next_sequence, key = 0, -1
    while len(problems) < PROBLEMS_MAX:
        try:
            page = log.raw(key + 1, bytes_max=_PAGE_BYTES)
        except LogDamaged as error:
            problems.append(Problem(error.sequence, str(error)))
            break
        if not page:
            break
        for next_key, blob in page:
            previous_key, key = key, next_key
            size += len(blob)
            records += 1
            try:
                record = decode(blob, key)
            except LogDamaged as error:
                problems.append(Problem(key, str(error)))
                expected_hash = None  # unknown: the next record can't be held against it
                continue
            if expected_hash is not None and record.envelope.previous_hash != expected_hash:
                problems.append(Problem(key, _unlinked(key, previous_key)))
            elif key < next_sequence:
                problems.append(Problem(key, f"record {key} overlaps record {previous_key}"))
            erased += sum(
                p.state in (PartState.TOMBSTONE, PartState.PSEUDONYM) for p in record.parts
            )
            trimmed += sum(p.state == PartState.TRIMMED for p in record.parts)
            items += record.envelope.item_count
            expected_hash, next_sequence = record.hash, record.next_sequence
        if progress is not None:
            progress(records, size)
    head_hash = expected_hash or GENESIS_HASH
    return CheckReport(
        records,
        items,
        size,
        erased,
        trimmed,
        next_sequence,
        head_hash,
        tuple(problems[:PROBLEMS_MAX]),
    )


def _unlinked(sequence: int, previous_sequence: int) -> str:
    before = "nothing" if previous_sequence < 0 else f"record {previous_sequence}"
    return (
        f"record {sequence} does not follow {before}: a record between them was lost, "
        "or one of them was changed or inserted"
    )
