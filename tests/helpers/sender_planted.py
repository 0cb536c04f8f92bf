"""The process that speaks with Stripe, with a planted fault: tests must find each.

Started in place of `engine.drivers.sender`; SENDER_PLANT names the fault. Nothing of it is in the wheel.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import trio

from engine.core.billing import PushRequest
from engine.drivers import frames, h11_wire, sender
from engine.drivers.billing import StripeBilling
from engine.drivers.h11_wire import H11Wire
from engine.drivers.wire import Answer, WireFailure


def plant_new_identifier() -> None:
    """Give an intent that is sent again another identifier."""
    send = StripeBilling.send
    began = secrets.token_hex(4)

    async def renamed(
        driver: StripeBilling, requests: Sequence[PushRequest], attempts: Sequence[int]
    ) -> Any:
        changed = [
            msgspec.structs.replace(one, identifier=f"{one.identifier}-{began}") for one in requests
        ]
        return await send(driver, changed, attempts)

    StripeBilling.send = renamed  # type: ignore[method-assign,assignment]


def plant_retries() -> None:
    """Ask a second time when no answer came."""
    exchange = H11Wire.exchange

    async def again(
        wire: H11Wire, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        try:
            return await exchange(wire, method, url, headers, body)
        except WireFailure:
            return await exchange(wire, method, url, headers, body)

    H11Wire.exchange = again  # type: ignore[method-assign,assignment]


def plant_survivor() -> None:
    """Go on when the server is gone."""
    following = frames.FrameReader.next

    async def never_none(reader: frames.FrameReader) -> bytes | None:
        body = await following(reader)
        if body is None:
            await trio.sleep_forever()
        return body

    frames.FrameReader.next = never_none  # type: ignore[method-assign,assignment]
    sender._end_with_parent = lambda: None


def plant_stale() -> None:
    """Begin a request however late it is."""
    sender.is_over = lambda _call: False  # type: ignore[assignment]
    h11_wire.ensure_in_time = lambda: None  # type: ignore[attr-defined]


PLANTS: dict[str, Callable[[], None]] = {
    "new-identifier": plant_new_identifier,
    "retries": plant_retries,
    "survivor": plant_survivor,
    "stale": plant_stale,
}

if __name__ == "__main__":
    PLANTS[os.environ["SENDER_PLANT"]]()
    sender.main()
