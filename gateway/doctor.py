"""What `stripemeter doctor` finds out: settings, data directory, log, versions, and what is wrong with them.

Rules it keeps: it looks and changes nothing; it goes on after a problem, so that one report names them all;
no secret is in the report. It must not know how the report is shown (gateway/cli/doctor.py).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

from engine import config
from engine.errors import SettingsError
from gateway import __version__
from gateway.data_directory import DataDirectory
from gateway.environment import Outside, read_outside
from gateway.stripe_advice import advice
from wal.log import LogError

FREE_BYTES_MIN: Final = 256 << 20
"""Below this the log's next growth and a snapshot may not fit side by side."""

_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9._-]+)\s*(?:==\s*([^,;\s]+))?")


class ShownSetting(msgspec.Struct, frozen=True, rename="camel"):
    """A setting in force, its value masked when it is a secret."""

    name: str
    value: str
    source: str


class DirectoryReport(msgspec.Struct, frozen=True, rename="camel"):
    """The data directory as it is now. `held_by_pid` 0: held, by an unknown process."""

    path: str
    exists: bool
    writable: bool
    free_bytes: int
    held_by_pid: int | None


class LogReport(msgspec.Struct, frozen=True, rename="camel"):
    """The end of the log. It was not read through: that is `stripemeter check`."""

    next_sequence: int
    epoch: int
    size_bytes: int


class Report(msgspec.Struct, frozen=True, rename="camel"):
    """All that the doctor found. `problems` empty: all is well; `notes` are worth knowing, not wrong."""

    version: str
    python: str
    platform: str
    libraries: dict[str, str]
    settings: list[ShownSetting]
    directory: DirectoryReport
    log: LogReport | None
    """None: there is none yet, or a server has it open."""
    problems: list[str]
    notes: list[str]


def examine(overrides: dict[str, str]) -> Report:
    """Look at everything; `overrides` are flags by variable name. Raises nothing that the report can hold."""
    problems: list[str] = []
    notes: list[str] = []
    try:
        outside = read_outside(overrides)
        found = config.sources(*outside)
    except SettingsError as error:
        problems.append(str(error))
        outside = Outside(dict(os.environ), None, overrides)
        found = config.sources(*outside)
    wrong = config.problems(*outside)
    problems += wrong
    shown = config.masked(found)
    if not wrong:
        # The one setting that follows from another: the operator wants to see what is in force.
        settings = config.load(*outside)
        auth = settings.auth
        shown["STRIPEMETER_AUTH"] = shown["STRIPEMETER_AUTH"]._replace(text=auth)
        notes += advice(settings)
    directory = DataDirectory(Path(found["STRIPEMETER_DATA_DIR"].text.replace("\0", "")).absolute())
    directory_report = _directory(directory, problems, notes)
    return Report(
        version=__version__,
        python=platform.python_version(),
        platform=f"{sys.platform} {platform.machine()}",
        libraries=_libraries(problems),
        settings=[ShownSetting(name, text, origin) for name, (text, origin) in shown.items()],
        directory=directory_report,
        log=_log(directory, directory_report, problems, notes),
        problems=problems,
        notes=notes,
    )


def _directory(directory: DataDirectory, problems: list[str], notes: list[str]) -> DirectoryReport:
    path = directory.path
    exists = path.is_dir()
    nearest = path if path.exists() else next(p for p in path.absolute().parents if p.exists())
    writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    free_bytes = shutil.disk_usage(nearest).free
    if path.exists() and not exists:
        problems.append(f"{path} is not a directory: set STRIPEMETER_DATA_DIR to one")
    elif not writable:
        problems.append(
            f"{nearest} is not writable for this user: change its owner, or STRIPEMETER_DATA_DIR"
        )
    if free_bytes < FREE_BYTES_MIN:
        problems.append(
            f"{nearest} has {free_bytes >> 20} MiB free: ingest will soon answer 507; free some space"
        )
    if not path.exists():
        notes.append(f"{path} is not there yet: `stripemeter serve` makes it")
    if (lost := directory.without_its_log()) is not None:
        problems.append(lost)
    problems += [
        f"{other} is open to other users: run chmod go= {other}"
        for other in directory.open_to_others()
    ]
    return DirectoryReport(str(path), exists, writable, free_bytes, directory.holder_pid())


def _libraries(problems: list[str]) -> dict[str, str]:
    """The installed version of each dependency; a problem for each that is missing or not the pinned one."""
    versions: dict[str, str] = {}
    for requirement in metadata.requires("stripemeter") or []:
        match = _REQUIREMENT.match(requirement)
        if match is None or "extra ==" in requirement:
            continue
        name, pinned = match[1], match[2]
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
        if versions[name] == "missing" or (pinned and versions[name] != pinned):
            problems.append(
                f"{name} is {versions[name]}, not as required ({requirement}): run make setup"
            )
    return dict(sorted(versions.items()))


def _log(
    directory: DataDirectory,
    report: DirectoryReport,
    problems: list[str],
    notes: list[str],
) -> LogReport | None:
    # Imported here: a library that does not load is for the report, not the end of the doctor.
    from wal.lmdb_log import LmdbLog  # noqa: PLC0415

    if report.held_by_pid is not None:
        notes.append(
            f"the log is open in process {report.held_by_pid or 'unknown'}: ask /health/ready about it"
        )
        return None
    if not (directory.log_path / "data.mdb").exists():
        return None
    try:
        log = LmdbLog(directory.log_path, read_only=True)
    except (LogError, OSError) as error:
        problems.append(f"the log cannot be opened: {error}")
        return None
    try:
        head = log.head()
        return LogReport(head.next_sequence, head.epoch, log.size_bytes())
    except LogError as error:
        problems.append(f"the log cannot be read: {error}")
        return None
    finally:
        log.close()
