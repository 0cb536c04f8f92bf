"""The bytes of a snapshot: a header, sections, a trailer with a digest over all of it. docs/INDEX_FORMAT.md.

Rules it keeps: a file is accepted whole or not at all: every byte is under the digest, nothing may follow it,
and each section has a CRC32C of its own, so that reading it later finds rot that came after the first look.
It must not know what a section holds, nor where files are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final, NamedTuple

from crc32c import crc32c

VERSION: Final = 1
SECTION_ID_MAX: Final = 2**32 - 2
SECTION_BYTES_MAX: Final = 1 << 31
SECTIONS_MAX: Final = 1 << 16
LOG_ID_BYTES: Final = 16

_MAGIC: Final = b"SMSNAP\r\n"
"""The line end is damaged by a transfer in text mode, and so found."""
_HEADER: Final = struct.Struct(">8sHHI16sQ")
_SECTION: Final = struct.Struct(">IQQI")
_SECTION_CHECKED: Final = struct.Struct(">IQQ")
_TRAILER: Final = struct.Struct(">II")
_TRAILER_ID: Final = 2**32 - 1
DIGEST_BYTES: Final = 32
_HASH_BYTES: Final = 1 << 20
"""Hashed at once: the interpreter is free meanwhile."""


class SnapshotDamaged(Exception):
    """The bytes are not a whole snapshot of a known version. Use an older one, or fold the whole log."""


class SnapshotHeader(NamedTuple):
    """Which log the state belongs to, and the log position at which the snapshot was begun."""

    log_id: bytes
    epoch: int
    position: int


class Section(NamedTuple):
    """State at a log position of its own: every record below `position` is in it, none from there on."""

    section_id: int
    position: int
    data: bytes | memoryview


class Place(NamedTuple):
    """Where a section lies in the file."""

    section_id: int
    position: int
    start: int
    length: int
    crc: int


def new_digest() -> blake2b:
    """The digest that runs over every byte before it."""
    return blake2b(digest_size=DIGEST_BYTES)


def encode_header(header: SnapshotHeader) -> bytes:
    """The first bytes of the file."""
    assert len(header.log_id) == LOG_ID_BYTES
    return _HEADER.pack(_MAGIC, VERSION, 0, header.epoch, header.log_id, header.position)


def encode_section_head(section: Section) -> bytes:
    """What goes before the section's data."""
    assert 0 <= section.section_id <= SECTION_ID_MAX
    assert len(section.data) <= SECTION_BYTES_MAX
    crc = _section_crc(section.section_id, section.position, section.data)
    return _SECTION.pack(section.section_id, section.position, len(section.data), crc)


def encode_trailer(sections: int) -> bytes:
    """What goes before the digest, which covers it too."""
    return _TRAILER.pack(_TRAILER_ID, sections)


def decode(data: memoryview) -> tuple[SnapshotHeader, tuple[Place, ...]]:
    """The header and where the sections lie, after checking every byte. Raises SnapshotDamaged."""
    if len(data) < _HEADER.size + _TRAILER.size + DIGEST_BYTES:
        message = f"it has only {len(data)} bytes"
        raise SnapshotDamaged(message)
    magic, version, _, epoch, log_id, position = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        message = "it is not a snapshot"
        raise SnapshotDamaged(message)
    if version != VERSION:
        message = f"it has version {version}, this program reads {VERSION}"
        raise SnapshotDamaged(message)
    end = len(data) - DIGEST_BYTES
    digest = new_digest()
    for at in range(0, end, _HASH_BYTES):
        digest.update(data[at : min(at + _HASH_BYTES, end)])
    if digest.digest() != data[end:]:
        message = "its digest is wrong: bytes were changed or are missing"
        raise SnapshotDamaged(message)
    return SnapshotHeader(log_id, epoch, position), tuple(_places(data, end))


def section_at(data: memoryview, place: Place) -> Section:
    """The section at a place, its data a view of the file. Raises SnapshotDamaged."""
    view = data[place.start : place.start + place.length]
    if _section_crc(place.section_id, place.position, view) != place.crc:
        message = f"section {place.section_id} has a wrong checksum"
        raise SnapshotDamaged(message)
    return Section(place.section_id, place.position, view)


def _section_crc(section_id: int, position: int, data: bytes | memoryview) -> int:
    return crc32c(data, crc32c(_SECTION_CHECKED.pack(section_id, position, len(data))))


def _places(data: memoryview, end: int) -> Iterator[Place]:
    """Walk the sections. The digest was right, so what is wrong here was written wrong: it is refused too."""
    at = _HEADER.size
    count = 0
    while at + _SECTION.size <= end and _TRAILER.unpack_from(data, at)[0] != _TRAILER_ID:
        section_id, position, length, crc = _SECTION.unpack_from(data, at)
        at += _SECTION.size
        yield Place(section_id, position, at, length, crc)
        at += length
        count += 1
    if at + _TRAILER.size != end or _TRAILER.unpack_from(data, at) != (_TRAILER_ID, count):
        message = "its sections do not end where its trailer begins"
        raise SnapshotDamaged(message)
