"""The spool: events on disk (SQLite) from before `track` returns until the server answered, so that a crash loses none.

A row is one event's wire text, sent as it stands, so that a crashed app's events go out with the keys they were made
with. Processes may share a file: each owns its rows while it renews a lease; whoever finds an owner whose lease
ran out, and whose rows are for the same server and tenant, takes them over. Two that send the same row (one was only
slow) do no harm: the key counts once.

Rules it keeps: a row goes only after its event is settled; a damaged file is set aside under another name, never
deleted; the disk is waited for in `checkpoint`, not in `insert` (unless `sync`). Raises sqlite3.Error; what then becomes of
an event is the buffer's business. It must not know HTTP. Not safe for threads, the buffer's lock is around it, but for
`checkpoint`. A fork's child must not open a file that its parent has open: SQLite knows its locks by process, and would
take the parent's for the child's own. It has a file of its own beside it (`beside`), which whoever has the parent's file
gathers once the child is gone. Whatever calls SQLite holds a `fork_lock`.
"""

from __future__ import annotations

import glob
import os
import secrets
import sqlite3
import zlib
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Optional

from stripemeter.events import Outgoing
from stripemeter.forks import fork_lock

BUSY_SECONDS_MAX = 1.0
"""How long another process's write is waited for: within `track`, so not long."""
CHECKPOINT_PAGES = 10_000
"""SQLite's own checkpoint, within an insert, comes only after so many pages (40 MiB): ours comes first."""
DELETE_ROWS_MAX = 500
"""In one statement, which all of them or none are deleted by."""
_VERSION = 1
_FORK = ".fork-"
_CLOCK_AHEAD_MS_MAX = 24 * 3_600_000
"""A lease that ends later than this was made by a clock that was wrong."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
  owner INTEGER NOT NULL, number INTEGER NOT NULL, crc INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (owner, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS damaged (number INTEGER NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS owners (
  owner INTEGER PRIMARY KEY, destination TEXT NOT NULL, alive_until_ms INTEGER NOT NULL
);
"""


class SpoiledRows(Exception):
    """Some rows are not what was written; they are in the table `damaged` now, and the rest can be read."""

    def __init__(self, rows: int, path: str) -> None:
        super().__init__(f"{rows} events of the spool {path} are damaged and kept in its table")
        self.rows = rows


