"""The simulator's directory: every request that changed something, one JSON line each, on disk before its answer.

    identity.json     the account and the seed, made once
    snapshot-N.json   the settings and the state at the start of journal N; without it the state began empty
    journal-N.jsonl   [when, method, path, query, headers, body], oldest first
    lock              held by the one process that uses the directory

Rules it keeps: what was answered is there after kill -9; a torn last line was never answered and is cut off, any other
line that can't be read refuses the start; a journal is replayed under the settings it was written under; keys of an
API are never written. It must not know HTTP or what a request does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from gateway.simulator.ledger import Settings, World, digest_id
from gateway.simulator.state import StripeState
from gateway.simulator.streams import TOKEN_PREFIX
from gateway.simulator.wire import Request

COMPACT_BYTES_MIN: Final = 64 << 20
"""A journal shorter than this is not compacted while serving."""
UNWRITTEN_MAX: Final = 1000
"""Lines that wait for a disk that is full: a MiB or so. Then nobody is served until there is space."""
_KEPT_HEADERS: Final = ("idempotency-key", "stripe-account", "stripe-version")
_NUMBERED: Final = re.compile(r"(?:snapshot-([0-9]+)\.json|journal-([0-9]+)\.jsonl)\Z")
_T = TypeVar("_T")
_Line = tuple[int, str, str, str, dict[str, str], str]
_decode_line: Final = msgspec.json.Decoder(_Line).decode
_encode: Final = msgspec.json.Encoder().encode


class SimulatorRefused(Exception):
    """The simulator can't start or go on; the text says what to do."""


class _Identity(msgspec.Struct):
    account: str
    seed: str


class _Snapshot(msgspec.Struct):
    settings: Settings
    world: World


