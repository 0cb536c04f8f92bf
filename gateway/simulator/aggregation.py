"""Meter events on their way to a total: taken, aggregated after the lag, summed by minute, canceled.

Rules it keeps: an identifier is refused for 24 h by a message alone; an accepted event counts once, when its lag is
over, or not at all when it was rejected, dropped or canceled; totals are exact whole numbers. It must not know HTTP
or forms. Source: https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api
"""

from __future__ import annotations

import heapq
import re
from typing import Final

from gateway.simulator.desk import FULL, Desk, instant
from gateway.simulator.ledger import (
    DAY_SECONDS,
    IDENTIFIERS_MAX,
    MICROS,
    MINUTES_MAX,
    Ledger,
    Minute,
    Rejected,
    Sent,
    draw,
)
from gateway.simulator.wire import Json, Refusal

IDENTIFIER_CHARS_MAX: Final = 100
VALUE_DIGITS_MAX: Final = 15
PAST_SECONDS_MAX: Final = 35 * DAY_SECONDS
FUTURE_SECONDS_MAX: Final = 300
REMEMBERED_US: Final = DAY_SECONDS * MICROS
SAMPLES_MAX: Final = 5
_VALUE: Final = re.compile(r"-?[0-9]+\Z")
_MESSAGES: Final = {
    "archived_meter": "The meter of this event name is not active.",
    "meter_event_customer_not_found": "The customer of this event does not exist.",
    "meter_event_invalid_value": "The value of this event is no whole number.",
    "meter_event_no_customer_defined": "The payload has no customer.",
    "meter_event_value_too_many_digits": f"The value has more than {VALUE_DIGITS_MAX} digits.",
    "no_meter": "There is no active meter with this event name.",
    "timestamp_in_future": "The timestamp is more than 5 minutes in the future.",
    "timestamp_too_far_in_past": "The timestamp is more than 35 days in the past.",
}
"""The codes of an error report, and what they mean."""
REJECTION_CODES: Final = tuple(_MESSAGES)


def lane_of(customer: str, meter: str) -> str:
    """The key of what one customer used of one meter."""
    return f"{meter}|{customer}"


def accept(
    desk: Desk,
    event_name: str,
    identifier: str,
    payload: dict[str, str],
    timestamp_s: int | None,
    *,
    at_once: bool,
) -> Refusal | str:
    """Take one meter event; the identifier it is known by.

    `at_once`: what can be seen in the event alone is refused by the answer (v1, and v2 one by one); else all but a
    known identifier goes to the error report (the stream). A customer or meter that is not there always does.
    """
    identifier = identifier or desk.new_id("", 32)
    meter = _meter_of(desk, event_name)
    customer_key = meter["customer_mapping"]["event_payload_key"] if meter else "stripe_customer_id"
    value_key = meter["value_settings"]["event_payload_key"] if meter else "value"
    customer = payload.get(customer_key, "")
    is_count = meter is not None and meter["default_aggregation"]["formula"] == "count"
    text = payload.get(value_key, "1" if is_count else "")
    if timestamp_s is None:
        timestamp_s = desk.time_on(desk.clock_of(customer))
    code = _seen_in_the_event(desk, customer, text, timestamp_s)
    if code is not None and at_once:
        param = "timestamp" if code.startswith("timestamp") else "payload"
        return Refusal(400, _MESSAGES[code], code, param, is_kept=False)
    forget(desk.ledger, desk.now_us)
    if identifier in desk.ledger.sent:
        return Refusal(
            400,
            f"An event already exists with identifier {identifier}.",
            headers={"stripe-should-retry": "false"},
        )
    if len(desk.ledger.sent) >= IDENTIFIERS_MAX or desk.ledger.minutes >= MINUTES_MAX:
        return FULL
    archived = None if meter else _archived(desk, event_name)
    code = code or desk.effects.reject_code
    if code is None and meter is None:
        code = "archived_meter" if archived else "no_meter"
    if code is None and not _has_customer(desk, customer):
        code = "meter_event_customer_not_found"
    meter = meter or archived
    value = int(text) if code is None else 0
    sent = Sent(
        desk.now_us,
        meter["id"] if meter else "",
        customer,
        timestamp_s,
        value,
        desk.number(),
        "pending",
    )
    desk.ledger.sent[identifier] = sent
    if code is not None:
        sent.state = "rejected"
        _reject(desk, sent.meter, code, identifier)
    elif desk.effects.is_dropped:
        sent.state = "dropped"
    else:
        _await_aggregation(desk, identifier, sent)
    return identifier


