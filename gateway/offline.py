"""The meter of a directory that no server has, run for one piece of work: the same tree, without HTTP.

Rules it keeps: the directory is locked meanwhile; what was begun is drained before it returns; what was erased is
compacted away at the end. It must not know what the work is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeVar

import trio

from engine.actors.supervisor import Meter
from engine.config import Settings
from engine.core.push_records import Role
from engine.errors import EngineError, StartRefused
from engine.ports import Billing
from gateway.data_directory import DataDirectory
from gateway.opening import open_meter
from wal.lmdb_copy import compact_if_asked
from wal.lmdb_file import DATA_NAME

ResultT = TypeVar("ResultT")


def run_offline(
    settings: Settings,
    work: Callable[[Meter], Awaitable[ResultT]],
    *,
    is_read_only: bool = False,
    billing: Mapping[Role, Billing] | None = None,
) -> tuple[ResultT, str | None]:
    """What the work returns, and what became of the log's compaction if it was due.

    Read-only nothing is appended, compacted or pushed; `billing` then only answers what the work asks.
    Raises StartRefused when there is no log, or a server has the directory.
    """
    directory = DataDirectory(settings.data_path)
    if not (directory.log_path / DATA_NAME).exists():
        message = f"there is no log in {directory.path}: name the data directory with --data-dir"
        raise StartRefused(message)
    directory.lock()
    try:
        meter = open_meter(settings, directory, is_read_only=is_read_only, keeps_settings=True)
        if billing is not None:
            assert is_read_only, "else it would push"
            meter.connect(billing)
        result = trio.run(partial(_run, meter, work))
        return result, None if is_read_only else compact_if_asked(directory.log_path)
    finally:
        directory.release()


async def _run(meter: Meter, work: Callable[[Meter], Awaitable[ResultT]]) -> ResultT:
    results: list[ResultT] = []
    ready = trio.Event()

    async def serve() -> None:
        await ready.wait()
        results.append(await work(meter))

    try:
        await meter.run(serve, ready.set)
    except BaseExceptionGroup as group:
        found, others = group.split(EngineError)
        if found is None or others is not None:
            raise
        error: BaseException = found
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
    return results[0]
