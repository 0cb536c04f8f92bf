"""Heads kept outside a log: a cut tail, a log written anew and a restore are told apart, and the place is named."""

from __future__ import annotations

from collections.abc import Sequence

from tests.helpers.past import Past
from wal.log import Draft, DraftPart, Log, StoredRecord, scan
from wal.marks import Mark, MarksSeen, MarkWalk

LOG_ID = b"l" * 16


def mark_of(record: StoredRecord, at: str = "") -> Mark:
    return Mark(LOG_ID, record.next_sequence - 1, record.hash, record.envelope.epoch, at)


def walked(records: Sequence[StoredRecord], marks: Sequence[Mark]) -> MarksSeen:
    walk = MarkWalk(marks)
    for record in records:
        walk.take(record)
    return walk.end()


def records_of(log: Log) -> list[StoredRecord]:
    return list(scan(log, 0))


def grown(seed: int) -> Past:
    past = Past(seed)
    past.grow(20)
    return past


def test_every_head_that_a_log_had_holds() -> None:
    records = records_of(grown(1).log)
    seen = walked(records, [mark_of(record) for record in records])
    assert seen == MarksSeen(len(records), 0, ())


def test_a_tail_that_was_cut_is_found_wherever_it_was_cut() -> None:
    records = records_of(grown(2).log)
    marks = [mark_of(record, f"at {record.sequence}") for record in records[::3]]
    for kept in range(1, len(records)):
        seen = walked(records[:kept], marks)
        beyond = [mark for mark in marks if mark.position >= records[kept - 1].next_sequence]
        assert len(seen.problems) == bool(beyond)
        if beyond:
            end = records[kept - 1].next_sequence
            (problem,) = seen.problems
            assert problem.sequence == end
            assert f"the records after {end - 1} were cut off" in problem.message
            assert beyond[-1].at in problem.message, "the furthest one is named"


def test_a_log_that_was_written_anew_is_found_between_two_anchors() -> None:
    one, other = grown(3), Past(3)
    other.grow(10)
    shared = len(records_of(other.log))
    other.random.seed(99)
    other.grow(15)
    old, new = records_of(one.log), records_of(other.log)
    assert [r.hash for r in old[:shared]] == [r.hash for r in new[:shared]]
    last = new[-1].next_sequence
    marks = [mark_of(r) for r in old[::2] if r.next_sequence <= last]
    seen = walked(new, marks)
    (problem,) = seen.problems
    held = [mark for mark in marks if mark.position < old[shared].sequence]
    assert seen.held == len(held)
    first_wrong = next(mark for mark in marks if mark not in held)
    assert problem.sequence == first_wrong.position
    assert f"position {held[-1].position}" in problem.message, "what lies before it holds"


def test_an_anchor_between_two_records_is_of_another_log() -> None:
    records = records_of(grown(4).log)
    group = next(record for record in records if record.envelope.item_count > 1)
    inside = mark_of(group)._replace(position=group.sequence)
    (problem,) = walked(records, [inside]).problems
    assert problem.sequence == group.sequence


def test_what_a_restore_left_behind_is_said_and_is_no_damage() -> None:
    past = grown(5)
    records = records_of(past.log)
    backup = records[: len(records) // 2]
    epoch = backup[-1].envelope.epoch + 1
    restored = Past(5)
    while len(records_of(restored.log)) < len(backup):
        restored.grow(1)
    behind = records_of(restored.log)
    draft = Draft(13, 1, restored.now_us, (DraftPart(3, b"\x80"),))
    restored.log.raise_epoch(draft, epoch)
    now = records_of(restored.log)
    marks = [mark_of(record) for record in records]
    seen = walked(now, marks)
    kept = sum(record.next_sequence <= behind[-1].next_sequence for record in records)
    assert (seen.held, seen.restored_away) == (kept, len(records) - kept)
    assert seen.problems == ()
    # But what the new epoch had is held against it.
    later = walked(now[:-1], [*marks, mark_of(now[-1])])
    assert any("cut off" in problem.message for problem in later.problems)
