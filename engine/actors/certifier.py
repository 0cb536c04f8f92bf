"""Makes parity certificates: folds the log up to now for one tenant, reads Stripe where that is too old, and signs.

Rules it keeps: a certificate is of one prefix of the log, whatever arrives meanwhile; Stripe is read after that prefix
was fixed, within the account's limits, and what was pushed in between is said; the work is done in slices beside the
running meter and gives up rather than holding it up. It must not know HTTP, or where the key lies.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import trio

from engine.actors.as_of import AsOf, Prefix
from engine.actors.prefix_fold import PrefixFold, Wanted
from engine.actors.pusher import Pusher
from engine.core.billing import Destination, Proven, Reading, Resolved, Unresolved
from engine.core.pace import WAIT_SLICE_US
from engine.core.parity import Parity, Projection, StripeSide, projection_of, worst
from engine.core.parity_trail import ParityTrail, pushed_of
from engine.core.push_baselines import baseline_range
from engine.core.push_plan import TargetView
from engine.core.push_records import Role, Target, target_id
from engine.core.push_totals import PushTotals
from engine.core.registry import Registry
from engine.core.times import DAY_US, format_instant
from engine.errors import Refused, Unavailable
from engine.ports import Clock, RunBlocking
from engine.pricing.line import priced_line
from engine.witness.canonical import Document, Signer
from engine.witness.purposes import PARITY
from wal.log import Log

CHAINS_MAX: Final = 20_000
"""In one certificate; some 1,500 bytes each."""
READS_AT_ONCE: Final = 8
READING_SECONDS_MAX: Final = 15.0
"""For all readings of one certificate; what was not read by then is said to be unread."""
SERIES_PER_SLICE: Final = 50
_PERIOD_DAYS_MAX: Final = 32


class Certifier:
    """One for each server."""

    def __init__(
        self,
        *,
        log: Log,
        log_id: Callable[[], bytes],
        as_of: Callable[[], AsOf],
        pusher: Callable[[], Pusher],
        clock: Clock,
        run_blocking: RunBlocking,
        signer: Signer,
        software: str,
    ) -> None:
        self._log = log
        self._log_id = log_id
        self._as_of = as_of
        self._pusher = pusher
        self._clock = clock
        self._run_blocking = run_blocking
        self.signer = signer
        self._software = software
        self._turns = trio.CapacityLimiter(1)
        """A certificate may take a core's share for seconds."""

    async def certify(
        self,
        tenant: str,
        customer_ref: str | None,
        *,
        month: str,
        since_us: int,
        until_us: int,
        age_us_max: int,
    ) -> Document:
        """A signed certificate of a tenant's periods that begin in [since, until).

        Readings of Stripe older than `age_us_max`, or than the last push, are made anew. Raises Refused (more than
        CHAINS_MAX chains), Gone (retention dropped what it is about) or Unavailable.
        """
        async with self._turns:
            as_of = self._as_of()
            prefix = await as_of.prefix(None)
            trail = ParityTrail(tenant)
            oldest_us = since_us - _PERIOD_DAYS_MAX * DAY_US
            wanted = Wanted(tenant, ts_us_min=oldest_us)
            fold = PrefixFold(self._log, prefix.end, wanted=wanted, observer=trail)
            await as_of.fold(fold, from_snapshot=False)
            parity = self._parity(fold, trail, since_us, until_us, customer_ref)
            await self._run_blocking(parity.collect)
            if len(parity.keys) > CHAINS_MAX:
                message = (
                    f"{len(parity.keys)} chains are more than the {CHAINS_MAX} that one certificate holds: "
                    "ask for a customer at a time"
                )
                raise Refused(message, (("customerRef", message),))
            if (why := parity.unplaced()) is not None:
                # Signed, it would say that nobody's use goes to what was pushed.
                message = f"it is not known yet where all usage goes at Stripe ({why}); ask again"
                raise Unavailable(message, retry_after_seconds=10)
            sides = await self._read_all(parity, trail, age_us_max)
            body = await self._body(parity, fold.registry, prefix, sides)
            head = {
                "format": PARITY,
                "software": self._software,
                "issuedAt": format_instant(self._clock.now_us()),
                "period": month,
                "scope": {"tenantId": tenant, "customerRef": customer_ref},
                "log": await self._run_blocking(partial(self._place, prefix)),
            }
            make = partial(self.signer.sealed, PARITY, head | body)
            return await self._run_blocking(make)

    def _parity(
        self,
        fold: PrefixFold,
        trail: ParityTrail,
        since_us: int,
        until_us: int,
        customer_ref: str | None,
    ) -> Parity:
        totals = PushTotals(
            trail.push.routes,
            trail.push.ledger,
            resolution=self._resolution,
            proven=self._proven,
            mapping=fold.registry.active_mapping,
        )
        return Parity(
            trail, totals, since_us=since_us, until_us=until_us, customer_ref=customer_ref
        )

    def _place(self, prefix: Prefix) -> Document:
        last = self._log.read(prefix.position, bytes_max=1)[0]
        return {
            "id": self._log_id().hex(),
            "epoch": last.envelope.epoch,
            "position": prefix.position,
            "headHash": last.hash.hex(),
            "receivedAt": format_instant(last.envelope.received_at_us),
        }

    def _proven(self, role: Role) -> Proven | None:
        connection = self._pusher().connections.get(role)
        return None if connection is None else connection.proven

    def _resolution(self, role: Role, destination: Destination) -> Resolved | Unresolved | None:
        connection = self._pusher().connections.get(role)
        if connection is None:
            return Unresolved("no Stripe key is set for it, and the simulator is off")
        return connection.known(destination)

    async def _body(
        self,
        parity: Parity,
        registry: Registry,
        prefix: Prefix,
        sides: dict[Target, StripeSide],
    ) -> Document:
        targets: list[dict[str, Any]] = []
        verdicts: dict[str, str] = {}
        for number, target in enumerate(parity.targets):
            if number % SERIES_PER_SLICE == 0:
                await trio.lowlevel.checkpoint()
            projection = self._projection(parity, registry, target, prefix.at_us)
            body = parity.target(
                target, now_us=prefix.at_us, stripe=sides[target], projection=projection
            )
            verdicts[target_id(target)] = body["verdict"]
            targets.append(body)
        chains: list[dict[str, Any]] = []
        for number, key in enumerate(parity.keys):
            if number % SERIES_PER_SLICE == 0:
                await trio.lowlevel.checkpoint()
            chains.append(parity.chain(key, verdicts.__getitem__))
        found = [one["verdict"] for one in (*chains, *targets)]
        counts = {name: found.count(name) for name in ("green", "waiting", "red", "unbilled")}
        return {
            "chains": chains,
            "targets": targets,
            "summary": {"chains": len(chains), "targets": len(targets)} | counts,
            "verdict": worst(found),
        }

    def _projection(
        self, parity: Parity, registry: Registry, target: Target, now_us: int
    ) -> Projection:
        view = parity.view(target)
        mapping = None if view is None else registry.active_mapping(view.tenant, view.metric)
        price = None if mapping is None else mapping.price_config
        units = parity.planned(target, now_us).billable

        def line(text: str) -> tuple[str, str]:
            found = priced_line(text, units, target.start_us, target.end_us)
            return found.amount, found.currency

        return projection_of(price, line)

    # Stripe.

    async def _read_all(
        self, parity: Parity, trail: ParityTrail, age_us_max: int
    ) -> dict[Target, StripeSide]:
        limiter = trio.CapacityLimiter(READS_AT_ONCE)
        from_us = self._clock.now_us() - age_us_max
        oldest_us = {one: max(from_us, trail.pushed_at_us(one)) for one in parity.targets}
        with trio.move_on_after(READING_SECONDS_MAX):
            async with trio.open_nursery() as nursery:
                for target in parity.targets:
                    if (view := parity.view(target)) is None:
                        continue
                    if self._known(target, oldest_us[target]) is None:
                        await limiter.acquire_on_behalf_of(target)
                        nursery.start_soon(self._read, view, limiter)
        return {
            target: self._side(target, parity, trail, self._known(target, oldest))
            for target, oldest in oldest_us.items()
        }

    def _known(self, target: Target, oldest_us: int) -> tuple[str, int] | None:
        """What Stripe's summary held, and when; None: not read since then, and what it held before proves nothing now."""
        known = self._pusher().summaries.get(target)
        return None if known is None or known[1] < oldest_us else known

    async def _read(self, view: TargetView, limiter: trio.CapacityLimiter) -> None:
        """Read one summary, if it can be read."""
        target = view.target
        try:
            connection = self._pusher().connections.get(view.role)
            if connection is None or connection.proven is None:
                return
            pace = connection.pace(view.connect_account)
            while True:
                now_us = self._clock.now_us()
                wait_us = pace.breaker.wait_us(now_us) or pace.reads.take(now_us)
                if not wait_us:
                    break
                await trio.sleep(min(max(wait_us, 1_000), WAIT_SLICE_US) / 1_000_000)
            start_s, end_s = baseline_range(view, now_us)
            answer = await connection.billing.read(
                view.resolved, target.lane.customer, start_s, end_s, view.connect_account
            )
            if isinstance(answer, Reading):
                self._pusher().summaries[target] = (answer.units, now_us)
        finally:
            limiter.release_on_behalf_of(target)

    def _side(
        self, target: Target, parity: Parity, trail: ParityTrail, known: tuple[str, int] | None
    ) -> StripeSide:
        ledger = self._pusher().state.ledger
        lane = ledger.lane(target.lane)
        before = trail.push.ledger.lane(target.lane)
        is_open_now = None if lane is None else lane.open
        was_open = None if before is None else before.open
        moved = pushed_of(lane, target) != pushed_of(before, target) or is_open_now != was_open
        if known is None:
            why = (
                "nobody's use goes there any more"
                if parity.view(target) is None
                else ("Stripe could not be asked in time")
            )
            return StripeSide(None, None, why, moved)
        return StripeSide(known[0], known[1], None, moved)
