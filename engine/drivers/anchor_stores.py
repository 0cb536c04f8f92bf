"""Where anchors are kept, and read back from: a file, a web address, objects in a bucket.

Rules it keeps: an anchor once kept is never changed by this program: a file is only appended to, an object has a name of
its own; a message names the place without its query, user or key; what is read is bounded. It must not know
what an anchor says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

import trio

from engine.drivers.s3_signature import Credentials, signed_headers
from engine.drivers.wire import Answer, Wire, WireFailure
from engine.ports import AnchorFailed

FILE_BYTES_MAX: Final = 256 << 20
"""A year at one anchor a minute is 200 MB."""
PAGES_MAX: Final = 1_000
"""Of 1,000 objects each, when a bucket is listed."""
OBJECTS_READ_MAX: Final = 200
"""Of a bucket: the newest of each log, and others evenly between."""
_NEWEST_OF: Final = 4
"""One of so many that are read of a log is among its newest."""
_KEY: Final = re.compile(r"<Key>([^<]*)</Key>")
_TOKEN: Final = re.compile(r"<NextContinuationToken>([^<]*)</NextContinuationToken>")
_CODE: Final = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")


class Bucket(NamedTuple):
    """How `s3://bucket/prefix` is reached."""

    credentials: Credentials
    region: str
    endpoint: str | None
    """None: Amazon's."""
    now_text: Callable[[], str]
    """The time as `YYYYMMDDTHHMMSSZ`."""


class FileAnchors:
    """Lines of a file, readable by the owner alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.where = f"the file {path}"

    async def put(self, line: bytes, name: str) -> None:  # noqa: ARG002 - the port's
        """See the port."""
        try:
            # Abandoned when cancelled: a network share that hangs must not hold up a stop.
            await trio.to_thread.run_sync(self._append, line, abandon_on_cancel=True)
        except OSError as error:
            raise AnchorFailed(f"{self.where} can't be written: {error.strerror}") from error

    def _append(self, line: bytes) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            # What a full disk tore must not take this line with it.
            is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            data = (b"\n" if is_torn else b"") + line + b"\n"
            if os.write(descriptor, data) != len(data):
                raise OSError(28, "it was written in part: the disk is full")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    async def read(self) -> list[bytes]:
        """All lines, oldest first. Raises AnchorFailed."""
        try:
            if self._path.stat().st_size > FILE_BYTES_MAX:
                raise AnchorFailed(f"{self.where} is larger than {FILE_BYTES_MAX} bytes")
            return self._path.read_bytes().splitlines()
        except OSError as error:
            raise AnchorFailed(f"{self.where} can't be read: {error.strerror}") from error


class WebAnchors:
    """Posted to an address, which keeps them; `GET` of the same address gives them back, a line each."""

    def __init__(self, url: str, wire: Wire) -> None:
        self._url = url
        self._wire = wire
        parts = urlsplit(url)
        self.where = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"

    async def put(self, line: bytes, name: str) -> None:
        """See the port."""
        headers = {"content-type": "application/json", "idempotency-key": name}
        await _exchange(self._wire, self.where, "POST", self._url, headers=headers, body=line)

    async def read(self) -> list[bytes]:
        """All lines that the address gives. Raises AnchorFailed."""
        answer = await _exchange(self._wire, self.where, "GET", self._url, headers={}, body=b"")
        return answer.body.splitlines()


class BucketAnchors:
    """Objects below a prefix, one an anchor."""

    def __init__(self, place: str, bucket: Bucket, wire: Wire) -> None:
        """`place`: `s3://bucket/prefix`."""
        name, _, prefix = place.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._bucket = bucket
        self._wire = wire
        self.where = place
        self._base = f"https://{name}.s3.{bucket.region}.amazonaws.com"
        if bucket.endpoint is not None:
            self._base = f"{bucket.endpoint}/{name}"

    async def put(self, line: bytes, name: str) -> None:
        """See the port."""
        await self._ask("PUT", f"/{quote(f'{self._prefix}{name}.json')}", line)

    async def read(self) -> list[bytes]:
        """The newest anchors of each log, and others evenly between. Raises AnchorFailed."""
        of_log: dict[str, list[str]] = {}
        for key in await self._keys():
            of_log.setdefault(key.rpartition("/")[0], []).append(key)
        if len(of_log) > OBJECTS_READ_MAX:
            raise AnchorFailed(
                f"{self.where} has anchors of {len(of_log)} logs: name that of one, {self.where}/LOG_ID"
            )
        wanted: list[str] = []
        for keys in of_log.values():
            # A log's newest anchor is what shows that its tail was cut, whatever other logs are anchored beside it.
            read_max = OBJECTS_READ_MAX // len(of_log)
            newest_max = max(1, read_max // _NEWEST_OF)
            newest, older = keys[-newest_max:], keys[:-newest_max]
            step = max(1, -(-len(older) // max(1, read_max - newest_max)))
            wanted += [*older[::step], *newest]
        return [(await self._ask("GET", f"/{quote(key)}", b"")).body for key in wanted]

    async def _keys(self) -> list[str]:
        keys: list[str] = []
        token = ""
        for _ in range(PAGES_MAX):
            query = f"list-type=2&prefix={quote(self._prefix, safe='')}"
            if token:
                query = f"continuation-token={quote(token, safe='')}&{query}"
            text = (await self._ask("GET", f"/?{query}", b"")).body.decode(errors="replace")
            keys += [unescape(key) for key in _KEY.findall(text)]
            more = _TOKEN.search(text)
            if more is None:
                return sorted(key for key in keys if key.endswith(".json"))
            token = unescape(more[1])
        # What is not listed are the newest ones, without which a cut tail would pass.
        raise AnchorFailed(f"{self.where} has more objects than {len(keys)}: move old ones away")

    async def _ask(self, method: str, path: str, body: bytes) -> Answer:
        bucket = self._bucket
        url = f"{self._base}{path}"
        headers = signed_headers(
            method,
            url,
            {"content-type": "application/json"} if body else {},
            body,
            bucket.credentials,
            region=bucket.region,
            at=bucket.now_text(),
        )
        return await _exchange(self._wire, self.where, method, url, headers=headers, body=body)


async def _exchange(
    wire: Wire, where: str, method: str, url: str, *, headers: dict[str, str], body: bytes
) -> Answer:
    try:
        answer = await wire.exchange(method, url, headers, body)
    except WireFailure as failure:
        raise AnchorFailed(f"{where} can't be reached: {failure}") from failure
    if not 200 <= answer.status < 300:
        code = _CODE.search(answer.body[:2_000].decode(errors="replace"))
        why = f" ({code[1]})" if code is not None else ""
        raise AnchorFailed(f"{where} answers {method} with {answer.status}{why}")
    return answer
