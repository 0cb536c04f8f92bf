"""The spool: events on disk (SQLite) from before `track` returns until the server answered, so that a crash loses none.

A row is one event's wire text, sent as it stands, so that a crashed app's events go out with the keys they were made
with. Processes may share a file: each owns its rows while it renews a lease; whoever finds rows of an owner
whose lease ran out, and that are for the same server and tenant, takes them over. Two that send the same row (one was only
slow) do no harm: the key counts once.

Rules it keeps: a row goes only after its event is settled; a damaged file is set aside under another name, never
deleted. Raises sqlite3.Error; what then becomes of an event is the buffer's business. It must not know HTTP. Not safe
for threads: the buffer's lock is around it. Of no use after a fork: the child opens its own.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Sequence
from typing import Optional

from stripemeter.events import Outgoing

BUSY_SECONDS_MAX = 1.0
"""How long another process's write is waited for: within `track`, so not long."""
_DELETE_ROWS_MAX = 500
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, destination TEXT NOT NULL, body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_owner ON events (owner, id);
CREATE TABLE IF NOT EXISTS owners (owner TEXT PRIMARY KEY, alive_until_ms INTEGER NOT NULL);
"""


class Spool:
    """One process's part of a spool file. `rows` is how many rows it has."""

    def __init__(self, path: str, destination: str, lease_seconds: float, *, sync: bool) -> None:
        """Opens or makes the file, readable by its owner alone. Raises sqlite3.Error.

        `sync`: each event is on the disk's own medium before `insert` returns, and survives a power cut too.
        """
        self.path = path
        self.rows = 0
        self._owner = secrets.token_hex(16)
        self._destination = destination
        self._lease_ms = int(lease_seconds * 1000)
        self._renewed_ms: Optional[int] = None
        _make_private(path)
        self._connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS_MAX, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(sync=sync)
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
        (version,) = execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            message = f"file is not a database of this version ({version}): name another spool"
            raise sqlite3.DatabaseError(message)
        self._connection.executescript(_SCHEMA)
        execute(f"PRAGMA user_version = {_VERSION}")

    def insert(self, text: str) -> None:
        """Keep an event. It survives the end of this process once this has returned."""
        self._connection.execute(
            "INSERT INTO events (owner, destination, body) VALUES (?, ?, ?)",
            (self._owner, self._destination, text),
        )
        self.rows += 1

    def oldest(self, count: int, after: int = 0) -> list[Outgoing]:
        """So many of its rows above the row `after`, in the order they came."""
        found = self._connection.execute(
            "SELECT id, body FROM events WHERE owner = ? AND id > ? ORDER BY id LIMIT ?",
            (self._owner, after, count),
        )
        return [Outgoing(body, row) for row, body in found]

    def delete(self, rows: Sequence[int]) -> None:
        """Forget settled events."""
        for start in range(0, len(rows), _DELETE_ROWS_MAX):
            some = rows[start : start + _DELETE_ROWS_MAX]
            marks = ",".join("?" * len(some))
            self._connection.execute(f"DELETE FROM events WHERE id IN ({marks})", some)
            self.rows -= len(some)

    def renew_due(self, now_ms: int) -> bool:
        """Whether a third of the lease is over, or the clock went back."""
        before = self._renewed_ms
        return before is None or not 0 <= now_ms - before < self._lease_ms // 3

    def renew(self, now_ms: int) -> int:
        """Say "I live", take over the rows of those who don't; how many rows were taken over.

        Counts its own rows again, for another may have taken them over while this process was stopped.
        """
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            execute(
                "INSERT OR REPLACE INTO owners VALUES (?, ?)",
                (self._owner, now_ms + self._lease_ms),
            )
            # A lease from a clock that was far ahead is none.
            execute(
                "DELETE FROM owners WHERE alive_until_ms <= ? OR alive_until_ms > ?",
                (now_ms, now_ms + 10 * max(self._lease_ms, 3_600_000)),
            )
            taken = execute(
                "UPDATE events SET owner = ? WHERE destination = ? AND owner NOT IN (SELECT owner FROM owners)",
                (self._owner, self._destination),
            ).rowcount
            (self.rows,) = execute(
                "SELECT COUNT(*) FROM events WHERE owner = ?", (self._owner,)
            ).fetchone()
            execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        self._renewed_ms = now_ms
        return int(taken)

    def close(self) -> None:
        """Give the lease back, so that the next one need not wait for it."""
        try:
            self._connection.execute("DELETE FROM owners WHERE owner = ?", (self._owner,))
        finally:
            self._connection.close()


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
