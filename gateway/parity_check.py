"""Checks a certificate for the command line: by itself, by a key, and by a log that nobody serves.

Rules it keeps: the log's bytes are checked in a child process before they are read here; the recount is the witness's
alone; what was not checked is said. It must not know how a result is shown.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import msgspec

from engine.errors import StartRefused
from engine.witness.arithmetic import Problem, check_document
from engine.witness.canonical import Document, Signer
from engine.witness.verify import check_against_log
from gateway.data_directory import SIGNING_SEED_BYTES, DataDirectory
from gateway.log_check import LogReport, check
from gateway.log_reading import ArchivedBodies, opened_log
from wal.archive import ArchiveError
from wal.log import LogError, scan
from wal.marks import Mark

_NO_LOG: Final = "the log was not looked at: give --log to recount every number"
_NO_KEY: Final = "whose key signed it was not checked: give --key"
_STRIPE: Final = "what Stripe held can't be recounted: it is as this key's owner read it"


class Checked(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What a check found. `problems` empty: all that was checked is right; `notes` say what was not."""

    ok: bool
    is_recounted: bool
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def check_certificate(
    document: Document, directory: DataDirectory | None, public_key: str | None
) -> Checked:
    """All that is wrong with a certificate. Raises StartRefused when there is no log to hold it against."""
    problems = check_document(document)
    notes = []
    known = public_key if public_key is not None or directory is None else _key_of(directory)
    if known is None:
        notes.append(_NO_KEY)
    elif document.get("publicKey") != known:
        problems.append(Problem("publicKey", f"it is signed by another key than {known}"))
    is_recounted = False
    if directory is None:
        notes.append(_NO_LOG)
    else:
        found, is_recounted = _hold_against(document, directory)
        problems += found
        notes.append(_STRIPE)
    return Checked(
        ok=not problems,
        is_recounted=is_recounted,
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _key_of(directory: DataDirectory) -> str | None:
    """The public key of a data directory; None: it has none, as a backup has not, or it can't be read."""
    try:
        seed = directory.signing_key_path.read_bytes()
    except OSError:
        return None
    return Signer(seed).public_key if len(seed) == SIGNING_SEED_BYTES else None


def _hold_against(document: Document, directory: DataDirectory) -> tuple[list[Problem], bool]:
    """What the log says otherwise, and whether it could be recounted."""
    if (holder := directory.holder_pid()) is not None:
        who = f"process {holder}" if holder else "another process"
        message = f"{directory.path} is in use by {who}: stop that server first, or name a backup"
        raise StartRefused(message)
    mark = _mark_of(document)
    report = check(directory.log_path, marks=() if mark is None else (mark,))
    if report.problems:
        return [_damage(report, index) for index in range(len(report.problems))], False
    if report.anchors_of_others:
        return [Problem("log.id", "the certificate is of another log")], False
    try:
        with opened_log(directory.log_path) as log:
            bodies = ArchivedBodies(directory.archives_path)
            return check_against_log(document, partial(scan, log, 0), bodies), True
    except (LogError, ArchiveError) as error:
        return [Problem("log", str(error))], False


def _mark_of(document: Document) -> Mark | None:
    """The head that the certificate ends in; None: it can't be read, which is a finding of its own."""
    try:
        place = document["log"]
        log_id, head_hash = bytes.fromhex(place["id"]), bytes.fromhex(place["headHash"])
        position, epoch = place["position"], place["epoch"]
        if type(position) is not int or type(epoch) is not int:
            return None
        return Mark(log_id, position, head_hash, epoch, str(place["receivedAt"]))
    except (KeyError, TypeError, ValueError):
        return None


def _damage(report: LogReport, index: int) -> Problem:
    problem = report.problems[index]
    where = "log" if problem.sequence is None else f"log: record {problem.sequence}"
    return Problem(where, problem.message)
