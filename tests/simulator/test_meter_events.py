"""Meter events at the simulator: Stripe's rules of what is taken, when it counts, and what summaries say."""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Any

import pytest

from tests.helpers.stripe_sim import START_S, Sim, code, message

DAY_S = 86_400


def test_an_identifier_is_refused_for_a_day_by_a_message_alone_and_forgotten_afterwards() -> None:
    sim = Sim()
    meter, customer = sim.meter(), sim.customer()
    assert sim.event(customer, 5, "x").status == 200
    sim.wait(DAY_S - 1)
    again = sim.event(customer, 5, "x", key="another key")
    assert again.status == 400
    assert again.json()["error"] == {
        "message": "An event already exists with identifier x.",
        "type": "invalid_request_error",
    }
    assert again.headers["stripe-should-retry"] == "false"
    assert sim.total(meter, customer) == 5
    sim.wait(1)
    assert sim.event(customer, 5, "x").status == 200
    assert sim.total(meter, customer) == 10


def test_identifiers_of_accounts_do_not_meet() -> None:
    sim = Sim(auto_create=True, meters=("*",))
    for account in ("", "acct_one", "acct_two"):
        assert sim.event("cus_a", 1, "same", account=account).status == 200
    assert len(sim.state.world.ledgers) == 3


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("999999999999999", None),
        ("-999999999999999", None),
        ("000000000000000001", None),
        ("0", None),
        ("1000000000000000", "meter_event_value_too_many_digits"),
        ("1.5", "meter_event_invalid_value"),
        ("1e3", "meter_event_invalid_value"),
        ("", "meter_event_invalid_value"),
        ("+1", "meter_event_invalid_value"),
        ("\u0661", "meter_event_invalid_value"),
    ],
)
def test_values_are_whole_numbers_of_at_most_15_digits(value: str, wanted: str | None) -> None:
    sim = Sim()
    sim.meter()
    response = sim.event(sim.customer(), value)
    assert (None if response.status == 200 else code(response)) == wanted


@pytest.mark.parametrize(
    ("offset_s", "wanted"),
    [
        (0, None),
        (300, None),
        (301, "timestamp_in_future"),
        (-35 * DAY_S, None),
        (-35 * DAY_S - 1, "timestamp_too_far_in_past"),
    ],
)
def test_timestamps_lie_between_35_days_ago_and_in_5_minutes(
    offset_s: int, wanted: str | None
) -> None:
    sim = Sim()
    sim.meter()
    response = sim.event(sim.customer(), 1, timestamp=START_S + offset_s)
    assert (None if response.status == 200 else code(response)) == wanted


def test_sum_count_and_last_are_what_they_say() -> None:
    sim = Sim()
    customer = sim.customer()
    meters = {formula: sim.meter(formula, formula) for formula in ("sum", "count", "last")}
    for formula in meters:
        sim.event(customer, 7, event_name=formula, timestamp=START_S - 60)
        sim.event(customer, -2, event_name=formula, timestamp=START_S)
        sim.event(customer, 4, event_name=formula, timestamp=START_S - 120)
    found = {formula: sim.total(meter, customer) for formula, meter in meters.items()}
    assert found == {"sum": 9, "count": 3, "last": -2}


def test_other_payload_keys_are_those_of_the_meter() -> None:
    sim = Sim()
    more = {
        "customer_mapping[event_payload_key]": "who",
        "customer_mapping[type]": "by_id",
        "value_settings[event_payload_key]": "bytes",
    }
    meter, customer = sim.meter(**more), sim.customer()
    fields = {"event_name": "calls", "payload[who]": customer, "payload[bytes]": "12"}
    assert sim.post("/v1/billing/meter_events", fields).status == 200
    assert code(sim.event(customer, 1)) == "meter_event_no_customer_defined"
    assert sim.total(meter, customer) == 12


def test_an_event_counts_when_its_lag_is_over_and_lags_follow_the_seed() -> None:
    def lags(seed: str) -> list[int]:
        sim = Sim(seed=seed, lag_seconds_min=10, lag_seconds_max=30)
        meter, customer = sim.meter(), sim.customer()
        for number in range(20):
            sim.event(customer, 1, f"e{number}")
        seen = []
        for _ in range(31):
            seen.append(int(sim.total(meter, customer)))
            sim.wait(1)
        return seen

    first = lags("one")
    assert first[10] == 0
    assert 0 < first[20] < 20
    assert first[30] == 20
    assert lags("one") == first
    assert lags("two") != first


def summaries(
    sim: Sim, meter: Any, customer: str, start_s: int, end_s: int, group: str = ""
) -> Any:
    fields: dict[str, Any] = {"customer": customer, "start_time": start_s, "end_time": end_s}
    if group:
        fields["value_grouping_window"] = group
    return sim.get(f"/v1/billing/meters/{meter['id']}/event_summaries", fields)


