"""`/health`, `/health/live`, `/health/ready`, `/metrics`: is it there, is it alive, can it take events, what does it do.

Rules it keeps: open to everybody, so nothing of a tenant and no path is in an answer; ready means that events can be
acknowledged now, so a failing index or snapshot degrades, and only recovery, stopping or a log that can't be written
is a 503. It must not know how a part does its work.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from gateway import __version__
from gateway.context import Gateway
from gateway.problems import Problem
from gateway.routes import Answer, Call
from gateway.shapes import Instant, instant_or_none

FREE_BYTES_LOW: Final = 256 << 20
METRICS_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
CheckStatus = Literal["ok", "degraded", "failed"]


class Health(msgspec.Struct):
    """The process answers."""

    status: Literal["ok"]
    timestamp: Instant


class Alive(msgspec.Struct):
    """The process answers."""

    status: Literal["alive"]


class Check(msgspec.Struct, rename="camel", omit_defaults=True):
    """One part's state."""

    status: CheckStatus
    detail: Annotated[str, msgspec.Meta(description="What is wrong, and what to do.")] = ""
    facts: Annotated[
        dict[str, Any], msgspec.Meta(description="Numbers about the part; may change in kind.")
    ] = {}


class Checks(msgspec.Struct, rename="camel"):
    """Every part's state."""

    log: Check
    shards: Check
    key_index: Check
    indexer: Check
    snapshots: Check
    clock: Check
    disk: Check
    stripe: Check
    anchors: Check


class Recovery(msgspec.Struct):
    """How far recovery has come, as log positions."""

    position: int
    head: int


class Readiness(msgspec.Struct, rename="camel", kw_only=True):
    """Whether events can be acknowledged now."""

    status: Annotated[
        Literal["healthy", "degraded", "recovering", "stopping", "unavailable"],
        msgspec.Meta(description="200: healthy, degraded; 503: the others."),
    ]
    version: str
    uptime_seconds: float
    checks: Checks
    recovery: Recovery
    timestamp: Instant


async def health(call: Call) -> Answer | Problem:
    """GET /health."""
    return Answer(Health("ok", instant_or_none(call.now_us) or ""))


async def live(_call: Call) -> Answer | Problem:
    """GET /health/live."""
    return Answer(Alive("alive"))


async def ready(call: Call) -> Answer | Problem:
    """GET /health/ready."""
    gateway = call.gateway
    meter = gateway.meter
    checks = _checks(gateway)
    status: Any
    if meter.phase in ("recovering", "stopping"):
        status = meter.phase
    elif meter.phase == "stopped" or checks.log.status == "failed":
        status = "unavailable"
    else:
        parts = msgspec.structs.asdict(checks).values()
        status = "healthy" if all(part.status == "ok" for part in parts) else "degraded"
    uptime_us = gateway.clock.monotonic_us() - gateway.started_us
    body = Readiness(
        status=status,
        version=__version__,
        uptime_seconds=uptime_us // 1000 / 1000,
        checks=checks,
        recovery=Recovery(meter.progress.position, meter.progress.head),
        timestamp=instant_or_none(call.now_us) or "",
    )
    if status in ("healthy", "degraded"):
        return Answer(body)
    return Answer(body, 503, headers=(("retry-after", "2"),))


def _checks(gateway: Gateway) -> Checks:
    meter = gateway.meter
    disk = _disk(gateway.free_bytes())
    if meter.phase == "recovering":
        waiting = Check("degraded", "recovering")
        return Checks(waiting, waiting, waiting, waiting, waiting, waiting, disk, waiting, waiting)
    started = meter.started
    writer = started.writer
    events, size_bytes = writer.queued
    waiting_groups = {str(shard.number): len(shard.inbox) for shard in meter.shards}
    position = {"nextSequence": writer.published_sequence}
    return Checks(
        log=_check(
            "failed",
            _stuck(writer.stuck_us) or writer.last_error,
            position | {"queuedEvents": events, "queuedBytes": size_bytes},
        ),
        shards=Check("ok", facts={"waitingGroups": waiting_groups}),
        key_index=_check(
            "degraded",
            started.merger.last_error,
            {"recentKeys": started.keys.recent_keys, "storedKeys": started.keys.stored_keys},
        ),
        indexer=_check("degraded", started.indexer.last_error, {}),
        snapshots=_check("degraded", started.snapshotter.last_error, {}),
        clock=_check("degraded", started.closer.held_because, {}),
        disk=disk,
        stripe=_stripe(gateway),
        anchors=_anchors(gateway),
    )


def _anchors(gateway: Gateway) -> Check:
    """Where the log's head hash goes. Failing degrades: a cut tail would not be found, and nothing waits for it."""
    anchorer = gateway.anchorer
    if anchorer is None:
        return Check("ok", facts={"configured": False})
    problem = anchorer.last_error
    # No path of the machine and no address: readiness is open to everybody.
    said = None if problem is None else "anchors can't be kept: the log has the reason"
    facts = {"configured": True, "position": anchorer.position}
    return _check("degraded", said, facts | {"secondsBehind": anchorer.behind_us() // 1_000_000})


def _stripe(gateway: Gateway) -> Check:
    """What usage is pushed through. A key that fails degrades: events are taken all the same."""
    connections = gateway.meter.started.push.connections
    modes: dict[str, Any] = {}
    errors = []
    for role, connection in connections.items():
        report = connection.report()
        modes[role] = report.mode
        if report.error is not None:
            errors.append(f"{role}: {report.error}")
    is_simulator = gateway.ways is not None and gateway.ways.simulator_url is not None
    facts: dict[str, Any] = {"simulator": is_simulator, "pushing": bool(connections)}
    facts |= {"modes": modes} if modes else {}
    standings = gateway.metrics.push.standings
    if standings is not None:
        facts["targetsThatNeedAPerson"] = standings.need_person
    return _check("degraded", "; ".join(errors) or None, facts)


def _stuck(stuck_us: int) -> str | None:
    if not stuck_us:
        return None
    return f"a write to the log has not ended for {stuck_us // 1_000_000} s: look at its disk; ingest is refused meanwhile"


def _check(when_wrong: CheckStatus, problem: str | None, facts: dict[str, Any]) -> Check:
    if problem is None:
        return Check("ok", facts=facts)
    return Check(when_wrong, problem, facts)


def _disk(free_bytes: int | None) -> Check:
    if free_bytes is None:
        return Check("ok")
    facts = {"freeBytes": free_bytes}
    if free_bytes < FREE_BYTES_LOW:
        return Check("degraded", "little space is left: ingest will answer 507; free some", facts)
    return Check("ok", facts=facts)


async def metrics(call: Call) -> Answer | Problem:
    """GET /metrics."""
    await call.gateway.metrics.push.refresh()
    await call.gateway.metrics.recon.refresh()
    return Answer(call.gateway.metrics.exposition(), content_type=METRICS_CONTENT_TYPE)
