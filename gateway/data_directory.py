"""The data directory: where each thing lies, who holds it, and its secrets: the keys' pepper, the signing key.

Rules it keeps: one server at a time, by an advisory lock that the kernel drops with the process, so that a
kill never leaves a stale one; what it makes is for the owner alone; a secret appears whole or not at all,
and is never made twice. It must not know what is in the log, the indexes or the
snapshots, only whether they are there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import time
from pathlib import Path
from typing import Final

from engine.errors import StartRefused

PEPPER_BYTES: Final = 32
SIGNING_SEED_BYTES: Final = 32
LOCK_BYTES_MAX: Final = 32
LOG_FILE: Final = "data.mdb"
LOCK_ATTEMPTS: Final = 10
LOCK_PAUSE_SECONDS: Final = 0.02
_OWNER_ONLY: Final = 0o700


class DataDirectory:
    """A directory of one meter. Making the object touches no disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log_path = path / "log"
        self.keys_path = path / "keys"
        self.rollups_path = path / "rollups"
        self.snapshots_path = path / "snapshots"
        self.archives_path = path / "archive"
        """Made when retention first needs it."""
        self.simulator_path = path / "simulator"
        """Made when the built-in Stripe simulator is used."""
        self.pepper_path = path / "pepper"
        self.signing_key_path = path / "signing-key"
        self.lock_path = path / "LOCK"
        self._lock_file: int | None = None

    def create(self) -> None:
        """Make the directory (0700, with its parents) and its parts; what is there stays as it is.

        Raises StartRefused, naming the path, when the system won't have it.
        """
        try:
            self.path.mkdir(mode=_OWNER_ONLY, parents=True, exist_ok=True)
            for part in (self.log_path, self.keys_path, self.rollups_path, self.snapshots_path):
                part.mkdir(mode=_OWNER_ONLY, exist_ok=True)
        except OSError as error:
            message = (
                f"the data directory {self.path} cannot be made or used ({error.strerror}): give this "
                "user a directory to write to with STRIPEMETER_DATA_DIR or --data-dir"
            )
            raise StartRefused(message) from error

    def lock(self) -> None:
        """Create the directory and hold it until `release` or the end of the process.

        Raises StartRefused, naming the directory and the holder's pid, when another server has it. A
        child process made by fork without exec would share the lock: this process makes none.
        """
        assert self._lock_file is None, "a directory is locked once"
        self.create()
        try:
            lock_file = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            message = f"{self.lock_path} cannot be opened ({error.strerror}): make it writable for this user"
            raise StartRefused(message) from error
        try:
            _flock(lock_file)
        except OSError as error:
            holder = _pid_in(lock_file)
            os.close(lock_file)
            raise StartRefused(self._refusal(error, holder)) from error
        # The pid is for people only: the lock is the flock itself, never this text.
        # A full disk may not take it, and must not keep a server from starting that could answer what is there.
        with contextlib.suppress(OSError):
            os.ftruncate(lock_file, 0)
            os.pwrite(lock_file, f"{os.getpid()}\n".encode(), 0)
        self._lock_file = lock_file

    def release(self) -> None:
        """Let the directory go; without a lock this does nothing. LOCK stays: removing it would be a race."""
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def holder_pid(self) -> int | None:
        """The pid of the server that holds the directory now; 0 when it is held by nobody knows whom.

        None: free, or not made yet. The answer may be old as soon as it is given: only `lock` decides.
        """
        try:
            lock_file = os.open(self.lock_path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(lock_file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _pid_in(lock_file) or 0
        except OSError:
            return None
        finally:
            os.close(lock_file)
        return None

    def pepper(self) -> bytes:
        """The 32 bytes that are mixed into the hashes of API keys, made on first use and then always the same.

        Raises StartRefused when the file is not what was made: another pepper would make every key invalid.
        """
        lost = "restore it from a backup, or remove it and make all API keys anew"
        instead = ", or set STRIPEMETER_KEY_PEPPER"
        return self._secret(self.pepper_path, PEPPER_BYTES, lost, instead)

    def signing_seed(self) -> bytes:
        """The 32 bytes of the Ed25519 key that signs certificates and anchors, made on first use.

        Raises StartRefused when the file is not what was made.
        """
        lost = (
            "restore it from a copy, or remove it: another one is made, and whoever checks certificates "
            "must be given its public key (`stripemeter parity key`)"
        )
        return self._secret(self.signing_key_path, SIGNING_SEED_BYTES, lost, "")

    def _secret(self, path: Path, size_bytes: int, lost: str, instead: str) -> bytes:
        if not path.exists():
            self._make_secret(path, size_bytes, instead)
        try:
            secret = path.read_bytes()
        except OSError as error:
            message = f"{path} cannot be read ({error.strerror}): make it readable for this user"
            raise StartRefused(message) from error
        if len(secret) != size_bytes:
            message = f"{path} has {len(secret)} bytes, not {size_bytes}: {lost}"
            raise StartRefused(message)
        return secret

    def without_its_log(self) -> str | None:
        """What to say where the log is gone and what was derived from it is there; None: all is as it should be.

        A log that is made anew in its place knows no event of the old one: every retry would count again.
        """
        if (self.log_path / LOG_FILE).exists():
            return None
        parts = (self.keys_path, self.rollups_path, self.snapshots_path, self.archives_path)
        found = next((path for part in parts for path in part.glob("*")), None)
        if found is None:
            return None
        return (
            f"{self.log_path} has no log, but {found} is left of one: mount its disk, put it back, or restore a "
            "backup; to begin anew name another directory, since what was counted before would count again"
        )

    def open_to_others(self) -> list[Path]:
        """The paths that users other than the owner may write to, or, of a secret, read; for the doctor."""
        found = []
        for path, mask in (
            (self.path, 0o022),
            (self.log_path, 0o022),
            (self.pepper_path, 0o077),
            (self.signing_key_path, 0o077),
        ):
            try:
                mode = stat.S_IMODE(path.stat().st_mode)
            except OSError:
                continue
            if mode & mask:
                found.append(path)
        return found

    def _make_secret(self, path: Path, size_bytes: int, instead: str) -> None:
        self.create()
        temporary = self.path / f".{path.name}-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            try:
                written = os.write(descriptor, secrets.token_bytes(size_bytes))
                assert written == size_bytes, "a regular file takes 32 bytes whole or fails"
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            # A hard link, not a rename: of two processes that come here at once the first one wins.
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
            _sync_directory(self.path)
        except OSError as error:
            message = (
                f"{path} cannot be written ({error.strerror}): free some space or make the "
                f"directory writable{instead}"
            )
            raise StartRefused(message) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _refusal(self, error: OSError, holder: int | None) -> str:
        if not isinstance(error, BlockingIOError):
            return (
                f"the data directory {self.path} cannot be locked ({error.strerror}): "
                "it must be on a local disk, not a network share"
            )
        who = f"process {holder}" if holder else "another process"
        return (
            f"the data directory {self.path} is in use by {who}: stop that server first, "
            "or give this one a directory of its own with --data-dir"
        )


def _flock(lock_file: int) -> None:
    """Take the lock, or raise what the last of a few attempts raised: `holder_pid` holds it for an instant."""
    for _ in range(LOCK_ATTEMPTS - 1):
        try:
            return fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_SECONDS)
    return fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _pid_in(lock_file: int) -> int | None:
    text = os.pread(lock_file, LOCK_BYTES_MAX, 0).strip()
    return int(text) if text.isdigit() else None


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
