"""`check_log` finds every change of a stored record and names it, and reads refuse what it names."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from wal.check import CheckReport, check_log
from wal.envelope import GENESIS_HASH, decode, digest_of, encode_envelope, replace_parts, seal
from wal.log import (
    Draft,
    DraftPart,
    Head,
    LogDamaged,
    LogStateUnknown,
    LogWriteFailed,
    PartState,
    StoredPart,
    StoredRecord,
    scan,
)
from wal.memory_log import FakeDisk, MemoryLog, Operation, Verdict

KEYS = (0, 3, 4, 104, 105)
"""Where the records of `filled_disk` are."""


def draft(items: int, body: bytes) -> Draft:
    return Draft(2, items, 1_000_000, (DraftPart(1, body), DraftPart(2, body[:4])))


def filled_disk() -> FakeDisk:
    log = MemoryLog(FakeDisk())
    for items, body in ((3, b"first"), (1, b""), (100, b"x" * 120), (1, b"fourth"), (2, b"fifth")):
        log.append([draft(items, body)])
    return log.disk


class Stored:
    """Blobs as `check_log` and `decode` see them, without a log that would refuse to open."""

    def __init__(self, blobs: dict[int, bytes]) -> None:
        self.blobs = blobs

    def raw(self, from_key: int, *, bytes_max: int) -> list[tuple[int, bytes]]:
        del bytes_max
        return [(key, self.blobs[key]) for key in sorted(self.blobs) if key >= from_key][:2]

    def record_count(self) -> int:
        return len(self.blobs)


def check(blobs: dict[int, bytes], anchor: Head | None = None) -> CheckReport:
    return check_log(Stored(blobs), anchor=anchor)


def named(report: CheckReport) -> list[int | None]:
    return [problem.sequence for problem in report.problems]


def resealed(blob: bytes, key: int, change: Callable[[StoredRecord], StoredRecord]) -> bytes:
    """The blob of a changed record, with a checksum that matches: an edit, not rot."""
    record = change(decode(blob, key))
    return replace_parts(record, record.parts)


def test_a_sound_log_is_ok_and_counted() -> None:
    disk = filled_disk()
    log = MemoryLog(disk)
    seen: list[tuple[int, int]] = []
    report = check_log(log, lambda records, size: seen.append((records, size)), anchor=log.head())
    assert report.ok
    assert (report.records, report.items, report.next_sequence) == (5, 107, 107)
    assert report.head_hash == log.head().hash
    assert report.stored_bytes == disk.used_bytes()
    assert seen == [(5, disk.used_bytes())]


def test_an_empty_log_is_ok() -> None:
    report = check_log(MemoryLog(), anchor=Head(0, GENESIS_HASH, 0, 1))
    assert report.ok
    assert (report.records, report.next_sequence, report.head_hash) == (0, 0, GENESIS_HASH)


@pytest.mark.parametrize("key", KEYS)
def test_every_single_bit_of_every_stored_blob_matters(key: int) -> None:
    disk = filled_disk()
    good = disk.durable[key]
    for bit in range(len(good) * 8):
        blob = bytearray(good)
        blob[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LogDamaged) as caught:
            decode(bytes(blob), key)
        assert caught.value.sequence == key
        if bit % 97 == 0:  # the whole walk costs more
            assert named(check({**disk.durable, key: bytes(blob)})) == [key], bit


def test_a_flip_on_the_fake_disk_is_refused_by_reads_and_named(rng: Random) -> None:
    for _ in range(100):
        disk = filled_disk()
        log = MemoryLog(disk)
        key = rng.choice(KEYS)
        disk.flip(rng, key)
        assert named(check_log(log, anchor=log.head())) == [key]
        with pytest.raises(LogDamaged) as caught:
            list(scan(log, 0))
        assert caught.value.sequence == key


def test_a_blob_under_another_key_says_so() -> None:
    with pytest.raises(LogDamaged, match="it says it is record 3: it was moved") as caught:
        decode(filled_disk().durable[3], 5)
    assert caught.value.sequence == 5


def test_every_cut_of_a_blob_is_found() -> None:
    disk = filled_disk()
    for length in range(len(disk.durable[4])):
        assert named(check({**disk.durable, 4: disk.durable[4][:length]})) == [4]


def test_every_damaged_record_is_named_in_one_report() -> None:
    disk = filled_disk()
    blobs = {key: blob[:-1] if key in (0, 4, 104) else blob for key, blob in disk.durable.items()}
    report = check(blobs)
    assert named(report) == [0, 4, 104]
    assert (report.records, report.items) == (5, 3)


@pytest.mark.parametrize("lost", KEYS[:-1])
def test_a_lost_record_is_found_at_the_one_after_it(lost: int) -> None:
    blobs = filled_disk().durable
    del blobs[lost]
    assert named(check(blobs)) == [KEYS[KEYS.index(lost) + 1]]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_cut_tail_is_found_by_an_anchor_only(count: int) -> None:
    disk = filled_disk()
    head = MemoryLog(disk).head()
    blobs = {key: disk.durable[key] for key in KEYS[:-count]}
    assert check(blobs).ok
    report = check(blobs, anchor=head)
    assert named(report) == [None]
    assert "last records were lost" in report.problems[0].message


def test_an_anchor_of_an_earlier_head_holds_for_ever() -> None:
    log = MemoryLog()
    anchors = [log.head()]
    for n in range(5):
        log.append([draft(n + 1, b"body")])
        anchors.append(log.head())
    assert all(check_log(log, anchor=anchor).ok for anchor in anchors)
    other = anchors[3]._replace(hash=anchors[2].hash[::-1])
    assert named(check_log(log, anchor=other)) == [None]


def test_a_damaged_record_that_an_anchor_speaks_of_is_reported_once() -> None:
    log = MemoryLog()
    anchors = []
    for _ in range(3):
        log.append([draft(1, b"body")])
        anchors.append(log.head())
    log.disk.durable[1] = log.disk.durable[1][:-1]
    assert [named(check_log(log, anchor=anchor)) for anchor in anchors] == [[1], [1], [1]]
    log.disk.durable[2] = log.disk.durable[2][:-1]
    assert named(check_log(log, anchor=anchors[2])) == [1, 2]


def test_two_swapped_records_are_both_named() -> None:
    blobs = filled_disk().durable
    blobs[0], blobs[3] = blobs[3], blobs[0]
    assert named(check(blobs))[:2] == [0, 3]


def test_two_swapped_records_that_claim_each_others_place_break_the_chain() -> None:
    blobs = filled_disk().durable

    def moved(from_key: int, to_key: int) -> bytes:
        return resealed(
            blobs[from_key],
            from_key,
            lambda record: record._replace(envelope=record.envelope._replace(sequence=to_key)),
        )

    # 3 and 4 both could stand in the other's place: what comes before and after does not fit.
    blobs[3], blobs[4] = moved(4, 3), moved(3, 4)
    assert set(named(check(blobs))) >= {3, 4, 104}


def test_an_inserted_record_is_found() -> None:
    log = MemoryLog()
    log.append([draft(1, b"a")])
    between = log.head()
    log.append([draft(1, b"b")])
    _, blob, _ = seal(draft(1, b"i"), stream=0, epoch=1, sequence=1, previous_hash=between.hash)
    log.disk.durable[1 << 20] = log.disk.durable.pop(1)  # make room, as a forger would
    report = check({**log.disk.durable, 1: blob})
    assert not report.ok
    _, late, _ = seal(draft(1, b"c"), stream=0, epoch=1, sequence=2, previous_hash=between.hash)
    assert named(check({0: log.disk.durable[0], 1: blob, 2: late})) == [2]


def test_a_record_that_overlaps_the_one_before_is_found() -> None:
    _, first, previous = seal(
        draft(5, b"a"), stream=0, epoch=1, sequence=0, previous_hash=GENESIS_HASH
    )
    _, second, _ = seal(draft(1, b"b"), stream=0, epoch=1, sequence=3, previous_hash=previous)
    report = check({0: first, 3: second})
    assert named(report) == [3]
    assert "overlaps" in report.problems[0].message


@pytest.mark.parametrize(("stream", "epoch"), [(1, 2), (0, 1)])
def test_another_stream_and_an_epoch_that_falls_are_found(stream: int, epoch: int) -> None:
    _, first, previous = seal(
        draft(1, b"a"), stream=0, epoch=2, sequence=0, previous_hash=GENESIS_HASH
    )
    _, second, _ = seal(
        draft(1, b"b"), stream=stream, epoch=epoch, sequence=1, previous_hash=previous
    )
    assert named(check({0: first, 1: second})) == [1]


ENVELOPE_EDITS: dict[str, Callable[[StoredRecord], StoredRecord]] = {
    "type": lambda r: r._replace(envelope=r.envelope._replace(record_type=9)),
    "time": lambda r: r._replace(envelope=r.envelope._replace(received_at_us=5)),
    "epoch": lambda r: r._replace(envelope=r.envelope._replace(epoch=7)),
    "items": lambda r: r._replace(envelope=r.envelope._replace(item_count=77)),
    "part kind": lambda r: r._replace(
        envelope=r.envelope._replace(
            parts=(r.envelope.parts[0]._replace(kind=8), *r.envelope.parts[1:])
        )
    ),
    "part and digest": lambda r: r._replace(
        envelope=r.envelope._replace(
            parts=(
                r.envelope.parts[0]._replace(digest=digest_of(b"cheat"), length=5),
                *r.envelope.parts[1:],
            )
        ),
        parts=(r.parts[0]._replace(data=b"cheat"), *r.parts[1:]),
    ),
}


@pytest.mark.parametrize("edit", ENVELOPE_EDITS)
@pytest.mark.parametrize("key", KEYS[:-1])
def test_an_edited_envelope_with_a_matching_checksum_breaks_the_chain(edit: str, key: int) -> None:
    blobs = filled_disk().durable
    blobs[key] = resealed(blobs[key], key, ENVELOPE_EDITS[edit])
    report = check(blobs)
    assert KEYS[KEYS.index(key) + 1] in named(report)


@pytest.mark.parametrize("edit", ENVELOPE_EDITS)
def test_an_edit_of_the_last_envelope_is_found_by_an_anchor(edit: str) -> None:
    disk = filled_disk()
    head = MemoryLog(disk).head()
    blobs = disk.durable
    blobs[105] = resealed(blobs[105], 105, ENVELOPE_EDITS[edit])
    assert named(check(blobs, anchor=head))[-1] is None


def test_an_edited_part_with_a_matching_checksum_fails_its_digest() -> None:
    blobs = filled_disk().durable
    for data in (b"First", b"firs", b""):
        edited = resealed(
            blobs[0],
            0,
            lambda r, data=data: r._replace(parts=(r.parts[0]._replace(data=data), r.parts[1])),
        )
        report = check({**blobs, 0: edited})
        assert named(report) == [0]
        assert "digest" in report.problems[0].message


@pytest.mark.parametrize(
    "part",
    [
        StoredPart(1, PartState.TOMBSTONE, b"left"),
        StoredPart(1, PartState.TRIMMED, b"left"),
        StoredPart(1, 4, b""),
        StoredPart(1, 255, b"first"),
    ],
)
def test_a_part_in_no_known_state_is_damage(part: StoredPart) -> None:
    blobs = filled_disk().durable
    edited = resealed(blobs[0], 0, lambda r: r._replace(parts=(part, r.parts[1])))
    assert named(check({**blobs, 0: edited})) == [0]


def test_erased_and_trimmed_parts_are_counted_and_not_damage() -> None:
    blobs = filled_disk().durable
    for key, parts in (
        (0, (PartState.INTACT, PartState.TOMBSTONE)),
        (4, (PartState.INTACT, PartState.PSEUDONYM)),
        (104, (PartState.TRIMMED, PartState.TRIMMED)),
    ):
        record = decode(blobs[key], key)
        stored = tuple(
            old if state == PartState.INTACT else StoredPart(old.kind, state, b"")
            for old, state in zip(record.parts, parts, strict=True)
        )
        blobs[key] = replace_parts(record, stored)
    report = check(blobs)
    assert report.ok
    assert (report.parts_erased, report.parts_trimmed) == (2, 2)


def test_who_knows_the_parts_can_inspect_every_whole_record() -> None:
    disk = filled_disk()
    disk.durable[3] = disk.durable[3][:-1]
    seen: list[int] = []

    def inspect(record: StoredRecord) -> str | None:
        seen.append(record.sequence)
        return "it says what can't be" if record.sequence == 104 else None

    report = check_log(Stored(disk.durable), inspect=inspect)
    assert seen == [0, 4, 104, 105]
    assert named(report) == [3, 104]


def test_a_store_that_can_not_be_read_on_is_reported_and_ends_the_walk() -> None:
    class Broken(Stored):
        def raw(self, from_key: int, *, bytes_max: int) -> list[tuple[int, bytes]]:
            if from_key > 3:
                raise LogDamaged("the file can't be read near record 4", 4)
            return super().raw(from_key, bytes_max=bytes_max)

    assert named(check_log(Broken(filled_disk().durable))) == [4]


def test_a_store_that_counts_other_than_it_holds_is_reported() -> None:
    class Wrong(Stored):
        def record_count(self) -> int:
            return 6

    assert named(check_log(Wrong(filled_disk().durable))) == [None]


def test_a_report_is_bounded() -> None:
    report = check(dict.fromkeys(range(1500), b""))
    assert len(report.problems) == 1000
    assert not report.ok


def test_bytes_that_follow_the_last_part_or_are_missing_are_named() -> None:
    blobs = filled_disk().durable
    record = decode(blobs[0], 0)
    head = encode_envelope(record.envelope)
    for parts in (record.parts[:1], (*record.parts, record.parts[0])):
        one_more = record._replace(parts=parts, envelope=record.envelope)
        blob = _with_parts(head, one_more.parts)
        assert named(check({**blobs, 0: blob})) == [0]


def _with_parts(head: bytes, parts: tuple[StoredPart, ...]) -> bytes:
    from crc32c import crc32c

    body = head + b"".join(
        bytes((part.state,)) + len(part.data).to_bytes(4, "big") + part.data for part in parts
    )
    return body + crc32c(body).to_bytes(4, "big")


# The fake disk fails as the real one does: what the simulations stand on.


def faulty(at: Operation, verdict: Verdict) -> FakeDisk:
    disk = FakeDisk()
    MemoryLog(disk).append([draft(1, b"kept")])
    disk.fault = lambda operation: verdict if operation == at else "ok"
    return disk


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_a_refused_write_or_sync_leaves_nothing_and_a_retry_works(operation: Operation) -> None:
    disk = faulty(operation, "error")
    log = MemoryLog(disk)
    with pytest.raises(LogWriteFailed):
        log.append([draft(1, b"lost")])
    assert log.head().next_sequence == 1
    disk.fault = lambda _operation: "ok"
    assert log.append([draft(1, b"again")])[0].sequence == 1
    assert check_log(log, anchor=log.head()).ok


@pytest.mark.parametrize(("verdict", "kept"), [("error", 1), ("done-but-reported-failed", 2)])
def test_a_failed_head_breaks_the_log_until_the_next_process(verdict: Verdict, kept: int) -> None:
    disk = faulty("head", verdict)
    log = MemoryLog(disk)
    for _ in range(2):
        with pytest.raises(LogStateUnknown):
            log.append([draft(1, b"perhaps")])
    with pytest.raises(LogStateUnknown):
        log.read(0, bytes_max=1)
    disk.fault = lambda _operation: "ok"
    restarted = MemoryLog(disk)
    assert restarted.head().next_sequence == kept
    restarted.append([draft(1, b"on")])
    assert check_log(restarted).ok


def test_a_crash_never_loses_what_was_acknowledged(rng: Random) -> None:
    for _ in range(200):
        disk = FakeDisk()
        disk.fault = lambda _operation: "ok" if rng.random() < 0.8 else "error"
        log, acknowledged = MemoryLog(disk), 0
        for _ in range(10):
            try:
                log.append([draft(1, rng.randbytes(20))])
            except LogWriteFailed:
                continue
            except LogStateUnknown:
                break
            acknowledged += 1
        disk.crash(rng)
        disk.fault = lambda _operation: "ok"
        log = MemoryLog(disk)
        assert acknowledged <= log.head().next_sequence <= acknowledged + 1
        log.append([draft(1, b"after")])
        assert check_log(log, anchor=log.head()).ok


def test_trimming_on_a_failing_disk_changes_nothing() -> None:
    disk = faulty("sync", "error")
    log, before = MemoryLog(disk), dict(disk.durable)
    with pytest.raises(LogWriteFailed):
        log.trim(1, 2, records_max=1)
    assert disk.durable == before
    for seed in range(20):
        disk.crash(Random(seed))
        assert disk.durable == before
        with pytest.raises(LogWriteFailed):
            log.trim(1, 2, records_max=1)
    disk.fault = lambda _operation: "ok"
    assert log.trim(1, 2, records_max=1) == 1