@pytest.mark.parametrize(
    ("group", "start_s", "end_s", "wanted"),
    [
        ("", START_S, START_S + 60, None),
        ("", START_S + 1, START_S + 60, "start_time"),
        ("", START_S, START_S + 59, "end_time"),
        ("", START_S, START_S, "end_time"),
        ("hour", START_S, START_S + 3600, None),
        ("hour", START_S, START_S + 60, "end_time"),
        ("day", START_S, START_S + DAY_S, None),
        ("day", START_S + 3600, START_S + DAY_S, "start_time"),
        ("week", START_S, START_S + DAY_S, "value_grouping_window"),
    ],
)
def test_summaries_lie_on_whole_minutes_hours_or_days(
    group: str, start_s: int, end_s: int, wanted: str | None
) -> None:
    sim = Sim()
    response = summaries(sim, sim.meter(), sim.customer(), start_s, end_s, group)
    assert (None if response.status == 200 else response.json()["error"]["param"]) == wanted


def test_a_summary_includes_its_start_and_excludes_its_end() -> None:
    sim = Sim()
    meter, customer = sim.meter(), sim.customer()
    sim.wait(3600)
    for value, timestamp in (
        (1, START_S - 1),
        (10, START_S),
        (100, START_S + 59),
        (1000, START_S + 60),
    ):
        sim.event(customer, value, timestamp=timestamp)
    (row,) = summaries(sim, meter, customer, START_S, START_S + 60).json()["data"]
    assert (row["aggregated_value"], row["start_time"], row["end_time"]) == (
        110.0,
        START_S,
        START_S + 60,
    )
    assert isinstance(row["aggregated_value"], float)
    grouped = summaries(sim, meter, customer, START_S - DAY_S, START_S + DAY_S, "day").json()[
        "data"
    ]
    assert [(one["start_time"], one["aggregated_value"]) for one in grouped] == [
        (START_S, 1110),
        (START_S - DAY_S, 1),
    ]


def test_a_window_of_a_preaggregated_meter_is_overwritten() -> None:
    sim = Sim()
    meter, customer = sim.meter(event_time_window="hour"), sim.customer()
    for value, timestamp in ((5, START_S), (9, START_S + 60), (3, START_S - 60)):
        sim.event(customer, value, timestamp=timestamp)
    assert sim.total(meter, customer) == 12


@pytest.mark.parametrize(("formula", "kept"), [("last", 5), ("sum", 5), ("count", 1)])
@pytest.mark.parametrize("lag", [0, 60])
def test_a_canceled_event_counts_no_more_and_its_identifier_stays_taken(
    lag: int, formula: str, kept: int
) -> None:
    sim = Sim(lag_seconds_min=lag, lag_seconds_max=lag)
    meter, customer = sim.meter("calls", formula), sim.customer()
    sim.event(customer, 5, "kept")
    sim.event(customer, 8, "canceled")
    fields = {"event_name": "calls", "type": "cancel", "cancel[identifier]": "canceled"}
    assert sim.post("/v1/billing/meter_event_adjustments", fields).status == 200
    sim.wait(120)
    assert sim.total(meter, customer) == kept
    assert sim.event(customer, 8, "canceled").status == 400
    assert sim.post("/v1/billing/meter_event_adjustments", fields).status == 400
    fields["cancel[identifier]"] = "kept"
    sim.wait(DAY_S)
    assert sim.post("/v1/billing/meter_event_adjustments", fields).status == 400


def reports(sim: Sim) -> list[tuple[str, str | None, dict[str, list[str]]]]:
    """(type, meter, code to sample identifiers) of the thin events on their way, each fetched as a client does."""
    found = []
    for webhook in sim.state.due_webhooks(sim.time_us):
        parts = dict(part.split("=") for part in webhook.headers["stripe-signature"].split(","))
        signed = f"{parts['t']}.".encode() + webhook.body
        assert parts["v1"] == hmac.new(b"whsec_of_test", signed, sha256).hexdigest()
        assert abs(int(parts["t"]) - sim.now_s) <= 1
        assert b"error_types" not in webhook.body, "a thin event only names what is to be fetched"
        number = webhook.body.split(b'"id":"')[1].split(b'"')[0].decode()
        event = sim.get(f"/v2/core/events/{number}").json()
        codes = {
            one["code"]: [sample["request"]["identifier"] for sample in one["sample_errors"]]
            for one in event["data"]["reason"]["error_types"]
        }
        related = event["related_object"] and event["related_object"]["id"]
        found.append((event["type"], related, codes))
        sim.state.webhook_answered(webhook.id, delivered=True)
    return found


