"""Backups of a data directory, beside a running server too, and restoring them into a new one.

Rules it keeps: a backup is of one moment of the log, verified record by record, and appears under its name only when it
is whole; what is derived (indexes, snapshots) is left out; the pepper is a secret and goes along only when asked. A
restored log begins another epoch, so that nothing it does later is taken for what the original did. A kill at any
moment leaves no half of either under its final name. It must not know how progress is shown.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from engine.actors.recovery import read_genesis
from engine.core.keeping import RestoreChange
from engine.core.records import PartKind, encode_control
from engine.core.times import format_instant, parse_instant
from engine.errors import EngineError
from gateway import __version__
from gateway.data_directory import DataDirectory
from gateway.log_check import Seen, check
from wal.anchor import write_anchor
from wal.archive import ArchiveError, FileArchives
from wal.lmdb_copy import copy_log
from wal.lmdb_file import DATA_NAME, sync_directory
from wal.lmdb_log import LmdbLog
from wal.log import Draft, DraftPart, Head, LogError

FORMAT: Final = 1
MANIFEST_NAME: Final = "backup.json"
_MAKING: Final = ".unfinished"
_CHUNK_BYTES: Final = 1 << 20
Progress = Callable[[str, int, int], None]
"""(what is being done, bytes so far, about how many there are)."""


class BackupError(EngineError):
    """A backup can't be made, or is not one that can be restored. Says what to do."""


class ArchiveCopy(msgspec.Struct, frozen=True):
    """An archive that went along, and its blake2b-256."""

    name: str
    digest: str