class Journal:
    """The journal of one directory, open for appending. Make it with `open_journal`."""

    def __init__(self, directory: Path, lock: int) -> None:
        self._directory = directory
        self._lock = lock
        self._file = -1
        self._number = 0
        self._length = 0
        self._snapshot_length = 0
        self._is_directory_behind = False
        """A snapshot is there, but perhaps not after a power cut."""
        self._unwritten: deque[bytes] = deque()
        """What a full disk does not take yet, in order: whatever comes later builds on it."""

    @property
    def is_behind(self) -> bool:
        """Whether no more lines may wait for the disk."""
        return len(self._unwritten) >= UNWRITTEN_MAX

    def append(self, line: bytes) -> None:
        """Take a line, and hand it to the kernel if that takes it; it is on disk after the next `write` and `sync`."""
        self._unwritten.append(line)
        with contextlib.suppress(OSError):  # `write` says it to who waits
            self.write()

    def write(self) -> None:
        """Hand all that was appended to the kernel. Raises OSError: the rest waits, and a later call goes on with it."""
        while self._unwritten:
            line = self._unwritten[0]
            view = memoryview(line)
            try:
                while view:
                    view = view[os.write(self._file, view) :]
            except OSError:
                # Half a line with others after it could not be read at the next start.
                os.ftruncate(self._file, self._length)
                raise
            self._length += len(line)
            self._unwritten.popleft()

    def sync(self) -> None:
        """Wait until all that was written is on disk. May be called from a thread. Raises OSError."""
        if self._is_directory_behind:
            _sync_directory(self._directory)
            self._is_directory_behind = False
        os.fdatasync(self._file)

    @property
    def is_long(self) -> bool:
        """Whether a snapshot would be much shorter than replaying."""
        return self._length > max(COMPACT_BYTES_MIN, 4 * self._snapshot_length)

    def compact(self, state: StripeState) -> None:
        """Write the state down and begin a new journal; a kill in between loses nothing.

        Raises OSError: it goes on with the old journal, and `is_long` waits until that is a good deal longer.
        """
        data = _encode(_Snapshot(state.settings, state.world))
        number = self._number + 1
        path = self._directory / f"snapshot-{number}.json"
        # First all that may fail: once its snapshot is there a journal is what the next start reads.
        file = self._open(number)
        try:
            _write_whole(path, data)
        except OSError:
            if not path.exists():
                os.close(file)
                self._snapshot_length = max(self._snapshot_length, self._length // 3)
                raise
            self._is_directory_behind = True
        self._begin(file, number, len(data))
        for old in self._directory.iterdir():
            found = _NUMBERED.match(old.name)
            if found is not None and int(found[1] or found[2]) < number:
                with contextlib.suppress(OSError):  # the next one takes it along
                    old.unlink()

    def _open(self, number: int) -> int:
        path = self._directory / f"journal-{number}.jsonl"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _sync_directory(self._directory)
        except OSError:
            os.close(file)
            raise
        return file

    def _begin(self, file: int, number: int, snapshot_length: int) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = file
        self._number, self._length = number, os.fstat(self._file).st_size
        self._snapshot_length = snapshot_length

    def close(self) -> None:
        """Let go of the directory."""
        if self._file >= 0:
            with contextlib.suppress(OSError):  # whoever asked for that was not answered
                self.write()
                self.sync()
            os.close(self._file)
        os.close(self._lock)


def open_journal(
    directory: Path, settings: Settings, now_us: Callable[[], int], fresh_seed: Callable[[], str]
) -> tuple[StripeState, Journal]:
    """The state of a directory, brought up to its last answer, and its journal.

    The account and seed are those of the directory, where `settings` names none; `fresh_seed` makes a new one's. Raises
    SimulatorRefused when another process has the directory, or when what lies there can't be read.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"the simulator's directory {directory} can't be used ({error.strerror}): name another with --data-dir"
        raise SimulatorRefused(message) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        message = f"another process runs a Stripe simulator in {directory}: stop it, or name another with --data-dir"
        raise SimulatorRefused(message) from error
    try:
        settings = _identified(directory, settings, fresh_seed)
        return _restore(directory, lock, settings, now_us)
    except OSError as error:
        os.close(lock)
        message = f"the simulator's directory {directory} can't be written ({error.strerror}): free some disk space"
        raise SimulatorRefused(message) from error
    except BaseException:
        os.close(lock)
        raise


def _identified(directory: Path, settings: Settings, fresh_seed: Callable[[], str]) -> Settings:
    path = directory / "identity.json"
    if path.exists():
        identity = _read(path, _Identity)
    else:
        seed = settings.seed or fresh_seed()
        identity = _Identity(settings.account or digest_id("acct_sim", seed, length=13), seed)
        _write_whole(path, _encode(identity))
    return msgspec.structs.replace(
        settings, account=settings.account or identity.account, seed=settings.seed or identity.seed
    )


def _restore(
    directory: Path, lock: int, settings: Settings, now_us: Callable[[], int]
) -> tuple[StripeState, Journal]:
    numbers = [0]
    for path in directory.glob("snapshot-*.json"):
        found = _NUMBERED.match(path.name)
        if found is not None:
            numbers.append(int(found[1]))
    number, length = max(numbers), 0
    snapshot = None
    path = directory / f"snapshot-{number}.json"
    if path.exists():
        snapshot = _read(path, _Snapshot)
        length = path.stat().st_size
    written_under = settings if snapshot is None else snapshot.settings
    state = StripeState(written_under, now_us, None if snapshot is None else snapshot.world)
    count = _replay(directory / f"journal-{number}.jsonl", state)
    journal = Journal(directory, lock)
    journal._begin(journal._open(number), number, length)  # noqa: SLF001 - made in two steps, both here
    if snapshot is None or count or written_under != settings:
        # From here on the settings in force are those of this start.
        world = state.world
        world.account = settings.account or world.account
        state = StripeState(settings, now_us, world)
        journal.compact(state)
    return state, journal


def _replay(path: Path, state: StripeState) -> int:
    """Do again what a journal holds; how many requests that were. A torn last line is cut off."""
    if not path.exists():
        return 0
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
    lines = data[:end].splitlines()
    for number, line in enumerate(lines, 1):
        try:
            at_us, method, path_, query, headers, body = _decode_line(line)
        except msgspec.MsgspecError as error:
            message = (
                f"{path} can't be read at line {number}: move the directory away to begin anew"
            )
            raise SimulatorRefused(message) from error
        state.repeat(Request(method, path_, query, headers, body.encode("latin-1")), at_us)
    return len(lines)


def line_of(request: Request, now_us: int) -> bytes:
    """A request as the journal keeps it: without the API key; a stream session's token is none."""
    headers = {name: request.headers[name] for name in _KEPT_HEADERS if name in request.headers}
    token = request.headers.get("authorization", "")
    if token.startswith(f"Bearer {TOKEN_PREFIX}"):
        headers["authorization"] = token
    body = request.body.decode("latin-1")
    line = (now_us, request.method, request.path, request.query, headers, body)
    return _encode(line) + b"\n"


def _read(path: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        message = f"{path} can't be read: move its directory away to begin anew"
        raise SimulatorRefused(message) from error


def _write_whole(path: Path, data: bytes) -> None:
    """Make a file that is there whole or not at all."""
    unfinished = path.with_suffix(".new")
    with contextlib.suppress(FileNotFoundError):
        unfinished.unlink()
    file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        os.fsync(file)
    except OSError:
        unfinished.unlink(missing_ok=True)  # others need the room
        raise
    finally:
        os.close(file)
    unfinished.replace(path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
