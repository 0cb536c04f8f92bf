"""From sent rows to what the log takes, many at a time: columns in, columns out, no object per row.

Rules it keeps: a row comes out as `engine.core.sent_rows.taken` makes it, or is refused with its words; what is not
plainly right in a piece of rows (`_Unusual`) sends the whole piece to `taken`, which alone refuses. What was seen is
remembered in tables with a bound, each beside the check that let it in. It must not know files or the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import blake2b
from itertools import repeat
from operator import is_not
from typing import Any, Final, NamedTuple

import msgspec

from engine.core.cell_rows import CellRows
from engine.core.csv_cells import read_cell
from engine.core.events import EventLimits, Refusal, SentEvent, canonical_meta
from engine.core.partitions import partition_of
from engine.core.quantities import QUANTITY_TEXT_BYTES_MAX, QuantityError, parse_json
from engine.core.records import SOURCE_CODES, Row
from engine.core.sent_rows import CELL_CHARS_MAX, EventRows, Meant, SentRow, taken
from engine.core.times import TimeError
from engine.core.times_in_bulk import parse_instants
from engine.limits import FUTURE_US_MAX, METRIC_CHARS_MAX, NAME_CHARS_MAX

PIECE_ROWS: Final = 2_000
"""One unusual row costs its piece the quick way; smaller pieces cost more calls. Its columns fit the caches."""
CUSTOMERS_REMEMBERED_MAX: Final = 65_536
TEXTS_REMEMBERED_MAX: Final = 4_096
"""Of metrics, and of quantities."""
META_BRACKETS_MAX: Final = 64
"""Meta with more may nest deeper than the long way can read."""
COLUMNS: Final = len(Row._fields)


class _Unusual(Exception):
    """Something in a piece that the long way must look at."""


class _Sent(NamedTuple):
    """Rows as they were sent, by column; None for a column: given by no row.

    What a row does not give is None, and in names and keys also "", which no row gives.
    """

    tenants: Sequence[str | None] | None
    metrics: Sequence[str]
    customers: Sequence[str]
    quantities: Sequence[Any]
    """CSV: the cells; JSON: the tokens."""
    times: Sequence[str | None] | None
    keys: Sequence[str | None] | None
    resources: Sequence[str | None] | None
    sources: Sequence[str | None] | None
    metas: Sequence[bytes] | None


class TenantRows:
    """A tenant's good rows: `columns` in `Row`'s order, and the line of each."""

    __slots__ = ("columns", "lines")

    def __init__(self) -> None:
        self.columns: list[list[Any]] = [[] for _ in range(COLUMNS)]
        self.lines: list[int] = []

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """Row by row."""
        return list(zip(*self.columns, strict=True))

    def extend(self, columns: Iterable[Iterable[Any]], lines: Iterable[int]) -> None:
        """Put rows at the end."""
        for column, values in zip(self.columns, columns, strict=True):
            column.extend(values)
        self.lines.extend(lines)


class Taken(NamedTuple):
    """What became of rows."""

    tenants: dict[str, TenantRows]
    """The good ones, in their order."""
    refused: list[tuple[int, Refusal]]
    """(line, why) of the others."""


class _Quantities(dict[Any, tuple[int, str]]):
    """By the text as it was sent: micros, and their text for the fingerprint."""

    def __missing__(self, text: str | bytes) -> tuple[int, str]:
        if len(text) > QUANTITY_TEXT_BYTES_MAX:
            raise _Unusual
        raw = msgspec.json.encode(text.strip()) if isinstance(text, str) else text
        try:
            micros = parse_json(raw)
        except QuantityError as error:
            raise _Unusual from error
        if micros < 0:
            raise _Unusual
        made = self[text] = (micros, str(micros))
        return made


class _Metrics(dict[str, str]):
    """Names of metrics, so that all rows share one object each."""

    def __missing__(self, name: str) -> str:
        if not 1 <= len(name) <= METRIC_CHARS_MAX:
            raise _Unusual
        self[name] = name
        return name


class _Customers(dict[str, tuple[str, int, Callable[[], Any]]]):
    """Of one tenant: the name, its partition, what gives a hash that has taken in a key's text up to the key."""

    def __init__(self, tenant: str) -> None:
        super().__init__()
        self._tenant = tenant

    def __missing__(self, name: str) -> tuple[str, int, Callable[[], Any]]:
        if not 1 <= len(name) <= NAME_CHARS_MAX:
            raise _Unusual
        prefix = f"{self._tenant}\0{name}\0".encode()
        hasher = blake2b(prefix, digest_size=16)
        made = self[name] = (name, partition_of(self._tenant, name), hasher.copy)
        return made


