"""What a total costs, taken apart: the line, its tiers and fees, and the days, replays and corrections that filled them.

Rules it keeps: the parts sum to the line and the shares to their part, to the last digit; units fill tiers in the order in
which they are listed (days, replays, late events, adjustments); of a max or last all of it is the event's that won.
It must not know how a total came about, nor how it is priced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from engine.actors.price_book import KnownPrice, NoPrice
from engine.actors.projections import line_of
from engine.core.exact_json import number
from engine.core.explain import Explanation
from engine.core.times import format_date
from engine.pricing.explain import PartKind, Share, explain_line, spread_line
from engine.pricing.money import plain
from gateway.money_shapes import Money, MoneyOrNull
from gateway.projection import PriceView, price_view
from gateway.shapes import Quantity

NO_PRICES_HERE: Final = "prices are known to a running server: ask it, with --url"
SourceKind = Literal["day", "replay", "late", "adjustment", "rest", "event"]


class ShareSource(msgspec.Struct, rename="camel", kw_only=True):
    """Where units came from: the entry of `days`, `replays`, `late` or `adjustments` in the same answer."""

    kind: SourceKind
    id: Annotated[
        str | None,
        msgspec.Meta(description="The day, the adjustment's id, or a replay's planHash."),
    ]
    count: Annotated[int | None, msgspec.Meta(description="Events in it.")]
    first_position: int | None
    last_position: int | None


class ShareView(msgspec.Struct, rename="camel", kw_only=True):
    """What came from there into this part."""

    source: ShareSource
    quantity: Quantity
    amount: Money


class PartView(msgspec.Struct, rename="camel", kw_only=True):
    """A part of the line's amount."""

    kind: PartKind
    text: str
    amount: Money
    start: MoneyOrNull = msgspec.field(name="from")
    up_to: MoneyOrNull
    shares: Annotated[
        list[ShareView],
        msgspec.Meta(description="Of `units`: they sum to the part. In the order of use."),
    ]


class LineExplained(msgspec.Struct, rename="camel", kw_only=True):
    """The line on the invoice. parts = total, to the last digit."""

    total: Money
    currency: str
    quantity: Annotated[Quantity, msgspec.Meta(description="What of the total the price is for.")]
    unit_price: Money
    description: str
    price: PriceView
    parts: list[PartView]


def explain_price(
    found: Explanation, price: KnownPrice | NoPrice, now_us: int, *, as_string: bool
) -> LineExplained | NoPrice:
    """The line of an explained total, or why there is none."""
    if isinstance(price, NoPrice):
        return price
    metric = found.series[1]
    line = line_of(price, found.total_micros, found.start_us, found.end_us, metric)
    if isinstance(line, NoPrice):
        return line
    sources, micros = _steps(found)
    shares = spread_line(line, [price.quantity(one) for one in micros])
    parts = []
    for part in explain_line(line):
        tier = None if part.tier is None or not line.price.tiers else line.tiers[part.tier]
        own: Sequence[Share] = ()
        if part.kind == "units" and part.tier is not None:
            own = shares[part.tier]
        parts.append(
            PartView(
                kind=part.kind,
                text=part.text,
                amount=number(plain(part.amount), as_string=as_string),
                start=number(None if tier is None else plain(tier.above), as_string=as_string),
                up_to=number(
                    None if tier is None or tier.up_to is None else plain(tier.up_to),
                    as_string=as_string,
                ),
                shares=[
                    ShareView(
                        source=sources[share.step],
                        quantity=number(plain(share.quantity), as_string=as_string),
                        amount=number(plain(share.amount), as_string=as_string),
                    )
                    for share in own
                ],
            )
        )
    return LineExplained(
        total=number(line.subtotal, as_string=as_string),
        currency=line.price.currency,
        quantity=number(plain(line.quantity), as_string=as_string),
        unit_price=number(plain(line.unit_price), as_string=as_string),
        description=line.description,
        price=price_view(price, now_us, as_string=as_string),
        parts=parts,
    )


def _steps(found: Explanation) -> tuple[list[ShareSource], list[int]]:
    """What the total grew by, one after the other, and the total after each."""
    sources: list[ShareSource] = []
    after: list[int] = []
    total = 0
    for source, micros in _sources(found):
        total += micros
        sources.append(source)
        after.append(total)
    assert not after or total == found.total_micros, "the sources are the total"
    return sources, after


def _sources(found: Explanation) -> Iterator[tuple[ShareSource, int]]:
    if found.aggregation != "sum":
        winner = found.decided_by
        if winner is not None:
            yield _source("event", winner.adjustment_id, 1, winner), winner.micros
        return
    for day in found.days:
        yield _source("day", format_date(day.day_us), day.events, day), day.sum_micros
    for replay in found.replays:
        yield _source("replay", replay.plan_hash, replay.events, replay), replay.sum_micros
    for late in found.late:
        yield _source("late", late.adjustment.id, late.events, late), late.amount_micros
    for made in found.adjustments:
        position = made.adjustment.sequence
        source = ShareSource(
            kind="adjustment",
            id=made.adjustment.id,
            count=None,
            first_position=position,
            last_position=position,
        )
        yield source, made.amount_micros
    if found.rest.lines:
        yield _source("rest", None, None, None), found.rest.amount_micros


def _source(kind: SourceKind, name: str | None, count: int | None, part: Any) -> ShareSource:
    """`part` has positions, one position, or none."""
    first = getattr(part, "first_position", None)
    last = getattr(part, "last_position", None)
    if part is not None and first is None:
        first = last = getattr(part, "position", None)
    return ShareSource(kind=kind, id=name, count=count, first_position=first, last_position=last)
