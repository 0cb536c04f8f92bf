"""Records of what is kept and what is taken away: erasures, checkpoints of retention, restores from a backup.

Rules it keeps: an erasure's names are in its `begin` records alone, and those are pseudonymised in their turn when all
else is done, so that in the end the log holds no name; a part that was replaced is named with both digests before it
is touched; a checkpoint counts from its `commit` record on, its sections before that mean nothing.
It must not know how records are stored, nor the other records (which know these).
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

NAMES_PER_RECORD_MAX: Final = 1_000
"""Customers that one `begin` record names."""
PARTS_PER_RECORD_MAX: Final = 500
"""Replaced parts that one `replace` record names: one slice of the work."""
SECTION_BYTES_MAX: Final = 4 << 20
"""Of a checkpoint's state in one record."""


class ErasedPart(msgspec.Struct, frozen=True, array_like=True):
    """A part that an erasure replaces: where it is, and the blake2b-256 of its original and of its copy.

    A copy without bytes is a tombstone; its digest is that of nothing.
    """

    sequence: int
    part: int
    original: bytes
    copy: bytes


class EraseChange(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """A step of an erasure.

    `begin`: from this position on the customers in `names` go by their pseudonyms. `replace`: these parts are
    replaced next. `forget`: like it, and what the parts name are the `begin` records. `end`: nothing is left to do.
    """

    action: Literal["begin", "replace", "forget", "end"]
    erasure_id: str
    tenant_id: str
    actor: str
    request_id: str | None = None
    names: dict[str, str] = {}
    """Name to pseudonym; empty once the erasure is done."""
    parts: tuple[ErasedPart, ...] = ()


class CheckpointChange(
    msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True
):
    """A piece of the state at `position`, or (`commit`) the word that all pieces are there.

    The state is that of the fold of every record before `position`; bodies of event groups before it may be dropped
    from the commit on, and events older than `horizon_us` are refused.
    """

    action: Literal["section", "commit"]
    checkpoint_id: str
    position: int
    section_id: int = 0
    data: bytes = b""
    """Of a section: the next bytes of it, in order."""
    horizon_us: int = 0
    first_sequence: int = 0
    """Log position of the checkpoint's first section record."""
    sections: int = 0
    """How many section records there are."""
    digest: bytes = b""
    """blake2b-256 over the bytes of all of them."""
    counters: int = 0
    archives: tuple[str, ...] = ()
    """Names of the files that hold the bodies, oldest first; of all checkpoints so far."""
    actor: str = ""


class RestoreChange(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The log was restored from a backup; with this record a later epoch begins."""

    previous_epoch: int
    backup_position: int
    backup_taken_at_us: int
    software: str
    actor: str


KeepingRecord = EraseChange | CheckpointChange | RestoreChange
KEEPING_TYPES: Final[dict[int, type[KeepingRecord]]] = {
    11: EraseChange,
    12: CheckpointChange,
    13: RestoreChange,
}
"""By the numbers of `engine.core.records.RecordType`, which knows this module."""