def test_what_is_rejected_later_is_reported_by_a_signed_thin_event_with_samples() -> None:
    sim = Sim(webhook_url="http://127.0.0.1/hook", webhook_secret="whsec_of_test")
    meter, gone = sim.meter(), sim.meter("gone")
    sim.post(f"/v1/billing/meters/{gone['id']}/deactivate")
    customer = sim.customer()
    for webhook in sim.state.due_webhooks(sim.time_us):
        sim.state.webhook_answered(webhook.id, delivered=True)
    for number in range(7):
        assert sim.event("cus_nobody", 1, f"lost{number}").status == 200
    assert sim.event(customer, 1, "nowhere", "unheard_of").status == 200
    assert sim.event(customer, 1, "archived", "gone").status == 200
    assert reports(sim) == []
    sim.wait(10)
    samples = [f"lost{number}" for number in range(5)]
    kind = "v1.billing.meter.error_report_triggered"
    assert sorted(reports(sim), key=str) == sorted(
        [
            (kind, meter["id"], {"meter_event_customer_not_found": samples}),
            (kind, gone["id"], {"archived_meter": ["archived"]}),
            ("v1.billing.meter.no_meter_found", None, {"no_meter": ["nowhere"]}),
        ],
        key=str,
    )
    assert sim.total(meter, customer) == 0
    assert sim.event("cus_nobody", 1, "lost0").status == 400, "rejected, yet taken"


def test_a_webhook_that_failed_goes_out_again_later_signed_anew() -> None:
    sim = Sim(webhook_url="http://127.0.0.1/hook")
    sim.customer()
    (webhook,) = sim.state.due_webhooks(sim.time_us)
    sim.state.webhook_answered(webhook.id, delivered=False)
    assert sim.state.due_webhooks(sim.time_us) == []
    sim.wait(1)
    (again,) = sim.state.due_webhooks(sim.time_us)
    assert again.body == webhook.body
    assert again.headers != webhook.headers


def test_only_with_auto_create_customers_and_meters_are_made_on_first_sight() -> None:
    sim = Sim(auto_create=True, meters=("calls",))
    assert sim.event("cus_new", 3).status == 200
    (meter,) = sim.get("/v1/billing/meters").json()["data"]
    assert sim.total(meter, "cus_new") == 3
    sim.event("cus_new", 3, event_name="unlisted")
    assert len(sim.get("/v1/billing/meters").json()["data"]) == 1
    assert sim.get("/v1/customers/cus_new").status == 200
    strict = Sim(meters=("calls",))
    strict.event("cus_new", 3)
    assert strict.get("/v1/customers/cus_new").status == 404


def test_a_reported_customer_or_unknown_parameter_is_refused_as_stripe_words_it() -> None:
    sim = Sim()
    sim.meter()
    response = sim.post("/v1/billing/meters", {"event_name": "x", "surprise": "1"})
    assert response.status == 400
    assert "default_aggregation" in message(response) or "display_name" in message(response)
    fields = {"event_name": "calls", "payload[value]": "1", "payload[stripe_customer_id]": "cus_a"}
    response = sim.post("/v1/billing/meter_events", {**fields, "valu": "1"})
    assert (code(response), message(response)) == (
        "parameter_unknown",
        "Received unknown parameter: valu",
    )
    assert code(sim.event("cus_a", 1, "x" * 101)) == "parameter_invalid_string"


def test_the_stream_takes_a_hundred_under_a_token_of_15_minutes_and_judges_later() -> None:
    sim = Sim()
    meter, customer = sim.meter(), sim.customer()
    session = sim.made("/v2/billing/meter_event_session")
    token = session["authentication_token"]

    def events(*values: str) -> dict[str, Any]:
        payloads = [{"value": one, "stripe_customer_id": customer} for one in values]
        return {
            "events": [
                {"event_name": "calls", "identifier": f"s{number}", "payload": one}
                for number, one in enumerate(payloads)
            ]
        }

    assert sim.post("/v2/billing/meter_event_stream", events("1")).status == 401
    assert (
        sim.post("/v2/billing/meter_event_stream", events(*["1"] * 101), token=token).status == 400
    )
    assert sim.made("/v2/billing/meter_event_stream", events("1", "2.5", "4"), token=token) == {}
    assert sim.total(meter, customer) == 5
    assert sim.made("/v2/billing/meter_event_stream", events("1", "1", "4"), token=token) == {}
    assert sim.total(meter, customer) == 5, "the same identifiers count once"
    sim.wait(900)
    expired = sim.post("/v2/billing/meter_event_stream", events("1"), token=token)
    assert (expired.status, code(expired)) == (400, "billing_meter_event_session_expired")
    assert expired.json()["error"]["type"] == "temporary_session_expired"


def test_one_v2_event_is_judged_at_once_and_a_duplicate_has_a_code() -> None:
    sim = Sim()
    meter, customer = sim.meter(), sim.customer()
    event: dict[str, Any] = {
        "event_name": "calls",
        "identifier": "v2",
        "payload": {"value": "3", "stripe_customer_id": customer},
        "timestamp": "2026-06-01T00:00:30Z",
    }
    assert sim.made("/v2/billing/meter_events", event)["timestamp"] == "2026-06-01T00:00:30.000Z"
    again = sim.post("/v2/billing/meter_events", event)
    assert (again.status, code(again)) == (400, "duplicate_meter_event")
    event["payload"]["value"] = "x"
    assert sim.post("/v2/billing/meter_events", event).status == 400
    assert sim.total(meter, customer) == 3
