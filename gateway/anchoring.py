"""Where anchors are kept, by the words that name it, and reading them back for a check.

Rules it keeps: an anchor counts only if its signature is right, by the key it names or by the one that is asked for; what
can't be used is named, line by line. It must not know what a log holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import trio

from engine.core.times import format_instant
from engine.drivers.anchor_stores import Bucket, BucketAnchors, FileAnchors, WebAnchors
from engine.drivers.httpx_wire import HttpxWire
from engine.drivers.s3_signature import Credentials
from engine.errors import StartRefused
from engine.ports import Clock
from engine.witness.canonical import Unreadable, is_signed, parse
from engine.witness.purposes import ANCHOR
from gateway.environment import read_aws
from gateway.system import SystemClock
from wal.marks import Mark

Store = FileAnchors | WebAnchors | BucketAnchors
_PROBLEMS_MAX: Final = 100


class Anchors(NamedTuple):
    """What was read from a place."""

    marks: tuple[Mark, ...]
    """Of whichever logs were anchored there."""
    problems: tuple[str, ...]
    """What can't be used, each in words."""


def store_of(where: str, clock: Clock) -> Store:
    """The store of a file, a web address or `s3://bucket/prefix`. Raises StartRefused without credentials for one."""
    if where.startswith("s3://"):
        aws = read_aws()
        if aws.access_key_id is None or aws.secret_access_key is None:
            message = "anchors in s3:// need AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
            raise StartRefused(message)
        credentials = Credentials(aws.access_key_id, aws.secret_access_key, aws.session_token)
        if aws.endpoint is not None:
            _must_be_url(aws.endpoint)
        bucket = Bucket(credentials, aws.region, aws.endpoint, partial(_basic_time, clock))
        return BucketAnchors(where, bucket, HttpxWire())
    if where.startswith(("http://", "https://")):
        _must_be_url(where)
        return WebAnchors(where, HttpxWire())
    return FileAnchors(Path(where).absolute())


def _must_be_url(text: str) -> None:
    """Raises StartRefused: what httpx can't use must not come up while anchors are written."""
    try:
        is_usable = httpx.URL(text).scheme in ("http", "https") and bool(httpx.URL(text).host)
    except httpx.InvalidURL:
        is_usable = False
    if not is_usable:
        message = (
            "the address of the anchors is no URL: give one such as https://anchors.example.com/log"
        )
        raise StartRefused(message)


def read_anchors(where: str, public_key: str | None = None) -> Anchors:
    """All anchors of a place. `public_key`: only those that it signed count. Raises AnchorFailed."""
    store = store_of(where, SystemClock())
    return anchors_in(trio.run(store.read), public_key)


def anchors_in(lines: Sequence[bytes], public_key: str | None = None) -> Anchors:
    """The anchors in some lines of JSON."""
    marks, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            document = parse(line)
            mark = _mark_of(document)
        except (Unreadable, KeyError, ValueError, TypeError) as error:
            problems.append(f"anchor {number} can't be read: {error}")
            continue
        if not is_signed(ANCHOR, document):
            problems.append(f"anchor {number} was changed: its signature is not that of its words")
        elif public_key is not None and document["publicKey"] != public_key:
            problems.append(f"anchor {number} is signed by another key than {public_key}")
        else:
            marks.append(mark)
    return Anchors(tuple(marks), tuple(problems[:_PROBLEMS_MAX]))


def _mark_of(document: dict[str, Any]) -> Mark:
    position, epoch, at = document["position"], document["epoch"], document["at"]
    if not (type(position) is int and type(epoch) is int and isinstance(at, str)):
        raise ValueError("its position, epoch or time is of another kind")
    log_id, head_hash = bytes.fromhex(document["logId"]), bytes.fromhex(document["headHash"])
    return Mark(log_id, position, head_hash, epoch, at)


def _basic_time(clock: Clock) -> str:
    """Now, as `YYYYMMDDTHHMMSSZ`."""
    text = format_instant(clock.now_us())
    return text[:19].replace("-", "").replace(":", "") + "Z"
