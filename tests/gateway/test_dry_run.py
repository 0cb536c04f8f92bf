"""What an import would do, many rows at a time: the fate of each is the one that it has alone."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest

from engine.actors import dry_run
from engine.actors.dry_run import DryRun
from engine.core.events import EventLimits
from engine.core.records import PeriodClosing
from engine.core.sent_rows import SOURCE_OF_IMPORT, Meant, rows_of_lines
from engine.core.times import DAY_US, HOUR_US, format_instant
from tests.helpers.served import served

MONTH_US = 1_790_812_800_000_000  # 2026-10-01T00:00:00Z


def row(at: random.Random, now_us: int, hours: int) -> dict[str, Any]:
    """Around the lateness edge and the closed month, with few keys, so that many come again."""
    edge_us = at.choice([now_us - hours * HOUR_US, MONTH_US, now_us])
    return {
        "tenantId": at.choice(["acme", "acme", "other"]),
        "metric": at.choice(["calls", "bytes"]),
        "customerRef": f"c{at.randrange(4)}",
        "quantity": at.choice([1, 1, 1, 2, -1]),
        "ts": format_instant(edge_us + at.randrange(-3, 2) * at.choice([1, HOUR_US, 10 * DAY_US])),
        "idempotencyKey": f"k{at.randrange(60)}" if at.random() < 0.5 else f"new{at.random()}",
    }


@pytest.mark.parametrize("hours", [48, 960], ids=["no older period is open", "one is"])
@pytest.mark.parametrize("historic", [False, True])
async def test_many_rows_have_the_fates_that_each_has_alone(
    monkeypatch: pytest.MonkeyPatch, hours: int, *, historic: bool
) -> None:
    monkeypatch.setattr(dry_run, "KEYS_MAX", 400)
    seen: Counter[str] = Counter()
    async with served(lateness_hours=str(hours)) as server:
        meter = server.gateway.meter
        for seed in range(8):
            print("seed", seed)
            at = random.Random(seed)
            now_us = server.clock.now_us()
            sent = [row(at, now_us, hours) | {"idempotencyKey": f"k{n}"} for n in range(seed * 30)]
            if sent:
                await server.client.post("/v1/events/ingest", json={"events": sent})
            if seed == 4:
                await meter.append_control(
                    PeriodClosing(start_us=0, end_us=MONTH_US, lateness_us=0)
                )
            meant, limits = Meant(None, SOURCE_OF_IMPORT), EventLimits(4096)
            alone = DryRun(meter, meant, limits, historic=historic)
            many = DryRun(meter, meant, limits, historic=historic)
            earlier = sent or [row(at, now_us, hours)]
            for _ in range(6):
                fresh = at.random() < 0.5
                rows = [row(at, now_us, hours) for _ in range(100)]
                if fresh:
                    rows = [one | {"idempotencyKey": f"n{at.random()}"} for one in rows]
                else:
                    rows += [at.choice(earlier) for _ in range(10)]
                    earlier = rows
                lines = b"".join(msgspec.json.encode(one) + b"\n" for one in rows)
                judged = [alone.judge(one) for one in rows_of_lines(lines, 1)]
                fates = Counter(one.fate for one in judged)
                errors = [(one.line, one.error) for one in judged if one.error is not None]
                got = many.judge_all(rows_of_lines(lines, 1), nul=False)
                told = (fates["new"], fates["late"], fates["duplicate"], errors)
                assert got == told, f"seed {seed}"
                seen += fates
    wanted = {"new", "duplicate", "conflict", "invalid"} | (set() if historic else {"late"})
    assert {fate for fate, count in seen.items() if count > 20} == wanted, seen
