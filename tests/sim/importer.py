"""The person in a simulated world who brings rows in: backfills that the meter runs, imports that are sent piece by piece.

A file keeps its rows for ever, newest first, and is imported again and again: after a crash, by two at once, when it was
imported long ago. What was answered is kept in a ledger that outlives crashes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from engine.actors.supervisor import Meter
from engine.core.configured import Change
from engine.core.events import key_hash
from engine.core.operations import BACKFILL, Asked, Progress
from engine.core.times import format_instant
from engine.errors import Conflict, EngineError
from tests.helpers.recount import Recount
from tests.sim.client import CUSTOMERS, DAY_US, HOUR_US, METRICS, TENANTS, Sent, new_event, send
from tests.sim.violation import Violation

if TYPE_CHECKING:
    from tests.sim.world import World

BY = Change(actor="sim")
FILES = 4
PIECE_ROWS = 2


@dataclass
class File:
    """What a file holds, always the same."""

    tenant: str
    historic: bool
    rows: list[Sent]


@dataclass
class Brought:
    """What was asked for and answered."""

    files: dict[int, File] = field(default_factory=dict)
    keys: dict[bytes, tuple[str, str, str]] = field(default_factory=dict)
    """Of the rows of backfills: whose they are. They have a source of their own, so clients don't send them."""
    backfills: dict[str, list[bytes]] = field(default_factory=dict)
    """Those that were answered with an id, to the keys of their rows."""
    cancelled: set[str] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)
    """Imports whose end was answered."""


async def bring_in(world: World, meter: Meter) -> None:
    """Do one thing after the other until the meter stops."""
    rng = world.rng
    while meter.phase not in ("stopping", "stopped"):
        await trio.sleep(rng.uniform(0.01, 0.5))
        try:
            await rng.choice((_backfill, _import, _import))(world, meter)
        except EngineError as error:
            world.trace.append((round(trio.current_time(), 6), type(error).__name__))


async def _backfill(world: World, meter: Meter) -> None:
    rng, ledger = world.rng, world.brought
    tenant = rng.choice(TENANTS)
    now_us = world.clock.now_us()
    rows: list[dict[str, Any]] = []
    keys: list[bytes] = []
    for number in range(rng.randrange(1, 12)):
        age_us = rng.choice((0, HOUR_US, DAY_US, 2 * DAY_US, 3 * DAY_US, 40 * DAY_US))
        row = {
            "metric": rng.choice(METRICS),
            "customerRef": rng.choice(CUSTOMERS),
            "quantity": rng.choice((1, 7, 1_000_000)),
            "ts": format_instant(now_us - age_us + rng.randrange(-10, 11)),
            "idempotencyKey": f"b{now_us}-{number}",
        }
        if keys and rng.random() < 0.1:
            row = rng.choice(rows)  # a duplicate of the same list
        rows.append(row)
        identity = (tenant, str(row["customerRef"]), str(row["idempotencyKey"]))
        keys.append(key_hash(*identity))
        ledger.keys[keys[-1]] = identity
    asked = Asked(at_us=now_us, historic=rng.random() < 0.3, rows_total=len(rows))
    runner = meter.started.operations
    operation = await runner.ask_backfill(tenant, asked, msgspec.json.encode(rows), BY)
    ledger.backfills[operation.id] = keys
    if rng.random() < 0.15:
        ledger.cancelled.add(operation.id)
        await trio.sleep(rng.choice((0, 0.01, 0.1)))
        await runner.cancel(operation, BY)


def _file(world: World, number: int) -> File:
    found = world.brought.files.get(number)
    if found is None:
        rng = Random(f"{world.seed} {number}")
        tenant = rng.choice(TENANTS)
        step_us = rng.choice((HOUR_US, DAY_US, 10 * DAY_US))
        rows = [
            new_event(world, f"f{number}-{row}", row * step_us, tenant)
            for row in range(rng.randrange(3, 14))
        ]
        found = world.brought.files[number] = File(tenant, rng.random() < 0.3, rows)
    return found


async def _import(world: World, meter: Meter) -> None:
    """Begin an import of a file, or go on with the one that is open; perhaps leave it before its end."""
    rng = world.rng
    number = rng.randrange(FILES)
    file = _file(world, number)
    asked = Asked(
        at_us=world.clock.now_us(),
        historic=file.historic,
        rows_total=len(file.rows),
        identity=f"file-{number}",
    )
    runner = meter.started.operations
    operation = await runner.start_import(rng.choice(("", file.tenant)), asked, BY)
    at = int(operation.cursor or b"0")
    while at < len(file.rows):
        if rng.random() < 0.03:
            return  # the command was killed
        piece = file.rows[at : at + PIECE_ROWS]
        try:
            with runner.sending(operation.id, None) as (_, marks):
                await send(world, meter, piece, marks)
            at += len(piece)
            # Another one of the same file may be ahead, or have ended it.
            at = max(at, int(operation.cursor or b"0"))
            await runner.note_progress(operation, _progress(world, at), BY)
        except Conflict:
            return
        await trio.sleep(rng.choice((0, 0.02, 0.2)))
    await runner.finish_import(
        operation, rng.choice(("completed", "completed", "cancelled")), _progress(world, at), BY
    )
    world.brought.finished.add(operation.id)


def _progress(world: World, at: int) -> Progress:
    return Progress(at_us=world.clock.now_us(), processed=at, cursor=str(at).encode())


async def backfills_ended(meter: Meter) -> None:
    """Wait until nothing is left to run; on a good disk it must come soon. Raises Violation."""
    for _ in range(1000):
        waiting = [one for one in meter.registry.operations.open() if one.kind == BACKFILL]
        if not waiting:
            return
        await trio.sleep(0.1)
    raise Violation("a backfill does not end on a good disk")


def assert_brought(ledger: Brought, truth: Recount, *, at_the_end: bool) -> None:
    """The log knows every operation that was answered, and every row of those that ran. Raises Violation."""
    if lost := ledger.backfills.keys() - truth.operations.keys():
        raise Violation(f"backfills {lost} were answered and are lost")
    for operation_id in ledger.finished:
        # Failed: the meter ended it, idle for a day, before it was asked to.
        if truth.operations[operation_id].status not in ("completed", "cancelled", "failed"):
            raise Violation(f"the end of import {operation_id} was answered and is lost")
    for operation_id, keys in ledger.backfills.items():
        found = truth.operations[operation_id]
        allowed = {"completed"} if at_the_end else {"completed", "pending", "processing"}
        if operation_id in ledger.cancelled:
            allowed.add("cancelled")
        if found.status not in allowed:
            raise Violation(f"backfill {operation_id} is {found.status}")
        if found.processed > len(keys):
            raise Violation(f"backfill {operation_id} ran {found.processed} of {len(keys)} rows")
        if found.status != "completed":
            continue
        if found.processed != len(keys):
            raise Violation(f"backfill {operation_id} ended after {found.processed} rows")
        for line, key in enumerate(keys, 1):
            if key not in truth.hashes and line not in found.failed_lines:
                raise Violation(f"line {line} of backfill {operation_id} is lost")
