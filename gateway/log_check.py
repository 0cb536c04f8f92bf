"""Checks a whole log, its bytes and its meaning, in a child process: a damaged file can end whoever reads it by a signal.

Rules it keeps: it never writes; every damaged record is named, and a child that dies is damage too, not a crash of the
check; what is beyond the bytes (does every record decode, do its events fit its envelope) is judged here, since the
log itself must not know. Run as `python -m gateway.log_check DIRECTORY` it is the child, and speaks JSON lines.
It must not know how anything is shown.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from engine.core.records import (
    Genesis,
    PartKind,
    RecordError,
    RecordType,
    decode_control,
    decode_events,
    decode_keys,
)
from engine.errors import EngineError
from gateway.kept_check import Vouchers
from wal.check import PROBLEMS_MAX, CheckReport, check_log
from wal.log import LogDamaged, LogError, PartState, StoredRecord
from wal.marks import Mark, MarksSeen, MarkWalk

_NOT_AS_WRITTEN: Final = (PartState.TOMBSTONE, PartState.TRIMMED)


class CheckFailed(EngineError):
    """The log could not be checked; nothing is known about it. Says why."""


class Damage(msgspec.Struct, frozen=True):
    """One thing that is wrong: the record's sequence (None: the file itself) and what it is."""

    sequence: int | None
    message: str