def _meter_of(desk: Desk, event_name: str) -> Json | None:
    meter_id = desk.ledger.meters.get(event_name)
    if meter_id is None:
        names = desk.settings.meters
        if not desk.settings.auto_create or not ("*" in names or event_name in names):
            return None
        return make_meter(desk, event_name)
    return desk.ledger.objects[meter_id]


def make_meter(desk: Desk, event_name: str, formula: str = "sum") -> Json:
    """A new active meter with the defaults; none of that event name may be active."""
    assert event_name not in desk.ledger.meters
    meter: Json = {
        "id": desk.new_id("mtr_"),
        "object": "billing.meter",
        "created": desk.now_s,
        "customer_mapping": {"event_payload_key": "stripe_customer_id", "type": "by_id"},
        "default_aggregation": {"formula": formula},
        "display_name": event_name,
        "event_name": event_name,
        "event_time_window": None,
        "livemode": desk.settings.is_live,
        "status": "active",
        "status_transitions": {"deactivated_at": None},
        "updated": desk.now_s,
        "value_settings": {"event_payload_key": "value"},
    }
    desk.keep("billing.meter", meter)
    desk.ledger.meters[event_name] = meter["id"]
    return meter


def make_customer(desk: Desk, customer_id: str) -> Json:
    """A new customer with that id and nothing else."""
    customer: Json = {
        "id": customer_id,
        "object": "customer",
        "balance": 0,
        "created": desk.now_s,
        "currency": None,
        "delinquent": False,
        "description": None,
        "email": None,
        "livemode": desk.settings.is_live,
        "metadata": {},
        "name": None,
        "test_clock": None,
    }
    desk.keep("customer", customer)
    return customer


def _seen_in_the_event(desk: Desk, customer: str, text: str, timestamp_s: int) -> str | None:
    """What is wrong with an event, known without looking at meters and customers."""
    if not customer:
        return "meter_event_no_customer_defined"
    if _VALUE.match(text) is None:
        return "meter_event_invalid_value"
    if len(text.lstrip("-").lstrip("0")) > VALUE_DIGITS_MAX:
        return "meter_event_value_too_many_digits"
    now_s = desk.time_on(desk.clock_of(customer))
    if timestamp_s > now_s + FUTURE_SECONDS_MAX:
        return "timestamp_in_future"
    if timestamp_s < now_s - PAST_SECONDS_MAX:
        return "timestamp_too_far_in_past"
    return None


def _archived(desk: Desk, event_name: str) -> Json | None:
    """The last meter that had this event name."""
    for one in desk.newest("billing.meter"):
        if one["event_name"] == event_name:
            return one
    return None


def _has_customer(desk: Desk, customer: str) -> bool:
    found = desk.ledger.objects.get(customer)
    if found is None and desk.settings.auto_create and customer.startswith("cus_"):
        found = make_customer(desk, customer)
    return found is not None and found["object"] == "customer" and not found.get("deleted")


def forget(ledger: Ledger, now_us: int) -> None:
    """Forget identifiers after 24 h. What waits for aggregation is in the heap as well, and is not lost."""
    while ledger.sent:
        first = next(iter(ledger.sent))
        if ledger.sent[first].at_us + REMEMBERED_US > now_us:
            return
        del ledger.sent[first]


def _await_aggregation(desk: Desk, identifier: str, sent: Sent) -> None:
    least, most = desk.settings.lag_seconds_min, desk.settings.lag_seconds_max
    lag = least
    if most > least:
        lag += (most - least) * draw(desk.settings.seed, desk.ledger.account, sent.sequence)
    lag += desk.effects.lag_seconds
    if lag <= 0:
        sent.state = "counted"
        _add(desk.ledger, sent)
    else:
        entry = (desk.now_us + int(lag * MICROS), sent.sequence, identifier, sent)
        heapq.heappush(desk.ledger.pending, entry)


def aggregate(ledger: Ledger, until_us: int) -> None:
    """Count what has waited long enough."""
    while ledger.pending and ledger.pending[0][0] <= until_us:
        _, sequence, identifier, sent = heapq.heappop(ledger.pending)
        _add(ledger, sent)
        known = ledger.sent.get(identifier)
        if known is not None and known.sequence == sequence:
            known.state = "counted"


def _add(ledger: Ledger, sent: Sent) -> None:
    minutes = ledger.usage.setdefault(lane_of(sent.customer, sent.meter), {})
    window = ledger.objects[sent.meter]["event_time_window"]
    if window is not None:
        # A pre-aggregated window: what comes later replaces what was there.
        length = 3600 if window == "hour" else DAY_SECONDS
        key = sent.timestamp_s // length * length // 60
        minutes[key] = Minute()
    else:
        key = sent.timestamp_s // 60
    minute = minutes.get(key)
    if minute is None:
        minute = minutes[key] = Minute()
        ledger.minutes += 1
    minute.total += sent.value
    minute.count += 1
    if (sent.timestamp_s, sent.sequence) > (minute.last_timestamp_s, minute.last_sequence):
        minute.last_timestamp_s = sent.timestamp_s
        minute.last_sequence = sent.sequence
        minute.last_value = sent.value