class _Tenants(dict[str, _Customers]):
    def __missing__(self, name: str) -> _Customers:
        if not 1 <= len(name) <= NAME_CHARS_MAX:
            raise _Unusual
        made = self[name] = _Customers(name)
        return made


class Taker:
    """Takes the rows of one import or backfill."""

    def __init__(self, meant: Meant, limits: EventLimits) -> None:
        self._meant = meant
        self._limits = limits
        self._is_quick = (
            meant.metric is None
            and meant.customer_ref is None
            and meant.start_us is None
            and meant.end_us is None
            and meant.only_tenant
        )
        self._tenants = _Tenants()
        self._metrics = _Metrics()
        self._quantities = _Quantities()
        codes: dict[str | None, tuple[int, int]] = {None: (0, meant.source)}
        self._sources = codes | {name: (code, code) for name, code in SOURCE_CODES.items()}

    def take(self, rows: Sequence[SentRow], now_us: int, *, nul: bool = True) -> Taken:
        """What becomes of rows, now. `nul`: a name may hold U+0000."""
        made = Taken({}, [])
        if nul or not self._is_quick:
            self._take_each(rows, now_us, made, nul=nul)
            return made
        for start in range(0, len(rows), PIECE_ROWS):
            piece = rows[start : start + PIECE_ROWS]
            try:
                sent = _as_sent(piece)
                names, tenants = self._tenants_of(sent)
                columns = self._columns(sent, names, tenants, now_us)
            except _Unusual:
                self._take_each(piece, now_us, made, nul=False)
            else:
                _put(made.tenants, names, tenants, columns, _lines_of(piece))
            self._forget()
        return made

    def _take_each(self, rows: Sequence[SentRow], now_us: int, made: Taken, *, nul: bool) -> None:
        tenants: dict[str, tuple[list[Row], list[int]]] = {}
        for line, event in rows:
            one = taken(event, self._meant, now_us, self._limits, nul=nul)
            if isinstance(one, Refusal):
                made.refused.append((line, one))
                continue
            tenant, row = one
            of_tenant, lines = tenants.setdefault(tenant, ([], []))
            of_tenant.append(row)
            lines.append(line)
        for tenant, (of_tenant, lines) in tenants.items():
            good = made.tenants.setdefault(tenant, TenantRows())
            good.extend(zip(*of_tenant, strict=True), lines)

    def _tenants_of(self, sent: _Sent) -> tuple[set[str], Sequence[str]]:
        """(the tenants, each row's) of a piece; of only one tenant, no row's."""
        default = self._meant.tenant
        given = sent.tenants
        if given is None:
            if default is None:
                raise _Unusual
            return {default}, ()
        names = set(given)
        if not all(names):
            names -= {"", None}
            names.add(default)
        if None in names or (default is not None and names != {default}):
            raise _Unusual
        if len(names) == 1:
            return names, ()  # type: ignore[return-value]
        return names, [name or default for name in given]  # type: ignore[return-value,misc]

    def _columns(
        self, sent: _Sent, names: set[str], tenants: Sequence[str], now_us: int
    ) -> list[Sequence[Any]]:
        """The piece as the log takes it, in `Row`'s order."""
        count = len(sent.metrics)
        metrics = list(map(self._metrics.__getitem__, sent.metrics))
        micros, micros_texts = zip(
            *[self._quantities[text] for text in sent.quantities], strict=True
        )
        times = self._times(sent, now_us)
        if tenants:
            of = self._tenants
            found = [of[tenant][name] for tenant, name in zip(tenants, sent.customers, strict=True)]
        else:
            (tenant,) = names
            known = self._tenants[tenant]
            found = [known[name] for name in sent.customers]
        customers, partitions, hashers = zip(*found, strict=True)
        resources = _resources(sent.resources, count)
        codes, stored = self._sources_of(sent.sources, count)
        metas = self._metas(sent.metas, count)
        if sent.times is not None and not (sent.resources or sent.sources or sent.metas):
            fingerprints = _plain_fingerprints(metrics, micros_texts, times)
        else:
            instants: Iterable[Any] = times if sent.times is not None else repeat("", count)
            fingerprints = _fingerprints(metrics, resources, micros_texts, instants, codes, metas)
        key_texts = _key_texts(sent.keys, fingerprints)
        return [
            metrics,
            customers,
            micros,
            times,
            partitions,
            _keys(hashers, key_texts),
            fingerprints,
            stored,
            key_texts,
            resources,
            metas,
        ]

    def _times(self, sent: _Sent, now_us: int) -> Sequence[int | None]:
        if sent.times is None:
            if sent.keys is None or not all(sent.keys):
                raise _Unusual
            return [None] * len(sent.metrics)
        if None in sent.times:
            raise _Unusual
        try:
            times_us = parse_instants(sent.times)  # type: ignore[arg-type]
        except TimeError as error:
            raise _Unusual from error
        if max(times_us) > now_us + FUTURE_US_MAX or min(times_us) < self._limits.horizon_us:
            raise _Unusual
        return times_us

    def _sources_of(
        self, given: Sequence[str | None] | None, count: int
    ) -> tuple[Iterable[int], Sequence[int]]:
        """(codes for the fingerprint, codes to store)."""
        if given is None:
            return repeat(0, count), [self._meant.source] * count
        sources = self._sources
        try:
            codes, stored = zip(*[sources[name] for name in given], strict=True)
        except KeyError as error:
            raise _Unusual from error
        return codes, stored

    def _metas(self, given: Sequence[bytes] | None, count: int) -> Sequence[str | None]:
        if given is None:
            return [None] * count
        metas: list[str | None] = []
        for raw in given:
            meta = None
            if raw:
                if (
                    len(raw) > CELL_CHARS_MAX
                    or raw.count(b"[") + raw.count(b"{") > META_BRACKETS_MAX
                ):
                    raise _Unusual
                meta, problem = canonical_meta(raw.strip(_BLANKS), self._limits.meta_bytes_max)
                if problem is not None:
                    raise _Unusual
            metas.append(meta)
        return metas

    def _forget(self) -> None:
        """Keep the tables within their bounds: what is needed again comes again."""
        if sum(map(len, self._tenants.values())) + len(self._tenants) > CUSTOMERS_REMEMBERED_MAX:
            self._tenants.clear()
        for table in (self._metrics, self._quantities):
            if len(table) > TEXTS_REMEMBERED_MAX:
                table.clear()


