"""What is true of every request at the simulator: idempotency keys, concurrency, pace, faults, accounts, headers."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

import pytest

from gateway.simulator.faults import KINDS
from gateway.simulator.ledger import Limits
from gateway.simulator.wire import Request
from tests.helpers.stripe_sim import Sim, code, message

EVENTS = "POST /v1/billing/meter_events"


def test_an_idempotency_key_replays_the_first_answer_for_a_day() -> None:
    sim = Sim()
    first = sim.post("/v1/customers", {"name": "Ada"}, key="k")
    again = sim.post("/v1/customers", {"name": "Ada"}, key="k")
    assert again.body == first.body
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["original-request"] == first.headers["request-id"]
    other = sim.post("/v1/customers", {"name": "Eve"}, key="k")
    assert other.status == 400
    assert other.json()["error"]["type"] == "idempotency_error"
    assert sim.post("/v1/customers", {"name": "Ada"}, key="k", account="acct_b").body != first.body
    sim.wait(86_400)
    assert sim.post("/v1/customers", {"name": "Ada"}, key="k").body != first.body


@pytest.mark.parametrize("applied", [True, False])
def test_a_stored_500_is_replayed_by_its_key_and_another_key_finds_what_happened(
    applied: bool,
) -> None:
    sim = Sim()
    meter, customer = sim.meter(), sim.customer()
    sim.fault("error", EVENTS, count=1, applied=applied)
    for _ in range(3):
        response = sim.event(customer, 5, "x", key="x:0")
        assert response.status == 500
        assert response.json()["error"]["type"] == "api_error"
    assert sim.total(meter, customer) == (5 if applied else 0)
    assert sim.event(customer, 5, "x", key="x:1").status == (400 if applied else 200)
    assert sim.total(meter, customer) == 5


def test_what_failed_validation_or_met_another_call_is_not_stored() -> None:
    sim = Sim()
    sim.meter()
    customer = sim.customer()
    assert sim.event(customer, "x", key="k").status == 400
    sim.fault("busy", EVENTS, count=1)
    assert sim.event(customer, 1, key="k").status == 409
    sim.fault("rate_limited", EVENTS, count=1)
    assert sim.event(customer, 1, key="k").status == 429
    assert sim.event(customer, 1, key="k").status == 200


def test_two_calls_at_once_of_one_customer_and_meter_are_refused_with_409() -> None:
    sim = Sim()
    sim.meter()
    sim.meter("other")
    one, two = sim.customer(), sim.customer()

    def request(customer: str, event_name: str) -> Request:
        body = f"event_name={event_name}&payload[value]=1&payload[stripe_customer_id]={customer}"
        return Request(*EVENTS.split(" "), headers={}, body=body.encode())

    under_way = sim.state.begin(request(one, "calls"))
    assert under_way.response.status == 200
    assert sim.event(one, 1).status == 409
    assert sim.event(two, 1).status == 200
    assert sim.event(one, 1, event_name="other").status == 200
    sim.state.finish(under_way)
    assert sim.event(one, 1).status == 200


def test_a_key_that_is_under_way_is_refused_with_409() -> None:
    sim = Sim()
    request = Request("POST", "/v1/customers", headers={"idempotency-key": "k"}, body=b"name=Ada")
    under_way = sim.state.begin(request)
    refused = sim.post("/v1/customers", {"name": "Ada"}, key="k")
    assert (refused.status, code(refused)) == (409, "idempotency_key_in_use")
    sim.state.finish(under_way)
    assert sim.post("/v1/customers", {"name": "Ada"}, key="k").body == under_way.response.body


@pytest.mark.parametrize(
    ("account", "path", "rate"),
    [("", "meter_events", 40), ("acct_b", "meter_events", 5), ("", "customers", 7)],
)
def test_more_calls_a_second_than_the_limit_are_429_and_change_nothing(
    account: str, path: str, rate: int
) -> None:
    sim = Sim(
        auto_create=True,
        meters=("*",),
        limits=Limits(meter_events=40, connect=5, other=7),
        one_call_per_lane=False,
    )

    def call() -> int:
        if path == "customers":
            return sim.post("/v1/customers").status
        return sim.event("cus_a", 1, account=account).status

    statuses = [call() for _ in range(rate + 3)]
    assert statuses == [200] * rate + [429] * 3
    events = len(sim.journal)
    sim.wait(1 / rate + 1e-5)
    assert [call(), call()] == [200, 429]
    assert len(sim.journal) == events + 1


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_fault_does_what_it_says_as_often_as_it_says(kind: str) -> None:
    sim = Sim()
    meter, customer = sim.meter(), sim.customer()
    sim.fault(kind, EVENTS, count=1, seconds=30, retry_after=7, contains="struck")
    assert sim.event(customer, 1, "first").status == 200, "it strikes only what it is for"
    response = sim.event(customer, 10, "struck", key="k")
    now, later = sim.total(meter, customer), 0.0
    sim.wait(31)
    later = sim.total(meter, customer)
    status = {"rate_limited": 429, "error": 500, "unavailable": 503, "busy": 409}
    lost = {"reset": "reset", "swallow": "swallowed", "outage": "reset"}
    assert response.status == (0 if kind in lost else status.get(kind, 200))
    assert response.lost == lost.get(kind, "")
    assert response.delay_seconds == (30 if kind == "slow" else 0)
    assert response.headers.get("retry-after") == ("7" if kind == "rate_limited" else None)
    is_applied = kind in ("error", "reset", "swallow", "slow")
    assert now == (11 if is_applied else 1)
    assert later == (11 if is_applied or kind == "lag" else 1)
    assert sim.event(customer, 100, "after").status == 200
    assert sim.state.world.faults == {}


def test_a_reset_can_come_before_the_request_takes_effect() -> None:
    sim = Sim()
    meter, customer = sim.meter(), sim.customer()
    sim.fault("reset", EVENTS, count=1, applied=False)
    assert sim.event(customer, 1, "x").lost == "reset"
    assert sim.total(meter, customer) == 0


def test_an_outage_ends_by_itself() -> None:
    sim = Sim()
    sim.fault("outage", for_seconds=3600)
    assert sim.get("/v1/account").lost == "reset"
    sim.wait(3599)
    assert sim.get("/v1/account").lost == "reset"
    sim.wait(1)
    assert sim.get("/v1/account").status == 200


def test_chance_follows_the_seed() -> None:
    def statuses(seed: str) -> list[int]:
        sim = Sim(seed=seed)
        sim.meter()
        customer = sim.customer()
        sim.fault("rate_limited", probability=0.5)
        return [sim.event(customer, 1, f"e{number}").status for number in range(60)]

    first = statuses("one")
    assert 15 < first.count(429) < 45
    assert statuses("one") == first
    assert statuses("two") != first


def test_a_fault_that_makes_no_sense_is_refused_in_words() -> None:
    sim = Sim()
    for fields, word in (
        ({"kind": "surprise"}, "kind"),
        ({"kind": "drop", "probability": 2}, "probability"),
        ({"kind": "drop", "count": 0}, "count"),
        ({"kind": "drop", "counts": 3}, "counts"),
        ({"kind": "slow", "seconds": -1}, "seconds"),
        ({"kind": "slow", "seconds": 1e300}, "seconds"),
        ({"kind": "lag", "seconds": -1}, "seconds"),
        ({"kind": "outage", "for_seconds": -1}, "for_seconds"),
        ({"kind": "outage", "for_seconds": 1e300}, "for_seconds"),
        ({"kind": "rate_limited", "retry_after": -1}, "retry_after"),
        ({"kind": "reject", "code": "because"}, "code must be one of archived_meter"),
        ({"kind": 3}, "body"),
    ):
        response = sim.post("/_sim/faults", fields)
        assert response.status == 400
        assert word in message(response)


def test_unknown_paths_and_accounts_answer_in_stripes_shape() -> None:
    sim = Sim()
    response = sim.get("/v1/charges")
    assert response.status == 404
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert "Unrecognized request URL (GET: /v1/charges)" in message(response)
    assert code(sim.get("/v1/account", account="somebody")) == "account_invalid"
    assert code(sim.get("/v1/billing/meters/mtr_none")) == "resource_missing"


def test_the_account_is_a_simulated_one_and_the_balance_says_it_is_not_live() -> None:
    sim = Sim()
    assert sim.get("/v1/account").json()["id"] == sim.state.account
    assert sim.state.account.startswith("acct_sim")
    assert sim.get("/v1/balance").json()["livemode"] is False
    assert sim.get("/v1/account", account="acct_b").json()["id"] == "acct_b"
    assert Sim(seed="another").state.account != sim.state.account


def test_answers_carry_the_simulated_date_and_an_id_of_their_own() -> None:
    sim = Sim()
    sim.made("/_sim/clock", {"advance_seconds": 86_400})
    first, second = sim.get("/v1/account"), sim.get("/v1/account")
    assert parsedate_to_datetime(first.headers["date"]).timestamp() == sim.now_s + 86_400
    assert first.headers["request-id"] != second.headers["request-id"]
    assert first.headers["request-id"].startswith("req_")


def test_a_reset_of_the_simulator_empties_it() -> None:
    sim = Sim()
    sim.meter()
    sim.fault("drop")
    sim.made("/_sim/reset")
    assert sim.get("/v1/billing/meters").json()["data"] == []
    assert sim.state.world.faults == {}


def test_the_state_shows_totals_as_exact_text_and_no_key_of_anybody() -> None:
    sim = Sim()
    sim.meter()
    customer = sim.customer()
    for _ in range(11):
        sim.event(customer, 999_999_999_999_999)
    shown = sim.state.summary()
    (row,) = shown["accounts"][0]["totals"]
    assert row["value"] == "10999999999999989"
    assert row["events"] == 11
    assert {one["path"] for one in shown["requests"]} >= {"/v1/customers"}
    assert b"sk_test_secret" not in sim.state.snapshot()


def test_lists_are_paged_by_stripes_cursors() -> None:
    sim = Sim()
    ids = [sim.customer() for _ in range(5)][::-1]
    first = sim.get("/v1/customers", {"limit": 2}).json()
    assert [one["id"] for one in first["data"]] == ids[:2]
    assert first["has_more"] is True
    rest = sim.get("/v1/customers", {"limit": 3, "starting_after": ids[1]}).json()
    assert [one["id"] for one in rest["data"]] == ids[2:]
    assert rest["has_more"] is False
    back = sim.get("/v1/customers", {"limit": 2, "ending_before": ids[3]}).json()
    assert [one["id"] for one in back["data"]] == ids[1:3]
    assert sim.get("/v1/customers", {"limit": 101}).status == 400
