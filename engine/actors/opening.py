"""Opens a log: gives an empty one its first records, opens the key index, and recovers the state.

Rules it keeps: what can't be used is refused with what to do about it, never guessed at. It must not know what runs
on the state afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import structlog

from engine.actors.recovery import Progress, Recovered, genesis_drafts, read_genesis, recover
from engine.core.records import SettingsChange
from engine.errors import StartRefused
from engine.ports import Clock, Ids, RunBlocking
from wal.key_index import KeyIndex
from wal.log import Log, LogError
from wal.runs import RunStore, RunStoreError
from wal.snapshot import SnapshotStore

_logger = structlog.get_logger("stripemeter.engine")


class Opened(NamedTuple):
    """The state as of the log's head, its index of keys, and whose log it is."""

    recovered: Recovered
    keys: KeyIndex
    log_id: bytes


async def open_log(
    log: Log,
    runs: RunStore,
    snapshots: SnapshotStore,
    *,
    software: str,
    settings: SettingsChange,
    recent_keys_max: int,
    clock: Clock,
    ids: Ids,
    run_blocking: RunBlocking,
    progress: Callable[[Progress], None],
) -> Opened:
    """Raises StartRefused when the log or its index can't be used."""
    if log.head().next_sequence == 0:
        write = partial(genesis_drafts, log, ids.token(16), software, settings, clock)
        try:
            await run_blocking(write)
        except LogError as error:
            raise StartRefused(f"the log's first record can't be written: {error}") from error
    genesis = await run_blocking(partial(read_genesis, log))
    head = log.head()
    open_index = partial(
        KeyIndex.open,
        runs,
        log_id=genesis.log_id,
        epoch=head.epoch,
        head_sequence=head.next_sequence,
        recent_keys_max=recent_keys_max,
    )
    try:
        keys = await run_blocking(open_index)
    except RunStoreError as error:
        raise StartRefused(f"the key index can't be opened: {error}") from error
    started_us = clock.monotonic_us()
    recovered = await recover(
        log, keys, snapshots, genesis.log_id, run_blocking=run_blocking, progress=progress
    )
    _logger.info(
        "recovered",
        events_folded=recovered.events_folded,
        snapshot_position=recovered.snapshot_position,
        next_sequence=head.next_sequence,
        seconds=(clock.monotonic_us() - started_us) / 1e6,
        notes=list(recovered.notes),
        key_index_reset=keys.reset_because,
    )
    return Opened(recovered, keys, genesis.log_id)
