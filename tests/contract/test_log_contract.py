"""The promises of `wal.log.Log`, tested over every implementation.

Rule it keeps: each log is checked from the first record to the last when its test ends, unless the test damaged it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from threading import Thread

import lmdb
import pytest

from wal.check import check_log
from wal.envelope import GENESIS_HASH, digest_of, encode_envelope, seal
from wal.lmdb_log import LmdbLog
from wal.log import (
    Draft,
    DraftPart,
    LogDamaged,
    PartState,
    Replacement,
    StoredPart,
    StoredRecord,
    scan,
)
from wal.memory_log import FakeDisk, MemoryLog

GROUP, CONTROL = 1, 2
AnyLog = LmdbLog | MemoryLog


def draft(items: int = 1, *, body: bytes = b"body", record_type: int = GROUP) -> Draft:
    return Draft(record_type, items, 1_700_000_000_000_000, (DraftPart(0, body), DraftPart(1, b"")))


class Place:
    """Where one log lives: it can be reopened, and its blobs can be changed behind its back."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind, self.directory = kind, directory
        self.disk = FakeDisk()
        self.log: AnyLog = self.open()
        self.damaged = False

    def open(self, *, stream: int = 0) -> AnyLog:
        if self.kind == "lmdb":
            return LmdbLog(self.directory, stream=stream, map_bytes_start=1 << 24)
        return MemoryLog(self.disk, stream=stream)

    def reopen(self, *, stream: int = 0) -> AnyLog:
        self.log.close()
        self.log = self.open(stream=stream)
        return self.log

    def put(self, key: int, blob: bytes | None) -> None:
        """Store a blob under a key, or remove it, as no log would."""
        self.log.close()
        if self.kind == "lmdb":
            with (
                lmdb.open(str(self.directory), map_size=1 << 24) as environment,
                environment.begin(write=True) as transaction,
            ):
                name = key.to_bytes(8, "big")
                if blob is None:
                    transaction.delete(name)
                else:
                    transaction.put(name, blob)
        else:
            self.disk.durable.pop(key, None)
            if blob is not None:
                self.disk.durable[key] = blob
                self.disk.head = max(self.disk.head, key + 1)
        self.log = self.open()

    def blob(self, key: int) -> bytes:
        [(found, blob)] = self.log.raw(key, bytes_max=1)
        assert found == key
        return blob