class Spool:
    """One process's part of a spool file. `rows` is how many rows it has."""

    def __init__(
        self, path: str, destination: str, lease_seconds: float, now_ms: int, *, sync: bool
    ) -> None:
        """Opens or makes the file, readable by its owner alone, and takes over what is left there. Raises sqlite3.Error.

        `sync`: each event is on the disk's own medium before `insert` returns, and survives a power cut too.
        """
        self.path = path
        self.rows = 0
        self._owner = secrets.randbits(62)
        # Numbers of all owners are apart, so that rows keep theirs when they are taken over.
        self._next_number = now_ms * 1_000_000 + secrets.randbelow(1_000_000)
        self._destination = destination
        self._lease_ms = int(lease_seconds * 1000)
        self._renewed_ms: Optional[int] = None
        self._lock, self._checkpoint_lock = fork_lock(), fork_lock()
        _make_private(path)
        with self._lock:
            self._connection = _connect(path)
            try:
                self._prepare(sync=sync)
                self._beside = _connect(path)
                self.renew(now_ms)
                self.gather(now_ms)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, *, sync: bool) -> None:
        execute = self._connection.execute
        (found,) = execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            message = f"database disk image is malformed: {found}"
            raise sqlite3.DatabaseError(message)
        execute("PRAGMA journal_mode = WAL")
        execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
        execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        (version,) = execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            message = f"file is not a database of this version ({version}): name another spool"
            raise sqlite3.DatabaseError(message)
        self._connection.executescript(_SCHEMA)
        execute(f"PRAGMA user_version = {_VERSION}")

    def insert(self, text: str) -> None:
        """Keep an event. It survives the end of this process once this has returned."""
        row = (self._owner, self._next_number, zlib.crc32(text.encode()), text)
        with self._lock:
            self._connection.execute("INSERT INTO events VALUES (?, ?, ?, ?)", row)
        self._next_number += 1
        self.rows += 1

    def oldest(self, count: int, *, after: Optional[int] = None) -> list[Outgoing]:
        """So many of its rows, in the order they came. Raises SpoiledRows when some are not what was written."""
        statement = "SELECT number, crc, body FROM events WHERE owner = ? AND number > ? ORDER BY number LIMIT ?"
        values = (self._owner, -1 if after is None else after, count)
        with self._lock:
            found = self._connection.execute(statement, values).fetchall()
        spoiled = [number for number, crc, body in found if _crc(body) != crc]
        if spoiled:
            # One of them would make the whole request unreadable. SQLite itself has no checksums.
            self._put_aside(spoiled)
            raise SpoiledRows(len(spoiled), self.path)
        return [Outgoing(body, number) for number, _, body in found]

    def _put_aside(self, rows: Sequence[int]) -> None:
        marks = ",".join("?" * len(rows))
        statement = f"INSERT INTO damaged SELECT number, body FROM events WHERE number IN ({marks})"
        with self._lock:
            self._connection.execute(statement, rows)
        self.delete(rows)

    def delete(self, rows: Sequence[int]) -> None:
        """Forget settled events. Those that were taken over by another meanwhile are that one's to forget."""
        for start in range(0, len(rows), DELETE_ROWS_MAX):
            some = rows[start : start + DELETE_ROWS_MAX]
            marks = ",".join("?" * len(some))
            statement = f"DELETE FROM events WHERE owner = ? AND number IN ({marks})"
            with self._lock:
                gone = self._connection.execute(statement, (self._owner, *some)).rowcount
            self.rows -= gone

    def renew_due(self, now_ms: int) -> bool:
        """Whether a third of the lease is over, or the clock went back."""
        before = self._renewed_ms
        return before is None or not 0 <= now_ms - before < self._lease_ms // 3

    def renew(self, now_ms: int) -> None:
        """Say "I live", take over the rows of those who don't, and count what is its own."""
        with self._lock:
            self._renew(now_ms)

    def _renew(self, now_ms: int) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            execute(
                "INSERT OR REPLACE INTO owners VALUES (?, ?, ?)",
                (self._owner, self._destination, now_ms + self._lease_ms),
            )
            gone = execute(
                "SELECT owner FROM owners WHERE destination = ? AND owner != ?"
                " AND (alive_until_ms <= ? OR alive_until_ms > ?)",
                (self._destination, self._owner, now_ms, now_ms + _CLOCK_AHEAD_MS_MAX),
            ).fetchall()
            for (owner,) in gone:
                execute("UPDATE events SET owner = ? WHERE owner = ?", (self._owner, owner))
                execute("DELETE FROM owners WHERE owner = ?", (owner,))
            if gone or self._renewed_ms is None or now_ms - self._renewed_ms >= self._lease_ms:
                # Else nobody could have taken any, and the count is right.
                (self.rows,) = execute(
                    "SELECT COUNT(*) FROM events WHERE owner = ?", (self._owner,)
                ).fetchone()
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        self._renewed_ms = now_ms

    def gather(self, now_ms: int) -> None:
        """Take over what children of forks left in files of their own."""
        if _FORK in os.path.basename(self.path):  # noqa: PTH119 - a plain text path, as SQLite has it
            return
        for path in sorted(glob.glob(glob.escape(self.path) + _FORK + "*[0-9a-f]")):  # noqa: PTH207 - as above
            # One that is just being made, or damaged, is looked at again the next time.
            with suppress(sqlite3.Error), self._lock:
                self._gather_from(path, now_ms)

    def _gather_from(self, path: str, now_ms: int) -> None:
        with closing(_connect(path)) as other:
            found = other.execute(
                "SELECT owner, destination, alive_until_ms FROM owners"
            ).fetchall()
            if not found or any(
                destination != self._destination
                or now_ms < alive_until_ms <= now_ms + _CLOCK_AHEAD_MS_MAX
                for _, destination, alive_until_ms in found
            ):
                return
            rows = other.execute("SELECT number, crc, body FROM events").fetchall()
            # First here, then gone there: a crash between leaves a row twice, and its key counts once.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(
                    "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?)",
                    [(self._owner, *row) for row in rows],
                )
                self._connection.execute("COMMIT")
            except BaseException:
                # Left open, it would hold up every other process, and keep nothing of what comes next over a kill.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            self.rows += len(rows)
        remove(path)

    def checkpoint(self) -> None:
        """Bring the write-ahead log into the file: waits for the disk, but holds up no insert. For one other thread."""
        with self._checkpoint_lock:
            self._beside.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def close(self) -> None:
        """Give the lease back, so that the next one need not wait for it."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        try:
            self._connection.execute(
                "UPDATE owners SET alive_until_ms = 0 WHERE owner = ?", (self._owner,)
            )
            self._connection.execute(
                "DELETE FROM owners WHERE owner = ? AND NOT EXISTS"
                " (SELECT 1 FROM events WHERE events.owner = owners.owner)",
                (self._owner,),
            )
        finally:
            self._beside.close()
            self._connection.close()
        if self.rows == 0 and _FORK in os.path.basename(self.path):  # noqa: PTH119 - as above
            remove(self.path)


def beside(path: str) -> str:
    """The name of a spool for the child of a fork."""
    return f"{path}{_FORK}{os.getpid()}-{secrets.token_hex(4)}"


def remove(path: str) -> None:
    """Remove a spool that nobody has open, with its side files."""
    for end in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.remove(path + end)  # noqa: PTH107 - a plain text path, as SQLite has it


def _crc(body: object) -> int:
    return zlib.crc32(body.encode()) if isinstance(body, str) else -1


def _connect(path: str) -> sqlite3.Connection:
    return sqlite3.connect(
        path, timeout=BUSY_SECONDS_MAX, isolation_level=None, check_same_thread=False
    )


def _make_private(path: str) -> None:
    """Customers' usage is nobody else's to read. SQLite gives its side files the mode of this one."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        message = f"unable to open database file {path}: {error.strerror}"
        raise sqlite3.OperationalError(message) from error


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the file itself is wrong, not that it is busy or the disk full."""
    text = str(error)
    return "malformed" in text or "not a database" in text or "no such table" in text


def set_aside(path: str, now_ms: int) -> str:
    """Move a damaged spool out of the way, with its side files; the new name. Raises OSError."""
    aside = f"{path}.damaged-{now_ms}"
    for end in ("", "-wal", "-shm"):
        if os.path.exists(path + end):  # noqa: PTH110 - a plain text path, as SQLite has it
            os.replace(path + end, aside + end)  # noqa: PTH105
    return aside
