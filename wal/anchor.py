"""The log's end, written beside the log: what shows that its last records were lost.

Rules it keeps: an anchor is only ever older than the log, never ahead of it; it is advice, so a missing, torn or
unwritable one changes nothing. It must not know what stores the log.

Why: one flipped bit in LMDB's own pages can take away the last records, and the log looks whole without them. It would
go on from there, and count again what was already counted. Rejected: a write per append. It would cost the writer one
more wait for the interpreter's lock; rot strikes files at rest, and those were closed, with an exact anchor.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from struct import Struct

from crc32c import crc32c

from wal.log import Head

ANCHOR_NAME = "anchor"
APPENDS_BETWEEN_ANCHORS = 64
_MAGIC = b"SMLA"
_LAYOUT = Struct(">4sQ32sII")  # magic, next sequence, hash, stream, epoch
_CRC = Struct(">I")


def read_anchor(directory: Path) -> Head | None:
    """A head that the log in `directory` is known to have had, or None: nothing is known."""
    try:
        data = (directory / ANCHOR_NAME).read_bytes()
    except OSError:
        return None
    if len(data) != _LAYOUT.size + _CRC.size:
        return None
    fields, checksum = data[: _LAYOUT.size], data[_LAYOUT.size :]
    if _CRC.pack(crc32c(fields)) != checksum:
        return None
    magic, next_sequence, digest, stream, epoch = _LAYOUT.unpack(fields)
    return Head(next_sequence, digest, stream, epoch) if magic == _MAGIC else None


def write_anchor(directory: Path, head: Head) -> None:
    """Keep a head that is durable. Not synced: after a power loss an older one, or none, is right too."""
    fields = _LAYOUT.pack(_MAGIC, head.next_sequence, head.hash, head.stream, head.epoch)
    with suppress(OSError):  # a full disk must not stop a log that is whole
        descriptor = os.open(directory / ANCHOR_NAME, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, fields + _CRC.pack(crc32c(fields)), 0)
        finally:
            os.close(descriptor)