_BLANKS: Final = b" \t\r\n"
"""JSON's own (RFC 8259, section 2)."""


def _resources(given: Sequence[str | None] | None, count: int) -> Sequence[str | None]:
    if given is None:
        return [None] * count
    resources = [name or None for name in given]
    if max(len(name) for name in resources if name) > NAME_CHARS_MAX:
        raise _Unusual
    return resources


def _key_texts(given: Sequence[str | None] | None, fingerprints: Sequence[bytes]) -> Sequence[str]:
    """Each row's own key, else the one that follows from its fingerprint."""
    if given is None:
        return ["auto:" + fingerprint.hex() for fingerprint in fingerprints]
    if all(given):
        texts: Sequence[Any] = given
    else:
        texts = [
            text or "auto:" + fingerprint.hex()
            for text, fingerprint in zip(given, fingerprints, strict=True)
        ]
    if max(map(len, texts)) > NAME_CHARS_MAX:
        raise _Unusual
    return texts


_empty_hash = blake2b(digest_size=16).copy
"""A copy costs two thirds of a new one."""


def _fingerprints(  # noqa: PLR0917 - its parts, in their order
    metrics: Sequence[str],
    resources: Sequence[str | None],
    micros_texts: Sequence[str],
    times: Iterable[Any],
    codes: Iterable[int],
    metas: Sequence[str | None],
) -> list[bytes]:
    """See engine.core.events.fingerprint_of."""
    found: list[bytes] = []
    keep = found.append
    for metric, resource, micros, time, code, meta in zip(
        metrics, resources, micros_texts, times, codes, metas, strict=True
    ):
        hasher = _empty_hash()
        hasher.update(
            f"{metric}\0{resource or ''}\0{micros}\0{time}\0{code}\0{meta or ''}".encode()
        )
        keep(hasher.digest())
    return found


