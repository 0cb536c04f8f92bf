"""The indexer against a list: random groups, restarts and queries, compared with a filter and a sort of all events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Any
from unittest import mock

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.actors import index_reader, indexer
from engine.actors.indexer import Indexer
from engine.core import extents, listing, summaries
from engine.core.queries import EventsQuery, HistoryQuery
from engine.core.records import SOURCE_NAMES
from engine.core.times import MINUTE_US
from tests.helpers.event_log import EventLog, Logged, Sent, run_inline
from wal.memory_cells import MemoryCells
from wal.memory_log import MemoryLog

LOG_ID = bytes(16)
T0_US = 1_700_000_040_000_000
TENANTS = ("acme", "umbrella")
METRICS = ("calls", "seats")
CUSTOMERS = ("ann", "bob", "cyd")
SMALL = (
    (summaries, "EVENT_BLOCK_ROWS", 4),
    (extents, "EVENT_BLOCK_ROWS", 4),
    (listing, "EVENT_BLOCK_ROWS", 4),
    (extents, "CELL_BLOCK_ROWS", 3),
    (indexer, "SEGMENT_EVENTS", 5),
    (indexer, "OPEN_EVENTS_MAX", 30),
    (indexer, "CHUNK_POSITIONS_MAX", 40),
    (indexer, "_PAGE_BYTES", 1500),
    (index_reader, "_SLICE_BLOCKS", 2),
    (index_reader, "_SLICE_EXTENTS", 2),
    (index_reader, "_DENSE_EVENTS", 2),
    (index_reader, "_DENSE_POSITIONS", 5),
)


@contextmanager
def small_bounds() -> Iterator[None]:
    """Everything that is cut in pieces is cut in small ones."""
    with ExitStack() as stack:
        for module, name, value in SMALL:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


times = st.one_of(
    st.none(),
    st.integers(-3, 3).map(lambda n: T0_US + n),
    st.integers(-90, 90).map(lambda n: T0_US + n * 20_000_000),
    st.sampled_from((T0_US - 400 * 86_400_000_000, T0_US + 3_600_000_000)),
)
quantities = st.one_of(
    st.integers(0, 9), st.sampled_from((10**21 - 1, 2**63 - 1, 2**63, 2**62, 2**62))
)
metas = st.sampled_from((None, '{"plan":"gold"}', '{"plan":3}'))
events = st.builds(
    Sent,
    st.sampled_from(TENANTS),
    st.sampled_from(METRICS),
    st.sampled_from(CUSTOMERS),
    quantities,
    times,
    st.integers(0, 4),
    st.sampled_from((None, "r1")),
    metas,
)
bounds = st.one_of(
    st.none(),
    st.integers(-3, 4).map(lambda n: T0_US + n),
    st.integers(-90, 90).map(lambda n: T0_US + n * 20_000_000),
)
queries = st.builds(
    EventsQuery,
    tenant=st.sampled_from(TENANTS),
    metric=st.sampled_from((None, *METRICS)),
    customer_ref=st.sampled_from((None, *CUSTOMERS)),
    source=st.sampled_from((None, None, "http", "sdk")),
    start_us=bounds,
    end_us=bounds,
    sort=st.sampled_from(("ts", "ts", "ts", "metric", "customerRef", "source")),
    direction=st.sampled_from(("asc", "desc")),
    limit=st.integers(1, 7),
    offset=st.sampled_from((0, 0, 1, 5)),
)
histories = st.builds(
    HistoryQuery,
    tenant=st.sampled_from(TENANTS),
    metric=st.sampled_from(METRICS),
    customer_ref=st.sampled_from((None, *CUSTOMERS)),
    since_us=st.integers(-100, 0).map(lambda n: T0_US + n * 31_000_000),
    until_us=st.integers(1, 100).map(lambda n: T0_US + n * 31_000_000),
    interval=st.sampled_from(("minute", "hour", "day", "month")),
    group_by=st.sampled_from((None, None, "customerRef", "resourceId", "meta.plan")),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(events, max_size=9), st.integers(0, 2)),
        st.tuples(st.just("pause"), st.just(None), st.just(None)),
        st.tuples(st.just("restart"), st.just(None), st.just(None)),
        st.tuples(st.just("list"), queries, st.just(None)),
        st.tuples(st.just("walk"), queries, st.lists(events, min_size=1, max_size=3)),
        st.tuples(
            st.just("history"), histories, st.sampled_from(("sum", "max", "last", "changing"))
        ),
    ),
    max_size=25,
)


def matching(logged: Sequence[Logged], query: EventsQuery) -> list[Logged]:
    """The slow and obvious answer, in order."""
    found = [
        e
        for e in logged
        if e.sent.tenant == query.tenant
        and query.metric in (None, e.sent.metric)
        and query.customer_ref in (None, e.sent.customer)
        and query.source in (None, SOURCE_NAMES[e.sent.source])
        and (query.start_us is None or e.ts_us >= query.start_us)
        and (query.end_us is None or e.ts_us < query.end_us)
    ]
    keys: dict[str, Callable[[Logged], Any]] = {
        "ts": lambda _: "",
        "metric": lambda e: e.sent.metric,
        "customerRef": lambda e: e.sent.customer,
        "source": lambda e: SOURCE_NAMES[e.sent.source],
    }
    key = keys[query.sort]
    found.sort(key=lambda e: (key(e), e.ts_us, e.sequence), reverse=query.direction == "desc")
    return found


def value_of(found: Sequence[Logged], aggregation: str) -> int:
    """What usage is, by the slow and obvious way."""
    if not found:
        return 0
    if aggregation == "sum":
        return sum(e.sent.micros for e in found)
    if aggregation == "max":
        return max(e.sent.micros for e in found)
    return max(found, key=lambda e: (e.ts_us, e.sequence)).sent.micros


class World:
    """A log, an index that may be restarted at any time, and the list of all events."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.event_log = EventLog(MemoryLog())
        self.cells = MemoryCells()
        self.appended = 0
        self.start()

    def start(self) -> None:
        self.scope = trio.CancelScope()
        self.indexer = Indexer(self.event_log.log, self.cells, LOG_ID, run_inline, chunk_events=11)
        self.nursery.start_soon(self._run, self.indexer, self.scope)

    async def _run(self, one: Indexer, scope: trio.CancelScope) -> None:
        with scope:
            await one.run()

    def append(self, sent: Sequence[Sent], controls: int = 0) -> None:
        if not sent and not controls:
            return
        self.appended += 1
        received_us = T0_US + self.appended * 7_000_000
        group, end = self.event_log.append(sent, received_us, controls=controls)
        self.indexer.feed(group, end)

    async def step(self, kind: str, what: Any, more: Any) -> None:
        if kind == "append":
            self.append(what, more)
        elif kind == "pause":
            await trio.sleep(1)
        elif kind == "restart":
            self.scope.cancel()
            self.start()
        elif kind == "list":
            await self.check_list(what)
        elif kind == "walk":
            await self.check_walk(what, more)
        else:
            await self.check_history(what, more)

    async def check_list(self, query: EventsQuery) -> None:
        expected = matching(self.event_log.logged, query)
        page = await self.indexer.events(query)
        assert page.total == len(expected)
        assert not page.total_is_lower_bound
        wanted = expected[query.offset : query.offset + query.limit]
        assert [e.sequence for e in page.events] == [e.sequence for e in wanted]
        assert (page.next_cursor is not None) == (len(expected) > query.offset + query.limit)
        for event, logged in zip(page.events, wanted, strict=True):
            sent = logged.sent
            assert (event.id, event.tenant, event.metric) == (
                logged.key_text,
                sent.tenant,
                sent.metric,
            )
            assert (event.customer_ref, event.quantity_micros) == (sent.customer, sent.micros)
            assert (event.ts_us, event.received_at_us) == (logged.ts_us, logged.received_at_us)
            assert (event.source, event.meta) == (SOURCE_NAMES[sent.source], sent.meta)
            assert event.resource_id == sent.resource

    async def check_walk(self, query: EventsQuery, arriving: Sequence[Sent]) -> None:
        before = matching(self.event_log.logged, query)[query.offset :]
        seen: list[int] = []
        cursor, offset = None, query.offset
        # A walk has an end, however short its pages are: each one gets further.
        pages_max = 3 * (len(self.event_log.logged) + 50)
        for _ in range(pages_max):
            fields = {f: getattr(query, f) for f in query.__struct_fields__}
            page = await self.indexer.events(
                EventsQuery(**{**fields, "cursor": cursor, "offset": offset})
            )
            seen += [e.sequence for e in page.events]
            cursor, offset = page.next_cursor, 0
            if cursor is None:
                break
            if len(seen) < 20:
                self.append(arriving)
        assert cursor is None
        position = {e.sequence: i for i, e in enumerate(matching(self.event_log.logged, query))}
        places = [position[sequence] for sequence in seen]
        assert places == sorted(set(places)), "in order, none twice"
        assert {e.sequence for e in before} <= set(seen), "each one that was there"

    async def check_history(self, query: HistoryQuery, aggregation: str) -> None:
        def aggregation_at(us: int) -> str:
            if aggregation != "changing":
                return aggregation
            return "sum" if us < T0_US else "max"

        result = await self.indexer.history(query, aggregation_at)
        assert result.since_us <= query.since_us
        assert query.until_us <= result.until_us
        starts = result.bucket_starts_us
        ends = (*starts[1:], result.until_us)
        assert starts[0] == result.since_us
        inside = [
            e
            for e in self.event_log.logged
            if (e.sent.tenant, e.sent.metric) == (query.tenant, query.metric)
            and query.customer_ref in (None, e.sent.customer)
            and result.since_us <= e.ts_us < result.until_us
        ]
        groups: dict[str | None, list[Logged]] = {}
        for e in inside:
            by = {
                None: None,
                "customerRef": e.sent.customer,
                "resourceId": e.sent.resource,
                "meta.plan": {None: None, '{"plan":"gold"}': "gold"}.get(e.sent.meta, "3"),
            }[query.group_by]
            groups.setdefault(by, []).append(e)
        if query.group_by is None:
            groups = {None: inside}
        assert {line.group for line in result.series} == set(groups)
        for line in result.series:
            own = groups[line.group]
            expected = [
                value_of([e for e in own if start <= e.ts_us < end], aggregation_at(start))
                for start, end in zip(starts, ends, strict=True)
            ]
            assert list(line.values_micros) == expected
            assert line.total_micros == value_of(own, aggregation_at(starts[-1]))
        assert result.total_micros == value_of(inside, aggregation_at(starts[-1]))