class LogReport(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What a check found. `problems` empty: every record is what was appended, in its place, and can be used."""

    ok: bool
    records: int = 0
    items: int = 0
    """Log positions taken: events, and one for each control record."""
    stored_bytes: int = 0
    parts_erased: int = 0
    parts_trimmed: int = 0
    next_sequence: int = 0
    head_hash: str = ""
    anchors_held: int = 0
    """Anchors kept elsewhere that the log bears out."""
    anchors_restored_away: int = 0
    """Anchors of records that a restore from a backup left behind."""
    anchors_of_others: int = 0
    """Anchors of other logs."""
    problems: tuple[Damage, ...] = ()
    """At most PROBLEMS_MAX of them."""


class Seen(msgspec.Struct, frozen=True, tag="seen"):
    """How far the child has come."""

    records: int
    stored_bytes: int
    bytes_in_all: int
    """About how much there is to read; tree pages and free pages included."""


class _Done(msgspec.Struct, frozen=True, tag="done"):
    report: LogReport


class _Failed(msgspec.Struct, frozen=True, tag="failed"):
    message: str


_encode_line = msgspec.json.Encoder().encode
_decode_line = msgspec.json.Decoder(Seen | _Done | _Failed).decode


def check(
    log_path: Path,
    progress: Callable[[Seen], None] = lambda _seen: None,
    marks: Sequence[Mark] = (),
) -> LogReport:
    """Check the log in a directory that no server has, and hold it against heads that it once had.

    Raises CheckFailed when there is nothing to check.
    """
    seen = Seen(0, 0, 0)
    last: Seen | _Done | _Failed | None = None
    with subprocess.Popen(
        [sys.executable, "-m", "gateway.log_check", str(log_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        # The child reads all of it before it says anything.
        with child.stdin as pipe, suppress(BrokenPipeError):
            pipe.write(msgspec.json.encode(marks))
        for line in child.stdout:
            try:
                last = _decode_line(line)
            except msgspec.MsgspecError:
                break  # the child died within a line
            if isinstance(last, Seen):
                seen = last
                progress(seen)
    if isinstance(last, _Done):
        return last.report
    if isinstance(last, _Failed):
        raise CheckFailed(last.message)
    if child.returncode >= 0:
        message = f"the check ended with {child.returncode} and no result; what it said is above"
        raise CheckFailed(message)
    message = (
        f"reading the log's file ended the check by {signal.Signals(-child.returncode).name} after record number "
        f"{seen.records}: the file is damaged there. Keep a copy, restore from a backup."
    )
    return LogReport(
        ok=False,
        records=seen.records,
        stored_bytes=seen.stored_bytes,
        problems=(Damage(None, message),),
    )


class Inspector:
    """Looks at a log's meaning, record by record, and says at the end what nothing vouches for."""

    def __init__(self, marks: Sequence[Mark] = ()) -> None:
        self._vouchers = Vouchers()
        self._every = marks
        self._own = MarkWalk(())
        self.others = len(marks)
        """Marks of other logs than this one, whose id is in its first record."""

    def inspect(self, record: StoredRecord) -> str | None:
        """See `inspect`."""
        self._vouchers.take(record)
        problem = inspect(record)
        if record.sequence == 0 and problem is None and self._every:
            genesis = decode_control(record.envelope.record_type, record.parts[0].data)
            assert isinstance(genesis, Genesis), "it was inspected"
            own = [mark for mark in self._every if mark.log_id == genesis.log_id]
            self._own, self.others = MarkWalk(own), len(self._every) - len(own)
        self._own.take(record)
        return problem

    def end(self) -> list[Damage]:
        """What was erased or dropped without a record that says so."""
        return [Damage(*one) for one in self._vouchers.unvouched()]

    def marks(self) -> MarksSeen:
        """What became of the marks."""
        return self._own.end()


def inspect(record: StoredRecord) -> str | None:
    """What is wrong with the meaning of a record whose bytes are right, else None."""
    envelope = record.envelope
    if (envelope.record_type == RecordType.GENESIS) != (record.sequence == 0):
        return f"record {record.sequence} is of type {envelope.record_type}: only record 0 is, and must be, a genesis"
    try:
        if envelope.record_type == RecordType.EVENTS:
            return _inspect_events(record)
        kinds = [part.kind for part in record.parts]
        has_rows = envelope.record_type == RecordType.OPERATION and len(kinds) == 2
        if kinds != [PartKind.CONTROL, PartKind.ERASABLE][: 2 if has_rows else 1]:
            return f"record {record.sequence} is a control record and must have one part"
        if envelope.item_count != 1:
            return f"record {record.sequence} is a control record and takes {envelope.item_count} positions, not 1"
        if record.parts[0].state not in _NOT_AS_WRITTEN:
            control = decode_control(envelope.record_type, record.parts[0].data)
            assert isinstance(control, Genesis) == (record.sequence == 0)
    except RecordError as error:
        return f"record {record.sequence} can't be used: {error}"
    return None


def _inspect_events(record: StoredRecord) -> str | None:
    parts = record.parts
    if len(parts) % 2 or [part.kind for part in parts] != [
        PartKind.COUNTING,
        PartKind.ERASABLE,
    ] * (len(parts) // 2):
        return (
            f"record {record.sequence} is a group of events and must have two parts for each tenant"
        )
    events = 0
    for counting, erasable in zip(parts[::2], parts[1::2], strict=True):
        if counting.state in _NOT_AS_WRITTEN:
            return None  # retention has dropped the body: there is nothing to read
        if erasable.state in _NOT_AS_WRITTEN:
            keys, _fingerprints = decode_keys(counting.data)
            events += len(keys) // 16
        else:
            events += decode_events(counting.data, erasable.data).event_count
    if events != record.envelope.item_count:
        return f"record {record.sequence} holds {events} events and takes {record.envelope.item_count} positions"
    return None


def _report(found: CheckReport, inspector: Inspector) -> LogReport:
    marks = inspector.marks()
    problems = [Damage(p.sequence, p.message) for p in (*found.problems, *marks.problems)]
    problems += inspector.end()
    return LogReport(
        ok=not problems,
        records=found.records,
        items=found.items,
        stored_bytes=found.stored_bytes,
        parts_erased=found.parts_erased,
        parts_trimmed=found.parts_trimmed,
        next_sequence=found.next_sequence,
        head_hash=found.head_hash.hex(),
        anchors_held=marks.held,
        anchors_restored_away=marks.restored_away,
        anchors_of_others=inspector.others,
        problems=tuple(problems[:PROBLEMS_MAX]),
    )


def _child(log_path: Path, marks: Sequence[Mark]) -> None:
    """Check the log here and write what happens to stdout, a JSON object a line."""
    from wal.lmdb_log import LmdbLog  # noqa: PLC0415 - only the child may load LMDB

    def say(line: Seen | _Done | _Failed) -> None:
        sys.stdout.buffer.write(_encode_line(line) + b"\n")
        sys.stdout.buffer.flush()

    if not (log_path / "data.mdb").exists():
        say(_Failed(f"there is no log in {log_path}: name the data directory with --data-dir"))
        return
    try:
        log = LmdbLog(log_path, read_only=True)
    except LogDamaged as error:
        say(_Done(LogReport(ok=False, problems=(Damage(error.sequence, str(error)),))))
        return
    except (LogError, OSError) as error:
        say(_Failed(f"the log can't be opened: {error}"))
        return
    size, inspector = log.size_bytes(), Inspector(marks)
    try:
        found = check_log(
            log,
            lambda records, stored: say(Seen(records, stored, size)),
            anchor=log.anchor(),
            inspect=inspector.inspect,
        )
        say(_Done(_report(found, inspector)))
    finally:
        log.close()


if __name__ == "__main__":
    _child(Path(sys.argv[1]), msgspec.json.decode(sys.stdin.buffer.read(), type=list[Mark]))
