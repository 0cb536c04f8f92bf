"""An event: checked when it is tracked, its key made once, its wire text made once.

Rules it keeps: whatever an app passes is checked and copied at the call, so that nothing it does later changes an
event; the text of an event is the same at every attempt, for its key stands for exactly that. Names follow the
server's limits. It must not know queues, files or connections; the time is a parameter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from json.encoder import encode_basestring_ascii as _json_text
from typing import Any, NamedTuple, Optional, Union

from stripemeter.quantities import Quantity, decimal_text

METRIC_CHARS_MAX = 100
NAME_CHARS_MAX = 255
META_CHARS_MAX = 1 << 16
"""The most that a server can be set to take; each has its own bound, 4096 bytes where it is not set."""
_SHOWN_CHARS_MAX = 100
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_encode_meta = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

Instant = Union[str, datetime]
Draft = tuple[str, str, str, Optional[str], Union[str, int, None], Optional[str], str]
"""metric, customerRef, quantity, resourceId, ts (text; int: ns since 1970; None: the server's time), meta's JSON, key."""


class Event(NamedTuple):
    """An event as it is told back to the app: in results and to `on_error`."""

    metric: str
    customer_ref: str
    quantity: str
    resource_id: Optional[str] = None
    ts: Optional[str] = None
    meta: Optional[Mapping[str, Any]] = None
    idempotency_key: Optional[str] = None


class Outgoing:
    """An event on its way: its wire text, and its row in the spool if it has one."""

    __slots__ = ("row", "text")

    def __init__(self, text: str, row: Optional[int] = None) -> None:
        self.text = text
        self.row = row

    def event(self) -> Event:
        """What it says, read back from its text."""
        sent = json.loads(self.text)
        return Event(
            sent["metric"],
            sent["customerRef"],
            sent["quantity"],
            sent.get("resourceId"),
            sent.get("ts"),
            sent.get("meta"),
            sent["idempotencyKey"],
        )


def draft(
    metric: object,
    customer_ref: object,
    quantity: object,
    resource_id: object,
    ts: object,
    meta: object,
    key: object,
    now_ns: Optional[int],
) -> Draft:
    """A checked event. `now_ns` is its time if it has none; None leaves that to the server.

    Raises ValueError with the argument's name first.
    """
    _check_name("metric", metric, METRIC_CHARS_MAX)
    _check_name("customer_ref", customer_ref, NAME_CHARS_MAX)
    _check_name("idempotency_key", key, NAME_CHARS_MAX)
    if resource_id is not None:
        _check_name("resource_id", resource_id, NAME_CHARS_MAX)
    try:
        text = decimal_text(quantity)
    except ValueError as error:
        message = f"quantity {error}"
        raise ValueError(message) from None
    instant: Union[str, int, None] = now_ns if ts is None else _instant_text(ts)
    meta_text = None if meta is None else _meta_text(meta)
    return (metric, customer_ref, text, resource_id, instant, meta_text, key)  # type: ignore[return-value]


def _check_name(name: str, value: object, chars_max: int) -> None:
    if type(value) is str and 0 < len(value) <= chars_max:
        # ASCII is nearly all there is, and has no half of a pair.
        if value.isascii():
            return
        try:
            value.encode()
        except UnicodeEncodeError:
            message = f"{name} holds half of a surrogate pair, which no text can hold"
            raise ValueError(message) from None
        return
    if isinstance(value, str) and type(value) is not str:
        _check_name(name, str(value), chars_max)
        return
    message = f"{name} must be a text of 1 to {chars_max} characters"
    raise ValueError(message)


def _instant_text(ts: object) -> str:
    """ISO 8601 with an offset, as the server reads it. Its digits beyond microseconds it cuts off itself."""
    if isinstance(ts, datetime):
        if ts.utcoffset() is None:
            message = "ts has no offset: give it a time zone, such as datetime.now(timezone.utc)"
            raise ValueError(message)
        return instant_of((ts - _EPOCH) // timedelta(microseconds=1))
    if not isinstance(ts, str) or _INSTANT.fullmatch(ts) is None:
        message = "ts must be a datetime with a time zone, or ISO 8601 text with an offset or Z"
        raise ValueError(message)
    return str(ts)


def instant_of(microseconds: int) -> str:
    """An instant's text in UTC, from microseconds since 1970."""
    return (_EPOCH + timedelta(microseconds=microseconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _meta_text(meta: object) -> str:
    """Meta as JSON, made now: the app may change its mapping after the call."""
    if not isinstance(meta, Mapping):
        message = "meta must be a mapping, such as a dict"
        raise ValueError(message)  # noqa: TRY004 - one kind of error for every wrong argument
    try:
        text = _encode_meta(dict(meta))
    except (TypeError, ValueError, RecursionError) as error:
        message = f"meta can't be JSON: {error}"
        raise ValueError(message) from None
    if len(text) > META_CHARS_MAX:
        message = f"meta is longer than {META_CHARS_MAX} characters of JSON"
        raise ValueError(message)
    return text


def wire_text(event: Draft, tenant_json: str) -> str:
    """The event's JSON text. `tenant_json` is the tenant's, as JSON. ASCII only."""
    metric, customer_ref, quantity, resource_id, ts, meta_text, key = event
    text = (
        f'{{"tenantId":{tenant_json},"metric":{_json_text(metric)},"customerRef":{_json_text(customer_ref)},'
        f'"quantity":"{quantity}","idempotencyKey":{_json_text(key)},"source":"sdk"'
    )
    if ts is not None:
        text += f',"ts":{_json_text(ts if type(ts) is str else instant_of(int(ts) // 1000))}'
    if resource_id is not None:
        text += f',"resourceId":{_json_text(resource_id)}'
    if meta_text is not None:
        text += f',"meta":{meta_text}'
    return text + "}"


def as_given(values: Mapping[str, object]) -> Event:
    """What an app passed for an event that was refused, to tell it back: texts, cut to a hundred characters."""
    shown = {
        name: value if isinstance(value, str) else repr(value)[:_SHOWN_CHARS_MAX]
        for name, value in values.items()
        if value is not None and name != "meta"
    }
    meta = values.get("meta")
    return Event(
        shown.get("metric", "None"),
        shown.get("customer_ref", "None"),
        shown.get("quantity", "None"),
        shown.get("resource_id"),
        shown.get("ts"),
        meta if isinstance(meta, Mapping) else None,
        shown.get("idempotency_key"),
    )


__all__ = ["Draft", "Event", "Instant", "Outgoing", "Quantity", "as_given", "draft", "wire_text"]
