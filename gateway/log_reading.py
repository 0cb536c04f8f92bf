"""A stopped directory's log, opened to be read by the witness: its records, and those of its archives.

Rules it keeps: nothing is written; the log was checked before (`gateway.log_check`), since a damaged file can end whoever
reads it. It must not know what is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import StartRefused
from wal.archive import FileArchives
from wal.lmdb_file import DATA_NAME
from wal.lmdb_log import LmdbLog
from wal.log import Log, LogError, StoredRecord


@contextmanager
def opened_log(log_path: Path) -> Iterator[Log]:
    """The log in a directory, read-only. Raises StartRefused when there is none that can be opened."""
    if not (log_path / DATA_NAME).exists():
        message = f"there is no log in {log_path}: name a data directory, or a backup of one"
        raise StartRefused(message)
    try:
        log = LmdbLog(log_path, read_only=True)
    except (LogError, OSError) as error:
        raise StartRefused(f"the log can't be opened: {error}") from error
    try:
        yield log
    finally:
        log.close()


class ArchivedBodies:
    """Records of archives by position; a file is read when one of its positions is asked for."""

    def __init__(self, directory: Path) -> None:
        self._archives = FileArchives(directory)
        self._left = self._archives.names()
        self._found: dict[int, StoredRecord] = {}

    def __call__(self, position: int) -> StoredRecord | None:
        """The record at a position; None: no archive has it. Raises ArchiveError."""
        while position not in self._found and self._left:
            for record in self._archives.read(self._left.pop(0)):
                self._found[record.sequence] = record
        return self._found.get(position)
