"""Questions about the past of a log from which retention dropped events, or a customer was erased."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from engine.actors import prefix_fold
from engine.actors.as_of import Asked
from engine.actors.event_scan import EventScan, ScanFilter, Stretch
from engine.actors.prefix_fold import PrefixFold, Wanted
from engine.actors.supervisor import Meter
from engine.core.counters import Counter
from engine.core.explain import Explainer
from engine.core.periods import period_of
from engine.core.shard_state import ShardState
from engine.core.usage import usage_at
from engine.errors import Gone
from engine.limits import PARTITIONS
from tests.helpers.keeping import NAME, Place, fill

CUSTOMERS = (("acme", NAME), ("acme", "cleo"), ("umbra", "bob-the-customer"))


async def known(meter: Meter, position: int, tenant: str, customer: str) -> Any:
    """What is answered about a customer at a position; None: it is gone."""
    past = meter.started.as_of
    prefix = await past.prefix(Asked(position, None))
    try:
        fold = await past.customer(prefix, tenant, customer)
    except Gone:
        return None
    usage = usage_at(fold.registry, fold.state, tenant, customer, prefix.at_us)
    return [
        (
            one.metric,
            one.current,
            one.start_us,
            one.pending_count,
            one.counter and one.counter.state(),
        )
        for one in usage
    ]


async def explained(meter: Meter, tenant: str, customer: str, start_us: int) -> Any:
    past = meter.started.as_of
    prefix = await past.prefix(None)
    explainer = Explainer((tenant, "calls", customer), start_us)
    await past.series(prefix, (tenant, "calls", customer), explainer, start_us)
    found = explainer.explanation(prefix.at_us)
    return found.total_micros, found.days, [part.events for part in found.late]


async def test_after_retention_the_past_is_the_same_or_gone_and_never_another(rng: Random) -> None:
    place = Place()
    await fill(place, rng)
    place.snapshots.files.clear()
    async with place.running() as meter:
        end = meter.log.head().next_sequence
        asked = [(p, *who) for p in range(2, end, 3) for who in CUSTOMERS]
        before = {one: await known(meter, *one) for one in asked}
        month_us, _ = period_of("calendar", meter.clock.now_us())
        running = [await explained(meter, *who, month_us) for who in CUSTOMERS]
        [done] = await meter.started.retention.apply(30, "test")
        place.snapshots.files.clear()
        after = {one: await known(meter, *one) for one in asked}
        for one in asked:
            if one[0] + 1 >= done.position or after[one] is not None:
                assert after[one] == before[one], one
        assert None in after.values(), "what is before the checkpoint and needs what was dropped"
        assert any(after.values())
        assert [await explained(meter, *who, month_us) for who in CUSTOMERS] == running
        first_month_us, _ = period_of("calendar", place.clock.us - 100 * 24 * 3_600_000_000)
        with pytest.raises(Gone):
            await explained(meter, "acme", NAME, first_month_us)
        scan = EventScan(meter.log, [Stretch(0, end)], ScanFilter())
        kept = 0
        while (page := scan.next_page()) is not None:
            kept += len(page)
        assert scan.trimmed_positions == done.events
        assert kept > 0


async def test_after_an_erasure_the_past_knows_the_pseudonym_and_not_the_name(rng: Random) -> None:
    place = Place()
    await fill(place, rng)
    async with place.running() as meter:
        end = meter.log.head().next_sequence
        before = {p: await known(meter, p, "acme", NAME) for p in range(2, end, 5)}
        month_us, _ = period_of("calendar", meter.clock.now_us())
        told = await explained(meter, "acme", NAME, month_us)
        await meter.started.snapshotter.take()
        begun = await meter.started.eraser.begin(
            "acme", [NAME], secret=None, actor="test", request_id=None
        )
        pseudonym = begun.names[NAME]
        await meter.started.eraser.ended(begun.erasure_id)
        for position, answer in before.items():
            assert await known(meter, position, "acme", pseudonym) == answer
            nothing = await known(meter, position, "acme", NAME)
            assert all(not current for _metric, current, *_ in nothing)
        assert await explained(meter, "acme", pseudonym, month_us) == told
        scan = EventScan(meter.log, [Stretch(0, end)], ScanFilter("acme"))
        names = set()
        while (page := scan.next_page()) is not None:
            names |= {event.customer_ref for event in page}
        assert pseudonym in names
        assert NAME not in names


@pytest.mark.parametrize("erased_before", ["nobody", "another customer"])
async def test_a_question_under_way_while_its_customer_is_erased_is_never_answered_with_a_part(
    monkeypatch: pytest.MonkeyPatch, rng: Random, erased_before: str
) -> None:
    monkeypatch.setattr(prefix_fold, "PAGE_BYTES", 1)
    place = Place()
    await fill(place, rng, months=1, events=40)
    async with place.running() as meter:

        async def erase(customer: str) -> str:
            begun = await meter.started.eraser.begin(
                "acme", [customer], secret=None, actor="test", request_id=None
            )
            await meter.started.eraser.ended(begun.erasure_id)
            return begun.names[customer]

        if erased_before != "nobody":
            await erase("cleo")
        end = meter.log.head().next_sequence
        fold = PrefixFold(meter.log, end, partitions=range(PARTITIONS), wanted=Wanted("acme"))
        whole = sums(fold_to_its_end(PrefixFold(meter.log, end)).state, {NAME})
        while sums(fold.state, {NAME}) * 2 < whole:
            assert fold.run_slice(), "more than half of it is still to come"
        pseudonym = await erase(NAME)
        fold_to_its_end(fold)
        assert (sums(fold.state, {NAME}), sums(fold.state, {pseudonym})) == (0, whole)


def fold_to_its_end(fold: PrefixFold) -> PrefixFold:
    while fold.run_slice():
        pass
    return fold


def sums(state: ShardState, customers: set[str]) -> int:
    """Of all counters of these customers of acme's."""
    return sum(
        counter.sum
        for table in state.counters.values()
        for (tenant, _, customer), newest in table.items()
        if tenant == "acme" and customer in customers
        for counter in chain_of(newest)
    )


def chain_of(counter: Counter | None) -> Iterator[Counter]:
    while counter is not None:
        yield counter
        counter = counter.older
