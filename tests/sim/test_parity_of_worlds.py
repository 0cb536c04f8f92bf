"""Certificates of whole simulated worlds: imports, erasures, retention, restarts, pushes, rejections; recounted."""

from __future__ import annotations

import pytest

from engine.core.times import format_instant
from engine.errors import Gone
from tests.helpers.parity import certificate_of, verified
from tests.sim import push_world, world
from tests.sim.client import TENANTS
from tests.sim.push_story import history
from wal.log import Log
from wal.memory_log import MemoryLog

pytestmark = pytest.mark.slow


def months_of(log: Log) -> list[str]:
    """The months in which the log grew, and the one before."""
    received = [r.envelope.received_at_us for r in log.read(0, bytes_max=1 << 30)]
    found = {format_instant(us - back)[:7] for us in received for back in (0, 31 * 86_400_000_000)}
    return sorted(found)


def test_certificates_of_simulated_worlds_hold_against_their_logs() -> None:
    chains = 0
    for seed in range(500, 512):
        print("seed", seed)
        made = world.run_seed(seed)
        log = MemoryLog(made.disk)
        for tenant in TENANTS:
            for month in months_of(log):
                try:
                    document = certificate_of(log, tenant, month)
                except Gone:
                    continue  # retention dropped what it is about
                chains += len(document["chains"])
                assert verified(document, log, made.archives) == [], (seed, tenant, month)
    assert chains > 50


def test_certificates_of_pushing_worlds_hold_against_their_logs() -> None:
    targets = 0
    for seed in range(500, 510):
        print("seed", seed)
        log = MemoryLog(push_world.run_seed(seed, history).disk)
        for month in months_of(log):
            document = certificate_of(log, "acme", month)
            targets += len(document["targets"])
            assert verified(document, log) == [], (seed, month)
    assert targets > 10