@pytest.fixture(params=["lmdb", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    place = Place(request.param, tmp_path / "log")
    yield place
    report = check_log(place.log, anchor=place.log.head())
    place.log.close()
    assert report.ok != place.damaged, report.problems


@pytest.fixture
def log(place: Place) -> AnyLog:
    return place.log


def read_all(
    log: AnyLog, from_sequence: int = 0, *, bytes_max: int = 4 << 20
) -> list[StoredRecord]:
    return list(scan(log, from_sequence, bytes_max=bytes_max))


def test_an_empty_log_ends_at_position_0_with_the_genesis_hash(log: AnyLog) -> None:
    assert log.head() == (0, GENESIS_HASH, 0, 1)
    assert log.read(0, bytes_max=1) == []
    assert log.read(7, bytes_max=1) == []


def test_what_is_appended_is_read_back_with_its_place_time_and_parts(log: AnyLog) -> None:
    parts = (DraftPart(0, b""), DraftPart(255, b"\x00\xff" * 500), DraftPart(7, b"x"))
    [envelope] = log.append([Draft(255, 3, -5, parts)])
    [record] = log.read(0, bytes_max=1)
    assert record.envelope == envelope
    assert record.parts == tuple((part.kind, PartState.INTACT, part.data) for part in parts)
    assert (envelope.sequence, envelope.item_count, envelope.received_at_us) == (0, 3, -5)
    assert (envelope.record_type, envelope.stream, envelope.epoch) == (255, 0, 1)
    assert [(p.kind, p.digest, p.length) for p in envelope.parts] == [
        (part.kind, digest_of(part.data), len(part.data)) for part in parts
    ]


def test_a_record_without_parts_is_a_record(log: AnyLog) -> None:
    log.append([Draft(0, 1, 0, ())])
    assert [record.parts for record in read_all(log)] == [()]


def test_the_next_sequence_is_the_last_one_and_its_item_count(log: AnyLog) -> None:
    sequences = [log.append([draft(items)])[0].sequence for items in (1, 5, 1, 1000, 2)]
    assert sequences == [0, 1, 6, 7, 1007]
    assert log.head().next_sequence == 1009


def test_drafts_of_one_append_follow_each_other_in_order(log: AnyLog) -> None:
    envelopes = log.append([draft(3, body=b"a"), draft(1, body=b"b"), draft(2, body=b"c")])
    assert [envelope.sequence for envelope in envelopes] == [0, 3, 4]
    records = read_all(log)
    assert [record.parts[0].data for record in records] == [b"a", b"b", b"c"]
    assert tuple(record.envelope for record in records) == envelopes


def test_each_record_holds_the_hash_of_the_envelope_before_it(log: AnyLog) -> None:
    log.append([draft(), draft(2)])
    log.append([draft(9)])
    expected = GENESIS_HASH
    for record in read_all(log):
        assert record.envelope.previous_hash == expected
        assert record.hash == digest_of(encode_envelope(record.envelope))
        expected = record.hash
    assert log.head().hash == expected


def test_reading_from_the_middle_of_a_group_gives_the_whole_group(log: AnyLog) -> None:
    log.append([draft(1), draft(10), draft(1)])
    for position, first in ((0, 0), (1, 1), (2, 1), (10, 1), (11, 11)):
        assert log.read(position, bytes_max=1 << 20)[0].sequence == first
    assert log.read(12, bytes_max=1) == []
    assert log.read(1 << 60, bytes_max=1) == []


def test_a_page_ends_after_bytes_max_but_holds_at_least_one_record(log: AnyLog) -> None:
    log.append([draft(body=b"x" * 1000) for _ in range(10)])
    assert len(log.read(0, bytes_max=1)) == 1
    assert len(log.read(0, bytes_max=2000)) == 2
    assert len(log.read(3, bytes_max=1 << 20)) == 7


@pytest.mark.parametrize("bytes_max", [1, 300, 4096, 1 << 20])
def test_a_scan_gives_every_record_once_whatever_the_page_size(log: AnyLog, bytes_max: int) -> None:
    for size in (1, 10, 3, 200, 1, 1, 7):
        log.append([draft(size, body=b"y" * size)])
    records = read_all(log, bytes_max=bytes_max)
    assert [record.sequence for record in records] == [0, 1, 11, 14, 214, 215, 216]
    assert [record.sequence for record in read_all(log, 100, bytes_max=bytes_max)] == [
        14,
        214,
        215,
        216,
    ]


def test_readers_go_over_holes_between_positions(place: Place) -> None:
    place.log.append([draft(2)])
    head = place.log.head()
    _, blob, _ = seal(draft(3), stream=0, epoch=1, sequence=50, previous_hash=head.hash)
    place.put(50, blob)
    log = place.log
    assert log.head().next_sequence == 53
    [envelope] = log.append([draft()])
    assert envelope.sequence == 53
    for bytes_max in (1, 1 << 20):
        assert [r.sequence for r in read_all(log, bytes_max=bytes_max)] == [0, 50, 53]
        for position in (2, 3, 49, 50, 52):
            assert log.read(position, bytes_max=bytes_max)[0].sequence == 50
        assert log.read(1, bytes_max=bytes_max)[0].sequence == 0


def test_a_reopened_log_goes_on_where_it_ended(place: Place) -> None:
    place.log.append([draft(4), draft(2)])
    head, records = place.log.head(), read_all(place.log)
    log = place.reopen()
    assert log.head() == head
    assert read_all(log) == records
    [envelope] = log.append([draft()])
    assert (envelope.sequence, envelope.previous_hash) == (6, head.hash)


def test_a_log_goes_on_in_the_epoch_of_its_last_record(place: Place) -> None:
    place.log.append([draft()])
    head = place.log.head()
    _, blob, _ = seal(draft(), stream=0, epoch=3, sequence=1, previous_hash=head.hash)
    place.put(1, blob)
    assert place.log.head().epoch == 3
    [envelope] = place.log.append([draft()])
    assert envelope.epoch == 3
    assert place.reopen().head().epoch == 3


def test_every_envelope_carries_the_stream_it_was_opened_with(place: Place) -> None:
    log = place.reopen(stream=9)
    assert log.append([draft()])[0].stream == 9
    assert log.head().stream == 9
    with pytest.raises(LogDamaged, match="stream 9, not 0"):
        place.reopen(stream=0)
    place.log = place.open(stream=9)


def test_appending_nothing_is_a_bug(log: AnyLog) -> None:
    with pytest.raises(AssertionError):
        log.append([])


def test_a_draft_without_a_position_is_a_bug_and_leaves_the_log_as_it_was(log: AnyLog) -> None:
    with pytest.raises(AssertionError):
        log.append([draft(), Draft(0, 0, 0, ())])
    assert log.head().next_sequence == 0
    assert read_all(log) == []


def test_trimming_drops_bodies_and_keeps_envelopes_chain_and_positions(log: AnyLog) -> None:
    for n in range(6):
        log.append([draft(2, body=b"z" * 500, record_type=CONTROL if n == 2 else GROUP)])
    before, head, size = read_all(log), log.head(), log.size_bytes()
    assert log.trim(8, GROUP, records_max=100) == 3
    after = read_all(log)
    assert [r.envelope for r in after] == [r.envelope for r in before]
    assert [r.hash for r in after] == [r.hash for r in before]
    assert log.head() == head
    trimmed = [r.sequence for r in after if all(p.state == PartState.TRIMMED for p in r.parts)]
    assert trimmed == [0, 2, 6]
    assert all(part.data == b"" for r in after if r.sequence in trimmed for part in r.parts)
    assert [r.parts for r in after if r.sequence not in trimmed] == [
        r.parts for r in before if r.sequence not in trimmed
    ]
    assert log.size_bytes() <= size + (1 << 16)
    report = check_log(log)
    assert (report.parts_trimmed, report.parts_erased, report.items) == (6, 0, 12)


def test_trimming_stops_before_the_record_that_reaches_over_the_horizon(log: AnyLog) -> None:
    log.append([draft(5), draft(5)])
    assert log.trim(4, GROUP, records_max=9) == 0
    assert log.trim(9, GROUP, records_max=9) == 1
    assert log.trim(10, GROUP, records_max=9) == 1


def test_trimming_is_bounded_idempotent_and_goes_on_where_it_came_to(place: Place) -> None:
    log = place.log
    log.append([draft(record_type=GROUP if n % 3 else CONTROL) for n in range(30)])
    counts = [log.trim(30, GROUP, records_max=8) for _ in range(4)]
    assert counts == [8, 8, 4, 0]
    assert log.trim(30, CONTROL, records_max=100) == 10
    log.append([draft()])
    assert log.trim(31, GROUP, records_max=8) == 1
    log = place.reopen()
    assert log.trim(31, GROUP, records_max=8) == 0
    assert [e.sequence for e in log.append([draft()])] == [31]


def test_a_smaller_horizon_after_a_larger_one_trims_nothing(log: AnyLog) -> None:
    log.append([draft(), draft(), draft()])
    assert log.trim(3, GROUP, records_max=2) == 2
    assert log.trim(1, GROUP, records_max=2) == 0
    assert log.trim(3, GROUP, records_max=2) == 1


def test_a_damaged_record_is_named_by_every_read_that_meets_it(place: Place) -> None:
    place.log.append([draft(2), draft(2), draft(2)])
    blob = bytearray(place.blob(2))
    blob[-10] ^= 1
    place.put(2, bytes(blob))
    place.damaged = True
    for position, bytes_max in ((0, 1 << 20), (2, 1), (3, 1)):
        with pytest.raises(LogDamaged, match="record 2 is damaged") as caught:
            place.log.read(position, bytes_max=bytes_max)
        assert caught.value.sequence == 2
    assert [r.sequence for r in place.log.read(0, bytes_max=1)] == [0]
    assert [r.sequence for r in place.log.read(4, bytes_max=1)] == [4]


def test_a_lost_record_is_found_within_a_page_and_across_pages(place: Place) -> None:
    place.log.append([draft() for _ in range(5)])
    place.put(2, None)
    place.damaged = True
    for bytes_max in (1, 1 << 20):
        with pytest.raises(LogDamaged, match="does not follow") as caught:
            read_all(place.log, bytes_max=bytes_max)
        assert caught.value.sequence == 3
    with pytest.raises(LogDamaged, match="does not follow") as caught:
        place.log.read(0, bytes_max=1 << 20)
    assert caught.value.sequence == 3


def test_a_log_whose_last_record_is_damaged_refuses_to_open_and_names_it(place: Place) -> None:
    place.log.append([draft(), draft()])
    good = place.blob(1)
    with pytest.raises(LogDamaged, match="record 1 is damaged") as caught:
        place.put(1, good[: len(good) // 2])
    assert caught.value.sequence == 1
    # What failed to open must have let go of the directory: this repairs it.
    place.put(1, good)


def test_size_bytes_grows_with_what_is_stored(log: AnyLog) -> None:
    before = log.size_bytes()
    log.append([draft(body=bytes(1 << 18))])
    assert log.size_bytes() >= before + (1 << 18)


def test_readers_beside_the_writer_see_a_gapless_chain(log: AnyLog) -> None:
    stop: list[bool] = []
    failures: list[BaseException] = []

    def follow() -> None:
        try:
            while not stop:
                records = read_all(log, bytes_max=700)
                assert [r.sequence for r in records] == list(range(len(records)))
        except BaseException as error:
            failures.append(error)

    readers = [Thread(target=follow) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(15):
        log.append([draft(body=b"w" * 100)])
    stop.append(True)
    for reader in readers:
        reader.join()
    assert not failures


def test_random_appends_trims_and_reopenings_agree_with_a_list(place: Place, rng: Random) -> None:
    model: list[tuple[int, int, bytes | None]] = []  # sequence, item count, body (None: trimmed)
    actions: list[Callable[[], None]] = []

    def append() -> None:
        drafts = [
            draft(rng.choice((1, 2, 50)), body=rng.randbytes(rng.choice((0, 1, 90, 3000, 9000))))
            for _ in range(rng.randint(1, 4))
        ]
        for one, envelope in zip(drafts, place.log.append(drafts), strict=True):
            model.append((envelope.sequence, one.item_count, one.parts[0].data))

    def trim() -> None:
        horizon, most = rng.randint(0, place.log.head().next_sequence), rng.randint(1, 5)
        due = [i for i, (s, n, body) in enumerate(model) if s + n <= horizon and body is not None]
        assert place.log.trim(horizon, GROUP, records_max=most) == len(due[:most])
        for i in due[:most]:
            model[i] = (*model[i][:2], None)

    def read() -> None:
        position, bytes_max = rng.randint(0, place.log.head().next_sequence), rng.choice((1, 5000))
        seen = [
            (r.sequence, r.envelope.item_count, _body(r))
            for r in scan(place.log, position, bytes_max=bytes_max)
        ]
        assert seen == [entry for entry in model if entry[0] + entry[1] > position]

    actions = [append, append, trim, read, lambda: None if rng.random() < 0.7 else _reopen(place)]
    for _ in range(80):
        rng.choice(actions)()
    read()


def _body(record: StoredRecord) -> bytes | None:
    return record.parts[0].data if record.parts[0].state == PartState.INTACT else None


def _reopen(place: Place) -> None:
    place.reopen()


def replaced(record: StoredRecord, state: PartState, data: bytes) -> Replacement:
    """The first part in another state, the second as it is."""
    first, *others = record.parts
    return Replacement(record.sequence, (StoredPart(first.kind, state, data), *others))


def test_replacing_parts_keeps_envelopes_chain_positions_and_what_is_not_named(
    place: Place,
) -> None:
    log = place.log
    log.append([draft(2, body=b"anna" * 9), draft(1, body=b"bob"), draft(3, body=b"anna")])
    before, head = read_all(log), log.head()
    log.replace(
        [
            replaced(before[0], PartState.PSEUDONYM, b"nobody-in-particular" * 9),
            replaced(before[2], PartState.TOMBSTONE, b""),
        ]
    )
    for _ in range(2):
        after = read_all(place.log)
        assert [r.envelope for r in after] == [r.envelope for r in before]
        assert place.log.head() == head
        assert after[0].parts[0] == (0, PartState.PSEUDONYM, b"nobody-in-particular" * 9)
        assert after[1] == before[1]
        assert after[2].parts[0] == (0, PartState.TOMBSTONE, b"")
        assert [r.parts[1] for r in after] == [r.parts[1] for r in before]
        place.reopen()
    report = check_log(place.log)
    assert (report.parts_erased, report.parts_trimmed) == (2, 0)
    [envelope] = place.log.append([draft()])
    assert (envelope.sequence, envelope.previous_hash) == (6, head.hash)


def test_replacing_again_or_with_nothing_is_harmless(log: AnyLog) -> None:
    log.append([draft(body=b"anna")])
    change = replaced(log.read(0, bytes_max=1)[0], PartState.PSEUDONYM, b"x")
    log.replace([change])
    once = read_all(log)
    log.replace([change])
    log.replace([])
    assert read_all(log) == once


@pytest.mark.parametrize("what", ["forged", "bytes of a tombstone", "kind", "count", "place"])
def test_a_replacement_that_is_none_is_a_bug_and_changes_nothing(log: AnyLog, what: str) -> None:
    log.append([draft(body=b"anna"), draft(body=b"bob")])
    [record, _] = before = read_all(log)
    change = {
        "forged": replaced(record, PartState.INTACT, b"another"),
        "bytes of a tombstone": replaced(record, PartState.TOMBSTONE, b"x"),
        "kind": Replacement(0, (StoredPart(9, PartState.PSEUDONYM, b""), record.parts[1])),
        "count": Replacement(0, record.parts[:1]),
        "place": replaced(record, PartState.PSEUDONYM, b"x")._replace(sequence=7),
    }[what]
    with pytest.raises(AssertionError):
        log.replace([replaced(before[1], PartState.TOMBSTONE, b""), change])
    assert read_all(log) == before


def test_a_raised_epoch_begins_with_its_record_and_stays(place: Place) -> None:
    log = place.log
    log.append([draft()])
    assert log.raise_epoch(draft(body=b"restored"), 77).epoch == 77
    assert log.head().epoch == 77
    log = place.reopen()
    assert log.append([draft()])[0].epoch == 77
    assert [r.envelope.epoch for r in read_all(log)] == [1, 77, 77]
    for epoch in (1, 77, 1 << 32):
        with pytest.raises(AssertionError):
            log.raise_epoch(draft(), epoch)
    assert log.head().epoch == 77
