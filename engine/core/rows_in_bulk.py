"""The rows of an import or a backfill, many at a time: columns in, columns out, no object per row.

Rules it keeps: a row comes out as `engine.core.sent_rows.taken` makes it, or is refused with its words; what is not
plainly right in a piece of rows (`Unusual`) sends the whole piece to `taken`, which alone refuses. How columns are
made is `engine.core.row_columns`' business. It must not know files or the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from engine.core.cell_rows import CellRows
from engine.core.csv_cells import read_cell
from engine.core.events import EventLimits, Refusal
from engine.core.records import Row
from engine.core.row_columns import (
    Remembered,
    Sent,
    Taking,
    TenantRows,
    Unusual,
    columns_of,
    events_as_sent,
    put,
)
from engine.core.sent_rows import EventRows, Meant, SentRow, taken

PIECE_ROWS: Final = 2_000
"""One unusual row costs its piece the quick way; smaller pieces cost more calls. Its columns fit the caches."""


class Taken(NamedTuple):
    """What became of rows."""

    tenants: dict[str, TenantRows]
    """The good ones, in their order."""
    refused: list[tuple[int, Refusal]]
    """(line, why) of the others."""


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
        self._remembered = Remembered()

    def take(self, rows: Sequence[SentRow], now_us: int, *, nul: bool = True) -> Taken:
        """What becomes of rows, now. `nul`: a name may hold U+0000."""
        made = Taken({}, [])
        if nul or not self._is_quick:
            self._take_each(rows, now_us, made, nul=nul)
            return made
        taking = Taking(now_us, self._limits, self._meant.source)
        for start in range(0, len(rows), PIECE_ROWS):
            piece = rows[start : start + PIECE_ROWS]
            try:
                sent = _as_sent(piece)
                names, tenants = self._tenants_of(sent)
                columns = columns_of(sent, names, tenants, self._remembered, taking)
            except Unusual:
                self._take_each(piece, now_us, made, nul=False)
            else:
                put(made.tenants, names, tenants, columns, _lines_of(piece))
            self._remembered.forget()
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

    def _tenants_of(self, sent: Sent) -> tuple[set[str], Sequence[str]]:
        """(the tenants, each row's) of a piece; of only one tenant, no row's."""
        default = self._meant.tenant
        given = sent.tenants
        if given is None:
            if default is None:
                raise Unusual
            return {default}, ()
        names = set(given)
        if not all(names):
            names -= {"", None}
            names.add(default)
        if None in names or (default is not None and names != {default}):
            raise Unusual
        if len(names) == 1:
            return names, ()  # type: ignore[return-value]
        return names, [name or default for name in given]  # type: ignore[return-value,misc]


def _lines_of(rows: Sequence[SentRow]) -> Sequence[int]:
    if isinstance(rows, CellRows | EventRows):
        return range(rows.first_line, rows.first_line + len(rows))
    return [row.line for row in rows]


def _as_sent(rows: Sequence[SentRow]) -> Sent:
    if isinstance(rows, CellRows):
        return _cells_as_sent(rows)
    events: Any = rows.events if isinstance(rows, EventRows) else [row.event for row in rows]
    if not isinstance(rows, EventRows) and Refusal in set(map(type, events)):
        raise Unusual
    return events_as_sent(events)


def _cells_as_sent(rows: CellRows) -> Sent:
    by_name = {
        name: [read_cell(cell) if cell[:1] == "'" else cell for cell in column]
        if rows.has_apostrophes
        else column
        for name, column in zip(rows.names, rows.columns, strict=True)
        if name
    }
    if "metric" not in by_name or "customerRef" not in by_name:
        raise Unusual
    given: dict[str, Any] = {
        name: column if any(column) else None for name, column in by_name.items()
    }
    sources, metas = given.get("source"), given.get("meta")
    return Sent(
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