def _plain_fingerprints(
    metrics: Sequence[str], micros_texts: Sequence[str], times_us: Sequence[int | None]
) -> list[bytes]:
    """The same for rows without resource, source and meta, at four fifths of the cost."""
    found: list[bytes] = []
    keep = found.append
    for metric, micros, time in zip(metrics, micros_texts, times_us, strict=True):
        hasher = _empty_hash()
        hasher.update(f"{metric}\0\0{micros}\0{time}\0{0}\0".encode())
        keep(hasher.digest())
    return found


def _keys(hashers: Iterable[Callable[[], Any]], key_texts: Sequence[str]) -> list[bytes]:
    """See engine.core.events.key_hash."""
    found: list[bytes] = []
    keep = found.append
    for new, text in zip(hashers, key_texts, strict=True):
        hasher = new()
        hasher.update(text.encode())
        keep(hasher.digest())
    return found


def _put(
    into: dict[str, TenantRows],
    names: set[str],
    tenants: Sequence[str],
    columns: list[Sequence[Any]],
    lines: Sequence[int],
) -> None:
    """A piece's rows to their tenants."""
    if not tenants:
        (name,) = names
        into.setdefault(name, TenantRows()).extend(columns, lines)
        return
    places: dict[str, list[int]] = {}
    for place, name in enumerate(tenants):
        places.setdefault(name, []).append(place)
    for name, some in places.items():
        into.setdefault(name, TenantRows()).extend(
            ([column[place] for place in some] for column in columns),
            [lines[place] for place in some],
        )


def _lines_of(rows: Sequence[SentRow]) -> Sequence[int]:
    if isinstance(rows, CellRows | EventRows):
        return range(rows.first_line, rows.first_line + len(rows))
    return [row.line for row in rows]


def _as_sent(rows: Sequence[SentRow]) -> _Sent:
    if isinstance(rows, CellRows):
        return _cells_as_sent(rows)
    events: Any = rows.events if isinstance(rows, EventRows) else [row.event for row in rows]
    if not isinstance(rows, EventRows) and Refusal in set(map(type, events)):
        raise _Unusual
    return _events_as_sent(events)


def _events_as_sent(events: Sequence[SentEvent]) -> _Sent:
    metas = [event.meta for event in events]
    return _Sent(
        _given([event.tenant_id for event in events]),
        [event.metric for event in events],
        [event.customer_ref for event in events],
        [bytes(event.quantity) for event in events],
        _given([event.ts for event in events]),
        _given([event.idempotency_key for event in events]),
        _given([event.resource_id for event in events]),
        _given([event.source for event in events]),
        list(map(bytes, metas)) if any(metas) else None,
    )


_is_given: Final = partial(is_not, None)


def _given(column: Sequence[str | None]) -> Sequence[str | None] | None:
    return column if any(map(_is_given, column)) else None


def _cells_as_sent(rows: CellRows) -> _Sent:
    by_name = {
        name: [read_cell(cell) if cell[:1] == "'" else cell for cell in column]
        if rows.has_apostrophes
        else column
        for name, column in zip(rows.names, rows.columns, strict=True)
        if name
    }
    if "metric" not in by_name or "customerRef" not in by_name:
        raise _Unusual
    given: dict[str, Any] = {
        name: column if any(column) else None for name, column in by_name.items()
    }
    sources, metas = given.get("source"), given.get("meta")
    return _Sent(
        given.get("tenantId"),
        by_name["metric"],
        by_name["customerRef"],
        by_name["quantity"],
        given.get("ts"),
        given.get("idempotencyKey"),
        given.get("resourceId"),
        [cell or None for cell in sources] if sources is not None else None,
        [cell.encode() for cell in metas] if metas is not None else None,
    )