async def play(plan: Sequence[tuple[str, Any, Any]]) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        for kind, what, more in plan:
            await world.step(kind, what, more)
        for direction in ("asc", "desc"):
            for tenant in TENANTS:
                await world.check_walk(
                    EventsQuery(tenant=tenant, direction=direction, limit=5),
                    [Sent(tenant, "calls", "ann", 1, None)],
                )
        nursery.cancel_scope.cancel()


@given(steps)
@settings(deadline=None)
def test_the_index_answers_like_a_list_whatever_happens(plan: list[tuple[str, Any, Any]]) -> None:
    with small_bounds():
        trio.run(play, plan, clock=trio.testing.MockClock(autojump_threshold=0))


@given(st.lists(events, max_size=40), st.lists(queries, min_size=1, max_size=3))
@settings(deadline=None)
def test_a_walk_gets_to_its_end_however_little_one_request_may_read(
    sent: list[Sent], walks: list[EventsQuery]
) -> None:
    async def walk() -> None:
        async with trio.open_nursery() as nursery:
            world = World(nursery)
            for first in range(0, len(sent), 3):
                world.append(sent[first : first + 3])
            for query in walks:
                if query.sort == "ts":
                    await world.check_walk(query, sent[:2])
            nursery.cancel_scope.cancel()

    with (
        small_bounds(),
        mock.patch.object(index_reader, "LISTING_ROWS_MAX", 1),
        mock.patch.object(index_reader, "LISTING_BYTES_MAX", 1),
    ):
        trio.run(walk, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.slow
def test_long_random_histories_answer_like_a_list(seed: int) -> None:
    rng = Random(seed)

    def some_event() -> Sent:
        ts_us = rng.choice(
            (None, T0_US + rng.randrange(-10, 10) * MINUTE_US, T0_US - rng.randrange(10**13))
        )
        return Sent(
            rng.choice(TENANTS),
            rng.choice(METRICS),
            rng.choice(CUSTOMERS),
            rng.choice((1, 2, 10**21 - 1)),
            ts_us,
            rng.randrange(5),
        )

    plan: list[tuple[str, Any, Any]] = []
    for _ in range(120):
        kind = rng.choice(("append", "append", "append", "pause", "restart", "list", "history"))
        if kind == "append":
            plan.append((kind, [some_event() for _ in range(rng.randrange(20))], rng.randrange(3)))
        elif kind == "list":
            query = EventsQuery(
                tenant=rng.choice(TENANTS),
                customer_ref=rng.choice((None, *CUSTOMERS)),
                direction=rng.choice(("asc", "desc")),
                limit=rng.randrange(1, 40),
            )
            plan.append((kind, query, None))
        elif kind == "history":
            history = HistoryQuery(
                tenant=rng.choice(TENANTS),
                metric=rng.choice(METRICS),
                since_us=T0_US - 10 * MINUTE_US,
                until_us=T0_US + 20 * MINUTE_US,
                interval="minute",
            )
            plan.append((kind, history, rng.choice(("sum", "max", "last"))))
        else:
            plan.append((kind, None, None))
    with small_bounds():
        trio.run(play, plan, clock=trio.testing.MockClock(autojump_threshold=0))
