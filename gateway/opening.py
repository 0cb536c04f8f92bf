"""Opens a directory's meter: the only place that names LMDB. For the server, and for commands that need no HTTP.

Rules it keeps: whoever imports this gets no web framework with it; a command's start is time that its user waits.
It must not know HTTP.
"""

from __future__ import annotations

import structlog

from engine.actors.reconciler import ReconOptions
from engine.actors.supervisor import Meter, MeterOptions
from engine.config import Settings
from engine.errors import StartRefused
from gateway import __version__
from gateway.data_directory import DataDirectory
from gateway.measured_log import MeasuredLog
from gateway.system import AppendThread, SystemClock, SystemIds, run_in_thread
from wal.archive import FileArchives
from wal.cells import CellStoreError
from wal.lmdb_cells import LmdbCells
from wal.lmdb_copy import compact_if_asked
from wal.lmdb_log import LmdbLog
from wal.lmdb_runs import LmdbRuns
from wal.log import LogError
from wal.runs import RunStoreError
from wal.snapshot import FileSnapshots

_logger = structlog.get_logger("stripemeter.server")


def open_meter(
    settings: Settings,
    directory: DataDirectory,
    *,
    is_read_only: bool = False,
    is_indexing: bool = True,
    keeps_settings: bool = False,
) -> Meter:
    """A meter on the directory's log and indexes. The directory is locked by the caller.

    Read-only it appends nothing; the log must be there. With `keeps_settings` the lateness window and the policy are
    the log's, if it has any. Raises StartRefused when the log or an index can't be opened.
    """
    if (lost := directory.without_its_log()) is not None:
        raise StartRefused(lost)
    try:
        if not is_read_only and (compaction := compact_if_asked(directory.log_path)) is not None:
            _logger.info("log_compaction", result=compaction)
        log = MeasuredLog(LmdbLog(directory.log_path, read_only=is_read_only))
        runs = LmdbRuns(directory.keys_path)
        cells = LmdbCells(directory.rollups_path)
    except (LogError, RunStoreError, CellStoreError) as error:
        raise StartRefused(str(error)) from error
    return Meter(
        MeterOptions(
            software=__version__,
            shards=settings.shards,
            lateness_us=settings.lateness_us,
            late_policy=settings.late_policy,
            snapshot_every_events=settings.snapshot_every_events,
            retention_days=settings.retention_days,
            push_interval_us=settings.push_interval_us,
            reconcile=ReconOptions(
                interval_us=settings.reconcile_interval_us,
                lag_us=settings.reconcile_lag_us,
                epsilon=settings.epsilon,
            ),
            meta_bytes_max=settings.max_meta_bytes,
            is_read_only=is_read_only,
            is_indexing=is_indexing,
            keeps_settings=keeps_settings,
            verify=settings.verify,
        ),
        log=log,
        runs=runs,
        cells=cells,
        snapshots=FileSnapshots(directory.snapshots_path),
        archives=FileArchives(directory.archives_path),
        clock=SystemClock(),
        ids=SystemIds(),
        run_blocking=run_in_thread,
        appender=AppendThread(),
    )


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of what failed, without the groups that nurseries put around it."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
