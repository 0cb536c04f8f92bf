"""What every handler gets: the running meter and what stands around it.

It must not know any handler, so that handlers can know it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from engine.actors.administration import Administration
from engine.actors.anchorer import Anchorer
from engine.actors.audit_reader import AuditReader
from engine.actors.backtests import Backtests
from engine.actors.certifier import Certifier
from engine.actors.corrections import Corrections
from engine.actors.price_book import PriceBook
from engine.actors.projections import Projections
from engine.actors.replays import Replays
from engine.actors.simulations import SimulationDesk
from engine.actors.supervisor import Meter
from engine.config import Settings
from engine.ports import Clock
from engine.witness.canonical import Signer
from gateway import __version__
from gateway.auth import Access
from gateway.metrics import Metrics
from gateway.rate_limit import RateLimiter
from gateway.streams import Streams
from gateway.stripe_signature import SeenEvents
from gateway.stripe_ways import StripeWays


@dataclass
class Gateway:
    """One server's parts."""

    meter: Meter
    settings: Settings
    access: Access
    metrics: Metrics
    clock: Clock
    is_stopping: bool = False
    """Set when the server is told to stop: what takes long ends now."""
    ways: StripeWays | None = None
    """Through what usage is pushed; None: through nothing."""
    signer: Signer | None = None
    """Who signs certificates; None: there are none."""
    anchorer: Anchorer | None = None
    """Keeps the log's head elsewhere; None: that is not configured."""
    urls: tuple[str, ...] = ()
    """Where HTTP listens; known once it does."""
    free_bytes: Callable[[], int | None] = field(init=False)
    """The free space of the data directory's disk (None: unknown)."""
    limiter: RateLimiter | None = field(init=False)
    administration: Administration = field(init=False)
    corrections: Corrections = field(init=False)
    replays: Replays = field(init=False)
    audit: AuditReader = field(init=False)
    certifier: Certifier | None = field(init=False, default=None)
    prices: PriceBook = field(init=False)
    projections: Projections = field(init=False)
    simulations: SimulationDesk = field(init=False)
    backtests: Backtests = field(init=False)
    streams: Streams = field(init=False)
    seen_events: SeenEvents = field(default_factory=SeenEvents)
    """Webhooks of Stripe's that were dealt with."""
    started_us: int = field(init=False)
    """On the monotonic clock."""

    def __post_init__(self) -> None:
        limit = self.settings.tenant_rate_limit
        self.limiter = RateLimiter(limit, self.settings.max_batch) if limit else None
        self.administration = Administration(self.meter, self.access.pepper)
        self.corrections = Corrections(self.meter)
        self.replays = Replays(self.meter)
        self.audit = AuditReader(self.meter)
        self.prices = PriceBook(self.meter)
        self.projections = Projections(self.meter, self.prices)
        self.simulations = SimulationDesk(self.meter)
        self.backtests = Backtests(self.meter, self.prices)
        if self.signer is not None:
            self.certifier = certifier_of(self.meter, self.signer)
        self.free_bytes = partial(free_bytes_of, self.settings.data_path)
        self.streams = Streams(
            self.clock, lambda: self.meter.phase == "ready" and not self.is_stopping
        )
        self.metrics.streams, self.metrics.anchorer = self.streams, self.anchorer
        self.started_us = self.clock.monotonic_us()


def certifier_of(meter: Meter, signer: Signer) -> Certifier:
    """Makes the certificates of a meter, which may still be recovering."""
    return Certifier(
        log=meter.log,
        log_id=lambda: meter.log_id,
        as_of=lambda: meter.started.as_of,
        pusher=lambda: meter.started.push,
        clock=meter.clock,
        run_blocking=meter.run_blocking,
        signer=signer,
        software=__version__,
    )


def free_bytes_of(path: Path) -> int | None:
    """The free space of the disk that holds a directory; None when it can't be told."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None