class Manifest(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What a backup is of."""

    format: int
    log_id: str
    epoch: int
    next_sequence: int
    """Every record before it is in the backup."""
    head_hash: str
    taken_at: str
    software: str
    archives: tuple[ArchiveCopy, ...]
    has_pepper: bool


def back_up(
    source: DataDirectory,
    target: Path,
    now_us: int,
    progress: Progress = lambda *_: None,
    *,
    include_pepper: bool,
) -> Manifest:
    """Copy a data directory's log and archives to `target`, which must not be there. Raises BackupError or LogError."""
    if not (source.log_path / DATA_NAME).exists():
        raise BackupError(
            f"there is no log in {source.path}: name the data directory with --data-dir"
        )
    if target.exists():
        raise BackupError(f"{target} is there already: give the backup a name of its own")
    making = target.with_name(target.name + _MAKING)
    try:
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(mode=0o700, parents=True)
        copy_log(
            source.log_path, making / "log", lambda done, all_: progress("copying", done, all_)
        )
        # After the log: what retention drops from it meanwhile is in an archive that is copied now.
        archives = _copy_archives(source.archives_path, making / "archive")
        if include_pepper:
            (making / "pepper").touch(mode=0o600)
            (making / "pepper").write_bytes(source.pepper())
        head, log_id = _head_of(making / "log")
        _must_be_whole(making / "log", head, progress)
        manifest = Manifest(
            format=FORMAT,
            log_id=log_id.hex(),
            epoch=head.epoch,
            next_sequence=head.next_sequence,
            head_hash=head.hash.hex(),
            taken_at=format_instant(now_us),
            software=__version__,
            archives=archives,
            has_pepper=include_pepper,
        )
        write_anchor(making / "log", head)
        _write(making / MANIFEST_NAME, msgspec.json.format(msgspec.json.encode(manifest)))
        _sync_all(making)
        making.rename(target)
        sync_directory(target.parent)
    except OSError as error:
        raise BackupError(
            f"the backup can't be written ({error}): make room, then run it again"
        ) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return manifest


def restore(
    backup: Path, target: Path, now_us: int, progress: Progress = lambda *_: None
) -> tuple[Manifest, int]:
    """Make a data directory of a backup: its manifest, and the epoch that begins. Raises BackupError or LogError.

    `target` must not be there, or be empty. The backup stays as it is.
    """
    manifest = read_manifest(backup)
    target = (
        target.resolve()
    )  # beside what a link names, not beside the link: it is put in place by a rename
    if target.is_mount():
        raise BackupError(
            f"{target} is where a volume is mounted, and can't be replaced: restore into a directory in it "
            f"({target / 'restored'}), and serve that"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BackupError(f"{target} is not empty: restore into a directory that is not there yet")
    making = target.with_name(target.name + _MAKING)
    try:
        shutil.rmtree(making, ignore_errors=True)
        (making / "log").mkdir(mode=0o700, parents=True)
        making.chmod(0o700)
        _copy_file(backup / "log" / DATA_NAME, making / "log" / DATA_NAME, progress)
        if _copy_archives(backup / "archive", making / "archive") != manifest.archives:
            raise BackupError(f"the archives in {backup} are not those that were backed up")
        if manifest.has_pepper:
            _copy_file(backup / "pepper", making / "pepper", lambda *_: None)
        head, log_id = _head_of(making / "log")
        if (head.next_sequence, head.hash.hex(), log_id.hex()) != (
            manifest.next_sequence,
            manifest.head_hash,
            manifest.log_id,
        ):
            raise BackupError(f"the log in {backup} is not the one that was backed up")
        _must_be_whole(making / "log", head, progress)
        epoch = _begin_epoch(making / "log", manifest, now_us)
        _sync_all(making)
        if target.exists():
            target.rmdir()
        making.rename(target)
        sync_directory(target.parent)
    except OSError as error:
        raise BackupError(
            f"the backup can't be restored ({error}): make room, then run it again"
        ) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return manifest, epoch


def read_manifest(backup: Path) -> Manifest:
    """What a backup says of itself. Raises BackupError."""
    try:
        manifest = msgspec.json.decode((backup / MANIFEST_NAME).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise BackupError(
            f"{backup} is not a backup: its {MANIFEST_NAME} can't be read ({error})"
        ) from error
    if manifest.format != FORMAT:
        raise BackupError(
            f"{backup} is of format {manifest.format}: restore it with the version that made it"
        )
    return manifest


def _begin_epoch(log_path: Path, manifest: Manifest, now_us: int) -> int:
    """Append the record that begins another epoch; its number.

    Not simply the next one: two restores of one backup would both be in it, and what they send to Stripe would bear
    the same identifiers. Seconds since 1970 differ.
    """
    log = LmdbLog(log_path)
    try:
        epoch = max(log.head().epoch + 1, now_us // 1_000_000)
        record = RestoreChange(
            previous_epoch=manifest.epoch,
            backup_position=manifest.next_sequence,
            backup_taken_at_us=parse_instant(manifest.taken_at),
            software=__version__,
            actor="cli",
        )
        record_type, data = encode_control(record)
        log.raise_epoch(Draft(record_type, 1, now_us, (DraftPart(PartKind.CONTROL, data),)), epoch)
        return epoch
    finally:
        log.close()


def _head_of(log_path: Path) -> tuple[Head, bytes]:
    log = LmdbLog(log_path, read_only=True)
    try:
        if log.head().next_sequence == 0:
            raise BackupError("the log is empty: there is nothing to back up")
        return log.head(), read_genesis(log).log_id
    finally:
        log.close()


def _must_be_whole(log_path: Path, head: Head, progress: Progress) -> None:
    def seen(at: Seen) -> None:
        progress("verifying", at.stored_bytes, at.bytes_in_all)

    report = check(log_path, seen)
    if report.problems:
        first = report.problems[0]
        raise BackupError(
            f"the log is damaged: {first.message} (`stripemeter check` lists all damage)"
        )
    if (report.next_sequence, report.head_hash) != (head.next_sequence, head.hash.hex()):
        raise BackupError("the copy changed while it was verified: run it again")


def _copy_archives(source: Path, target: Path) -> tuple[ArchiveCopy, ...]:
    """Copy every archive and verify the copy; their digests. Raises BackupError."""
    names = FileArchives(source).names()
    copies = []
    for name in names:
        target.mkdir(mode=0o700, exist_ok=True)
        digest = _copy_file(source / name, target / name, lambda *_: None)
        try:
            for _record in FileArchives(target).read(name):
                pass
        except (ArchiveError, LogError) as error:
            raise BackupError(str(error)) from error
        copies.append(ArchiveCopy(name, digest))
    return tuple(copies)


def _copy_file(source: Path, target: Path, progress: Progress) -> str:
    """Copy a file, for the owner alone, and sync it; the blake2b-256 of its bytes."""
    digest, done, size = blake2b(digest_size=32), 0, source.stat().st_size
    target.touch(mode=0o600)
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(_CHUNK_BYTES):
            writing.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            progress("copying", done, size)
        writing.flush()
        os.fsync(writing.fileno())
    return digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_all(directory: Path) -> None:
    """Make every name in a tree durable; LMDB's lock files are of the process that made them."""
    for path in [directory, *directory.iterdir()]:
        if path.is_dir():
            (path / "lock.mdb").unlink(missing_ok=True)
            sync_directory(path)
