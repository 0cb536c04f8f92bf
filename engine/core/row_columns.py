"""Rows by column: from what was sent to what the log takes, without an object per row.

Rules it keeps: only rows that are plainly right are taken, and come out as `engine.core.events.accept` makes them; at
anything else the whole lot is `Unusual`, and whoever asked goes the long way, row by row, which alone refuses. What was
seen is remembered in tables with a bound, each beside the check that let it in. It must not know who sent the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import islice, repeat
from typing import Any, Final, NamedTuple

import msgspec

from engine.core.events import EventLimits, SentEvent, canonical_meta
from engine.core.partitions import partition_of
from engine.core.quantities import QUANTITY_TEXT_BYTES_MAX, QuantityError, parse_json
from engine.core.records import SOURCE_CODES, Row
from engine.core.sent_rows import CELL_CHARS_MAX
from engine.core.times import TimeError
from engine.core.times_in_bulk import parse_instants
from engine.limits import FUTURE_US_MAX, METRIC_CHARS_MAX, NAME_CHARS_MAX

CUSTOMERS_REMEMBERED_MAX: Final = 65_536
TEXTS_REMEMBERED_MAX: Final = 4_096
"""Of metrics, and of quantities."""
META_BRACKETS_MAX: Final = 64
"""Meta with more may nest deeper than the long way can read."""
COLUMNS: Final = len(Row._fields)


class Unusual(Exception):
    """Something among the rows that the long way must look at."""


class Sent(NamedTuple):
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


class _Quantities(dict[Any, tuple[int, str]]):
    """By the text as it was sent: micros, and their text for the fingerprint."""

    def __missing__(self, text: str | bytes) -> tuple[int, str]:
        if len(text) > QUANTITY_TEXT_BYTES_MAX:
            raise Unusual
        raw = msgspec.json.encode(text.strip()) if isinstance(text, str) else text
        try:
            micros = parse_json(raw)
        except QuantityError as error:
            raise Unusual from error
        if micros < 0:
            raise Unusual
        made = self[text] = (micros, str(micros))
        return made


class _Metrics(dict[str, str]):
    """Names of metrics, so that all rows share one object each."""

    def __missing__(self, name: str) -> str:
        if not 1 <= len(name) <= METRIC_CHARS_MAX:
            raise Unusual
        self[name] = name
        return name


class _Customers(dict[str, tuple[str, int, bytes]]):
    """Of one tenant: the name, its partition, and a key's text up to the key.

    A hash that has taken that text in would save 15 ns a row and cost 520 bytes a customer.
    """

    def __init__(self, tenant: str, of: _Tenants) -> None:
        super().__init__()
        self._tenant = tenant
        self._of = of

    def __missing__(self, name: str) -> tuple[str, int, bytes]:
        if not 1 <= len(name) <= NAME_CHARS_MAX:
            raise Unusual
        prefix = f"{self._tenant}\0{name}\0".encode()
        made = self[name] = (name, partition_of(self._tenant, name), prefix)
        self._of.held += 1
        return made


class _Tenants(dict[str, _Customers]):
    held = 0
    """Tenants and customers: counted, since there may be as many tenants as customers."""

    def __missing__(self, name: str) -> _Customers:
        if not 1 <= len(name) <= NAME_CHARS_MAX:
            raise Unusual
        made = self[name] = _Customers(name, self)
        self.held += 1
        return made


class Remembered:
    """The tables. Whoever shares them shares no more than what let a name or a quantity in."""

    def __init__(self) -> None:
        self.tenants = _Tenants()
        self.metrics = _Metrics()
        self.quantities = _Quantities()

    def forget(self) -> None:
        """Keep the tables within their bounds: what is needed again comes again."""
        if self.tenants.held > CUSTOMERS_REMEMBERED_MAX:
            self.tenants.clear()  # and not another one: they know each other, and only the collector would free them
            self.tenants.held = 0
        for table in (self.metrics, self.quantities):
            if len(table) > TEXTS_REMEMBERED_MAX:
                table.clear()


class Taking(NamedTuple):
    """What rows are held against."""

    now_us: int
    limits: EventLimits
    source: int
    """Under which a row is stored that names none."""


def columns_of(
    sent: Sent, names: set[str], tenants: Sequence[str], known: Remembered, taking: Taking
) -> list[Sequence[Any]]:
    """The rows as the log takes them, in `Row`'s order. Raises Unusual.

    `names` are their tenants; `tenants` each row's, and none at all if there is only one.
    """
    count = len(sent.metrics)
    metrics = list(map(known.metrics.__getitem__, sent.metrics))
    quantities = known.quantities
    # A list for each part of what was found: zip(*found) makes an iterator for each row, at twice the cost.
    known_quantities = list(map(quantities.__getitem__, sent.quantities))
    micros = [one[0] for one in known_quantities]
    micros_texts = [one[1] for one in known_quantities]
    times = _times(sent, taking)
    if tenants:
        of = known.tenants
        found = [of[tenant][name] for tenant, name in zip(tenants, sent.customers, strict=True)]
    else:
        (tenant,) = names
        customers_of = known.tenants[tenant]
        found = list(map(customers_of.__getitem__, sent.customers))
    customers = [one[0] for one in found]
    partitions = [one[1] for one in found]
    prefixes = [one[2] for one in found]
    resources = _resources(sent.resources, count)
    codes, stored = _sources(sent.sources, count, taking.source)
    metas = _metas(sent.metas, count, taking.limits.meta_bytes_max)
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
        _keys(prefixes, key_texts),
        fingerprints,
        stored,
        key_texts,
        resources,
        metas,
    ]


def events_as_sent(events: Sequence[SentEvent]) -> Sent:
    """Events by column. `events` must not be empty."""
    # A list for each field, made from its attribute, costs twice as much. Rows of a file have fields of their own behind.
    columns = zip(*map(msgspec.structs.astuple, events), strict=False)
    metrics, customers, quantities, tenants, resources, times, metas, keys, sources = islice(
        columns, len(_FIELDS)
    )
    return Sent(
        _given(tenants),
        metrics,
        customers,
        _tokens(quantities),
        _given(times),
        _given(keys),
        _given(resources),
        _given(sources),
        list(map(bytes, metas)) if any(metas) else None,
    )


_FIELDS: Final = (
    "metric", "customer_ref", "quantity", "tenant_id", "resource_id", "ts", "meta", "idempotency_key", "source"
)  # fmt: skip
assert SentEvent.__struct_fields__ == _FIELDS, "events are unpacked in this order"


def _given(column: Sequence[str | None]) -> Sequence[str | None] | None:
    return column if column[0] is not None or column.count(None) < len(column) else None


def _tokens(raws: Sequence[msgspec.Raw]) -> list[bytes]:
    """The text of each. As many calls of bytes() cost twice as much; a token over several lines is unusual."""
    found = b"\n".join(raws).split(b"\n")
    if len(found) != len(raws):
        raise Unusual
    return found


def _times(sent: Sent, taking: Taking) -> Sequence[int | None]:
    if sent.times is None:
        if sent.keys is None or not all(sent.keys):
            raise Unusual
        return [None] * len(sent.metrics)
    try:
        times_us = parse_instants(sent.times)  # type: ignore[arg-type]
    except (TimeError, TypeError) as error:  # None is no text
        raise Unusual from error
    if max(times_us) > taking.now_us + FUTURE_US_MAX or min(times_us) < taking.limits.horizon_us:
        raise Unusual
    return times_us


def _sources(
    given: Sequence[str | None] | None, count: int, default: int
) -> tuple[Iterable[int], Sequence[int]]:
    """(codes for the fingerprint, codes to store)."""
    if given is None:
        return repeat(0, count), [default] * count
    try:
        codes = [0 if name is None else SOURCE_CODES[name] for name in given]
    except KeyError as error:
        raise Unusual from error
    stored = [default if name is None else SOURCE_CODES[name] for name in given]
    return codes, stored


def _metas(given: Sequence[bytes] | None, count: int, bytes_max: int) -> Sequence[str | None]:
    if given is None:
        return [None] * count
    metas: list[str | None] = []
    for raw in given:
        meta = None
        if raw:
            if len(raw) > CELL_CHARS_MAX or raw.count(b"[") + raw.count(b"{") > META_BRACKETS_MAX:
                raise Unusual
            meta, problem = canonical_meta(raw.strip(_BLANKS), bytes_max)
            if problem is not None:
                raise Unusual
        metas.append(meta)
    return metas


_BLANKS: Final = b" \t\r\n"
"""JSON's own (RFC 8259, section 2)."""


def _resources(given: Sequence[str | None] | None, count: int) -> Sequence[str | None]:
    if given is None:
        return [None] * count
    resources = [name or None for name in given]
    if max(len(name) for name in resources if name) > NAME_CHARS_MAX:
        raise Unusual
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
        raise Unusual
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
        hasher.update(f"{metric}\0\0{micros}\0{time}\x000\0".encode())
        keep(hasher.digest())
    return found


def _keys(prefixes: Iterable[bytes], key_texts: Sequence[str]) -> list[bytes]:
    """See engine.core.events.key_hash."""
    found: list[bytes] = []
    keep = found.append
    for prefix, text in zip(prefixes, key_texts, strict=True):
        hasher = _empty_hash()
        hasher.update(prefix + text.encode())
        keep(hasher.digest())
    return found


def put(
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
