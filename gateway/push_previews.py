"""What a dry run of a mapping's or customer's change answers. It must not know how a preview is worked out."""

from __future__ import annotations

from engine.actors.administration import Recorded
from engine.actors.push_preview import preview
from gateway.context import Gateway
from gateway.push_shapes import CutoverRow, cutover_row


async def preview_of(gateway: Gateway, recorded: Recorded) -> list[CutoverRow]:
    """The targets that a change would move, and what would be sent to each."""
    meter = gateway.meter
    found = await preview(meter, meter.started.push, recorded.change, recorded.freezes)
    return [cutover_row(row) for row in found.rows]