def cancel(desk: Desk, identifier: str) -> Refusal | None:
    """Take an event back, within 24 h of its arrival."""
    forget(desk.ledger, desk.now_us)
    sent = desk.ledger.sent.get(identifier)
    if sent is None or sent.state == "canceled":
        return Refusal(
            400,
            f"No event to cancel was found with identifier {identifier}.",
            "resource_missing",
            "cancel[identifier]",
        )
    ledger = desk.ledger
    if sent.state == "pending":
        ledger.pending = [entry for entry in ledger.pending if entry[1] != sent.sequence]
        heapq.heapify(ledger.pending)
    was_counted = sent.state == "counted"
    sent.state = "canceled"
    if was_counted:
        minutes = ledger.usage[lane_of(sent.customer, sent.meter)]
        minute = minutes[sent.timestamp_s // 60]
        minute.total -= sent.value
        minute.count -= 1
        if minute.last_sequence == sent.sequence:
            _find_last(ledger, minute, sent)
    return None


def _find_last(ledger: Ledger, minute: Minute, canceled: Sent) -> None:
    """The last event of a minute after the last one was taken back, of those whose identifiers are known."""
    minute.last_timestamp_s, minute.last_sequence, minute.last_value = -1, -1, 0
    for one in ledger.sent.values():
        if (
            one.state == "counted"
            and (one.meter, one.customer) == (canceled.meter, canceled.customer)
            and one.timestamp_s // 60 == canceled.timestamp_s // 60
            and (one.timestamp_s, one.sequence) > (minute.last_timestamp_s, minute.last_sequence)
        ):
            minute.last_timestamp_s, minute.last_sequence = one.timestamp_s, one.sequence
            minute.last_value = one.value


def total(ledger: Ledger, meter: Json, customer: str, start_s: int, end_s: int) -> int | None:
    """What was aggregated in the minutes that begin in [start, end), both rounded down to minutes; None: nothing."""
    minutes = ledger.usage.get(lane_of(customer, meter["id"]), {})
    first, end = start_s // 60, end_s // 60
    if end - first < len(minutes):
        chosen = [minutes[one] for one in range(first, end) if one in minutes]
    else:
        chosen = [minute for key, minute in minutes.items() if first <= key < end]
    chosen = [minute for minute in chosen if minute.count]
    if not chosen:
        return None
    formula = meter["default_aggregation"]["formula"]
    if formula == "sum":
        return sum(minute.total for minute in chosen)
    if formula == "count":
        return sum(minute.count for minute in chosen)
    return max(chosen, key=lambda one: (one.last_timestamp_s, one.last_sequence)).last_value


def _reject(desk: Desk, meter: str, code: str, identifier: str) -> None:
    gathered = desk.ledger.rejected.get(meter)
    if gathered is None:
        gathered = desk.ledger.rejected[meter] = Rejected(desk.now_us)
        due_s = desk.now_s + desk.settings.report_seconds
        desk.schedule("", due_s, "report", meter)
    gathered.counts[code] = gathered.counts.get(code, 0) + 1
    samples = gathered.codes.setdefault(code, [])
    if len(samples) < SAMPLES_MAX:
        samples.append(identifier)


def report(desk: Desk, meter: str) -> None:
    """Send the error report about what was rejected of one meter ("": of none) since the last."""
    gathered = desk.ledger.rejected.pop(meter)
    count = sum(gathered.counts.values())
    data: Json = {
        "developer_message_summary": f"There {'is' if count == 1 else 'are'} {count} invalid event{'' if count == 1 else 's'}",
        "reason": {
            "error_count": count,
            "error_types": [
                {
                    "code": code,
                    "error_count": gathered.counts[code],
                    "sample_errors": [
                        {
                            "error_message": _MESSAGES.get(code, code),
                            "request": {"identifier": identifier},
                        }
                        for identifier in samples
                    ],
                }
                for code, samples in gathered.codes.items()
            ],
        },
    }
    data["validation_start"] = instant(gathered.since_us)
    data["validation_end"] = instant(desk.now_us)
    if not meter:
        desk.publish_thin("v1.billing.meter.no_meter_found", None, data)
        return
    related = {"id": meter, "type": "billing.meter", "url": f"/v1/billing/meters/{meter}"}
    desk.publish_thin("v1.billing.meter.error_report_triggered", related, data)
